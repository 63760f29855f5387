"""Decide the next commands of an instance.

`decide` is a pure function from an instance to the commands due now. The engine executes them and records
the outcome with the constructors of core/events.py. No state is held between calls: recovery is folding the
log and deciding again.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from orchestrator.core import budget, continuation, merging, retry
from orchestrator.core.budget import Elapsed
from orchestrator.core.commands import CallModel, Command, Record, WakeAfter
from orchestrator.core.config import MAX_CRASHES
from orchestrator.core.events import (
    interrupted_between_parts,
    pause_requested,
    subtasks_planned,
    whole_plan,
)
from orchestrator.core.instance import (
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    PAUSED,
    PLANNING,
    SETTLED,
    SKIPPED,
    SYNTHESIS,
    TERMINAL,
    WAITING,
    WAITING_FOR_PAUSE,
    Failure,
    Instance,
    Subtask,
    Work,
    WorkKey,
    subtask_of,
)
from orchestrator.core.outcomes import CallEnded, Outcome, events_for, is_in_progress
from orchestrator.core.state import SCHEMA, fold
from orchestrator.core.wire import failure_message, usage_message
from orchestrator.v1 import event_pb2 as pb

_SPECIFIC_REASONS: Final = ("MODEL_REFUSED", "MODEL_UNAUTHENTICATED", "MODEL_NOT_FOUND", "PLAN_INVALID")
"""Reasons that are more helpful to a person than the name of the stage."""


def decide(instance: Instance, elapsed_s: Elapsed) -> tuple[Command, ...]:
    """Return the commands due now; a call is requested until it has started.

    `elapsed_s` returns the seconds elapsed since a recorded time. Waits are measured as elapsed time, because
    the wall clock may have been set since the time was recorded.
    """
    if instance.state in TERMINAL or instance.state in (PAUSED, WAITING):
        return ()
    if instance.synthesis.state == COMPLETED:
        usage = usage_message(instance.usage)
        return (Record((pb.Event(instance_completed=pb.InstanceCompleted(usage=usage)),)),)
    if instance.state == WAITING_FOR_PAUSE:
        return () if instance.has_open_calls else (Record((pb.Event(instance_paused=pb.InstancePaused()),)),)
    if crashed := _crashed_too_often(instance):
        return (Record((pause_requested(crashed),)),)
    if not instance.is_planned:
        return _decide_planning(instance, elapsed_s)
    if unsettled := _unsettled(instance):
        return _decide_subtasks(instance, unsettled, elapsed_s)
    return _decide_synthesis(instance, elapsed_s)


def _crashed_too_often(instance: Instance) -> Failure | None:
    if not instance.crashes:
        return None
    most = instance.config.retry.max_crashes or MAX_CRASHES
    for key, count in instance.crashes.items():
        if count >= most:
            what = f"subtask {key.subtask_id}" if key.subtask_id else f"the {key.kind}"
            return Failure(
                "CRASHED_REPEATEDLY",
                f"the service crashed {count} times in a row during {what}, and nothing was completed in "
                "between: resume it to try again",
                key.subtask_id,
            )
    return None


def _decide_planning(instance: Instance, elapsed_s: Elapsed) -> tuple[Command, ...]:
    if instance.config.subtasks:
        own = map(subtask_of, instance.config.subtasks)
        return (Record(tuple(whole_plan(0, "", own, "", None))),)
    if instance.planning.state == FAILED:
        return _fail_stage("PLANNING_FAILED", "planning", instance.planning)
    if instance.planning.state == IN_PROGRESS:
        # Subtasks that the planner has streamed so far can start.
        return _decide_subtasks(instance, _unsettled(instance), elapsed_s)
    return _call(instance, PLANNING, elapsed_s)


def _unsettled(instance: Instance) -> list[Subtask]:
    return [subtask for subtask in instance.subtasks.values() if subtask.work.state not in SETTLED]


def _decide_subtasks(instance: Instance, unsettled: list[Subtask], elapsed_s: Elapsed) -> tuple[Command, ...]:
    skipped = []
    ready = []
    running = 0
    for subtask in unsettled:
        if subtask.work.state == IN_PROGRESS:
            running += 1
            continue
        if not subtask.depends_on:
            ready.append(subtask)
            continue
        needs = [instance.subtasks[name] for name in subtask.depends_on if name in instance.subtasks]
        if lost := [needed for needed in needs if needed.work.state in (FAILED, SKIPPED)]:
            skipped.append(_skip(subtask, lost[0]))
        elif len(needs) == len(subtask.depends_on) and all(
            needed.work.state == COMPLETED for needed in needs
        ):
            ready.append(subtask)
    if skipped:
        return (Record(tuple(skipped)),)
    if ready and (failure := budget.exceeded(instance, elapsed_s)):
        # What runs has been paid for: it may finish before the instance errs.
        return () if instance.has_open_calls else (_errored(failure),)
    free = instance.config.max_parallel_subtasks - running
    commands: list[Command] = []
    for subtask in ready:
        if (wait_s := _wait_s(instance, subtask.work, elapsed_s)) > 0:
            commands.append(_wake(instance, wait_s, elapsed_s))
        elif free > 0:
            commands.append(CallModel(subtask.key))
            free -= 1
    return tuple(commands)


def _decide_synthesis(instance: Instance, elapsed_s: Elapsed) -> tuple[Command, ...]:
    failed = [subtask for subtask in instance.subtasks.values() if subtask.work.state == FAILED]
    done = any(subtask.work.state == COMPLETED for subtask in instance.subtasks.values())
    if unmerged := [subtask for subtask in failed if subtask.merges]:
        return _fail_stage("SYNTHESIS_FAILED", unmerged[0].title.lower(), unmerged[0].work)
    if len(failed) > instance.config.tolerated_failures or not done:
        first = failed[0]
        return _fail_stage("SUBTASK_FAILED", f"subtask {first.id} ({first.title})", first.work, first.id)
    if instance.synthesis.state == FAILED:
        return _fail_stage("SYNTHESIS_FAILED", "the synthesis", instance.synthesis)
    if merges := merging.merges(instance):
        return (Record(tuple(subtasks_planned(instance, merges, ""))),)
    return _call(instance, SYNTHESIS, elapsed_s)


def _call(instance: Instance, key: WorkKey, elapsed_s: Elapsed) -> tuple[Command, ...]:
    work = instance.work(key)
    if work.state == IN_PROGRESS:
        return ()
    if failure := budget.exceeded(instance, elapsed_s):
        return (_errored(failure),)
    if (wait_s := _wait_s(instance, work, elapsed_s)) > 0:
        return (_wake(instance, wait_s, elapsed_s),)
    return (CallModel(key),)


def _wait_s(instance: Instance, work: Work, elapsed_s: Elapsed) -> float:
    """Return the seconds until the next attempt may start; 0 or less: now."""
    if not work.retry_time_s:
        return 0.0
    delay_s = work.retry_time_s - work.fail_time_s
    return min(delay_s, retry.longest_delay_s(instance.config.retry)) - elapsed_s(work.fail_time_s)


def _wake(instance: Instance, wait_s: float, elapsed_s: Elapsed) -> WakeAfter:
    left_s = budget.left_s(instance, elapsed_s)
    return WakeAfter(wait_s if left_s is None else min(wait_s, left_s))


def _skip(subtask: Subtask, lost: Subtask) -> pb.Event:
    how = "failed" if lost.work.state == FAILED else "was skipped"
    error = failure_message(Failure("DEPENDENCY_FAILED", f"it depends on {lost.id}, which {how}", subtask.id))
    return pb.Event(subtask_skipped=pb.SubtaskSkipped(subtask_id=subtask.id, error=error))


def _fail_stage(reason: str, what: str, work: Work, subtask_id: str = "") -> tuple[Record]:
    cause = work.error or Failure(reason, "no cause was recorded")
    attempts = "1 attempt" if work.attempt == 1 else f"{work.attempt} attempts"
    failure = Failure(
        cause.reason if cause.reason in _SPECIFIC_REASONS else reason,
        f"{what} failed after {attempts}: {cause.message}",
        subtask_id,
    )
    return (_errored(failure),)


def _errored(failure: Failure) -> Record:
    return Record((pb.Event(instance_errored=pb.InstanceErrored(error=failure_message(failure))),))


def apply(instance: Instance, events: Sequence[pb.Event], now_s: float) -> Instance:
    """Assign sequence numbers and a time to new events, and return the instance after them."""
    seconds, micros = divmod(round(now_s * 1e6), 1_000_000)
    for sequence, event in enumerate(events, instance.last_sequence + 1):
        event.instance_id = instance.id
        event.sequence = sequence
        event.schema = SCHEMA
        event_time = event.event_time
        event_time.seconds = seconds
        event_time.nanos = micros * 1000
    return fold(events, instance)


def apply_with_consequences(
    instance: Instance, events: Sequence[pb.Event], now_s: float, elapsed_s: Elapsed
) -> tuple[Instance, Sequence[pb.Event]]:
    """Apply events, and those that follow from them without a call.

    Return the instance after them and all of the events, each with its sequence number and time `now_s`.
    """
    return _with_consequences(apply(instance, events, now_s), events, now_s, elapsed_s)


def apply_outcomes(
    instance: Instance, outcomes: Iterable[Outcome], now_s: float, elapsed_s: Elapsed
) -> tuple[Instance, Sequence[pb.Event]]:
    """Apply the outcomes of calls in order, and the events that follow from them.

    Return what `apply_with_consequences` does; the same instance and no event where no outcome applies.
    """
    recorded: list[pb.Event] = []
    for outcome in outcomes:
        if events := events_for(instance, outcome, now_s):
            instance = apply(instance, events, now_s)
            recorded += events
            if ended := _end_between_parts(instance, outcome, now_s, elapsed_s):
                instance = apply(instance, ended, now_s)
                recorded += ended
    return _with_consequences(instance, recorded, now_s, elapsed_s) if recorded else (instance, ())


def _end_between_parts(
    instance: Instance, outcome: Outcome, now_s: float, elapsed_s: Elapsed
) -> Sequence[pb.Event]:
    """Make the events that end an attempt which may not go on behind the part that was recorded just now.

    As long as an attempt is under way, its next part is called.
    """
    if not isinstance(outcome, CallEnded) or not is_in_progress(instance, outcome.work, outcome.attempt):
        return ()
    why = continuation.interruption(instance, outcome.work, elapsed_s)
    return interrupted_between_parts(instance, outcome.work, why, now_s) if why else ()


def _with_consequences(
    instance: Instance, events: Sequence[pb.Event], now_s: float, elapsed_s: Elapsed
) -> tuple[Instance, Sequence[pb.Event]]:
    all_events = [*events]
    while consequences := [
        event
        for command in decide(instance, elapsed_s)
        if isinstance(command, Record)
        for event in command.events
    ]:
        instance = apply(instance, consequences, now_s)
        all_events += consequences
    return instance, all_events
