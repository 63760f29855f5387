"""The client for asyncio: a method for each RPC."""

import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import ClassVar, Final, Self, cast

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.client.channel import AsyncChannel, Channel, Tls
from orchestrator.client.errors import ServiceError, mapping_errors
from orchestrator.client.streams import (
    KEEP_TRYING_S,
    Deletion,
    Event,
    EventBatch,
    OnDisconnect,
    OutputDelta,
    ReconnectPolicy,
    read_all,
    read_instance,
    read_resuming,
)
from orchestrator.v1 import event_pb2, instance_pb2, orchestrator_pb2, orchestrator_pb2_grpc

UNARY_TIMEOUT_S: Final = 30.0

_HEALTH_TIMEOUT_S: Final = 2.0
_WAIT_STEP_S: Final = 300.0
_REVIEW_STEP_S: Final = 1.0
"""WaitInstance answers at the end alone: how often to look whether a review is due."""


class Client:
    """A connection to one service, for one event loop. Use it as an async context manager.

    `token` is sent with each call: a token of the service, or a JWT of its issuer. With `tls` the connection
    is encrypted.
    """

    _channel_type: ClassVar[type[Channel]] = AsyncChannel

    def __init__(
        self, address: str, *, token: str = "", tls: Tls | None = None, timeout_s: float = UNARY_TIMEOUT_S
    ) -> None:
        self._channel = self._channel_type(address, token, tls)
        self._stub = orchestrator_pb2_grpc.OrchestratorStub(cast("grpc.aio.Channel", self._channel))
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection, with the calls that are open; leaving the context does it too."""
        await self._channel.close()

    async def is_serving(self) -> bool:
        """Return whether a service answers here and says that it serves: gRPC's standard health check."""
        try:
            answer = await health_pb2_grpc.HealthStub(self._channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def info(self) -> orchestrator_pb2.GetServiceInfoResponse:
        """Tell what the service is set to: its version, models, limits and addresses."""
        with mapping_errors():
            return await self._stub.GetServiceInfo(
                orchestrator_pb2.GetServiceInfoRequest(), timeout=self._timeout_s
            )

    async def metrics(self) -> str:
        """Give the service's metrics, in Prometheus' text format."""
        with mapping_errors():
            body = await self._stub.GetMetrics(orchestrator_pb2.GetMetricsRequest(), timeout=self._timeout_s)
        return bytes(body.data).decode()

    async def create(
        self,
        prompt: str,
        *,
        instance_id: str = "",
        request_id: str = "",
        config: instance_pb2.InstanceConfig | None = None,
        labels: Mapping[str, str] | None = None,
        files: Sequence[instance_pb2.File] = (),
        continues: str = "",
    ) -> orchestrator_pb2.CreateInstanceResponse:
        """Record a new instance; it is durable when this returns.

        It works on `files`, of which path and content are read, or goes on from the finished instance that
        `continues` names: from its result, and from its files where there are none here.
        """
        request = orchestrator_pb2.CreateInstanceRequest(
            prompt=prompt,
            id=instance_id,
            request_id=request_id,
            config=config,
            labels=labels,
            files=files,
            continues=continues,
        )
        with mapping_errors():
            return await self._stub.CreateInstance(request, timeout=self._timeout_s)

    async def create_all(
        self, requests: Sequence[orchestrator_pb2.CreateInstanceRequest]
    ) -> orchestrator_pb2.BatchCreateInstancesResponse:
        """Record up to 100 new instances, all or none."""
        with mapping_errors():
            return await self._stub.BatchCreateInstances(
                orchestrator_pb2.BatchCreateInstancesRequest(requests=requests), timeout=self._timeout_s
            )

    async def get(self, instance_id: str, *, full: bool = False) -> orchestrator_pb2.GetInstanceResponse:
        """Show one instance; `full` adds the subtasks' instructions and outputs."""
        view = orchestrator_pb2.VIEW_FULL if full else orchestrator_pb2.VIEW_BASIC
        request = orchestrator_pb2.GetInstanceRequest(id=instance_id, view=view)
        with mapping_errors():
            return await self._stub.GetInstance(request, timeout=self._timeout_s)

    async def result(self, instance_id: str) -> str:
        """Give the final result alone, Markdown; FAILED_PRECONDITION until there is one."""
        with mapping_errors():
            body = await self._stub.GetResult(
                orchestrator_pb2.GetResultRequest(id=instance_id), timeout=self._timeout_s
            )
        return bytes(body.data).decode()

    async def list_files(self, instance_id: str) -> orchestrator_pb2.ListFilesResponse:
        """List the result's files without their contents; FAILED_PRECONDITION until there is a result."""
        with mapping_errors():
            return await self._stub.ListFiles(
                orchestrator_pb2.ListFilesRequest(id=instance_id), timeout=self._timeout_s
            )

    async def get_file(self, instance_id: str, path: str) -> str:
        """Give one file of the result; NOT_FOUND where it has none at that path."""
        with mapping_errors():
            body = await self._stub.GetFile(
                orchestrator_pb2.GetFileRequest(id=instance_id, path=path), timeout=self._timeout_s
            )
        return bytes(body.data).decode()

    async def get_archive(self, instance_id: str) -> bytes:
        """Give all files of the result as a zip."""
        with mapping_errors():
            body = await self._stub.GetArchive(
                orchestrator_pb2.GetArchiveRequest(id=instance_id), timeout=self._timeout_s
            )
        return bytes(body.data)

    async def list(
        self,
        *,
        page_size: int = 0,
        page_token: str = "",
        states: Sequence[instance_pb2.State.ValueType] = (),
        labels: Mapping[str, str] | None = None,
        id_prefix: str = "",
    ) -> orchestrator_pb2.ListInstancesResponse:
        """Show one page of instances, newest first; only those whose ids begin with `id_prefix`."""
        request = orchestrator_pb2.ListInstancesRequest(
            page_size=page_size,
            page_token=page_token,
            states=states,
            labels=[f"{key}={value}" for key, value in (labels or {}).items()],
            id_prefix=id_prefix,
        )
        with mapping_errors():
            return await self._stub.ListInstances(request, timeout=self._timeout_s)

    async def wait(
        self,
        instance_id: str,
        *,
        timeout_s: float | None = None,
        until_review: bool = False,
        keep_trying_s: float = KEEP_TRYING_S,
    ) -> orchestrator_pb2.WaitInstanceResponse:
        """Wait for a terminal state, through restarts of the service; None waits without limit.

        With `until_review` also for a plan that waits for review. When the time is up, the answer is the
        instance as it then is.
        """
        end = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        policy = ReconnectPolicy(self._channel, keep_trying_s)
        longest_s = 0.0 if until_review else _WAIT_STEP_S
        while True:
            step_s = min(longest_s, max(0.0, end - time.monotonic()))
            request = orchestrator_pb2.WaitInstanceRequest(id=instance_id, timeout=_duration(step_s))
            try:
                with mapping_errors():
                    answer = await self._stub.WaitInstance(request, timeout=step_s + self._timeout_s)
            except ServiceError as error:
                await policy.wait(error)
                continue
            policy.reset()
            instance = answer.instance
            is_due = until_review and instance.state == instance_pb2.STATE_WAITING
            if instance.HasField("end_time") or is_due or time.monotonic() >= end:
                return answer
            longest_s = _REVIEW_STEP_S if until_review and instance.config.review_plan else _WAIT_STEP_S

    async def pause(
        self, instance_id: str, *, expected_sequence: int | None = None
    ) -> orchestrator_pb2.PauseInstanceResponse:
        """Start nothing new; what runs finishes."""
        with mapping_errors():
            return await self._stub.PauseInstance(
                orchestrator_pb2.PauseInstanceRequest(id=instance_id, expected_sequence=expected_sequence),
                timeout=self._timeout_s,
            )

    async def resume(
        self, instance_id: str, *, expected_sequence: int | None = None
    ) -> orchestrator_pb2.ResumeInstanceResponse:
        """Let a paused instance go on."""
        with mapping_errors():
            return await self._stub.ResumeInstance(
                orchestrator_pb2.ResumeInstanceRequest(id=instance_id, expected_sequence=expected_sequence),
                timeout=self._timeout_s,
            )

    async def terminate(
        self, instance_id: str, *, expected_sequence: int | None = None
    ) -> orchestrator_pb2.TerminateInstanceResponse:
        """Stop an instance for good."""
        with mapping_errors():
            return await self._stub.TerminateInstance(
                orchestrator_pb2.TerminateInstanceRequest(
                    id=instance_id, expected_sequence=expected_sequence
                ),
                timeout=self._timeout_s,
            )

    async def retry(
        self,
        instance_id: str,
        config: instance_pb2.InstanceConfig | None = None,
        *,
        update_mask: Sequence[str] = (),
        expected_sequence: int | None = None,
    ) -> orchestrator_pb2.RetryInstanceResponse:
        """Run again what failed, under changed config.

        With an `update_mask`, as in `["subtasks", "budget.max_tokens"]`, exactly those fields are taken from
        `config`, and those that it leaves unset are cleared.
        """
        with mapping_errors():
            return await self._stub.RetryInstance(
                orchestrator_pb2.RetryInstanceRequest(
                    id=instance_id,
                    config=config,
                    update_mask=_mask(update_mask),
                    expected_sequence=expected_sequence,
                ),
                timeout=self._timeout_s,
            )

    async def restart(
        self,
        instance_id: str,
        config: instance_pb2.InstanceConfig | None = None,
        *,
        update_mask: Sequence[str] = (),
        expected_sequence: int | None = None,
    ) -> orchestrator_pb2.RestartInstanceResponse:
        """Begin anew, under changed config; `update_mask` as of `retry`."""
        with mapping_errors():
            return await self._stub.RestartInstance(
                orchestrator_pb2.RestartInstanceRequest(
                    id=instance_id,
                    config=config,
                    update_mask=_mask(update_mask),
                    expected_sequence=expected_sequence,
                ),
                timeout=self._timeout_s,
            )

    async def fork(
        self,
        instance_id: str,
        stage: orchestrator_pb2.Stage.ValueType,
        *,
        new_id: str = "",
        config: instance_pb2.InstanceConfig | None = None,
        update_mask: Sequence[str] = (),
    ) -> orchestrator_pb2.ForkInstanceResponse:
        """Make a new instance that keeps what this one did before a stage, under changed config.

        `update_mask` is as of `retry`.
        """
        request = orchestrator_pb2.ForkInstanceRequest(
            id=instance_id,
            new_id=new_id,
            stage=stage,
            config=config,
            update_mask=_mask(update_mask),
        )
        with mapping_errors():
            return await self._stub.ForkInstance(request, timeout=self._timeout_s)

    async def delete(self, instance_id: str) -> None:
        """Remove a finished instance and its events."""
        with mapping_errors():
            await self._stub.DeleteInstance(
                orchestrator_pb2.DeleteInstanceRequest(id=instance_id), timeout=self._timeout_s
            )

    async def review(
        self,
        instance_id: str,
        decision: event_pb2.Decision.ValueType,
        *,
        subtasks: Sequence[instance_pb2.Subtask] = (),
        feedback: str = "",
        expected_sequence: int | None = None,
    ) -> orchestrator_pb2.ReviewPlanResponse:
        """Decide on a plan that waits; `subtasks` replace it, `feedback` goes with a rejection."""
        request = orchestrator_pb2.ReviewPlanRequest(
            id=instance_id,
            decision=decision,
            subtasks=subtasks,
            feedback=feedback,
            expected_sequence=expected_sequence,
        )
        with mapping_errors():
            return await self._stub.ReviewPlan(request, timeout=self._timeout_s)

    async def stream_events(
        self,
        instance_id: str,
        *,
        after_sequence: int = 0,
        follow: bool = True,
        keep_trying_s: float = KEEP_TRYING_S,
        on_disconnect: OnDisconnect | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Give each event after `after_sequence` once and in order, until the instance has ended.

        With `follow` false: until what is recorded now has been read. When the connection is cut, reading
        goes on by itself after the last event given, for up to `keep_trying_s` seconds without any sign of
        life; then the last failure is raised. An order that the service must never show is DATA_LOSS.
        """
        request = orchestrator_pb2.StreamEventsRequest(
            id=instance_id, after_sequence=after_sequence, follow=follow
        )
        async with contextlib.aclosing(self._stream(request, keep_trying_s, on_disconnect)) as items:
            async for item in items:
                if isinstance(item, Event):
                    yield item

    def stream(
        self,
        instance_id: str,
        *,
        after_sequence: int = 0,
        follow: bool = True,
        keep_trying_s: float = KEEP_TRYING_S,
        on_disconnect: OnDisconnect | None = None,
    ) -> AsyncGenerator[Event | OutputDelta, None]:
        """Give events as `stream_events` does, and between them text as models write it.

        A delta says where its text belongs: in which attempt, after how many characters. After a cut the
        texts of the attempts under way may be sent again; put in their places they repeat nothing. Deltas
        may be missing, events never: what counts is the output in the completed event.
        """
        request = orchestrator_pb2.StreamEventsRequest(
            id=instance_id, after_sequence=after_sequence, follow=follow, include_deltas=True
        )
        return self._stream(request, keep_trying_s, on_disconnect)

    async def stream_all_events(
        self,
        *,
        after_position: int = 0,
        labels: Mapping[str, str] | None = None,
        follow: bool = True,
        keep_trying_s: float = KEEP_TRYING_S,
        on_disconnect: OnDisconnect | None = None,
    ) -> AsyncGenerator[EventBatch, None]:
        """Give the events of all instances that have all of the labels, in commit order, in batches.

        A batch's `last_position` is what to go on after another time, once its events are dealt with. Cuts
        are overcome as in `stream_events`. With `follow` it has no end of its own.
        """
        both = self.stream_all(
            after_position=after_position,
            labels=labels,
            follow=follow,
            keep_trying_s=keep_trying_s,
            on_disconnect=on_disconnect,
        )
        async with contextlib.aclosing(both) as items:
            async for item in items:
                if isinstance(item, EventBatch):
                    yield item

    def stream_all(
        self,
        *,
        after_position: int = 0,
        labels: Mapping[str, str] | None = None,
        follow: bool = True,
        keep_trying_s: float = KEEP_TRYING_S,
        on_disconnect: OnDisconnect | None = None,
    ) -> AsyncGenerator[EventBatch | Deletion, None]:
        """Give events as `stream_all_events` does, and between them the deletions of instances."""
        request = orchestrator_pb2.StreamAllEventsRequest(
            after_position=after_position,
            follow=follow,
            labels=[f"{key}={value}" for key, value in (labels or {}).items()],
        )
        messages = read_resuming(
            self._channel, lambda: self._stub.StreamAllEvents(request), keep_trying_s, on_disconnect
        )
        return read_all(messages, request)

    def _stream(
        self,
        request: orchestrator_pb2.StreamEventsRequest,
        keep_trying_s: float,
        on_disconnect: OnDisconnect | None,
    ) -> AsyncGenerator[Event | OutputDelta, None]:
        messages = read_resuming(
            self._channel, lambda: self._stub.StreamEvents(request), keep_trying_s, on_disconnect
        )
        return read_instance(messages, request)


def _mask(paths: Sequence[str]) -> FieldMask | None:
    return FieldMask(paths=paths) if paths else None


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
