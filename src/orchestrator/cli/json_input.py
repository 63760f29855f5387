"""Parsing of hand-written JSON into messages, with errors that name the field."""

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from orchestrator.cli.exit_codes import UsageError
from orchestrator.settings import suggestion

M = TypeVar("M", bound=Message)

_EXPECTED: Final = {
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
    if error := _find_error(data, message.DESCRIPTOR):
        raise UsageError(error)
    return ParseDict(data, message)


def _find_error(data: Mapping[str, Any], descriptor: Any, path: str = "") -> str:
    """Describe the first invalid field; empty where all are valid."""
    # Descriptors are Any: protobuf has two classes of each, and only one of them at a time.
    fields = {field.json_name: field for field in descriptor.fields}
    seen_names = set()
    for name, value in data.items():
        field = fields.get(name) or descriptor.fields_by_name.get(name)
        if field is None:
            return f"{path}{name} is no field: {suggestion(name, [*fields])}"
        if field.name in seen_names:
            return f"{path}{name} is given twice, in both spellings"
        seen_names.add(field.name)
        message_type = field.message_type
        if (
            message_type is None
            or message_type.GetOptions().map_entry
            or message_type.full_name.startswith("google.")
        ):
            try:
                ParseDict({name: value}, GetMessageClass(descriptor)())
            except ParseError:
                return f"{path}{name} must be {_expected(field)}"
        elif value is not None:
            items = value if field.is_repeated else [value]
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                return f"{path}{name} must be {_expected(field)}"
            for number, item in enumerate(items):
                nested_path = f"{path}{name}[{number}]." if field.is_repeated else f"{path}{name}."
                if error := _find_error(item, message_type, nested_path):
                    return error
    return ""


def _expected(field: Any) -> str:
    if field.message_type and field.message_type.GetOptions().map_entry:
        return "an object whose values are text in quotes"
    if field.message_type and field.message_type.full_name == "google.protobuf.Duration":
        return 'seconds in quotes, as in "1.5s"'
    if field.message_type and field.message_type.full_name == "google.protobuf.Timestamp":
        return 'a time in quotes, as in "2026-01-31T12:00:00Z"'
    if field.enum_type:
        return f"one of {', '.join(field.enum_type.values_by_name)}"
    kind = _EXPECTED[field.cpp_type]
    return f"a list, each item {kind}" if field.is_repeated else kind
