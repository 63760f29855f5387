"""What one model call costs in each HTTP client: CPU of the client per call, and calls per second.

64 calls are open at once against a bare asyncio HTTP server in a process of its own, which answers a chat
completion of 1 KB at once. Each measurement runs in a fresh process; the table gives minimum and median.

    python benchmarks/http_transports.py [--repeats 5] [--calls 3000]

Clients that are not installed are left out.
"""

# ruff: noqa: PLC0415  a client that is not installed is left out

import argparse
import asyncio
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

AT_ONCE: Final = 64
WARM_UP_CALLS: Final = 200
REQUEST: Final = json.dumps(
    {"model": "m", "max_tokens": 8192, "messages": [{"role": "user", "content": "word " * 400}]}
).encode()
REPLY: Final = json.dumps(
    {
        "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "word " * 200}}],
        "usage": {"prompt_tokens": 400, "completion_tokens": 200},
    }
).encode()
HEADERS: Final = {"Authorization": "Bearer secret", "Content-Type": "application/json"}

Call = Callable[[], Awaitable[bytes]]


class Server(asyncio.Protocol):
    """Answers every request with the same reply; implements no more of HTTP than its clients need."""

    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(REPLY)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self.received = body[length:]
        self.transport.write(self.answer + REPLY)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@asynccontextmanager
async def httpx_default(url: str) -> AsyncIterator[Call]:
    import httpx

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=AT_ONCE), headers=HEADERS) as client:

        async def call() -> bytes:
            return (await client.post(url, content=REQUEST)).content

        yield call


@asynccontextmanager
async def httpx_over_aiohttp(url: str) -> AsyncIterator[Call]:
    import httpx
    from httpx_aiohttp import AiohttpTransport

    transport = AiohttpTransport(limits=httpx.Limits(max_connections=AT_ONCE))
    async with httpx.AsyncClient(transport=transport, headers=HEADERS) as client:

        async def call() -> bytes:
            return (await client.post(url, content=REQUEST)).content

        yield call


@asynccontextmanager
async def httpx2_default(url: str) -> AsyncIterator[Call]:
    import httpx2

    async with httpx2.AsyncClient(limits=httpx2.Limits(max_connections=AT_ONCE), headers=HEADERS) as client:

        async def call() -> bytes:
            return (await client.post(url, content=REQUEST)).content

        yield call


@asynccontextmanager
async def plain_aiohttp(url: str) -> AsyncIterator[Call]:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:

        async def call() -> bytes:
            async with session.post(url, data=REQUEST) as response:
                return await response.read()

        yield call


CLIENTS: Final = {
    "httpx": (httpx_default, "httpx"),
    "httpx2": (httpx2_default, "httpx2"),
    "httpx + httpx-aiohttp": (httpx_over_aiohttp, "httpx_aiohttp"),
    "aiohttp": (plain_aiohttp, "aiohttp"),
}


async def measure(name: str, port: int, calls: int) -> None:
    """Print CPU seconds and wall seconds of so many calls, once the connections are open."""

    async def run(call: Call, count: int) -> None:
        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                if await call() != REPLY:
                    raise RuntimeError("the reply is not what the server sent")

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(caller())

    async with CLIENTS[name][0](f"http://127.0.0.1:{port}/v1/chat/completions") as call:
        await run(call, min(WARM_UP_CALLS, calls))
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        await run(call, calls)
        print(time.process_time() - cpu_s, time.perf_counter() - wall_s)


def compare(repeats: int, calls: int) -> None:
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        port = server.stdout.readline().strip() if server.stdout else ""
        found: dict[str, list[tuple[float, float]]] = {}
        for _ in range(repeats):  # round robin, so that a disturbance hits all of them
            for name, (_, module) in CLIENTS.items():
                if importlib.util.find_spec(module):
                    command = [
                        sys.executable,
                        __file__,
                        "--measure",
                        name,
                        "--port",
                        port,
                        "--calls",
                        str(calls),
                    ]
                    cpu_s, wall_s = map(float, subprocess.check_output(command, text=True).split())
                    found.setdefault(name, []).append((cpu_s / calls * 1e3, calls / wall_s))
    finally:
        server.kill()
        server.wait()
    print(f"{AT_ONCE} calls at once, {calls} calls, {repeats} repeats, Python {sys.version.split()[0]}\n")
    print("| client | CPU ms per call: min | median | calls/s: median | max |")
    print("|---|---|---|---|---|")
    for name, figures in found.items():
        cpu_ms, rates = zip(*figures, strict=True)
        print(
            f"| {name} | {min(cpu_ms):.2f} | {statistics.median(cpu_ms):.2f} "
            f"| {statistics.median(rates):,.0f} | {max(rates):,.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
    elif arguments.measure:
        asyncio.run(measure(arguments.measure, arguments.port, arguments.calls))
    else:
        compare(arguments.repeats, arguments.calls)


if __name__ == "__main__":
    main()
