"""What Envoy does where too many large requests are under way for its memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support import stub_service
from support.stub_service import StubService

from orchestrator import edge

pytestmark = pytest.mark.asyncio(loop_scope="session")

MIB = 1024 * 1024
LIMIT_BYTES = 96 * MIB
BODY_BYTES = 30 * MIB
STEP_BYTES = 4 * MIB
UPLOAD = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BODY_BYTES}\r\n\r\n".encode()
FIXED_HEAP = "envoy.resource_monitors.fixed_heap"
ACCEPTS_NONE = "overload.envoy.overload_actions.stop_accepting_requests.active"
REFUSAL = {"code": 14, "message": "too much is under way for Envoy's memory, try again", "details": []}


class SmallEdge:
    """A running Envoy that may use LIMIT_BYTES of heap, and its statistics."""

    def __init__(self, address: str, admin: httpx.AsyncClient) -> None:
        self.address = address
        self._admin = admin

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.address.partition(":")
        return await asyncio.open_connection(host, int(port))

    async def statistic(self, name: str) -> int:
        answer = await self._admin.get("/stats", params={"filter": f"^{name}$"})
        return int(answer.text.rpartition(":")[2])

    async def pressure(self) -> int:
        """How much of LIMIT_BYTES is in use, in percent."""
        return await self.statistic(f"overload.{FIXED_HEAP}.pressure")


@asynccontextmanager
async def running_small(
    monkeypatch: pytest.MonkeyPatch, admin: Path, *, cuts_off: bool
) -> AsyncIterator[SmallEdge]:
    render = edge.render

    def rendered(**settings: Any) -> str:
        config = yaml.safe_load(render(**settings))
        monitors = {each["name"]: each for each in config["overload_manager"]["resource_monitors"]}
        monitors[FIXED_HEAP]["typed_config"]["max_heap_size_bytes"] = LIMIT_BYTES
        if not cuts_off:
            del config["overload_manager"]["loadshed_points"]
        return yaml.safe_dump({**config, "admin": {"address": {"pipe": {"path": str(admin)}}}})

    monkeypatch.setattr(edge, "render", rendered)
    async with (
        stub_service.serving(StubService()) as grpc_address,
        edge.running(rest_address="127.0.0.1:0", grpc_address=grpc_address) as process,
        httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(admin)), base_url="http://envoy"
        ) as client,
    ):
        yield SmallEdge(process.address, client)


@pytest.fixture
async def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[SmallEdge]:
    async with running_small(monkeypatch, tmp_path / "admin", cuts_off=True) as running:
        yield running


@pytest.fixture
async def lenient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[SmallEdge]:
    """One that refuses new requests only, so that what a test holds in its memory stays there."""
    async with running_small(monkeypatch, tmp_path / "admin", cuts_off=False) as running:
        yield running


def client_of(small: SmallEdge) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{small.address}", timeout=20, trust_env=False)


async def test_new_requests_are_rejected_in_json_while_memory_is_short_and_served_again_afterwards(
    lenient: SmallEdge,
) -> None:
    held = []
    try:
        async with client_of(lenient) as client, asyncio.timeout(60):
            while (answer := await client.get("/a")).status_code == 200:
                _, writer = await lenient.connect()
                held.append(writer)
                writer.write(UPLOAD + b'{"prompt": "' + b"x" * STEP_BYTES)
                with suppress(ConnectionError):  # refused itself, where it came behind the limit
                    await writer.drain()
                # Not on before Envoy has seen it, so that the next step is not one too many.
                while await lenient.pressure() < min(80, 100 * len(held) * STEP_BYTES // LIMIT_BYTES):
                    pass
            assert (answer.status_code, answer.json()) == (503, REFUSAL)
            assert await lenient.statistic(ACCEPTS_NONE) == 1
            assert await lenient.pressure() >= 80
            for writer in held:
                writer.transport.abort()
            while (answer := await client.get("/a")).status_code == 503:
                pass  # Envoy looks at its memory ten times a second
            assert answer.status_code == 200
    finally:
        for writer in held:
            writer.transport.abort()


async def test_uploads_that_exceed_the_memory_are_cut_off_with_the_reason(small: SmallEdge) -> None:
    uploads = 12
    fit = LIMIT_BYTES // BODY_BYTES
    refused: list[bytes] = []

    async def upload() -> None:
        """Send all but the last bytes of a body, and those one by one until enough were refused."""
        reader, writer = await small.connect()
        answer = asyncio.create_task(reader.read(4096))
        try:
            writer.write(UPLOAD + b'{"prompt": "')
            for _ in range(BODY_BYTES // MIB - 1):
                writer.write(b"x" * MIB)
                await writer.drain()
            while not answer.done() and len(refused) < uploads - fit:
                writer.write(b"x")
                await asyncio.wait({answer}, timeout=0.05)
        except ConnectionError:
            pass  # cut off while it sent
        finally:
            writer.transport.abort()
        if (ended := (await asyncio.gather(answer, return_exceptions=True))[0]) or answer.exception():
            refused.append(ended if isinstance(ended, bytes) else b"")

    async with asyncio.timeout(60):
        await asyncio.gather(*(upload() for _ in range(uploads)))
    assert len(refused) >= uploads - fit
    answers = [answer.split(b"\r\n\r\n", 1) for answer in refused if answer]
    assert answers, "a client that reads its answer gets the reason"
    for head, body in answers:
        assert head.startswith(b"HTTP/1.1 503 ")
        assert json.loads(body) == REFUSAL
    async with client_of(small) as client, asyncio.timeout(20):
        while await small.pressure() >= 80:
            pass  # its statistics follow within a second
        assert (await client.get("/a")).status_code == 200


async def test_envoys_memory_is_bounded_and_reported(small: SmallEdge) -> None:
    async with asyncio.timeout(10):
        while not (pressure := await small.pressure()):
            pass
    assert 0 < pressure < 80
    assert await small.statistic(ACCEPTS_NONE) == 0
