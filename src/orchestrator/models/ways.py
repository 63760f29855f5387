"""In which way a model is asked to answer: streamed, or for the whole in one piece.

Streamed, unless it hides there what it used, or its endpoint streams enough already. What is learnt decides
nothing for good: the way in which calls died is left for the other one, and tried again after a time. The
last attempt takes no risk: it is streamed unless that is what failed.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple

from orchestrator.core.prompts import Role
from orchestrator.core.replies import ModelReply
from orchestrator.errors import ModelError
from orchestrator.models.base import ModelRequest

Way = Literal["streamed", "whole"]
"""How an answer comes."""

REMEMBERED_S: Final = 900.0
"""How long a way in which calls died is left for the other."""

_MOST_CUTS: Final = 2
"""So many streams in a row without an end are no accident."""
_DEADLY: Final = frozenset({"TIMEOUT", "CONNECTION_FAILED", "OUTPUT_INVALID"})
"""How calls for the whole fail, besides by a status, where a gateway does not wait so long for an answer."""


class _Work(NamedTuple):
    """What a model is called for: how long its answers take depends on it."""

    model: str
    role: Role


class Ways:
    """What one endpoint's models have shown of the two ways."""

    def __init__(self, most_unwatched_streams: int) -> None:
        self._most_unwatched_streams = most_unwatched_streams
        self._unwatched_streams = 0
        self._without_usage: dict[str, set[Way]] = {}
        """In which ways a model has answered without telling what it used."""
        self._died_s: dict[tuple[_Work, Way], float] = {}
        """When calls last died."""
        self._cuts: Counter[_Work] = Counter()

    @contextmanager
    def choose(self, request: ModelRequest, *, can_stream: bool) -> Iterator[Way]:
        """The way to ask in; a stream is open while the block runs."""
        way = self._choose(request) if can_stream else "whole"
        is_counted = way == "streamed" and not request.is_watched
        self._unwatched_streams += is_counted
        try:
            yield way
        finally:
            self._unwatched_streams -= is_counted

    def _choose(self, request: ModelRequest) -> Way:
        work = _Work(request.model, request.prompt.role)
        is_too_many = not request.is_watched and self._unwatched_streams >= self._most_unwatched_streams
        is_blind = self._without_usage.get(request.model) == {"streamed"}
        way: Way = "whole" if (is_too_many or is_blind) and not request.is_last_attempt else "streamed"
        other: Way = "streamed" if way == "whole" else "whole"
        return way if self._death_s(work, way) <= self._death_s(work, other) else other

    def _death_s(self, work: _Work, way: Way) -> float:
        """When calls died in a way; long ago where they did not, or that is forgotten."""
        died_s = self._died_s.get((work, way), float("-inf"))
        return died_s if time.monotonic() < died_s + REMEMBERED_S else float("-inf")

    def note_reply(self, request: ModelRequest, way: Way, reply: ModelReply, *, is_all: bool = True) -> None:
        """A call went well; `is_all`: nothing can have been missed that the endpoint would have told."""
        work = _Work(request.model, request.prompt.role)
        self._died_s.pop((work, way), None)
        if way == "streamed":
            del self._cuts[work]
        if is_all and not (reply.input_tokens or reply.output_tokens):
            # Budgets would be blind to it.
            self._without_usage.setdefault(request.model, set()).add(way)

    def note_failure(self, request: ModelRequest, way: Way, error: ModelError) -> None:
        """A call failed."""
        work = _Work(request.model, request.prompt.role)
        if way == "streamed":
            self._cuts[work] += error.reason == "STREAM_CUT"
            has_died = self._cuts[work] >= _MOST_CUTS
        else:
            has_answered = bool(error.input_tokens or error.output_tokens)
            has_died = error.reason in _DEADLY and not has_answered
        if has_died:
            self.note_death(request, way)

    def note_death(self, request: ModelRequest, way: Way) -> None:
        """A way is no good for now."""
        self._died_s[_Work(request.model, request.prompt.role), way] = time.monotonic()
