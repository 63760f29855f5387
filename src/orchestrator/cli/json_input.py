"""Messages from JSON that a person wrote: what is wrong with it is told in its own names."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from orchestrator.cli.exit_codes import UsageError
from orchestrator.settings import suggestion

M = TypeVar("M", bound=Message)

_KINDS: Final = {
    FieldDescriptor.CPPTYPE_STRING: "text in quotes",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_INT32: "a whole number of at most 2147483647",
    FieldDescriptor.CPPTYPE_INT64: "a whole number",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_MESSAGE: "an object",
}


def parse(data: object, message: M) -> M:
    """Fill a message from its JSON; raise UsageError that names the field at fault and what it must be."""
    if not isinstance(data, dict):
        raise UsageError("it must be an object, in braces")
    if fault := _fault(data, message.DESCRIPTOR):
        raise UsageError(fault)
    return ParseDict(data, message)


def _fault(data: Mapping[str, Any], descriptor: Any, path: str = "") -> str:
    """What is wrong with the first field that cannot be read; empty: nothing."""
    # Descriptors are Any: protobuf has two classes of each, and only one of them at a time.
    known = {field.json_name: field for field in descriptor.fields}
    given = set()
    for name, value in data.items():
        field = known.get(name) or descriptor.fields_by_name.get(name)
        if field is None:
            return f"{path}{name} is no field: {suggestion(name, [*known])}"
        if field.name in given:
            return f"{path}{name} is given twice, in both spellings"
        given.add(field.name)
        inside = field.message_type
        if inside is None or inside.GetOptions().map_entry or inside.full_name.startswith("google."):
            try:
                ParseDict({name: value}, GetMessageClass(descriptor)())
            except ParseError:
                return f"{path}{name} must be {_kind(field)}"
        elif value is not None:
            parts = value if field.is_repeated else [value]
            if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
                return f"{path}{name} must be {_kind(field)}"
            for number, part in enumerate(parts):
                place = f"{path}{name}[{number}]." if field.is_repeated else f"{path}{name}."
                if fault := _fault(part, inside, place):
                    return fault
    return ""


def _kind(field: Any) -> str:
    if field.message_type and field.message_type.GetOptions().map_entry:
        return "an object whose values are text in quotes"
    if field.message_type and field.message_type.full_name == "google.protobuf.Duration":
        return 'seconds in quotes, as in "1.5s"'
    if field.message_type and field.message_type.full_name == "google.protobuf.Timestamp":
        return 'a time in quotes, as in "2026-01-31T12:00:00Z"'
    if field.enum_type:
        return f"one of {', '.join(field.enum_type.values_by_name)}"
    kind = _KINDS[field.cpp_type]
    return f"a list, each item {kind}" if field.is_repeated else kind
