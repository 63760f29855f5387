"""The blocking client: the one for asyncio, over a channel of gRPC's blocking API, so that no await suspends.

No event loop runs. gRPC's asyncio API is made for one loop a process: a loop in a thread of this client's own
would be a second one beside the program's.
"""

import functools
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from orchestrator.client.channel import OPTIONS, Tls, call_metadata
from orchestrator.client.rpc import UNARY_TIMEOUT_S, Client

P = ParamSpec("P")
R = TypeVar("R")


class _BlockingChannel:
    """A Channel whose coroutines never suspend: they block until they have their result."""

    def __init__(self, address: str, token: str, tls: Tls | None) -> None:
        self._metadata = call_metadata(token)
        self._channel = (
            grpc.secure_channel(address, tls.credentials(), options=OPTIONS)
            if tls
            else grpc.insecure_channel(address, options=OPTIONS)
        )

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        call = functools.partial(self._channel.unary_unary(*arguments, **named), metadata=self._metadata)

        async def complete(request: Any, timeout: float | None = None) -> Any:  # noqa: ASYNC109  gRPC's name
            return call(request, timeout=timeout)

        return complete

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        return functools.partial(self._channel.unary_stream(*arguments, **named), metadata=self._metadata)

    async def read(self, call: Any, timeout_s: float) -> Any:
        is_silent = threading.Event()

        def give_up() -> None:
            is_silent.set()
            call.cancel()

        watch = threading.Timer(timeout_s, give_up)
        watch.daemon = True
        watch.start()
        try:
            return next(call, None)
        except grpc.RpcError:
            if is_silent.is_set():
                raise TimeoutError from None
            raise
        finally:
            watch.cancel()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  to block is what is wanted

    async def close(self) -> None:
        self._channel.close()


class _BlockingCalls(Client):
    _channel_type = _BlockingChannel


def _run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: R = end.value
        return result
    raise RuntimeError("a call of the blocking client was suspended")


def _blocking(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]],
) -> "Callable[Concatenate[SyncClient, P], R]":
    @functools.wraps(method)
    def call(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> R:
        return _run(method(self._calls, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[Client, P], AsyncGenerator[R, None]],
) -> "Callable[Concatenate[SyncClient, P], Generator[R, None, None]]":
    @functools.wraps(method)
    def iterate(self: "SyncClient", /, *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        items = method(self._calls, *args, **kwargs)
        try:
            while True:
                try:
                    item = _run(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            _run(items.aclose())

    return iterate


class SyncClient:
    """A connection to one service, for programs without asyncio. Use it as a context manager.

    The methods are those of `Client` and fail as they do; each blocks its thread until it has its result.
    Several threads may share a client, each with iterators of its own. An iterator that is not read to its
    end closes its stream when it is closed or dropped.
    """

    def __init__(
        self, address: str, *, token: str = "", tls: Tls | None = None, timeout_s: float = UNARY_TIMEOUT_S
    ) -> None:
        self._calls = _BlockingCalls(address, token=token, tls=tls, timeout_s=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    close = _blocking(Client.close)
    is_serving = _blocking(Client.is_serving)
    info = _blocking(Client.info)
    metrics = _blocking(Client.metrics)
    create = _blocking(Client.create)
    create_all = _blocking(Client.create_all)
    get = _blocking(Client.get)
    result = _blocking(Client.result)
    list_files = _blocking(Client.list_files)
    get_file = _blocking(Client.get_file)
    get_archive = _blocking(Client.get_archive)
    list = _blocking(Client.list)
    wait = _blocking(Client.wait)
    pause = _blocking(Client.pause)
    resume = _blocking(Client.resume)
    terminate = _blocking(Client.terminate)
    retry = _blocking(Client.retry)
    restart = _blocking(Client.restart)
    fork = _blocking(Client.fork)
    delete = _blocking(Client.delete)
    review = _blocking(Client.review)
    stream_events = _iterating(Client.stream_events)
    stream = _iterating(Client.stream)
    stream_all_events = _iterating(Client.stream_all_events)
    stream_all = _iterating(Client.stream_all)
