"""Who may call what: every RPC passes here before anything of it is read."""

from collections.abc import Mapping
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health

from orchestrator.auth.authenticator import Authenticator
from orchestrator.auth.caller import Caller, Role
from orchestrator.errors import RequestError, RoleForbidsError
from orchestrator.rpc import status
from orchestrator.rpc.requests import CALLER, Context, Continuation, Handler
from orchestrator.v1 import orchestrator_pb2 as pb

_READERS: Final = frozenset({Role.READ, Role.WRITE, Role.ADMIN})
_WRITERS: Final = frozenset({Role.WRITE, Role.ADMIN})
_ADMINS: Final = frozenset({Role.ADMIN})
_SCRAPERS: Final = frozenset({Role.METRICS, Role.ADMIN})

ROLES: Final[Mapping[str, frozenset[Role]]] = {
    "GetInstance": _READERS,
    "ListInstances": _READERS,
    "WaitInstance": _READERS,
    "StreamEvents": _READERS,
    "StreamServerSentEvents": _READERS,
    "StreamAllEvents": _READERS,
    "ListFiles": _READERS,
    "GetFile": _READERS,
    "GetArchive": _READERS,
    "GetResult": _READERS,
    "GetServiceInfo": _READERS,
    "CreateInstance": _WRITERS,
    "BatchCreateInstances": _WRITERS,
    "ForkInstance": _WRITERS,
    "PauseInstance": _WRITERS,
    "ResumeInstance": _WRITERS,
    "TerminateInstance": _WRITERS,
    "RetryInstance": _WRITERS,
    "RestartInstance": _WRITERS,
    "ReviewPlan": _WRITERS,
    "DeleteInstance": _ADMINS,
    "GetMetrics": _SCRAPERS,
}
"""The roles that may call each RPC. One that is not here may be called by nobody."""

_SERVICE: Final = f"/{pb.DESCRIPTOR.services_by_name['Orchestrator'].full_name}/"
_HEALTH: Final = f"/{health.SERVICE_NAME}/"


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Finds out who calls and whether they may. Health is for all, reflection for all who are known."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        """Let an RPC pass with its caller set, or answer with the reason why not."""
        method = handler_call_details.method
        if method.startswith(_HEALTH):
            return await continuation(handler_call_details)
        try:
            caller = await self._authenticator.authenticate(_credentials(handler_call_details))
            check_role(caller, method)
        except RequestError as error:
            return _rejecting(error)
        # gRPC awaits this and the method in one task, so the method finds it.
        CALLER.set(caller)
        return await continuation(handler_call_details)


def check_role(caller: Caller, method: str) -> None:
    """Raise RoleForbidsError where a caller's role does not allow `/package.Service/Method`."""
    name = method.removeprefix(_SERVICE)
    if name == method:  # reflection, or what is not there
        return
    roles = ROLES.get(name, frozenset())
    if caller.role not in roles:
        able = " or ".join(role.value for role in Role if role in roles)
        needed = f"it needs the role {able}" if able else "no role does"
        raise RoleForbidsError(caller.role.value, name, needed)


def _credentials(details: grpc.HandlerCallDetails) -> list[str]:
    return [
        value if isinstance(value, str) else value.decode(errors="replace")
        for key, value in details.invocation_metadata or ()
        if key == "authorization"
    ]


def _rejecting(error: RequestError) -> "grpc.RpcMethodHandler[Any, Any]":
    async def reject(_: object, context: Context) -> None:
        await status.abort(context, error)

    # For gRPC the request is a stream, as in `rpc.server`: it is not waited for.
    return grpc.stream_unary_rpc_method_handler(reject)
