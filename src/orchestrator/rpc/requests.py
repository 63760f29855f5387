"""What a request's metadata says: who asks, and in which request."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, TypeAlias

import grpc.aio

from orchestrator.auth.caller import Caller
from orchestrator.core.origin import Origin, origin

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
"""What answers an RPC; None: nothing does."""
Continuation: TypeAlias = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]
"""Finds the handler of an RPC, behind an interceptor."""

CALLER: Final[ContextVar[Caller]] = ContextVar("caller")
"""Who calls the RPC that is being answered. It has no default: an RPC without a caller fails."""

_REQUEST_ID: Final = "x-request-id"
_TRACE_PARENT: Final = "traceparent"


def origin_of(context: Context) -> Origin:
    """Return who asks for what the request changes."""
    return origin(
        actor=CALLER.get().name,
        request_id=header_of(context, _REQUEST_ID),
        trace_parent=header_of(context, _TRACE_PARENT),
    )


def header_of(context: Context, name: str) -> str:
    """Return a value of the request's metadata; empty: it has none of that name."""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return ""
