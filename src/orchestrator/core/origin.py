"""Who caused an event, and in which request."""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from orchestrator.v1.event_pb2 import Event

_MAX_CHARACTERS: Final = 200
_TRACE_PARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class Origin(NamedTuple):
    """A client's request, as far as it is recorded with the events that it causes."""

    actor: str = ""
    """Who asked; empty: the service itself, or unknown without authentication."""
    request_id: str = ""
    """The id of the request, by which logs of different services find together."""
    trace_parent: str = ""
    """The W3C trace context's `traceparent`."""

    @classmethod
    def of(cls, event: Event) -> Self:
        """Return the request that caused a recorded event."""
        return cls(event.actor, event.request_id, event.trace_parent)

    @property
    def trace_id(self) -> str:
        """The trace that the request is part of, 32 hexadecimal digits; empty: none is known."""
        return self.trace_parent[3:35]

    def stamp(self, events: Sequence[Event]) -> None:
        """Write it into events that are not recorded yet."""
        if any(self):
            for event in events:
                event.actor, event.request_id, event.trace_parent = self


NO_ORIGIN: Final = Origin()


def origin(*, actor: str = "", request_id: str = "", trace_parent: str = "") -> Origin:
    """Take what a request says of itself; what cannot be what it claims to be is left out."""
    is_id = request_id.isprintable() and len(request_id) <= _MAX_CHARACTERS
    is_trace = len(trace_parent) <= _MAX_CHARACTERS and _TRACE_PARENT.fullmatch(trace_parent)
    return Origin(actor, request_id if is_id else "", trace_parent if is_trace else "")
