"""What happens to an instance, told in events: the state so far, and each event as a line of text."""

from dataclasses import replace
from typing import Final

from orchestrator.cli.text import counted, duration, one_line
from orchestrator.core.instance import WAITING, Instance, Usage, usage_of
from orchestrator.core.state import IllegalEventError, evolve
from orchestrator.v1 import event_pb2 as pb
from orchestrator.v1 import instance_pb2

UNKNOWN: Final = "-"
"""A cost that nobody knows: no price is known for the model."""

_PROMPT_SHOWN: Final = 60
_MESSAGE_SHOWN: Final = 200


class Progress:
    """The fold of an instance's events, as far as this version understands them."""

    def __init__(self) -> None:
        self.instance = Instance()

    def apply(self, event: pb.Event) -> None:
        """Take in the next event; one unknown to this version, or without its past, changes nothing."""
        try:
            self.instance = evolve(self.instance, event)
        except IllegalEventError:
            self.instance = replace(self.instance, id=event.instance_id, last_sequence=event.sequence)

    def describe(self, event: pb.Event) -> str:
        """Tell the event, already applied, in one line without control characters."""
        return one_line(self._describe(event))

    def _describe(self, event: pb.Event) -> str:
        kind = event.WhichOneof("payload")
        if kind is None:
            return "something that a later version of this command can tell"
        match getattr(event, kind):
            case pb.InstanceCreated() as it:
                return f"created {event.instance_id}: {one_line(it.prompt, _PROMPT_SHOWN)}"
            case pb.PlanningStarted() as it:
                return f"planning with {it.model}{_again(it.attempt)}"
            case pb.PlanningFailed() as it:
                return f"planning failed: {_failure(event, it)}"
            case pb.SubtaskPlanned() as it:
                after = f" after {', '.join(it.subtask.depends_on)}" if it.subtask.depends_on else ""
                return f"planned {self._name(it.subtask.id)}{after}"
            case pb.PlanCompleted() as it:
                waits = ", waits for review" if self.instance.state == WAITING else ""
                subtasks = counted(len(self.instance.subtasks), "subtask")
                return f"plan complete: {subtasks}{_used(it.usage)}{waits}"
            case pb.PlanReviewed() as it:
                return "plan rejected" if it.decision == pb.DECISION_REJECT else "plan approved"
            case pb.SubtaskStarted() as it:
                return f"{self._name(it.subtask_id)} started with {it.model}{_again(it.attempt)}"
            case pb.SubtaskCompleted() as it:
                return f"{self._name(it.subtask_id)} done{self._took(it.subtask_id)}{_used(it.usage)}"
            case pb.SubtaskFailed() as it:
                return f"{self._name(it.subtask_id)} failed: {_failure(event, it)}"
            case pb.SubtaskSkipped() as it:
                return f"{self._name(it.subtask_id)} skipped: {_cause(it.error)}"
            case pb.SynthesisStarted() as it:
                return f"synthesis with {it.model}{_again(it.attempt)}"
            case pb.SynthesisFailed() as it:
                return f"synthesis failed: {_failure(event, it)}"
            case pb.SynthesisCompleted() as it:
                return f"synthesis done{_used(it.usage)}"
            case pb.InstancePauseRequested():
                return "pause requested: what runs finishes"
            case pb.InstancePaused():
                return "paused"
            case pb.InstanceResumed():
                return "resumed"
            case pb.InstanceRetried():
                return "retried: what failed runs again"
            case pb.InstanceRestarted():
                return "restarted from the beginning"
            case pb.InstanceCompleted() as it:
                own = self.instance.own_usage
                used = usage_line(own if own.model_calls else usage_of(it.usage))
                return f"complete ({used})" if used else "complete"
            case pb.InstanceErrored() as it:
                return f"errored: {_cause(it.error)}"
            case pb.InstanceTerminated():
                return "terminated"
            case _:
                return kind.replace("_", " ")

    def _name(self, subtask_id: str) -> str:
        subtask = self.instance.subtasks.get(subtask_id)
        return f"{subtask_id} {subtask.title}" if subtask and subtask.title != subtask_id else subtask_id

    def _took(self, subtask_id: str) -> str:
        subtask = self.instance.subtasks.get(subtask_id)
        return f" in {duration(subtask.work.end_time_s - subtask.work.start_time_s)}" if subtask else ""


def cost(usage: Usage) -> str:
    """What calls have cost: `$0.0123`, `-` where nobody knows, empty where there were none."""
    if usage.cost_usd:
        return f"${usage.cost_usd:.4f}"
    return UNKNOWN if usage.model_calls else ""


def usage_line(usage: Usage) -> str:
    """What model calls have used: `12,340 tokens, $0.0123`; empty where nothing is known."""
    tokens = usage.input_tokens + usage.output_tokens
    parts = [counted(tokens, "token")] if tokens else []
    if usage.cost_usd:
        parts.append(f"${usage.cost_usd:.4f}")
    return ", ".join(parts)


def _used(usage: instance_pb2.Usage) -> str:
    line = usage_line(usage_of(usage))
    return f" ({line})" if line else ""


def _again(attempt: int) -> str:
    return f", attempt {attempt}" if attempt > 1 else ""


def _cause(error: instance_pb2.Failure) -> str:
    return f"{error.reason}: {one_line(error.message, _MESSAGE_SHOWN)}" if error.message else error.reason


def _failure(event: pb.Event, it: pb.PlanningFailed | pb.SubtaskFailed | pb.SynthesisFailed) -> str:
    if not it.HasField("retry_time"):
        return _cause(it.error)
    delay_s = (it.retry_time.ToNanoseconds() - event.event_time.ToNanoseconds()) / 1e9
    return f"{_cause(it.error)} - attempt {it.attempt + 1} in {duration(delay_s)}"
