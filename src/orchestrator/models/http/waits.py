"""How long an endpoint asks to wait, in headers, in an error's fields or in its words."""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from orchestrator.models.http import error_body

_NUMBER: Final = r"\d{1,15}(?:\.\d{1,15})?"
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_UNIT: Final = r"(?:milliseconds?|ms|minutes?|mins?|m|seconds?|secs?|s|hours?|hrs?|h|days?|d)(?![a-z])"
_DURATION: Final = rf"{_NUMBER}\s*{_UNIT}(?:(?:,| and)?\s*{_NUMBER}\s*{_UNIT})*"
_IN_WORDS: Final = re.compile(
    r"(?:try again|retry|wait|available|reset|back off|cool[ -]?down|resume|allowed)"
    rf"[^\d\n]{{0,40}}?({_DURATION})|retry[ -]after:? ({_NUMBER})\b"
)
_FIELDS_S: Final = {
    **dict.fromkeys(("retrydelay", "retryafter", "retryafterseconds", "retryaftersecs", "retryin"), 1.0),
    **dict.fromkeys(("retryafterms", "retrydelayms", "retryinms"), 0.001),
}
"""Fields of an error that hold a wait, without their hyphens, and how many seconds their unit has."""
_HEADERS_S: Final = {
    "Retry-After-Ms": 0.001,
    "X-Ms-Retry-After-Ms": 0.001,
    "Retry-After": 1.0,
    "X-Retry-After": 1.0,
    "X-RateLimit-Retry-After": 1.0,
}
_STRUCTURED_RESET: Final = re.compile(rf"\b(?:reset|t)\s*=\s*({_NUMBER})")
"""How a single `RateLimit` header names it, in the two forms that there are."""
_EPOCH_S: Final = 1e9  # a greater number of seconds is a moment, not a wait
_EPOCH_MS: Final = 1e11  # and a greater one is counted in milliseconds


def requested_wait_s(headers: Mapping[str, str], body: bytes) -> float | None:
    """Return how many seconds an endpoint asks to wait, at least 0, unbounded; None: it does not say.

    Believed in this order: `Retry-After`, a field such as the `retryDelay` of Google's RetryInfo, words such
    as "try again in 1.2s", and when the limits that are exhausted are reset. A moment is measured by the
    endpoint's own clock where it sends one.
    """
    now_s = _moment_s(headers.get("Date", "")) or time.time()
    for name, unit_s in _HEADERS_S.items():
        if (wait_s := _wait_s(headers.get(name, ""), now_s, unit_s)) is not None:
            return wait_s
    fields = {key.lower(): str(value) for key, value in error_body.fields(body)}
    for key, value in fields.items():
        unit = _FIELDS_S.get(re.sub(r"[_-]", "", key))
        if unit and (wait_s := _wait_s(value, now_s, unit)) is not None:
            return wait_s
    if found := _IN_WORDS.search(error_body.words(body)):
        return _duration_s(found[1]) if found[1] else float(found[2])
    # Some gateways hand on in the body which headers they were given.
    return _reset_s({**fields, **{name.lower(): value for name, value in headers.items()}}, now_s)


def _reset_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """Return when the exhausted limit is reset, the soonest of several: too soon costs one call."""
    exhausted_s: list[float] = []
    unknown_s: list[float] = []
    for name, value in headers.items():
        if name == "ratelimit" and (found := _STRUCTURED_RESET.search(value)):
            unknown_s.append(float(found[1]))
        is_reset = re.search(r"rate-?limit", name) and "reset" in name
        if not is_reset or (wait_s := _wait_s(value, now_s)) is None:
            continue
        remaining = re.match(_NUMBER, headers.get(name.replace("reset", "remaining"), "").strip())
        if remaining is None:
            unknown_s.append(wait_s)
        elif float(remaining[0]) == 0:
            exhausted_s.append(wait_s)
    return max(exhausted_s, default=min(unknown_s, default=None))


def _wait_s(value: str, now_s: float, unit_s: float = 1.0) -> float | None:
    """Return the wait in a value: a number, a duration or a time."""
    value = value.strip()
    if re.fullmatch(rf"{_NUMBER}|\d{{1,15}}\.", value):
        number = float(value)
        if number < _EPOCH_S:
            return number * unit_s
        return max(number / (1000 if number >= _EPOCH_MS else 1) - now_s, 0.0)
    if re.fullmatch(_DURATION, value.lower()):
        return _duration_s(value.lower())
    moment_s = _moment_s(value)
    return None if moment_s is None else max(moment_s - now_s, 0.0)


def _duration_s(text: str) -> float:
    parts = re.findall(rf"({_NUMBER})\s*([a-z]+)", text)
    return sum(
        float(number) * _UNITS_S["ms" if unit in ("ms", "millisecond", "milliseconds") else unit[0]]
        for number, unit in parts
    )


def _moment_s(date: str) -> float | None:
    """Seconds since the epoch of a date as HTTP or as ISO 8601 write it."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(date)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            continue
    return None
