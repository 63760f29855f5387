"""Measures RPCs: how long each took, and with which status it ended."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from orchestrator.rpc.requests import Context, Continuation, Handler
from orchestrator.v1 import orchestrator_pb2 as pb

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["Orchestrator"]
_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class OnRpcEnded(Protocol):
    """Called with the name of an RPC, the name of its status, and how long it took."""

    def __call__(self, method: str, code: str, duration_s: float, *, is_stream: bool) -> None:
        """Note it."""


class RpcMeter(grpc.aio.ServerInterceptor):
    """Reports the RPCs of the service. It comes before other interceptors, to see what they reject."""

    def __init__(self, on_ended: OnRpcEnded) -> None:
        self._on_ended = on_ended

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Measure an RPC, with the interceptors behind this one."""
        handler = await continuation(handler_call_details)
        service, _, name = handler_call_details.method.lstrip("/").rpartition("/")
        if handler is None or service != _SERVICE.full_name or name not in _SERVICE.methods_by_name:
            return handler
        if answer := handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._measuring(name, answer))
        if answer := handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(self._measuring_stream(name, answer))
        return handler

    def _measuring(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: object, context: Context) -> object:
            with self._measured(name, context, is_stream=False):
                return await answer(request, context)

        return call

    def _measuring_stream(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: object, context: Context) -> AsyncIterator[object]:
            with self._measured(name, context, is_stream=True):
                async with aclosing(answer(request, context)) as messages:
                    async for message in messages:
                        yield message

        return call

    @contextmanager
    def _measured(self, name: str, context: Context, *, is_stream: bool) -> Iterator[None]:
        begin_s, code = time.monotonic(), ""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED.name
            raise
        finally:
            self._on_ended(name, code or _code_of(context), time.monotonic() - begin_s, is_stream=is_stream)


def _code_of(context: Context) -> str:
    code: Any = context.code()  # grpc.aio gives a number, or nothing yet, whatever its types say
    return code.name if isinstance(code, grpc.StatusCode) else _NAMES.get(code, "OK")
