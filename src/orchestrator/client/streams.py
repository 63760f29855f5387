"""Streams that go on by themselves after the connection was lost, and what they promise of their order."""

import contextlib
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final, TypeAlias, TypeVar

import grpc
import grpc.aio

from orchestrator.client.channel import Channel
from orchestrator.client.errors import ServiceError, mapping_errors
from orchestrator.v1 import event_pb2, orchestrator_pb2

KEEP_TRYING_S: Final = 60.0
"""How long reading goes on trying to reconnect before it gives up."""
SILENCE_TIMEOUT_S: Final = 45.0
"""Three heartbeats missed: the connection is dead though it was not closed."""

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0

Event: TypeAlias = event_pb2.Event
OutputDelta: TypeAlias = orchestrator_pb2.OutputDelta
EventBatch: TypeAlias = orchestrator_pb2.EventBatch
Deletion: TypeAlias = orchestrator_pb2.Deletion

OnDisconnect: TypeAlias = Callable[[ServiceError | None], None]
"""Called with the failure when a stream's connection is lost and at each failed try, None once back."""

_Message = TypeVar(
    "_Message", orchestrator_pb2.StreamEventsResponse, orchestrator_pb2.StreamAllEventsResponse
)


class ReconnectPolicy:
    """How long to go on after losses of the connection: from the first one without a message since."""

    def __init__(self, channel: Channel, keep_trying_s: float) -> None:
        self._channel = channel
        self._keep_trying_s = keep_trying_s
        self.reset()

    def reset(self) -> None:
        """Restart the time and the count of attempts: the connection works again."""
        self._attempts = 0
        self._deadline_s: float | None = None

    async def wait(self, error: ServiceError) -> None:
        """Pause before the next try; raise the error when the connection was not lost or the time is up."""
        now = time.monotonic()
        self._deadline_s = self._deadline_s or now + self._keep_trying_s
        if not error.is_connection_loss or now >= self._deadline_s:
            raise error
        longest = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2**self._attempts)
        self._attempts += 1
        jittered = longest * random.uniform(0.5, 1)  # noqa: S311  spreads clients out, keeps no secret
        await self._channel.sleep(min(jittered, self._deadline_s - now))


async def read_resuming(
    channel: Channel,
    open_call: "Callable[[], grpc.aio.UnaryStreamCall[Any, _Message]]",
    keep_trying_s: float,
    on_disconnect: OnDisconnect | None,
) -> AsyncGenerator[_Message, None]:
    """Yield messages for as long as they are read, with a new call after each loss of the connection."""
    notify = on_disconnect or (lambda _: None)
    policy = ReconnectPolicy(channel, keep_trying_s)
    is_lost = False
    while True:
        call = open_call()
        try:
            async for message in _messages(channel, call):
                if is_lost:
                    is_lost = False
                    notify(None)
                if message.WhichOneof("kind") != "caught_up":  # that says less than that the service stays
                    policy.reset()
                yield message
        except ServiceError as error:
            if error.is_connection_loss:
                is_lost = True
                notify(error)
            await policy.wait(error)
        finally:
            call.cancel()


async def _messages(
    channel: Channel, call: "grpc.aio.UnaryStreamCall[Any, _Message]"
) -> AsyncIterator[_Message]:
    while True:
        try:
            with mapping_errors():
                message = await channel.read(call, SILENCE_TIMEOUT_S)
        except TimeoutError:
            raise _connection_loss(f"the service has been silent for {SILENCE_TIMEOUT_S:.0f} s") from None
        if message is None:
            raise _connection_loss("the stream closed before its end")
        yield message


async def read_instance(
    messages: AsyncGenerator[orchestrator_pb2.StreamEventsResponse, None],
    request: orchestrator_pb2.StreamEventsRequest,
) -> AsyncGenerator[Event | OutputDelta, None]:
    """Give the events and texts of one instance; the request's `after_sequence` moves on with the events."""
    async with contextlib.aclosing(messages):
        async for message in messages:
            match message.WhichOneof("kind"):
                case "batch":
                    for event in message.batch.events:
                        check_sequence(event, request.after_sequence)
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


async def read_all(
    messages: AsyncGenerator[orchestrator_pb2.StreamAllEventsResponse, None],
    request: orchestrator_pb2.StreamAllEventsRequest,
) -> AsyncGenerator[EventBatch | Deletion, None]:
    """Give the events and deletions of all instances; the request's `after_position` moves on with them."""
    async with contextlib.aclosing(messages):
        async for message in messages:
            match message.WhichOneof("kind"):
                case "batch":
                    check_position(message.batch.last_position, request.after_position)
                    request.after_position = message.batch.last_position
                    yield message.batch
                case "deleted":
                    check_position(message.deleted.position, request.after_position)
                    request.after_position = message.deleted.position
                    yield message.deleted
                case "caught_up" if not request.follow:
                    return
                case "heartbeat":  # so far everything was looked at, whether it has the labels or not
                    request.after_position = max(request.after_position, message.heartbeat.sequence)
                case _:  # kinds of later versions are not ours to judge
                    pass


def check_sequence(event: Event, last: int) -> None:
    """Raise DATA_LOSS where the event is not the one after `last`."""
    if event.sequence != last + 1:
        raise ServiceError(
            grpc.StatusCode.DATA_LOSS,
            f"event {event.sequence} of {event.instance_id} came after {last}: the service broke its promise",
        )


def check_position(position: int, last: int) -> None:
    """Raise DATA_LOSS where a position does not come after `last`."""
    if position <= last:
        raise ServiceError(
            grpc.StatusCode.DATA_LOSS,
            f"position {position} came after {last}: the service broke its promise",
        )


def _connection_loss(message: str) -> ServiceError:
    return ServiceError(grpc.StatusCode.UNAVAILABLE, message)
