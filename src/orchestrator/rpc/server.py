"""The gRPC server: binds the service's methods, answers health and reflection, drains before it stops."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from orchestrator.addresses import free_port
from orchestrator.auth.authenticator import NO_AUTHENTICATION, Authenticator
from orchestrator.errors import InvalidArgumentError, RequestError, SettingsError
from orchestrator.log.base import CommitNotifier
from orchestrator.rpc import sizes, status
from orchestrator.rpc.access import AccessInterceptor
from orchestrator.rpc.credentials import renewed_credentials
from orchestrator.rpc.drain import Drain
from orchestrator.rpc.requests import Context
from orchestrator.rpc.service import OrchestratorService
from orchestrator.settings import PREFIX
from orchestrator.tls import CertificateFiles
from orchestrator.v1 import orchestrator_pb2 as pb

_LOGGER: Final = logging.getLogger(__name__)

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Orchestrator"]

_GRPC: Final = f"{PREFIX}GRPC_ADDRESS"
_MOST_METADATA_BYTES: Final = 128 * 1024
_LAST_GRACE_S: Final = 0.5
"""How long calls that have ended may take to reach their clients."""
_OPTIONS: Final = (
    # On by default: two servers would share one port without a word.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", sizes.LIMIT_BYTES),
    ("grpc.max_send_message_length", sizes.LIMIT_BYTES),
    # As much as Envoy takes, which hands a request's path on as a header; 64 labels are over 8 KiB.
    ("grpc.max_metadata_size", _MOST_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _MOST_METADATA_BYTES),
    # Clients behind a NAT may ping an idle stream as often as every 10 s.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


@asynccontextmanager
async def serving(
    service: OrchestratorService,
    notifier: CommitNotifier,
    address: str,
    *,
    edge_address: str = "",
    authenticator: Authenticator = NO_AUTHENTICATION,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    tls: CertificateFiles | None = None,
    grace_s: float = 5.0,
) -> AsyncIterator[str]:
    """Serve on `host:port` while the block runs, and yield the address (port 0 picks a free one).

    With `tls` it speaks TLS alone; `authenticator` finds out who calls.
    Also at `edge_address`, `unix:path`, if given: for Envoy, which has done what TLS does by then.
    At its end health turns to NOT_SERVING, streams end with UNAVAILABLE, and other calls have `grace_s`
    seconds to finish. Raise SettingsError when the address cannot be had.
    """
    free_port(address, _GRPC)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_noteworthy)
    server = grpc.aio.server(interceptors=(*interceptors, AccessInterceptor(authenticator)), options=_OPTIONS)
    drain = Drain()
    server.add_generic_rpc_handlers((_handlers(service, drain),))
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection(
        (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    async with renewed_credentials(tls) as credentials:
        try:
            port = (
                server.add_secure_port(address, credentials)
                if credentials
                else server.add_insecure_port(address)
            )
        except RuntimeError:
            raise SettingsError(f"{_GRPC} is {address}: it cannot be had; set another address") from None
        if edge_address:
            server.add_insecure_port(edge_address)
        await server.start()
        for name in ("", SERVICE.full_name):
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)
        try:
            yield f"{address.rpartition(':')[0]}:{port}"
        finally:
            await healthy.enter_graceful_shutdown()
            notifier.close()
            await drain.close(grace_s)
            stopping = asyncio.create_task(server.stop(_LAST_GRACE_S))
            await asyncio.sleep(0)  # it has begun: what is rejected now comes back to a server that is gone
            drain.release()
            await stopping


def _is_noteworthy(record: logging.LogRecord) -> bool:
    """Return whether grpc.aio reports more than that a stream's client went away while it was written to."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core")


def _handlers(service: OrchestratorService, drain: Drain) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        SERVICE.full_name, {method.name: _handler(service, method, drain) for method in SERVICE.methods}
    )


def _handler(
    service: OrchestratorService, method: MethodDescriptor, drain: Drain
) -> "grpc.RpcMethodHandler[Any, Any]":
    # For gRPC each request is a stream: one without a message would be left without an answer otherwise.
    make, wrap = (
        (grpc.stream_stream_rpc_method_handler, _wrap_stream)
        if method.server_streaming
        else (grpc.stream_unary_rpc_method_handler, _wrap_unary)
    )
    request = GetMessageClass(method.input_type)
    return make(wrap(getattr(service, method.name), request, drain))


def _wrap_unary(method: Callable[..., Any], request: type[Message], drain: Drain) -> Callable[..., Any]:
    async def call(_: object, context: Context) -> object:
        async with mapping_errors(context):
            max_bytes = sizes.max_response_bytes(context)  # before anything is done
            data = await context.read()
            async with drain.admitted():
                answer = await method(_parse_request(data, request), context)
            data = answer if isinstance(answer, bytes) else answer.SerializeToString()
            return sizes.check_size(data, max_bytes, method.__name__)

    return call


def _wrap_stream(method: Callable[..., Any], request: type[Message], drain: Drain) -> Callable[..., Any]:
    async def call(_: object, context: Context) -> AsyncIterator[object]:
        async with mapping_errors(context):
            data = await context.read()
            async with (
                drain.admitted(),
                aclosing(method(_parse_request(data, request), context)) as messages,
            ):
                async for message in messages:
                    # Bytes are a message that is serialised already.
                    yield message if isinstance(message, bytes) else message.SerializeToString()

    return call


def _parse_request(data: Any, request: type[Message]) -> Message:
    """Read a request here and not in gRPC, which would answer UNKNOWN with Python's words."""
    if data is grpc.aio.EOF:
        raise InvalidArgumentError(
            "CONFIG_INVALID", "the request has no message; over REST: its body is no JSON, or is not in UTF-8"
        )
    try:
        return request.FromString(data)
    except DecodeError:
        name = request.DESCRIPTOR.full_name
        raise InvalidArgumentError("CONFIG_INVALID", f"the request's bytes are no {name}") from None


@asynccontextmanager
async def mapping_errors(context: Context) -> AsyncIterator[None]:
    """Report an error to the client; log those that are not RequestErrors."""
    try:
        yield
    except RequestError as error:
        await status.abort(context, error)
    except grpc.aio.AbortError:
        raise
    except Exception:
        _LOGGER.exception("an RPC failed unexpectedly")
        await context.abort(grpc.StatusCode.INTERNAL, "the service failed; its log has the details")
