"""Constructors of events: what the engine records of a call, or of what follows from one.

The most frequent kinds are filled in place: protobuf copies a message that is given to another's constructor.
"""

from collections.abc import Collection, Iterable, Sequence

from orchestrator.core import context, merging, retry
from orchestrator.core.commands import model_for
from orchestrator.core.continuation import Part
from orchestrator.core.instance import (
    CUT_OFF,
    IN_PROGRESS,
    INTERRUPTED,
    NO_USAGE,
    PLANNING,
    SYNTHESIS,
    TOO_LONG,
    TRUNCATED,
    Failure,
    Instance,
    Subtask,
    Usage,
    WorkKey,
)
from orchestrator.core.plan import Plan, PlanError
from orchestrator.core.wire import (
    WORK_EVENTS,
    WorkContinued,
    WorkFailed,
    WorkStarted,
    failure_message,
    timestamp,
    work_payload,
    write_subtask,
    write_usage,
)
from orchestrator.errors import ModelError
from orchestrator.v1 import event_pb2 as pb


def started(key: WorkKey, attempt: int, model: str, prompts: str = "") -> pb.Event:
    """Record that an attempt at a piece of work begins, with prompts of this version."""
    event = pb.Event()
    payload: WorkStarted = work_payload(event, WORK_EVENTS[key.kind].started, key)
    payload.attempt = attempt
    payload.model = model
    payload.prompts = prompts
    return event


def completed(
    key: WorkKey,
    attempt: int,
    model: str,
    text: str,
    usage: Usage,
    response_id: str = "",
    *,
    written: str = "",
) -> pb.Event:
    """Record that an attempt has brought the output of a subtask, or the final result.

    `written`: what the model wrote in place of the final result, where that is something else.
    """
    event = pb.Event()
    payload = work_payload(event, WORK_EVENTS[key.kind].completed, key)
    payload.attempt = attempt
    payload.model = model
    if key == SYNTHESIS:
        payload.final_result = text
        payload.written = written
    else:
        payload.output = text
    payload.response_id = response_id
    write_usage(payload.usage, usage)
    return event


def failed(
    key: WorkKey,
    attempt: int,
    model: str,
    cause: Failure,
    usage: Usage,
    retry_s: float | None = None,
    response_id: str = "",
    *,
    part: Part | None = None,
    by_crash: bool = False,
) -> pb.Event:
    """Record that an attempt failed; at `retry_s`, in seconds since the epoch, the next may begin.

    `part`: what it had added to its answer when it was cut off for the last time.
    """
    event = pb.Event()
    payload: WorkFailed = work_payload(event, WORK_EVENTS[key.kind].failed, key)
    payload.attempt = attempt
    payload.model = model
    payload.response_id = response_id
    payload.error.CopyFrom(failure_message(cause._replace(subtask_id=key.subtask_id)))
    payload.by_crash = by_crash
    if part:
        _write_part(payload, part)
    if retry_s is not None and (retry_time := timestamp(retry_s)):
        payload.retry_time.CopyFrom(retry_time)
    if usage.model_calls:
        write_usage(payload.usage, usage)
    return event


def call_started(instance: Instance, key: WorkKey, prompts: str = "") -> pb.Event:
    """Record that the next call for a piece of work begins, with prompts of this version."""
    return started(key, instance.work(key).attempt + 1, model_for(instance, key), prompts)


def _write_part(payload: WorkContinued | WorkFailed, part: Part) -> None:
    payload.text, payload.replaces, shown = part
    if isinstance(payload, pb.SynthesisContinued | pb.SynthesisFailed) and shown not in (None, part.text):
        payload.text, payload.written = shown or "", part.text


def work_completed(
    instance: Instance, key: WorkKey, text: str, usage: Usage, response_id: str = "", *, written: str = ""
) -> pb.Event:
    """Record that the call under way has brought the output of a subtask, or the final result."""
    work = instance.work(key)
    return completed(key, work.attempt, work.model, text, usage, response_id, written=written)


def work_continued(
    instance: Instance, key: WorkKey, part: Part, usage: Usage, response_id: str = ""
) -> pb.Event:
    """Record that the call under way was cut off at the token limit, and that its attempt goes on."""
    work = instance.work(key)
    event = pb.Event()
    payload: WorkContinued = work_payload(event, WORK_EVENTS[key.kind].continued, key)
    payload.attempt = work.attempt
    payload.part = work.parts + 1
    payload.model = work.model
    _write_part(payload, part)
    payload.response_id = response_id
    write_usage(payload.usage, usage)
    return event


def interrupted_between_parts(instance: Instance, key: WorkKey, why: str, now_s: float) -> Sequence[pb.Event]:
    """Record that an attempt ends behind a part that is recorded; the next one goes on from there."""
    work = instance.work(key)
    event = failed(key, work.attempt, work.model, Failure(INTERRUPTED, why), NO_USAGE, now_s)
    return [*plan_calls_interrupted(instance), event] if key == PLANNING else [event]


def call_failed(
    instance: Instance,
    key: WorkKey,
    error: ModelError,
    usage: Usage,
    *,
    now_s: float,
    jitter: float,
    part: Part | None = None,
) -> pb.Event:
    """Record that the call under way failed: it is tried again at the time in the event, or never.

    `jitter`, 0 to 1, spreads retries; see `retry.delay_s`. For `part` see `failed`.
    """
    work = instance.work(key)
    delay_s = None
    if error.reason == TRUNCATED:
        delay_s = 0.0 if error.retryable and _can_be_given_more_tokens(instance, key) else None
    elif error.retryable and (error.reason != TOO_LONG or _can_be_given_less(instance, key)):
        delay_s = retry.delay_s(
            instance.config.retry,
            failures=work.failures + 1,
            jitter=jitter,
            retry_after_s=error.retry_after_s,
        )
    retry_s = None if delay_s is None else now_s + delay_s
    cause = Failure(error.reason, str(error))
    return failed(key, work.attempt, work.model, cause, usage, retry_s, error.response_id, part=part)


def _can_be_given_more_tokens(instance: Instance, key: WorkKey) -> bool:
    """Return whether an answer that was cut off is asked for with twice the limit.

    Once, or for a plan, which is worth little unless it is whole, as often as attempts are left.
    """
    work = instance.work(key)
    has_attempts = work.failures + 1 < instance.config.retry.max_attempts
    return not work.raised_limits or (key == PLANNING and has_attempts)


def _can_be_given_less(instance: Instance, key: WorkKey) -> bool:
    """Return whether a piece of work is made from outputs or files, and can be given less than it was."""
    has_outputs = key == SYNTHESIS or (key != PLANNING and instance.subtasks[key.subtask_id].depends_on)
    is_given = has_outputs or context.is_there(instance)
    return bool(is_given) and merging.can_shrink(instance, instance.work(key))


def calls_interrupted(
    instance: Instance, now_s: float, *, by_crash: bool, except_works: Collection[WorkKey] = ()
) -> tuple[pb.Event, ...]:
    """Record that the service stopped or crashed during calls, except some; each may begin again at once."""
    cause = Failure(INTERRUPTED, f"the service {'crashed' if by_crash else 'stopped'} during the call")
    return tuple(
        failed(key, work.attempt, work.model, cause, CUT_OFF, now_s, by_crash=by_crash)
        for key, work in instance.works
        if work.state == IN_PROGRESS and key not in except_works
    )


def pause_requested(cause: Failure) -> pb.Event:
    """Record that the service itself asks to pause."""
    event = pb.Event()
    event.instance_pause_requested.cause.CopyFrom(failure_message(cause))
    return event


def plan_calls_interrupted(instance: Instance) -> tuple[pb.Event, ...]:
    """Record that the calls under way for a plan are cut off because it failed."""
    cause = Failure(INTERRUPTED, "the plan that it belongs to failed")
    return tuple(
        failed(key, work.attempt, work.model, cause, CUT_OFF)
        for key, work in instance.works
        if work.state == IN_PROGRESS and key not in (PLANNING, SYNTHESIS)
    )


def subtasks_planned(instance: Instance, subtasks: Iterable[Subtask], summary: str) -> Sequence[pb.Event]:
    """Record the subtasks that the planner has streamed so far."""
    return [_subtask_planned(instance.planning.attempt, subtask, summary) for subtask in subtasks]


def _subtask_planned(attempt: int, subtask: Subtask, summary: str = "") -> pb.Event:
    event = pb.Event()
    planned = event.subtask_planned
    planned.attempt = attempt
    planned.summary = summary
    write_subtask(planned.subtask, subtask)
    return event


def plan_completed(instance: Instance, plan: Plan, usage: Usage, response_id: str = "") -> Sequence[pb.Event]:
    """Record what is not recorded yet of a plan that is complete.

    Raise PlanError where it contradicts the subtasks that were streamed before.
    """
    work = instance.planning
    recorded = [subtask.definition for subtask in instance.subtasks.values()]
    if recorded != [subtask.definition for subtask in plan.subtasks[: len(recorded)]]:
        raise PlanError("the answer holds two plans: write one JSON object")
    new = plan.subtasks[len(recorded) :]
    return whole_plan(work.attempt, work.model, new, plan.summary, usage, response_id)


def whole_plan(
    attempt: int,
    model: str,
    subtasks: Iterable[Subtask],
    summary: str,
    usage: Usage | None,
    response_id: str = "",
) -> Sequence[pb.Event]:
    """Record a plan, subtask by subtask; attempt 0: no model made it."""
    event = pb.Event()
    payload = event.plan_completed
    payload.attempt = attempt
    payload.model = model
    payload.summary = summary
    payload.response_id = response_id
    if usage is not None:
        write_usage(payload.usage, usage)
    return [*(_subtask_planned(attempt, subtask) for subtask in subtasks), event]
