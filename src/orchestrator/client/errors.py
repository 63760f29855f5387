"""The one error that a client raises, and how it is read from gRPC's."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Self

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from orchestrator.errors import OrchestratorError


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
    def from_rpc_error(cls, error: grpc.RpcError) -> Self:
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


@contextlib.contextmanager
def mapping_errors() -> Iterator[None]:
    """Raise ServiceError for every failure that gRPC reports."""
    try:
        yield
    except grpc.RpcError as error:
        raise ServiceError.from_rpc_error(error) from None
