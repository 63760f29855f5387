"""The service as its own process, so that it can be killed."""

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

COMMAND = Path(sys.executable).with_name("orchestrator")


def free_port() -> int:
    """Return a port below the ephemeral range, so that no other program is assigned it before it is used."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(**changes: str) -> dict[str, str]:
    """Return this process's variables without those that configure the service, then the changes."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ORCHESTRATOR_", "OPENAI_", "COVERAGE"))
    }
    return inherited | changes


class Process:
    """`orchestrator serve` or `up` on ports of its own."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.grpc_address = f"127.0.0.1:{free_port()}"
        self.rest_address = f"127.0.0.1:{free_port()}"
        self.variables = {
            "ORCHESTRATOR_GRPC_ADDRESS": self.grpc_address,
            "ORCHESTRATOR_REST_ADDRESS": self.rest_address,
            "ORCHESTRATOR_DATABASE": str(folder / "orchestrator.db"),
            **variables,
        }
        self.process: asyncio.subprocess.Process
        self.ready_line = ""
        """The line that it prints once it answers."""
        self.log = ""
        """What it wrote to stderr, once it has ended."""

    async def start(self, command: str = "serve") -> None:
        self.process = await asyncio.create_subprocess_exec(
            COMMAND,
            command,
            cwd=self.folder,
            env=environment(**self.variables),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout
        line = await self.process.stdout.readline()
        if not line.startswith(b"ready: "):
            output, errors = await self.process.communicate()
            raise AssertionError((line + output + errors).decode())
        self.ready_line = line.decode()

    async def kill(self) -> None:
        self.process.kill()
        _, errors = await self.process.communicate()
        self.log = errors.decode()

    async def stop(self) -> None:
        """Stop as a user does; a stop takes no longer than a few seconds and leaves with 0."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(self.process.communicate(), 20)
        self.log = errors.decode()
        assert self.process.returncode == 0, self.log
        assert "Traceback" not in self.log, self.log


@asynccontextmanager
async def process(folder: Path, command: str = "serve", **variables: str) -> AsyncIterator[Process]:
    running = Process(folder, variables)
    await running.start(command)
    try:
        yield running
    finally:
        if running.process.returncode is None:
            await running.stop()


async def run_command(service: Process, *arguments: str) -> str:
    """Run a command on the service; return what it prints, and fail if it fails."""
    run = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        env=environment(**service.variables),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(run.communicate(), 60)
    assert run.returncode == 0, errors.decode()
    return output.decode().strip()


async def outcome_of(*arguments: str, folder: Path | None = None, **variables: str) -> tuple[int, str, str]:
    """Run a command with these variables; return its exit code, and what it prints to stdout and stderr."""
    run = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        cwd=folder,
        env=environment(**variables),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(run.communicate(), 100)
    assert run.returncode is not None
    return run.returncode, output.decode(), errors.decode()


def on_endpoint(url: str) -> dict[str, str]:
    """The variables that make the service use an OpenAI-compatible endpoint."""
    return {
        "OPENAI_API_KEY": "sk-a-secret-of-this-test",
        "OPENAI_BASE_URL": url,
        "ORCHESTRATOR_BIG_MODEL": "openai/big",
        "ORCHESTRATOR_SMALL_MODEL": "openai/small",
    }
