"""A slow reader is cheap: the service buffers little for it, serves the others, and never drops it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.endpoint import Endpoint
from support.histories import History, part
from support.logs import key
from support.process import Process, on_endpoint, process

from orchestrator.client import Client
from orchestrator.core.events import work_completed
from orchestrator.core.instance import Usage, WorkKey
from orchestrator.log.base import Creation
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.orchestrator_pb2_grpc import OrchestratorStub

MIB = 2**20
PARTS, OUTPUT = 256, "x" * (256 * 1024)
"""A log of 64 MiB: far more than what lies between a server that writes and a client that does not read."""
READERS = 16
MOST_MIB_A_READER = 8
"""A page of 1 MiB a few times over: as read, as a message, and on its way. The whole log would be 64."""
INSTANCES = 20
"""So many are served while the slow readers are stalled."""
SERVED_S = 5.0
"""By then an instance is created and complete beside them: some fifty times what it takes alone."""


async def write_long_log(path: Path) -> int:
    """A finished instance with large events; how many there are."""
    history = History("long").planned(*(part(f"t{number}") for number in range(PARTS)))
    for number in range(PARTS):
        history.started(f"t{number}")
        history.then(
            work_completed(history.instance, WorkKey("subtask", f"t{number}"), OUTPUT, Usage(1, 2, 1))
        )
    history.completed()
    log = await SqliteEventLog.open(path)
    await log.create([Creation(key("long"), history.events, history.instance)])
    await log.aclose()
    return len(history.events)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[tuple[Process, int]]:
    count = await write_long_log(tmp_path / "orchestrator.db")
    async with Endpoint() as endpoint, process(tmp_path, **on_endpoint(endpoint.url)) as service:
        yield service, count


def resident_mib(service: Process) -> float:
    """How much of the service's memory is in use (VmRSS)."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def stream(stub: OrchestratorStub, number: int) -> Any:
    """Every other reader reads all instances' events."""
    if number % 2:
        return stub.StreamAllEvents(pb.StreamAllEventsRequest(follow=False))
    return stub.StreamEvents(pb.StreamEventsRequest(id="long"))


async def rest(call: Any) -> list[Any]:
    """What comes up to the end, or to where the log was."""
    messages = []
    while (message := await call.read()) is not grpc.aio.EOF:
        messages.append(message)
    assert await call.code() == grpc.StatusCode.OK
    return messages


async def test_stalled_readers_use_little_memory_block_no_other_and_resume(
    running: tuple[Process, int],
) -> None:
    service, count = running
    async with AsyncExitStack() as stack, Client(service.grpc_address) as client:
        stubs = []
        for _ in range(READERS):
            # A connection of its own: by default gRPC lets channels to one address share theirs.
            alone = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(service.grpc_address, options=alone)
            stubs.append(OrchestratorStub(await stack.enter_async_context(channel)))
        await rest(stream(stubs[0], 0))  # one reader's pages are in what is compared with
        before_mib = resident_mib(service)
        calls = [stream(stub, number) for number, stub in enumerate(stubs)]
        async with asyncio.timeout(SERVED_S):
            started = [await call.read() for call in calls]
        for number in range(INSTANCES):
            async with asyncio.timeout(SERVED_S):
                await client.create("Build it", instance_id=f"i{number}")
                answer = await client.wait(f"i{number}", timeout_s=SERVED_S)
            assert answer.instance.state == instance_pb2.STATE_COMPLETE
        grown_mib = resident_mib(service) - before_mib
        assert grown_mib < READERS * MOST_MIB_A_READER
        for call, first in list(zip(calls, started, strict=True))[:4]:
            messages = [first, *await rest(call)]
            events = [event for message in messages for event in message.batch.events]
            long = [event.sequence for event in events if event.instance_id == "long"]
            assert long == list(range(1, count + 1))
            if messages[-1].WhichOneof("kind") == "end":
                assert messages[-1].end.sequence == count
            else:
                created = {f"i{number}" for number in range(INSTANCES)}
                assert {event.instance_id for event in events} == {"long", *created}
