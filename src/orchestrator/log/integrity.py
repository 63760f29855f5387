"""Whether stored events are what their rows say: whole, of this instance, in this place, and understood."""

from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from orchestrator.core.state import SCHEMA
from orchestrator.errors import UnreadableError
from orchestrator.v1.event_pb2 import Event
from orchestrator.v1.orchestrator_pb2 import EventBatch


class StoredEvent(NamedTuple):
    """A row of the log: an EventBatch that holds one event, and what the row says it is."""

    instance_id: str
    sequence: int
    data: bytes


def find_unreadable(rows: Sequence[StoredEvent]) -> tuple[int, UnreadableError] | None:
    """Return the place of the first row that cannot be read, and why; None: all can."""
    if _are_readable(rows):
        return None
    for number, row in enumerate(rows):
        if error := check(row):
            return number, error
    return None


def check(row: StoredEvent) -> UnreadableError | None:
    """Return why a row cannot be read; None: it can."""
    try:
        (event,) = EventBatch.FromString(row.data).events
    except DecodeError:
        return UnreadableError(row.instance_id, row.sequence, "its bytes are damaged")
    except ValueError:
        return UnreadableError(row.instance_id, row.sequence, "its bytes are not one event")
    return _check(row, event)


def missing(instance_id: str, sequence: int) -> UnreadableError:
    """Say that an event is not there, though later ones are, or the instance has had later ones."""
    return UnreadableError(instance_id, sequence, "it is missing")


def _are_readable(rows: Sequence[StoredEvent]) -> bool:
    try:
        events = EventBatch.FromString(b"".join([row.data for row in rows])).events
    except DecodeError:
        return False
    return len(events) == len(rows) and all(
        event.sequence == row.sequence
        and event.instance_id == row.instance_id
        and event.schema <= SCHEMA
        and event.WhichOneof("payload")
        for row, event in zip(rows, events, strict=True)
    )


def _check(row: StoredEvent, event: Event) -> UnreadableError | None:
    is_known = event.WhichOneof("payload") is not None
    if event.schema > SCHEMA or (not is_known and len(UnknownFieldSet(event))):
        return UnreadableError(
            row.instance_id, row.sequence, "it is of a newer version than this release knows", is_too_new=True
        )
    if not is_known:
        return UnreadableError(row.instance_id, row.sequence, "it says nothing")
    if event.sequence != row.sequence or event.instance_id != row.instance_id:
        found = f"event {event.sequence} of {event.instance_id!r}"
        return UnreadableError(row.instance_id, row.sequence, f"{found} is in its place")
    return None
