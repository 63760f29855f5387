"""A gRPC service behind Envoy in tests: it answers at once, by the id of the request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as aio_health
from grpc_status import rpc_status

from orchestrator.v1 import instance_pb2, orchestrator_pb2, orchestrator_pb2_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

MISSING = "missing"
"""No such instance."""
FINISHED = "finished"
"""An instance whose events have all been read: its stream is 204."""
QUIET = "quiet"
"""An instance whose stream stays open without an event until the reader leaves."""
FLOOD = "flood"
"""An instance whose stream never runs dry."""
SLOW = "slow"
"""An instance whose GetInstance never answers."""
FAILING = "failing"
"""An instance that cannot be created: UNAVAILABLE, as of a service that stops."""
LATE = "late"
"""An instance that is created LATE_S after it was asked for."""
LATE_S = 0.3
LARGE = "large"
"""An instance with a final result of 8 MiB."""

WRONG_TOKEN = "wrong"
"""A bearer token that GetServiceInfo refuses; all others are good."""

RESULT = "# Grüße\n\n<script>alert(1)</script>\n"
"""The final result of the others, over `GetResult`."""

_TERMINAL = instance_pb2.InstanceStatus(
    status="complete",
    output=instance_pb2.InstanceOutput(
        orchestrator_tasks=["one"], worker_responses=["eins"], final_result="done"
    ),
)


class StubService(orchestrator_pb2_grpc.OrchestratorServicer):
    """Records its requests for the test to inspect."""

    def __init__(self) -> None:
        self.created: list[orchestrator_pb2.CreateInstanceRequest] = []
        self.streams: list[orchestrator_pb2.StreamServerSentEventsRequest] = []
        self.listed: list[orchestrator_pb2.ListInstancesRequest] = []
        self.metadata: dict[str, str] = {}
        self.stream_opened = asyncio.Event()
        self.stream_closed = asyncio.Event()
        self.flooded = asyncio.Event()

    async def CreateInstance(  # noqa: N802  gRPC's names
        self, request: orchestrator_pb2.CreateInstanceRequest, context: Context
    ) -> orchestrator_pb2.CreateInstanceResponse:
        self._record_metadata(context)
        if not request.prompt:
            await _reject_empty_prompt(context)
        self.created.append(request)
        if request.id == FAILING:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "it stops")
        if request.id == LATE:
            await asyncio.sleep(LATE_S)
        instance = instance_pb2.Instance(
            id=request.id or "made", state=instance_pb2.STATE_QUEUED, labels=request.labels
        )
        return orchestrator_pb2.CreateInstanceResponse(
            id=instance.id, details=instance_pb2.InstanceStatus(status="queued"), instance=instance
        )

    async def GetInstance(  # noqa: N802
        self, request: orchestrator_pb2.GetInstanceRequest, context: Context
    ) -> orchestrator_pb2.GetInstanceResponse:
        self._record_metadata(context)
        if request.id == MISSING:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no instance 'missing'")
        if request.id == SLOW:
            await asyncio.Event().wait()
        instance = instance_pb2.Instance(
            id=request.id,
            state=instance_pb2.STATE_COMPLETE,
            last_sequence=12,
            final_result="x" * 8 * 1024 * 1024 if request.id == LARGE else "done",
        )
        return orchestrator_pb2.GetInstanceResponse(status=_TERMINAL, instance=instance)

    async def GetResult(  # noqa: N802
        self, request: orchestrator_pb2.GetResultRequest, context: Context
    ) -> HttpBody:
        self._record_metadata(context)
        if request.id == MISSING:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no instance 'missing'")
        text = "x" * 8 * 1024 * 1024 if request.id == LARGE else RESULT
        return HttpBody(content_type="text/markdown; charset=utf-8", data=text.encode())

    async def GetServiceInfo(  # noqa: N802
        self, _: orchestrator_pb2.GetServiceInfoRequest, context: Context
    ) -> orchestrator_pb2.GetServiceInfoResponse:
        self._record_metadata(context)
        if self.metadata.get("authorization") == f"Bearer {WRONG_TOKEN}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "nobody has this token")
        return orchestrator_pb2.GetServiceInfoResponse(version="1.2.3")

    async def GetMetrics(  # noqa: N802
        self, _: orchestrator_pb2.GetMetricsRequest, context: Context
    ) -> HttpBody:
        self._record_metadata(context)
        return HttpBody(content_type="text/plain; version=0.0.4; charset=utf-8", data=b"up 1\n")

    async def ListInstances(  # noqa: N802
        self, request: orchestrator_pb2.ListInstancesRequest, context: Context
    ) -> orchestrator_pb2.ListInstancesResponse:
        self._record_metadata(context)
        self.listed.append(request)
        return orchestrator_pb2.ListInstancesResponse()

    async def WaitInstance(  # noqa: N802
        self, request: orchestrator_pb2.WaitInstanceRequest, context: Context
    ) -> orchestrator_pb2.WaitInstanceResponse:
        self._record_metadata(context)
        return orchestrator_pb2.WaitInstanceResponse(
            status=_TERMINAL, instance=instance_pb2.Instance(id=request.id)
        )

    async def PauseInstance(  # noqa: N802
        self, request: orchestrator_pb2.PauseInstanceRequest, context: Context
    ) -> orchestrator_pb2.PauseInstanceResponse:
        self._record_metadata(context)
        return orchestrator_pb2.PauseInstanceResponse(instance=instance_pb2.Instance(id=request.id))

    async def DeleteInstance(  # noqa: N802
        self, _: orchestrator_pb2.DeleteInstanceRequest, context: Context
    ) -> orchestrator_pb2.DeleteInstanceResponse:
        self._record_metadata(context)
        return orchestrator_pb2.DeleteInstanceResponse()

    async def BatchCreateInstances(  # noqa: N802
        self, request: orchestrator_pb2.BatchCreateInstancesRequest, context: Context
    ) -> orchestrator_pb2.BatchCreateInstancesResponse:
        self._record_metadata(context)
        return orchestrator_pb2.BatchCreateInstancesResponse(
            instances=[instance_pb2.Instance(id=each.id) for each in request.requests]
        )

    async def StreamServerSentEvents(  # noqa: N802
        self, request: orchestrator_pb2.StreamServerSentEventsRequest, context: Context
    ) -> AsyncIterator[HttpBody]:
        self._record_metadata(context)
        self.streams.append(request)
        if request.id == MISSING:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no instance 'missing'")
        if request.id == FINISHED:
            await context.send_initial_metadata((("x-http-status", "204"),))
            return
        yield HttpBody(content_type="text/event-stream", data=b": ok\n\n")
        self.stream_opened.set()
        try:
            if request.id == QUIET:
                await asyncio.Event().wait()
            while request.id == FLOOD:
                self.flooded.set()
                yield HttpBody(data=b": " + b"x" * 32 * 1024 + b"\n\n")
            yield HttpBody(data=b"id: 1\nevent: instance_created\ndata: {}\n\n")
            yield HttpBody(data=b"id: 2\nevent: instance_completed\ndata: {}\n\n")
        finally:
            self.stream_closed.set()

    def _record_metadata(self, context: Context) -> None:
        self.metadata = {
            key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
        }


async def _reject_empty_prompt(context: Context) -> None:
    """Refuse an empty prompt as the real service does: a status with details."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason="PROMPT_EMPTY", domain="orchestrator"))
    fault = any_pb2.Any()
    fault.Pack(
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field="prompt", description="it is empty")
            ]
        )
    )
    status = status_pb2.Status(
        code=code_pb2.INVALID_ARGUMENT, message="the prompt is empty: «say» what to do", details=[info, fault]
    )
    await context.abort_with_status(rpc_status.to_status(status))


@asynccontextmanager
async def serving(service: StubService, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve, by default on a free loopback port, health included; give the address."""
    server = grpc.aio.server(
        options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024))
    )
    orchestrator_pb2_grpc.add_OrchestratorServicer_to_server(service, server)
    health = aio_health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield address.replace(":0", f":{port}")
    finally:
        await server.stop(grace=None)
