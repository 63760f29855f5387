"""JSON of any size, to and from endpoints, written and read in steps none of which takes long.

The interpreter runs nothing else while one call of `json` reads a text, not even in another thread. So long
strings, of which answers are made, are read in pieces, and what has far more values than an answer has is
refused.
"""

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, Final

SMALL_BYTES: Final = 16 * 1024
"""What is no larger is read within some 2 ms, whatever it holds."""

_MAX_VALUES: Final = 50_000
"""How many values there may be: some 5 ms."""
_MAX_CHARACTERS: Final = 4 * 1024 * 1024
"""How long all that is no long string may be together."""
_LONG_STRING: Final = 1024
_PIECE: Final = 64 * 1024
_STRING_PIECE: Final = re.compile(r'(?:[^"\\]+|\\u[0-9a-fA-F]{4}|\\[^u])*+')
_FIRST_HALF: Final = ("\ud800", "\udbff")
_SECOND_HALF: Final = ("\udc00", "\udfff")


class TooManyValuesError(ValueError):
    """It has more values than any answer."""


def dumps(body: Mapping[str, object]) -> bytes:
    """Return a body in UTF-8. A lone surrogate, which has none, becomes a question mark."""
    unguessable = secrets.token_hex(8)
    strings: dict[str, str] = {}

    def take_out(value: object) -> object:
        match value:
            case str() if len(value) > _PIECE:
                name = f"{unguessable}-{len(strings)}"
                strings[json.dumps(name)] = value
                return name
            case Mapping():
                return {key: take_out(each) for key, each in value.items()}
            case list() | tuple():
                return [take_out(each) for each in value]
            case _:
                return value

    skeleton = json.dumps(take_out(body), ensure_ascii=False)
    parts = re.split(rf'("{unguessable}-\d+")', skeleton) if strings else [skeleton]
    return b"".join(
        _written(strings[part]) if part in strings else part.encode(errors="replace") for part in parts
    )


def _written(text: str) -> bytes:
    """Return a string of JSON, written piece by piece."""
    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    return b'"%b"' % b"".join(
        json.dumps(piece, ensure_ascii=False)[1:-1].encode(errors="replace") for piece in pieces
    )


def loads(data: bytes) -> Any:
    """Return what the JSON says; raise ValueError or RecursionError as `json.loads` does."""
    if len(data) <= SMALL_BYTES:
        return json.loads(data)
    text = data.decode(json.detect_encoding(data), "surrogatepass")
    skeleton, strings = _take_out_long_strings(text)
    value = json.loads(skeleton)
    return _put_back(value, strings) if strings else value


def _take_out_long_strings(text: str) -> tuple[str, dict[str, str]]:
    """Return the text with a name in the place of each long string, and the strings by their names."""
    parts: list[str] = []
    strings: dict[str, str] = {}
    unguessable = secrets.token_hex(8)
    position = values = characters = 0
    while position < len(text):
        start = text.find('"', position)
        until = start if start >= 0 else len(text)
        for at in range(position, until, _PIECE):
            values += sum(text.count(sign, at, min(at + _PIECE, until)) for sign in ",[{")
            if values > _MAX_VALUES:
                break
        end, pieces = _string(text, until) if start >= 0 else (until, [])
        if end - until > _LONG_STRING:
            name = f"{unguessable}-{len(strings)}"
            strings[name] = _unescape(pieces)
            parts += (text[position:until], json.dumps(name))
        else:
            parts.append(text[position:end])
        characters += len(parts[-1])
        if values > _MAX_VALUES or characters > _MAX_CHARACTERS:
            raise TooManyValuesError(f"there are over {_MAX_VALUES:,} values")
        position = end
    return "".join(parts), strings


def _string(text: str, start: int) -> tuple[int, list[str]]:
    """Return the end of the string whose quotation mark is at `start`, and its content in pieces."""
    position = start + 1
    pieces: list[str] = []
    while not text.startswith('"', position):
        found = _STRING_PIECE.match(text, position, position + _PIECE)
        if not found or not found[0]:
            raise ValueError(f"the string at character {start} has no end")
        pieces.append(found[0])
        position = found.end()
    return position + 1, pieces


def _unescape(pieces: list[str]) -> str:
    """Return what the content of a string says."""
    parts: list[str] = []
    half = ""
    for piece in pieces:
        part = half + json.loads(f'"{piece}"')
        # Two escapes make one character. Halves that are written as they are stay two, as for `json.loads`.
        if half and piece.startswith("\\") and _SECOND_HALF[0] <= part[1:2] <= _SECOND_HALF[1]:
            part = part[:2].encode("utf-16-le", "surrogatepass").decode("utf-16-le") + part[2:]
        is_half = _FIRST_HALF[0] <= part[-1:] <= _FIRST_HALF[1]
        half = part[-1:] if is_half and not piece.endswith(part[-1:]) else ""
        parts.append(part[: len(part) - len(half)])
    return "".join((*parts, half))


def _put_back(value: Any, strings: dict[str, str]) -> Any:
    match value:
        case str():
            return strings.get(value, value)
        case list():
            return [_put_back(each, strings) for each in value]
        case dict():
            return {strings.get(key, key): _put_back(each, strings) for key, each in value.items()}
        case _:
            return value
