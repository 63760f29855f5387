"""The outcomes of model calls, as values that stand apart from the instance's state, and what they record.

An outcome names the work and the attempt that it is of. Should other events come first, as another writer's,
it is looked at again on top of them; where the attempt has ended meanwhile, nothing comes of it.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, assert_never

from orchestrator.core import continuation
from orchestrator.core.continuation import Part
from orchestrator.core.events import (
    call_failed,
    plan_calls_interrupted,
    plan_completed,
    subtasks_planned,
    work_completed,
    work_continued,
)
from orchestrator.core.instance import IN_PROGRESS, PLANNING, Instance, Subtask, Usage, WorkKey
from orchestrator.core.plan import Plan, PlanError
from orchestrator.core.references import Synthesis
from orchestrator.core.replies import ModelReply, parts_used_up, plan_invalid
from orchestrator.errors import ModelError
from orchestrator.v1.event_pb2 import Event


class CallEnded(NamedTuple):
    """A call has ended: with a plan, with the text of an output or a result, or with why there is none.

    A Part: it was cut off at the token limit.
    """

    work: WorkKey
    attempt: int
    result: Plan | str | Synthesis | Part | ModelError
    usage: Usage
    response_id: str = ""
    """The provider's own name for the answer."""
    jitter: float = 0.0
    """0 to 1: spreads retries; see `retry.delay_s`."""


class SubtasksStreamed(NamedTuple):
    """A planner that is still streaming has emitted these subtasks so far, the first ones of its plan."""

    attempt: int
    subtasks: tuple[Subtask, ...]
    summary: str


Outcome: TypeAlias = CallEnded | SubtasksStreamed


def is_in_progress(instance: Instance, key: WorkKey, attempt: int) -> bool:
    """Return whether an attempt at a piece of work is under way: only then anything can come of it."""
    work = instance.work(key)
    return work.state == IN_PROGRESS and work.attempt == attempt


def events_for(instance: Instance, outcome: Outcome, now_s: float) -> Sequence[Event]:
    """Make the events that an outcome records of an instance as it is now; none where the attempt has ended.

    A planning attempt that fails also ends the calls that were started on its plan.
    """
    match outcome:
        case SubtasksStreamed(attempt, subtasks, summary):
            if not is_in_progress(instance, PLANNING, attempt):
                return ()
            return subtasks_planned(instance, subtasks[len(instance.subtasks) :], summary)
        case CallEnded(key, attempt, result, usage, response_id, jitter):
            if not is_in_progress(instance, key, attempt):
                return ()
            if isinstance(result, Plan):
                try:
                    return plan_completed(instance, result, usage, response_id)
                except PlanError as fault:
                    result = plan_invalid(fault, ModelReply("", response_id=response_id))
            if isinstance(result, Synthesis):
                text, written, _ = result
                return [work_completed(instance, key, text, usage, response_id, written=written)]
            if isinstance(result, str):
                return [work_completed(instance, key, result, usage, response_id)]
            part = None
            if isinstance(result, Part):
                work, part = instance.work(key), result
                if continuation.has_parts_left(instance, work):
                    return [work_continued(instance, key, part, usage, response_id)]
                result = parts_used_up(work.parts + 1, response_id)
            failure = call_failed(instance, key, result, usage, now_s=now_s, jitter=jitter, part=part)
            return [*plan_calls_interrupted(instance), failure] if key == PLANNING else [failure]
    assert_never(outcome)
