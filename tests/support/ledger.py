"""What an instance's events allow to be paid for, folded as a client does: without the service's fold."""

from collections import Counter

from orchestrator.v1 import event_pb2 as pb

PLANNING, SYNTHESIS = "planning", "synthesis"
"""The keys of the two, beside the subtasks' ids."""

_MAY_FOLLOW = {
    "instance_completed": {"instance_restarted"},
    "instance_errored": {"instance_retried", "instance_restarted"},
    "instance_terminated": {"instance_retried", "instance_restarted"},
}
"""What may follow a terminal event: nothing but what a client asks for."""
ENDS = _MAY_FOLLOW.keys()


class Ledger:
    """One instance's account; the models of a test give it the same plan each time they are asked.

    A result is paid for once its event is in the log. It has to be paid for again only where a client
    restarts the instance, rejects the plan, or edits the subtask.
    """

    def __init__(self) -> None:
        self.paid: dict[str, int] = {}
        """The work that must not be called for again, and the sequence of the event that completed it."""
        self.started = Counter[str]()
        """How many calls the log has recorded."""
        self.open: dict[str, str] = {}
        """The work in progress, and its model."""
        self.ended = ""
        """The terminal event that the log ends with, if it does."""
        self._planned: dict[str, tuple[object, ...]] = {}

    def apply(self, event: pb.Event) -> None:
        """Apply the next event; fail where it pays twice, or follows a terminal event."""
        kind = str(event.WhichOneof("payload"))
        allowed = _MAY_FOLLOW.get(self.ended)
        assert allowed is None or kind in allowed, f"{kind} follows {self.ended}: {event}"
        self.ended = kind if kind in _MAY_FOLLOW else ""
        payload = getattr(event, kind)
        part = _part(kind, payload)
        match kind:
            case "planning_started" | "subtask_started" | "synthesis_started":
                assert part not in self.paid, f"{part} has been paid for, and begins again: {event}"
                self.started[part] += 1
                self.open[part] = payload.model
            case "planning_failed" | "subtask_failed" | "synthesis_failed":
                self.open.pop(part)
            case "plan_completed" | "subtask_completed" | "synthesis_completed":
                self.open.pop(part, None)  # a client's own plan is complete without a call
                self.paid[part] = event.sequence
            case "subtask_planned":
                self._planned[payload.subtask.id] = _definition(payload.subtask)
            case "plan_reviewed" if payload.decision == pb.DECISION_REJECT:
                self.paid.clear()
            case "plan_reviewed" if payload.subtasks:
                edited = {subtask.id: _definition(subtask) for subtask in payload.subtasks}
                for name in [name for name in self.paid if self._planned.get(name) != edited.get(name)]:
                    del self.paid[name]
                self._planned = edited
            case "instance_restarted":
                self.paid.clear()
            case _ if self.ended:
                self.open.clear()


def _part(kind: str, payload: object) -> str:
    if kind.startswith("plan"):
        return PLANNING
    return SYNTHESIS if kind.startswith("synthesis") else getattr(payload, "subtask_id", "")


def _definition(subtask: object) -> tuple[object, ...]:
    names = ("title", "instructions", "depends_on", "worker")
    return tuple(str(getattr(subtask, name)) for name in names)
