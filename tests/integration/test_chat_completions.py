"""The OpenAI-compatible provider against a real HTTP endpoint."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from support.endpoint import (
    Answer,
    Call,
    Endpoint,
    completion,
    cut,
    cut_amid,
    failing,
    fenced,
    hang,
    without_json_schema,
)

from orchestrator.core.prompts import Message, Prompt
from orchestrator.errors import ModelError, SettingsError
from orchestrator.models import http
from orchestrator.models.base import ModelRequest
from orchestrator.models.chat_completions import MAX_RETRY_AFTER_S, ChatCompletions
from orchestrator.models.providers import from_environment

KEY = "sk-very-secret"
SCHEMA = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
HI = (Message("system", "You work."), Message("user", "Hi"))


def asking(*, schema: bool = False, model: str = "m", timeout_s: float = 20, **prompt: Any) -> ModelRequest:
    role = "planning" if schema else "work"
    asked = Prompt(role, HI, schema=SCHEMA if schema else None, **prompt)
    return ModelRequest(model, asked, max_output_tokens=500, timeout_s=timeout_s)


async def ask(answer: Answer | Callable[[Call], Answer], request: ModelRequest | None = None) -> str:
    script = answer if callable(answer) and answer not in (cut, cut_amid, hang) else lambda _: answer
    async with Endpoint(script) as endpoint, provider_for(endpoint) as provider:
        return (await provider.complete(request or asking())).text


async def failure(
    answer: Answer | Callable[[Call], Answer], request: ModelRequest | None = None
) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await ask(answer, request)
    return caught.value


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


async def test_a_call_sends_model_messages_limit_and_key_and_gives_text_and_usage(endpoint: Endpoint) -> None:
    async with provider_for(endpoint) as provider:
        reply = await provider.complete(asking())
    assert (reply.text, reply.input_tokens, reply.output_tokens) == ("The output of .", 100, 20)
    [call] = endpoint.calls
    assert call.headers["Authorization"] == f"Bearer {KEY}"
    assert call.body == {
        "model": "m",
        "max_tokens": 500,
        "messages": [{"role": "system", "content": "You work."}, {"role": "user", "content": "Hi"}],
    }


async def test_only_a_prompt_with_a_schema_asks_for_a_format(endpoint: Endpoint) -> None:
    async with provider_for(endpoint) as provider:
        await provider.complete(asking())
        await provider.complete(asking(schema=True))
    plain, planned = endpoint.calls
    assert "response_format" not in plain.body
    assert planned.body["response_format"]["json_schema"]["schema"] == SCHEMA


async def test_a_prompt_may_lower_the_limit_and_sets_the_sampling(endpoint: Endpoint) -> None:
    async with provider_for(endpoint) as provider:
        await provider.complete(asking(max_output_tokens=9, sampling={"temperature": 0.2}))
        await provider.complete(asking(max_output_tokens=900))
    assert [call.body["max_tokens"] for call in endpoint.calls] == [9, 500]
    assert endpoint.calls[0].body["temperature"] == 0.2


async def test_an_endpoint_without_json_schema_is_asked_for_a_json_object_and_that_is_remembered() -> None:
    async with Endpoint(without_json_schema) as endpoint, provider_for(endpoint) as provider:
        await provider.complete(asking(schema=True))
        await provider.complete(asking(schema=True))
        await provider.complete(asking(schema=True, model="another"))
    formats = [call.body["response_format"]["type"] for call in endpoint.calls]
    assert formats == ["json_schema", "json_object", "json_object", "json_schema", "json_object"]


@pytest.mark.parametrize("status", [400, 422])
async def test_an_endpoint_without_any_format_is_asked_by_the_prompt_alone(status: int) -> None:
    def script(call: Call) -> Answer:
        return failing(status, "unknown field response_format") if "response_format" in call.body else "{}"

    async with Endpoint(script) as endpoint, provider_for(endpoint) as provider:
        assert (await provider.complete(asking(schema=True))).text == "{}"
        assert len(endpoint.calls) == 3


async def test_a_model_that_knows_the_limit_by_its_newer_name_gets_it() -> None:
    def script(call: Call) -> Answer:
        if "max_tokens" in call.body:
            return failing(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return str(call.body["max_completion_tokens"])

    assert await ask(script) == "500"


async def test_a_refusal_about_another_thing_is_not_asked_again() -> None:
    async with Endpoint(lambda _: failing(400, "too long")) as endpoint, provider_for(endpoint) as provider:
        with pytest.raises(ModelError, match="too long") as caught:
            await provider.complete(asking(schema=True))
        assert (caught.value.reason, caught.value.retryable) == ("REQUEST_REJECTED", False)
        assert len(endpoint.calls) == 1


@pytest.mark.parametrize(
    ("status", "reason", "retryable"),
    [
        (301, "REQUEST_REJECTED", False),
        (400, "REQUEST_REJECTED", False),
        (401, "MODEL_UNAUTHENTICATED", False),
        (402, "REQUEST_REJECTED", False),
        (403, "MODEL_UNAUTHENTICATED", False),
        (404, "MODEL_NOT_FOUND", False),
        (408, "OVERLOADED", True),
        (409, "OVERLOADED", True),
        (413, "REQUEST_REJECTED", False),
        (425, "OVERLOADED", True),
        (429, "RATE_LIMITED", True),
        (500, "OVERLOADED", True),
        (503, "OVERLOADED", True),
        (529, "OVERLOADED", True),
    ],
)
async def test_a_status_says_whether_trying_again_can_help(status: int, reason: str, retryable: bool) -> None:
    error = await failure(failing(status, "what went wrong"))
    assert (error.reason, error.retryable) == (reason, retryable)
    assert "what went wrong" in str(error)


async def test_a_wrong_key_names_the_variable_to_set() -> None:
    assert "OPENAI_API_KEY" in str(await failure(failing(401)))


async def test_an_empty_account_is_not_tried_again() -> None:
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    error = await failure(web.json_response(body, status=429))
    assert (error.reason, error.retryable) == ("RATE_LIMITED", False)


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({"Retry_After": "7"}, 7),
        ({"Retry_After": "0.5"}, 0.5),
        ({"Retry_After_Ms": "250", "Retry_After": "1"}, 0.25),
        ({"Retry_After": "99999999"}, MAX_RETRY_AFTER_S),
        ({"Retry_After": "soon"}, None),
        ({"Retry_After": "-1"}, None),
        ({}, None),
    ],
)
async def test_retry_after_is_read_as_seconds_and_capped(
    headers: dict[str, str], expected_s: float | None
) -> None:
    assert (await failure(failing(429, **headers))).retry_after_s == expected_s


@pytest.mark.parametrize(("offset_s", "expected_s"), [(600, 600), (-600, 0), (10**9, MAX_RETRY_AFTER_S)])
async def test_retry_after_is_read_as_a_date_and_capped(offset_s: float, expected_s: float) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=offset_s), usegmt=True)
    error = await failure(failing(429, Retry_After=date))
    assert error.retry_after_s == pytest.approx(expected_s, abs=30)


async def test_a_date_is_measured_by_the_endpoints_own_clock() -> None:
    headers = {"Date": "Mon, 01 Jan 2001 00:00:00 GMT", "Retry_After": "Mon, 01 Jan 2001 00:00:09 GMT"}
    assert (await failure(failing(503, **headers))).retry_after_s == 9


@pytest.mark.parametrize(
    "answer",
    [
        web.json_response({"error": {"message": "upstream broke"}}),
        web.Response(body=b"<html>upstream broke</html>"),
        web.Response(body=b"[" * 200_000),
        web.Response(body=b"\xff\xfe"),
        web.json_response([]),
        web.json_response({}),
        web.json_response({"choices": []}),
        web.json_response({"choices": [{"message": None}]}),
        completion(""),
        completion(None),
        completion("  \n"),
        completion([]),
        completion("", tool_calls=[{"id": "1"}]),
        completion("", reasoning_content="thinking aloud"),
    ],
    ids=str,
)
async def test_an_answer_without_text_is_invalid_and_tried_again(answer: Answer) -> None:
    error = await failure(lambda _: answer if isinstance(answer, dict) else _copy(answer))
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)


def _copy(response: Any) -> web.Response:
    return web.Response(body=response.body, content_type="application/json")


async def test_a_failed_answer_tells_what_it_used() -> None:
    error = await failure(completion(""))
    assert (error.input_tokens, error.output_tokens) == (100, 20)


async def test_an_answer_cut_at_the_limit_is_truncated_unless_the_prompt_allows_it() -> None:
    error = await failure(completion("half an ans", "length"))
    assert (error.reason, error.retryable, error.output_tokens) == ("OUTPUT_TRUNCATED", True, 20)
    assert "500" in str(error)
    assert await ask(completion("half an ans", "length"), asking(may_be_cut=True)) == "half an ans"


@pytest.mark.parametrize(
    "answer",
    [
        completion(None, refusal="I cannot help with that"),
        completion("", "content_filter"),
        web.json_response({"error": {"message": "filtered", "code": "content_filter"}}, status=400),
    ],
    ids=str,
)
async def test_a_refusal_is_not_tried_again(answer: Answer) -> None:
    error = await failure(answer)
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
async def test_json_is_found_wherever_an_endpoint_puts_it(
    content: Any, message: dict[str, str], expected: str
) -> None:
    assert await ask(completion(content, **message), asking(schema=True)) == expected


async def test_prose_around_the_json_reaches_the_planner_as_it_is() -> None:
    assert await ask(fenced("{}"), asking(schema=True)) == fenced("{}")


async def test_a_text_with_a_lone_surrogate_can_be_sent() -> None:
    request = ModelRequest("m", Prompt("work", (Message("user", "a\ud800b"),)), 9, 20)
    assert await ask(lambda call: call.told, request) == "a?b"


async def test_a_key_is_in_no_message_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for status in (400, 401, 404, 429, 500):
        error = await failure(failing(status, f"Incorrect key {KEY}: " + "x" * 5000))
        assert KEY not in str(error)
        assert len(str(error)) < 600
    await ask(without_json_schema, asking(schema=True))
    assert KEY not in caplog.text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(cut, "CONNECTION_FAILED"), (cut_amid, "CONNECTION_FAILED"), (hang, "TIMEOUT")],
)
async def test_a_connection_that_breaks_or_stalls_is_tried_again(answer: Answer, reason: str) -> None:
    error = await failure(answer, asking(timeout_s=0.2 if answer is hang else 20))
    assert (error.reason, error.retryable) == (reason, True)


@pytest.mark.parametrize(
    "said", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nabc"]
)
async def test_what_is_not_http_is_a_failed_connection(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        provider = ChatCompletions("openai", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        with pytest.raises(ModelError) as caught:
            await provider.complete(asking())
        await provider.aclose()
    assert (caught.value.reason, caught.value.retryable) == ("CONNECTION_FAILED", True)


async def test_a_closed_port_is_a_failed_connection_that_names_host_and_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    provider = ChatCompletions("openai", f"http://{address}/v1")
    with pytest.raises(ModelError, match=address) as caught:
        await provider.complete(asking())
    await provider.aclose()
    assert (caught.value.reason, caught.value.retryable) == ("CONNECTION_FAILED", True)


async def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 1000)
    assert (await failure(completion("x" * 2000))).reason == "OUTPUT_INVALID"


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
    with pytest.raises(ModelError), http.mapped_errors("host", 1):
        raise error


def test_a_refused_connection_is_no_timeout_though_the_transport_says_so() -> None:
    refused = aiohttp.ClientConnectorError(None, OSError(111, "Connection refused"))  # type: ignore[arg-type]
    said = httpx.ConnectTimeout("")
    said.__cause__ = refused
    with (
        pytest.raises(ModelError, match="could not connect to host: Connection refused"),
        http.mapped_errors("host", 1),
    ):
        raise said


async def test_cancelling_a_call_closes_its_connection() -> None:
    async with Endpoint(lambda _: hang) as endpoint, provider_for(endpoint) as provider:
        call = asyncio.create_task(provider.complete(asking()))
        await endpoint.wait_for_calls(1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(1):
            await endpoint.hung_up.wait()


async def test_hundreds_of_calls_are_open_at_once() -> None:
    everyone_there = asyncio.Event()

    async def wait_for_all(_: Call) -> web.StreamResponse:
        if endpoint.open_calls == 300:
            everyone_there.set()
        await everyone_there.wait()
        return web.json_response(completion("done"))

    async with Endpoint(lambda _: wait_for_all) as endpoint, provider_for(endpoint) as provider:
        await asyncio.gather(*(provider.complete(asking()) for _ in range(300)))
        assert endpoint.most_open_calls == 300


async def test_connections_are_kept_for_the_next_call(endpoint: Endpoint) -> None:
    async with provider_for(endpoint) as provider:
        for _ in range(3):
            await provider.complete(asking())
    peers = {
        json.dumps(call.request.transport and call.request.transport.get_extra_info("peername"))
        for call in endpoint.calls
    }
    assert len(endpoint.calls) == 3
    assert len(peers) == 1


async def test_a_system_proxy_is_not_used_for_loopback(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with provider_for(endpoint) as provider:
        assert (await provider.complete(asking())).text


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
            await provider.complete(asking())
        await provider.aclose()
    assert asked == [b"POST http://models.invalid/v1/chat/completions HTTP/1.1"]


async def test_the_environment_sets_up_openai(endpoint: Endpoint) -> None:
    models = from_environment({"OPENAI_API_KEY": f"{KEY}\n", "OPENAI_BASE_URL": f"{endpoint.url}/"})
    provider, model = models.resolve("openai/gpt/with/slashes")
    await provider.complete(asking(model=model))
    await models.aclose()
    [call] = endpoint.calls
    assert call.body["model"] == "gpt/with/slashes"
    assert call.headers["Authorization"] == f"Bearer {KEY}"


async def test_an_endpoint_of_ones_own_needs_no_key(endpoint: Endpoint) -> None:
    models = from_environment({"OPENAI_BASE_URL": endpoint.url})
    await models.resolve("openai/m")[0].complete(asking())
    await models.aclose()
    assert "Authorization" not in endpoint.calls[0].headers


async def test_without_a_key_a_call_says_what_to_set() -> None:
    models = from_environment({})
    with pytest.raises(ModelError, match="set OPENAI_API_KEY") as caught:
        await models.resolve("openai/m")[0].complete(asking())
    await models.aclose()
    assert (caught.value.reason, caught.value.retryable) == ("MODEL_UNAUTHENTICATED", False)


@pytest.mark.parametrize("url", ["localhost:11434", "ftp://x", "http://", "http://a:b:c", "http://h:99999"])
def test_a_base_url_that_is_none_is_refused_at_start_up(url: str) -> None:
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL"):
        from_environment({"OPENAI_BASE_URL": url})


def test_a_key_that_cannot_be_sent_is_refused_without_showing_it() -> None:
    with pytest.raises(SettingsError, match="OPENAI_API_KEY") as caught:
        from_environment({"OPENAI_API_KEY": f"{KEY}\n{KEY}"})
    assert KEY not in str(caught.value)
