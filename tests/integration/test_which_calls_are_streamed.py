"""Which calls are streamed: the watched, so many others at once, and none that hide what they used.

None of that is for good.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from support import streams
from support.endpoint import Answer, Call, Endpoint, Script, completion, cut, cut_amid, failing, hang, message
from support.misbehaviour import breaking, refusing, streaming
from support.provider_calls import ask, chat, messages, model_request
from support.service import service

from orchestrator.core.replies import ModelReply
from orchestrator.errors import ModelError
from orchestrator.models.http import delivery
from orchestrator.models.http import endpoint as endpoint_module
from orchestrator.models.http.endpoint import HttpProvider
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

MAX_UNWATCHED = HttpProvider.most_unwatched_streams


def are_streamed(endpoint: Endpoint) -> list[bool]:
    return ["stream" in call.body for call in endpoint.calls]


# The limit of unwatched streams


@dataclass
class HeldCalls:
    """Calls to an endpoint that answers once the test provides the answer."""

    endpoint: Endpoint
    provider: HttpProvider
    answers: asyncio.Queue[web.Response]
    """For the calls in the order in which they have come in."""
    open: list[asyncio.Task[ModelReply]] = field(default_factory=list)

    async def start(self, count: int, **request_fields: bool) -> list[bool]:
        """Start so many calls; return whether each is streamed."""
        before = len(self.endpoint.calls)
        request = model_request()._replace(**request_fields)
        self.open += [asyncio.create_task(self.provider.complete(request)) for _ in range(count)]
        await self.endpoint.wait_for_calls(before + count)
        return are_streamed(self.endpoint)[before:]

    async def wait_for_one_end(self) -> None:
        ended, _ = await asyncio.wait(self.open, return_when=asyncio.FIRST_COMPLETED)
        assert len(ended) == 1
        self.open.remove(ended.pop())


@asynccontextmanager
async def held_calls(whole: Answer = None) -> AsyncIterator[HeldCalls]:
    """`whole`: what is answered at once to a call that is not streamed."""
    answers: asyncio.Queue[web.Response] = asyncio.Queue()

    async def hold(_: Call) -> web.StreamResponse:
        return await answers.get()

    def script(call: Call) -> Answer:
        return whole if whole is not None and "stream" not in call.body else hold

    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        held = HeldCalls(endpoint, provider, answers)
        yield held
        for call in held.open:
            call.cancel()
        await asyncio.wait(held.open)


async def test_beyond_the_limit_of_unwatched_streams_only_watched_calls_are_streamed() -> None:
    async with held_calls() as held:
        assert await held.start(MAX_UNWATCHED) == [True] * MAX_UNWATCHED
        assert await held.start(2) == [False, False]
        assert await held.start(2, is_watched=True) == [True, True]
        held.answers.put_nowait(web.json_response(completion("done")))
        await held.wait_for_one_end()
        assert await held.start(1) == [True]
        assert await held.start(1) == [False]


async def test_watched_calls_do_not_count_towards_the_limit() -> None:
    async with held_calls() as held:
        assert await held.start(2, is_watched=True) == [True, True]
        assert await held.start(MAX_UNWATCHED) == [True] * MAX_UNWATCHED
        assert await held.start(1) == [False]


async def test_a_failed_or_cancelled_call_frees_its_place() -> None:
    async with held_calls() as held:
        await held.start(MAX_UNWATCHED)
        held.answers.put_nowait(failing(503))
        await held.wait_for_one_end()
        assert await held.start(1) == [True]
        held.open[0].cancel()
        await held.wait_for_one_end()
        assert await held.start(1) == [True]
        assert await held.start(1) == [False]


async def test_the_end_of_a_call_that_was_not_streamed_frees_no_place() -> None:
    async with held_calls() as held:
        await held.start(MAX_UNWATCHED)
        assert await held.start(1) == [False]
        held.open[-1].cancel()
        await held.wait_for_one_end()
        assert await held.start(1) == [False]


# None that hide what they used


def streaming_without_usage(call: Call) -> Answer:
    """An endpoint that passes `stream_options` over."""

    async def send(call: Call) -> web.StreamResponse:
        return await streams.send(call.request, streams.completion_events(completion("done"), {}))

    return send if "stream" in call.body else None


async def test_a_model_whose_streams_omit_usage_is_called_without_streaming() -> None:
    async with Endpoint(streaming_without_usage) as endpoint, aclosing(chat(endpoint)) as provider:
        requests = [
            model_request(),
            model_request(),
            model_request()._replace(is_watched=True),
            model_request(schema=True),
        ]
        used = [(await ask(provider, request)).output_tokens for request in requests]
        await ask(provider, model_request(model="another"))
    assert used == [0, 20, 20, 20]
    assert are_streamed(endpoint) == [True, False, False, False, True]


async def test_an_endpoint_that_rejects_usage_in_streams_is_called_without_streaming() -> None:
    script = refusing(400, "stream_options")
    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        used = [(await ask(provider)).output_tokens for _ in range(3)]
    assert used == [0, 20, 20]
    assert are_streamed(endpoint) == [True, True, False, False]
    assert ["stream_options" in call.body for call in endpoint.calls] == [True, False, False, False]


@pytest.mark.parametrize("make", [chat, messages])
async def test_a_model_that_never_reports_usage_is_streamed(make: Any) -> None:
    def script(call: Call) -> Answer:
        if make is chat:
            return {**completion("done"), "usage": {}}
        if "stream" not in call.body:
            return {**message("done"), "usage": {}}
        return send

    async def send(call: Call) -> web.StreamResponse:
        events = [event for event in streams.message_events(message("done")) if isinstance(event, dict)]
        for event in events:
            event.pop("usage", None)
            event.get("message", {}).pop("usage", None)
        return await streams.send(call.request, events)

    async with Endpoint(script) as endpoint, aclosing(make(endpoint)) as provider:
        for _ in range(4):
            assert (await ask(provider)).output_tokens == 0
    assert are_streamed(endpoint) == [True, False, True, True]


async def test_a_stream_that_broke_before_its_usage_does_not_change_the_next_call() -> None:
    script = breaking({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    async with Endpoint(lambda _: script) as endpoint, aclosing(chat(endpoint)) as provider:
        for _ in range(2):
            assert (await ask(provider)).output_tokens == 0
    assert are_streamed(endpoint) == [True, True]


async def test_a_failed_stream_does_not_change_the_next_call() -> None:
    async with Endpoint(lambda _: streaming()) as endpoint, aclosing(chat(endpoint)) as provider:
        for _ in range(2):
            with pytest.raises(ModelError):
                await ask(provider)
    assert are_streamed(endpoint) == [True, True]


# What is learnt is not for good


def without_whole(death: Script) -> Script:
    """An endpoint that hides the usage of streams, behind a gateway that ends calls for the whole so."""
    return lambda call: streaming_without_usage(call) if "stream" in call.body else death(call)


def gateway_timeout(_: Call) -> Answer:
    return failing(524)


@pytest.mark.parametrize(
    "death",
    [
        gateway_timeout,
        lambda _: failing(504),
        lambda _: failing(502),
        lambda _: cut,
        lambda _: cut_amid,
        lambda _: web.Response(text="<html>timed out</html>"),
    ],
    ids=["524", "504", "502", "cut before", "cut amid", "no answer"],
)
async def test_a_model_whose_calls_without_streaming_fail_is_streamed_despite_its_hidden_usage(
    death: Script,
) -> None:
    async with Endpoint(without_whole(death)) as endpoint, aclosing(chat(endpoint)) as provider:
        await ask(provider)
        with pytest.raises(ModelError):
            await ask(provider)
        for _ in range(2):
            assert (await ask(provider)).text == "done"
    assert are_streamed(endpoint) == [True, False, True, True]


async def test_a_call_without_streaming_that_timed_out_is_streamed_the_next_time() -> None:
    async with Endpoint(without_whole(lambda _: hang)) as endpoint, aclosing(chat(endpoint)) as provider:
        await ask(provider)
        with pytest.raises(ModelError, match=r"0\.2 s"):
            await ask(provider, model_request(timeout_s=0.2))
        assert (await ask(provider)).text == "done"
    assert are_streamed(endpoint) == [True, False, True]


async def test_failures_without_streaming_are_remembered_by_kind_of_answer() -> None:
    def script(call: Call) -> Answer:
        if "stream" in call.body:
            return streaming_without_usage(call)
        return failing(524) if "response_format" in call.body else None

    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        await ask(provider)
        with pytest.raises(ModelError):
            await ask(provider, model_request(schema=True))
        assert [(await ask(provider, model_request(schema=it))).output_tokens for it in (True, False)] == [
            0,
            20,
        ]
    assert are_streamed(endpoint) == [True, False, True, False]


async def test_calls_without_streaming_are_tried_again_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Endpoint(without_whole(gateway_timeout)) as endpoint, aclosing(chat(endpoint)) as provider:
        await ask(provider)
        with pytest.raises(ModelError):
            await ask(provider)
        monkeypatch.setattr(delivery, "REMEMBERED_S", 0.0)
        with pytest.raises(ModelError):
            await ask(provider)
    assert are_streamed(endpoint) == [True, False, False]


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_an_overloaded_endpoint_does_not_change_the_mode(status: int) -> None:
    script = without_whole(lambda _: failing(status))
    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        await ask(provider)
        for _ in range(2):
            with pytest.raises(ModelError):
                await ask(provider)
    assert are_streamed(endpoint) == [True, False, False]


async def test_an_empty_paid_answer_does_not_change_the_mode() -> None:
    script = without_whole(lambda _: completion(""))
    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        await ask(provider)
        for _ in range(2):
            with pytest.raises(ModelError, match="empty"):
                await ask(provider)
    assert are_streamed(endpoint) == [True, False, False]


async def test_an_answer_that_is_streamed_unasked_is_parsed() -> None:
    async def stream(call: Call) -> web.StreamResponse:
        return await streams.send(call.request, streams.completion_events(completion("done"), {}))

    async with Endpoint(lambda _: stream) as endpoint, aclosing(chat(endpoint)) as provider:
        for _ in range(3):
            assert (await ask(provider)).text == "done"
    assert are_streamed(endpoint) == [True, False, True]


async def test_the_last_attempt_is_streamed_despite_its_hidden_usage() -> None:
    script = without_whole(gateway_timeout)
    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        for _ in range(2):
            assert (await ask(provider, model_request()._replace(is_last_attempt=True))).text == "done"
    assert are_streamed(endpoint) == [True, True]


async def test_beyond_the_limit_a_call_is_streamed_where_calls_without_streaming_fail() -> None:
    async with held_calls(whole=failing(524)) as held:
        assert await held.start(MAX_UNWATCHED) == [True] * MAX_UNWATCHED
        with pytest.raises(ModelError):
            await held.provider.complete(model_request())
        assert await held.start(2) == [True, True]


async def test_beyond_the_limit_the_last_attempt_is_streamed() -> None:
    async with held_calls() as held:
        assert await held.start(MAX_UNWATCHED) == [True] * MAX_UNWATCHED
        assert await held.start(1, is_last_attempt=True) == [True]
        assert await held.start(1) == [False]


async def test_a_model_that_only_streams_is_streamed_without_counting_an_attempt() -> None:
    refusal = "This model only supports stream mode, please enable the stream parameter"
    script = without_whole(lambda _: failing(400, refusal))
    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        for _ in range(3):
            assert (await ask(provider)).text == "done"
    assert are_streamed(endpoint) == [True, False, True, True]


async def test_an_endpoint_that_refused_to_stream_is_asked_again_when_calls_without_streaming_fail() -> None:
    def script(call: Call) -> Answer:
        if "stream" in call.body:
            return failing(400, "'stream' is not supported") if len(endpoint.calls) == 1 else None
        return None if len(endpoint.calls) == 2 else failing(524)

    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        await ask(provider)
        with pytest.raises(ModelError):
            await ask(provider)
        await ask(provider)
    assert are_streamed(endpoint) == [True, False, False, True]


async def test_an_endpoint_that_refuses_both_modes_is_given_up() -> None:
    def script(call: Call) -> Answer:
        return failing(400, "'stream' must be set" if "stream" not in call.body else "'stream' is unknown")

    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        with pytest.raises(ModelError, match="stream") as caught:
            await ask(provider)
    assert (caught.value.reason, caught.value.retryable) == ("REQUEST_REJECTED", False)


async def test_a_model_whose_streams_have_no_end_is_called_without_streaming() -> None:
    script = streaming()
    async with (
        Endpoint(lambda call: script if "stream" in call.body else None) as endpoint,
        aclosing(chat(endpoint)) as provider,
    ):
        for _ in range(2):
            with pytest.raises(ModelError, match="ended the stream"):
                await ask(provider)
        for _ in range(2):
            assert (await ask(provider)).text == "The output of ."
    assert are_streamed(endpoint) == [True, True, False, False]


async def test_where_calls_fail_in_both_modes_the_modes_alternate() -> None:
    script = streaming()
    async with (
        Endpoint(lambda call: script if "stream" in call.body else failing(524)) as endpoint,
        aclosing(chat(endpoint)) as provider,
    ):
        for _ in range(6):
            with pytest.raises(ModelError):
                await ask(provider)
    assert are_streamed(endpoint) == [True, True, False, True, False, True]


async def test_a_rejected_parameter_is_tried_again_after_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_DIALECT_S", 0.0)
    async with Endpoint(refusing(400, "stream")) as endpoint, aclosing(chat(endpoint)) as provider:
        for _ in range(2):
            await ask(provider)
    assert are_streamed(endpoint) == [True, False, True, False]


@pytest.mark.parametrize("max_attempts", [1, 2])
async def test_a_gateway_that_ends_long_calls_does_not_keep_an_instance_from_completing(
    tmp_path: Path, max_attempts: int
) -> None:
    script = without_whole(gateway_timeout)
    retry = instance_pb2.RetryPolicy(max_attempts=max_attempts)
    retry.initial_delay.nanos = 1_000_000
    config = instance_pb2.InstanceConfig(
        retry=retry, subtasks=[instance_pb2.Subtask(id="a", instructions="x")]
    )
    async with (
        Endpoint(script) as endpoint,
        aclosing(chat(endpoint)) as provider,
        service(tmp_path / "log.db", provider) as running,
    ):
        for name in ("first", "second"):
            await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id=name, config=config))
            assert (await running.ended(name)).instance.state == instance_pb2.STATE_COMPLETE
    assert all(are_streamed(endpoint)) == (max_attempts == 1)
