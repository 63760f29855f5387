"""Run the command as a shell does: in a folder and environment of its own, in pipes or in a terminal."""

import asyncio
import json
import os
import pty
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from support.scripted_service import ScriptedService

COMMAND = (sys.executable, "-m", "orchestrator")
COMMANDS = (
    *("run", "up", "serve", "doctor", "create", "batch", "get", "list", "events", "wait", "pause", "resume"),
    *("terminate", "retry", "restart", "fork", "delete", "review", "result", "files"),
)
NO_MODELS = {"ORCHESTRATOR_BIG_MODEL": "openai/m", "ORCHESTRATOR_SMALL_MODEL": "openai/m"}
"""Models without a key, for tests that call none."""


@dataclass(frozen=True)
class Outcome:
    code: int | None
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def events(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Shell:
    """Runs the command in a folder and environment of its own."""

    folder: Path
    environment: Mapping[str, str]

    async def start(self, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
        return await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, cwd=self.folder, env=self.environment, **(pipes | options)
        )

    async def run(self, *arguments: str, stdin: str | None = "") -> Outcome:
        process = await self.start(*arguments)
        out, err = await process.communicate((stdin or "").encode())
        return Outcome(process.returncode, out.decode(), err.decode())

    @classmethod
    def without_service(cls, folder: Path) -> Self:
        """Return a shell whose settings point to ports on which nothing listens."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        defaults = {
            "ORCHESTRATOR_GRPC_ADDRESS": free_address(),
            "ORCHESTRATOR_REST_ADDRESS": free_address(),
            "XDG_DATA_HOME": str(folder),
        }
        return cls(folder, inherited | defaults)

    def on(self, service: ScriptedService) -> "Shell":
        """Return a shell whose settings point to the service."""
        return self.with_variables(
            ORCHESTRATOR_GRPC_ADDRESS=service.address, ORCHESTRATOR_REST_ADDRESS=service.rest_address
        )

    def with_variables(self, **variables: str) -> "Shell":
        return Shell(self.folder, {**self.environment, **variables})


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def run_in_terminal(shell: Shell, *arguments: str, columns: int = 60) -> tuple[int | None, str]:
    """Run a command in a terminal; return its exit code and all of its output."""
    controller, terminal = pty.openpty()
    process = await shell.with_variables(TERM="xterm-256color", COLUMNS=str(columns), LINES="20").start(
        *arguments, stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    text = (await asyncio.to_thread(read_all, controller)).decode()
    return await process.wait(), text


def read_until(descriptor: int, text: bytes) -> bytes:
    data = b""
    while text not in data:
        data += os.read(descriptor, 65536)
    return data


def read_all(descriptor: int) -> bytes:
    data = b""
    with (
        suppress(OSError),
        open(descriptor, "rb", buffering=0) as terminal,
    ):  # EIO once the other end is closed
        while more := terminal.read(65536):
            data += more
    return data


def assert_one_line(outcome: Outcome) -> None:
    assert outcome.err.startswith("error: "), outcome.err
    assert len(outcome.err.splitlines()) == 1, outcome.err
