"""What happens next.

`decide` looks at an instance and says what should be done now. The engine does it and tells what came of
it with `begun`, `planned`, `worked`, `synthesized` or `failed`, each of which gives the events to append;
after a crash, `interrupted` gives those that the crash left out. Nothing is remembered between calls:
recovery is folding the log and asking again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from orchestrator.core import budget, merging, retry, workers
from orchestrator.core.budget import Since
from orchestrator.core.plan import Plan, PlanError
from orchestrator.core.state import (
    AT_WORK,
    CUT_OFF,
    DONE,
    FAILED,
    INTERRUPTED,
    PAUSED,
    SETTLED,
    SKIPPED,
    TERMINAL,
    TOO_LONG,
    WAITING,
    WAITING_FOR_PAUSE,
    Failure,
    Instance,
    Subtask,
    Usage,
    Work,
    fold,
    subtask_of,
)
from orchestrator.core.wire import failure_message, timestamp, usage_message, write_subtask, write_usage
from orchestrator.errors import ModelError
from orchestrator.v1 import event_pb2 as pb


@dataclass(frozen=True, slots=True)
class MakePlan:
    """Call the big model for a plan."""


@dataclass(frozen=True, slots=True)
class RunSubtask:
    """Call a worker for one subtask."""

    subtask_id: str


@dataclass(frozen=True, slots=True)
class Synthesize:
    """Call the big model for the final result."""


@dataclass(frozen=True, slots=True)
class Record:
    """Append these events: they follow from what happened, no call is needed."""

    events: tuple[pb.Event, ...]


@dataclass(frozen=True, slots=True)
class WakeAfter:
    """Ask again in so many seconds."""

    wait_s: float


Call = MakePlan | RunSubtask | Synthesize
Command = Call | Record | WakeAfter

_TELLING_REASONS: Final = ("MODEL_REFUSED", "MODEL_UNAUTHENTICATED", "MODEL_NOT_FOUND", "PLAN_INVALID")
"""Reasons that tell a person what to change better than the name of the stage does."""


def decide(instance: Instance, since_s: Since) -> tuple[Command, ...]:
    """What to do now; a call is asked for until it has begun.

    `since_s` tells how long ago something was recorded. What is waited for is a span since then: to compare
    a recorded time with what the clock says now would be to trust that nobody has set it in between.
    """
    if instance.state in TERMINAL or instance.state in (PAUSED, WAITING):
        return ()
    if instance.synthesis.state == DONE:
        usage = usage_message(instance.usage)
        return (Record((pb.Event(instance_completed=pb.InstanceCompleted(usage=usage)),)),)
    if instance.state == WAITING_FOR_PAUSE:
        return () if instance.at_work else (Record((pb.Event(instance_paused=pb.InstancePaused()),)),)
    if not instance.planned:
        return _decide_planning(instance, since_s)
    if unsettled := _unsettled(instance):
        return _decide_subtasks(instance, unsettled, since_s)
    return _decide_synthesis(instance, since_s)


def _decide_planning(instance: Instance, since_s: Since) -> tuple[Command, ...]:
    if instance.config.subtasks:
        own = map(subtask_of, instance.config.subtasks)
        return (Record(tuple(plan_events(0, "", own, "", None))),)
    if instance.planning.state == FAILED:
        return _error("PLANNING_FAILED", "planning", instance.planning)
    if instance.planning.state == AT_WORK:
        # What the plan has told so far can be begun.
        return _decide_subtasks(instance, _unsettled(instance), since_s)
    return _call(instance, MakePlan(), instance.planning, since_s)


def _unsettled(instance: Instance) -> list[Subtask]:
    return [subtask for subtask in instance.subtasks.values() if subtask.work.state not in SETTLED]


def _decide_subtasks(instance: Instance, unsettled: list[Subtask], since_s: Since) -> tuple[Command, ...]:
    skipped = []
    ready = []
    running = 0
    for subtask in unsettled:
        if subtask.work.state == AT_WORK:
            running += 1
            continue
        if not subtask.depends_on:
            ready.append(subtask)
            continue
        needs = [instance.subtasks[name] for name in subtask.depends_on if name in instance.subtasks]
        if lost := [needed for needed in needs if needed.work.state in (FAILED, SKIPPED)]:
            skipped.append(_skip(subtask, lost[0]))
        elif len(needs) == len(subtask.depends_on) and all(needed.work.state == DONE for needed in needs):
            ready.append(subtask)
    if skipped:
        return (Record(tuple(skipped)),)
    if ready and (failure := budget.exceeded(instance, since_s)):
        # What runs has been paid for: it may finish before the instance errs.
        return () if instance.at_work else (_errored(failure),)
    free = instance.config.max_parallel_subtasks - running
    commands: list[Command] = []
    for subtask in ready:
        if (wait_s := _wait_s(instance, subtask.work, since_s)) > 0:
            commands.append(_wake(instance, wait_s, since_s))
        elif free > 0:
            commands.append(RunSubtask(subtask.id))
            free -= 1
    return tuple(commands)


def _decide_synthesis(instance: Instance, since_s: Since) -> tuple[Command, ...]:
    failed = [subtask for subtask in instance.subtasks.values() if subtask.work.state == FAILED]
    done = any(subtask.work.state == DONE for subtask in instance.subtasks.values())
    if unmerged := [subtask for subtask in failed if subtask.merges]:
        return _error("SYNTHESIS_FAILED", unmerged[0].title.lower(), unmerged[0].work)
    if len(failed) > instance.config.tolerated_failures or not done:
        first = failed[0]
        return _error("SUBTASK_FAILED", f"subtask {first.id} ({first.title})", first.work, first.id)
    if instance.synthesis.state == FAILED:
        return _error("SYNTHESIS_FAILED", "the synthesis", instance.synthesis)
    if merges := merging.merges(instance):
        return (Record(tuple(planning(instance, merges, ""))),)
    return _call(instance, Synthesize(), instance.synthesis, since_s)


def _call(instance: Instance, command: Call, work: Work, since_s: Since) -> tuple[Command, ...]:
    if work.state == AT_WORK:
        return ()
    if failure := budget.exceeded(instance, since_s):
        return (_errored(failure),)
    if (wait_s := _wait_s(instance, work, since_s)) > 0:
        return (_wake(instance, wait_s, since_s),)
    return (command,)


def _wait_s(instance: Instance, work: Work, since_s: Since) -> float:
    """How long until the next attempt may begin; it may where this is not above 0."""
    if not work.retry_time_s:
        return 0.0
    delay_s = work.retry_time_s - work.fail_time_s
    return min(delay_s, retry.longest_delay_s(instance.config.retry)) - since_s(work.fail_time_s)


def _wake(instance: Instance, wait_s: float, since_s: Since) -> WakeAfter:
    left_s = budget.left_s(instance, since_s)
    return WakeAfter(wait_s if left_s is None else min(wait_s, left_s))


def _skip(subtask: Subtask, lost: Subtask) -> pb.Event:
    how = "failed" if lost.work.state == FAILED else "was skipped"
    error = failure_message(Failure("DEPENDENCY_FAILED", f"it depends on {lost.id}, which {how}", subtask.id))
    return pb.Event(subtask_skipped=pb.SubtaskSkipped(subtask_id=subtask.id, error=error))


def _error(reason: str, what: str, work: Work, subtask_id: str = "") -> tuple[Record]:
    cause = work.error or Failure(reason, "no cause was recorded")
    attempts = "1 attempt" if work.attempt == 1 else f"{work.attempt} attempts"
    failure = Failure(
        cause.reason if cause.reason in _TELLING_REASONS else reason,
        f"{what} failed after {attempts}: {cause.message}",
        subtask_id,
    )
    return (_errored(failure),)


def _errored(failure: Failure) -> Record:
    return Record((pb.Event(instance_errored=pb.InstanceErrored(error=failure_message(failure))),))


def take(instance: Instance, events: Sequence[pb.Event], now_s: float) -> Instance:
    """Give new events their places and time, and the instance after them."""
    seconds, micros = divmod(round(now_s * 1e6), 1_000_000)
    for sequence, event in enumerate(events, instance.last_sequence + 1):
        event.instance_id = instance.id
        event.sequence = sequence
        event_time = event.event_time
        event_time.seconds = seconds
        event_time.nanos = micros * 1000
    return fold(events, instance)


def follow(
    instance: Instance, events: Sequence[pb.Event], now_s: float, since_s: Since
) -> tuple[Instance, Sequence[pb.Event]]:
    """Let the instance go through events, and through those that follow from them without a call.

    Gives the instance after them and all of the events, each with its place and time, which is `now_s`.
    """
    followed: list[pb.Event] = []
    while events:
        instance = take(instance, events, now_s)
        followed += events
        commands = decide(instance, since_s)
        events = [event for command in commands if isinstance(command, Record) for event in command.events]
    return instance, followed


def model_for(instance: Instance, call: Call) -> str:
    """The `provider/model` that a call goes to: a worker without one of its own has the small model."""
    if not isinstance(call, RunSubtask) or instance.subtasks[call.subtask_id].merges:
        return instance.config.big_model
    worker = workers.find(instance.config, instance.subtasks[call.subtask_id].worker)
    return worker.model if worker and worker.model else instance.config.small_model


def work_of(instance: Instance, call: Call) -> Work:
    """How the work stands that a call is for."""
    match call:
        case MakePlan():
            return instance.planning
        case RunSubtask(subtask_id):
            return instance.subtasks[subtask_id].work
        case Synthesize():
            return instance.synthesis
    assert_never(call)


# Most events are of the following kinds, and are filled in place: protobuf copies a message that is given to
# another one's constructor.


def begun(instance: Instance, call: Call, prompts: str = "") -> pb.Event:
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


def planning(instance: Instance, subtasks: Iterable[Subtask], summary: str) -> Sequence[pb.Event]:
    """The planner has told of these subtasks, and goes on."""
    return [_subtask_planned(instance.planning.attempt, subtask, summary) for subtask in subtasks]


def _subtask_planned(attempt: int, subtask: Subtask, summary: str = "") -> pb.Event:
    event = pb.Event()
    planned = event.subtask_planned
    planned.attempt = attempt
    planned.summary = summary
    write_subtask(planned.subtask, subtask)
    return event


def planned(instance: Instance, plan: Plan, usage: Usage) -> Sequence[pb.Event]:
    """The planner answered: the events that are not recorded yet.

    Raise PlanError where it contradicts what it has told before.
    """
    work = instance.planning
    told = [subtask.definition for subtask in instance.subtasks.values()]
    if told != [subtask.definition for subtask in plan.subtasks[: len(told)]]:
        raise PlanError("the answer holds two plans: write one JSON object")
    return plan_events(work.attempt, work.model, plan.subtasks[len(told) :], plan.summary, usage)


def abandoned(instance: Instance) -> tuple[pb.Event, ...]:
    """The plan failed while it was being worked on: its calls under way are cut off with it."""
    cause = Failure(INTERRUPTED, "the plan that it belongs to failed")
    return tuple(
        _failed(instance, RunSubtask(subtask.id), cause, None, CUT_OFF)
        for subtask in instance.subtasks.values()
        if subtask.work.state == AT_WORK
    )


def plan_events(
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


def worked(instance: Instance, subtask_id: str, output: str, usage: Usage) -> pb.Event:
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


def synthesized(instance: Instance, final_result: str, usage: Usage) -> pb.Event:
    """The synthesiser answered."""
    event = pb.Event()
    completed = event.synthesis_completed
    completed.attempt = instance.synthesis.attempt
    completed.model = instance.synthesis.model
    completed.final_result = final_result
    write_usage(completed.usage, usage)
    return event


def failed(
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


def interrupted(instance: Instance, now_s: float) -> tuple[pb.Event, ...]:
    """A crash cut off the calls under way: each is recorded as failed, and may begin again at once."""
    calls: list[Call] = [RunSubtask(subtask.id) for subtask in instance.subtasks.values()]
    calls += [MakePlan(), Synthesize()]
    cause = Failure(INTERRUPTED, "the service stopped while the call was under way")
    return tuple(
        _failed(instance, call, cause, now_s, CUT_OFF)
        for call in calls
        if work_of(instance, call).state == AT_WORK
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
