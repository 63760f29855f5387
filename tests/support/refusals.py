"""Messages of endpoints that reject a number of tokens: see refusals.toml."""

import tomllib
from pathlib import Path
from typing import Final

_TABLE: Final = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

CAPS: Final[list[tuple[str, int]]] = [*_TABLE["caps"].items()]
WINDOWS: Final[list[tuple[str, int, int]]] = [
    (message, *limits) for message, limits in _TABLE["windows"].items()
]
WITHOUT_NUMBERS: Final[list[str]] = _TABLE["lists"]["without_numbers"]
NO_ROOM: Final[list[str]] = _TABLE["lists"]["no_room"]
TOO_LONG: Final[list[str]] = _TABLE["lists"]["too_long"]
UNCLEAR: Final[list[str]] = _TABLE["lists"]["unclear"]
OTHERS: Final[list[str]] = _TABLE["lists"]["others"]
RATES: Final[list[str]] = _TABLE["lists"]["rates"]
