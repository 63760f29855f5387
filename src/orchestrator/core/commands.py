"""What the decider asks of the engine, and which work and model each call is about."""

from dataclasses import dataclass
from typing import assert_never

from orchestrator.core import workers
from orchestrator.core.instance import Instance, Work
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
