"""Convert small values to protobuf, and map events to pieces of work."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias, cast

from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.core.files import INPUT
from orchestrator.core.instance import (
    PLANNING,
    SYNTHESIS,
    Failure,
    InputFile,
    Subtask,
    Usage,
    WorkKey,
    WorkKind,
    subtask_key,
)
from orchestrator.v1 import event_pb2
from orchestrator.v1 import instance_pb2 as pb

WorkStarted: TypeAlias = event_pb2.PlanningStarted | event_pb2.SubtaskStarted | event_pb2.SynthesisStarted
WorkFailed: TypeAlias = event_pb2.PlanningFailed | event_pb2.SubtaskFailed | event_pb2.SynthesisFailed
WorkContinued: TypeAlias = (
    event_pb2.PlanningContinued | event_pb2.SubtaskContinued | event_pb2.SynthesisContinued
)
WorkCompleted: TypeAlias = event_pb2.PlanCompleted | event_pb2.SubtaskCompleted | event_pb2.SynthesisCompleted


class WorkEvents(NamedTuple):
    """The payload names of the events of one kind of work."""

    started: str
    continued: str
    failed: str
    completed: str


WORK_EVENTS: Final[Mapping[WorkKind, WorkEvents]] = {
    "planning": WorkEvents("planning_started", "planning_continued", "planning_failed", "plan_completed"),
    "subtask": WorkEvents("subtask_started", "subtask_continued", "subtask_failed", "subtask_completed"),
    "synthesis": WorkEvents(
        "synthesis_started", "synthesis_continued", "synthesis_failed", "synthesis_completed"
    ),
}
_ENDS: Final = frozenset(name for names in WORK_EVENTS.values() for name in (names.failed, names.completed))

_WHOLE_WORK: Final[Mapping[type, WorkKey]] = {
    event_pb2.PlanningStarted: PLANNING,
    event_pb2.PlanningContinued: PLANNING,
    event_pb2.PlanningFailed: PLANNING,
    event_pb2.PlanCompleted: PLANNING,
    event_pb2.SynthesisStarted: SYNTHESIS,
    event_pb2.SynthesisContinued: SYNTHESIS,
    event_pb2.SynthesisFailed: SYNTHESIS,
    event_pb2.SynthesisCompleted: SYNTHESIS,
}
"""What the payloads are about that name no subtask."""

STATUS: Final = {
    pb.STATE_QUEUED: "queued",
    pb.STATE_RUNNING: "running",
    pb.STATE_PAUSED: "paused",
    pb.STATE_WAITING_FOR_PAUSE: "waitingForPause",
    pb.STATE_WAITING: "waiting",
    pb.STATE_COMPLETE: "complete",
    pb.STATE_ERRORED: "errored",
    pb.STATE_TERMINATED: "terminated",
}
"""Each state's name in Cloudflare Workflows."""


def work_key(payload: WorkStarted | WorkContinued | WorkFailed | WorkCompleted) -> WorkKey:
    """Return the piece of work that an event's payload is about."""
    whole = _WHOLE_WORK.get(type(payload))
    return whole or subtask_key(cast("event_pb2.SubtaskStarted", payload).subtask_id)


def attempt_ended_by(event: event_pb2.Event) -> tuple[WorkKey, int] | None:
    """Return the work and the attempt that failed or succeeded with an event; None: none did by itself."""
    name = event.WhichOneof("payload")
    if name not in _ENDS:
        return None
    payload = getattr(event, name)
    return work_key(payload), payload.attempt


def output_of(payload: WorkCompleted) -> str:
    """Return the output of a piece of work; empty for a plan, whose subtasks have events of their own."""
    if isinstance(payload, event_pb2.SubtaskCompleted):
        return payload.output
    return payload.final_result if isinstance(payload, event_pb2.SynthesisCompleted) else ""


def written_of(payload: WorkContinued | WorkFailed) -> str:
    """Return what a model wrote of an answer that was cut off, which may not be what clients see of it."""
    if isinstance(payload, event_pb2.SynthesisContinued | event_pb2.SynthesisFailed) and payload.written:
        return payload.written
    return payload.text


def work_payload(event: event_pb2.Event, name: str, key: WorkKey) -> Any:
    """Return the payload `name`, one of WORK_EVENTS, of an event, with the key of the piece of work set."""
    payload = getattr(event, name)
    if key.subtask_id:
        payload.subtask_id = key.subtask_id
    return payload


def timestamp(time_s: float) -> Timestamp | None:
    """Write seconds since the epoch to the microsecond; 0 means unset."""
    if not time_s:
        return None
    micros = round(time_s * 1e6)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def write_timestamp(message: Timestamp, time_s: float) -> None:
    """Write seconds since the epoch, to the microsecond, into its place in a message."""
    seconds, micros = divmod(round(time_s * 1e6), 1_000_000)
    message.seconds = seconds
    message.nanos = micros * 1000


def usage_message(usage: Usage) -> pb.Usage:
    """Write usage for the wire."""
    message = pb.Usage()
    write_usage(message, usage)
    return message


def write_usage(message: pb.Usage, usage: Usage) -> None:
    """Write usage into its place in a message."""
    message.input_tokens = usage.input_tokens
    message.output_tokens = usage.output_tokens
    message.model_calls = usage.model_calls
    message.cost_usd = usage.cost_usd


def failure_message(failure: Failure) -> pb.Failure:
    """Write a failure for the wire."""
    return pb.Failure(reason=failure.reason, message=failure.message, subtask_id=failure.subtask_id)


def write_subtask(message: pb.Subtask, subtask: Subtask) -> None:
    """Write what the plan says of a subtask into its place in a message."""
    message.id = subtask.id
    message.title = subtask.title
    message.instructions = subtask.instructions
    message.depends_on.extend(subtask.depends_on)
    message.worker = subtask.worker
    message.merges = subtask.merges
    if subtask.files:
        message.files.extend(subtask.files)


def write_input_file(message: pb.File, file: InputFile, *, content: bool) -> None:
    """Write an input file, with or without what it holds, into its place in a message."""
    message.path = file.path
    message.language = file.language
    message.size_bytes = file.size_bytes
    message.sha256 = file.sha256
    message.source = INPUT
    if content:
        message.content = file.content
