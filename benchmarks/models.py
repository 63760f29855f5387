"""What the service makes of an endpoint's limits, of a plan that is still being written, and of many calls.

    python benchmarks/models.py [--small] [storm] [planning] [calls]

storm: 50 instances of 8 subtasks at an endpoint that takes 20 calls a second and answers 429 with Retry-After
to more; beside what that limit allows. planning: one instance, the plan streamed at 50 tokens a second, once
as subtasks start while it is written and once after it; beside the critical path. calls: CPU time of 500
calls at once, plain and streamed in 200 pieces at 20 a second: by a bare client, which reads nothing of it,
and by the provider, as for the engine without subscribers.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path

from aiohttp import web

from orchestrator.core import config
from orchestrator.core.create import NewInstance
from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.instance import Instance, WorkKey
from orchestrator.core.plan_text import PlanReader
from orchestrator.core.prompts import FULL, Full, Message, Profile, Prompt
from orchestrator.engine.live import Attempt, LiveTexts
from orchestrator.engine.local import LocalEngine
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.subscription import wait_for_end
from orchestrator.models.base import ModelRequest, Models, Provider
from orchestrator.models.http.address import Address
from orchestrator.models.http.chat_completions import ChatCompletions
from orchestrator.models.http.client import EndpointClient
from orchestrator.models.scripted import plan_text
from orchestrator.v1 import instance_pb2 as pb

Answer = Callable[[web.Request, dict], Awaitable[web.StreamResponse]]
CONFIG = config.default("openai/big", "openai/small")
PIECE = "text"
"""As long as a token."""
USAGE = {"prompt_tokens": 9, "completion_tokens": 9}


def completion(text: str) -> web.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return web.json_response({"choices": [choice], "usage": USAGE})


def is_planning(body: dict) -> bool:
    return body["messages"][0]["content"].startswith("You are the planner")


@asynccontextmanager
async def endpoint(answer: Answer) -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await answer(request, await request.json())

    application = web.Application(client_max_size=2**26)
    application.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


class Whole(Full):
    """As FULL, but a plan is read only once it is all there."""

    def plan_reader(self, instance: Instance) -> PlanReader | None:  # noqa: ARG002  as FULL's
        return None


@asynccontextmanager
async def engine(url: str, profile: Profile = FULL) -> AsyncIterator[tuple[LocalEngine, SqliteEventLog]]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        log = await SqliteEventLog.open(Path(folder, "log.db"))
        stack.push_async_callback(log.aclose)
        provider: Provider = ChatCompletions("openai", url, api_key="k", profile=profile)
        stack.push_async_callback(provider.aclose)
        yield await stack.enter_async_context(LocalEngine.running(log, Models({"openai": provider}))), log


async def storm(instances: int = 50, subtasks: int = 8, per_s: int = 20, latency_s: float = 0.2) -> None:
    """A sliding second: no more than so many calls begin in any one."""
    taken: deque[float] = deque()
    good = refused = 0

    async def answer(_: web.Request, body: dict) -> web.StreamResponse:
        nonlocal good, refused
        now = time.monotonic()
        while taken and taken[0] <= now - 1:
            taken.popleft()
        if len(taken) >= per_s:
            refused += 1
            return web.json_response({"error": {"message": "slow"}}, status=429, headers={"Retry-After": "1"})
        taken.append(now)
        good += 1
        await asyncio.sleep(latency_s)
        return completion(plan_text(subtasks) if is_planning(body) else "The text.")

    complete = 0
    async with endpoint(answer) as url, engine(url) as (running, log):
        begin = time.perf_counter()
        for number in range(instances):
            await running.create(NewInstance(id=f"i{number}", prompt="Build it.", config=CONFIG))
        for number in range(instances):
            instance = (await wait_for_end(log, running.states, InstanceKey("", f"i{number}"), 600)).instance
            complete += instance.state == pb.STATE_COMPLETE
        seconds = time.perf_counter() - begin
    print(
        f"storm: {complete} of {instances} complete in {seconds:.1f} s; {refused} of {good + refused} calls "
        f"refused ({refused / (good + refused):.1%}); {good / seconds:.1f} calls/s of {per_s} allowed "
        f"({good / seconds / per_s:.0%})"
    )


async def planning(subtasks: int = 6, tokens_per_s: int = 50, work_s: float = 2.0) -> None:
    """Four characters are a token; each subtask's work takes as long, the synthesis is instant."""
    parts = json.loads(plan_text(subtasks))
    for part in parts["subtasks"]:
        part["instructions"] += " Take care of every detail that the plan's summary speaks of." * 3
    text = json.dumps(parts)
    tokens = [text[start : start + 4] for start in range(0, len(text), 4)]

    async def answer(request: web.Request, body: dict) -> web.StreamResponse:
        if not is_planning(body):
            is_work = "several workers" in body["messages"][0]["content"]
            await asyncio.sleep(work_s if is_work else 0)
            return completion("The text.")
        if not body.get("stream"):
            await asyncio.sleep(len(tokens) / tokens_per_s)
            return completion(text)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        begin = time.monotonic()
        for number, token in enumerate(tokens, 1):
            await asyncio.sleep(begin + number / tokens_per_s - time.monotonic())
            chunk = {"choices": [{"index": 0, "delta": {"content": token}, "finish_reason": None}]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}
        await response.write(f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n".encode())
        return response

    plan_s = len(tokens) / tokens_per_s
    critical_s = plan_s + work_s  # the last subtask is whole when the plan is
    print(f"planning: {len(tokens)} tokens take {plan_s:.1f} s, each subtask {work_s:.1f} s, two at once")
    two = pb.InstanceConfig()
    two.CopyFrom(CONFIG)
    two.max_parallel_subtasks = 2
    for name, profile in (("while it is written", FULL), ("after it is written", Whole())):
        async with endpoint(answer) as url, engine(url, profile) as (running, log):
            begin = time.perf_counter()
            await running.create(NewInstance(id="a", prompt="Build it.", config=two))
            instance = (await wait_for_end(log, running.states, InstanceKey("", "a"), 600)).instance
            seconds = time.perf_counter() - begin
            assert instance.state == pb.STATE_COMPLETE, instance.error
        print(f"  started {name}: {seconds:5.2f} s, {seconds / critical_s:.2f} of the critical path")


class Plain(ChatCompletions):
    """As beyond the limit of unwatched streams."""

    most_unwatched_streams = 0


class Streamed(ChatCompletions):
    """As below it, however many there are."""

    most_unwatched_streams = 2**31


async def calls(at_once: int = 500, pieces: int = 200, pieces_per_s: int = 20) -> None:
    """The endpoint is a process of its own, so that its CPU time is not counted."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "serve", str(pieces), str(pieces_per_s)), stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout
    url = (await server.stdout.readline()).decode().strip()
    prompt = Prompt("work", (Message("system", "Work."), Message("user", "Do it. " * 200)), subtask_id="t1")
    request = ModelRequest("small", prompt, max_output_tokens=1000, timeout_s=600)
    asked = {"model": "small", "messages": [{"role": "user", "content": "Do it. " * 200}]}
    body, streamed_body = json.dumps(asked).encode(), json.dumps({**asked, "stream": True}).encode()
    bare = EndpointClient(Address.parse(url), {})
    plain, streamed = Plain("openai", url), Streamed("openai", url)
    texts, ref, sequences = LiveTexts(), InstanceRef(InstanceKey("", "i"), 1), count(1)

    async def bare_call(content: bytes, idle_timeout_s: float | None = None) -> None:
        async with bare.stream("chat/completions", content, idle_timeout_s) as incoming:
            await incoming.read_all()

    async def ask(provider: Provider) -> None:
        attempt = Attempt(WorkKey("subtask", "t1"), 1, next(sequences))
        await provider.complete(request, texts.writer(ref, attempt))
        texts.end(ref, attempt)

    try:
        for name, call in (
            ("bare client, plain", lambda: bare_call(body)),
            ("provider, plain", lambda: ask(plain)),
            ("bare client, streamed", lambda: bare_call(streamed_body, 60)),
            ("provider, streamed", lambda: ask(streamed)),
        ):
            await asyncio.gather(*(call() for _ in range(at_once)))  # connections are open from here on
            cpu, wall = time.process_time(), time.perf_counter()
            await asyncio.gather(*(call() for _ in range(at_once)))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            print(f"calls: {name:21} {cpu / at_once * 1e3:.2f} ms CPU a call, {at_once / wall:,.0f} calls/s")
        for client in (bare, plain, streamed):
            await client.aclose()
    finally:
        server.terminate()
        await server.wait()


async def serve(pieces: str, pieces_per_s: str) -> None:
    async def answer(request: web.Request, body: dict) -> web.StreamResponse:
        if not body.get("stream"):
            return completion(PIECE * int(pieces))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(int(pieces)):
            await response.write(delta)
            await asyncio.sleep(1 / int(pieces_per_s))
        await response.write(end)
        return response

    said = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "small"}
    choice = {"index": 0, "delta": {"content": PIECE}, "finish_reason": None}
    delta = f"data: {json.dumps({**said, 'choices': [choice]})}\n\n".encode()
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    end = f"data: {json.dumps({**said, 'choices': [choice], 'usage': USAGE})}\n\ndata: [DONE]\n\n".encode()

    async with endpoint(answer) as url:
        print(url, flush=True)
        await asyncio.Event().wait()


SMALL = {
    "storm": {"instances": 2, "subtasks": 2, "latency_s": 0.01},
    "planning": {"subtasks": 2, "tokens_per_s": 1000, "work_s": 0.05},
    "calls": {"at_once": 5, "pieces": 5, "pieces_per_s": 100},
}
"""Sizes at which the figures mean nothing: to see that all of it runs."""


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(*sys.argv[2:]))
    known = {"storm": storm, "planning": planning, "calls": calls}
    asked = [name for name in sys.argv[1:] if name != "--small"]
    for name in asked or SMALL:
        if name not in known:
            sys.exit(f"no benchmark {name!r}: there are {', '.join(SMALL)}")
        asyncio.run(known[name](**(SMALL[name] if "--small" in sys.argv else {})))


if __name__ == "__main__":
    main()
