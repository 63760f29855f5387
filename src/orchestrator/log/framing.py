"""The little of protobuf's encoding that lets stored events travel without being decoded."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from google.protobuf.message import Message

_MORE: Final = 0x80
"""The bit of a varint's byte that says another byte follows."""
_LENGTH_DELIMITED: Final = 2


def tag(message: type[Message], field: str) -> bytes:
    """The tag of a message's length-delimited field with a number under 16."""
    return bytes((message.DESCRIPTOR.fields_by_name[field].number << 3 | _LENGTH_DELIMITED,))


def delimited(field_tag: bytes, data: bytes) -> bytes:
    """One length-delimited field: its tag, the data's size, the data."""
    return _prefix(field_tag, len(data)) + data


@lru_cache(4096)
def _prefix(field_tag: bytes, size: int) -> bytes:
    prefix = bytearray(field_tag)
    while size >= _MORE:
        prefix.append(size & (_MORE - 1) | _MORE)
        size >>= 7
    prefix.append(size)
    return bytes(prefix)


def fields(data: bytes) -> Iterator[bytes]:
    """Take apart a message that has only length-delimited fields with numbers under 16: each as it is."""
    start = 0
    while start < len(data):
        place, size, shift = start + 1, 0, 0
        while True:
            byte = data[place]
            place += 1
            size |= (byte & (_MORE - 1)) << shift
            shift += 7
            if byte < _MORE:
                break
        yield data[start : place + size]
        start = place + size
