"""A real HTTP endpoint that speaks /v1/chat/completions and /v1/messages and does what a test scripts.

It streams where the request asks for a stream.

async with Endpoint(subtasks=3) as endpoint:             # a valid plan, answers, a synthesis
    environment = {"OPENAI_BASE_URL": endpoint.url, "OPENAI_API_KEY": "k"}
    ...
    assert endpoint.count("work") == 3

def script(call: Call) -> Answer:                        # None: behave well
    return failing(503) if call.subtask_id == "t2" and call.attempt == 1 else None
async with Endpoint(script) as endpoint: ...
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from support import streams

from orchestrator.core.prompts import Role
from orchestrator.models.scripted import plan_text

ROLES: Mapping[str, Role] = {
    "You are the planner": "planning",
    "You are one of several workers": "work",
    "You are given a client's prompt": "synthesis",
}


@dataclass(frozen=True)
class Call:
    """A request that has arrived."""

    role: Role
    subtask_id: str
    attempt: int
    """The number of this call among those with its role and subtask, from 1."""
    body: dict[str, Any]
    headers: Mapping[str, str]
    request: web.Request
    peer: str
    """The address of the other end of its connection."""

    @property
    def prompt_text(self) -> str:
        """All messages, one after the other."""
        return "\n".join(message["content"] for message in _messages(self.body))


Misbehaviour = Callable[[Call], Awaitable[web.StreamResponse]]
Answer = str | dict[str, Any] | web.Response | Misbehaviour | None
"""The model's text, a whole JSON body, a response, a misbehaviour, or None: what a good endpoint answers."""

Script = Callable[[Call], Answer]


def completion(text: Any, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    """Build the JSON body of a completion."""
    reply = {"role": "assistant", "content": text, **message}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": reply, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def message(*blocks: Any, stop_reason: str = "end_turn", **more: Any) -> dict[str, Any]:
    """Build the JSON body of an answer of Anthropic's; a block that is a string is a text."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": it} if isinstance(it, str) else it for it in blocks],
        "stop_reason": stop_reason,
        "usage": {"input_tokens": 100, "output_tokens": 20},
        **more,
    }


def failing(status: int, message: str = "no", **headers: str) -> web.Response:
    """Build an error response; `Retry_After="1"` is the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response({"error": {"message": message, "type": "error"}}, status=status, headers=named)


async def cut(call: Call) -> web.StreamResponse:
    """Cut the connection before answering."""
    return abort(call)


async def cut_amid(call: Call) -> web.StreamResponse:
    """Cut the connection in the middle of the answer."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(call.request)
    await response.write(b'{"choices": [')
    return abort(call)


def abort(call: Call) -> web.StreamResponse:
    """Cut the connection."""
    if call.request.transport is not None:
        call.request.transport.abort()
    return web.Response()


async def hang(call: Call) -> web.StreamResponse:  # noqa: ARG001  as every misbehaviour
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError("the event is never set")


def without_json_schema(call: Call) -> Answer:
    """Script an endpoint that supports `json_object` only."""
    if call.body.get("response_format", {}).get("type") == "json_schema":
        return failing(400, "response_format: 'json_schema' is not supported")
    return None


class WorkerGate:
    """A script of workers that answer only while `opened` is set."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    def __call__(self, call: Call) -> Answer:
        return self._wait if call.role == "work" else None

    async def _wait(self, call: Call) -> web.StreamResponse:
        await self.opened.wait()
        return web.json_response(completion(f"The output of {call.subtask_id}."))


@dataclass
class Endpoint:
    """Listens on a free port of loopback while the `async with` block runs."""

    script: Script | None = None
    subtasks: int = 3
    chained: bool = False
    """Whether each subtask of the plan depends on the one before it."""
    calls: list[Call] = field(default_factory=list)
    open_calls: int = 0
    max_open_calls: int = 0
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client has closed the connection of a call that was open."""
    call_arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    url: str = ""

    def count(self, role: Role, subtask_id: str = "") -> int:
        """Count the calls of a role, or of one subtask."""
        return sum(call.role == role and subtask_id in ("", call.subtask_id) for call in self.calls)

    async def wait_for_calls(self, count: int) -> None:
        """Return once so many calls have arrived."""
        async with self.call_arrived:
            await self.call_arrived.wait_for(lambda: len(self.calls) >= count)

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_post("/v1/chat/completions", self._answer)
        application.router.add_post("/v1/messages", self._answer)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(runner.cleanup)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._stack = stack.pop_all()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        role, subtask_id = recognize(_messages(body))
        attempt = self.count(role, subtask_id) + 1
        peer = str(request.transport and request.transport.get_extra_info("peername"))
        call = Call(role, subtask_id, attempt, body, request.headers.copy(), request, peer)
        self.calls.append(call)
        self.open_calls += 1
        self.max_open_calls = max(self.max_open_calls, self.open_calls)
        async with self.call_arrived:
            self.call_arrived.notify_all()
        try:
            answer = self.script(call) if self.script else None
            if callable(answer):
                return await answer(call)
            if isinstance(answer, web.Response):
                return answer
            is_message = request.path.endswith("/messages")
            if not isinstance(answer, dict):
                text = self._default_text(call) if answer is None else answer
                answer = message(text) if is_message else completion(text)
            if not body.get("stream"):
                return web.json_response(answer)
            events = streams.message_events(answer) if is_message else streams.completion_events(answer, body)
            return await streams.send(call.request, events)
        except asyncio.CancelledError:
            self.disconnected.set()
            raise
        finally:
            self.open_calls -= 1

    def _default_text(self, call: Call) -> str:
        match call.role:
            case "planning":
                return plan_text(self.subtasks, chained=self.chained)
            case "work":
                return f"The output of {call.subtask_id}."
            case "synthesis":
                return "# The result\n\nAll parts, put together."


def _messages(body: Mapping[str, Any]) -> list[dict[str, str]]:
    system = [{"role": "system", "content": body["system"]}] if "system" in body else []
    return [*system, *body["messages"]]


def recognize(messages: list[dict[str, str]]) -> tuple[Role, str]:
    """Which role a conversation asks for, and of a worker for which subtask."""
    told = messages[0]["content"]
    role = next((role for start, role in ROLES.items() if told.startswith(start)), "work")
    asked = next(message["content"] for message in messages if message["role"] == "user")
    found = re.findall(r"^Your subtask is (\S+):$", asked, re.MULTILINE)
    return role, found[-1] if found and role == "work" else ""


def fenced(text: str) -> str:
    """Wrap JSON in prose and a fence, as many models do."""
    return f"Here is the plan:\n\n```json\n{json.dumps(json.loads(text), indent=2)}\n```\n\nGood luck!"
