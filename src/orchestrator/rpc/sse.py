"""Events as Server-Sent Events, in the format of the WHATWG's HTML standard, section 9.2.

Pure: each function gives the bytes of one frame, which the RPC sends as the data of one HttpBody, alone or
joined with others. Only events have an `id:`. A browser keeps the last one it saw and sends it as
`Last-Event-ID` when it reconnects, so frames without one leave no gap.
"""

from typing import Final

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from orchestrator.errors import InvalidArgumentError
from orchestrator.v1.event_pb2 import Event
from orchestrator.v1.orchestrator_pb2 import Deletion, OutputDelta, StreamEnd

CONTENT_TYPE: Final = "text/event-stream"
"""The first HttpBody's content type."""
LAST_EVENT_ID: Final = "last-event-id"
"""The metadata key under which the header `Last-Event-ID` arrives."""
NO_CONTENT: Final = ("x-http-status", "204")
"""The initial metadata which, with no message and OK, makes Envoy answer 204: an EventSource stops then."""
OPENING: Final = b": ok\n\n"
"""A comment to send at once: Envoy holds the headers back until there is a first message."""

_LAST_ID: Final = 2**63 - 1  # int64's


def event_frame(event: Event, frame_id: int) -> bytes:
    """Frame one event; `frame_id` is its sequence, or its position in the stream of all instances.

    `event:` is the payload's name in snake_case. `data:` is the Event as protobuf's JSON, which leaves out
    what is unset.
    """
    name = event.WhichOneof("payload") or "message"  # SSE's own name for an event without one
    return f"id: {frame_id}\nevent: {name}\ndata: {_json(event)}\n\n".encode()


def delta_frame(delta: OutputDelta) -> bytes:
    """Frame text as a model writes it: all fields are there, an empty `subtaskId` means the synthesis."""
    return f"event: delta\ndata: {_json(delta, complete=True)}\n\n".encode()


def deletion_frame(deletion: Deletion) -> bytes:
    """Frame a deletion, in the stream of all instances; its id is its position."""
    return f"id: {deletion.position}\nevent: deleted\ndata: {_json(deletion)}\n\n".encode()


def end_frame(end: StreamEnd) -> bytes:
    """Frame the end: nothing follows. Without an id of its own, since it is no event."""
    return f"event: end\ndata: {_json(end, complete=True)}\n\n".encode()


def heartbeat_line() -> bytes:
    """Give a comment that readers skip, so that proxies and clients see a living connection.

    A line and no frame: httpx-sse takes the blank line that would end one for an event without data.
    """
    return b": heartbeat\n"


def retry_line(delay_s: float) -> bytes:
    """Tell an EventSource how many seconds to wait before it reconnects; a line, as a heartbeat is."""
    return f"retry: {round(delay_s * 1000)}\n".encode()


def parse_last_event_id(value: str) -> int | None:
    """Read the header `Last-Event-ID`: the sequence or position last seen, None when it is empty.

    Raise InvalidArgumentError (ID_INVALID) when it is not one that `event_frame` gave.
    """
    if not value:
        return None
    if value.isascii() and value.isdigit() and len(value) <= len(str(_LAST_ID)) and int(value) <= _LAST_ID:
        return int(value)
    raise InvalidArgumentError(
        "ID_INVALID",
        f"Last-Event-ID is {value[:40]!r}: it must be the id of an event seen before, a whole number",
        field="after_sequence",
    )


def _json(message: Message, *, complete: bool = False) -> str:
    """Give one line: protobuf's JSON escapes every line break in a text."""
    return MessageToJson(
        message, indent=None, ensure_ascii=False, always_print_fields_with_no_presence=complete
    )
