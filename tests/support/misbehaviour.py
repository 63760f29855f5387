"""Faults of endpoints within an answer, for `support.endpoint`."""

import asyncio
from typing import Any

from aiohttp import web
from support import streams
from support.endpoint import Call, Misbehaviour, abort, completion, message
from support.streams import Event


def beginning(call: Call, text: str = "half an ans") -> list[Event]:
    """Return the events of an answer that is not complete."""
    if call.request.path.endswith("/messages"):
        return streams.message_events(message(text))[:-3]
    return streams.completion_events(completion(text), {})[:-2]


def streaming(*events: Event, after: str = "half an ans") -> Misbehaviour:
    """Stream the beginning of an answer, then these events, and end the response normally."""

    async def misbehave(call: Call) -> web.StreamResponse:
        return await streams.send(call.request, [*beginning(call, after), *events])

    return misbehave


async def reset_amid_stream(call: Call) -> web.StreamResponse:
    """Cut the connection in the middle of an answer that is streamed."""
    await streams.send(call.request, beginning(call))
    return abort(call)


async def stall_amid_stream(call: Call) -> web.StreamResponse:
    """Stream the beginning of an answer, and then stall."""
    return await stalling()(call)


def stalling(*events: Event) -> Misbehaviour:
    """Stream the beginning of an answer, then these events, and then stall."""

    async def misbehave(call: Call) -> web.StreamResponse:
        await streams.send(call.request, [*beginning(call), *events])
        await asyncio.Event().wait()
        raise AssertionError("the event is never set")

    return misbehave


def breaking(*events: Event) -> Misbehaviour:
    """Stream the beginning of an answer, then these events, and close the connection."""

    async def misbehave(call: Call) -> web.StreamResponse:
        response = await streams.send(call.request, [*beginning(call), *events])
        if call.request.transport is not None:
            call.request.transport.close()
        return response

    return misbehave


async def stay_silent(call: Call) -> web.StreamResponse:
    """Send the headers of a stream, and no event."""
    await streams.start_response(call.request)
    await asyncio.Event().wait()
    raise AssertionError("the event is never set")


async def endless_white_space(call: Call) -> web.StreamResponse:
    """Stream line breaks while the client is connected, as a model constrained by a grammar can."""
    response = await streams.start_response(call.request)
    for event in beginning(call, '{"summary": "x"'):
        await response.write(streams.encode(event))
    blank = beginning(call, "\n\n   ")[-1]
    while True:
        await response.write(streams.encode(blank))
        await asyncio.sleep(0)


def refusing(status: int, *parameters: str, otherwise: Any = None) -> Any:
    """Script an endpoint that rejects some parameters: it names the first that it finds."""

    def script(call: Call) -> Any:
        for parameter in parameters:
            if parameter in call.body:
                error = {"error": {"message": f"Unsupported parameter: '{parameter}'", "type": "invalid"}}
                return web.json_response(error, status=status)
        return otherwise

    return script
