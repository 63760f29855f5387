"""What clients are told by a service that stops."""

import asyncio
from collections import Counter
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from support.service import service as service_on

from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Answer, Scripted
from orchestrator.v1 import orchestrator_pb2 as pb
from orchestrator.v1.orchestrator_pb2_grpc import OrchestratorStub


async def hang(_: ModelRequest) -> Answer:
    await asyncio.Event().wait()
    return ""


def said(error: grpc.aio.AioRpcError) -> str:
    """The code, and the reason where the service gave one."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    if status and status.details:
        status.details[0].Unpack(info)
    return f"{error.code().name} {info.reason}".strip()


async def outcome(call: "grpc.aio.UnaryUnaryCall[object, object]") -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return said(error)
    return "OK"


async def test_calls_in_flight_and_new_ones_are_told_to_come_back(tmp_path: Path) -> None:
    outcomes = Counter[str]()
    opened = asyncio.Event()

    async def create_until_it_is_gone(address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = OrchestratorStub(channel)
            while True:
                told = await outcome(stub.CreateInstance(pb.CreateInstanceRequest(prompt="Build it")))
                outcomes[told] += 1
                if told not in ("OK", "UNAVAILABLE SHUTTING_DOWN"):
                    return

    async def stream(stub: OrchestratorStub, name: str) -> str:
        try:
            async for message in stub.StreamEvents(pb.StreamEventsRequest(id=name)):
                if message.HasField("caught_up"):
                    opened.set()
        except grpc.aio.AioRpcError as error:
            return said(error)
        return "OK"

    async with service_on(tmp_path / "log.db", Scripted(hang), max_active=1) as service:
        await service.stub.CreateInstance(pb.CreateInstanceRequest(prompt="Build it", id="a"))
        wait = pb.WaitInstanceRequest(id="a", timeout=Duration(seconds=60))
        channel = grpc.aio.insecure_channel(service.address)  # the service's own is closed before it stops
        stub = OrchestratorStub(channel)
        waits = [asyncio.ensure_future(outcome(stub.WaitInstance(wait))) for _ in range(10)]
        streaming = asyncio.create_task(stream(stub, "a"))
        await opened.wait()
        creating = [asyncio.create_task(create_until_it_is_gone(service.address)) for _ in range(10)]
        async with asyncio.timeout(20):
            while outcomes["OK"] < 30:  # noqa: ASYNC110  what the tasks count is no event
                await asyncio.sleep(0.005)
    async with asyncio.timeout(20):
        assert await streaming == "UNAVAILABLE SHUTTING_DOWN"
        assert set(await asyncio.gather(*waits)) == {"UNAVAILABLE SHUTTING_DOWN"}
        await asyncio.gather(*creating)
    await channel.close()
    assert outcomes.keys() <= {"OK", "UNAVAILABLE SHUTTING_DOWN", "UNAVAILABLE"}, outcomes
    assert outcomes["UNAVAILABLE SHUTTING_DOWN"]


async def test_event_streams_ask_each_reader_to_come_back_at_another_time(tmp_path: Path) -> None:
    delays = set()
    async with service_on(tmp_path / "log.db", Scripted(hang)) as service:
        for _ in range(20):
            call = service.stub.StreamServerSentEvents(pb.StreamServerSentEventsRequest())
            message = await call.read()
            (line,) = (line for line in message.data.splitlines() if line.startswith(b"retry: "))
            delays.add(int(line.removeprefix(b"retry: ")))
            call.cancel()
    assert len(delays) > 10
    assert min(delays) >= 1000
    assert max(delays) - min(delays) > 500
    assert max(delays) == pytest.approx(2000, abs=1000)
