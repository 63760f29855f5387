"""Find out how many calls an endpoint takes by calling it.

A gate is a controller without a clock: it is notified when calls begin and how they end, and says when the
next may begin. It learns only while calls wait for it, since the load without a queue is not the capacity,
and forgets what it has learnt once none wait.

While nothing is known, more and more calls may be open. When one is refused for coming too often, the gate
closes, opens again with one call more at a time, and has learnt one of two things:

- a pace, where many calls had gone well: those of the last second, or on average where they took longer;
- a width, where few had: as many at once. Should that be refused as well, it was their pace.

Times are in seconds, of any one clock that is never set.
"""

from collections import deque
from dataclasses import dataclass, field
from math import inf, log2
from typing import Final, NamedTuple

FIRST_LIMIT: Final = 8
"""How many calls may be open before anything is known of the endpoint."""
_DOUBLING_S: Final = 0.18  # in which that grows twofold
_REOPEN_DOUBLING_S: Final = 0.1  # in which one call more grows to two, after a refusal
_SLACK_S: Final = 0.05  # the gate was open for so long without a call: none wait

_PAUSE_S: Final = 0.25  # after a refusal that does not say when to come again, or says sooner
_PAUSE_GROWTH: Final = 1.5  # times that, if nothing has gone well since the last one
_LONGEST_PAUSE_S: Final = 30.0
_JITTER_SHARE: Final = (
    0.1  # of the wait, at most, so that calls that were refused together are not repeated together
)
_MAX_JITTER_S: Final = 1.0  # and at most so much
_FAULTS: Final = 5  # in a row are the endpoint's, no longer the calls' own

_EVIDENCE: Final = 32  # calls of one second make a pace
_MIN_SUCCESSES: Final = 4  # calls have to go well after one refusal for the next to say anything new
_BACKOFF_FACTOR: Final = 0.94  # of what went well
_ROUNDED_S: Final = 1.0  # so much of a wait may be rounding to whole seconds
_LONG_S: Final = 2.0  # a wait that is part of the pace: the endpoint counts in minutes
_HORIZON_S: Final = 120.0  # what was longer ago says nothing
_REMEMBERED: Final = 1024  # calls
_MOST_TRUST: Final = 4


class _Ramp(NamedTuple):
    """More and more calls may be open, beside those that were."""

    start_s: float
    base: int
    more: int = FIRST_LIMIT
    doubling_s: float = _DOUBLING_S

    def width(self, now_s: float) -> float:
        return self.base + self.more * 2 ** min((now_s - self.start_s) / self.doubling_s, 20)

    def open_from_s(self, calls: int) -> float:
        """Return from when on so many may be open."""
        more = calls - self.base
        return self.start_s + (self.doubling_s * log2(more / self.more) if more > self.more else 0.0)


class _Width(NamedTuple):
    """So many calls may be open, and one more after some seconds."""

    calls: int
    start_s: float
    per_s: int
    """How many calls had gone well in a second."""

    def at(self, now_s: float) -> int:
        return self.calls + int(((now_s - self.start_s) / 10) ** 3)


class _Pace(NamedTuple):
    """So many calls may begin a second: at first a little fewer, later more.

    It grows as CUBIC does (Ha, Rhee and Xu, 2008): it is long near the level, and then leaves it ever faster.
    """

    level: float
    start_s: float
    trust: int = 1
    """How many times longer it stays near its level."""

    def at(self, now_s: float) -> float:
        patience_s = self.trust * max(5.0, 16 / self.level)
        turns = (now_s - self.start_s) / patience_s - 1
        return self.level * (1 + turns**3 * (0.03 if turns < 0 else 0.125))


@dataclass(slots=True)
class Gate:
    """Bounds the calls of one model, or all calls to one endpoint; shared by all that make them."""

    max_open: int
    """The most calls that may be open, however well it goes."""
    open_calls: int = 0
    _ramp: _Ramp = field(default_factory=lambda: _Ramp(0.0, 0))
    """Since the gate opened."""
    _width: _Width | None = None
    _pace: _Pace | None = None
    _next_s: float = 0.0
    """When the pace lets a call begin."""

    _wanted_s: float = -inf
    """Until when calls were wanted."""
    _first_s: float = 0.0
    """Since when calls have been wanted without a break."""
    _has_waited: bool = False
    """Whether a call has had to wait since then."""
    _count: int = 0
    """How many calls have started since then that went well, or still may."""
    _recent_s: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    """When the latest of them began."""

    closed_s: float = -inf
    """When the gate was closed last: refusals of calls started before say nothing new."""
    closed_until_s: float = 0.0
    _closings: int = 0
    """How often it has been closed since a call went well that began before the refused one."""
    _first_closed_s: float = 0.0
    """When it was closed first of these."""
    is_refused: bool = False
    """Whether it was closed by a refusal; otherwise by faults."""
    _open_at_close: int = 0
    """How many calls were open when it was closed that went well, or still may."""
    _faults: int = 0
    """How many calls the endpoint has failed at since it has answered one."""
    _failed_s: float = -inf
    """When it failed last."""

    def room(self, now_s: float) -> int:
        """Return how many calls more may be open."""
        return int(min(self._widest(now_s), inf if self._pace else self._ramp.width(now_s))) - self.open_calls

    def limit(self, now_s: float) -> int:
        """Return how many calls may be open."""
        return self.room(now_s) + self.open_calls

    def per_s(self, now_s: float) -> float | None:
        """Return how many calls may begin in a second; None: no pace is known, or needed."""
        return self._pace.at(now_s) if self._pace else None

    def is_closed(self, now_s: float) -> bool:
        """Whether no call may begin until a time."""
        return now_s < self.closed_until_s

    def wait_s(self, now_s: float, *, has_waited: bool = False) -> float | None:
        """Return how long until a call may begin, 0: now; None: as soon as an open one has ended.

        Asking counts as a call that wants to start; `has_waited`: whether it had to wait until now.
        """
        if not has_waited and now_s > self._wanted_s + _SLACK_S:
            self._forget(now_s)
        self._open_if_due(now_s)
        wait_s = self._until_free_s(now_s)
        if wait_s != 0:
            self._has_waited = True
            self._wanted_s = inf if wait_s is None else now_s + wait_s
        return wait_s

    def _until_free_s(self, now_s: float) -> float | None:
        if now_s < self.closed_until_s:
            return self.closed_until_s - now_s
        if self.open_calls >= self._widest(now_s):
            return None
        open_from_s = self._next_s if self._pace else self._ramp.open_from_s(self.open_calls + 1)
        return open_from_s - now_s if open_from_s > now_s else 0.0

    def _widest(self, now_s: float) -> int:
        return min(self._width.at(now_s), self.max_open) if self._width else self.max_open

    def begin(self, now_s: float) -> None:
        """Record that a call begins."""
        self._open_if_due(now_s)
        self._wanted_s = now_s
        self._count += 1
        self._recent_s.append(now_s)
        if self._pace:
            apart_s = min(1 / self._pace.at(now_s), _LONGEST_PAUSE_S)
            self._next_s = max(self._next_s, now_s - apart_s) + apart_s
        self.open_calls += 1

    def end(self) -> None:
        """Record that a call was answered, or given up."""
        self.open_calls -= 1
        self._faults = 0

    def void(self, started_s: float) -> None:
        """Record that a call ended without an answer, for a reason that says nothing of this gate."""
        self._uncount(started_s)

    def is_idle(self, now_s: float) -> bool:
        """Whether nothing would be lost with the gate: it is open, unused, and has nothing to remember."""
        last_s = self._recent_s[-1] if self._recent_s else -inf
        is_wanted = self.open_calls > 0 or now_s <= max(self.closed_until_s, last_s + _SLACK_S)
        return not is_wanted and (not self._faults or now_s > self._failed_s + _HORIZON_S)

    def fail(self, started_s: float, now_s: float, retry_after_s: float | None, jitter: float) -> None:
        """Record that the endpoint failed at a call that began at a time.

        The gate closes where the endpoint says for how long, as in `refuse`, or has failed often in a row.
        """
        self._uncount(started_s)
        self._faults += 1
        self._failed_s = now_s
        if started_s > self.closed_s and (retry_after_s or self._faults >= _FAULTS):
            self._close(started_s, now_s, retry_after_s or 0.0, jitter)
            self.is_refused = False

    def refuse(self, started_s: float, now_s: float, retry_after_s: float | None, jitter: float) -> None:
        """Record that a call that began at a time was refused: there are too many.

        The gate closes for as long as the endpoint says and, by `jitter` from 0 to 1, a little longer: other
        services may have got the same answer.
        """
        self._uncount(started_s)
        if started_s > self.closed_s:
            self._close(started_s, now_s, retry_after_s or 0.0, jitter)
            self.is_refused = True
        else:
            self._open_at_close -= 1

    def _uncount(self, started_s: float) -> None:
        self.open_calls -= 1
        self._count -= started_s >= self._first_s
        if started_s in self._recent_s:
            self._recent_s.remove(started_s)

    def _close(self, started_s: float, now_s: float, wait_s: float, jitter: float) -> None:
        if any(self._ramp.start_s <= earlier_s < started_s for earlier_s in self._recent_s):
            self._closings = 0
        if not self._closings:
            self._first_closed_s = now_s
        wait_s = max(wait_s, min(_PAUSE_S * _PAUSE_GROWTH**self._closings, _LONGEST_PAUSE_S))
        self._closings += 1
        self._open_at_close = self.open_calls
        self.closed_s = now_s
        self.closed_until_s = now_s + wait_s + jitter * min(_JITTER_SHARE * wait_s, _MAX_JITTER_S)

    def _forget(self, now_s: float) -> None:
        self._width = self._pace = None
        self._has_waited = False
        self._closings = 0
        self._first_s, self._count = now_s, 0
        if now_s >= self.closed_until_s:
            self._ramp = _Ramp(now_s, self.open_calls)

    def _open_if_due(self, now_s: float) -> None:
        if self.closed_s < self._ramp.start_s or now_s < self.closed_until_s:
            return
        if now_s - self._first_closed_s > _HORIZON_S:
            self._width = self._pace = None
        elif self.is_refused and self._has_waited and self._count > 0:
            self._learn(now_s)
        if self._closings <= 1 and now_s - self._first_s > _HORIZON_S:
            self._first_s, self._count = now_s, 0
        self._ramp = _Ramp(now_s, self.open_calls, 1, _REOPEN_DOUBLING_S)
        self._next_s = now_s

    def _learn(self, now_s: float) -> None:
        """Take up what went well until the gate was closed: by now it is known which calls did."""
        closed_s, opened_s, pace, width = self.closed_s, self._ramp.start_s, self._pace, self._width
        per_s = max(1, sum(started_s > closed_s - 1 for started_s in self._recent_s))
        if now_s - self._first_closed_s > _LONG_S:
            rounded_s = min(self.closed_until_s - closed_s, _ROUNDED_S)
            average = _BACKOFF_FACTOR * self._count / (now_s - self._first_s - rounded_s)
            self._width, self._pace = None, _Pace(min(pace.level, average) if pace else average, now_s)
        elif pace and closed_s - opened_s >= 1:
            # The pace was right, but for what it had grown since; or something else bounded the calls.
            trust = min(2 * pace.trust, _MOST_TRUST) if pace.at(closed_s) > pace.level else 1
            self._pace = _Pace(0.95 * min(pace.at(closed_s), per_s), now_s, trust)
        elif pace:
            if sum(started_s >= opened_s for started_s in self._recent_s) >= _MIN_SUCCESSES:
                level = (
                    _BACKOFF_FACTOR * per_s
                    if _BACKOFF_FACTOR * per_s <= 1.1 * pace.level
                    else 0.9 * pace.at(closed_s)
                )
                self._pace = _Pace(max(0.6 * pace.at(closed_s), level), now_s, pace.trust)
        elif width is None and per_s < min(_EVIDENCE, 6 * self._open_at_close):
            self._width = _Width(self._open_at_close, now_s, per_s)
        elif width and (self._closings > 1 or width.at(closed_s) > width.calls):
            self._width = width._replace(start_s=now_s)  # one call more was too many, or nothing is new
        else:
            self._width, self._pace = (
                None,
                _Pace(_BACKOFF_FACTOR * max(per_s, width.per_s if width else 0), now_s),
            )
