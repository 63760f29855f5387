"""Text as it is written, for those who watch."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.service import Service, service

from orchestrator.errors import ModelError
from orchestrator.models.base import ModelReply, ModelRequest, OnText
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

SECOND_TRY = instance_pb2.RetryPolicy(max_attempts=2)
SECOND_TRY.initial_delay.nanos = 1_000_000


class Slow(Scripted):
    """A worker that writes word by word, each when the test says so; it counts who asks for a stream."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.words: asyncio.Queue[str | ModelError] = asyncio.Queue()
        self.written = asyncio.Condition()
        self.streamed: list[bool] = []

    async def complete(self, request: ModelRequest, on_text: OnText | None = None) -> ModelReply:
        if request.prompt.role == "work":
            self.streamed.append(on_text is not None)
        return await super().complete(request, on_text)

    def _answer(self, request: ModelRequest) -> Answer:
        if request.prompt.role == "planning":
            return plan_text(1)
        return self._work() if request.prompt.role == "work" else "The result."

    async def _work(self) -> AsyncIterator[str]:
        while word := await self.words.get():
            if isinstance(word, ModelError):
                raise word
            yield word


@pytest.fixture
async def slow() -> Slow:
    return Slow()


@pytest.fixture
async def running(tmp_path: Path, slow: Slow) -> AsyncIterator[Service]:
    async with service(tmp_path / "log.db", slow) as running:
        yield running


Stream = Any  # of grpc.aio: StreamEvents under way


def watch(running: Service, after: int = 0) -> Stream:
    request = pb.StreamEventsRequest(id="a", after_sequence=after, include_deltas=True)
    return running.stub.StreamEvents(request)


async def begin(running: Service) -> Stream:
    """An instance that is watched before its work begins; it is held by a review until the watch stands."""
    config = instance_pb2.InstanceConfig(review_plan=True, retry=SECOND_TRY)
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a", config=config))
    stream = watch(running)
    missing = {"caught_up", "plan_completed"}
    while missing:
        message = await stream.read()
        missing -= {message.WhichOneof("kind")}
        missing -= {event.WhichOneof("payload") for event in message.batch.events}
    await running.stub.ReviewPlan(pb.ReviewPlanRequest(id="a", decision=1))
    return stream


async def read_text(stream: Stream, length: int) -> list[pb.OutputDelta]:
    """Deltas until so many characters of one attempt have been given."""
    deltas: list[pb.OutputDelta] = []
    while not deltas or deltas[-1].offset + len(deltas[-1].text) < length:
        message = await stream.read()
        if message.HasField("delta"):
            deltas.append(message.delta)
    return deltas


def joined(deltas: list[pb.OutputDelta]) -> str:
    """The text; there must be no gap and no overlap."""
    text = ""
    for delta in deltas:
        assert delta.offset == len(text)
        text += delta.text
    return text


async def test_text_comes_as_it_is_written_and_before_the_event_that_ends_it(
    running: Service, slow: Slow
) -> None:
    stream = await begin(running)
    for number, word in enumerate(["One ", "twö ", "thr€e"], 1):
        slow.words.put_nowait(word)
        (delta,) = await read_text(stream, 1)
        assert (delta.subtask_id, delta.attempt, delta.text) == ("t1", 1, word)
        assert delta.offset == 4 * (number - 1)
    slow.words.put_nowait("!")
    slow.words.put_nowait("")
    kinds: list[str] = []
    message = pb.StreamEventsResponse()
    while not message.HasField("end"):
        message = await stream.read()
        if message.HasField("delta") and message.delta.subtask_id:
            kinds.append("!")
            assert message.delta.text == "!"
        kinds += [str(event.WhichOneof("payload")) for event in message.batch.events]
    assert kinds.index("!") < kinds.index("subtask_completed")
    assert kinds[-1] == "instance_completed"
    assert slow.streamed == [True]


async def test_who_comes_late_is_given_the_text_so_far_and_then_the_rest(
    running: Service, slow: Slow
) -> None:
    first = await begin(running)
    slow.words.put_nowait("One ")
    slow.words.put_nowait("two ")
    await read_text(first, 8)
    late = watch(running)
    assert joined(await read_text(late, 8)) == "One two "
    slow.words.put_nowait("three")
    assert (await read_text(first, 13))[0].offset == 8
    assert (await read_text(late, 13))[0].text == "three"
    late.cancel()
    slow.words.put_nowait(" four")
    assert (await read_text(first, 18))[0].text == " four"
    again = watch(running, 3)
    assert joined(await read_text(again, 18)) == "One two three four"
    slow.words.put_nowait("")


async def test_a_retry_is_a_new_attempt_from_the_beginning(running: Service, slow: Slow) -> None:
    stream = await begin(running)
    slow.words.put_nowait("Wrong")
    assert (await read_text(stream, 5))[0].attempt == 1
    slow.words.put_nowait(ModelError("STREAM_CUT", "cut", retryable=True))
    slow.words.put_nowait("Right")
    (delta,) = await read_text(stream, 5)
    assert (delta.attempt, delta.offset, delta.text) == (2, 0, "Right")
    slow.words.put_nowait("")


async def test_where_nobody_watches_nothing_is_streamed(running: Service, slow: Slow) -> None:
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    request = pb.StreamEventsRequest(id="a")
    slow.words.put_nowait("All at once")
    slow.words.put_nowait("")
    kinds = [message.WhichOneof("kind") async for message in running.stub.StreamEvents(request)]
    assert slow.streamed == [False]
    assert "delta" not in kinds
    answer = await running.stub.GetInstance(pb.GetInstanceRequest(id="a", view=pb.VIEW_FULL))
    assert answer.instance.subtasks[0].output == "All at once"


async def test_text_reaches_server_sent_events_without_an_id(running: Service, slow: Slow) -> None:
    config = instance_pb2.InstanceConfig(review_plan=True)
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a", config=config))
    request = pb.StreamServerSentEventsRequest(id="a", include_deltas=True)
    stream = running.stub.StreamServerSentEvents(request)
    data = b""
    while b"plan_completed" not in data:
        data += (await stream.read()).data
    slow.words.put_nowait("One")
    await running.stub.ReviewPlan(pb.ReviewPlanRequest(id="a", decision=1))
    while b"event: delta" not in data:
        data = (await stream.read()).data
    event, line = data.decode().strip().split("\n")
    assert event == "event: delta"
    delta = json.loads(line.removeprefix("data: "))
    assert delta == {"subtaskId": "t1", "attempt": 1, "offset": "0", "text": "One"}
    slow.words.put_nowait("")
