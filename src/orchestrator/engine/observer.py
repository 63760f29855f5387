"""What an engine reports of itself, for those who look after the service: logs, metrics and traces."""

import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from orchestrator.core.identity import InstanceRef
from orchestrator.core.instance import Instance, WorkKind
from orchestrator.core.origin import NO_ORIGIN, Origin
from orchestrator.v1.event_pb2 import Event

_LOGGER: Final = logging.getLogger(__name__)


class ObservedCall(NamedTuple):
    """One request to a model that has ended."""

    stage: WorkKind
    model: str
    """`provider/model`."""
    outcome: str
    """`completed`, `continued`, `cancelled`, or the reason of the failure."""
    duration_s: float
    first_text_s: float | None
    """After how many seconds the first piece of text came; None: no text came."""


class Observer:
    """Listens to an engine. Here each method does nothing; none may raise, block or await."""

    def on_recorded(self, ref: InstanceRef, instance: Instance, events: Sequence[Event]) -> None:
        """Note that events are durable, without what a fork copied; `instance` is as it was after them."""

    def on_admitted(self, wait_s: float) -> None:
        """Note that an instance was admitted that had waited so long for it."""

    def on_call_ended(self, call: ObservedCall) -> None:
        """Note that a model call has ended."""

    def on_gate_closed(self, name: str, wait_s: float, *, is_refusal: bool) -> None:
        """Note that a gate takes no calls for so long; it is a model's (`provider/model`) or an endpoint's.

        The endpoint has refused a call for coming too often, or else has failed.
        """

    def on_gate_opened(self, name: str) -> None:
        """Note that the first call has passed a gate that had been closed."""


class Observers(Observer):
    """Passes on to several what an engine reports; one that fails does no harm to the engine."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def on_recorded(self, ref: InstanceRef, instance: Instance, events: Sequence[Event]) -> None:
        """See Observer."""
        self._notify(lambda each: each.on_recorded(ref, instance, events))

    def on_admitted(self, wait_s: float) -> None:
        """See Observer."""
        self._notify(lambda each: each.on_admitted(wait_s))

    def on_call_ended(self, call: ObservedCall) -> None:
        """See Observer."""
        self._notify(lambda each: each.on_call_ended(call))

    def on_gate_closed(self, name: str, wait_s: float, *, is_refusal: bool) -> None:
        """See Observer."""
        self._notify(lambda each: each.on_gate_closed(name, wait_s, is_refusal=is_refusal))

    def on_gate_opened(self, name: str) -> None:
        """See Observer."""
        self._notify(lambda each: each.on_gate_opened(name))

    def _notify(self, report: Callable[[Observer], None]) -> None:
        for each in self._observers:
            try:
                report(each)
            except Exception:
                _LOGGER.exception("an observer failed")


NO_OBSERVER: Final = Observer()


def instance_fields(ref: InstanceRef, origin: Origin = NO_ORIGIN, **more: object) -> dict[str, object]:
    """Return the `extra` of a log record about an instance: its fields, without the empty ones."""
    fields = {
        "instance": ref.id,
        "tenant": ref.key.tenant,
        "request_id": origin.request_id,
        "trace_id": origin.trace_id,
        **more,
    }
    return {"fields": {name: value for name, value in fields.items() if value not in ("", None)}}
