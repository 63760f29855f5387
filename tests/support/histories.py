"""Histories of instances built by hand: events and the state that they fold to, without an engine."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from orchestrator.core import config, lifecycle
from orchestrator.core.budget import Elapsed
from orchestrator.core.continuation import Part
from orchestrator.core.events import (
    call_started,
    completed,
    failed,
    plan_completed,
    started,
    subtasks_planned,
    work_completed,
    work_continued,
)
from orchestrator.core.instance import PLANNING, SYNTHESIS, Failure, Instance, State, Subtask, Usage, WorkKey
from orchestrator.core.plan import Plan
from orchestrator.core.state import IllegalEventError, evolve, fold
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import (
    DECISION_APPROVE,
    DECISION_REJECT,
    Event,
    InstanceCompleted,
    InstanceCreated,
    InstanceErrored,
    InstancePaused,
    InstancePauseRequested,
    InstanceRestarted,
    InstanceResumed,
    InstanceRetried,
    InstanceTerminated,
    PlanCompleted,
    PlanReviewed,
    SubtaskSkipped,
)

CONFIG = config.default("scripted/big", "scripted/small")
NOW_S = 1_700_000_000.0


def at(now_s: float) -> Elapsed:
    """Return a function that measures elapsed time up to `now_s`."""
    return lambda time_s: now_s - time_s


def resolved(**changes: object) -> pb.InstanceConfig:
    return config.resolve(pb.InstanceConfig(**changes), CONFIG)


def changes(**values: object) -> config.Changes:
    """Return the changes of a client that sets these fields, without a mask."""
    return config.read_changes(pb.InstanceConfig(**values))


class History:
    """One instance and all its events; `then` appends more."""

    def __init__(self, instance_id: str = "a", **changes: object) -> None:
        self.events: list[Event] = []
        self.instance = Instance(id=instance_id)
        created = InstanceCreated(prompt="Build it", config=resolved(**changes))
        self.then(Event(instance_created=created))

    def then(self, *events: Event) -> "History":
        for event in events:
            event.instance_id = self.instance.id
            event.sequence = self.instance.last_sequence + 1
            event.event_time.FromNanoseconds(int((NOW_S + event.sequence) * 1e9))
            self.instance = evolve(self.instance, event)
            self.events.append(event)
        return self

    def planned(self, *subtasks: Subtask, summary: str = "how") -> "History":
        self.then(call_started(self.instance, PLANNING))
        plan = Plan(summary, subtasks or (part("t1"), part("t2"), part("t3", "t1")))
        return self.then(*plan_completed(self.instance, plan, Usage(10, 20, 1)))

    def started(self, subtask_id: str) -> "History":
        return self.then(call_started(self.instance, WorkKey("subtask", subtask_id)))

    def done(self, *subtask_ids: str) -> "History":
        for subtask_id in subtask_ids:
            self.started(subtask_id)
            self.then(
                work_completed(
                    self.instance, WorkKey("subtask", subtask_id), f"output of {subtask_id}", Usage(1, 2, 1)
                )
            )
        return self

    def continued(self, key: WorkKey, text: str, *, replaces: bool = False) -> "History":
        """The call under way is cut off behind a text."""
        return self.then(work_continued(self.instance, key, Part(text, replaces), Usage(1, 2, 1)))

    def completed(self) -> "History":
        self.then(call_started(self.instance, SYNTHESIS))
        self.then(work_completed(self.instance, SYNTHESIS, "the result", Usage(3, 4, 1)))
        return self.then(Event(instance_completed=InstanceCompleted()))

    def terminated(self) -> "History":
        return self.then(*lifecycle.terminate(self.instance))

    def retried(self, **changes: object) -> "History":
        return self.then(Event(instance_retried=InstanceRetried(config=resolved(**changes))))

    def refolded(self) -> Instance:
        return fold(Event.FromString(event.SerializeToString()) for event in self.events)


Transition: TypeAlias = tuple[State, str, State]
"""A state, the kind of an event, and the state after it."""


def histories_by_transition() -> Mapping[Transition, Sequence[Event]]:
    """Find a shortest history that ends with each transition, among those whose plan has one subtask."""
    histories: dict[Transition, Sequence[Event]] = {}
    visited = set[tuple[object, ...]]()
    queue = deque[tuple[Instance, Sequence[Event]]]([(Instance(id="a"), ())])
    while queue:
        before, events = queue.popleft()
        for event in _candidates(before):
            event.instance_id = before.id
            event.sequence = before.last_sequence + 1
            event.event_time.FromNanoseconds(int((NOW_S + event.sequence) * 1e9))
            try:
                after = evolve(before, event)
            except IllegalEventError:
                continue
            history = (*events, event)
            transition = (before.state, str(event.WhichOneof("payload")), after.state)
            histories.setdefault(transition, history)
            if (signature := _signature(after)) not in visited:
                visited.add(signature)
                queue.append((after, history))
    return histories


def _signature(instance: Instance) -> tuple[object, ...]:
    """Return what determines which events can follow, and which state they lead to."""
    return (
        instance.state,
        *((work.state, work.parts > 0) for _, work in instance.works),
        len(instance.subtasks),
        len(instance.reusable),
        instance.is_planned,
        instance.is_reviewed,
        instance.start_time_s > 0,
        instance.config.review_plan,
    )


def _candidates(instance: Instance) -> Iterator[Event]:
    """Yield events of every kind, each with the attempt that would be legal; not all of them can follow."""
    subtask = part("a")
    cause, usage = Failure("MODEL_FAILED", "no"), Usage(1, 2, 1)
    error = pb.Failure(reason=cause.reason, message=cause.message)
    for key in (PLANNING, subtask.key, SYNTHESIS):
        attempt = instance.work(key).attempt
        yield started(key, attempt + 1, "scripted/small")
        if not instance.work(key).parts:
            yield work_continued(instance, key, Part("half"), usage)
        yield failed(key, attempt, "scripted/small", cause, usage)
        yield failed(key, attempt, "scripted/small", cause, usage, NOW_S)
        if key != PLANNING:
            yield completed(key, attempt, "scripted/small", "done", usage)
    yield from subtasks_planned(instance, [subtask], "how")
    for attempt in {0, instance.planning.attempt}:
        yield Event(plan_completed=PlanCompleted(attempt=attempt, summary="how"))
    for decision in (DECISION_APPROVE, DECISION_REJECT):
        yield Event(plan_reviewed=PlanReviewed(decision=decision))
    for review_plan in (False, True):
        config = resolved(review_plan=review_plan)
        yield Event(instance_created=InstanceCreated(prompt="Build it", config=config))
        yield Event(instance_retried=InstanceRetried(config=config))
        yield Event(instance_restarted=InstanceRestarted(config=config))
    yield Event(subtask_skipped=SubtaskSkipped(subtask_id=subtask.id, error=error))
    yield Event(instance_pause_requested=InstancePauseRequested())
    yield Event(instance_paused=InstancePaused())
    yield Event(instance_resumed=InstanceResumed())
    yield Event(instance_completed=InstanceCompleted())
    yield Event(instance_errored=InstanceErrored(error=error))
    yield Event(instance_terminated=InstanceTerminated(cut_off_calls=instance.open_calls))


def labelled(instance_id: str, **labels: str) -> History:
    history = History(instance_id)
    history.events[0].instance_created.labels.update(labels)
    history.instance = replace(history.instance, labels=labels)
    return history


def part(subtask_id: str, *depends_on: str) -> Subtask:
    return Subtask(subtask_id, f"Part {subtask_id}", f"Write {subtask_id}.", depends_on)


def states(instance: Instance) -> Sequence[str]:
    return [pb.SubtaskState.Name(subtask.work.state)[14:] for subtask in instance.subtasks.values()]
