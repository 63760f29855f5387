"""Instances made by hand: events in a row, folded, without an engine."""

from collections.abc import Sequence

from orchestrator.core import config, lifecycle
from orchestrator.core.budget import Since
from orchestrator.core.events import call_started, plan_completed, work_completed
from orchestrator.core.instance import PLANNING, SYNTHESIS, Instance, Subtask, Usage, WorkKey
from orchestrator.core.plan import Plan
from orchestrator.core.state import evolve, fold
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event, InstanceCompleted, InstanceCreated, InstanceRetried

CONFIG = config.default("scripted/big", "scripted/small")
NOW_S = 1_700_000_000.0


def at(now_s: float) -> Since:
    """How long ago things were recorded, at this time."""
    return lambda time_s: now_s - time_s


def resolved(**changes: object) -> pb.InstanceConfig:
    return config.resolve(pb.InstanceConfig(**changes), CONFIG)


def changes(**values: object) -> config.Changes:
    """What a client changes by setting these fields, without a mask."""
    return config.read_changes(pb.InstanceConfig(**values))


class Life:
    """One instance and all its events; `then` appends more."""

    def __init__(self, instance_id: str = "a", **changes: object) -> None:
        self.events: list[Event] = []
        self.instance = Instance(id=instance_id)
        created = InstanceCreated(prompt="Build it", config=resolved(**changes))
        self.then(Event(instance_created=created))

    def then(self, *events: Event) -> "Life":
        for event in events:
            event.instance_id = self.instance.id
            event.sequence = self.instance.last_sequence + 1
            event.event_time.FromNanoseconds(int((NOW_S + event.sequence) * 1e9))
            self.instance = evolve(self.instance, event)
            self.events.append(event)
        return self

    def planned(self, *subtasks: Subtask, summary: str = "how") -> "Life":
        self.then(call_started(self.instance, PLANNING))
        plan = Plan(summary, subtasks or (part("t1"), part("t2"), part("t3", "t1")))
        return self.then(*plan_completed(self.instance, plan, Usage(10, 20, 1)))

    def started(self, subtask_id: str) -> "Life":
        return self.then(call_started(self.instance, WorkKey("subtask", subtask_id)))

    def done(self, *subtask_ids: str) -> "Life":
        for subtask_id in subtask_ids:
            self.started(subtask_id)
            self.then(
                work_completed(
                    self.instance, WorkKey("subtask", subtask_id), f"output of {subtask_id}", Usage(1, 2, 1)
                )
            )
        return self

    def completed(self) -> "Life":
        self.then(call_started(self.instance, SYNTHESIS))
        self.then(work_completed(self.instance, SYNTHESIS, "the result", Usage(3, 4, 1)))
        return self.then(Event(instance_completed=InstanceCompleted()))

    def terminated(self) -> "Life":
        return self.then(*lifecycle.terminate(self.instance))

    def retried(self, **changes: object) -> "Life":
        return self.then(Event(instance_retried=InstanceRetried(config=resolved(**changes))))

    def refolded(self) -> Instance:
        return fold(Event.FromString(event.SerializeToString()) for event in self.events)


def part(subtask_id: str, *depends_on: str) -> Subtask:
    return Subtask(subtask_id, f"Part {subtask_id}", f"Write {subtask_id}.", depends_on)


def states(instance: Instance) -> Sequence[str]:
    return [pb.SubtaskState.Name(subtask.work.state)[14:] for subtask in instance.subtasks.values()]
