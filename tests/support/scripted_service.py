"""A service whose instances follow a script: real gRPC and a small REST server, without an engine.

`python tests/support/scripted_service.py` plays an eventful instance at each creation.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import grpc
import grpc.aio
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import any_pb2, json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from orchestrator.core import view
from orchestrator.core.instance import IN_PROGRESS, TERMINAL, Instance
from orchestrator.core.state import fold
from orchestrator.v1 import event_pb2, instance_pb2, orchestrator_pb2, orchestrator_pb2_grpc

_LIVE_TEXT = "A bucket holds *n* tokens; each request takes one.\n\n```go\nfunc Allow(key string) bool {\n"
_WORD_S = 0.1

Script = Callable[["ScriptedService", str], Any]


def payload_event(
    instance_id: str, sequence: int, payload: Message, time_s: float | None = None
) -> event_pb2.Event:
    """Build an event around a payload: the oneof's field is found by the payload's type."""
    event = event_pb2.Event(instance_id=instance_id, sequence=sequence)
    event.event_time.FromNanoseconds(int((time.time() if time_s is None else time_s) * 1e9))
    for field in event.DESCRIPTOR.oneofs_by_name["payload"].fields:
        if field.message_type.full_name == payload.DESCRIPTOR.full_name:
            getattr(event, field.name).CopyFrom(payload)
            getattr(event, field.name).SetInParent()
    return event


class ScriptedService(orchestrator_pb2_grpc.OrchestratorServicer):
    """Instances are lists of events; `record` appends one and wakes the streams."""

    def __init__(self, script: Script | None = None) -> None:
        self.events: dict[str, list[event_pb2.Event]] = {}
        self.live_texts: dict[str, dict[tuple[str, int], str]] = {}
        """By instance: the text of each attempt under way, by subtask (empty: the synthesis) and attempt."""
        self.all_events: list[event_pb2.Event] = []
        """The events of all instances; an event's position is its place here, from 1."""
        self.streams_opened: list[int] = []
        """The `after_sequence` of each stream opened so far."""
        self.cut_after: int | None = None
        """Streams are cut, once, when they have sent this sequence."""
        self.create_error: tuple[grpc.StatusCode, str, str] | None = None
        """Code, reason and message that every CreateInstance answers."""
        self.info: orchestrator_pb2.GetServiceInfoResponse | None = orchestrator_pb2.GetServiceInfoResponse(
            version="0.1.0",
            models=orchestrator_pb2.ServiceModels(big_model="openai/big", small_model="openai/small"),
            engine="local",
            default_config=instance_pb2.InstanceConfig(max_output_tokens=100),
            service_id=str(uuid.uuid4()),
        )
        """The answer of GetServiceInfo, without the addresses; None: the service is of an earlier version."""
        self.requests: list[orchestrator_pb2.CreateInstanceRequest] = []
        self.created_over_rest = 0
        self.wait_called = asyncio.Event()
        """Set when WaitInstance is called."""
        self._script = script
        self._changed = asyncio.Condition()
        self._scripts: dict[str, asyncio.Task[Any]] = {}
        self._server: grpc.aio.Server | None = None
        self._rest_server: asyncio.Server | None = None
        self.port = 0
        self.rest_port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def rest_address(self) -> str:
        return f"127.0.0.1:{self.rest_port}"

    async def start(self, *, port: int = 0, rest_port: int | None = None) -> Self:
        """Listen; a rest_port of None opens no REST server."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        orchestrator_pb2_grpc.add_OrchestratorServicer_to_server(self, server)
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        self.port = server.add_insecure_port(f"127.0.0.1:{port or self.port}")
        await server.start()
        self._server = server
        if rest_port is not None:
            self._rest_server = await asyncio.start_server(self._serve_rest, "127.0.0.1", rest_port)
            self.rest_port = self._rest_server.sockets[0].getsockname()[1]
        if self.info:
            self.info.grpc_address = self.address
            self.info.rest_address = self.rest_address if self._rest_server else ""
        return self

    async def stop(self) -> None:
        """Stop at once, as a crash does; the events stay for the next start."""
        for script in self._scripts.values():
            script.cancel()
        if self._rest_server:
            self._rest_server.close()
        if self._server:
            await self._server.stop(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def record(self, instance_id: str, *payloads: Message) -> None:
        events = self.events.setdefault(instance_id, [])
        for payload in payloads:
            events.append(payload_event(instance_id, len(events) + 1, payload))
            self.all_events.append(events[-1])
            if payload.DESCRIPTOR.name.endswith(("Completed", "Failed")):
                key = getattr(payload, "subtask_id", ""), getattr(payload, "attempt", 0)
                self.live_texts.get(instance_id, {}).pop(key, None)
        async with self._changed:
            self._changed.notify_all()

    async def write(self, instance_id: str, text: str, *, subtask_id: str = "", attempt: int = 1) -> None:
        """Append to the text of an attempt in progress."""
        texts = self.live_texts.setdefault(instance_id, {})
        texts[subtask_id, attempt] = texts.get((subtask_id, attempt), "") + text
        async with self._changed:
            self._changed.notify_all()

    def instance(self, instance_id: str) -> Instance:
        return fold(self.events[instance_id])

    async def CreateInstance(  # noqa: N802
        self, request: orchestrator_pb2.CreateInstanceRequest, context: Any
    ) -> orchestrator_pb2.CreateInstanceResponse:
        self.requests.append(request)
        if self.create_error:
            await context.abort_with_status(refusal(*self.create_error))
        instance_id = request.id or f"i{len(self.events) + 1}"
        config = instance_pb2.InstanceConfig(big_model="openai/big", small_model="openai/small")
        config.MergeFrom(request.config)
        created = event_pb2.InstanceCreated(prompt=request.prompt, config=config, labels=request.labels)
        await self.record(instance_id, created)
        if self._script:
            self._scripts[instance_id] = asyncio.create_task(self._script(self, instance_id))
        state = self.instance(instance_id)
        return orchestrator_pb2.CreateInstanceResponse(
            id=instance_id, details=view.status(state), instance=view.instance(state)
        )

    async def GetServiceInfo(  # noqa: N802
        self, _: orchestrator_pb2.GetServiceInfoRequest, context: Any
    ) -> orchestrator_pb2.GetServiceInfoResponse:
        if not self.info:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        return self.info

    async def GetResult(  # noqa: N802
        self, request: orchestrator_pb2.GetResultRequest, context: Any
    ) -> HttpBody:
        await self._require_instance(request.id, context)
        return HttpBody(data=self.instance(request.id).final_result.encode())

    async def GetInstance(  # noqa: N802
        self, request: orchestrator_pb2.GetInstanceRequest, context: Any
    ) -> orchestrator_pb2.GetInstanceResponse:
        await self._require_instance(request.id, context)
        state = self.instance(request.id)
        full = request.view == orchestrator_pb2.VIEW_FULL
        return orchestrator_pb2.GetInstanceResponse(
            status=view.status(state), instance=view.instance(state, full=full)
        )

    async def ListInstances(  # noqa: N802
        self, request: orchestrator_pb2.ListInstancesRequest, context: Any
    ) -> orchestrator_pb2.ListInstancesResponse:
        await context.send_initial_metadata((("last-position", str(len(self.all_events))),))
        states = [self.instance(instance_id) for instance_id in reversed(self.events)]
        labels = dict(label.split("=", 1) for label in request.labels)
        wanted = [
            state
            for state in states
            if (not request.states or state.state in request.states)
            and labels.items() <= dict(state.labels).items()
            and state.id.startswith(request.id_prefix)
        ]
        start = int(request.page_token or 0)
        end = start + (request.page_size or 50)
        return orchestrator_pb2.ListInstancesResponse(
            instances=[view.instance(state) for state in wanted[start:end]],
            next_page_token=str(end) if end < len(wanted) else "",
        )

    async def WaitInstance(  # noqa: N802
        self, request: orchestrator_pb2.WaitInstanceRequest, context: Any
    ) -> orchestrator_pb2.WaitInstanceResponse:
        await self._require_instance(request.id, context)
        self.wait_called.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(request.timeout.ToTimedelta().total_seconds()), self._changed:
                await self._changed.wait_for(lambda: self.instance(request.id).state in TERMINAL)
        state = self.instance(request.id)
        return orchestrator_pb2.WaitInstanceResponse(status=view.status(state), instance=view.instance(state))

    async def TerminateInstance(  # noqa: N802
        self, request: orchestrator_pb2.TerminateInstanceRequest, context: Any
    ) -> orchestrator_pb2.TerminateInstanceResponse:
        await self._require_instance(request.id, context)
        if request.id in self._scripts:
            self._scripts[request.id].cancel()
        await self.record(request.id, event_pb2.InstanceTerminated())
        return orchestrator_pb2.TerminateInstanceResponse(instance=view.instance(self.instance(request.id)))

    async def StreamEvents(  # noqa: N802
        self, request: orchestrator_pb2.StreamEventsRequest, context: Any
    ) -> AsyncIterator[orchestrator_pb2.StreamEventsResponse]:
        await self._require_instance(request.id, context)
        self.streams_opened.append(request.after_sequence)
        events = self.events[request.id]
        last = request.after_sequence
        follow = request.follow or not request.HasField("follow")
        caught_up = False
        sent: dict[tuple[str, int], int] = {}
        """How many characters of each attempt this stream has sent."""

        def unsent() -> dict[tuple[str, int], str]:
            texts = self.live_texts.get(request.id, {}) if request.include_deltas else {}
            return {key: text for key, text in texts.items() if len(text) > sent.get(key, 0)}

        while True:
            for event in events[last:]:
                batch = orchestrator_pb2.EventBatch(events=[event])
                yield orchestrator_pb2.StreamEventsResponse(batch=batch)
                last = event.sequence
                if self.cut_after == last:
                    self.cut_after = None
                    await context.abort_with_status(
                        refusal(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the service stops")
                    )
            for (subtask_id, attempt), text in unsent().items():
                offset = sent.get((subtask_id, attempt), 0)
                sent[subtask_id, attempt] = len(text)
                delta = orchestrator_pb2.OutputDelta(
                    subtask_id=subtask_id, attempt=attempt, offset=offset, text=text[offset:]
                )
                yield orchestrator_pb2.StreamEventsResponse(delta=delta)
            state = self.instance(request.id).state
            if state in TERMINAL and last == len(events):
                end = orchestrator_pb2.StreamEnd(state=state, sequence=last)
                yield orchestrator_pb2.StreamEventsResponse(end=end)
                return
            if not caught_up:
                caught_up = True
                yield orchestrator_pb2.StreamEventsResponse(
                    caught_up=orchestrator_pb2.CaughtUp(sequence=last)
                )
                if not follow:
                    return
            async with self._changed:
                await self._changed.wait_for(lambda: len(events) > last or unsent())  # noqa: B023  awaited here

    async def StreamAllEvents(  # noqa: N802
        self, request: orchestrator_pb2.StreamAllEventsRequest, context: Any
    ) -> AsyncIterator[orchestrator_pb2.StreamAllEventsResponse]:
        self.streams_opened.append(request.after_position)
        last = request.after_position
        wanted = dict(label.split("=") for label in request.labels)
        caught_up = False
        while True:
            for position, event in enumerate(self.all_events[last:], last + 1):
                last = position
                if wanted.items() <= dict(self.instance(event.instance_id).labels).items():
                    batch = orchestrator_pb2.EventBatch(events=[event], last_position=position)
                    yield orchestrator_pb2.StreamAllEventsResponse(batch=batch)
                if self.cut_after == last:
                    self.cut_after = None
                    await context.abort_with_status(
                        refusal(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", "the service stops")
                    )
            if not caught_up:
                caught_up = True
                yield orchestrator_pb2.StreamAllEventsResponse(
                    caught_up=orchestrator_pb2.CaughtUp(sequence=last)
                )
                if not request.follow:
                    return
            async with self._changed:
                await self._changed.wait_for(lambda: len(self.all_events) > last)  # noqa: B023  awaited here

    async def _require_instance(self, instance_id: str, context: Any) -> None:
        if instance_id not in self.events:
            await context.abort_with_status(
                refusal(
                    grpc.StatusCode.NOT_FOUND,
                    "INSTANCE_NOT_FOUND",
                    f"no instance {instance_id!r}",
                    {"id": instance_id},
                )
            )

    async def _serve_rest(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
            body = await reader.readexactly(length)
            if head.startswith("post / "):
                code, answer = await self._create_over_rest(body)
            elif head.startswith("get /-/info "):
                code, answer = (200, json_format.MessageToDict(self.info)) if self.info else (404, {})
            else:
                code, answer = 200, {"status": "ready"}
            content = json.dumps(answer).encode()
            writer.write(
                b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%s" % (code, len(content), content)
            )
            await writer.drain()

    async def _create_over_rest(self, body: bytes) -> tuple[int, Any]:
        if self.create_error:
            code, reason, message = self.create_error
            info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}
            return 400, {"code": code.value[0], "message": message, "details": [info]}
        self.created_over_rest += 1
        request = json_format.Parse(body, orchestrator_pb2.CreateInstanceRequest())
        return 200, json_format.MessageToDict(await self.CreateInstance(request, None))


def refusal(
    code: grpc.StatusCode, reason: str, message: str, metadata: dict[str, str] | None = None
) -> grpc.Status:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="orchestrator", metadata=metadata))
    assert code.value[0] in code_pb2.Code.values()
    return rpc_status.to_status(status_pb2.Status(code=code.value[0], message=message, details=[detail]))


def in_seconds(seconds: float) -> Timestamp:
    moment = Timestamp()
    moment.FromNanoseconds(int((time.time() + seconds) * 1e9))
    return moment


async def play_success(service: ScriptedService, instance_id: str) -> None:
    """Record two subtasks and an answer, at once."""
    await service.record(
        instance_id,
        event_pb2.PlanningStarted(attempt=1, model="openai/big"),
        event_pb2.SubtaskPlanned(attempt=1, subtask=instance_pb2.Subtask(id="t1", title="First [bold]part")),
        event_pb2.SubtaskPlanned(
            attempt=1, subtask=instance_pb2.Subtask(id="t2", title="Second", depends_on=["t1"])
        ),
        event_pb2.PlanCompleted(attempt=1, model="openai/big", summary="All in Go."),
        event_pb2.SubtaskStarted(subtask_id="t1", attempt=1, model="openai/small"),
        event_pb2.SubtaskCompleted(subtask_id="t1", attempt=1, model="openai/small", output="one"),
        event_pb2.SubtaskStarted(subtask_id="t2", attempt=1, model="openai/small"),
        event_pb2.SubtaskCompleted(subtask_id="t2", attempt=1, model="openai/small", output="two"),
        event_pb2.SynthesisStarted(attempt=1, model="openai/big"),
        event_pb2.SynthesisCompleted(
            attempt=1, model="openai/big", final_result="# Answer\n\none \x1b[31mtwo"
        ),
        event_pb2.InstanceCompleted(),
    )


async def play_planning_failure(service: ScriptedService, instance_id: str) -> None:
    """Record that planning failed."""
    error = instance_pb2.Failure(
        reason="MODEL_UNAUTHENTICATED", message="no key for openai: set OPENAI_API_KEY"
    )
    await service.record(
        instance_id,
        event_pb2.PlanningStarted(attempt=1, model="openai/big"),
        event_pb2.PlanningFailed(attempt=1, model="openai/big", error=error),
        event_pb2.InstanceErrored(error=error),
    )


async def play_in_real_time(service: ScriptedService, instance_id: str) -> None:
    """Record a plan of eight subtasks, with a retry and long titles, at a pace that can be watched."""

    words = itertools.cycle(_LIVE_TEXT.split(" "))

    async def after(seconds: float, *payloads: Message) -> None:
        for _ in range(round(seconds / _WORD_S)):
            await asyncio.sleep(_WORD_S)
            instance = service.instance(instance_id)
            works = {name: subtask.work for name, subtask in instance.subtasks.items()}
            for name, work in (works | {"": instance.synthesis}).items():
                if work.state == IN_PROGRESS:
                    await service.write(instance_id, next(words) + " ", subtask_id=name, attempt=work.attempt)
        await service.record(instance_id, *payloads)

    titles = {
        "t1": ("Storage interface and its in-memory implementation", []),
        "t2": ("HTTP handlers for create and redirect", ["t1"]),
        "t3": ("Rate limiting per client address, with a token bucket that survives restarts", ["t1"]),
        "t4": ("Metrics", []),
        "t5": ("Configuration from environment and flags", []),
        "t6": ("\x1b[31mEvil[/] [bold]title\x07", ["t5"]),
        "t7": ("Dockerfile and compose file", ["t2", "t3", "t6"]),
        "t8": ("日本語のドキュメント", ["t7"]),
    }
    usage = instance_pb2.Usage(input_tokens=810, output_tokens=1204, model_calls=1, cost_usd=0.0031)
    small = "openai/small"
    limited = instance_pb2.Failure(
        reason="RATE_LIMITED", message="the endpoint answers 429: it asks to wait 4 s"
    )

    def started(subtask_id: str, attempt: int = 1) -> Message:
        return event_pb2.SubtaskStarted(subtask_id=subtask_id, attempt=attempt, model=small)

    def done(subtask_id: str, attempt: int = 1) -> Message:
        return event_pb2.SubtaskCompleted(
            subtask_id=subtask_id, attempt=attempt, model=small, output=f"output of {subtask_id}", usage=usage
        )

    await after(0.3, event_pb2.PlanningStarted(attempt=1, model="openai/big"))
    for subtask_id, (title, depends_on) in titles.items():
        subtask = instance_pb2.Subtask(id=subtask_id, title=title, instructions="…", depends_on=depends_on)
        await after(0.3, event_pb2.SubtaskPlanned(attempt=1, subtask=subtask))
    await after(0.3, event_pb2.PlanCompleted(attempt=1, model="openai/big", summary="Go 1.24", usage=usage))
    await after(0, started("t1"), started("t4"), started("t5"))
    await after(1.5, done("t5"), started("t6"))
    failed = event_pb2.SubtaskFailed(
        subtask_id="t4", attempt=1, model=small, error=limited, retry_time=in_seconds(4)
    )
    await after(0.5, failed)
    await after(2, done("t1"), started("t2"), started("t3"))
    await after(2, started("t4", 2), done("t6"))
    await after(2, done("t2"))
    await after(1, done("t4", 2))
    await after(2, done("t3"), started("t7"))
    await after(1.5, done("t7"), started("t8"))
    await after(1.5, done("t8"), event_pb2.SynthesisStarted(attempt=1, model="openai/big"))
    result = (
        "# A URL shortener\n\nIt has **two** parts:\n\n- storage\n- handlers\n\n```go\nfunc main() {}\n```\n"
    )
    await after(
        2,
        event_pb2.SynthesisCompleted(attempt=1, model="openai/big", final_result=result, usage=usage),
        event_pb2.InstanceCompleted(usage=usage),
    )


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=50051)
    parser.add_argument("--rest-port", type=int, default=8787)
    options = parser.parse_args()
    async with ScriptedService(play_in_real_time) as service:
        await service.start(port=options.port, rest_port=options.rest_port)
        print(service.address, service.rest_address, flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
