"""How a model's answer is delivered: streamed, or whole, in one piece.

Streamed, unless the model hides its usage there, or the endpoint streams enough already. What is learnt
decides nothing for good: a delivery in which calls failed is avoided, and tried again after a time. The last
attempt takes no risk: it is streamed unless that is what failed.
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

Delivery = Literal["streamed", "whole"]
"""How an answer is delivered."""

REMEMBERED_S: Final = 900.0
"""How long a delivery in which calls failed is avoided."""

_MAX_CUTS: Final = 2
"""So many streams in a row without an end are no accident."""
_DELIVERY_FAILURES: Final = frozenset({"TIMEOUT", "CONNECTION_FAILED", "OUTPUT_INVALID"})
"""How calls for the whole fail, besides by a status, where a gateway does not wait so long for an answer."""


class _Workload(NamedTuple):
    """What a model is called for: how long its answers take depends on it."""

    model: str
    role: Role


class DeliveryChooser:
    """Chooses the delivery for each call to one endpoint, by what its models have shown of both."""

    def __init__(self, most_unwatched_streams: int) -> None:
        self._most_unwatched_streams = most_unwatched_streams
        self._unwatched_streams = 0
        self._without_usage: dict[str, set[Delivery]] = {}
        """The deliveries in which a model answered without its usage."""
        self._failed_at_s: dict[tuple[_Workload, Delivery], float] = {}
        """When calls last failed for their delivery."""
        self._cuts: Counter[_Workload] = Counter()

    @contextmanager
    def choose(self, request: ModelRequest, *, can_stream: bool) -> Iterator[Delivery]:
        """Choose the delivery of a call; its stream is open while the block runs."""
        delivery = self._choose(request) if can_stream else "whole"
        is_counted = delivery == "streamed" and not request.is_watched
        self._unwatched_streams += is_counted
        try:
            yield delivery
        finally:
            self._unwatched_streams -= is_counted

    def _choose(self, request: ModelRequest) -> Delivery:
        work = _Workload(request.model, request.prompt.role)
        is_too_many = not request.is_watched and self._unwatched_streams >= self._most_unwatched_streams
        hides_usage = self._without_usage.get(request.model) == {"streamed"}
        delivery: Delivery = (
            "whole" if (is_too_many or hides_usage) and not request.is_last_attempt else "streamed"
        )
        other: Delivery = "streamed" if delivery == "whole" else "whole"
        return (
            delivery if self._failure_time_s(work, delivery) <= self._failure_time_s(work, other) else other
        )

    def _failure_time_s(self, work: _Workload, delivery: Delivery) -> float:
        """Return when calls last failed in a delivery; minus infinity: never, or that is forgotten."""
        failed_at_s = self._failed_at_s.get((work, delivery), float("-inf"))
        return failed_at_s if time.monotonic() < failed_at_s + REMEMBERED_S else float("-inf")

    def note_reply(
        self, request: ModelRequest, delivery: Delivery, reply: ModelReply, *, is_complete: bool = True
    ) -> None:
        """Record that a call went well; `is_complete`: nothing that the endpoint sent was missed."""
        work = _Workload(request.model, request.prompt.role)
        self._failed_at_s.pop((work, delivery), None)
        if delivery == "streamed":
            del self._cuts[work]
        if is_complete and not (reply.input_tokens or reply.output_tokens):
            # Budgets would be blind to it.
            self._without_usage.setdefault(request.model, set()).add(delivery)

    def note_failure(self, request: ModelRequest, delivery: Delivery, error: ModelError) -> None:
        """Record that a call failed."""
        work = _Workload(request.model, request.prompt.role)
        if delivery == "streamed":
            self._cuts[work] += error.reason == "STREAM_CUT"
            has_failed = self._cuts[work] >= _MAX_CUTS
        else:
            has_answered = bool(error.input_tokens or error.output_tokens)
            has_failed = error.reason in _DELIVERY_FAILURES and not has_answered
        if has_failed:
            self.mark_failed(request, delivery)

    def mark_failed(self, request: ModelRequest, delivery: Delivery) -> None:
        """Record that a delivery does not work for now."""
        self._failed_at_s[_Workload(request.model, request.prompt.role), delivery] = time.monotonic()
