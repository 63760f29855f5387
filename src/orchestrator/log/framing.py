"""The little of protobuf's encoding that lets stored events travel without being decoded."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from google.protobuf.message import Message

_CONTINUATION_BIT: Final = 0x80
"""The bit of a varint's byte that says another byte follows."""
_LENGTH_DELIMITED: Final = 2


def tag(message: type[Message], field: str) -> bytes:
    """Return the tag of a message's length-delimited field."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED)


def encode_field(field_tag: bytes, data: bytes) -> bytes:
    """Return one length-delimited field: its tag, the data's size, the data."""
    return _prefix(field_tag, len(data)) + data


@lru_cache(4096)
def _prefix(field_tag: bytes, size: int) -> bytes:
    return field_tag + _varint(size)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number >= _CONTINUATION_BIT:
        digits.append(number & (_CONTINUATION_BIT - 1) | _CONTINUATION_BIT)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def split_fields(data: bytes) -> Iterator[bytes]:
    """Take apart a message that has only length-delimited fields with numbers under 16: each as it is."""
    start = 0
    while start < len(data):
        offset, size, shift = start + 1, 0, 0
        while True:
            byte = data[offset]
            offset += 1
            size |= (byte & (_CONTINUATION_BIT - 1)) << shift
            shift += 7
            if byte < _CONTINUATION_BIT:
                break
        yield data[start : offset + size]
        start = offset + size
