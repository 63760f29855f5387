"""The blocking client keeps the promises of the one for asyncio, in programs that run no event loop."""

import asyncio
import inspect
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from support.scripted_service import ScriptedService, play_success
from support.service import service as real_service

from orchestrator.client import Client, Event, OutputDelta, ServiceError, SyncClient, streams
from orchestrator.models.scripted import Scripted
from orchestrator.v1 import event_pb2, instance_pb2, orchestrator_pb2

R = TypeVar("R")


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    async with ScriptedService() as service:
        await service.start()
        await service.record("i1", event_pb2.InstanceCreated(prompt="p"))
        yield service


@pytest.fixture
def client(service: ScriptedService) -> Iterator[SyncClient]:
    with SyncClient(service.address) as client:
        yield client


async def blocking(call: Callable[[], R]) -> R:
    """Run a program without an event loop, beside the service's."""
    return await asyncio.to_thread(call)


def test_it_has_every_method_of_the_asyncio_client() -> None:
    methods = {name for name, _ in inspect.getmembers(Client, callable) if not name.startswith("_")}
    assert methods == {
        name for name, _ in inspect.getmembers(SyncClient, callable) if not name.startswith("_")
    }
    for name in methods:
        of_client, of_sync = (
            list(inspect.signature(getattr(kind, name)).parameters) for kind in (Client, SyncClient)
        )
        assert of_client == of_sync


async def test_a_program_without_asyncio_uses_the_real_service(tmp_path: Path) -> None:
    def program(address: str) -> tuple[list[int], str]:
        with SyncClient(address) as client:
            assert client.is_serving()
            created = client.create("p", labels={"team": "a"})
            sequences = [event.sequence for event in client.stream_events(created.id)]
            assert client.wait(created.id).instance.state == instance_pb2.STATE_COMPLETE
            assert [instance.id for instance in client.list(labels={"team": "a"}).instances] == [created.id]
            batches = list(client.stream_all_events(follow=False))
            assert batches[-1].last_position == len(sequences)
            items = list(client.stream(created.id))
            assert [item.sequence for item in items if isinstance(item, Event)] == sequences
            result = client.result(created.id)
            assert client.get(created.id).status.output.final_result == result
            client.delete(created.id)
            with pytest.raises(ServiceError) as failure:
                client.get(created.id)
            assert failure.value.code is grpc.StatusCode.NOT_FOUND
            assert failure.value.reason == "INSTANCE_NOT_FOUND"
            return sequences, result

    async with real_service(tmp_path / "log.db", Scripted(subtasks=2)) as real:
        sequences, result = await blocking(lambda: program(real.address))
    assert sequences == list(range(1, len(sequences) + 1))
    assert result


async def test_it_works_in_a_thread_with_a_running_event_loop(tmp_path: Path) -> None:
    def notebook(address: str) -> int:
        async def cell() -> int:
            with SyncClient(address) as client:
                return len(list(client.stream_events(client.create("p").id)))

        return asyncio.run(cell())

    async with real_service(tmp_path / "log.db", Scripted(subtasks=1)) as real:
        assert await blocking(lambda: notebook(real.address)) > 1


async def test_text_arrives_as_it_is_written(service: ScriptedService, client: SyncClient) -> None:
    await service.write("i1", "some text", subtask_id="t1", attempt=1)

    def first_text() -> str:
        with closing(client.stream("i1")) as items:
            return next(item.text for item in items if isinstance(item, OutputDelta))

    assert await blocking(first_text) == "some text"


async def test_a_stream_survives_a_restart_of_the_service(
    service: ScriptedService, client: SyncClient
) -> None:
    has_one, connections = threading.Event(), []

    def read() -> list[int]:
        sequences = []
        for event in client.stream_events(
            "i1", on_disconnect=lambda error: connections.append(error is None)
        ):
            sequences.append(event.sequence)
            has_one.set()
        return sequences

    reading = asyncio.create_task(blocking(read))
    await blocking(has_one.wait)
    await service.stop()
    await play_success(service, "i1")
    await service.start(port=service.port)
    sequences = await reading
    assert sequences == list(range(1, len(sequences) + 1))
    assert len(sequences) > 1
    assert connections[0] is False
    assert connections[-1] is True


async def test_wait_survives_a_restart(service: ScriptedService, client: SyncClient) -> None:
    waiting = asyncio.create_task(blocking(lambda: client.wait("i1")))
    await service.wait_called.wait()
    await service.stop()
    await service.record("i1", event_pb2.InstanceTerminated())
    await service.start(port=service.port)
    assert (await waiting).status.status == "terminated"


async def test_a_silent_connection_counts_as_disconnected(
    service: ScriptedService, client: SyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "SILENCE_TIMEOUT_S", 0.05)
    with pytest.raises(ServiceError, match="silent"):
        await blocking(lambda: list(client.stream_events("i1", keep_trying_s=0.2)))
    assert len(service.streams_opened) > 1


async def test_a_dropped_iterator_closes_its_stream() -> None:
    closed = asyncio.Event()

    class Watched(ScriptedService):
        async def StreamEvents(  # noqa: N802
            self, request: orchestrator_pb2.StreamEventsRequest, context: Any
        ) -> AsyncIterator[orchestrator_pb2.StreamEventsResponse]:
            try:
                async for message in super().StreamEvents(request, context):
                    yield message
            finally:
                closed.set()

    async with Watched() as service:
        await service.start()
        await service.record("i1", event_pb2.InstanceCreated(prompt="p"))
        with SyncClient(service.address) as client:
            assert await blocking(lambda: next(client.stream_events("i1")).sequence) == 1
            async with asyncio.timeout(10):
                await closed.wait()


async def test_ctrl_c_ends_a_program_that_waits_for_the_next_event(service: ScriptedService) -> None:
    program = (
        "import sys; from orchestrator.client import SyncClient\n"
        "for event in SyncClient(sys.argv[1]).stream_events('i1'): print(event.sequence, flush=True)"
    )
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        service.address,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert running.stdout
    assert await running.stdout.readline() == b"1\n"
    running.send_signal(signal.SIGINT)
    _, errors = await asyncio.wait_for(running.communicate(), 20)
    assert running.returncode == -signal.SIGINT
    assert errors.decode().rstrip().endswith("KeyboardInterrupt")


async def test_threads_can_share_a_client(service: ScriptedService, client: SyncClient) -> None:
    await play_success(service, "i1")

    def read() -> list[int]:
        return [event.sequence for event in client.stream_events("i1")]

    first, *others = await asyncio.gather(*(blocking(read) for _ in range(8)))
    assert len(first) > 1
    assert all(other == first for other in others)


async def test_a_closed_client_rejects_calls(service: ScriptedService) -> None:
    client = SyncClient(service.address)
    assert (await blocking(lambda: client.get("i1"))).instance.id == "i1"
    client.close()
    with pytest.raises(ValueError, match="closed"):
        client.get("i1")
