"""What events make of an instance: the transition table, `evolve` and `fold`.

Everything that changes an instance's state lives in this file. An instance is its events, folded; `fold` is
pure.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final

from orchestrator.core.instance import (
    COMPLETE,
    COMPLETED,
    CUT_OFF,
    DISCARDED,
    EMPTY,
    ERRORED,
    FAILED,
    IN_PROGRESS,
    INTERRUPTED,
    NO_CRASHES,
    NO_USAGE,
    NOT_STARTED,
    PAUSED,
    PENDING,
    PLANNING,
    QUEUED,
    RUNNING,
    SKIPPED,
    SYNTHESIS,
    TERMINAL,
    TERMINATED,
    TOO_LONG,
    TRUNCATED,
    UNUSABLE,
    WAITING,
    WAITING_FOR_PAUSE,
    Failure,
    Instance,
    Predecessor,
    State,
    Subtask,
    SubtaskState,
    Usage,
    Work,
    WorkKey,
    failure_of,
    input_file_of,
    seconds_of,
    subtask_of,
    usage_of,
)
from orchestrator.core.origin import Origin
from orchestrator.core.wire import (
    WORK_EVENTS,
    WorkCompleted,
    WorkContinued,
    WorkFailed,
    WorkStarted,
    output_of,
    work_key,
    written_of,
)
from orchestrator.v1 import event_pb2 as pb_event
from orchestrator.v1 import instance_pb2 as pb

SCHEMA: Final = 1
"""The version of the events' schema that this release writes, and the newest that it reads."""

WORK_START_EVENTS = tuple(names.started for names in WORK_EVENTS.values())
WORK_END_EVENTS = (
    *(names.continued for names in WORK_EVENTS.values()),
    *(names.failed for names in WORK_EVENTS.values()),
    "subtask_planned",
    "subtask_completed",
    "subtask_skipped",
    "synthesis_completed",
)


def _to(states: tuple[State, ...], *kinds: str) -> dict[str, tuple[State, ...]]:
    return dict.fromkeys(kinds, states)


TRANSITIONS: Final[Mapping[State, Mapping[str, tuple[State, ...]]]] = {
    pb.STATE_UNSPECIFIED: _to((QUEUED,), "instance_created"),
    QUEUED: {
        **_to((RUNNING,), *WORK_START_EVENTS, *WORK_END_EVENTS),
        **_to((RUNNING, WAITING), "plan_completed"),
        **_to((WAITING_FOR_PAUSE,), "instance_pause_requested"),
        **_to((ERRORED,), "instance_errored"),
        **_to((TERMINATED,), "instance_terminated"),
    },
    RUNNING: {
        **_to((RUNNING,), *WORK_START_EVENTS, *WORK_END_EVENTS),
        **_to((RUNNING, WAITING), "plan_completed"),
        **_to((WAITING_FOR_PAUSE,), "instance_pause_requested"),
        **_to((COMPLETE,), "instance_completed"),
        **_to((ERRORED,), "instance_errored"),
        **_to((TERMINATED,), "instance_terminated"),
    },
    WAITING_FOR_PAUSE: {
        **_to((WAITING_FOR_PAUSE,), *WORK_END_EVENTS, "plan_completed"),
        **_to((PAUSED,), "instance_paused"),
        **_to((QUEUED, RUNNING, WAITING), "instance_resumed"),
        **_to((COMPLETE,), "instance_completed"),
        **_to((ERRORED,), "instance_errored"),
        **_to((TERMINATED,), "instance_terminated"),
    },
    PAUSED: {
        **_to((QUEUED, RUNNING, WAITING), "instance_resumed"),
        **_to((ERRORED,), "instance_errored"),
        **_to((TERMINATED,), "instance_terminated"),
    },
    WAITING: {
        **_to((RUNNING,), "plan_reviewed"),
        **_to((WAITING_FOR_PAUSE,), "instance_pause_requested"),
        **_to((ERRORED,), "instance_errored"),
        **_to((TERMINATED,), "instance_terminated"),
    },
    COMPLETE: _to((QUEUED,), "instance_restarted"),
    ERRORED: {**_to((QUEUED, WAITING), "instance_retried"), **_to((QUEUED,), "instance_restarted")},
    TERMINATED: {**_to((QUEUED, WAITING), "instance_retried"), **_to((QUEUED,), "instance_restarted")},
}
"""For each state, the events that may follow and the states they may lead to. Where there are several,
`WAITING` holds while the plan awaits review, `QUEUED` while no work has started, `RUNNING` otherwise; the
first of them where that one is not among them."""


_FIELDS: Final = tuple(field.name for field in fields(Instance))
_values: Final[Callable[[Instance], tuple[Any, ...]]] = attrgetter(*_FIELDS)


class IllegalEventError(ValueError):
    """The event cannot follow; the state is unchanged."""


def fold(events: Iterable[pb_event.Event], instance: Instance | None = None) -> Instance:
    """Evolve from the beginning, or from a given instance, through the events in order.

    Raise IllegalEventError where one cannot follow.
    """
    draft = Instance() if instance is None else _copy(instance)
    for event in events:
        _evolve(draft, event)
    return draft


def _copy(instance: Instance) -> Instance:
    return Instance(*_values(instance))


def evolve(instance: Instance, event: pb_event.Event) -> Instance:
    """Apply one more event; raise IllegalEventError where it cannot follow."""
    return fold((event,), instance)


def _evolve(draft: Instance, event: pb_event.Event) -> None:
    kind = event.WhichOneof("payload")
    if kind is None:
        raise IllegalEventError(f"event {event.sequence} has no payload that this version knows")
    if event.schema > SCHEMA:
        raise IllegalEventError(
            f"event {event.sequence} is of schema {event.schema}, and this version reads up to {SCHEMA}"
        )
    if event.sequence != draft.last_sequence + 1:
        raise IllegalEventError(f"event {event.sequence} cannot follow event {draft.last_sequence}")
    targets = TRANSITIONS[draft.state].get(kind)
    if targets is None:
        raise IllegalEventError(f"{kind} cannot happen in {pb.State.Name(draft.state)}")
    time_s = seconds_of(event.event_time)
    if kind == "instance_created":
        draft.origin = Origin.of(event)
    _HANDLERS[kind](draft, getattr(event, kind), time_s)
    state = targets[0]
    if len(targets) > 1 and (chosen := _derive_state(draft)) in targets:
        state = chosen
    if state == RUNNING and not draft.start_time_s:
        draft.start_time_s = time_s
    draft.id = event.instance_id
    draft.state = state
    draft.end_time_s = time_s if state in TERMINAL else 0.0
    draft.update_time_s = time_s
    draft.last_sequence = event.sequence


def _derive_state(instance: Instance) -> State:
    if instance.is_awaiting_review:
        return WAITING
    return RUNNING if instance.start_time_s or instance.is_planned else QUEUED


# One function per kind of event: what it changes besides state and times. They raise IllegalEventError
# where the piece of work is not in the state that the event speaks of.


def _instance_created(draft: Instance, payload: pb_event.InstanceCreated, time_s: float) -> None:
    draft.prompt = payload.prompt
    _set_config(draft, payload.config)
    draft.labels = dict(payload.labels) or EMPTY
    draft.request_id = payload.request_id
    draft.request_digest = payload.request_digest
    draft.forked_from = payload.forked_from
    draft.files = tuple(map(input_file_of, payload.files))
    if payload.HasField("predecessor"):
        before = payload.predecessor
        draft.predecessor = Predecessor(before.id, before.prompt, before.final_result)
    draft.copied_events = payload.copied_events
    draft.create_time_s = time_s


def _set_config(draft: Instance, recorded: pb.InstanceConfig) -> None:
    """Copy a config: a submessage keeps its whole parent in memory, with the page it was read from.

    The workers of a newly named catalogue are set by StateStore.resolve.
    """
    config = pb.InstanceConfig()
    config.CopyFrom(recorded)
    if not config.catalogue or config.catalogue != draft.config.catalogue:
        draft.workers = tuple(config.workers)
    draft.config = config


def _work(instance: Instance, key: WorkKey) -> Work:
    return _subtask(instance, key.subtask_id).work if key.kind == "subtask" else instance.work(key)


def _set_work(draft: Instance, key: WorkKey, work: Work, output: str = "") -> None:
    if key == PLANNING:
        draft.planning = work
    elif key == SYNTHESIS:
        draft.synthesis = work
        draft.final_result = output
    else:
        subtask = _subtask(draft, key.subtask_id)._replace(work=work, output=output)
        draft.subtasks = {**draft.subtasks, subtask.id: subtask}


def _work_started(draft: Instance, payload: WorkStarted, time_s: float) -> None:
    key, attempt = work_key(payload), payload.attempt
    work = _work(draft, key)
    if work.state != PENDING or attempt != work.attempt + 1:
        raise IllegalEventError(f"attempt {attempt} cannot start after attempt {work.attempt}")
    started = work._replace(
        state=IN_PROGRESS,
        attempt=attempt,
        parts=0,
        model=payload.model,
        retry_time_s=0.0,
        fail_time_s=0.0,
        start_time_s=work.start_time_s or time_s,
    )
    _set_work(draft, key, started)
    if key == PLANNING:
        _discard_plan(draft)


def _end_attempt(work: Work, attempt: int, state: SubtaskState, usage: Usage, time_s: float) -> Work:
    if work.state != IN_PROGRESS or attempt != work.attempt:
        raise IllegalEventError(f"attempt {attempt} cannot end: it is not under way")
    return work._replace(state=state, text="", error=None, end_time_s=time_s, usage=work.usage.plus(usage))


def _add_usage(draft: Instance, usage: Usage) -> None:
    draft.usage = draft.usage.plus(usage)
    if draft.last_sequence > draft.copied_events:  # the event's own sequence is one more
        draft.own_usage = draft.own_usage.plus(usage)


def _work_continued(draft: Instance, payload: WorkContinued, _: float) -> None:
    key = work_key(payload)
    work = _work(draft, key)
    if work.state != IN_PROGRESS or payload.attempt != work.attempt or payload.part != work.parts + 1:
        raise IllegalEventError(
            f"part {payload.part} of attempt {payload.attempt} cannot follow "
            f"part {work.parts} of attempt {work.attempt}"
        )
    usage = usage_of(payload.usage)
    _add_usage(draft, usage)
    text = _text_with(work, payload)
    _set_work(draft, key, work._replace(parts=payload.part, text=text, usage=work.usage.plus(usage)))
    draft.crashes = NO_CRASHES


def _text_with(work: Work, payload: WorkContinued | WorkFailed) -> str:
    """Return what is there of an answer, with what was added last."""
    text = written_of(payload)
    return text if payload.replaces else work.text + text


def _work_failed(draft: Instance, payload: WorkFailed, time_s: float) -> None:
    key = work_key(payload)
    work = _work(draft, key)
    again = payload.HasField("retry_time")
    usage = usage_of(payload.usage)
    _add_usage(draft, usage)
    ended = _end_attempt(work, payload.attempt, PENDING if again else FAILED, usage, time_s)
    reason = payload.error.reason
    interrupted = reason == INTERRUPTED
    if payload.by_crash:
        draft.crashes = {**draft.crashes, key: draft.crashes.get(key, 0) + 1}
    elif key in draft.crashes and not interrupted:
        draft.crashes = {other: count for other, count in draft.crashes.items() if other != key}
    failed = ended._replace(
        failures=work.failures if interrupted else work.failures + 1,
        too_long=work.too_long + (reason == TOO_LONG),
        invalid=work.invalid + (reason in DISCARDED),
        raised_limits=work.raised_limits + (reason == TRUNCATED and again),
        text="" if reason in DISCARDED else _text_with(work, payload),
        error=failure_of(payload.error),
        retry_time_s=seconds_of(payload.retry_time) if again else 0.0,
        fail_time_s=time_s if again else 0.0,
        end_time_s=0.0 if again else time_s,
    )
    _set_work(draft, key, failed)
    if key == PLANNING:
        _fail_plan(draft, payload.error)


def _fail_plan(draft: Instance, error: pb.Failure) -> None:
    if error.reason in UNUSABLE:
        draft.plan_fault = error.message
    draft.failed_plans += error.reason in UNUSABLE or (bool(draft.subtasks) and error.reason != INTERRUPTED)
    _discard_plan(draft)


def _work_completed(draft: Instance, payload: WorkCompleted, time_s: float) -> None:
    key = work_key(payload)
    usage = usage_of(payload.usage)
    ended = _end_attempt(_work(draft, key), payload.attempt, COMPLETED, usage, time_s)
    _set_work(draft, key, ended, output_of(payload))
    _add_usage(draft, usage)
    draft.crashes = NO_CRASHES


def _discard_plan(draft: Instance) -> None:
    """Discard the plan, but retain its completed subtasks for the next plan."""
    draft.reusable = _reusable_subtasks(draft)
    draft.subtasks = {}
    draft.summary = ""


def _reusable_subtasks(instance: Instance) -> Mapping[str, Subtask]:
    """Collect completed subtasks of this and earlier plans, except those made from a replaced result."""
    done = {name: subtask for name, subtask in instance.subtasks.items() if subtask.work.state == COMPLETED}
    kept = {**instance.reusable, **done}
    replaced = {name for name in instance.reusable if kept[name] is not instance.reusable[name]}
    while stale := {name for name in kept.keys() - done.keys() if replaced & set(kept[name].depends_on)}:
        replaced |= stale
        kept = {name: subtask for name, subtask in kept.items() if name not in stale}
    return kept


def _subtask_planned(draft: Instance, payload: pb_event.SubtaskPlanned, _: float) -> None:
    subtask = subtask_of(payload.subtask)
    if payload.subtask.merges:
        subtask = subtask._replace(merges=True)
    if draft.is_planned != subtask.merges or subtask.id in draft.subtasks:
        raise IllegalEventError(f"subtask {subtask.id} cannot be planned now")
    subtasks = {**draft.subtasks, subtask.id: subtask}
    while draft.reusable and (
        found := [name for name in subtasks if _is_reusable(draft.reusable, subtasks, name)]
    ):
        subtasks |= {name: draft.reusable[name] for name in found}
    draft.subtasks = subtasks
    draft.summary = payload.summary or draft.summary


def _is_reusable(kept: Mapping[str, Subtask], subtasks: Mapping[str, Subtask], name: str) -> bool:
    """Return whether a subtask that has not started has a retained result, made from the same results."""
    subtask, done = subtasks[name], kept.get(name)
    return (
        done is not None
        and subtask.work is NOT_STARTED
        and done.definition == subtask.definition
        and all(needed in subtasks and subtasks[needed] is kept.get(needed) for needed in done.depends_on)
    )


def _plan_completed(draft: Instance, payload: pb_event.PlanCompleted, time_s: float) -> None:
    if draft.is_planned:
        raise IllegalEventError("the plan is complete already")
    if payload.attempt:
        _work_completed(draft, payload, time_s)
    else:
        draft.planning = draft.planning._replace(state=COMPLETED)
    draft.is_planned = True
    draft.plan_fault = ""
    draft.summary = payload.summary


def _plan_reviewed(draft: Instance, payload: pb_event.PlanReviewed, _: float) -> None:
    match payload.decision:
        case pb_event.DECISION_APPROVE:
            draft.is_reviewed = True
            if payload.subtasks:
                edited = [subtask_of(message) for message in payload.subtasks]
                draft.subtasks = {subtask.id: _completed_or_edited(draft, subtask) for subtask in edited}
        case pb_event.DECISION_REJECT:
            draft.planning = draft.planning.reset()
            draft.is_planned = False
            draft.feedback = payload.feedback
            _discard_plan(draft)
        case unknown:
            raise IllegalEventError(f"decision {unknown} is none that this version knows")


def _completed_or_edited(instance: Instance, edited: Subtask) -> Subtask:
    known = instance.subtasks.get(edited.id)
    is_done = known is not None and known.work.state == COMPLETED and known.definition == edited.definition
    return known if known is not None and is_done else edited


def _subtask(instance: Instance, subtask_id: str) -> Subtask:
    try:
        return instance.subtasks[subtask_id]
    except KeyError:
        raise IllegalEventError(f"there is no subtask {subtask_id}") from None


def _subtask_skipped(draft: Instance, payload: pb_event.SubtaskSkipped, time_s: float) -> None:
    subtask = _subtask(draft, payload.subtask_id)
    if subtask.work.state != PENDING:
        raise IllegalEventError(f"subtask {subtask.id} has begun and cannot be skipped")
    error = failure_of(payload.error)
    _set_work(draft, subtask.key, subtask.work._replace(state=SKIPPED, error=error, end_time_s=time_s))


def _no_change(_draft: Instance, _payload: object, _time_s: float) -> None:
    pass


def _instance_pause_requested(draft: Instance, payload: pb_event.InstancePauseRequested, _: float) -> None:
    draft.pause_cause = failure_of(payload.cause) if payload.HasField("cause") else None


def _instance_resumed(draft: Instance, _payload: object, _time_s: float) -> None:
    draft.pause_cause = None
    draft.crashes = NO_CRASHES


def _instance_retried(draft: Instance, payload: pb_event.InstanceRetried, _: float) -> None:
    _set_config(draft, payload.config)
    draft.crashes = NO_CRASHES
    draft.pause_cause = None
    if draft.is_planned:
        draft.subtasks = _reset_unfinished(draft)
    else:
        draft.planning = draft.planning.reset()
        draft.plan_fault = ""
        _discard_plan(draft)
    draft.synthesis = draft.synthesis.reset()
    draft.error = None


def _reset_unfinished(instance: Instance) -> Mapping[str, Subtask]:
    return {
        name: subtask if subtask.work.state == COMPLETED else subtask._replace(work=subtask.work.reset())
        for name, subtask in instance.subtasks.items()
    }


def _instance_restarted(draft: Instance, payload: pb_event.InstanceRestarted, _: float) -> None:
    restarted = Instance(
        prompt=draft.prompt,
        config=draft.config,
        workers=draft.workers,
        labels=draft.labels,
        forked_from=draft.forked_from,
        files=draft.files,
        predecessor=draft.predecessor,
        request_id=draft.request_id,
        request_digest=draft.request_digest,
        origin=draft.origin,
        create_time_s=draft.create_time_s,
        own_usage=draft.own_usage,
        copied_events=draft.copied_events,
    )
    for name, value in zip(_FIELDS, _values(restarted), strict=True):
        setattr(draft, name, value)
    _set_config(draft, payload.config)


def _instance_errored(draft: Instance, payload: pb_event.InstanceErrored, time_s: float) -> None:
    _interrupt_calls(draft, time_s, NO_USAGE)
    draft.error = failure_of(payload.error)


def _instance_terminated(draft: Instance, payload: pb_event.InstanceTerminated, time_s: float) -> None:
    # Earlier versions did not count the interrupted calls.
    _interrupt_calls(draft, time_s, CUT_OFF if payload.cut_off_calls else NO_USAGE)


def _interrupt_calls(draft: Instance, time_s: float, usage: Usage) -> None:
    """Mark all calls under way as interrupted, each with this usage: no event of them will follow."""

    def cut(work: Work) -> Work:
        if work.state != IN_PROGRESS:
            return work
        cause = Failure(INTERRUPTED, "stopped together with the instance")
        _add_usage(draft, usage)
        return work._replace(state=FAILED, error=cause, end_time_s=time_s, usage=work.usage.plus(usage))

    draft.planning = cut(draft.planning)
    # The others keep their identity, which `_reusable_subtasks` compares.
    draft.subtasks = {
        name: subtask._replace(work=cut(subtask.work)) if subtask.work.state == IN_PROGRESS else subtask
        for name, subtask in draft.subtasks.items()
    }
    draft.synthesis = cut(draft.synthesis)


_HANDLERS: Final[Mapping[str, Callable[[Instance, Any, float], None]]] = {
    **{names.started: _work_started for names in WORK_EVENTS.values()},
    **{names.continued: _work_continued for names in WORK_EVENTS.values()},
    **{names.failed: _work_failed for names in WORK_EVENTS.values()},
    **{names.completed: _work_completed for names in WORK_EVENTS.values()},
    "plan_completed": _plan_completed,
    "instance_created": _instance_created,
    "subtask_planned": _subtask_planned,
    "plan_reviewed": _plan_reviewed,
    "subtask_skipped": _subtask_skipped,
    "instance_pause_requested": _instance_pause_requested,
    "instance_paused": _no_change,
    "instance_resumed": _instance_resumed,
    "instance_retried": _instance_retried,
    "instance_restarted": _instance_restarted,
    "instance_completed": _no_change,
    "instance_errored": _instance_errored,
    "instance_terminated": _instance_terminated,
}
