"""Where an answer ends, and how: half of one is never taken for the whole, and none of it is lost.

Endpoints are scripted as gateways that send a reason to stop with every chunk, or none at all, or their usage
late, or never close a stream.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from support import streams
from support.endpoint import Answer, Call, completion, hang, message
from support.provider_calls import AnswerMode, both_modes, chat, failure, messages, model_request, reply
from support.streams import Event, end_event, stop_event, text_event, usage_event

from orchestrator.errors import ModelError
from orchestrator.models.http import streaming
from orchestrator.models.http.endpoint import HttpProvider

Make = Callable[..., HttpProvider]

pytestmark = pytest.mark.parametrize("make", [chat, messages])

Kind = Callable[[web.Request], Event]
"""Builds an event in the API of the request."""

WORDS = [f"word {number}, " for number in range(10)]


def text(words: str) -> Kind:
    return lambda request: text_event(request, words)


def stop(reason: Any = "stop") -> Kind:
    return lambda request: stop_event(request, reason)


def sending(*kinds: Kind | float, then: Answer = None) -> Callable[[Call], Answer]:
    """Script an endpoint that sends these events, with pauses of so many seconds, and ends the stream."""

    async def send(call: Call) -> web.StreamResponse:
        response = await streams.start_response(call.request)
        for kind in kinds:
            if isinstance(kind, float):
                await asyncio.sleep(kind)
            else:
                await response.write(streams.encode(kind(call.request)))
        return await then(call) if callable(then) else response

    return lambda _: send


async def close(call: Call) -> web.StreamResponse:
    """Close the connection in the midst of the stream."""
    if call.request.transport is not None:
        call.request.transport.close()
    return web.Response()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for quiet streams for less time than in production."""
    monkeypatch.setattr(streaming, "SHORT_QUIET_S", 0.1)
    monkeypatch.setattr(streaming, "QUIET_S", 0.1)
    monkeypatch.setattr(streaming, "LONG_QUIET_S", 0.2)


# A reason to stop is not always the end


async def test_text_after_a_stop_reason_is_part_of_the_answer_when_every_chunk_has_one(make: Make) -> None:
    pieces = [kind for words in WORDS for kind in (text(words), stop(), 0.15)]
    answer = await reply(make, sending(*pieces, usage_event, end_event))
    assert (answer.text, answer.output_tokens) == ("".join(WORDS), 20)


async def test_text_that_arrives_late_after_a_stop_reason_is_part_of_the_answer(make: Make) -> None:
    answer = await reply(make, sending(text("one "), stop(), 1.5, text("two"), stop(), end_event))
    assert answer.text == "one two"


async def test_each_piece_of_text_restarts_the_wait(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "QUIET_S", 1.0)
    monkeypatch.setattr(streaming, "LONG_QUIET_S", 1.0)
    pieces = [kind for words in WORDS[:6] for kind in (text(words), stop(), 0.3)]
    assert (await reply(make, sending(*pieces, then=hang))).text == "".join(WORDS[:6])


@pytest.mark.usefixtures("impatient")
async def test_an_answer_without_text_is_awaited_despite_a_stop_reason(
    make: Make,
) -> None:
    assert (
        await reply(make, sending(stop(), 0.5, text("thought of"), stop(), end_event))
    ).text == "thought of"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("after", [(), (usage_event,)], ids=["", "usage"])
async def test_an_answer_is_complete_after_a_silence_that_follows_a_stop_reason(
    make: Make, after: tuple[Kind, ...]
) -> None:
    answer = await reply(
        make, sending(text("all of it"), stop(), *after, then=hang), model_request(timeout_s=5)
    )
    assert (answer.text, answer.output_tokens) == ("all of it", 20 if after else 0)


async def test_the_attempt_does_not_time_out_while_a_complete_stream_stays_open(make: Make) -> None:
    answer = await reply(make, sending(text("all of it"), stop(), then=hang), model_request(timeout_s=2))
    assert answer.text == "all of it"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sign", ["comment", "empty chunk", "ping"])
async def test_heartbeats_do_not_prevent_an_answer_from_ending(make: Make, sign: str) -> None:
    async def go_on(call: Call) -> web.StreamResponse:
        response = await streams.start_response(call.request)
        for kind in (text("all of it"), stop()):
            await response.write(streams.encode(kind(call.request)))
        while True:
            event: Event = b": still there\n\n"
            if sign == "ping":
                event = b"event: ping\ndata: still there\n\n"
            elif sign == "empty chunk":
                event = text_event(call.request, "")
            await response.write(streams.encode(event))
            await asyncio.sleep(0.01)

    assert (await reply(make, lambda _: go_on, model_request(timeout_s=5))).text == "all of it"


async def test_usage_that_arrives_late_after_the_stop_reason_counts(make: Make) -> None:
    answer = await reply(make, sending(text("all of it"), stop(), 1.5, usage_event, end_event))
    assert (answer.input_tokens, answer.output_tokens) == (100, 20)


async def test_an_answer_is_complete_though_the_connection_breaks_after_its_end(make: Make) -> None:
    assert (await reply(make, sending(text("all of it"), stop(), then=close))).text == "all of it"


async def test_a_broken_connection_is_no_end_where_every_chunk_has_a_stop_reason(make: Make) -> None:
    script = sending(text("half "), stop(), text("an ans"), stop(), then=close)
    error = await failure(make, script)
    assert (error.reason, error.retryable) == ("CONNECTION_FAILED", True)


# The last event counts, and an end without a word does not


@pytest.mark.parametrize("reasons", [(), (stop(None),), (stop(""),)], ids=["none", "null", "empty"])
async def test_text_and_the_last_event_are_a_complete_answer_without_a_stop_reason(
    make: Make, reasons: tuple[Kind, ...]
) -> None:
    assert (await reply(make, sending(text("all of it"), *reasons, end_event))).text == "all of it"


@pytest.mark.parametrize("then", [None, close], ids=["ended", "closed"])
async def test_text_without_stop_reason_or_last_event_is_a_truncated_answer(make: Make, then: Answer) -> None:
    error = await failure(make, sending(text("half an ans"), then=then))
    reason = "CONNECTION_FAILED" if then else "STREAM_CUT"
    assert (error.reason, error.retryable) == (reason, True)


async def test_the_last_event_counts_though_its_line_does_not_end(make: Make) -> None:
    def unended(request: web.Request) -> Event:
        return streams.encode(end_event(request)).rstrip(b"\n")

    assert (await reply(make, sending(text("all of it"), unended))).text == "all of it"


async def test_the_last_event_without_text_is_an_empty_answer(make: Make) -> None:
    error = await failure(make, sending(end_event))
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)


async def test_a_null_reason_does_not_withdraw_a_stop_reason(make: Make) -> None:
    assert (await reply(make, sending(text("all of it"), stop(), stop(None)))).text == "all of it"


# Why it stopped


def whole(make: Make, reason: Any) -> Answer:
    """An answer with a reason to stop, in the API that a provider speaks."""
    return (
        message("half an ans", stop_reason=reason) if make is messages else completion("half an ans", reason)
    )


@both_modes
@pytest.mark.parametrize("reason", ["eos", "end_turn", "EOS_TOKEN", "STOP", "COMPLETE", "stop_sequence"])
async def test_a_normal_end_is_recognised_under_every_name(make: Make, mode: AnswerMode, reason: str) -> None:
    assert (await reply(make, lambda _: whole(make, reason), mode=mode)).text == "half an ans"


@both_modes
@pytest.mark.parametrize("reason", ["model_length", "MAX_TOKENS", "max_output_tokens", "token_limit"])
async def test_a_token_limit_is_recognised_under_every_name(
    make: Make, mode: AnswerMode, reason: str
) -> None:
    error = await failure(make, lambda _: whole(make, reason), mode=mode)
    assert (error.reason, error.retryable, error.output_tokens) == ("OUTPUT_TRUNCATED", True, 20)


@both_modes
@pytest.mark.parametrize(
    "reason", ["SAFETY", "content_filter: RECITATION", "guardrail_intervened", "refusal"]
)
async def test_a_filtered_answer_is_a_refusal_under_every_name(
    make: Make, mode: AnswerMode, reason: str
) -> None:
    error = await failure(make, lambda _: whole(make, reason), mode=mode)
    assert (error.reason, error.retryable, error.output_tokens) == ("MODEL_REFUSED", False, 20)
    assert reason in str(error)


@both_modes
@pytest.mark.parametrize(
    "reason", ["error", "abort", "insufficient_system_resource", "pause_turn", "never_heard_of"]
)
async def test_any_other_reason_makes_the_answer_incomplete_and_is_named(
    make: Make, mode: AnswerMode, reason: str
) -> None:
    error = await failure(make, lambda _: whole(make, reason), model_request(may_be_cut=True), mode=mode)
    assert (error.reason, error.retryable, error.output_tokens) == ("OUTPUT_INCOMPLETE", True, 20)
    assert reason in str(error)


@both_modes
async def test_a_model_that_stops_to_call_an_unknown_tool_has_not_answered(
    make: Make, mode: AnswerMode
) -> None:
    answer = completion("Let me look.", "tool_calls", tool_calls=[{"id": "1", "function": {"name": "look"}}])
    if make is messages:
        call = {"type": "tool_use", "id": "1", "name": "look", "input": {"at": "it"}}
        answer = message("Let me look.", call, stop_reason="tool_use")
    error = await failure(make, lambda _: answer, mode=mode)
    assert (error.reason, error.retryable) == ("OUTPUT_INCOMPLETE", True)


@pytest.mark.parametrize("reason", [None, "", "null"])
async def test_an_answer_in_one_piece_is_complete_without_a_stop_reason(make: Make, reason: Any) -> None:
    assert (await reply(make, lambda _: whole(make, reason), mode="whole")).text == "half an ans"


async def test_the_last_of_several_stop_reasons_counts(make: Make) -> None:
    script = sending(text("half "), stop(), text("an ans"), stop(), stop("length"), end_event)
    assert (await failure(make, script)).reason == "OUTPUT_TRUNCATED"


async def test_a_normal_end_replaces_another_reason_only_after_more_text(make: Make) -> None:
    assert (
        await failure(make, sending(text("a"), stop("length"), stop(), end_event))
    ).reason == "OUTPUT_TRUNCATED"
    script = sending(text("a"), stop("length"), text("b"), stop(), end_event)
    assert (await reply(make, script)).text == "ab"


# What the text is


async def test_surrogate_halves_in_separate_chunks_are_joined(make: Make) -> None:
    script = sending(text("Done \ud83d"), text("\ude00!"), stop(), end_event)
    assert (await reply(make, script)).text == "Done 😀!"


@both_modes
async def test_an_unpaired_surrogate_is_replaced(make: Make, mode: AnswerMode) -> None:
    answer = message("a\ud83d b") if make is messages else completion("a\ud83d b")
    assert (await reply(make, lambda _: answer, mode=mode)).text == "a\ufffd b"


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream", "text/plain"])
async def test_a_byte_order_mark_before_an_answer_in_one_piece_is_skipped(make: Make, kind: str) -> None:
    body = b"\xef\xbb\xbf" + web.json_response(whole(make, "stop")).body  # type: ignore[operator]
    answer = await reply(make, lambda _: web.Response(body=body, content_type=kind))
    assert answer.text == "half an ans"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
async def test_a_stream_may_begin_with_a_byte_order_mark_and_use_any_line_ending(
    make: Make, end: bytes
) -> None:
    async def drip(call: Call) -> web.StreamResponse:
        response = await streams.start_response(call.request)
        events = [kind(call.request) for kind in (text("Grüße "), text("🙂"), stop(), usage_event, end_event)]
        for byte in b"\xef\xbb\xbf" + b"".join(map(streams.encode, events)).replace(b"\n", end):
            await response.write(bytes([byte]))
        return response

    answer = await reply(make, lambda _: drip)
    assert (answer.text, answer.output_tokens) == ("Grüße 🙂", 20)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (b'event: error\ndata: {"message": "slow down", "code": 429}\n\n', "RATE_LIMITED"),
        (b"event: error\ndata: upstream broke\n\n", "OVERLOADED"),
        (b"event: error\ndata: {}\n\n", "OVERLOADED"),
        (b'error: {"code": 503, "message": "loading"}\n\n', "OVERLOADED"),
        (b'data: {"object": "error", "message": "out of memory", "code": 500}\n\n', "OVERLOADED"),
    ],
)
@pytest.mark.parametrize("before", [(), (text("half "),)], ids=["first", "amid"])
async def test_an_error_in_a_stream_is_the_failure_that_it_names(
    make: Make, before: tuple[Kind, ...], event: bytes, reason: str
) -> None:
    error = await failure(make, sending(*before, lambda _: event, stop(), end_event))
    assert (error.reason, error.retryable) == (reason, True)


# Thoughts


@both_modes
async def test_thoughts_without_an_opening_tag_are_not_part_of_the_answer(
    make: Make, mode: AnswerMode
) -> None:
    thoughts = "Okay, the user wants a number.\nMaybe 5?\n</think>\n\n"
    answer = message(f"{thoughts}Four") if make is messages else completion(f"{thoughts}Four")
    assert (await reply(make, lambda _: answer, mode=mode)).text == "Four"


@both_modes
@pytest.mark.parametrize(
    "thoughts", ["<think>\n{}\n</think>\n", "Maybe {}?\n</think>\n", "[THINK]{}[/THINK]"]
)
async def test_json_in_thoughts_is_not_the_plan(make: Make, mode: AnswerMode, thoughts: str) -> None:
    text = thoughts.replace("{}", '{"summary": "draft"}') + '{"summary": "plan"}'
    answer = message(text) if make is messages else completion(text)
    assert (
        await reply(make, lambda _: answer, model_request(schema=True), mode=mode)
    ).text == '{"summary": "plan"}'


@both_modes
@pytest.mark.parametrize("thoughts", ['<think>{"summary": "draft"}', '{"summary": "draft"}?\n</think>\n'])
async def test_thoughts_alone_are_not_an_answer(make: Make, mode: AnswerMode, thoughts: str) -> None:
    answer = message(thoughts) if make is messages else completion(thoughts)
    error = await failure(make, lambda _: answer, mode=mode)
    assert (error.reason, error.retryable, error.output_tokens) == ("OUTPUT_INVALID", True, 20)
    assert "nothing but thoughts" in str(error)


async def test_a_failed_call_reports_the_reason_though_it_emitted_thoughts(make: Make) -> None:
    script = sending(text("<think>hm"), stop("length"), end_event)
    error: ModelError = await failure(make, script)
    assert error.reason == "OUTPUT_TRUNCATED"
