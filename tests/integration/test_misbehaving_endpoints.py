"""Endpoints that misbehave, over real HTTP: each failure of the table in docs/models.md, in both APIs.

What only one of the APIs can do wrong is in the tests of that API.
"""

import asyncio
import gzip
import json
import socket
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web
from support import streams
from support.endpoint import Answer, Call, Endpoint, cut, cut_amid, failing, fenced, hang
from support.misbehaviour import (
    breaking,
    endless_white_space,
    refusing,
    reset_amid_stream,
    stall_amid_stream,
    stalling,
    stay_silent,
    streaming,
)
from support.provider_calls import (
    SCHEMA,
    AnswerMode,
    answer_body,
    ask,
    both_modes,
    chat,
    failure,
    messages,
    model_request,
    reply,
    without_streaming,
)

from orchestrator.core.lenient_json import values
from orchestrator.core.replies import ModelReply
from orchestrator.core.retry import MAX_RETRY_AFTER_S
from orchestrator.errors import ModelError
from orchestrator.models.http import client as http_client
from orchestrator.models.http import streaming as streaming_module
from orchestrator.models.http.anthropic import Anthropic
from orchestrator.models.http.chat_completions import ChatCompletions
from orchestrator.models.http.client import StreamingResponse
from orchestrator.models.http.endpoint import MOST_WHITE_SPACE, HttpProvider
from orchestrator.models.http.endpoint import Call as ProviderCall

Make = Callable[..., HttpProvider]

pytestmark = pytest.mark.parametrize("make", [chat, messages])


def always(answer: Answer) -> Callable[[Call], Answer]:
    return lambda _: answer


# What comes is good, but wrapped


@both_modes
async def test_a_fence_and_prose_around_json_are_skipped(make: Make, mode: AnswerMode) -> None:
    text = fenced('{"summary": "x"}')
    answer = await reply(make, always(text), model_request(schema=True), mode=mode)
    assert list(values(answer.text)) == [{"summary": "x"}]


@both_modes
async def test_text_and_usage_are_the_same_streamed_or_not(make: Make, mode: AnswerMode) -> None:
    text = "Grüße 🙂\n\n```python\nprint('data: [DONE]')\n```\n"
    answer = await reply(make, always(text), mode=mode)
    assert (answer.text, answer.input_tokens, answer.output_tokens) == (text, 100, 20)


async def test_a_stream_may_be_split_into_packets_anywhere(make: Make) -> None:
    async def drip(call: Call) -> web.StreamResponse:
        body = answer_body(make, "Grüße 🙂")
        events = (
            streams.message_events(body) if make is messages else streams.completion_events(body, call.body)
        )
        response = await streams.start_response(call.request)
        for byte in b"".join(map(streams.encode, events)).replace(b"\n", b"\r\n"):
            await response.write(bytes([byte]))
        return response

    assert (await reply(make, always(drip))).text == "Grüße 🙂"


async def test_a_stream_without_its_last_event_is_complete_after_a_stop_reason(make: Make) -> None:
    async def end_early(call: Call) -> web.StreamResponse:
        body = answer_body(make, "all of it")
        events = streams.message_events(body) if make is messages else streams.completion_events(body, {})
        return await streams.send(call.request, events[:-1])

    assert (await reply(make, always(end_early))).text == "all of it"


async def test_the_last_event_of_a_stream_may_come_without_its_blank_line(make: Make) -> None:
    async def end_early(call: Call) -> web.StreamResponse:
        body = answer_body(make, "all of it")
        *events, last, _ = (
            streams.message_events(body) if make is messages else streams.completion_events(body, {})
        )
        return await streams.send(call.request, [*events, streams.encode(last).removesuffix(b"\n")])

    assert (await reply(make, always(end_early))).text == "all of it"


async def test_an_answer_in_one_piece_to_a_streaming_request_is_parsed(make: Make) -> None:
    whole = web.json_response(answer_body(make, "all at once"))
    assert (await reply(make, always(whole))).text == "all at once"


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "text/event-stream"])
async def test_an_answer_in_one_piece_is_parsed_with_any_content_type(make: Make, kind: str) -> None:
    whole = web.Response(text=json.dumps(answer_body(make, "all at once " * 10_000)), content_type=kind)
    assert (await reply(make, always(whole))).text == "all at once " * 10_000


# What comes is not good


@both_modes
async def test_an_answer_cut_at_the_token_limit_is_retried(make: Make, mode: AnswerMode) -> None:
    error = await failure(make, always(answer_body(make, "half an ans", is_cut=True)), mode=mode)
    assert (error.reason, error.retryable) == ("OUTPUT_TRUNCATED", True)
    assert (error.input_tokens, error.output_tokens) == (100, 20)
    assert "500 tokens: allow more max_output_tokens" in str(error)


@both_modes
async def test_an_answer_cut_at_the_token_limit_is_accepted_for_a_prompt_that_allows_it(
    make: Make, mode: AnswerMode
) -> None:
    script = always(answer_body(make, "half an ans", is_cut=True))
    assert (await reply(make, script, model_request(may_be_cut=True), mode=mode)).text == "half an ans"


@both_modes
async def test_all_tokens_spent_on_thinking_is_a_truncated_answer(make: Make, mode: AnswerMode) -> None:
    script = always(answer_body(make, "", is_cut=True))
    error = await failure(make, script, model_request(may_be_cut=True), mode=mode)
    assert error.reason == "OUTPUT_TRUNCATED"


@both_modes
@pytest.mark.parametrize("text", ["", "  \n"])
async def test_an_empty_answer_is_retried(make: Make, mode: AnswerMode, text: str) -> None:
    error = await failure(make, always(answer_body(make, text)), mode=mode)
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)
    assert "empty answer" in str(error)


async def test_a_stream_of_endless_white_space_is_given_up(make: Make) -> None:
    async with asyncio.timeout(10):
        error = await failure(make, always(endless_white_space), model_request(schema=True))
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)
    assert "white space" in str(error)


@both_modes
async def test_an_answer_of_white_space_up_to_the_limit_is_invalid_and_not_truncated(
    make: Make, mode: AnswerMode
) -> None:
    text = '{"summary": "x"' + "\n" * MOST_WHITE_SPACE
    error = await failure(
        make, always(answer_body(make, text, is_cut=True)), model_request(schema=True), mode=mode
    )
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)


@both_modes
@pytest.mark.parametrize(
    "body", [b"<html>upstream broke</html>", b'{"choices": [', b"[" * 200_000, b"\xff\xfe", b"[]", b"{}", b""]
)
async def test_a_200_without_an_answer_is_retried(make: Make, mode: AnswerMode, body: bytes) -> None:
    def script(_: Call) -> Answer:
        return web.Response(body=body, content_type="application/json")

    error = await failure(make, script, mode=mode)
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)


@both_modes
@pytest.mark.parametrize(
    ("inside", "reason", "retryable"),
    [
        ({"message": "upstream broke"}, "OVERLOADED", True),
        ({"message": "upstream broke", "code": 502}, "OVERLOADED", True),
        ({"message": "busy", "type": "overloaded_error"}, "OVERLOADED", True),
        ({"message": "slow down", "code": 429}, "RATE_LIMITED", True),
        ({"message": "slow down", "type": "rate_limit_error"}, "RATE_LIMITED", True),
        ({"message": "no", "type": "authentication_error"}, "MODEL_UNAUTHENTICATED", False),
        ({"message": "filtered", "code": "content_filter"}, "MODEL_REFUSED", False),
        ("upstream broke", "OVERLOADED", True),
    ],
    ids=str,
)
async def test_a_200_with_an_error_in_its_body_is_the_failure_that_it_names(
    make: Make, mode: AnswerMode, inside: Any, reason: str, retryable: bool
) -> None:
    error = await failure(make, lambda _: web.json_response({"error": inside}), mode=mode)
    assert (error.reason, error.retryable) == (reason, retryable)


@both_modes
@pytest.mark.parametrize(
    "body",
    [
        {"object": "error", "message": "prompt is too long", "type": "BadRequestError", "code": 400},
        {
            "errors": [{"message": "AiError: prompt is too long", "code": 5021}],
            "success": False,
            "result": {},
        },
        {"error": [{"message": "prompt is too long"}]},
    ],
    ids=str,
)
async def test_a_200_with_an_error_of_another_shape_is_that_failure(
    make: Make, mode: AnswerMode, body: dict[str, Any]
) -> None:
    error = await failure(make, lambda _: web.json_response(body), mode=mode)
    assert error.reason == "INPUT_TOO_LONG"
    assert "It said: " in str(error)


@pytest.mark.parametrize(
    ("inside", "reason"),
    [({"type": "overloaded_error", "message": "busy"}, "OVERLOADED"), ({"code": 429}, "RATE_LIMITED")],
)
async def test_an_error_within_a_stream_is_retried(make: Make, inside: Any, reason: str) -> None:
    script = always(streaming({"type": "error", "error": inside}))
    error = await failure(make, script)
    assert (error.reason, error.retryable) == (reason, True)


@pytest.mark.parametrize("after", [(), (b'data: {"choi',)], ids=["", "half an event"])
async def test_a_stream_that_ends_before_its_answer_is_retried(
    make: Make, after: tuple[streams.Event, ...]
) -> None:
    error = await failure(make, always(streaming(*after)))
    assert (error.reason, error.retryable) == ("STREAM_CUT", True)


async def test_an_event_that_is_not_json_is_retried(make: Make) -> None:
    error = await failure(make, always(streaming("{nonsense")))
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)


@both_modes
async def test_an_endless_answer_is_given_up(
    make: Make, mode: AnswerMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "MAX_ANSWER_BYTES", 1000)
    error = await failure(make, always("x" * 2000), mode=mode)
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)


# More comes than can be read at once


async def test_an_answer_of_ten_megabytes_in_one_piece_is_read_whole(make: Make) -> None:
    text = 'A "long" tale, “so” to say.\n' * 350_000
    assert (await reply(make, always(web.json_response(answer_body(make, text))))).text == text


@both_modes
async def test_json_with_far_more_values_than_an_answer_has_is_no_answer(
    make: Make, mode: AnswerMode
) -> None:
    values = {"error": None, "choices": [{}] * 60_000, "content": [{}] * 60_000}
    error = await failure(make, always(web.json_response(values)), mode=mode)
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)
    assert "values" in str(error)


async def test_an_answer_that_was_compressed_is_read(make: Make) -> None:
    async def compressed(call: Call) -> web.StreamResponse:
        assert call.headers["Accept-Encoding"] == "gzip, deflate"
        response = web.json_response(answer_body(make, "all of it" * 1000))
        response.enable_compression(web.ContentCoding.gzip)
        return response

    assert (await reply(make, always(compressed))).text == "all of it" * 1000


async def test_an_encoding_that_was_not_asked_for_is_a_failed_connection(make: Make) -> None:
    headers = {"Content-Encoding": "gzip, gzip"}
    body = gzip.compress(gzip.compress(bytes(10**6)))
    error = await failure(make, always(web.Response(body=body, headers=headers)))
    assert (error.reason, error.retryable) == ("CONNECTION_FAILED", True)
    assert "gzip, gzip" in str(error)


async def test_the_end_of_a_long_error_is_not_read(make: Make) -> None:
    error = await failure(make, always(failing(400, "x" * 10**6 + " context length exceeded")))
    assert error.reason == "REQUEST_REJECTED"


async def test_others_have_their_turn_while_the_events_of_one_chunk_are_read(make: Make) -> None:
    body = answer_body(make, "all of it")
    events = streams.message_events(body) if make is messages else streams.completion_events(body, {})
    nothing = b"event: ping\ndata: {}\n\n"
    chunks = [nothing * 10_000 + b"".join(map(streams.encode, events))]
    turns = 0

    class Streamed(StreamingResponse):
        def __init__(self) -> None:
            self.status, self.headers = 200, {}

        async def chunks(self) -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with Endpoint() as endpoint:
        provider = make(endpoint)
        others = asyncio.create_task(take_turns())
        answer = await provider._reply_from_stream(Streamed(), ProviderCall(model_request(), None))
        others.cancel()
        await provider.aclose()
    assert isinstance(answer, ModelReply)
    assert answer.text == "all of it"
    assert turns > 100


# Nothing comes, or no more


@both_modes
@pytest.mark.parametrize("broken", [cut, cut_amid])
async def test_a_cut_connection_is_retried(make: Make, mode: AnswerMode, broken: Answer) -> None:
    error = await failure(make, always(broken), mode=mode)
    assert (error.reason, error.retryable) == ("CONNECTION_FAILED", True)


async def test_a_connection_cut_within_a_stream_is_retried(make: Make) -> None:
    error = await failure(make, always(reset_amid_stream))
    assert (error.reason, error.retryable) == ("CONNECTION_FAILED", True)


async def test_a_closed_port_is_a_failed_connection_that_names_host_and_port(make: Make) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    kind = Anthropic if make is messages else ChatCompletions
    provider = kind("p", f"http://{address}/v1")
    with pytest.raises(ModelError, match=address) as caught:
        await ask(provider)
    await provider.aclose()
    assert (caught.value.reason, caught.value.retryable) == ("CONNECTION_FAILED", True)


async def test_a_host_that_accepts_no_connection_is_a_connect_timeout(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "CONNECT_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [_connect(full.getsockname()) for _ in range(4)]  # so many that the next one is not let in
        kind = Anthropic if make is messages else ChatCompletions
        provider = kind("p", f"http://127.0.0.1:{full.getsockname()[1]}/v1")
        with pytest.raises(ModelError) as caught:
            await ask(provider)
        await provider.aclose()
        for knocking in waiting:
            knocking.close()
    assert (caught.value.reason, caught.value.retryable) == ("CONNECT_TIMEOUT", True)


def _connect(address: tuple[str, int]) -> socket.socket:
    knocking = socket.socket()
    knocking.setblocking(False)
    knocking.connect_ex(address)
    return knocking


@pytest.mark.parametrize("silent", [hang, stay_silent, stall_amid_stream])
async def test_a_silent_stream_is_an_idle_timeout(make: Make, silent: Answer) -> None:
    error = await failure(make, always(silent), idle_timeout_s=0.1)
    assert (error.reason, error.retryable) == ("IDLE_TIMEOUT", True)
    assert "0.1 s" in str(error)


@pytest.mark.parametrize("end", [stalling, breaking])
async def test_an_error_reported_before_a_stream_stalls_or_breaks_is_the_failure(
    make: Make, end: Callable[..., Answer]
) -> None:
    script = always(end({"type": "error", "error": {"code": 429}}))
    error = await failure(make, script, idle_timeout_s=0.1)
    assert (error.reason, error.retryable) == ("RATE_LIMITED", True)


async def test_a_complete_answer_is_accepted_though_the_stream_stays_open(make: Make) -> None:
    async def hold_open(call: Call) -> web.StreamResponse:
        body = answer_body(make, "all of it")
        events = (
            streams.message_events(body) if make is messages else streams.completion_events(body, call.body)
        )
        await streams.send(call.request, events[:-1])
        return await hang(call)

    answer = await reply(make, always(hold_open), idle_timeout_s=0.1)
    assert (answer.text, answer.output_tokens) == ("all of it", 20)


async def test_a_complete_answer_does_not_wait_for_an_endpoint_that_only_sends_heartbeats(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go_on(call: Call) -> web.StreamResponse:
        body = answer_body(make, "all of it")
        events = (
            streams.message_events(body) if make is messages else streams.completion_events(body, call.body)
        )
        response = await streams.start_response(call.request)
        for event in events[:-1]:
            await response.write(streams.encode(event))
        while True:
            await response.write(b": still there\n\n")
            await asyncio.sleep(0.01)

    monkeypatch.setattr(streaming_module, "SHORT_QUIET_S", 0.1)
    answer = await reply(make, always(go_on), model_request(timeout_s=5))
    assert (answer.text, answer.output_tokens) == ("all of it", 20)


async def test_silence_before_an_answer_in_one_piece_is_no_idle_timeout(make: Make) -> None:
    async def think(_: Call) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return web.json_response(answer_body(make, "thought of"))

    assert (await reply(make, always(think), mode="whole", idle_timeout_s=0.1)).text == "thought of"


@both_modes
async def test_an_attempt_that_takes_too_long_is_a_timeout(make: Make, mode: AnswerMode) -> None:
    answer = hang if mode == "whole" else endless_words
    error = await failure(make, always(answer), model_request(timeout_s=0.2), mode=mode)
    assert (error.reason, error.retryable) == ("TIMEOUT", True)
    assert "0.2 s" in str(error)


async def endless_words(call: Call) -> web.StreamResponse:
    response = await streams.start_response(call.request)
    while True:
        await response.write(b": still there\n\n")
        await asyncio.sleep(0.01)


async def test_cancelling_a_streamed_call_closes_its_connection(make: Make) -> None:
    has_text = asyncio.Event()
    async with Endpoint(always(stall_amid_stream)) as endpoint:
        provider = make(endpoint)
        call = asyncio.create_task(provider.complete(model_request(), lambda _: has_text.set()))
        await has_text.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(1):
            await endpoint.disconnected.wait()
        await provider.aclose()


# An error is answered


@both_modes
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
        (413, "INPUT_TOO_LONG", True),
        (422, "REQUEST_REJECTED", False),
        (425, "OVERLOADED", True),
        (429, "RATE_LIMITED", True),
        (500, "OVERLOADED", True),
        (502, "OVERLOADED", True),
        (503, "OVERLOADED", True),
        (504, "OVERLOADED", True),
        (529, "OVERLOADED", True),
    ],
)
async def test_the_status_decides_whether_a_call_is_retried(
    make: Make, mode: AnswerMode, status: int, reason: str, retryable: bool
) -> None:
    error = await failure(make, always(failing(status, "what went wrong")), mode=mode)
    assert (error.reason, error.retryable) == (reason, retryable)
    assert "what went wrong" in str(error)


@both_modes
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("value", "expected_s"),
    [("7", 7), ("0.5", 0.5), ("99999999", MAX_RETRY_AFTER_S), ("soon", None), ("-1", None), ("", None)],
)
async def test_retry_after_is_parsed_as_seconds_and_capped(
    make: Make, mode: AnswerMode, status: int, value: str, expected_s: float | None
) -> None:
    error = await failure(make, always(failing(status, Retry_After=value)), mode=mode)
    assert error.retry_after_s == expected_s


@pytest.mark.parametrize(("offset_s", "expected_s"), [(300, 300), (-600, 0), (10**9, MAX_RETRY_AFTER_S)])
async def test_retry_after_is_parsed_as_a_date_and_capped(
    make: Make, offset_s: float, expected_s: float
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=offset_s), usegmt=True)
    error = await failure(make, always(failing(429, Retry_After=date)))
    assert error.retry_after_s == pytest.approx(expected_s, abs=30)


async def test_a_retry_date_is_measured_by_the_endpoints_own_clock(make: Make) -> None:
    headers = {"Date": "Mon, 01 Jan 2001 00:00:00 GMT", "Retry_After": "Mon, 01 Jan 2001 00:00:09 GMT"}
    assert (await failure(make, always(failing(503, **headers)))).retry_after_s == 9


@both_modes
async def test_a_wait_named_in_the_body_is_used_and_capped(make: Make, mode: AnswerMode) -> None:
    for named, expected_s in (("2s", 2), ("99999h", MAX_RETRY_AFTER_S)):
        body = [{"error": {"code": 429, "message": "quota", "details": [{"retryDelay": named}]}}]
        error = await failure(make, always(web.json_response(body, status=429)), mode=mode)
        assert (error.reason, error.retry_after_s) == ("RATE_LIMITED", expected_s)


@pytest.mark.parametrize("form", ["a 429", "a 200", "an event"])
async def test_a_wait_named_in_words_is_used_wherever_it_is(make: Make, form: str) -> None:
    inside = {"message": "Rate limit reached for m. Please try again in 1.5s.", "code": 429}
    answer: Answer = web.json_response({"error": inside}, status=429 if form == "a 429" else 200)
    if form == "an event":
        answer = streaming({"type": "error", "error": inside})
    error = await failure(make, always(answer))
    assert (error.reason, error.retry_after_s) == ("RATE_LIMITED", 1.5)


async def test_an_exhausted_limit_is_awaited_until_its_reset(make: Make) -> None:
    headers = {"x_ratelimit_reset_tokens": "3s", "x_ratelimit_remaining_tokens": "0"}
    assert (await failure(make, always(failing(429, **headers)))).retry_after_s == 3


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("API key not valid. Please pass a valid API key.", "MODEL_UNAUTHENTICATED"),
        ("m is not a valid model ID", "MODEL_NOT_FOUND"),
        ("AiError: No such model @cf/m", "MODEL_NOT_FOUND"),
        ("prompt is too long: 205000 tokens > 200000 maximum", "INPUT_TOO_LONG"),
        ("This model's maximum context length is 128000 tokens.", "INPUT_TOO_LONG"),
        ("this is too much for me", "REQUEST_REJECTED"),
    ],
)
async def test_a_400_is_classified_by_its_message(make: Make, message: str, reason: str) -> None:
    error = await failure(make, always(failing(400, message)))
    assert (error.reason, error.retryable) == (reason, reason == "INPUT_TOO_LONG")


# A parameter is refused


@pytest.mark.parametrize("status", [400, 422])
async def test_an_unknown_parameter_is_omitted_from_then_on(make: Make, status: int) -> None:
    script = refusing(status, "temperature", "repeat_penalty")
    request = model_request(sampling={"temperature": 0.2, "repeat_penalty": 1.1})
    async with Endpoint(script) as endpoint:
        provider = make(endpoint)
        for _ in range(2):
            await ask(provider, request)
        await provider.aclose()
    assert [sorted(call.body.keys() & request.prompt.sampling.keys()) for call in endpoint.calls] == [
        ["repeat_penalty", "temperature"],
        ["repeat_penalty"],
        [],
        [],
    ]


async def test_an_endpoint_that_refuses_to_stream_is_called_without_streaming(make: Make) -> None:
    async with Endpoint(refusing(400, "stream")) as endpoint:
        provider = make(endpoint)
        for _ in range(2):
            assert (await ask(provider)).text == "The output of ."
        await provider.aclose()
    assert ["stream" in call.body for call in endpoint.calls] == [True, False, False]


async def test_the_formats_are_tried_in_order_and_the_accepted_one_is_remembered_for_the_model(
    make: Make,
) -> None:
    formats = ("response_format", "output_config", "tools")

    def script(call: Call) -> Answer:
        refused = next((name for name in formats if name in call.body), None)
        return failing(400, f"{refused} is not supported") if refused else "{}"

    async with Endpoint(script) as endpoint:
        provider = make(endpoint)
        for model in ("m", "m", "another"):
            answer = await ask(provider, model_request(schema=True, model=model))
            assert answer.text == "{}"
        await provider.aclose()
    asked = [(call.body["model"], bool(call.body.keys() & set(formats))) for call in endpoint.calls]
    assert asked == [
        *[("m", True), ("m", True), ("m", False), ("m", False)],
        *[("another", True), ("another", True), ("another", False)],
    ]


@both_modes
async def test_an_answer_that_the_endpoint_declares_invalid_is_retried(make: Make, mode: AnswerMode) -> None:
    def script(_: Call) -> Answer:
        error = {
            "message": "Generated JSON does not match the expected schema. See 'failed_generation'.",
            "type": "invalid_request_error",
            "code": "json_validate_failed",
            "failed_generation": "max_tokens grammar " * 1000,
        }
        return web.json_response({"error": error}, status=400)

    async with Endpoint(script if mode == "streamed" else without_streaming(script)) as endpoint:
        provider = make(endpoint)
        with pytest.raises(ModelError, match="does not match the expected schema") as caught:
            await ask(provider, model_request(schema=True))
        await provider.aclose()
    assert (caught.value.reason, caught.value.retryable) == ("OUTPUT_INVALID", True)
    assert len(str(caught.value)) < 300
    assert len(endpoint.calls) == (1 if mode == "streamed" else 2)


@pytest.mark.parametrize("form", [400, 500, "event"])
async def test_a_grammar_that_cannot_be_compiled_moves_to_the_next_format(
    make: Make, form: int | str
) -> None:
    message = "Failed to initialize samplers: failed to parse grammar"

    async def fail(call: Call) -> web.StreamResponse:
        return await streams.send(call.request, [{"error": {"code": 500, "message": message}}])

    def script(call: Call) -> Answer:
        if not call.body.keys() & {"response_format", "output_config", "tools"}:
            return "{}"
        return failing(form, message) if isinstance(form, int) else fail

    async with Endpoint(script) as endpoint:
        provider = make(endpoint)
        for _ in range(2):
            assert (await ask(provider, model_request(schema=True))).text == "{}"
        await provider.aclose()
    assert len(endpoint.calls) <= 4


@pytest.mark.parametrize("status", [400, 422, 500])
async def test_a_model_without_a_system_role_gets_user_messages_from_then_on(make: Make, status: int) -> None:
    def script(call: Call) -> Answer:
        if "system" in call.body or call.body["messages"][0]["role"] == "system":
            return failing(status, "Developer instruction is not enabled for models/gemma-3-27b-it")
        return None

    async with Endpoint(script) as endpoint:
        provider = make(endpoint)
        for _ in range(2):
            await ask(provider)
        await provider.aclose()
    _, *later_calls = endpoint.calls
    assert len(later_calls) == 2
    for call in later_calls:
        assert call.body["messages"] == [{"role": "user", "content": "You work.\n\nHi"}]
        assert "system" not in call.body


async def test_a_plain_answer_is_requested_without_a_format(make: Make) -> None:
    async with Endpoint() as endpoint:
        provider = make(endpoint)
        await ask(provider)
        await provider.aclose()
    [call] = endpoint.calls
    assert json.dumps(SCHEMA) not in json.dumps(call.body)
    assert not call.body.keys() & {"response_format", "output_config", "tools", "tool_choice"}
