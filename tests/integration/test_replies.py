"""What providers report of an answer, valid or not: its text, how it finished, and its id."""

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from support import streams
from support.endpoint import Answer, Call, Endpoint
from support.provider_calls import (
    AnswerMode,
    answer_body,
    both_modes,
    chat,
    failure,
    messages,
    model_request,
    reply,
    without_streaming,
)
from support.service import service

from orchestrator.core.prompts import Message, Prompt
from orchestrator.core.replies import Finish, ModelReply
from orchestrator.models.base import ModelRequest
from orchestrator.models.http.endpoint import HttpProvider
from orchestrator.models.scripted import plan_text
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

Make = Callable[..., HttpProvider]
pytestmark = pytest.mark.parametrize("make", [chat, messages])


async def call_once(
    make: Make, mode: AnswerMode, body: dict[str, Any], request: ModelRequest | None = None
) -> tuple[ModelReply, Call]:
    """The reply as the provider gives it, before anything is made of it, and the call that was made."""

    def script(_: Call) -> Answer:
        return body

    async with (
        Endpoint(without_streaming(script) if mode == "whole" else script) as endpoint,
        aclosing(make(endpoint)) as provider,
    ):
        return await provider.complete(request or model_request()), endpoint.calls[-1]


@both_modes
async def test_a_cut_answer_is_a_reply_with_all_of_its_text(make: Make, mode: AnswerMode) -> None:
    answer, _ = await call_once(make, mode, answer_body(make, "half of it", is_cut=True))
    assert (answer.text, answer.finish, answer.token_limit) == ("half of it", Finish.CUT, 500)
    assert answer.output_tokens == 20


@both_modes
async def test_thoughts_that_used_up_the_limit_are_a_reply_without_text(make: Make, mode: AnswerMode) -> None:
    answer, _ = await call_once(make, mode, answer_body(make, "<think>hm, hm", is_cut=True))
    assert (answer.text, answer.finish, answer.has_thoughts) == ("", Finish.CUT, True)


@both_modes
async def test_a_conversation_is_sent_message_by_message(make: Make, mode: AnswerMode) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    prompt = Prompt("work", (Message("system", "s"), *(Message(role, text) for role, text in turns)))
    _, call = await call_once(make, mode, answer_body(make, "hi"), ModelRequest("m", prompt, 500, 20))
    sent = [(message["role"], message["content"]) for message in call.body["messages"]]
    assert sent[-4:] == turns
    assert sent[:-4] == ([] if make is messages else [("system", "s")])


@both_modes
async def test_a_reply_has_the_id_of_its_provider(make: Make, mode: AnswerMode) -> None:
    body = answer_body(make, "hi") | {"id": "resp-7"}
    assert (await reply(make, lambda _: body, mode=mode)).response_id == "resp-7"


@both_modes
async def test_a_failed_answer_has_its_id_too(make: Make, mode: AnswerMode) -> None:
    body = answer_body(make, "half", is_cut=True) | {"id": "resp-8"}
    error = await failure(make, lambda _: body, mode=mode)
    assert (error.reason, error.response_id) == ("OUTPUT_TRUNCATED", "resp-8")


@both_modes
@pytest.mark.parametrize(
    ("given", "known"),
    [
        (12345, "12345"),
        ("", ""),
        (None, ""),
        (["resp"], ""),
        (True, ""),
        ("x" * 201, ""),
        ("resp\n7", ""),
        ("resp-\ud800", ""),
    ],
)
async def test_an_invalid_id_is_omitted_and_fails_no_answer(
    make: Make, mode: AnswerMode, given: object, known: str
) -> None:
    body = answer_body(make, "hi") | {"id": given}
    answer = await reply(make, lambda _: body, mode=mode)
    assert (answer.text, answer.response_id) == ("hi", known)


async def test_an_answer_that_breaks_off_has_the_id_received_before(make: Make) -> None:
    async def broken(call: Call) -> web.StreamResponse:
        body = answer_body(make, "half of it") | {"id": "resp-9"}
        events = (
            streams.message_events(body) if make is messages else streams.completion_events(body, call.body)
        )
        return await streams.send(call.request, list(events)[:2])

    error = await failure(make, lambda _: broken)
    assert (error.reason, error.response_id) == ("STREAM_CUT", "resp-9")


async def test_a_call_without_an_answer_does_not_get_the_id_of_an_earlier_one(make: Make) -> None:
    answers: list[Any] = [
        answer_body(make, "half", is_cut=True) | {"id": "resp-1"},
        web.json_response({}, status=503),
    ]
    async with Endpoint(lambda _: answers.pop(0)) as endpoint, aclosing(make(endpoint)) as provider:
        assert (await provider.complete(model_request())).response_id == "resp-1"
        with pytest.raises(Exception, match="503") as caught:
            await provider.complete(model_request())
    assert getattr(caught.value, "response_id", None) == ""


async def test_every_outcome_of_a_call_is_recorded_with_the_id_of_its_answer(
    tmp_path: Path, make: Make
) -> None:
    def script(call: Call) -> Answer:
        name = call.subtask_id or call.role
        text = "no plan" if call.role == "planning" and call.attempt == 1 else plan_text(1)
        is_cut = call.role != "planning" and call.attempt == 1
        answer = answer_body(make, text, is_cut=is_cut) | {"id": f"{name}-{call.attempt}"}
        if call.role == "planning" or call.attempt != 2:
            return answer
        stopped: dict[str, Any] = answer_body(make, "half") | {"id": f"{name}-2"}
        (stopped["choices"][0] if make is chat else stopped).update(
            {"finish_reason" if make is chat else "stop_reason": "error"}
        )
        return stopped

    policy = instance_pb2.RetryPolicy(max_attempts=2)
    policy.initial_delay.nanos = 1_000_000
    config = instance_pb2.InstanceConfig(retry=policy)
    async with (
        Endpoint(script) as endpoint,
        aclosing(make(endpoint)) as provider,
        service(tmp_path / "log.db", provider) as running,
    ):
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a", config=config))
        await running.ended("a")
        events = [
            event
            async for message in running.stub.StreamEvents(pb.StreamEventsRequest(id="a"))
            for event in message.batch.events
        ]
    recorded: dict[str, str] = {}
    for event in events:
        kind = str(event.WhichOneof("payload"))
        if "response_id" in getattr(event, kind).DESCRIPTOR.fields_by_name:
            recorded[kind] = getattr(event, kind).response_id
    assert recorded == {
        "planning_failed": "planning-1",
        "plan_completed": "planning-2",
        "subtask_continued": "t1-1",
        "subtask_failed": "t1-2",
        "subtask_completed": "t1-3",
        "synthesis_continued": "synthesis-1",
        "synthesis_failed": "synthesis-2",
        "synthesis_completed": "synthesis-3",
    }
