"""How large an answer or a stream's message may be: as large as its client takes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc.aio

from orchestrator.errors import InvalidArgumentError, ResponseTooLargeError

DEFAULT_MAX_BYTES: Final = 4 * 1024 * 1024
"""What gRPC's clients take by default; a smaller limit is raised to it."""
LIMIT_BYTES: Final = 64 * 1024 * 1024
"""The largest limit that a client can ask for."""
MAX_RESPONSE_BYTES: Final = "max-response-bytes"
"""The metadata by which a client says that it takes more than usual."""


def max_response_bytes(context: "grpc.aio.ServicerContext[Any, Any]") -> int:
    """Return how many bytes a message to this call's client may have; raise InvalidArgumentError."""
    for key, value in context.invocation_metadata() or ():
        if key == MAX_RESPONSE_BYTES:
            return _parse(value if isinstance(value, str) else value.decode(errors="replace"))
    return DEFAULT_MAX_BYTES


def _parse(value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise InvalidArgumentError(
            "CONFIG_INVALID",
            f"the metadata {MAX_RESPONSE_BYTES} is {value[:40]!r}: it must be a whole number of bytes, "
            f"as in {LIMIT_BYTES}",
            field=MAX_RESPONSE_BYTES,
        )
    size = int(value) if len(value) <= len(str(LIMIT_BYTES)) else LIMIT_BYTES
    return min(max(size, DEFAULT_MAX_BYTES), LIMIT_BYTES)


def check_size(data: bytes, max_bytes: int, method: str) -> bytes:
    """Give the method's answer back, or raise ResponseTooLargeError: its client takes so many bytes."""
    if len(data) <= max_bytes:
        return data
    remedies = [*_IN_PIECES.get(method, [_IN_OTHER_PIECES])]
    remedies += _AT_ONCE if max_bytes < LIMIT_BYTES else []
    raise ResponseTooLargeError(len(data), max_bytes, remedies or ["more cannot be sent"])


_IN_PIECES: Final[Mapping[str, Sequence[str]]] = {
    "GetResult": (),
    "GetFile": (),
    "GetArchive": ("read each file with GetFile",),
    "ListFiles": ("read all files with GetArchive",),
}
"""What gives the same in smaller answers, by the method."""
_IN_OTHER_PIECES: Final = "read the result with GetResult and each output with StreamEvents"
_AT_ONCE: Final = (
    "ask over REST",
    f"send the metadata {MAX_RESPONSE_BYTES} with as many as the client takes, up to {LIMIT_BYTES}",
)
