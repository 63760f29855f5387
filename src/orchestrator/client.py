"""A small typed client that resumes streams by itself.

    from collections import defaultdict
    from orchestrator.client import Client, Event, OutputDelta

    async with Client("127.0.0.1:50051") as client:
        created = await client.create("Compare three ways to shard a counter", labels={"team": "infra"})
        async for event in client.stream_events(created.id):
            print(event.sequence, event.WhichOneof("payload"))
        answer = await client.get(created.id)
        print(answer.status.output.final_result)

`stream` also gives text while models write it, each piece with its place in its attempt's text:

        written: defaultdict[tuple[str, int], str] = defaultdict(str)
        async for item in client.stream(created.id):
            match item:
                case OutputDelta(subtask_id=name, attempt=attempt, offset=offset, text=text):
                    written[name, attempt] = written[name, attempt][:offset] + text
                case Event():
                    print(item.sequence, item.WhichOneof("payload"))

Every failure is a `ServiceError`. Reading survives a restart of the service; what changes something is sent
once, so give `create` a `request_id` where you want to repeat it safely.
"""

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from orchestrator.core.instance import TERMINAL, WAITING, State
from orchestrator.errors import OrchestratorError
from orchestrator.v1 import event_pb2, instance_pb2, orchestrator_pb2, orchestrator_pb2_grpc

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""The largest message either side may send, which each call tells the service: of events and outputs larger
than that, `Event.omitted_bytes` tells, or RESPONSE_TOO_LARGE."""
UNARY_TIMEOUT_S: Final = 30.0
KEEP_TRYING_S: Final = 60.0
"""How long reading goes on trying to reconnect before it gives up."""
SILENCE_S: Final = 45.0
"""Three heartbeats missed: the connection is dead though nobody closed it."""

Event: TypeAlias = event_pb2.Event
OutputDelta: TypeAlias = orchestrator_pb2.OutputDelta
EventBatch: TypeAlias = orchestrator_pb2.EventBatch

_METADATA: Final = (("max-response-bytes", str(MAX_MESSAGE_BYTES)),)
_HEALTH_TIMEOUT_S: Final = 2.0
_WAIT_STEP_S: Final = 300.0
_REVIEW_STEP_S: Final = 1.0
"""WaitInstance answers at the end alone: how often to look whether a review is due."""
_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # The channel's own patience between connections must not wait_before_retry ours.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The service is near; a company's HTTP proxy would answer for 127.0.0.1.
    ("grpc.enable_http_proxy", 0),
)


class ServiceError(OrchestratorError):
    """An RPC failed.

    `reason` is ErrorInfo's reason and `metadata` its metadata; both are empty where the failure is not the
    service's own answer, as when nothing listens.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = dict(metadata or {})

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Self:
        """Read what the service said of the failure."""
        try:
            status = rpc_status.from_call(error)
        except ValueError:  # details that contradict the status are a proxy's; the status stands
            status = None
        info = ErrorInfo()
        for detail in status.details if status else ():
            if detail.Unpack(info):
                break
        return cls(error.code(), error.details() or "", reason=info.reason, metadata=info.metadata)

    @property
    def is_connection_loss(self) -> bool:
        """Whether the connection or the service went away, so that reading on later makes sense."""
        if self.code is grpc.StatusCode.UNAVAILABLE:
            return True
        # A stopping server and proxies cut streams with these; with a reason they are the service's word.
        return not self.reason and self.code in (grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)


class _TellingChannel:
    """The part of a channel that a stub needs: each call tells how large an answer may be."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        return functools.partial(self._channel.unary_unary(*arguments, **named), metadata=_METADATA)

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        return functools.partial(self._channel.unary_stream(*arguments, **named), metadata=_METADATA)


class Client:
    """A connection to one service, for one event loop. Use it as an async context manager."""

    def __init__(self, address: str, *, timeout_s: float = UNARY_TIMEOUT_S) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        telling = cast("grpc.aio.Channel", _TellingChannel(self._channel))
        self._stub = orchestrator_pb2_grpc.OrchestratorStub(telling)
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def is_serving(self) -> bool:
        """Whether a service answers here and says that it serves: gRPC's standard health check."""
        try:
            answer = await health_pb2_grpc.HealthStub(self._channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def info(self) -> orchestrator_pb2.GetServiceInfoResponse:
        """Tell what the service is set to: its version, models, limits and addresses."""
        with _translated():
            return await self._stub.GetServiceInfo(
                orchestrator_pb2.GetServiceInfoRequest(), timeout=self._timeout_s
            )

    async def create(
        self,
        prompt: str,
        *,
        instance_id: str = "",
        request_id: str = "",
        config: instance_pb2.InstanceConfig | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> orchestrator_pb2.CreateInstanceResponse:
        """Record a new instance; it is durable when this returns."""
        request = orchestrator_pb2.CreateInstanceRequest(
            prompt=prompt, id=instance_id, request_id=request_id, config=config, labels=labels
        )
        with _translated():
            return await self._stub.CreateInstance(request, timeout=self._timeout_s)

    async def create_all(
        self, requests: Sequence[orchestrator_pb2.CreateInstanceRequest]
    ) -> orchestrator_pb2.BatchCreateInstancesResponse:
        """Record up to 100 new instances, all or none."""
        with _translated():
            return await self._stub.BatchCreateInstances(
                orchestrator_pb2.BatchCreateInstancesRequest(requests=requests), timeout=self._timeout_s
            )

    async def get(self, instance_id: str, *, full: bool = False) -> orchestrator_pb2.GetInstanceResponse:
        """Show one instance; `full` adds the subtasks' instructions and outputs."""
        view = orchestrator_pb2.VIEW_FULL if full else orchestrator_pb2.VIEW_BASIC
        request = orchestrator_pb2.GetInstanceRequest(id=instance_id, view=view)
        with _translated():
            return await self._stub.GetInstance(request, timeout=self._timeout_s)

    async def result(self, instance_id: str) -> str:
        """Give the final result alone, Markdown; FAILED_PRECONDITION until there is one."""
        with _translated():
            body = await self._stub.GetResult(
                orchestrator_pb2.GetResultRequest(id=instance_id), timeout=self._timeout_s
            )
        return bytes(body.data).decode()

    async def list(
        self,
        *,
        page_size: int = 0,
        page_token: str = "",
        states: Sequence[State] = (),
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
        with _translated():
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
        patience = _Patience(keep_trying_s)
        longest_s = 0.0 if until_review else _WAIT_STEP_S
        while True:
            step_s = min(longest_s, max(0.0, end - time.monotonic()))
            request = orchestrator_pb2.WaitInstanceRequest(id=instance_id, timeout=_duration(step_s))
            try:
                with _translated():
                    answer = await self._stub.WaitInstance(request, timeout=step_s + self._timeout_s)
            except ServiceError as error:
                await patience.wait_before_retry(error)
                continue
            patience.renew()
            instance = answer.instance
            is_due = until_review and instance.state == WAITING
            if instance.state in TERMINAL or is_due or time.monotonic() >= end:
                return answer
            longest_s = _REVIEW_STEP_S if until_review and instance.config.review_plan else _WAIT_STEP_S

    async def pause(self, instance_id: str) -> orchestrator_pb2.PauseInstanceResponse:
        """Start nothing new; what runs finishes."""
        with _translated():
            return await self._stub.PauseInstance(
                orchestrator_pb2.PauseInstanceRequest(id=instance_id), timeout=self._timeout_s
            )

    async def resume(self, instance_id: str) -> orchestrator_pb2.ResumeInstanceResponse:
        """Let a paused instance go on."""
        with _translated():
            return await self._stub.ResumeInstance(
                orchestrator_pb2.ResumeInstanceRequest(id=instance_id), timeout=self._timeout_s
            )

    async def terminate(self, instance_id: str) -> orchestrator_pb2.TerminateInstanceResponse:
        """Stop an instance for good."""
        with _translated():
            return await self._stub.TerminateInstance(
                orchestrator_pb2.TerminateInstanceRequest(id=instance_id), timeout=self._timeout_s
            )

    async def retry(
        self, instance_id: str, config: instance_pb2.InstanceConfig | None = None
    ) -> orchestrator_pb2.RetryInstanceResponse:
        """Run again what failed, under changed config."""
        with _translated():
            return await self._stub.RetryInstance(
                orchestrator_pb2.RetryInstanceRequest(id=instance_id, config=config), timeout=self._timeout_s
            )

    async def restart(
        self, instance_id: str, config: instance_pb2.InstanceConfig | None = None
    ) -> orchestrator_pb2.RestartInstanceResponse:
        """Begin anew, under changed config."""
        with _translated():
            return await self._stub.RestartInstance(
                orchestrator_pb2.RestartInstanceRequest(id=instance_id, config=config),
                timeout=self._timeout_s,
            )

    async def fork(
        self,
        instance_id: str,
        stage: orchestrator_pb2.Stage.ValueType,
        *,
        new_id: str = "",
        config: instance_pb2.InstanceConfig | None = None,
    ) -> orchestrator_pb2.ForkInstanceResponse:
        """Make a new instance that keeps what this one did before a stage, under changed config."""
        request = orchestrator_pb2.ForkInstanceRequest(
            id=instance_id, new_id=new_id, stage=stage, config=config
        )
        with _translated():
            return await self._stub.ForkInstance(request, timeout=self._timeout_s)

    async def delete(self, instance_id: str) -> None:
        """Remove a finished instance and its events."""
        with _translated():
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
    ) -> orchestrator_pb2.ReviewPlanResponse:
        """Decide on a plan that waits; `subtasks` replace it, `feedback` goes with a rejection."""
        request = orchestrator_pb2.ReviewPlanRequest(
            id=instance_id, decision=decision, subtasks=subtasks, feedback=feedback
        )
        with _translated():
            return await self._stub.ReviewPlan(request, timeout=self._timeout_s)

    async def stream_events(
        self,
        instance_id: str,
        *,
        after_sequence: int = 0,
        follow: bool = True,
        keep_trying_s: float = KEEP_TRYING_S,
        on_cut: "OnCut | None" = None,
    ) -> AsyncGenerator[Event, None]:
        """Give each event after `after_sequence` once and in order, until the instance has ended.

        With `follow` false: until what is recorded now has been read. When the connection is cut, reading
        goes on by itself after the last event given, for up to `keep_trying_s` seconds without any sign of
        life; then the last failure is raised. An order that the service must never show is DATA_LOSS.
        """
        request = orchestrator_pb2.StreamEventsRequest(
            id=instance_id, after_sequence=after_sequence, follow=follow
        )
        async with contextlib.aclosing(self._stream(request, keep_trying_s, on_cut)) as items:
            async for item in items:
                if isinstance(item, Event):
                    yield item

    async def stream(
        self,
        instance_id: str,
        *,
        after_sequence: int = 0,
        follow: bool = True,
        keep_trying_s: float = KEEP_TRYING_S,
        on_cut: "OnCut | None" = None,
    ) -> AsyncGenerator[Event | OutputDelta, None]:
        """Give events as `stream_events` does, and between them text as models write it.

        A delta says where its text belongs: in which attempt, after how many characters. After a cut the
        texts of the attempts under way may be sent again; put in their places they repeat nothing. Deltas
        may be missing, events never: what counts is the output in the completed event.
        """
        request = orchestrator_pb2.StreamEventsRequest(
            id=instance_id, after_sequence=after_sequence, follow=follow, include_deltas=True
        )
        async with contextlib.aclosing(self._stream(request, keep_trying_s, on_cut)) as items:
            async for item in items:
                yield item

    async def stream_all_events(
        self,
        *,
        after_position: int = 0,
        labels: Mapping[str, str] | None = None,
        follow: bool = True,
        keep_trying_s: float = KEEP_TRYING_S,
        on_cut: "OnCut | None" = None,
    ) -> AsyncGenerator[EventBatch, None]:
        """Give the events of all instances that have all of the labels, in commit order, in batches.

        A batch's `last_position` is what to go on after another time, once its events are dealt with. Cuts
        are overcome as in `stream_events`. With `follow` it has no end of its own.
        """
        request = orchestrator_pb2.StreamAllEventsRequest(
            after_position=after_position,
            follow=follow,
            labels=[f"{key}={value}" for key, value in (labels or {}).items()],
        )
        kind = orchestrator_pb2.StreamAllEventsResponse
        messages = _resuming(kind, lambda: self._stub.StreamAllEvents(request), keep_trying_s, on_cut)
        async with contextlib.aclosing(messages):
            async for message in messages:
                match message.WhichOneof("kind"):
                    case "batch":
                        _check_position(message.batch, request.after_position)
                        request.after_position = message.batch.last_position
                        yield message.batch
                    case "caught_up" if not follow:
                        return
                    case _:
                        pass

    async def _stream(
        self, request: orchestrator_pb2.StreamEventsRequest, keep_trying_s: float, on_cut: "OnCut | None"
    ) -> AsyncGenerator[Event | OutputDelta, None]:
        """Give what the request asks for; its `after_sequence` moves on, so that a cut repeats nothing."""
        kind = orchestrator_pb2.StreamEventsResponse
        messages = _resuming(kind, lambda: self._stub.StreamEvents(request), keep_trying_s, on_cut)
        async with contextlib.aclosing(messages):
            async for message in messages:
                match message.WhichOneof("kind"):
                    case "batch":
                        for event in message.batch.events:
                            _check_order(event, request.after_sequence)
                            request.after_sequence = event.sequence
                            yield event
                    case "delta":
                        yield message.delta
                    case "caught_up" if not request.follow:
                        return
                    case "end":
                        return
                    case _:  # kinds of later versions are not ours to judge
                        pass


OnCut: TypeAlias = Callable[[ServiceError | None], None]
"""Told why when a stream's connection is cut, at each failed try, and with None once it is back."""


class _Patience:
    """How long to go on after cuts: from the first one without a sign of life since."""

    def __init__(self, keep_trying_s: float) -> None:
        self._keep_trying_s = keep_trying_s
        self.renew()

    def renew(self) -> None:
        """There is life: begin anew."""
        self._tries = 0
        self._end: float | None = None

    async def wait_before_retry(self, error: ServiceError) -> None:
        """Pause before the next try; raise the error when it is no cut or the time is up."""
        now = time.monotonic()
        self._end = self._end or now + self._keep_trying_s
        if not error.is_connection_loss or now >= self._end:
            raise error
        longest = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**self._tries)
        self._tries += 1
        jittered = longest * random.uniform(0.5, 1)  # noqa: S311  spreads clients out, keeps no secret
        await asyncio.sleep(min(jittered, self._end - now))


_Message = TypeVar(
    "_Message", orchestrator_pb2.StreamEventsResponse, orchestrator_pb2.StreamAllEventsResponse
)


async def _resuming(
    kind: type[_Message],
    open_call: "Callable[[], grpc.aio.UnaryStreamCall[Any, _Message]]",
    keep_trying_s: float,
    on_cut: OnCut | None,
) -> AsyncGenerator[_Message, None]:
    """Give messages for as long as somebody reads, with a new call after each cut."""
    tell = on_cut or (lambda _: None)
    patience = _Patience(keep_trying_s)
    is_cut = False
    while True:
        call = open_call()
        try:
            async for message in _messages(kind, call):
                if is_cut:
                    is_cut = False
                    tell(None)
                if message.WhichOneof("kind") != "caught_up":  # that says less than that the service stays
                    patience.renew()
                yield message
        except ServiceError as error:
            if error.is_connection_loss:
                is_cut = True
                tell(error)
            await patience.wait_before_retry(error)
        finally:
            call.cancel()


async def _messages(
    kind: type[_Message], call: "grpc.aio.UnaryStreamCall[Any, _Message]"
) -> AsyncIterator[_Message]:
    while True:
        try:
            with _translated():
                async with asyncio.timeout(SILENCE_S):
                    message = await call.read()
        except TimeoutError:
            raise _cut(f"the service has been silent for {SILENCE_S:.0f} s") from None
        if not isinstance(message, kind):
            raise _cut("the stream closed before its end")  # grpc.aio.EOF
        yield message


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise ServiceError.of(error) from None


def _cut(message: str) -> ServiceError:
    return ServiceError(grpc.StatusCode.UNAVAILABLE, message)


def _check_order(event: event_pb2.Event, last: int) -> None:
    if event.sequence != last + 1:
        raise ServiceError(
            grpc.StatusCode.DATA_LOSS,
            f"event {event.sequence} of {event.instance_id} came after {last}: the service broke its promise",
        )


def _check_position(batch: EventBatch, last: int) -> None:
    if batch.last_position <= last:
        raise ServiceError(
            grpc.StatusCode.DATA_LOSS,
            f"position {batch.last_position} came after {last}: the service broke its promise",
        )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
