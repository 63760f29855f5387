"""A service whose instances are in the state that a test stages, Server-Sent Events and deltas included.

The engine's real events follow as fast as its models answer. What is staged here has the times that it is
given, and the text of a model arrives piece by piece, as in the service's own streams.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message import Message
from support.scripted_service import ScriptedService, in_seconds, payload_event, refusal

from orchestrator import edge
from orchestrator.core import config, view
from orchestrator.core.instance import TERMINAL
from orchestrator.rpc import info, sse
from orchestrator.settings import Settings
from orchestrator.v1 import event_pb2, instance_pb2, orchestrator_pb2

Step = tuple[float, Message]
"""Seconds after the first event, and what happened then."""

BIG, SMALL = "openai/big", "openai/small"
PROMPT = event_pb2.InstanceCreated(
    prompt="Build it", config=instance_pb2.InstanceConfig(big_model=BIG, small_model=SMALL)
)


def started() -> list[Step]:
    """Return the steps of a planned instance whose only subtask is running."""
    subtask = instance_pb2.Subtask(id="t1", title="Part 1", instructions="Do it.")
    return [
        (0, PROMPT),
        (1, event_pb2.PlanningStarted(attempt=1, model=BIG)),
        (2, event_pb2.SubtaskPlanned(attempt=1, subtask=subtask)),
        (3, event_pb2.PlanCompleted(attempt=1, model=BIG)),
        (4, event_pb2.SubtaskStarted(subtask_id="t1", attempt=1, model=SMALL)),
    ]


def rate_limited(*, in_s: float) -> event_pb2.SubtaskFailed:
    """Return that the subtask's first attempt failed, with a retry in so many seconds."""
    error = instance_pb2.Failure(reason="RATE_LIMITED", message="the endpoint asks to wait")
    failed = event_pb2.SubtaskFailed(subtask_id="t1", attempt=1, model=SMALL, error=error)
    failed.retry_time.CopyFrom(in_seconds(in_s))
    return failed


class StagedService(ScriptedService):
    """`stage` adds an instance, `record` appends to it, `write` emits text of one of its models."""

    def __init__(self) -> None:
        super().__init__()
        self.deltas: dict[str, list[orchestrator_pb2.OutputDelta]] = {}
        self.forks: list[orchestrator_pb2.ForkInstanceRequest] = []
        self.defaults = config.default("openai/gpt-5", "openai/gpt-5-mini")
        """The configuration of an instance that sets nothing."""
        self.metrics = ""
        """What GetMetrics answers."""

    async def stage(self, instance_id: str, steps: Sequence[Step], *, ago_s: float) -> None:
        """Add an instance whose first event was so many seconds ago."""
        start_s = time.time() - ago_s
        events = self.events.setdefault(instance_id, [])
        for offset_s, payload in steps:
            events.append(payload_event(instance_id, len(events) + 1, payload, start_s + offset_s))
            self.all_events.append(events[-1])

    async def write(self, instance_id: str, *deltas: orchestrator_pb2.OutputDelta) -> None:
        """Send deltas to all streams of the instance, now and later."""
        self.deltas.setdefault(instance_id, []).extend(deltas)
        async with self._changed:
            self._changed.notify_all()

    async def ForkInstance(  # noqa: N802  gRPC's name
        self, request: orchestrator_pb2.ForkInstanceRequest, context: Any
    ) -> orchestrator_pb2.ForkInstanceResponse:
        """Record the request; the fork is an instance with its first event only."""
        await self._require_instance(request.id, context)
        self.forks.append(request)
        source = self.instance(request.id)
        new_id = request.new_id or f"fork-{len(self.forks)}"
        await self.record(
            new_id,
            event_pb2.InstanceCreated(prompt=source.prompt, config=source.config, forked_from=source.id),
        )
        return orchestrator_pb2.ForkInstanceResponse(instance=view.instance(self.instance(new_id)))

    async def GetServiceInfo(  # noqa: N802
        self, _request: orchestrator_pb2.GetServiceInfoRequest, _context: Any
    ) -> orchestrator_pb2.GetServiceInfoResponse:
        """Return the info of a service with these defaults."""
        return info.service_info(Settings(), self.defaults)

    async def GetMetrics(  # noqa: N802
        self, _request: orchestrator_pb2.GetMetricsRequest, _context: Any
    ) -> HttpBody:
        """Return the metrics that the test has set."""
        return HttpBody(content_type="text/plain; version=0.0.4; charset=utf-8", data=self.metrics.encode())

    async def DeleteInstance(  # noqa: N802
        self, request: orchestrator_pb2.DeleteInstanceRequest, context: Any
    ) -> orchestrator_pb2.DeleteInstanceResponse:
        """Forget an instance; what streams of all instances have sent stays sent."""
        await self._require_instance(request.id, context)
        del self.events[request.id]
        return orchestrator_pb2.DeleteInstanceResponse()

    async def StreamServerSentEvents(  # noqa: N802  gRPC's name
        self, request: orchestrator_pb2.StreamServerSentEventsRequest, context: Any
    ) -> AsyncIterator[HttpBody]:
        """Replay, then follow."""
        if request.id:
            await self._require_instance(request.id, context)
        events = self.events[request.id] if request.id else self.all_events
        deltas = self.deltas.setdefault(request.id, []) if request.include_deltas else []
        last, sent = request.after_sequence, 0
        if last > len(events):
            past = {"last_sequence": str(len(events))}
            await context.abort_with_status(
                refusal(grpc.StatusCode.OUT_OF_RANGE, "SEQUENCE_OUT_OF_RANGE", "past the last event", past)
            )
        yield HttpBody(content_type=sse.CONTENT_TYPE, data=sse.OPENING)
        while True:
            frames = [sse.event_frame(event, last + number) for number, event in enumerate(events[last:], 1)]
            last += len(frames)
            frames += map(sse.delta_frame, deltas[sent:])
            sent = len(deltas)
            if frames:
                yield HttpBody(data=b"".join(frames))
            if request.id and self.instance(request.id).state in TERMINAL and last == len(events):
                end = orchestrator_pb2.StreamEnd(state=self.instance(request.id).state, sequence=last)
                yield HttpBody(data=sse.end_frame(end))
                return
            async with self._changed:
                await self._changed.wait_for(lambda: len(events) > last or len(deltas) > sent)  # noqa: B023


@asynccontextmanager
async def staged() -> AsyncIterator[tuple[StagedService, str]]:
    """Run a staged service behind real Envoy; yield it and the address of its page."""
    async with StagedService() as service:
        await service.start()
        async with edge.running(rest_address="127.0.0.1:0", grpc_address=service.address) as envoy:
            watch = asyncio.create_task(envoy.watch())
            try:
                yield service, f"http://{envoy.address}/-/ui/"
            finally:
                watch.cancel()
