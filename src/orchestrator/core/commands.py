"""Commands of the decider to the engine, and the choice of a model for a piece of work."""

from typing import NamedTuple

from orchestrator.core import workers
from orchestrator.core.instance import Instance, WorkKey
from orchestrator.v1 import event_pb2 as pb


class CallModel(NamedTuple):
    """Call a model for a piece of work."""

    work: WorkKey


class Record(NamedTuple):
    """Append these events: they follow from what happened, no call is needed."""

    events: tuple[pb.Event, ...]


class WakeAfter(NamedTuple):
    """Decide again after a delay."""

    wait_s: float


Command = CallModel | Record | WakeAfter


def model_for(instance: Instance, work: WorkKey) -> str:
    """Return the `provider/model` for a piece of work: the small model for a worker without its own."""
    subtask = instance.subtasks.get(work.subtask_id)
    if subtask is None or subtask.merges:
        return instance.config.big_model
    worker = workers.find(instance.workers, subtask.worker)
    return worker.model if worker and worker.model else instance.config.small_model
