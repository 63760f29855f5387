"""The limits of the fields of requests, read from where they are said: the option `limits` in the protos.

Numbers in the comments there are prose. What no option can say (unique names, a plan without cycles) is
checked where it belongs. A value that is lowered to a greatest one instead of being rejected, as the size of
a page is, has no limit of this kind.
"""

from collections.abc import Collection, Iterator
from datetime import timedelta
from functools import cache

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from orchestrator.v1.limits_pb2 import Limits
from orchestrator.v1.limits_pb2 import limits as _option


def of(message: type[Message], field: str) -> Limits:
    """Return the limits of a message's field; of each entry, where it is repeated."""
    return _of(message.DESCRIPTOR.fields_by_name[field])


@cache
def _of(field: FieldDescriptor) -> Limits:
    return field.GetOptions().Extensions[_option]


def faults(message: Message, *, without: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the path of each field beyond a limit, as in `retry.max_attempts`, and what is wrong with it.

    The message has no maps. Fields of `without` are passed over, and so are all patterns: what is wrong with
    an id or a name is better said in its own words.
    """
    for field, value in message.ListFields():
        if field.name in without:
            continue
        limits = _of(field)
        if not field.is_repeated:
            yield from _faults(field.name, value, limits)
            continue
        if limits.max_items and len(value) > limits.max_items:
            yield field.name, f"has {len(value)} {field.name}: there may be {limits.max_items}"
            continue
        for number, each in enumerate(value):
            yield from _faults(f"{field.name}[{number}]", each, limits)


def _faults(path: str, value: object, limits: Limits) -> Iterator[tuple[str, str]]:
    match value:
        case Duration():
            if not _is_within(value.seconds + value.nanos / 1e9, limits):
                span = f"{timedelta(seconds=limits.minimum)} to {timedelta(seconds=limits.maximum)}"
                yield path, f"must be {span} (h:mm:ss)"
        case Message():
            yield from ((f"{path}.{inner}", fault) for inner, fault in faults(value))
        case str():
            are, them = ("are", "them") if path.endswith("s") else ("is", "it")
            if limits.max_length and len(value) > limits.max_length:
                yield path, f"{are} over {limits.max_length} characters: shorten {them}"
            if limits.max_bytes and is_larger(value, limits.max_bytes):
                yield path, f"{are} over {kibibytes(limits)}: shorten {them}"
        case int() | float():
            if not _is_within(value, limits):
                yield (
                    path,
                    f"is {number(value)}: it must be {number(limits.minimum)} to {number(limits.maximum)}",
                )


def is_larger(text: str, max_bytes: int) -> bool:
    """Return whether a text has more bytes in UTF-8; one that has more characters is not encoded."""
    return len(text) > max_bytes or len(text.encode()) > max_bytes


def _is_within(value: float, limits: Limits) -> bool:
    """Whether a number is within the limits; one that is none (NaN) is not."""
    is_enough = not limits.HasField("minimum") or value >= limits.minimum
    return is_enough and (not limits.HasField("maximum") or value <= limits.maximum)


def number(value: float) -> str:
    """Write a number as short as it can be without losing a digit of a whole one."""
    return str(int(value)) if isinstance(value, int) or value.is_integer() else f"{value:g}"


def kibibytes(limits: Limits) -> str:
    """Write the most bytes of a text, as in `32 KiB`."""
    return f"{limits.max_bytes // 1024} KiB"
