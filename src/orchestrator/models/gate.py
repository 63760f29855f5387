"""How many calls an endpoint takes, found out by calling it.

A gate is a controller without a clock: it is told when calls begin and how they end, and says when the next
may begin. It bounds how many are open (additive increase, multiplicative decrease; Jacobson, SIGCOMM 1988)
and, once the endpoint has refused one for coming too often, how many begin a second: it takes up the rate
that went well, stays a little under it, and tries for more only slowly (as CUBIC; Ha, Rhee and Xu, 2008).
Times are in seconds, of any one clock.
"""

from collections import deque
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import Final

FIRST_LIMIT: Final = 16.0
"""How many calls may be open before anything is known of the endpoint."""
_NARROWER: Final = 0.7  # of the open calls, after a refusal
_BELOW: Final = 0.95  # of the ceiling, after it was met
_PROBE: Final = 0.1  # of the rate, more each second while no ceiling is known
_NEAR: Final = 0.03  # of the rate, more each second up to the ceiling
_BEYOND: Final = 0.004  # of the rate, more each second beyond it
_STRETCH_S: Final = 1.0  # so long must calls have gone well for their rate to be the endpoint's
_EVIDENCE: Final = 8  # so many calls must have gone well for there to be a rate
_PAUSE_S: Final = 0.25  # after a refusal that does not say when to come again
_LATER: Final = 0.1  # of the wait, at most, so that those who were refused together do not come back together
_LATER_S: Final = 1.0  # and at most so much


@dataclass(slots=True)
class Gate:
    """One endpoint's, shared by all who call it."""

    most: int
    """The most calls that may be open, however well it goes."""
    _limit: float = FIRST_LIMIT
    _open: int = 0
    _rate: float | None = None
    """How many calls may begin a second; None: nothing is known that bounds it."""
    _ceiling: float | None = None
    """The rate at which the endpoint began to refuse."""
    _next_s: float = 0.0
    _closed_until_s: float = 0.0
    _cut_s: float = float("-inf")
    """When the gate was closed last: refusals of calls begun before say nothing new."""
    _is_cut: bool = False
    """Whether it has been closed and not opened again yet."""
    _begun_s: "deque[float]" = field(default_factory=deque)
    """When the calls of this stretch, since the gate opened, began that were not refused."""

    @property
    def room(self) -> int:
        """How many calls more may be open."""
        return ceil(min(self._limit, self.most)) - self._open

    def wait_s(self, now_s: float) -> float | None:
        """How long until a call may begin, 0: now; None: as soon as an open one has ended."""
        if now_s < self._closed_until_s:
            return self._closed_until_s - now_s
        if self._open >= min(self._limit, self.most):
            return None
        return 0.0 if self._rate is None else max(0.0, self._next_s - now_s)

    def begin(self, now_s: float) -> None:
        """A call begins."""
        if self._is_cut:
            self._reopen(now_s)
        self._begun_s.append(now_s)
        while self._begun_s[0] < now_s - 2 * _STRETCH_S:
            self._begun_s.popleft()
        if self._rate is not None:
            self._next_s = max(self._next_s, now_s - 1 / self._rate) + 1 / self._rate
        self._open += 1

    def end(self) -> None:
        """A call has ended, whether well or not, but was not refused."""
        self._open -= 1
        more = 1.0 if self._rate is None else 1 / self._limit
        self._limit = min(float(self.most), self._limit + more)
        if self._rate is not None:
            # One call's share of a second's growth: so many calls end in a second.
            growth = _PROBE if self._ceiling is None else _NEAR if self._rate < self._ceiling else _BEYOND
            self._rate += growth

    def refuse(self, begun_s: float, now_s: float, retry_after_s: float | None, jitter: float) -> None:
        """A call that began at a time was refused: there are too many, or the endpoint is overloaded.

        The gate closes for as long as the endpoint says and, by `jitter` from 0 to 1, a little longer: other
        services may have been told the same.
        """
        self._open -= 1
        if begun_s in self._begun_s:
            self._begun_s.remove(begun_s)
        if begun_s > self._cut_s:
            self._limit = max(1.0, min(self._limit, self._open + 1) * _NARROWER)
            self._cut_s = now_s
            wait_s = _PAUSE_S if retry_after_s is None else retry_after_s
            self._closed_until_s = now_s + wait_s + jitter * min(_LATER * wait_s, _LATER_S)
            self._is_cut = True

    def _reopen(self, now_s: float) -> None:
        """Take up the rate that went well until the gate was closed: by now it is known which calls did."""
        self._is_cut = False
        self._next_s = now_s
        if len(self._begun_s) < _EVIDENCE:
            return
        first_s = self._begun_s[0]
        if self._rate is not None and self._cut_s - first_s >= _STRETCH_S:
            recent = sum(begun_s > self._cut_s - _STRETCH_S for begun_s in self._begun_s)
            self._ceiling = max(recent, 1) / _STRETCH_S
            self._rate = self._ceiling * _BELOW
        else:
            # A burst may have been on credit; what is sure is that so many went well in all this time. The
            # endpoint's rate lies between that and the one that was refused.
            self._ceiling = None
            sure = len(self._begun_s) / max(self._closed_until_s - first_s, 1.0)
            self._rate = sure if self._rate is None else sqrt(sure * max(sure, self._rate))
        self._begun_s.clear()
