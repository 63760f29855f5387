"""The client keeps the stream's promises across whatever cuts it."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.scripted_service import ScriptedService, play_success
from support.service import service as real_service

from orchestrator import client as client_module
from orchestrator.client import Client, Event, OutputDelta, ServiceError, streams
from orchestrator.models.scripted import Scripted
from orchestrator.v1 import event_pb2, instance_pb2

PLAYED = 12
"""The events of `play_success`, the first included."""


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    async with ScriptedService() as service:
        yield await service.start()


@pytest.fixture
async def client(service: ScriptedService) -> AsyncIterator[Client]:
    async with Client(service.address) as client:
        yield client


@pytest.fixture
def nowhere() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def create_instance(service: ScriptedService) -> str:
    await service.record("i1", event_pb2.InstanceCreated(prompt="p"))
    return "i1"


async def sequences(client: Client, instance_id: str, after: int = 0) -> list[int]:
    return [event.sequence async for event in client.stream_events(instance_id, after_sequence=after)]


async def test_a_stream_yields_every_event_and_ends(service: ScriptedService, client: Client) -> None:
    await play_success(service, await create_instance(service))
    assert await sequences(client, "i1") == list(range(1, PLAYED + 1))
    assert await sequences(client, "i1", after=5) == list(range(6, PLAYED + 1))
    assert await sequences(client, "i1", after=PLAYED) == []


async def test_the_example_in_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    async def play(service: ScriptedService, instance_id: str) -> None:
        await service.write(instance_id, "as it is written", subtask_id="t9")
        await play_success(service, instance_id)

    async with ScriptedService(play) as service:
        await service.start()
        lines = (client_module.__doc__ or "").replace("127.0.0.1:50051", service.address).splitlines()
        example = "\n".join(line for line in lines if line.startswith("    "))
        names: dict[str, Any] = {}
        exec(f"async def run():\n{example}\n    return written", names)
        written = await names["run"]()
    out = capsys.readouterr().out
    assert out.count(f"{PLAYED} instance_completed") == 2
    assert "# Answer" in out
    assert written == {("t9", 1): "as it is written"}


async def test_a_stream_resumes_after_an_announced_shutdown(service: ScriptedService, client: Client) -> None:
    await play_success(service, await create_instance(service))
    service.cut_after = 4
    assert await sequences(client, "i1") == list(range(1, PLAYED + 1))
    assert service.streams_opened == [0, 4]


async def test_a_stream_survives_a_restart_of_the_service(service: ScriptedService, client: Client) -> None:
    await create_instance(service)
    await service.record("i1", event_pb2.PlanningStarted(attempt=1, model="m/m"))
    seen = []
    async with aclosing(client.stream_events("i1")) as events:
        async for event in events:
            seen.append(event.sequence)
            if event.sequence == 2:
                await service.stop()
                await service.record("i1", event_pb2.PlanCompleted(attempt=1, model="m/m"))
                await service.start(port=service.port)
            if event.sequence == 3:
                await service.record("i1", event_pb2.InstanceTerminated())
    assert seen == [1, 2, 3, 4]
    assert service.streams_opened == [0, 2]


async def test_a_stream_reports_disconnects_and_reconnects(service: ScriptedService, client: Client) -> None:
    await play_success(service, await create_instance(service))
    service.cut_after = 4
    changes: list[str] = []
    events = client.stream_events(
        "i1", on_disconnect=lambda error: changes.append(error.reason if error else "back")
    )
    assert len([event async for event in events]) == PLAYED
    assert changes == ["SHUTTING_DOWN", "back"]


async def test_text_arrives_as_it_is_written_and_is_repeated_at_its_offset_after_a_disconnect(
    service: ScriptedService, client: Client
) -> None:
    await create_instance(service)
    await service.record("i1", event_pb2.PlanningStarted(attempt=1, model="m/m"))
    await service.write("i1", "one two", subtask_id="t1", attempt=2)
    received: list[Event | OutputDelta] = []
    async with aclosing(client.stream("i1")) as items:
        async for item in items:
            received.append(item)
            if isinstance(item, OutputDelta) and item.text == "one two":
                await service.write("i1", " three", subtask_id="t1", attempt=2)
            if isinstance(item, OutputDelta) and item.text == " three":
                await service.stop()
                await service.start(port=service.port)
            if isinstance(item, OutputDelta) and item.text == "one two three":
                await service.record("i1", event_pb2.InstanceTerminated())
    assert [item.sequence for item in received if isinstance(item, Event)] == [1, 2, 3]
    deltas = [item for item in received if isinstance(item, OutputDelta)]
    places = [(delta.subtask_id, delta.attempt, delta.offset, delta.text) for delta in deltas]
    assert places == [
        ("t1", 2, 0, "one two"),
        ("t1", 2, 7, " three"),
        ("t1", 2, 0, "one two three"),
    ]
    assert service.streams_opened == [0, 2]


async def test_text_is_streamed_only_on_request(service: ScriptedService, client: Client) -> None:
    await create_instance(service)
    await service.write("i1", "text")
    await service.record("i1", event_pb2.InstanceTerminated())
    assert await sequences(client, "i1") == [1, 2]


async def test_the_stream_of_all_instances_resumes_after_the_last_position(
    service: ScriptedService, client: Client
) -> None:
    for instance_id, team in (("i1", "a"), ("i2", "b"), ("i3", "a")):
        await service.record(instance_id, event_pb2.InstanceCreated(prompt="p", labels={"team": team}))
    service.cut_after = 2
    batches = [batch async for batch in client.stream_all_events(follow=False)]
    assert [batch.events[0].instance_id for batch in batches] == ["i1", "i2", "i3"]
    assert service.streams_opened == [0, 2]
    after = batches[0].last_position
    labelled = client.stream_all_events(after_position=after, labels={"team": "a"}, follow=False)
    assert [batch.last_position async for batch in labelled] == [3]


async def test_the_stream_of_all_instances_continues_live(service: ScriptedService, client: Client) -> None:
    await create_instance(service)
    to_come = [event_pb2.PlanningStarted(attempt=1, model="m/m"), event_pb2.InstanceTerminated()]
    positions = []
    async with aclosing(client.stream_all_events()) as batches:
        async for batch in batches:
            positions.append(batch.last_position)
            if not to_come:
                break
            await service.stop()
            await service.record("i1", to_come.pop(0))
            await service.start(port=service.port)
    assert positions == [1, 2, 3]


async def test_the_real_service_streams_all_instances_from_any_position(tmp_path: Path) -> None:
    async with (
        real_service(tmp_path / "log.db", Scripted(subtasks=2)) as real,
        Client(real.address) as client,
    ):
        for instance_id, team in (("i1", "a"), ("i2", "b"), ("i3", "a")):
            await client.create("p", instance_id=instance_id, labels={"team": team})
            await client.wait(instance_id)
        batches = [batch async for batch in client.stream_all_events(follow=False)]
        pairs = [(event.instance_id, event.sequence) for batch in batches for event in batch.events]
        assert len(pairs) == len(set(pairs)) == batches[-1].last_position
        labelled = client.stream_all_events(labels={"team": "a"}, follow=False)
        names = [event.instance_id async for batch in labelled for event in batch.events]
        assert names == [name for name, _ in pairs if name != "i2"]
        rest = client.stream_all_events(after_position=batches[-1].last_position - 1, follow=False)
        assert [len(batch.events) async for batch in rest] == [1]
        items = [item async for item in client.stream("i1")]
        assert [item.sequence for item in items if isinstance(item, Event)] == [
            sequence for name, sequence in pairs if name == "i1"
        ]


def test_a_decreasing_position_is_an_error() -> None:
    with pytest.raises(ServiceError) as failure:
        streams.check_position(3, 3)
    assert failure.value.code is grpc.StatusCode.DATA_LOSS


async def test_without_follow_a_stream_ends_at_the_live_edge(
    service: ScriptedService, client: Client
) -> None:
    await create_instance(service)
    assert [event.sequence async for event in client.stream_events("i1", follow=False)] == [1]


async def test_a_silent_connection_counts_as_disconnected(
    service: ScriptedService, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "SILENCE_TIMEOUT_S", 0.05)
    await create_instance(service)
    with pytest.raises(ServiceError, match="silent"):
        async for _ in client.stream_events("i1", keep_trying_s=0.2):
            pass
    assert len(service.streams_opened) > 1


async def test_it_gives_up_after_a_time_without_an_answer(nowhere: str) -> None:
    began = time.monotonic()
    async with Client(nowhere) as client:
        with pytest.raises(ServiceError) as failure:
            await anext(client.stream_events("i1", keep_trying_s=0.5))
    assert failure.value.code is grpc.StatusCode.UNAVAILABLE
    assert 0.5 <= time.monotonic() - began < 5


async def test_an_impossible_order_of_events_is_an_error(service: ScriptedService, client: Client) -> None:
    await play_success(service, await create_instance(service))
    service.events["i1"][3].sequence = 5
    with pytest.raises(ServiceError) as failure:
        await sequences(client, "i1")
    assert failure.value.code is grpc.StatusCode.DATA_LOSS


async def test_a_failure_contains_every_detail_of_the_service(
    service: ScriptedService, client: Client
) -> None:
    assert service.events == {}
    for call in (client.get("nix"), client.wait("nix"), anext(client.stream_events("nix"))):
        with pytest.raises(ServiceError) as failure:
            await call
        assert failure.value.code is grpc.StatusCode.NOT_FOUND
        assert failure.value.reason == "INSTANCE_NOT_FOUND"
        assert failure.value.metadata == {"id": "nix"}
        assert str(failure.value) == "no instance 'nix'"


async def test_a_refusal_is_not_retried(service: ScriptedService, client: Client) -> None:
    service.create_error = (grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_EMPTY", "the prompt is empty")
    with pytest.raises(ServiceError, match="the prompt is empty"):
        await client.create(" ")
    assert len(service.requests) == 1


async def test_an_instance_is_created_shown_listed_and_terminated(
    service: ScriptedService, client: Client
) -> None:
    config = instance_pb2.InstanceConfig(max_subtasks=3)
    answer = await client.create("p", instance_id="mine", config=config, labels={"a": "b"})
    assert (answer.id, answer.instance.config.max_subtasks, answer.instance.labels) == ("mine", 3, {"a": "b"})
    assert (await client.get("mine")).status.status == "queued"
    terminated = await client.terminate("mine")
    assert terminated.instance.state == instance_pb2.STATE_TERMINATED
    page = await client.list(states=[instance_pb2.STATE_TERMINATED])
    assert [instance.id for instance in page.instances] == ["mine"]
    assert service.requests[0].prompt == "p"


async def test_a_result_of_many_megabytes_arrives(service: ScriptedService, client: Client) -> None:
    await create_instance(service)
    output = "x" * (20 * 1024 * 1024)
    await service.record(
        "i1",
        event_pb2.SubtaskPlanned(subtask=instance_pb2.Subtask(id="t1")),
        event_pb2.PlanCompleted(),
        event_pb2.SubtaskStarted(subtask_id="t1", attempt=1),
        event_pb2.SubtaskCompleted(subtask_id="t1", attempt=1, output=output),
    )
    assert (await client.get("i1", full=True)).instance.subtasks[0].output == output
    events = [event async for event in client.stream_events("i1", follow=False)]
    assert events[-1].subtask_completed.output == output


async def test_wait_returns_at_the_end_or_at_its_timeout(service: ScriptedService, client: Client) -> None:
    await create_instance(service)
    assert (await client.wait("i1", timeout_s=0.05)).status.status == "queued"
    waiting = asyncio.create_task(client.wait("i1"))
    await service.record("i1", event_pb2.InstanceTerminated())
    assert (await waiting).status.status == "terminated"


async def test_wait_survives_a_restart(service: ScriptedService, client: Client) -> None:
    await create_instance(service)
    waiting = asyncio.create_task(client.wait("i1"))
    await service.wait_called.wait()
    await service.stop()
    await service.record("i1", event_pb2.InstanceTerminated())
    await service.start(port=service.port)
    assert (await waiting).status.status == "terminated"


async def test_health_reports_whether_a_service_answers(client: Client, nowhere: str) -> None:
    assert await client.is_serving()
    async with Client(nowhere) as other:
        assert not await other.is_serving()
