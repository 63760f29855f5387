"""Text as it is written, for those who watch."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from support import streams
from support.endpoint import Call, Endpoint, Misbehaviour, completion
from support.logs import ref
from support.provider_calls import answer_body, chat, messages
from support.service import Service, service

from orchestrator.core.instance import WorkKey
from orchestrator.errors import ModelError
from orchestrator.models.base import ModelRequest
from orchestrator.models.http import endpoint as endpoint_module
from orchestrator.models.http import streaming
from orchestrator.models.http.endpoint import HttpProvider
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

T1 = WorkKey("subtask", "t1")
SECOND_TRY = instance_pb2.RetryPolicy(max_attempts=2)
SECOND_TRY.initial_delay.nanos = 1_000_000


class Slow(Scripted):
    """A worker that writes word by word, each when the test allows it."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.words: asyncio.Queue[str | ModelError] = asyncio.Queue()

    def _answer(self, request: ModelRequest) -> Answer:
        if request.prompt.role == "planning":
            return plan_text(1)
        return self._work() if request.prompt.role == "work" else "The result."

    async def _work(self) -> AsyncIterator[str]:
        while word := await self.words.get():
            if isinstance(word, ModelError):
                raise word
            yield word
            self.words.task_done()

    async def write(self, *words: str) -> None:
        """Return once they have been written."""
        for word in words:
            self.words.put_nowait(word)
        await self.words.join()


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
    """An instance that is watched before its work begins; a review holds it until then."""
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


async def test_text_arrives_as_it_is_written_and_before_the_event_that_ends_it(
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


async def test_a_late_subscriber_gets_the_text_so_far_and_then_the_rest(running: Service, slow: Slow) -> None:
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


async def test_a_retry_is_streamed_as_a_new_attempt(running: Service, slow: Slow) -> None:
    stream = await begin(running)
    slow.words.put_nowait("Wrong")
    assert (await read_text(stream, 5))[0].attempt == 1
    slow.words.put_nowait(ModelError("STREAM_CUT", "cut", retryable=True))
    slow.words.put_nowait("Right")
    (delta,) = await read_text(stream, 5)
    assert (delta.attempt, delta.offset, delta.text) == (2, 0, "Right")
    slow.words.put_nowait("")


async def test_every_late_subscriber_gets_the_text_so_far(running: Service, slow: Slow) -> None:
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    await slow.write("One ", "twö ")
    first = watch(running)
    assert joined(await read_text(first, 8)) == "One twö "
    await slow.write("thr€e")
    assert (await read_text(first, 13))[0].text == "thr€e"
    second = watch(running)
    assert joined(await read_text(second, 13)) == "One twö thr€e"
    for stream in (first, second):
        stream.cancel()
    await slow.write(" four", " five")
    again = watch(running, 1)
    assert joined(await read_text(again, 23)) == "One twö thr€e four five"
    slow.words.put_nowait("")


async def test_a_subscriber_after_a_retry_gets_only_the_new_attempt(running: Service, slow: Slow) -> None:
    config = instance_pb2.InstanceConfig(retry=SECOND_TRY)
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a", config=config))
    await slow.write("Wrong")
    slow.words.put_nowait(ModelError("STREAM_CUT", "cut", retryable=True))
    slow.words.task_done()
    await slow.write("Ri")
    (delta,) = await read_text(watch(running), 2)
    assert (delta.attempt, delta.offset, delta.text) == (2, 0, "Ri")
    slow.words.put_nowait("")


async def test_a_subscriber_without_deltas_gets_no_text(running: Service, slow: Slow) -> None:
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
    request = pb.StreamEventsRequest(id="a")
    slow.words.put_nowait("All at once")
    slow.words.put_nowait("")
    kinds = [message.WhichOneof("kind") async for message in running.stub.StreamEvents(request)]
    assert "delta" not in kinds
    answer = await running.stub.GetInstance(pb.GetInstanceRequest(id="a", view=pb.VIEW_FULL))
    assert answer.instance.subtasks[0].output == "All at once"


@pytest.mark.parametrize("make", [chat, messages])
async def test_unwatched_text_is_available_to_a_subscriber_while_the_call_continues(
    tmp_path: Path, make: Callable[[Endpoint], HttpProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, half_came = asyncio.Event(), asyncio.Event()

    async def half(call: Call) -> web.StreamResponse:
        body = answer_body(make, "One, two, three")
        events = (
            streams.message_events(body) if make is messages else streams.completion_events(body, call.body)
        )
        response = await streams.start_response(call.request)
        for event in events:
            if "three" in str(event):
                await response.write(b": half\n\n")
                await go_on.wait()
            await response.write(streams.encode(event))
        return response

    class Observed(streaming.SseDecoder):
        def feed(self, chunk: bytes) -> Sequence[bytes]:
            if b": half" in chunk:
                half_came.set()
            return super().feed(chunk)

    monkeypatch.setattr(endpoint_module, "SseDecoder", Observed)
    async with (
        Endpoint(lambda call: half if call.subtask_id == "t1" else None, subtasks=1) as endpoint,
        aclosing(make(endpoint)) as provider,
        service(tmp_path / "log.db", provider) as running,
    ):
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
        await half_came.wait()
        late = watch(running)
        assert joined(await read_text(late, 10)) == "One, two, "
        assert not go_on.is_set()
        go_on.set()
        assert (await read_text(late, 15))[0].text == "three"
        await running.ended("a")
        answer = await running.stub.GetInstance(pb.GetInstanceRequest(id="a", view=pb.VIEW_FULL))
    assert answer.instance.subtasks[0].output == "One, two, three"


@pytest.mark.parametrize("is_watched", [False, True])
async def test_a_request_says_whether_its_call_is_watched_and_planning_always_is(
    tmp_path: Path, is_watched: bool
) -> None:
    watched: set[tuple[str, bool]] = set()
    canned, both = Scripted(subtasks=2), asyncio.Barrier(2)

    async def script(request: ModelRequest) -> Answer:
        watched.add((request.prompt.role, request.is_watched))
        if request.prompt.role == "work":
            await both.wait()
        return await canned.complete(request)

    async with service(tmp_path / "log.db", Scripted(script)) as running:
        if is_watched:
            stream = await begin(running)
            await running.ended("a")
            stream.cancel()
        else:
            await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
            await running.ended("a")
    assert watched == {("planning", True), ("work", is_watched), ("synthesis", is_watched)}


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


class TwoWorkers(Scripted):
    """Two subtasks: t1 writes two words and ends when it is let, t2 writes one word and then nothing."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.let = asyncio.Event()
        self.has_written = asyncio.Event()

    def _answer(self, request: ModelRequest) -> Answer:
        if request.prompt.role == "planning":
            return plan_text(2)
        return self._first() if request.prompt.subtask_id == "t1" else self._second()

    async def _first(self) -> AsyncIterator[str]:
        yield "One "
        self.has_written.set()
        await self.let.wait()
        yield "two"

    async def _second(self) -> AsyncIterator[str]:
        yield "Other"
        await asyncio.Event().wait()


async def grpc_messages(running: Service) -> AsyncIterator[tuple[str, str, int]]:
    """Of each event and each delta its name, subtask and attempt, as gRPC brings them."""
    async for message in watch(running):
        if message.HasField("delta"):
            yield "delta", message.delta.subtask_id, message.delta.attempt
        for event in message.batch.events:
            payload = getattr(event, str(event.WhichOneof("payload")))
            yield (
                str(event.WhichOneof("payload")),
                getattr(payload, "subtask_id", ""),
                getattr(payload, "attempt", 0),
            )


async def sse_messages(running: Service) -> AsyncIterator[tuple[str, str, int]]:
    """The same of Server-Sent Events."""
    request = pb.StreamServerSentEventsRequest(id="a", include_deltas=True)
    data = ""
    async for body in running.stub.StreamServerSentEvents(request):
        *frames, data = (data + body.data.decode()).split("\n\n")
        for frame in frames:
            lines = dict(line.split(": ", 1) for line in frame.splitlines() if line and line[0] != ":")
            payload = json.loads(lines.get("data", "{}"))
            if lines.get("event") == "delta":
                yield "delta", payload["subtaskId"], payload["attempt"]
            elif payload:
                name = lines["event"]
                head, *rest = name.split("_")
                inner = payload.get(head + "".join(map(str.capitalize, rest)), {})
                yield name, inner.get("subtaskId", ""), inner.get("attempt", 0)


@pytest.mark.parametrize("read", [grpc_messages, sse_messages])
async def test_a_late_subscriber_gets_no_text_after_the_event_that_ended_it(
    tmp_path: Path,
    read: Callable[[Service], AsyncIterator[tuple[str, str, int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers = TwoWorkers()
    async with service(tmp_path / "log.db", workers) as running:
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
        await workers.has_written.wait()
        has_come, may_read, read_page = asyncio.Event(), asyncio.Event(), running.log.read

        async def held(*args: Any) -> Any:
            has_come.set()
            await may_read.wait()
            return await read_page(*args)

        monkeypatch.setattr(running.log, "read", held)
        messages: list[tuple[str, str, int]] = []

        async def follow() -> None:
            async with aclosing(read(running)) as stream:
                async for message in stream:
                    messages.append(message)
                    if message[:2] == ("delta", "t2"):
                        return

        reader = asyncio.create_task(follow())
        await has_come.wait()  # it watches, and has read nothing: t1 is still being written
        workers.let.set()
        instance = await ref(running.log, "a")
        with running.log.notifier.watch(instance) as woken:
            while not any(
                event.subtask_completed.subtask_id == "t1"
                for event in (await read_page(instance, 0)).events()
            ):
                await woken.wait()
                woken.clear()
        may_read.set()
        await reader
    assert ("subtask_completed", "t1", 1) in messages
    assert ("delta", "t1", 1) not in messages
    assert messages[-1] == ("delta", "t2", 1)


THOUGHTS = "Okay, the user wants a list.\n\n</think>\n\n"


async def read_to_the_end(stream: Stream) -> tuple[dict[str, str], int]:
    """Each subtask's text as a client puts it together, and how often a piece replaced what was before it."""
    texts: dict[str, str] = {}
    replacements = 0
    message = pb.StreamEventsResponse()
    while not message.HasField("end"):
        message = await stream.read()
        if message.HasField("delta"):
            before, offset = texts.get(message.delta.subtask_id, ""), message.delta.offset
            assert offset <= len(before)
            replacements += offset < len(before)
            texts[message.delta.subtask_id] = before[:offset] + message.delta.text
    return texts, replacements


@pytest.mark.parametrize("make", [chat, messages])
async def test_shown_thoughts_are_replaced_by_the_answer_and_withheld_the_next_time(
    tmp_path: Path, make: Callable[[Endpoint], HttpProvider]
) -> None:
    thoughts_were_shown = asyncio.Event()

    async def think(call: Call) -> web.StreamResponse:
        response = await streams.start_response(call.request)
        body = answer_body(make, f"{THOUGHTS}One, two")
        events = (
            streams.message_events(body) if make is messages else streams.completion_events(body, call.body)
        )
        for event in events:
            if "</th" in str(event):
                await thoughts_were_shown.wait()
            await response.write(streams.encode(event))
        return response

    config = instance_pb2.InstanceConfig(
        subtasks=[
            instance_pb2.Subtask(id="t1", instructions="x"),
            instance_pb2.Subtask(id="t2", instructions="x", depends_on=["t1"]),
        ]
    )
    async with (
        Endpoint(lambda _: think) as endpoint,
        aclosing(make(endpoint)) as provider,
        service(tmp_path / "log.db", provider) as running,
    ):
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a", config=config))
        stream = watch(running)
        assert THOUGHTS.startswith(joined(await read_text(stream, 10)))
        thoughts_were_shown.set()
        texts, _ = await read_to_the_end(stream)
        assert texts == {"t1": "One, two", "t2": "One, two", "": "One, two"}
        answer = await running.stub.GetInstance(pb.GetInstanceRequest(id="a", view=pb.VIEW_FULL))
    assert [subtask.output for subtask in answer.instance.subtasks] == ["One, two", "One, two"]
    assert answer.instance.final_result == "One, two"


async def test_after_one_role_showed_thoughts_the_models_other_calls_withhold_them(
    tmp_path: Path,
) -> None:
    is_watched = asyncio.Event()

    async def work(call: Call) -> web.StreamResponse:
        await is_watched.wait()
        events = streams.completion_events(completion(f"{THOUGHTS}One, two"), call.body)
        return await streams.send(call.request, events)

    def script(call: Call) -> str | Misbehaviour:
        if call.role == "planning":
            return f"{THOUGHTS}{plan_text(1)}"
        return work if call.role == "work" else "The result."

    async with (
        Endpoint(script) as endpoint,
        aclosing(chat(endpoint)) as provider,
        service(tmp_path / "log.db", provider) as running,
    ):
        await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="x", id="a"))
        stream = watch(running)
        while not (await stream.read()).HasField("caught_up"):
            pass
        is_watched.set()
        assert await read_to_the_end(stream) == ({"t1": "One, two", "": "The result."}, 0)
