"""Errors as gRPC speaks them: a status with ErrorInfo, and BadRequest or RetryInfo where they help."""

from typing import Final, NoReturn

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from orchestrator import errors

DOMAIN: Final = "orchestrator"

_CODES: Final = {
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InstanceNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ResultFileNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.StateForbidsError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SequenceOutOfRangeError: grpc.StatusCode.OUT_OF_RANGE,
    errors.SequenceMismatchError: grpc.StatusCode.ABORTED,
    errors.QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceededError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.RoleForbidsError: grpc.StatusCode.PERMISSION_DENIED,
    errors.ResponseTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
}


async def abort(context: "grpc.aio.ServicerContext[object, object]", error: errors.RequestError) -> NoReturn:
    """End the RPC with the error's status."""
    await context.abort_with_status(rpc_status.to_status(status(error)))
    raise AssertionError("abort_with_status returned")


def status(error: errors.RequestError) -> status_pb2.Status:
    """Return the error as google.rpc.Status."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details = [info]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=_CODES[type(error)].value[0], message=str(error), details=packed)
