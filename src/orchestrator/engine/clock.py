"""Time elapsed since recorded times, measured so that setting the wall clock does not change it."""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Final

_CACHED_TIMES: Final = 2**16
"""Recorded times: some for each instance that waits or has a deadline."""


class Clock:
    """Gives the time of day, which may be set, and how much time has passed, which cannot.

    A recorded time is laid on the event loop's clock when it is looked at first, and stays there. So waits
    hold while the process lives; after a restart the time of day is all there is to go by, except for
    times in the future: what was recorded has happened.
    """

    def __init__(self, now_s: Callable[[], float]) -> None:
        """`now_s` gives the time of day, in seconds since the epoch."""
        self.now_s = now_s
        self._monotonic_s = lru_cache(_CACHED_TIMES)(self._to_monotonic_s)

    def elapsed_s(self, time_s: float) -> float:
        """Return how many seconds ago something was recorded at a time since the epoch; never below 0."""
        placed_s = self._monotonic_s(time_s)
        return asyncio.get_running_loop().time() - placed_s

    def _to_monotonic_s(self, time_s: float) -> float:
        return asyncio.get_running_loop().time() - max(0.0, self.now_s() - time_s)
