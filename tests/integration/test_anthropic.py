"""What is Anthropic's own about its API, against a real HTTP endpoint."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from support import streams
from support.endpoint import Answer, Call, Endpoint, failing, message
from support.misbehaviour import refusing, streaming
from support.provider_calls import (
    HI,
    KEY,
    SCHEMA,
    AnswerMode,
    ask,
    both_modes,
    failure,
    messages,
    model_request,
    reply,
    without_streaming,
)
from support.streams import Event

from orchestrator.core import plan
from orchestrator.core.lenient_json import values
from orchestrator.core.prompts import Message, Prompt
from orchestrator.models.base import ModelRequest
from orchestrator.models.http import streaming as streaming_module


async def sent(request: ModelRequest) -> Call:
    """What the endpoint is asked."""
    async with Endpoint(lambda _: "{}") as endpoint:
        provider = messages(endpoint)
        await ask(provider, request)
        await provider.aclose()
    [call] = endpoint.calls
    return call


async def test_a_call_sends_version_and_key_and_separates_the_system_message() -> None:
    call = await sent(model_request(sampling={"temperature": 0.2}))
    assert call.request.path == "/v1/messages"
    assert call.headers["anthropic-version"] == "2023-06-01"
    assert call.headers["x-api-key"] == KEY
    assert "Authorization" not in call.headers
    assert call.body == {
        "model": "m",
        "max_tokens": 500,
        "system": "You work.",
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0.2,
        "stream": True,
    }


async def test_a_prompt_without_system_message_sends_none() -> None:
    call = await sent(ModelRequest("m", Prompt("work", (Message("user", "Hi"),)), 9, 20))
    assert "system" not in call.body


async def test_a_plan_is_constrained_to_the_schema_that_structured_outputs_support() -> None:
    request = ModelRequest("m", Prompt("planning", HI, schema=plan.schema(4)), 500, 20)
    asked = (await sent(request)).body["output_config"]["format"]
    assert asked["type"] == "json_schema"
    subtasks = asked["schema"]["properties"]["subtasks"]
    assert subtasks.keys() == {"type", "items"}
    assert subtasks["items"]["required"] == ["id", "title", "instructions", "depends_on", "worker"]
    assert asked["schema"]["additionalProperties"] is False


@both_modes
async def test_a_model_without_structured_outputs_is_forced_to_call_a_tool(mode: AnswerMode) -> None:
    def script(call: Call) -> Answer:
        if "output_config" in call.body:
            return failing(400, "'m' does not support output format")
        if call.body.get("tool_choice") == {"type": "tool", "name": "plan"}:
            called = {"type": "tool_use", "id": "t", "name": "plan", "input": {"summary": "Grüße"}}
            return message(called, stop_reason="tool_use")
        return None

    async with Endpoint(without_streaming(script) if mode == "whole" else script) as endpoint:
        provider = messages(endpoint)
        for _ in range(2):
            answer = await ask(provider, model_request(schema=True))
            assert list(values(answer.text)) == [{"summary": "Grüße"}]
        await provider.aclose()
    bodies = [call.body for call in endpoint.calls if ("stream" in call.body) == (mode == "streamed")]
    assert ["tools" in body for body in bodies] == [False, True, True]
    assert bodies[1]["tools"][0]["input_schema"] == SCHEMA


async def test_a_model_that_rejects_temperature_is_called_without_it() -> None:
    script = refusing(400, "temperature", otherwise="warm")
    assert (await reply(messages, script, model_request(sampling={"temperature": 0.2}))).text == "warm"


@both_modes
async def test_cache_reads_and_writes_count_as_input(mode: AnswerMode) -> None:
    usage = {
        "input_tokens": 7,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 300,
        "output_tokens": 5,
    }
    answer = await reply(messages, lambda _: message("hi", usage=usage), mode=mode)
    assert (answer.input_tokens, answer.output_tokens) == (327, 5)


@both_modes
async def test_thoughts_are_not_part_of_the_text(mode: AnswerMode) -> None:
    blocks: list[Any] = [{"type": "thinking", "thinking": "hmm", "signature": "s"}, "one ", "two"]
    assert (await reply(messages, lambda _: message(*blocks), mode=mode)).text == "one two"


@both_modes
@pytest.mark.parametrize("details", [None, {"type": "refusal", "explanation": "It is about poison"}])
async def test_a_refusal_is_not_retried_and_gives_its_reason(
    mode: AnswerMode, details: dict[str, str] | None
) -> None:
    answer = message("I", stop_reason="refusal", stop_details=details)
    error = await failure(messages, lambda _: answer, mode=mode)
    assert (error.reason, error.retryable, error.output_tokens) == ("MODEL_REFUSED", False, 20)
    assert ("poison" in str(error)) == bool(details)


@both_modes
async def test_a_full_context_is_a_truncated_answer(mode: AnswerMode) -> None:
    answer = message("half", stop_reason="model_context_window_exceeded")
    error = await failure(messages, lambda _: answer, mode=mode)
    assert (error.reason, error.retryable) == ("OUTPUT_TRUNCATED", True)


async def test_a_cut_stream_reports_its_usage() -> None:
    error = await failure(messages, lambda _: streaming())
    assert (error.reason, error.input_tokens, error.output_tokens) == ("STREAM_CUT", 100, 1)


async def test_an_overloaded_endpoint_is_retried_when_it_asks() -> None:
    error = await failure(messages, lambda _: failing(529, "Overloaded", Retry_After="3"))
    assert (error.reason, error.retryable, error.retry_after_s) == ("OVERLOADED", True, 3)


async def test_a_spent_budget_is_not_retried() -> None:
    error = await failure(messages, lambda _: failing(429, "enforced_spend_limit_reached"))
    assert (error.reason, error.retryable) == ("RATE_LIMITED", False)


async def test_a_wrong_key_names_the_variable_and_is_not_shown() -> None:
    error = await failure(messages, lambda _: failing(401, f"invalid x-api-key {KEY}"))
    assert "check ANTHROPIC_API_KEY" in str(error)
    assert KEY not in str(error)


def streamed(*events: Event) -> Callable[[Call], Answer]:
    async def send(call: Call) -> web.StreamResponse:
        return await streams.send(call.request, events)

    return lambda _: send


def block(**content: Any) -> Event:
    return {"type": "content_block_start", "index": 0, "content_block": content}


def delta(**content: Any) -> Event:
    return {"type": "content_block_delta", "index": 0, "delta": content}


BLOCK_STOP: Event = {"type": "content_block_stop", "index": 0}
END: Event = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}}
LAST: Event = {"type": "message_stop"}


@pytest.mark.parametrize(
    "events",
    [
        (block(type="text", text="All "), delta(type="text_delta", text="of it")),
        (block(type="text", text="All of it"),),
        (block(text="All "), delta(text="of it")),
        ({"type": "message_start", "message": message("All of it", stop_reason="")},),
        (b"\xef\xbb\xbf" + streams.encode(block(type="text", text="All ")), delta(text="of it")),
    ],
    ids=["before deltas", "alone", "without types", "in the message", "behind a byte-order mark"],
)
async def test_text_counts_wherever_it_is_in_the_events(events: tuple[Event, ...]) -> None:
    answer = await reply(messages, streamed(*events, BLOCK_STOP, END, LAST))
    assert (answer.text, answer.output_tokens) == ("All of it", 20)


@pytest.mark.parametrize("deltas", [(), ('{"summary": ', '"x"}')], ids=["", "deltas"])
async def test_a_plan_in_one_piece_counts_where_no_deltas_follow(
    deltas: tuple[str, ...],
) -> None:
    tool = block(type="tool_use", id="t", name="plan", input={"summary": "x"})
    pieces = [delta(type="input_json_delta", partial_json=piece) for piece in ["", *deltas]]
    answer = await reply(messages, streamed(tool, *pieces, BLOCK_STOP, END, LAST), model_request(schema=True))
    assert json.loads(answer.text) == {"summary": "x"}


@pytest.mark.parametrize("kind", ["tool_use", "server_tool_use"])
async def test_input_of_another_tool_is_not_text(kind: str) -> None:
    search = block(type=kind, id="t", name="web_search", input={})
    asked = delta(type="input_json_delta", partial_json='{"query": "x"}')
    text = (block(type="text", text="Found."), BLOCK_STOP)
    assert (await reply(messages, streamed(search, asked, BLOCK_STOP, *text, END, LAST))).text == "Found."


async def test_a_message_may_hold_its_text_as_it_is() -> None:
    answer = {**message(), "content": "All of it"}
    assert (await reply(messages, lambda _: answer, mode="whole")).text == "All of it"


async def test_a_stop_reason_with_its_usage_still_waits_for_the_end_of_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def send(call: Call) -> web.StreamResponse:
        stop = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}}
        response = await streams.start_response(call.request)
        for text in ("one ", "two"):
            await response.write(streams.encode(streams.text_event(call.request, text)))
            await response.write(streams.encode(stop))
            await asyncio.sleep(0.3)
        await response.write(streams.encode(streams.end_event(call.request)))
        return response

    monkeypatch.setattr(streaming_module, "SHORT_QUIET_S", 0.1)
    assert (await reply(messages, lambda _: send)).text == "one two"


async def test_usage_in_the_last_event_counts() -> None:
    usage = {"input_tokens": 100, "output_tokens": 20}
    ending: list[Event] = [
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
        {"type": "message_stop", "usage": usage},
    ]
    answer = await reply(messages, lambda _: streaming(*ending, after="all"))
    assert answer.output_tokens == 20
