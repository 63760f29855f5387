"""Small values as the wire has them."""

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.core.instance import Failure, Subtask, Usage
from orchestrator.v1 import instance_pb2 as pb

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


def timestamp(time_s: float) -> Timestamp | None:
    """Write seconds since the epoch to the microsecond; 0 means unset."""
    if not time_s:
        return None
    micros = round(time_s * 1e6)
    return Timestamp(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


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
