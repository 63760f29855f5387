"""The scripted models, whose answers may take their time."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from orchestrator.core.instance import WorkKey
from orchestrator.core.prompts import Message, Prompt
from orchestrator.core.replies import ModelReply
from orchestrator.engine.live import Attempt, LiveTexts
from orchestrator.errors import ModelError
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Script, Scripted, in_pieces

REQUEST = ModelRequest("m", Prompt("work", (Message("user", "Hi"),)), 100, 10)


async def emitted_and_returned(script: Script) -> tuple[list[str], str]:
    emitted: list[str] = []
    reply = await Scripted(script).complete(REQUEST, emitted.append)
    return emitted, reply.text


@pytest.mark.parametrize("answer", ["all of it", ModelReply("all of it", 1, 2)])
async def test_a_whole_answer_is_emitted_in_one_piece(answer: str | ModelReply) -> None:
    assert await emitted_and_returned(lambda _: answer) == (["all of it"], "all of it")


async def test_a_streamed_answer_is_emitted_piece_by_piece() -> None:
    def script(_: ModelRequest) -> AsyncIterator[str]:
        return in_pieces("one two", per_s=10_000)

    assert await emitted_and_returned(script) == (["one ", "two"], "one two")
    assert (await Scripted(script).complete(REQUEST)).text == "one two"


async def test_a_late_reader_gets_all_pieces_so_far() -> None:
    said, go_on = asyncio.Event(), asyncio.Event()

    async def script(_: ModelRequest) -> AsyncIterator[str]:
        yield "one "
        yield "two "
        said.set()
        await go_on.wait()
        yield "three"

    texts = LiveTexts()
    on_text = texts.writer("i", Attempt(WorkKey("subtask", "t1"), 1, 2))
    call = asyncio.create_task(Scripted(script).complete(REQUEST, on_text))
    await said.wait()
    with texts.subscribe("i") as reader:
        assert [delta.text for delta in reader.read()] == ["one two "]
        go_on.set()
        assert (await call).text == "one two three"
        assert [delta.text for delta in reader.read()] == ["three"]


async def test_pieces_may_end_in_an_error() -> None:
    async def break_off(_: ModelRequest) -> AsyncIterator[str]:
        yield "one"
        raise ModelError("STREAM_CUT", "gone", retryable=True)

    emitted: list[str] = []
    with pytest.raises(ModelError, match="gone"):
        await Scripted(break_off).complete(REQUEST, emitted.append)
    assert emitted == ["one"]
