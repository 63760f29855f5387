"""What a request says: which instance it is about, and in its metadata who asks."""

from typing import Any, Final, TypeAlias

import grpc.aio

from orchestrator.core import create
from orchestrator.core.identity import InstanceKey
from orchestrator.core.origin import Origin, origin

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_REQUEST_ID: Final = "x-request-id"
_TRACE_PARENT: Final = "traceparent"


def key_of(instance_id: str) -> InstanceKey:
    """Make a key of an id, in this one place; raise InvalidArgumentError (ID_INVALID)."""
    create.check_id(instance_id)
    return InstanceKey("", instance_id)


def origin_of(context: Context) -> Origin:
    """Return who asks for what the request changes."""
    return origin(request_id=header_of(context, _REQUEST_ID), trace_parent=header_of(context, _TRACE_PARENT))


def header_of(context: Context, name: str) -> str:
    """Return a value of the request's metadata; empty: it has none of that name."""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return ""
