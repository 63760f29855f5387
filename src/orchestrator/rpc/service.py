"""The methods of the Orchestrator service: a request in, engine or log asked, an answer out."""

import asyncio
import base64
import binascii
import logging
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar, assert_never
from zlib import crc32

from google.api.httpbody_pb2 import HttpBody

from orchestrator.auth.caller import ANYONE, Role
from orchestrator.core import config, create, lifecycle, limits, view
from orchestrator.core.create import NewInstance
from orchestrator.core.fork import fork
from orchestrator.core.identity import InstanceRef
from orchestrator.core.instance import TERMINAL, Instance
from orchestrator.engine.base import Engine
from orchestrator.engine.live import LiveText, merge_live_text
from orchestrator.engine.observer import instance_fields
from orchestrator.engine.steering import Action
from orchestrator.errors import InstanceNotFoundError, InvalidArgumentError, at_field
from orchestrator.log import subscription
from orchestrator.log.base import Deletion, EventLog, Head, ListPage, Page, Query
from orchestrator.log.framing import encode_field, tag
from orchestrator.log.states import Loaded
from orchestrator.log.subscription import GlobalStep, Step
from orchestrator.log.tenant_view import TenantView
from orchestrator.offload import offload
from orchestrator.rpc import sse
from orchestrator.rpc.files import FileMethods
from orchestrator.rpc.info import MAX_BATCH_INSTANCES, MAX_PAGE_SIZE
from orchestrator.rpc.requests import CALLER, Context, header_of, origin_of
from orchestrator.rpc.sizes import max_response_bytes
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

_METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"
_LOGGER: Final = logging.getLogger(__name__)
T = TypeVar("T")
SteeringRequest = (
    pb.PauseInstanceRequest
    | pb.ResumeInstanceRequest
    | pb.TerminateInstanceRequest
    | pb.RetryInstanceRequest
    | pb.RestartInstanceRequest
    | pb.ReviewPlanRequest
)
ChangingRequest = pb.RetryInstanceRequest | pb.RestartInstanceRequest | pb.ForkInstanceRequest

HEARTBEAT_S: Final = 10.0
"""A quiet stream says something this often; clients may rely on 15 s."""

_RECONNECT_S: Final = 1.0
"""How long an EventSource waits at least before it comes back."""
_RECONNECT_JITTER_S: Final = 2.0
"""How much longer it waits at most, each another time: all of them lose a service that stops at once."""
_DEFAULT_WAIT_S: Final = 30.0
_LONGEST_WAIT_S: Final = 3600.0
_DEFAULT_PAGE: Final = 50
_MAX_EMPTY_READS: Final = 64
"""How many reads of a list in a row may find nothing before the client is answered with an empty page."""
_END_OF_KEYS: Final = 2**63  # what fits SQLite's integers
_LAST_POSITION: Final = "last-position"
"""The initial metadata with the position to follow a page's instances from."""
_LARGEST_PAGE_BYTES: Final = 2 * 1024 * 1024
"""A page ends before it is larger."""
_ROWS_AT_ONCE: Final = 32
"""So many instances of a page are shown before others have their turn: some 2 ms."""
_LARGEST_PIECE_BYTES: Final = 1024 * 1024
"""Server-Sent Events travel in pieces of at most this size, wherever they begin and end."""
_LARGE_STATUS_BYTES: Final = 512 * 1024
_LARGE_PAGE_BYTES: Final = 512 * 1024
_LARGE_REQUEST_BYTES: Final = 512 * 1024
"""What is larger is checked in a thread."""
_FRAMING_BYTES: Final = 32
"""More than a message of a stream has besides its page's events."""


class OrchestratorService(FileMethods):
    """One method for each RPC; `rpc.server` binds them by name. Every error is a RequestError."""

    def __init__(
        self,
        engine: Engine,
        log: EventLog,
        defaults: instance_pb2.InstanceConfig,
        info: pb.GetServiceInfoResponse | None = None,
        render_metrics: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        """`render_metrics` gives what GetMetrics answers; None: there are none."""
        self._render_metrics = render_metrics
        self.info = info or pb.GetServiceInfoResponse()
        """What GetServiceInfo answers; the addresses are set once they are bound."""

        def seen_by_caller() -> TenantView:
            caller = CALLER.get()
            return TenantView(log, engine.states, caller.tenant, sees_all=caller.role is Role.ADMIN)

        # The log itself is not kept: whatever an RPC reads or writes there is within what its caller sees.
        super().__init__(seen_by_caller)
        self._engine = engine
        self._defaults = defaults

    async def CreateInstance(
        self, request: pb.CreateInstanceRequest, context: Context
    ) -> pb.CreateInstanceResponse:
        """Record a new instance."""
        new = await self._new_instance(request, context)
        created = new if isinstance(new, Loaded) else await self._engine.create(new)
        answer = pb.CreateInstanceResponse(
            id=created.ref.id, details=view.status(created.instance), instance=self._view(created)
        )
        # A repeated request may find an instance that has its outputs.
        if answer.details.HasField("output") and answer.ByteSize() > max_response_bytes(context):
            answer.details.ClearField("output")
        return answer

    async def BatchCreateInstances(
        self, request: pb.BatchCreateInstancesRequest, context: Context
    ) -> pb.BatchCreateInstancesResponse:
        """Record several new instances, all or none."""
        if not 1 <= len(request.requests) <= MAX_BATCH_INSTANCES:
            raise InvalidArgumentError(
                "CONFIG_INVALID",
                f"there are {len(request.requests)} requests: there must be 1 to {MAX_BATCH_INSTANCES}",
                field="requests",
            )
        batch: list[NewInstance | Loaded] = []
        for number, each in enumerate(request.requests):
            with at_field(f"requests[{number}]"):
                batch.append(await self._new_instance(each, context))
            await asyncio.sleep(0)  # a hundred long prompts take a while: others have their turn
        new = [each for each in batch if isinstance(each, NewInstance)]
        created = iter(await self._engine.create_all(new) if new else ())
        instances = []
        for made in batch:
            loaded = next(created) if isinstance(made, NewInstance) else made
            instances.append(self._view(loaded, in_list=True))
            await asyncio.sleep(0)
        view.fit(instances, max_response_bytes(context))
        return pb.BatchCreateInstancesResponse(instances=instances)

    async def _new_instance(
        self, request: pb.CreateInstanceRequest, context: Context
    ) -> NewInstance | Loaded:
        """Validate a request for an instance, and add what it goes on from.

        A repeated request that names an instance to go on from gives the first instance as it is now: the
        other one may be gone by then.
        """
        read = partial(
            create.new_instance,
            request,
            base=self._defaults,
            fallback_id=str(uuid.uuid4()),
            origin=origin_of(context),
            tenant=self._seen().tenant,
        )
        new = await offload(read) if request.ByteSize() > _LARGE_REQUEST_BYTES else read()
        if not request.continues:
            return new
        if made := await self._seen().created_before(new):
            return made
        finished = (await self._seen().load(request.continues)).instance
        return await offload(partial(create.go_on_from, new, finished))

    async def ForkInstance(
        self, request: pb.ForkInstanceRequest, context: Context
    ) -> pb.ForkInstanceResponse:
        """Record a new instance that keeps what another one has done."""
        create.check_id(request.id)
        if request.new_id:
            create.check_id(request.new_id, "new_id")
        source = (await self._seen().load(request.id)).instance
        new_id = request.new_id or str(uuid.uuid4())
        forked = fork(source, request.stage, self._changes(request), new_id=new_id)
        new = replace(forked, origin=origin_of(context), tenant=self._seen().tenant)
        return pb.ForkInstanceResponse(instance=self._view(await self._engine.create(new)))

    async def DeleteInstance(
        self, request: pb.DeleteInstanceRequest, context: Context
    ) -> pb.DeleteInstanceResponse:
        """Remove a finished instance."""
        ref = await self._seen().delete(request.id)
        origin = origin_of(context)
        _LOGGER.info("instance deleted", extra=instance_fields(ref, origin, actor=origin.actor))
        return pb.DeleteInstanceResponse()

    async def GetInstance(self, request: pb.GetInstanceRequest, _: Context) -> bytes:
        """Show one instance.

        The answer is a serialised GetInstanceResponse: of an instance with large texts, each half by itself.
        """
        loaded = await self._seen().load(request.id)
        status = view.status(loaded.instance).SerializeToString()
        if len(status) > _LARGE_STATUS_BYTES:
            await asyncio.sleep(0)
        full = request.view == pb.VIEW_FULL
        waiting_reason = self._engine.waiting_reason(loaded.ref)
        show = partial(_show, loaded.instance, full=full, waiting_reason=waiting_reason)
        instance = await offload(show) if full and loaded.instance.files else show()
        whole = instance + _tenant_field(loaded.ref)
        return encode_field(_STATUS_TAG, status) + encode_field(_INSTANCE_TAG, whole)

    async def GetServiceInfo(
        self, _request: pb.GetServiceInfoRequest, _: Context
    ) -> pb.GetServiceInfoResponse:
        """Describe the service, and to callers with credentials themselves."""
        caller = CALLER.get()
        if caller is ANYONE:
            return self.info
        answer = pb.GetServiceInfoResponse()
        answer.CopyFrom(self.info)
        answer.caller.CopyFrom(
            pb.ServiceCaller(name=caller.name, tenant=caller.tenant, role=caller.role.value)
        )
        return answer

    async def GetMetrics(self, _request: pb.GetMetricsRequest, _: Context) -> HttpBody:
        """Give the metrics as they are now."""
        data = await self._render_metrics() if self._render_metrics else b""
        return HttpBody(content_type=_METRICS, data=data)

    async def WaitInstance(self, request: pb.WaitInstanceRequest, _: Context) -> pb.WaitInstanceResponse:
        """Wait for an instance's end."""
        timeout_s = _DEFAULT_WAIT_S
        if request.HasField("timeout"):
            timeout_s = request.timeout.seconds + request.timeout.nanos / 1e9
            if timeout_s < 0:
                raise InvalidArgumentError(
                    "CONFIG_INVALID", f"timeout is {timeout_s:g} s: it cannot be negative", field="timeout"
                )
        loaded = await self._seen().wait_for_end(request.id, min(timeout_s, _LONGEST_WAIT_S))
        return pb.WaitInstanceResponse(status=view.status(loaded.instance), instance=self._view(loaded))

    async def ListInstances(self, request: pb.ListInstancesRequest, context: Context) -> bytes:
        """Page through instances, and tell where to follow them from.

        The answer is a serialised ListInstancesResponse made around the stored rows: they are not decoded.
        """
        if request.page_size < 0:
            raise InvalidArgumentError(
                "CONFIG_INVALID",
                f"page_size is {request.page_size}: it must be 0 to {MAX_PAGE_SIZE}",
                field="page_size",
            )
        size = min(request.page_size or _DEFAULT_PAGE, MAX_PAGE_SIZE)
        if request.id_prefix:
            create.check_id(request.id_prefix, "id_prefix")
        labels, before = _labels(request.labels), _read_page_token(request)
        position = await self._seen().last_position()  # before the page is read: nothing falls between
        await context.send_initial_metadata(((_LAST_POSITION, str(position)),))
        found = await self._find(
            Query(
                states=sorted(set(request.states)),
                labels=labels,
                id_prefix=request.id_prefix,
                before=before,
                limit=size,
            )
        )
        rows: list[bytes] = []
        page_bytes, next_before = 0, found.before
        for number, (head, shown) in enumerate(found.rows, 1):
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            row = shown + _tenant_field(head.ref) if shown else await self._shown(head)
            page_bytes += len(row)
            if rows and page_bytes > _LARGEST_PAGE_BYTES:
                next_before = before
                break
            if row:
                rows.append(encode_field(_INSTANCES_TAG, row))
            before = head.ref.incarnation
        token = _page_token(request, next_before) if next_before else ""
        return b"".join((*rows, pb.ListInstancesResponse(next_page_token=token).SerializeToString()))

    async def _find(self, query: Query) -> ListPage:
        """Look on while nothing matches, for a while; then the client asks again."""
        for _ in range(_MAX_EMPTY_READS):
            found = await self._seen().list(query)
            if found.rows or not found.before:
                break
            query = query._replace(before=found.before)
        return found

    async def _shown(self, head: Head) -> bytes:
        """Return an instance that is at work, in VIEW_BASIC; empty: it was deleted since it was found."""
        try:
            loaded = await self._seen().at(head)
        except InstanceNotFoundError:
            return b""
        return self._view(loaded, in_list=True).SerializeToString()

    def _view(self, loaded: Loaded, *, full: bool = False, in_list: bool = False) -> instance_pb2.Instance:
        shown = view.instance(
            loaded.instance,
            full=full,
            waiting_reason=self._engine.waiting_reason(loaded.ref),
            in_list=in_list,
        )
        shown.tenant = loaded.ref.key.tenant
        return shown

    async def PauseInstance(
        self, request: pb.PauseInstanceRequest, context: Context
    ) -> pb.PauseInstanceResponse:
        """Start nothing new."""
        return pb.PauseInstanceResponse(instance=await self._steer(request, lifecycle.pause, context))

    async def ResumeInstance(
        self, request: pb.ResumeInstanceRequest, context: Context
    ) -> pb.ResumeInstanceResponse:
        """Let a paused instance go on."""
        return pb.ResumeInstanceResponse(instance=await self._steer(request, lifecycle.resume, context))

    async def TerminateInstance(
        self, request: pb.TerminateInstanceRequest, context: Context
    ) -> pb.TerminateInstanceResponse:
        """Stop an instance."""
        return pb.TerminateInstanceResponse(instance=await self._steer(request, lifecycle.terminate, context))

    async def RetryInstance(
        self, request: pb.RetryInstanceRequest, context: Context
    ) -> pb.RetryInstanceResponse:
        """Run again what failed."""
        retry = partial(lifecycle.retry, changes=self._changes(request))
        return pb.RetryInstanceResponse(instance=await self._steer(request, retry, context))

    async def RestartInstance(
        self, request: pb.RestartInstanceRequest, context: Context
    ) -> pb.RestartInstanceResponse:
        """Begin anew."""
        restart = partial(lifecycle.restart, changes=self._changes(request))
        return pb.RestartInstanceResponse(instance=await self._steer(request, restart, context))

    def _changes(self, request: ChangingRequest) -> config.Changes:
        return config.read_changes(request.config, request.update_mask.paths, self._defaults)

    async def ReviewPlan(self, request: pb.ReviewPlanRequest, context: Context) -> pb.ReviewPlanResponse:
        """Decide on a plan that waits."""
        review = partial(
            lifecycle.review,
            decision=request.decision,
            subtasks=request.subtasks,
            feedback=request.feedback,
        )
        return pb.ReviewPlanResponse(instance=await self._steer(request, review, context))

    async def _steer(
        self, request: SteeringRequest, action: Action, context: Context
    ) -> instance_pb2.Instance:
        expected = request.expected_sequence if request.HasField("expected_sequence") else None
        key = (await self._seen().head(request.id)).ref.key
        return self._view(await self._engine.steer(key, action, origin_of(context), expected))

    async def StreamEvents(
        self, request: pb.StreamEventsRequest, context: Context
    ) -> AsyncIterator[pb.StreamEventsResponse | bytes]:
        """Replay, then follow."""
        head = await self._seen().head(request.id)
        max_page_bytes = max_response_bytes(context) - _FRAMING_BYTES
        live = request.follow or not request.HasField("follow")
        steps = self._follow(head, request.after_sequence, live=live, texts=request.include_deltas)
        async for step in steps:
            match step:
                case LiveText(deltas):
                    for delta in deltas:
                        yield pb.StreamEventsResponse(delta=delta)
                case Page():
                    # A message made around the stored bytes: they are not decoded.
                    for data, _ in await _unless_large(step, partial(_split, step, max_page_bytes)):
                        yield encode_field(_BATCH_TAG, data)
                case subscription.CaughtUp(last):
                    yield pb.StreamEventsResponse(caught_up=pb.CaughtUp(sequence=last))
                case subscription.Idle(last):
                    yield pb.StreamEventsResponse(heartbeat=pb.Heartbeat(sequence=last))
                case subscription.End(state, last):
                    yield pb.StreamEventsResponse(end=pb.StreamEnd(state=state, sequence=last))

    async def _follow(
        self, head: Head, after: int, *, live: bool = True, texts: bool
    ) -> AsyncIterator[Step | LiveText]:
        """Return an instance's events and, where they are asked for, the texts of its calls under way."""
        steps = self._seen().follow(head, after=after, live=live, idle_s=HEARTBEAT_S)
        if not texts:
            async for step in steps:
                yield step
            return
        with self._engine.live.subscribe(head.ref) as reader:
            async for item in merge_live_text(steps, reader):
                yield item

    async def StreamAllEvents(
        self, request: pb.StreamAllEventsRequest, context: Context
    ) -> AsyncIterator[pb.StreamAllEventsResponse | bytes]:
        """Replay every instance's events, then follow."""
        max_page_bytes = max_response_bytes(context) - _FRAMING_BYTES
        steps = self._seen().follow_all(
            after=request.after_position,
            labels=_labels(request.labels),
            live=request.follow or not request.HasField("follow"),
            idle_s=HEARTBEAT_S,
        )
        async for step in steps:
            match step:
                case Page():
                    parts = await _unless_large(step, partial(_split, step, max_page_bytes))
                    for data, positions in parts:
                        position = pb.EventBatch(last_position=positions[-1]).SerializeToString()
                        yield encode_field(_ALL_BATCH_TAG, data + position)
                case Deletion(ref, position):
                    yield pb.StreamAllEventsResponse(
                        deleted=pb.Deletion(instance_id=ref.id, position=position)
                    )
                case subscription.CaughtUp(last):
                    yield pb.StreamAllEventsResponse(caught_up=pb.CaughtUp(sequence=last))
                case subscription.Idle(last):
                    yield pb.StreamAllEventsResponse(heartbeat=pb.Heartbeat(sequence=last))

    async def StreamServerSentEvents(
        self, request: pb.StreamServerSentEventsRequest, context: Context
    ) -> AsyncIterator[HttpBody]:
        """Replay, then follow, for browsers and curl."""
        last_event_id = sse.parse_last_event_id(header_of(context, sse.LAST_EVENT_ID))
        after = request.after_sequence if last_event_id is None else last_event_id
        steps: AsyncIterator[Step | GlobalStep | LiveText]
        if request.id:
            head = await self._seen().head(request.id)
            if head.state in TERMINAL and after == head.last_sequence:
                await context.send_initial_metadata((sse.NO_CONTENT,))
                return
            steps = self._follow(head, after, texts=request.include_deltas)
        else:
            steps = self._seen().follow_all(after=after, idle_s=HEARTBEAT_S)
        opening = sse.OPENING + sse.retry_line(_RECONNECT_S + random.random() * _RECONNECT_JITTER_S)  # noqa: S311
        async for step in steps:
            data = opening + await _unless_large(step, partial(_sse_frames, step))
            for start in range(0, len(data), _LARGEST_PIECE_BYTES):
                piece = data[start : start + _LARGEST_PIECE_BYTES]
                yield HttpBody(content_type=sse.CONTENT_TYPE, data=piece)
            opening = b""


async def _unless_large(step: object, work: Callable[[], T]) -> T:
    """Do work on a step at once; on a page with large events in a thread, for it would block the loop."""
    if isinstance(step, Page) and len(step.data) > _LARGE_PAGE_BYTES:
        return await asyncio.to_thread(work)
    return work()


def _split(page: Page, max_bytes: int) -> Sequence[tuple[bytes, Sequence[int]]]:
    return list(page.split(max_bytes))


def _sse_frames(step: Step | GlobalStep | LiveText) -> bytes:
    match step:
        case LiveText(deltas):
            return b"".join(map(sse.delta_frame, deltas))
        case Page():
            return b"".join(map(sse.event_frame, step.events(), step.ordinals))
        case Deletion(ref, position):
            return sse.deletion_frame(pb.Deletion(instance_id=ref.id, position=position))
        case subscription.CaughtUp() | subscription.Idle():
            return sse.heartbeat_line()
        case subscription.End(state, last):
            return sse.end_frame(pb.StreamEnd(state=state, sequence=last))
    assert_never(step)


def _show(instance: Instance, *, full: bool, waiting_reason: str) -> bytes:
    return view.instance(instance, full=full, waiting_reason=waiting_reason).SerializeToString()


def _tenant_field(ref: InstanceRef) -> bytes:
    """Serialise an instance's tenant, to be joined with the instance, which is stored and shown without."""
    return encode_field(_TENANT_TAG, ref.key.tenant.encode()) if ref.key.tenant else b""


_STATUS_TAG: Final = tag(pb.GetInstanceResponse, "status")
_INSTANCE_TAG: Final = tag(pb.GetInstanceResponse, "instance")
_TENANT_TAG: Final = tag(instance_pb2.Instance, "tenant")
_BATCH_TAG: Final = tag(pb.StreamEventsResponse, "batch")
_INSTANCES_TAG: Final = tag(pb.ListInstancesResponse, "instances")
_ALL_BATCH_TAG: Final = tag(pb.StreamAllEventsResponse, "batch")


def _labels(texts: Sequence[str]) -> Sequence[tuple[str, str]]:
    most = limits.of(pb.ListInstancesRequest, "labels").max_items
    if len(texts) > most:
        raise InvalidArgumentError(
            "CONFIG_INVALID",
            f"{len(texts)} labels are asked for; no instance has over {most}",
            field="labels",
        )
    return [_label(text) for text in texts]


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidArgumentError("CONFIG_INVALID", f"label {text[:80]!r} must be key=value", field="labels")
    return name, value


def _page_token(request: pb.ListInstancesRequest, before: int) -> str:
    return base64.urlsafe_b64encode(f"{before}.{_filters(request)}".encode()).decode().rstrip("=")


def _read_page_token(request: pb.ListInstancesRequest) -> int:
    if not request.page_token:
        return 0
    try:
        padded = request.page_token + "=" * (-len(request.page_token) % 4)
        before, filters = base64.urlsafe_b64decode(padded).decode().split(".")
        if int(filters) == _filters(request) and 0 < int(before) < _END_OF_KEYS:
            return int(before)
    except (ValueError, binascii.Error):
        pass
    raise InvalidArgumentError(
        "PAGE_TOKEN_INVALID",
        "page_token is not from a page with the same filters: leave it out to begin anew",
        field="page_token",
    )


def _filters(request: pb.ListInstancesRequest) -> int:
    return crc32(repr((sorted(request.states), sorted(request.labels), request.id_prefix)).encode())
