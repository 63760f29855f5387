"""What endpoints do wrong in the midst of an answer, for `support.endpoint`."""

import asyncio
from typing import Any

from aiohttp import web
from support import streams
from support.endpoint import Call, Misbehaviour, abort, completion, message
from support.streams import Event


def beginning(call: Call, text: str = "half an ans") -> list[Event]:
    """The events of an answer that has not come to its end."""
    if call.request.path.endswith("/messages"):
        return streams.of_message(message(text))[:-3]
    return streams.of_completion(completion(text), {})[:-2]


def streaming(*events: Event, after: str = "half an ans") -> Misbehaviour:
    """Stream the beginning of an answer, then these events, and end as if all were well."""

    async def misbehave(call: Call) -> web.StreamResponse:
        return await streams.send(call.request, [*beginning(call, after), *events])

    return misbehave


async def reset_amid_stream(call: Call) -> web.StreamResponse:
    """Cut the connection in the middle of an answer that is streamed."""
    await streams.send(call.request, beginning(call))
    return abort(call)


async def stall_amid_stream(call: Call) -> web.StreamResponse:
    """Stream the beginning of an answer, and never go on."""
    return await stalling()(call)


def stalling(*events: Event) -> Misbehaviour:
    """Stream the beginning of an answer, then these events, and never go on."""

    async def misbehave(call: Call) -> web.StreamResponse:
        await streams.send(call.request, [*beginning(call), *events])
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

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
    """Say that a stream follows, and send none."""
    await streams.begin(call.request)
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def endless_white_space(call: Call) -> web.StreamResponse:
    """Go on in line breaks for as long as somebody listens, as a model can that is held by a grammar."""
    response = await streams.begin(call.request)
    for event in beginning(call, '{"summary": "x"'):
        await response.write(streams.encoded(event))
    blank = beginning(call, "\n\n   ")[-1]
    while True:
        await response.write(streams.encoded(blank))
        await asyncio.sleep(0)


def refusing(status: int, *parameters: str, otherwise: Any = None) -> Any:
    """An endpoint that does not know some parameters: it names the first that it meets."""

    def script(call: Call) -> Any:
        for parameter in parameters:
            if parameter in call.body:
                error = {"error": {"message": f"Unsupported parameter: '{parameter}'", "type": "invalid"}}
                return web.json_response(error, status=status)
        return otherwise

    return script
