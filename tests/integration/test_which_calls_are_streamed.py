"""Which calls are streamed: the watched, so many others at once, and none that hide what they used."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from support import streams
from support.asking import ask, asking, chat, messages
from support.endpoint import Answer, Call, Endpoint, completion, failing, message
from support.misbehaviour import breaking, refusing, streaming

from orchestrator.errors import ModelError
from orchestrator.models.base import ModelReply
from orchestrator.models.endpoint import HttpProvider

MOST = HttpProvider.most_unwatched_streams


def are_streamed(endpoint: Endpoint) -> list[bool]:
    return ["stream" in call.body for call in endpoint.calls]


# No more than so many at once that nobody watches


@dataclass
class Held:
    """Calls to an endpoint that answers none before it is told to."""

    endpoint: Endpoint
    provider: HttpProvider
    answers: asyncio.Queue[web.Response]
    """For the calls in the order in which they have come in."""
    open: list[asyncio.Task[ModelReply]] = field(default_factory=list)

    async def begin(self, count: int, *, is_watched: bool = False) -> list[bool]:
        """Begin so many calls; whether each is streamed."""
        before = len(self.endpoint.calls)
        request = asking()._replace(is_watched=is_watched)
        self.open += [asyncio.create_task(self.provider.complete(request)) for _ in range(count)]
        await self.endpoint.wait_for_calls(before + count)
        return are_streamed(self.endpoint)[before:]

    async def until_one_has_ended(self) -> None:
        ended, _ = await asyncio.wait(self.open, return_when=asyncio.FIRST_COMPLETED)
        assert len(ended) == 1
        self.open.remove(ended.pop())


@asynccontextmanager
async def held() -> AsyncIterator[Held]:
    answers: asyncio.Queue[web.Response] = asyncio.Queue()

    async def hold(_: Call) -> web.StreamResponse:
        return await answers.get()

    async with Endpoint(lambda _: hold) as endpoint, aclosing(chat(endpoint)) as provider:
        it = Held(endpoint, provider, answers)
        yield it
        for call in it.open:
            call.cancel()
        await asyncio.wait(it.open)


async def test_beyond_so_many_calls_that_nobody_watches_only_those_that_are_watched_are_streamed() -> None:
    async with held() as it:
        assert await it.begin(MOST) == [True] * MOST
        assert await it.begin(2) == [False, False]
        assert await it.begin(2, is_watched=True) == [True, True]
        it.answers.put_nowait(web.json_response(completion("done")))
        await it.until_one_has_ended()
        assert await it.begin(1) == [True]
        assert await it.begin(1) == [False]


async def test_calls_that_are_watched_are_not_counted() -> None:
    async with held() as it:
        assert await it.begin(2, is_watched=True) == [True, True]
        assert await it.begin(MOST) == [True] * MOST
        assert await it.begin(1) == [False]


async def test_a_call_that_has_failed_or_was_cancelled_makes_room_for_the_next() -> None:
    async with held() as it:
        await it.begin(MOST)
        it.answers.put_nowait(failing(503))
        await it.until_one_has_ended()
        assert await it.begin(1) == [True]
        it.open[0].cancel()
        await it.until_one_has_ended()
        assert await it.begin(1) == [True]
        assert await it.begin(1) == [False]


async def test_the_end_of_a_call_that_was_not_streamed_makes_no_room() -> None:
    async with held() as it:
        await it.begin(MOST)
        assert await it.begin(1) == [False]
        it.open[-1].cancel()
        await it.until_one_has_ended()
        assert await it.begin(1) == [False]


# None that hide what they used


def streaming_without_usage(call: Call) -> Answer:
    """An endpoint that passes `stream_options` over."""

    async def send(call: Call) -> web.StreamResponse:
        return await streams.send(call.request, streams.of_completion(completion("done"), {}))

    return send if "stream" in call.body else None


async def test_a_model_whose_streams_tell_no_usage_is_called_for_the_whole_which_tells_it() -> None:
    async with Endpoint(streaming_without_usage) as endpoint, aclosing(chat(endpoint)) as provider:
        requests = [asking(), asking(), asking()._replace(is_watched=True), asking(schema=True)]
        used = [(await ask(provider, request)).output_tokens for request in requests]
        await ask(provider, asking(model="another"))
    assert used == [0, 20, 20, 20]
    assert are_streamed(endpoint) == [True, False, False, False, True]


async def test_an_endpoint_that_refuses_to_tell_the_usage_of_streams_is_called_for_the_whole() -> None:
    script = refusing(400, "stream_options")
    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        used = [(await ask(provider)).output_tokens for _ in range(3)]
    assert used == [0, 20, 20]
    assert are_streamed(endpoint) == [True, True, False, False]
    assert ["stream_options" in call.body for call in endpoint.calls] == [True, False, False, False]


@pytest.mark.parametrize("make", [chat, messages])
async def test_a_model_that_tells_no_usage_either_way_is_streamed(make: Any) -> None:
    def script(call: Call) -> Answer:
        if make is chat:
            return {**completion("done"), "usage": {}}
        if "stream" not in call.body:
            return {**message("done"), "usage": {}}
        return send

    async def send(call: Call) -> web.StreamResponse:
        events = [event for event in streams.of_message(message("done")) if isinstance(event, dict)]
        for event in events:
            event.pop("usage", None)
            event.get("message", {}).pop("usage", None)
        return await streams.send(call.request, events)

    async with Endpoint(script) as endpoint, aclosing(make(endpoint)) as provider:
        for _ in range(4):
            assert (await ask(provider)).output_tokens == 0
    assert are_streamed(endpoint) == [True, False, True, True]


async def test_a_stream_that_broke_before_its_usage_came_says_nothing_of_the_next() -> None:
    script = breaking({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    async with Endpoint(lambda _: script) as endpoint, aclosing(chat(endpoint)) as provider:
        for _ in range(2):
            assert (await ask(provider)).output_tokens == 0
    assert are_streamed(endpoint) == [True, True]


async def test_a_stream_that_failed_says_nothing_of_the_next() -> None:
    async with Endpoint(lambda _: streaming()) as endpoint, aclosing(chat(endpoint)) as provider:
        for _ in range(2):
            with pytest.raises(ModelError):
                await ask(provider)
    assert are_streamed(endpoint) == [True, True]
