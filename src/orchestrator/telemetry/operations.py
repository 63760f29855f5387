"""The log lines about instances: one for each thing that those who look after the service care for.

`info`: the life of an instance. `warning`: something to look at, as an attempt that failed. `error`: somebody
has to act. No line holds a prompt, an output or what an endpoint said, which may repeat them: only with the
setting LOG_LEVEL at `debug` a failure is quoted in full.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from orchestrator.core.identity import InstanceRef
from orchestrator.core.instance import INTERRUPTED, WAITING, Instance, seconds_of
from orchestrator.core.origin import Origin
from orchestrator.engine.observer import Observer, instance_fields
from orchestrator.errors import without_quotation
from orchestrator.v1.event_pb2 import Event
from orchestrator.v1.instance_pb2 import Failure

_LOGGER: Final = logging.getLogger(__name__)
_SIMPLE: Final[Mapping[str, str]] = {
    "instance_resumed": "instance resumed",
    "instance_retried": "instance retried",
    "instance_restarted": "instance restarted",
    "instance_paused": "instance paused",
    "plan_reviewed": "plan reviewed",
}
_IN_OWN_WORDS: Final = frozenset({"BUDGET_EXCEEDED", "DEADLINE_EXCEEDED"})
"""The reasons of errored instances whose message holds no title, answer or quotation. What the others come
from is in the lines of the attempts."""
_FAILED: Final = frozenset({"planning_failed", "subtask_failed", "synthesis_failed"})
_STAGES: Final[Mapping[str, str]] = {
    "planning_failed": "planning",
    "subtask_failed": "subtask",
    "synthesis_failed": "synthesis",
}


class OperationsLog(Observer):
    """Writes the lines."""

    def on_recorded(self, ref: InstanceRef, instance: Instance, events: Sequence[Event]) -> None:
        """Write a line for each event that has one."""
        for event in events:
            kind = event.WhichOneof("payload")
            if kind in _FAILED:
                self._log_attempt(ref, instance, event, kind)
            elif kind is not None and kind.startswith("instance_"):
                self._log_instance(ref, instance, event, kind)
            elif kind == "plan_reviewed" or (kind == "plan_completed" and instance.state == WAITING):
                text = _SIMPLE.get(kind, "plan waits for review")
                _LOGGER.info(text, extra=_fields(ref, instance, event))

    def _log_attempt(self, ref: InstanceRef, instance: Instance, event: Event, kind: str) -> None:
        payload = getattr(event, kind)
        retries = payload.HasField("retry_time")
        fields = _fields(
            ref,
            instance,
            event,
            stage=_STAGES[kind],
            attempt=payload.attempt,
            model=payload.model,
            **_cause(payload.error, without_quotation(payload.error.reason, payload.error.message)),
            retry_s=_rounded(max(0.0, seconds_of(payload.retry_time) - seconds_of(event.event_time)))
            if retries
            else None,
        )
        was_stopped = payload.error.reason == INTERRUPTED and not payload.by_crash
        level = logging.INFO if was_stopped else logging.WARNING
        _LOGGER.log(level, "attempt failed%s", "" if retries else " for good", extra=fields)

    def _log_instance(self, ref: InstanceRef, instance: Instance, event: Event, kind: str) -> None:
        level, fields = logging.INFO, dict[str, object]()
        match kind:
            case "instance_created":
                text = "instance created"
                fields = {"forked_from": instance.forked_from}
            case "instance_pause_requested":
                text, payload = "pause requested", event.instance_pause_requested
                if payload.HasField("cause"):  # the service itself asks, and goes on only when a client does
                    level, fields = logging.ERROR, _cause(payload.cause, payload.cause.message)
            case "instance_completed":
                text, fields = "instance complete", _account(instance)
            case "instance_terminated":
                text, fields = "instance terminated", _account(instance)
            case "instance_errored":
                text = "instance errored"
                error = event.instance_errored.error
                cause = error.message if error.reason in _IN_OWN_WORDS else ""
                level, fields = logging.WARNING, {**_cause(error, cause), **_account(instance)}
            case _:
                text = _SIMPLE[kind]
        _LOGGER.log(level, text, extra=_fields(ref, instance, event, **fields))

    def on_gate_closed(self, name: str, wait_s: float, *, is_refusal: bool) -> None:
        """Write that calls are held back."""
        reason = "too many calls" if is_refusal else "the endpoint fails"
        fields = {"gate": name, "reason": reason, "wait_s": _rounded(wait_s)}
        _LOGGER.warning("gate closed", extra={"fields": fields})

    def on_gate_opened(self, name: str) -> None:
        """Write that calls pass again."""
        _LOGGER.info("gate opened", extra={"fields": {"gate": name}})


def _fields(ref: InstanceRef, instance: Instance, event: Event, **more: object) -> dict[str, object]:
    """Return the fields of a line, with the request that caused the event, else with the instance's first."""
    origin = Origin.of(event)
    return instance_fields(ref, origin if any(origin) else instance.origin, actor=origin.actor, **more)


def _cause(failure: Failure, unquoted: str) -> dict[str, object]:
    """Return why something failed; `unquoted`: its message, without what lines must not hold."""
    message = failure.message if _LOGGER.isEnabledFor(logging.DEBUG) else unquoted
    return {"subtask": failure.subtask_id, "reason": failure.reason, "cause": message}


def _account(instance: Instance) -> dict[str, object]:
    """Return how long an instance took since it began, and what it used."""
    usage = instance.usage
    return {
        "duration_s": _rounded(instance.end_time_s - (instance.start_time_s or instance.create_time_s)),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "model_calls": usage.model_calls,
        "cost_usd": round(usage.cost_usd, 6),
    }


def _rounded(seconds: float) -> float:
    return round(seconds, 3)
