"""What endpoints take: a limit is asked at the time of a call, and tells how many seconds early it comes."""

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Limit(Protocol):
    """A limit on calls."""

    def begin(self, now_s: float) -> float | None:
        """Begin a call: None where it is taken, or the seconds until one may be."""

    def end(self) -> None:
        """A call that was taken has ended."""


class Unlimited:
    """All calls are taken."""

    def begin(self, now_s: float) -> float | None:  # noqa: ARG002
        return None

    def end(self) -> None:
        pass


class Sliding(Unlimited):
    """So many calls in any one window."""

    def __init__(self, calls: int, window_s: float = 1) -> None:
        self._calls, self._window_s = calls, window_s
        self._starts_s: deque[float] = deque()

    def begin(self, now_s: float) -> float | None:
        while self._starts_s and self._starts_s[0] <= now_s - self._window_s:
            self._starts_s.popleft()
        if len(self._starts_s) >= self._calls:
            return self._starts_s[0] + self._window_s - now_s
        self._starts_s.append(now_s)
        return None


class Fixed(Unlimited):
    """So many calls in a window that begins with the first call after the last one."""

    def __init__(self, calls: int, window_s: float = 1) -> None:
        self._calls, self._window_s = calls, window_s
        self._begin_s, self._count = -math.inf, 0

    def begin(self, now_s: float) -> float | None:
        if now_s >= self._begin_s + self._window_s:
            self._begin_s, self._count = now_s, 0
        if self._count >= self._calls:
            return self._begin_s + self._window_s - now_s
        self._count += 1
        return None


class Bucket(Unlimited):
    """So many calls a second, and so many more that are saved up."""

    def __init__(self, calls: float, burst: int) -> None:
        self._calls, self._burst = calls, burst
        self._tokens, self._last_s = float(burst), 0.0

    def begin(self, now_s: float) -> float | None:
        self._tokens = min(self._burst, self._tokens + (now_s - self._last_s) * self._calls)
        self._last_s = now_s
        if self._tokens < 1:
            return (1 - self._tokens) / self._calls
        self._tokens -= 1
        return None


class AtOnce:
    """So many calls at once."""

    def __init__(self, calls: int) -> None:
        self._calls = self._free = calls

    def begin(self, now_s: float) -> float | None:  # noqa: ARG002
        if not self._free:
            return 1.0
        self._free -= 1
        return None

    def end(self) -> None:
        self._free += 1


RetryAfter = Callable[[float], float | None]
"""What an endpoint says to a call that comes so many seconds too early."""
RETRY_AFTER: dict[str, RetryAfter] = {
    "right": lambda early_s: early_s,
    "whole seconds": math.ceil,
    "none": lambda _: None,
    "zero": lambda _: 0.0,
    "too short": lambda early_s: early_s / 10,
}
