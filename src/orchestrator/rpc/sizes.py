"""How large an answer or a stream's message may be: as large as its client takes."""

from typing import Any, Final

import grpc.aio

from orchestrator.errors import InvalidArgumentError, ResponseTooLargeError

USUAL_BYTES: Final = 4 * 1024 * 1024
"""What gRPC's clients take unless they are told otherwise; less than this nobody is given."""
MOST_BYTES: Final = 64 * 1024 * 1024
"""More than this is sent to nobody."""
MAX_RESPONSE_BYTES: Final = "max-response-bytes"
"""The metadata by which a client says that it takes more than usual."""


def max_response_bytes(context: "grpc.aio.ServicerContext[Any, Any]") -> int:
    """How many bytes a message to this call's client may have; raise InvalidArgumentError."""
    for key, value in context.invocation_metadata() or ():
        if key == MAX_RESPONSE_BYTES:
            return _parse(value if isinstance(value, str) else value.decode(errors="replace"))
    return USUAL_BYTES


def _parse(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise InvalidArgumentError(
            "CONFIG_INVALID",
            f"the metadata {MAX_RESPONSE_BYTES} is {value[:40]!r}: it must be a whole number of bytes, "
            f"as in {MOST_BYTES}",
            field=MAX_RESPONSE_BYTES,
        )
    size = int(value) if len(value) <= len(str(MOST_BYTES)) else MOST_BYTES
    return min(max(size, USUAL_BYTES), MOST_BYTES)


def checked(data: bytes, max_bytes: int, method: str) -> bytes:
    """Give the method's answer back, or raise ResponseTooLargeError: its client takes so many bytes."""
    if len(data) <= max_bytes:
        return data
    mends = [] if method == "GetResult" else [_IN_PIECES]
    mends += _AT_ONCE if max_bytes < MOST_BYTES else []
    raise ResponseTooLargeError(len(data), max_bytes, mends or ["more cannot be sent"])


_IN_PIECES: Final = "read the result with GetResult and each output with StreamEvents"
_AT_ONCE: Final = (
    "ask over REST",
    f"send the metadata {MAX_RESPONSE_BYTES} with as many as the client takes, up to {MOST_BYTES}",
)
