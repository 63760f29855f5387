"""What an endpoint says in an error's body, whatever the body's shape."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

_ECHOES: Final = frozenset({"failed_generation", "input"})
"""Fields that repeat what was sent or what the model wrote: their words are not the endpoint's."""
_MAX_CHARACTERS: Final = 4096
"""How much is looked through for what it means: some 10 ms at the worst."""
_MAX_DEPTH: Final = 16


def fields(body: bytes) -> Iterator[tuple[str, object]]:
    """Return each value of a JSON body with its key, in order; a string that holds JSON is opened too.

    A body that is no JSON is one value without a key.
    """
    yield from _fields("", body.decode(errors="replace"), 0)


def words(body: bytes) -> str:
    """Return all that a body says, in lower case: its keys and values, a line for each and none twice.

    A key stands on a line of its own, for it may be the name of a parameter, and is part of no sentence.
    """
    lines: dict[str, None] = {}
    characters = 0
    for it in chain.from_iterable(fields(body)):
        line = str(it)[:_MAX_CHARACTERS].lower()
        characters += len(line) * (line not in lines)
        lines[line] = None
        if characters > _MAX_CHARACTERS:
            break
    return "\n".join(lines)[:_MAX_CHARACTERS]


def _fields(key: str, value: Any, depth: int) -> Iterator[tuple[str, object]]:
    if depth > _MAX_DEPTH or key in _ECHOES:
        return
    match value:
        case dict():
            for name, inner in value.items():
                yield from _fields(name, inner, depth + 1)
        case list():
            for inner in value:
                yield from _fields(key, inner, depth + 1)
        case str() if isinstance(inner := opened(value), dict | list):
            yield from _fields(key, inner, depth + 1)
        case _:
            yield key, value


def opened(text: str) -> Any:
    """Return the JSON that a string holds; None: it holds none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
