"""Constructors of events: what the engine records of a call, or of what follows from one.

The most frequent kinds are filled in place: protobuf copies a message that is given to another's constructor.
"""

from collections.abc import Iterable, Sequence
from typing import assert_never

from orchestrator.core import merging, retry
from orchestrator.core.commands import Call, MakePlan, RunSubtask, Synthesize, model_for, work_of
from orchestrator.core.instance import (
    CUT_OFF,
    IN_PROGRESS,
    INTERRUPTED,
    TOO_LONG,
    Failure,
    Instance,
    Subtask,
    Usage,
)
from orchestrator.core.plan import Plan, PlanError
from orchestrator.core.wire import failure_message, timestamp, usage_message, write_subtask, write_usage
from orchestrator.errors import ModelError
from orchestrator.v1 import event_pb2 as pb


def call_started(instance: Instance, call: Call, prompts: str = "") -> pb.Event:
    """The call begins, with prompts of this version."""
    event = pb.Event()
    started: pb.PlanningStarted | pb.SubtaskStarted | pb.SynthesisStarted
    match call:
        case MakePlan():
            started = event.planning_started
        case RunSubtask(subtask_id):
            event.subtask_started.subtask_id = subtask_id
            started = event.subtask_started
        case Synthesize():
            started = event.synthesis_started
        case _:
            assert_never(call)
    started.attempt = work_of(instance, call).attempt + 1
    started.model = model_for(instance, call)
    started.prompts = prompts
    return event


def subtasks_planned(instance: Instance, subtasks: Iterable[Subtask], summary: str) -> Sequence[pb.Event]:
    """The planner has told of these subtasks, and goes on."""
    return [_subtask_planned(instance.planning.attempt, subtask, summary) for subtask in subtasks]


def _subtask_planned(attempt: int, subtask: Subtask, summary: str = "") -> pb.Event:
    event = pb.Event()
    planned = event.subtask_planned
    planned.attempt = attempt
    planned.summary = summary
    write_subtask(planned.subtask, subtask)
    return event


def plan_completed(instance: Instance, plan: Plan, usage: Usage) -> Sequence[pb.Event]:
    """The planner answered: the events that are not recorded yet.

    Raise PlanError where it contradicts what it has told before.
    """
    work = instance.planning
    told = [subtask.definition for subtask in instance.subtasks.values()]
    if told != [subtask.definition for subtask in plan.subtasks[: len(told)]]:
        raise PlanError("the answer holds two plans: write one JSON object")
    return whole_plan(work.attempt, work.model, plan.subtasks[len(told) :], plan.summary, usage)


def plan_calls_interrupted(instance: Instance) -> tuple[pb.Event, ...]:
    """The plan failed while it was being worked on: its calls under way are cut off with it."""
    cause = Failure(INTERRUPTED, "the plan that it belongs to failed")
    return tuple(
        _failed(instance, RunSubtask(subtask.id), cause, None, CUT_OFF)
        for subtask in instance.subtasks.values()
        if subtask.work.state == IN_PROGRESS
    )


def whole_plan(
    attempt: int, model: str, subtasks: Iterable[Subtask], summary: str, usage: Usage | None
) -> Sequence[pb.Event]:
    """A plan, subtask by subtask; attempt 0: no model made it."""
    event = pb.Event()
    completed = event.plan_completed
    completed.attempt = attempt
    completed.model = model
    completed.summary = summary
    if usage is not None:
        write_usage(completed.usage, usage)
    return [*(_subtask_planned(attempt, subtask) for subtask in subtasks), event]


def subtask_completed(instance: Instance, subtask_id: str, output: str, usage: Usage) -> pb.Event:
    """A worker answered."""
    work = instance.subtasks[subtask_id].work
    event = pb.Event()
    completed = event.subtask_completed
    completed.subtask_id = subtask_id
    completed.attempt = work.attempt
    completed.model = work.model
    completed.output = output
    write_usage(completed.usage, usage)
    return event


def synthesis_completed(instance: Instance, final_result: str, usage: Usage) -> pb.Event:
    """The synthesiser answered."""
    event = pb.Event()
    completed = event.synthesis_completed
    completed.attempt = instance.synthesis.attempt
    completed.model = instance.synthesis.model
    completed.final_result = final_result
    write_usage(completed.usage, usage)
    return event


def call_failed(
    instance: Instance, call: Call, error: ModelError, usage: Usage, *, now_s: float, jitter: float
) -> pb.Event:
    """A call failed: it is tried again at the time in the event, or not at all.

    `jitter`, 0 to 1, spreads retries; see `retry.delay_s`.
    """
    delay_s = None
    if error.retryable and (error.reason != TOO_LONG or _can_be_given_less(instance, call)):
        delay_s = retry.delay_s(
            instance.config.retry,
            failures=work_of(instance, call).failures + 1,
            jitter=jitter,
            retry_after_s=error.retry_after_s,
        )
    retry_s = None if delay_s is None else now_s + delay_s
    return _failed(instance, call, Failure(error.reason, str(error)), retry_s, usage)


def _can_be_given_less(instance: Instance, call: Call) -> bool:
    match call:
        case MakePlan():
            return False
        case RunSubtask(subtask_id):
            given = instance.subtasks[subtask_id].depends_on
            return bool(given) and merging.can_shrink(instance, work_of(instance, call))
        case Synthesize():
            return merging.can_shrink(instance, instance.synthesis)
    assert_never(call)


def calls_interrupted(instance: Instance, now_s: float) -> tuple[pb.Event, ...]:
    """A crash cut off the calls under way: each is recorded as failed, and may begin again at once."""
    calls: list[Call] = [RunSubtask(subtask.id) for subtask in instance.subtasks.values()]
    calls += [MakePlan(), Synthesize()]
    cause = Failure(INTERRUPTED, "the service stopped while the call was under way")
    return tuple(
        _failed(instance, call, cause, now_s, CUT_OFF)
        for call in calls
        if work_of(instance, call).state == IN_PROGRESS
    )


def _failed(instance: Instance, call: Call, cause: Failure, retry_s: float | None, usage: Usage) -> pb.Event:
    work = work_of(instance, call)
    retry_time = None if retry_s is None else timestamp(retry_s)
    spent = usage_message(usage) if usage.model_calls else None
    match call:
        case MakePlan():
            planning = pb.PlanningFailed(
                attempt=work.attempt,
                model=work.model,
                error=failure_message(cause),
                retry_time=retry_time,
                usage=spent,
            )
            return pb.Event(planning_failed=planning)
        case RunSubtask(subtask_id):
            subtask = pb.SubtaskFailed(
                subtask_id=subtask_id,
                attempt=work.attempt,
                model=work.model,
                error=failure_message(Failure(cause.reason, cause.message, subtask_id)),
                retry_time=retry_time,
                usage=spent,
            )
            return pb.Event(subtask_failed=subtask)
        case Synthesize():
            synthesis = pb.SynthesisFailed(
                attempt=work.attempt,
                model=work.model,
                error=failure_message(cause),
                retry_time=retry_time,
                usage=spent,
            )
            return pb.Event(synthesis_failed=synthesis)
    assert_never(call)
