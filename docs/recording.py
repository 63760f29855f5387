"""Record what `orchestrator run` looks like: the real service and command, with a model from a script.

python docs/recording.py > docs/recording.md     # needs tmux
"""

import asyncio
import json
import os
import shlex
import shutil
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from aiohttp import web

COMMAND: Final = Path(sys.executable).with_name("orchestrator")
COLUMNS: Final = 80
LINES: Final = 24
LOOK_S: Final = 0.05
PATIENCE_S: Final = 60.0

PROMPT: Final = "Compare three ways to shard a counter"
PARTS: Final = {
    "t1": ("Hash each request to one of N rows", []),
    "t2": ("One row per server, summed when read", []),
    "t3": ("A log of increments, folded in the background", []),
    "t4": ("A table of costs under contention", ["t1", "t2", "t3"]),
}
PLAN: Final = {
    "summary": "A counter in one SQL table; reads are rare, writes are many.",
    "subtasks": [
        {"id": name, "title": title, "instructions": f"Write on: {title}.", "depends_on": after}
        for name, (title, after) in PARTS.items()
    ],
}
WORK: Final = (
    "Writers are spread over rows, so that no lock is waited for.\n\n"
    "Reading adds the rows up: `SELECT sum(n) FROM counter`."
)
ANSWER: Final = """\
# Sharding a counter

1. **Hashed rows** are the simplest: pick `N`, add up when reading.
2. **A row per server** needs no choice of `N`, and a server's share can be seen.
3. **A log** never waits at all, at the price of reads that lag behind.

```sql
UPDATE counter SET n = n + 1 WHERE shard = :hash % 16;
```
"""

PAGE: Final = """\
# The command line, recorded

Made by `python docs/recording.py`: the real service and the real command in a terminal of
{columns} columns, with an endpoint whose answers come from a script. Times differ between recordings.
{moments}"""


class Endpoint:
    """Speaks /v1/chat/completions; each answer waits until the recording lets it go."""

    def __init__(self) -> None:
        """Let nothing go yet."""
        self._gates: dict[str, asyncio.Event] = {}
        self._limited = False

    def release(self, *names: str) -> None:
        """Let the answers of these parts go: `plan`, a subtask's id, `synthesis`."""
        for name in names:
            self._gate(name).set()

    async def start(self, stack: AsyncExitStack) -> str:
        """Listen while the stack is open, and say where."""
        application = web.Application()
        application.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name, text = self._answer_text(body)
        if name == "t2" and not self._limited:
            self._limited = True
            return web.json_response(
                {"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "4"}
            )
        usage = {"prompt_tokens": 900 + len(name), "completion_tokens": len(text)}
        if not body.get("stream"):
            await self._gate(name).wait()
            message = {"role": "assistant", "content": text}
            return web.json_response(
                {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        half = len(text) // 2
        await _send(response, {"choices": [{"delta": {"content": text[:half]}}]})
        await self._gate(name).wait()
        await _send(response, {"choices": [{"delta": {"content": text[half:]}, "finish_reason": "stop"}]})
        await _send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    def _answer_text(self, body: Mapping[str, Any]) -> tuple[str, str]:
        if "response_format" in body:
            return "plan", json.dumps(PLAN)
        prompt = body["messages"][-1]["content"]
        for part in PLAN["subtasks"]:
            if body["model"].endswith("mini") and part["instructions"] in prompt:
                return part["id"], WORK
        return "synthesis", ANSWER


async def _send(response: web.StreamResponse, chunk: Mapping[str, Any]) -> None:
    await response.write(f"data: {json.dumps(chunk)}\n\n".encode())


class Terminal:
    """A shell in a tmux of its own."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        """Say where it begins, and what its environment has beside ours."""
        self._socket = folder / "tmux"
        self._folder = folder
        self._variables = variables

    async def open(self, stack: AsyncExitStack) -> None:
        """Start it; it ends with the stack."""
        assignments = [f"{name}={value}" for name, value in self._variables.items()]
        shell = shlex.join(["env", *assignments, "PS1=$ ", "bash", "--norc", "--noprofile"])
        size = ["-x", str(COLUMNS), "-y", str(LINES)]
        await self._tmux("-f", os.devnull, "new-session", "-d", *size, "-c", str(self._folder), shell)
        stack.push_async_callback(self._tmux, "kill-server")

    async def type(self, line: str) -> None:
        """Type a command on a clear screen."""
        await self._tmux("send-keys", "-R", "C-l")
        await self.until(lambda screen: screen.strip() == "$")
        await self._tmux("clear-history")
        await self.answer(line)

    async def answer(self, line: str) -> None:
        """Type a line where the cursor is."""
        await self._tmux("send-keys", "-l", line)
        await self._tmux("send-keys", "Enter")

    async def until(self, is_there: Callable[[str], bool], *, history: bool = False) -> str:
        """Look until the screen is as it should be, and give it, with `history` from the first line on."""
        screen = ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    screen = await self._tmux("capture-pane", "-p", *(["-S", "-"] if history else []))
                    if is_there(screen):
                        return "\n".join(line.rstrip() for line in screen.rstrip().splitlines())
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise SystemExit(f"the screen has not become what it should be:\n{screen}") from None

    async def _tmux(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "tmux", "-S", str(self._socket), *arguments, stdout=PIPE, stdin=DEVNULL
        )
        out, _ = await process.communicate()
        return out.decode()


class Service:
    """`orchestrator up`, that can be killed and started again."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        """Say where it runs, and what its environment has beside ours."""
        self._folder = folder
        self._environment = {**os.environ, **variables}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        self._process = await asyncio.create_subprocess_exec(
            COMMAND, "up", cwd=self._folder, env=self._environment, stdout=PIPE, stderr=DEVNULL
        )
        if self._process.stdout:
            await self._process.stdout.readline()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, or kill it."""
        if self._process and self._process.returncode is None:
            self._process.send_signal(number)
            await self._process.communicate()


def free_address() -> str:
    """An address on loopback where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def record_moments(stack: AsyncExitStack) -> list[tuple[str, str]]:
    """What is seen, each with its caption."""
    folder = Path(stack.enter_context(TemporaryDirectory()))
    endpoint = Endpoint()
    variables = {
        "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
        "ORCHESTRATOR_GRPC_ADDRESS": free_address(),
        "ORCHESTRATOR_REST_ADDRESS": free_address(),
        "ORCHESTRATOR_DATABASE": str(folder / "orchestrator.db"),
        "ORCHESTRATOR_BIG_MODEL": "openai/gpt-5",
        "ORCHESTRATOR_SMALL_MODEL": "openai/gpt-5-mini",
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": await endpoint.start(stack),
    }
    service = Service(folder, variables)
    await service.start()
    stack.push_async_callback(service.end)
    terminal = Terminal(folder, variables)
    await terminal.open(stack)

    seen = []
    await terminal.type(f'orchestrator run -v --id counter "{PROMPT}"')
    await terminal.until(lambda screen: "Plan" in screen)
    endpoint.release("plan", "t1")
    screen = await terminal.until(lambda screen: "✓ t1" in screen and "↻ t2" in screen)
    seen.append(("One subtask is done, one is about to be tried again, one waits for the others.", screen))
    await service.end(signal.SIGKILL)
    screen = await terminal.until(lambda screen: "reconnecting" in screen)
    seen.append(("The service is killed.", screen))
    endpoint.release("t2", "t3", "t4", "synthesis")
    await service.start()
    screen = await terminal.until(lambda screen: screen.rstrip().endswith("$"), history=True)
    seen.append(
        ("It is started again: only what was cut off is repeated. Then the answer, as Markdown.", screen)
    )
    for caption, line in (
        ("All instances:", "orchestrator list"),
        ("The result alone, as it is:", "orchestrator result counter | tail -n 4"),
        ("The first events of one, in a pipe:", "orchestrator events counter | head -n 7"),
    ):
        await terminal.type(line)
        seen.append((caption, await terminal.until(lambda screen: screen.rstrip().endswith("\n$"))))
    await terminal.type(f'orchestrator run --plan --id planned "{PROMPT}"')
    screen = await terminal.until(lambda screen: "[l]ater?" in screen, history=True)
    seen.append(("A plan that is looked at before work begins:", screen))
    await terminal.answer("l")
    await terminal.until(lambda screen: screen.rstrip().endswith("\n$"))
    return seen


async def record() -> None:
    """Print the page."""
    if not shutil.which("tmux"):
        raise SystemExit("tmux is missing: install it, as in `apt-get install tmux`")
    async with AsyncExitStack() as stack:
        sections = [
            f"\n{caption}\n\n````text\n{screen.removesuffix('$').rstrip()}\n````\n"
            for caption, screen in await record_moments(stack)
        ]
    print(PAGE.format(columns=COLUMNS, moments="".join(sections)), end="")


if __name__ == "__main__":
    asyncio.run(record())
