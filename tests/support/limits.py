"""Rate limits of endpoints: each call acquires, and is rejected with the seconds until one may succeed."""

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Limit(Protocol):
    """A limit on calls."""

    def try_acquire(self, now_s: float) -> float | None:
        """Admit a call: None where it is accepted, else the seconds until one may be."""

    def release(self) -> None:
        """Record that an accepted call has ended."""


class Unlimited:
    """Accepts all calls."""

    def try_acquire(self, now_s: float) -> float | None:  # noqa: ARG002
        return None

    def release(self) -> None:
        pass


class SlidingWindow(Unlimited):
    """Accepts so many calls in any window."""

    def __init__(self, calls: int, window_s: float = 1) -> None:
        self._calls, self._window_s = calls, window_s
        self._starts_s: deque[float] = deque()

    def try_acquire(self, now_s: float) -> float | None:
        while self._starts_s and self._starts_s[0] <= now_s - self._window_s:
            self._starts_s.popleft()
        if len(self._starts_s) >= self._calls:
            return self._starts_s[0] + self._window_s - now_s
        self._starts_s.append(now_s)
        return None


class FixedWindow(Unlimited):
    """Accepts so many calls in a window that starts with the first call after the last one."""

    def __init__(self, calls: int, window_s: float = 1) -> None:
        self._calls, self._window_s = calls, window_s
        self._window_start_s, self._count = -math.inf, 0

    def try_acquire(self, now_s: float) -> float | None:
        if now_s >= self._window_start_s + self._window_s:
            self._window_start_s, self._count = now_s, 0
        if self._count >= self._calls:
            return self._window_start_s + self._window_s - now_s
        self._count += 1
        return None


class TokenBucket(Unlimited):
    """Accepts so many calls a second, and a burst of saved ones."""

    def __init__(self, calls: float, burst: int) -> None:
        self._calls, self._burst = calls, burst
        self._tokens, self._last_s = float(burst), 0.0

    def try_acquire(self, now_s: float) -> float | None:
        self._tokens = min(self._burst, self._tokens + (now_s - self._last_s) * self._calls)
        self._last_s = now_s
        if self._tokens < 1:
            return (1 - self._tokens) / self._calls
        self._tokens -= 1
        return None


class Concurrency:
    """Accepts so many concurrent calls."""

    def __init__(self, calls: int) -> None:
        self._calls = self._free = calls

    def try_acquire(self, now_s: float) -> float | None:  # noqa: ARG002
        if not self._free:
            return 1.0
        self._free -= 1
        return None

    def release(self) -> None:
        self._free += 1


RetryAfter = Callable[[float], float | None]
"""Returns the Retry-After for a call that arrives so many seconds too early."""
RETRY_AFTER: dict[str, RetryAfter] = {
    "right": lambda early_s: early_s,
    "whole seconds": math.ceil,
    "none": lambda _: None,
    "zero": lambda _: 0.0,
    "too short": lambda early_s: early_s / 10,
}
