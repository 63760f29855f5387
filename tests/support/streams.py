"""Stream answers as endpoints do: as Server-Sent Events, a few characters at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aiohttp import web

PIECE_CHARACTERS = 5

Event = dict[str, Any] | str | bytes
"""An event's JSON, its data where that is not JSON, or raw bytes sent instead of an event."""


async def start_response(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


async def send(request: web.Request, events: Iterable[Event]) -> web.StreamResponse:
    """Send all events, each in a packet of its own, and end the response."""
    response = await start_response(request)
    for event in events:
        await response.write(encode(event))
    return response


def encode(event: Event) -> bytes:
    if isinstance(event, bytes):
        return event
    if isinstance(event, str):
        return f"data: {event}\n\n".encode()
    kind = f"event: {event['type']}\n" if "type" in event else ""
    return f"{kind}data: {json.dumps(event)}\n\n".encode()


def split(text: str) -> Iterator[str]:
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]


def completion_events(body: Mapping[str, Any], request_body: Mapping[str, Any]) -> list[Event]:
    """Return the chunks of a completion, with the usage if the request asked for it."""
    [choice] = body["choices"]
    events: list[Event] = [b": the model thinks\n\n", chunk({"role": "assistant", "content": ""})]
    for name, value in choice["message"].items():
        if name != "role" and value is not None:
            parts = split(value) if isinstance(value, str) else [value]
            events += [chunk({name: part}) for part in parts]
    events.append(chunk({}, choice["finish_reason"]))
    if request_body.get("stream_options", {}).get("include_usage"):
        events.append({"choices": [], "usage": body["usage"]})
    named = {"id": body["id"]} if "id" in body else {}  # which is in every chunk
    return [*({**named, **event} if isinstance(event, dict) else event for event in events), "[DONE]"]


def chunk(delta: Mapping[str, Any], finish_reason: Any = None) -> dict[str, Any]:
    """Return a chunk of a completion."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], "usage": None}


def text_event(request: web.Request, text: str) -> Event:
    """Return an event that adds text to an answer, in the API of the request."""
    if request.path.endswith("/messages"):
        return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return chunk({"content": text})


def stop_event(request: web.Request, reason: Any) -> Event:
    """Return the event with the stop reason, in the API of the request."""
    if request.path.endswith("/messages"):
        return {"type": "message_delta", "delta": {"stop_reason": reason}}
    return chunk({}, reason)


def usage_event(request: web.Request) -> Event:
    """Return the event with the usage, in the API of the request: 100 tokens of input, 20 of output."""
    if request.path.endswith("/messages"):
        return {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 100, "output_tokens": 20}}
    return {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 20}}


def end_event(request: web.Request) -> Event:
    """Return the last event, in the API of the request."""
    return {"type": "message_stop"} if request.path.endswith("/messages") else "[DONE]"


def message_events(body: Mapping[str, Any]) -> list[Event]:
    """Return the events of an answer of Anthropic's."""
    start = {**body, "content": [], "stop_reason": None, "usage": {**body["usage"], "output_tokens": 1}}
    events: list[Event] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(body["content"]):
        events += _block(index, block)
    ending = {"stop_reason": body["stop_reason"], "stop_details": body.get("stop_details")}
    usage = {"output_tokens": body["usage"]["output_tokens"]}
    return [*events, {"type": "message_delta", "delta": ending, "usage": usage}, {"type": "message_stop"}]


def _block(index: int, block: Mapping[str, Any]) -> Iterator[Event]:
    match block["type"]:
        case "text":
            head, deltas = (
                {"text": ""},
                [{"type": "text_delta", "text": it} for it in split(block["text"])],
            )
        case "thinking":
            head = {"thinking": ""}
            deltas = [{"type": "thinking_delta", "thinking": it} for it in split(block["thinking"])]
        case "tool_use":
            head = {"input": {}}
            whole = json.dumps(block["input"])
            deltas = [{"type": "input_json_delta", "partial_json": it} for it in ["", *split(whole)]]
    yield {"type": "content_block_start", "index": index, "content_block": {**block, **head}}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}
