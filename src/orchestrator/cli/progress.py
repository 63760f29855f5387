"""The events of an instance folded into its state, and each event as a line of text."""

from dataclasses import replace
from typing import Final

from orchestrator.cli.text import duration, one_line, pluralize
from orchestrator.core.instance import IN_PROGRESS, QUEUED, RUNNING, WAITING, Instance, Usage, usage_of
from orchestrator.core.state import IllegalEventError, evolve
from orchestrator.v1 import event_pb2 as pb
from orchestrator.v1 import instance_pb2

UNKNOWN_COST: Final = "-"
"""A cost without a known price for the model."""

_UNKNOWN: Final = "something that a later version of this command can tell"
_DECISIONS: Final = {pb.DECISION_APPROVE: "plan approved", pb.DECISION_REJECT: "plan rejected"}

_MAX_PROMPT_LENGTH: Final = 60
_MAX_MESSAGE_LENGTH: Final = 200


class Progress:
    """The fold of an instance's events, as far as this version understands them."""

    def __init__(self) -> None:
        self.instance = Instance()

    def apply(self, event: pb.Event) -> None:
        """Apply the next event; one that is unknown or illegal in this state only advances the sequence."""
        try:
            self.instance = evolve(self.instance, event)
        except IllegalEventError:
            self.instance = replace(self.instance, id=event.instance_id, last_sequence=event.sequence)

    @property
    def may_wait(self) -> bool:
        """Whether there is something to do and no call under way."""
        instance = self.instance
        works = (instance.planning, instance.synthesis, *(it.work for it in instance.subtasks.values()))
        return instance.state in (QUEUED, RUNNING) and all(work.state != IN_PROGRESS for work in works)

    def describe(self, event: pb.Event) -> str:
        """Describe an applied event in one line without control characters."""
        return one_line(self._describe(event))

    def _describe(self, event: pb.Event) -> str:
        kind = event.WhichOneof("payload")
        if kind is None:
            return _UNKNOWN
        match getattr(event, kind):
            case pb.InstanceCreated() as it:
                return f"created {event.instance_id}: {one_line(it.prompt, _MAX_PROMPT_LENGTH)}"
            case pb.PlanningStarted() as it:
                return f"planning with {it.model}{_attempt_suffix(it.attempt)}"
            case pb.PlanningContinued() as it:
                return f"planning goes on: {_part_text(it)}"
            case pb.PlanningFailed() as it:
                return f"planning failed: {_failure_text(event, it)}"
            case pb.SubtaskPlanned() as it:
                dependencies = f" after {', '.join(it.subtask.depends_on)}" if it.subtask.depends_on else ""
                return f"planned {self._name(it.subtask.id)}{dependencies}"
            case pb.PlanCompleted() as it:
                review_note = ", waits for review" if self.instance.state == WAITING else ""
                subtasks = pluralize(len(self.instance.subtasks), "subtask")
                return f"plan complete: {subtasks}{_usage_suffix(it.usage)}{review_note}"
            case pb.PlanReviewed() as it:
                return _DECISIONS.get(it.decision, _UNKNOWN)
            case pb.SubtaskStarted() as it:
                return f"{self._name(it.subtask_id)} started with {it.model}{_attempt_suffix(it.attempt)}"
            case pb.SubtaskContinued() as it:
                return f"{self._name(it.subtask_id)} goes on: {_part_text(it)}"
            case pb.SubtaskCompleted() as it:
                elapsed = self._elapsed_suffix(it.subtask_id)
                return f"{self._name(it.subtask_id)} done{elapsed}{_usage_suffix(it.usage)}"
            case pb.SubtaskFailed() as it:
                return f"{self._name(it.subtask_id)} failed: {_failure_text(event, it)}"
            case pb.SubtaskSkipped() as it:
                return f"{self._name(it.subtask_id)} skipped: {_error_text(it.error)}"
            case pb.SynthesisStarted() as it:
                return f"synthesis with {it.model}{_attempt_suffix(it.attempt)}"
            case pb.SynthesisContinued() as it:
                return f"synthesis goes on: {_part_text(it)}"
            case pb.SynthesisFailed() as it:
                return f"synthesis failed: {_failure_text(event, it)}"
            case pb.SynthesisCompleted() as it:
                return f"synthesis done{_usage_suffix(it.usage)}"
            case pb.InstancePauseRequested(cause=cause) if cause.reason:
                return f"paused by the service: {_error_text(cause)}"
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
                return f"errored: {_error_text(it.error)}"
            case pb.InstanceTerminated():
                return "terminated"
            case _:
                return kind.replace("_", " ")

    def _name(self, subtask_id: str) -> str:
        subtask = self.instance.subtasks.get(subtask_id)
        return f"{subtask_id} {subtask.title}" if subtask and subtask.title != subtask_id else subtask_id

    def _elapsed_suffix(self, subtask_id: str) -> str:
        subtask = self.instance.subtasks.get(subtask_id)
        return f" in {duration(subtask.work.end_time_s - subtask.work.start_time_s)}" if subtask else ""


def cost_text(usage: Usage) -> str:
    """Format a cost: `$0.0123`, `-` where it is unknown, empty without calls."""
    if usage.cost_usd:
        return f"${usage.cost_usd:.4f}"
    return UNKNOWN_COST if usage.model_calls else ""


def usage_line(usage: Usage) -> str:
    """Format usage: `12,340 tokens, $0.0123`; empty where nothing is known."""
    tokens = usage.input_tokens + usage.output_tokens
    parts = [pluralize(tokens, "token")] if tokens else []
    if usage.cost_usd:
        parts.append(f"${usage.cost_usd:.4f}")
    return ", ".join(parts)


def _usage_suffix(usage: instance_pb2.Usage) -> str:
    line = usage_line(usage_of(usage))
    return f" ({line})" if line else ""


def _attempt_suffix(attempt: int) -> str:
    return f", attempt {attempt}" if attempt > 1 else ""


def _part_text(it: pb.PlanningContinued | pb.SubtaskContinued | pb.SynthesisContinued) -> str:
    return f"part {it.part} reached the token limit{_usage_suffix(it.usage)}"


def _error_text(error: instance_pb2.Failure) -> str:
    return (
        f"{error.reason}: {one_line(error.message, _MAX_MESSAGE_LENGTH)}" if error.message else error.reason
    )


def _failure_text(event: pb.Event, it: pb.PlanningFailed | pb.SubtaskFailed | pb.SynthesisFailed) -> str:
    if not it.HasField("retry_time"):
        return _error_text(it.error)
    delay_s = (it.retry_time.ToNanoseconds() - event.event_time.ToNanoseconds()) / 1e9
    return f"{_error_text(it.error)} - attempt {it.attempt + 1} in {duration(delay_s)}"
