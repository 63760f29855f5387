"""The OpenAI-compatible provider against a real HTTP endpoint."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from support import provider_calls as support
from support import streams
from support.endpoint import Answer, Call, Endpoint, completion, failing, hang, without_json_schema
from support.misbehaviour import refusing
from support.provider_calls import KEY, SCHEMA, AnswerMode, both_modes, chat, model_request

from orchestrator.core.prompts import Message, Prompt
from orchestrator.errors import ModelError
from orchestrator.models.base import ModelRequest
from orchestrator.models.http import client
from orchestrator.models.http.chat_completions import ChatCompletions

USAGE = {"stream_options": {"include_usage": True}}


async def ask(
    answer: Answer | Callable[[Call], Answer],
    request: ModelRequest | None = None,
    mode: AnswerMode = "streamed",
) -> str:
    script = answer if callable(answer) else lambda _: answer
    return (await support.reply(chat, script, request, mode=mode)).text


async def failure(
    answer: Answer | Callable[[Call], Answer],
    request: ModelRequest | None = None,
    mode: AnswerMode = "streamed",
) -> ModelError:
    script = answer if callable(answer) else lambda _: answer
    return await support.failure(chat, script, request, mode=mode)


class provider_for(ChatCompletions):  # noqa: N801  reads as what it is for
    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__("openai", endpoint.url, api_key=KEY, key_variable="OPENAI_API_KEY")

    async def __aenter__(self) -> ChatCompletions:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint() as endpoint:
        yield endpoint


async def test_a_call_sends_model_messages_limit_and_key_and_returns_text_and_usage(
    endpoint: Endpoint,
) -> None:
    async with provider_for(endpoint) as provider:
        reply = await provider.complete(model_request())
    assert (reply.text, reply.input_tokens, reply.output_tokens) == ("The output of .", 100, 20)
    [call] = endpoint.calls
    assert call.headers["Authorization"] == f"Bearer {KEY}"
    assert call.body == {
        "model": "m",
        "max_tokens": 500,
        "messages": [{"role": "system", "content": "You work."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_only_a_prompt_with_a_schema_requests_a_format(endpoint: Endpoint) -> None:
    async with provider_for(endpoint) as provider:
        await provider.complete(model_request())
        await provider.complete(model_request(schema=True))
    plain, planned = endpoint.calls
    assert "response_format" not in plain.body
    assert planned.body["response_format"]["json_schema"]["schema"] == SCHEMA


async def test_a_prompt_may_lower_the_limit_and_sets_the_sampling(endpoint: Endpoint) -> None:
    async with provider_for(endpoint) as provider:
        await provider.complete(model_request(max_output_tokens=9, sampling={"temperature": 0.2}))
        await provider.complete(model_request(max_output_tokens=900))
    assert [call.body["max_tokens"] for call in endpoint.calls] == [9, 500]
    assert endpoint.calls[0].body["temperature"] == 0.2


async def test_an_endpoint_without_json_schema_gets_json_object_and_that_is_remembered() -> None:
    async with Endpoint(without_json_schema) as endpoint, provider_for(endpoint) as provider:
        await provider.complete(model_request(schema=True))
        await provider.complete(model_request(schema=True))
        await provider.complete(model_request(schema=True, model="another"))
    formats = [call.body["response_format"]["type"] for call in endpoint.calls]
    assert formats == ["json_schema", "json_object", "json_object", "json_schema", "json_object"]


@pytest.mark.parametrize("status", [400, 422])
async def test_an_endpoint_without_any_format_gets_only_the_prompt(status: int) -> None:
    def script(call: Call) -> Answer:
        return failing(status, "unknown field response_format") if "response_format" in call.body else "{}"

    async with Endpoint(script) as endpoint, provider_for(endpoint) as provider:
        assert (await provider.complete(model_request(schema=True))).text == "{}"
        assert len(endpoint.calls) == 3


async def test_a_model_that_accepts_only_the_newer_name_of_the_limit_gets_it() -> None:
    def script(call: Call) -> Answer:
        if "max_tokens" in call.body:
            return failing(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return str(call.body["max_completion_tokens"])

    assert await ask(script) == "500"


async def test_an_unrelated_rejection_is_not_retried() -> None:
    async with Endpoint(lambda _: failing(400, "too long")) as endpoint, provider_for(endpoint) as provider:
        with pytest.raises(ModelError, match="too long") as caught:
            await provider.complete(model_request(schema=True))
        assert (caught.value.reason, caught.value.retryable) == ("REQUEST_REJECTED", False)
        assert len(endpoint.calls) == 1


async def test_a_wrong_key_names_the_variable_to_set() -> None:
    assert "OPENAI_API_KEY" in str(await failure(lambda _: failing(401)))


async def test_an_empty_account_is_not_retried() -> None:
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    error = await failure(lambda _: web.json_response(body, status=429))
    assert (error.reason, error.retryable) == ("RATE_LIMITED", False)


@both_modes
@pytest.mark.parametrize(
    "answer",
    [
        completion(None),
        completion([]),
        completion("", tool_calls=[{"id": "1"}]),
        completion("", reasoning_content="thinking aloud"),
    ],
    ids=str,
)
async def test_an_answer_without_text_is_invalid_and_retried(answer: Answer, mode: AnswerMode) -> None:
    error = await failure(answer, mode=mode)
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)


@pytest.mark.parametrize("choices", [[], [{"message": None}], None])
async def test_a_completion_without_a_choice_is_invalid(choices: Any) -> None:
    assert (await failure(lambda _: web.json_response({"choices": choices}))).reason == "OUTPUT_INVALID"


async def test_a_choice_with_an_error_is_that_failure() -> None:
    choice = {
        "message": {"content": "half"},
        "finish_reason": "error",
        "error": {"code": 502, "message": "x"},
    }
    assert (await failure(lambda _: web.json_response({"choices": [choice]}))).reason == "OVERLOADED"


async def test_a_failed_answer_reports_its_usage() -> None:
    error = await failure(completion(""))
    assert (error.input_tokens, error.output_tokens) == (100, 20)


@pytest.mark.parametrize(
    "answer",
    [
        completion(None, refusal="I cannot help with that"),
        completion("", "content_filter"),
    ],
    ids=str,
)
@both_modes
async def test_a_refusal_is_not_retried(answer: Answer, mode: AnswerMode) -> None:
    error = await failure(answer, mode=mode)
    assert (error.reason, error.retryable) == ("MODEL_REFUSED", False)


async def test_a_prompt_stopped_by_a_filter_is_not_retried() -> None:
    body = {"error": {"message": "filtered", "code": "content_filter"}}
    error = await failure(lambda _: web.json_response(body, status=400))
    assert (error.reason, error.retryable) == ("MODEL_REFUSED", False)


@pytest.mark.parametrize(
    ("content", "message", "expected"),
    [
        ('{"a": 1}', {}, '{"a": 1}'),
        ({"a": 1}, {}, '{"a": 1}'),
        ([{"type": "text", "text": '{"a"'}, {"type": "text", "text": ": 1}"}], {}, '{"a": 1}'),
        (["{", "}"], {}, "{}"),
        ("", {"reasoning_content": '{"a": 1}'}, '{"a": 1}'),
        (None, {"reasoning": '{"a": 1}'}, '{"a": 1}'),
        ('<think>{"b": 2}?</think>\n{"a": 1}', {}, '{"a": 1}'),
    ],
)
@both_modes
async def test_json_is_found_wherever_an_endpoint_puts_it(
    content: Any, message: dict[str, str], expected: str, mode: AnswerMode
) -> None:
    assert await ask(completion(content, **message), model_request(schema=True), mode=mode) == expected


@both_modes
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("<think>a <thin one</think>\n\n the answer", "the answer"),
        ("<thinking>a</thinking>the answer", "the answer"),
        ("Let me think.\n</think>\n\nthe answer", "the answer"),
        (" <thinker> is no tag", " <thinker> is no tag"),
        ("<", "<"),
        ("a <think>b</think> c", "a <think>b</think> c"),
    ],
)
async def test_thoughts_are_not_part_of_the_text(content: str, expected: str, mode: AnswerMode) -> None:
    assert await ask(completion(content), mode=mode) == expected


@pytest.mark.parametrize(
    "events",
    [
        [
            {"choices": [{"delta": {"role": "assistant", "content": "All "}}]},
            streams.chunk({"content": "of it"}, "stop"),
        ],
        [{"choices": [{"message": {"content": "All of it"}, "finish_reason": "stop"}]}],
        [{"choices": [{"delta": {}, "message": {"content": "All of it"}, "finish_reason": "stop"}]}],
        [
            {"choices": [{"delta": {"content": "All "}, "message": {"content": "All "}}]},
            {"choices": [{"delta": {"content": "of it"}, "message": {"content": "All of it"}}]},
            {"choices": [{"delta": {}, "message": {"content": "All of it"}, "finish_reason": "stop"}]},
        ],
        [streams.chunk({"content": [{"type": "text", "text": "All of it"}]}, {"type": "stop"})],
    ],
    ids=["with the role", "a message", "an empty delta", "both", "parts"],
)
async def test_text_counts_once_wherever_it_is_in_a_chunk(events: list[streams.Event]) -> None:
    async def send(call: Call) -> web.StreamResponse:
        return await streams.send(call.request, [*events, "[DONE]"])

    assert await ask(lambda _: send) == "All of it"


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 20}},
        {"choices": [], "usage": {"input_tokens": 100, "output_tokens": 20}},
        {"choices": [], "x_groq": {"usage": {"prompt_tokens": 100, "completion_tokens": 20}}},
        {"choices": [{"delta": {}, "usage": {"prompt_tokens": 100, "completion_tokens": 20}}]},
    ],
    ids=["usual", "other names", "x_groq", "in the choice"],
)
async def test_usage_counts_wherever_it_is_in_a_chunk(event: dict[str, Any]) -> None:
    async def send(call: Call) -> web.StreamResponse:
        empty = {"choices": [], "usage": None}
        events = [streams.chunk({"content": "All of it"}), event, streams.chunk({}, "stop"), empty, "[DONE]"]
        return await streams.send(call.request, events)

    reply = await support.reply(chat, lambda _: send)
    assert (reply.input_tokens, reply.output_tokens) == (100, 20)


async def test_a_separate_thoughts_field_is_the_plan_only_where_it_is_nothing_but_json() -> None:
    answer = completion("", reasoning_content='Perhaps {"summary": "draft"}? No.')
    error = await failure(answer, model_request(schema=True))
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)


async def test_text_is_emitted_as_it_arrives() -> None:
    async def one_at_a_time(call: Call) -> web.StreamResponse:
        *events, _ = streams.completion_events(completion("one two three"), call.body)
        response = await streams.start_response(call.request)
        for event in events:
            await response.write(streams.encode(event))
            if "one t" in str(event):
                await has_text.wait()
        return response

    has_text = asyncio.Event()
    emitted: list[str] = []

    def on_text(piece: str) -> None:
        emitted.append(piece)
        has_text.set()

    async with Endpoint(lambda _: one_at_a_time) as endpoint, provider_for(endpoint) as provider:
        reply = await provider.complete(model_request(), on_text)
    assert (emitted[0], "".join(emitted)) == ("one t", "one two three")
    assert (reply.text, reply.output_tokens) == ("one two three", 20)


async def test_the_last_event_ends_a_call_though_the_connection_stays_open() -> None:
    async def hold_open(call: Call) -> web.StreamResponse:
        await streams.send(call.request, streams.completion_events(completion("all of it"), call.body))
        return await hang(call)

    async with asyncio.timeout(10):
        assert await ask(lambda _: hold_open) == "all of it"


async def test_an_endpoint_that_cannot_stream_json_streams_text_with_the_schema_in_the_prompt() -> None:
    def script(call: Call) -> Answer:
        if "response_format" in call.body and "stream" in call.body:
            return failing(400, "response_format json_schema does not support streaming")
        return "{}"

    async with Endpoint(script) as endpoint, provider_for(endpoint) as provider:
        for schema in (True, True, False):
            await support.ask(provider, model_request(schema=schema))
    asked = [("response_format" in call.body, "stream" in call.body) for call in endpoint.calls]
    assert asked == [(True, True), (True, False), (True, False), (False, True)]


async def test_a_retry_after_in_milliseconds_is_parsed() -> None:
    error = await failure(lambda _: failing(429, Retry_After_Ms="250", Retry_After="1"))
    assert error.retry_after_s == 0.25


async def test_a_text_with_a_lone_surrogate_can_be_sent() -> None:
    request = ModelRequest("m", Prompt("work", (Message("user", "a\ud800b"),)), 9, 20)
    assert await ask(lambda call: call.prompt_text, request) == "a?b"


async def test_a_key_appears_in_no_message_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for status in (400, 401, 404, 429, 500):
        error = await failure(failing(status, f"Incorrect key {KEY}: " + "x" * 5000))
        assert KEY not in str(error)
        assert len(str(error)) < 600
    await ask(without_json_schema, model_request(schema=True))
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    "response", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nabc"]
)
async def test_an_answer_that_is_not_http_is_a_failed_connection(response: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        provider = ChatCompletions("openai", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        with pytest.raises(ModelError) as caught:
            await provider.complete(model_request())
        await provider.aclose()
    assert (caught.value.reason, caught.value.retryable) == ("CONNECTION_FAILED", True)


def _descendants(kind: type[BaseException]) -> set[type[BaseException]]:
    return {kind}.union(*(_descendants(child) for child in kind.__subclasses__()))


def _errors_of(kind: type[BaseException], library: str) -> list[type[BaseException]]:
    return sorted((found for found in _descendants(kind) if found.__module__.startswith(library)), key=str)


BELOW = _errors_of(aiohttp.ClientError, "aiohttp")
ABOVE = [*_errors_of(httpx.HTTPError, "httpx"), *_errors_of(httpx.StreamError, "httpx"), httpx.InvalidURL]


@pytest.mark.parametrize("kind", [*BELOW, *ABOVE, TimeoutError, ConnectionResetError, OSError])
def test_every_error_of_the_http_libraries_becomes_a_model_error(kind: type[BaseException]) -> None:
    assert len(BELOW) > 20
    assert len(ABOVE) > 20
    error = kind.__new__(kind)
    error.__dict__.update(_conn_key=None, _os_error=OSError("broken"))
    with pytest.raises(ModelError), client.mapped_errors("host", 1):
        raise error


def test_a_refused_connection_is_not_reported_as_a_timeout() -> None:
    refused = aiohttp.ClientConnectorError(None, OSError(111, "Connection refused"))  # type: ignore[arg-type]
    error = httpx.ConnectTimeout("")
    error.__cause__ = refused
    with (
        pytest.raises(ModelError, match="could not connect to host: Connection refused"),
        client.mapped_errors("host", 1),
    ):
        raise error


async def test_cancelling_a_call_closes_its_connection() -> None:
    async with Endpoint(lambda _: hang) as endpoint, provider_for(endpoint) as provider:
        call = asyncio.create_task(provider.complete(model_request()))
        await endpoint.wait_for_calls(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(1):
            await endpoint.disconnected.wait()


async def test_hundreds_of_calls_are_open_at_once() -> None:
    everyone_there = asyncio.Event()

    async def wait_for_all(_: Call) -> web.StreamResponse:
        if endpoint.open_calls == 300:
            everyone_there.set()
        await everyone_there.wait()
        return web.json_response(completion("done"))

    async with Endpoint(lambda _: wait_for_all) as endpoint, provider_for(endpoint) as provider:
        await asyncio.gather(*(provider.complete(model_request()) for _ in range(300)))
        assert endpoint.max_open_calls == 300


async def test_connections_are_reused_where_nothing_is_streamed() -> None:
    async with Endpoint(refusing(400, "stream")) as endpoint, provider_for(endpoint) as provider:
        for _ in range(4):
            await provider.complete(model_request())
    whole = [call for call in endpoint.calls if "stream" not in call.body]
    assert len(whole) == 4
    assert len(peers(whole)) == 1


async def test_connections_over_tls_are_reused_though_a_stream_ends_after_its_last_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def end_late(call: Call) -> web.StreamResponse:
        response = await streams.send(
            call.request, streams.completion_events(completion("all of it"), call.body)
        )
        await asyncio.sleep(0.02)
        return response

    monkeypatch.setattr(client, "_END_S", 20.0)  # a slow machine ends it later
    async with Endpoint(lambda _: end_late) as endpoint, provider_for(endpoint) as provider:
        provider._client._scheme = "https"  # as far as keeping connections goes
        for _ in range(3):
            assert (await support.ask(provider)).text == "all of it"
    assert len(endpoint.calls) == 3
    assert len(peers(endpoint.calls)) == 1


def peers(calls: list[Call]) -> set[str]:
    """The addresses that they came from: one for each connection."""
    return {call.peer for call in calls}


async def test_a_server_that_hangs_up_after_a_stream_without_notice_breaks_no_call() -> None:
    async def stream_and_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        kept = b"Connection: close" if b"connection: close" in asked.lower() else b"Keep-Alive: timeout=5"
        events = b"".join(map(streams.encode, streams.completion_events(completion("all of it"), USAGE)))
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + kept
        writer.write(head + b"\r\nContent-Length: %d\r\n\r\n" % len(events) + events)
        writer.close()

    server = await asyncio.start_server(stream_and_hang_up, "127.0.0.1", 0)
    async with server:
        provider = ChatCompletions("llama", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        for _ in range(20):
            assert (await support.ask(provider)).text == "all of it"
        await provider.aclose()


async def test_a_system_proxy_is_not_used_for_loopback(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with provider_for(endpoint) as provider:
        assert (await provider.complete(model_request())).text


async def test_a_system_proxy_is_used_for_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0])
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    asked: list[bytes] = []
    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    async with server:
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        provider = ChatCompletions("openai", "http://models.invalid/v1")
        with pytest.raises(ModelError):
            await provider.complete(model_request())
        await provider.aclose()
    assert asked == [b"POST http://models.invalid/v1/chat/completions HTTP/1.1"]


def chunks(*events: streams.Event) -> Callable[[Call], Answer]:
    """An endpoint that streams these, and `[DONE]`."""

    async def send(call: Call) -> web.StreamResponse:
        return await streams.send(call.request, [*events, "[DONE]"])

    return lambda _: send


@pytest.mark.parametrize(
    "last",
    [
        {"choices": [], "usage": {"prompt_tokens": 100.0, "completion_tokens": 20.0}},
        {"choices": [], "usage": {"prompt_tokens": "100", "completion_tokens": "20"}},
        {"choices": [], "usage": {"prompt_tokens": 100, "total_tokens": 120}},
        {"choices": [{"delta": {"usage": {"prompt_tokens": 100, "completion_tokens": 20}}}]},
    ],
    ids=["floats", "texts", "total", "in-delta"],
)
async def test_usage_counts_in_every_notation(last: dict[str, Any]) -> None:
    stream = chunks(streams.chunk({"content": "all"}), streams.chunk({}, "stop"), last)
    answer = await support.reply(chat, stream)
    assert (answer.input_tokens, answer.output_tokens) == (100, 20)


async def test_usage_is_not_reset_by_later_zeros() -> None:
    with_usage = {
        **streams.chunk({"content": "all"}),
        "usage": {"prompt_tokens": 100, "completion_tokens": 20},
    }
    zeros = {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}
    answer = await support.reply(chat, chunks(with_usage, streams.chunk({}, "stop"), zeros))
    assert (answer.input_tokens, answer.output_tokens) == (100, 20)


async def test_a_stop_reason_in_the_same_chunk_as_text_counts() -> None:
    error = await support.failure(chat, chunks(streams.chunk({"content": "half", "finish_reason": "length"})))
    assert error.reason == "OUTPUT_TRUNCATED"


@pytest.mark.parametrize("sign", ["ping", "null", "keep-alive"])
async def test_a_heartbeat_may_be_the_data_of_an_event(sign: str) -> None:
    assert await ask(chunks(streams.chunk({"content": "all"}), sign, streams.chunk({}, "stop"))) == "all"


@pytest.mark.parametrize(
    "event",
    [{"detail": "it broke"}, {"message": "it broke", "code": 500}, {"status": 500, "msg": "it broke"}],
)
async def test_an_event_with_an_error_is_a_failure_though_the_last_event_follows(
    event: dict[str, Any],
) -> None:
    error = await support.failure(chat, chunks(streams.chunk({"content": "half"}), event))
    assert (error.reason, error.retryable) == ("OVERLOADED", True)
    assert "it broke" in str(error)


@pytest.mark.parametrize("word", ["in_progress", "FINISH_REASON_UNSPECIFIED", "length"])
async def test_a_finish_reason_followed_by_more_text_is_not_the_end(word: str) -> None:
    pieces = [streams.chunk({"content": text}, word) for text in ("one ", "two")]
    assert await ask(chunks(*pieces, streams.chunk({}, "stop"))) == "one two"
    assert (await support.failure(chat, chunks(*pieces))).reason in ("OUTPUT_INCOMPLETE", "OUTPUT_TRUNCATED")


@pytest.mark.parametrize("kind", ["thinking", "reasoning", "thought"])
async def test_content_parts_that_are_thoughts_are_not_part_of_the_answer(kind: str) -> None:
    parts = [{"type": kind, "text": "hm"}, {"type": "text", "text": "Four"}]
    assert await ask(chunks(streams.chunk({"content": parts}, "stop"))) == "Four"
