"""The connection to a service: the part of gRPC that a client needs."""

import asyncio
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import grpc.aio

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""The largest message either side may send, which each call sends to the service: larger events have
`Event.omitted_bytes`, larger responses fail with RESPONSE_TOO_LARGE."""

OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # The channel's own back-off between connections must not outlast the client's.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # The service is near; a company's HTTP proxy would answer for 127.0.0.1.
    ("grpc.enable_http_proxy", 0),
)


def call_metadata(token: str) -> tuple[tuple[str, str | bytes], ...]:
    """Return what each call sends: how large an answer may be, and the caller's token if there is one."""
    credentials = (("authorization", f"Bearer {token}"),) if token else ()
    return (("max-response-bytes", str(MAX_MESSAGE_BYTES)), *credentials)


@dataclass(frozen=True, slots=True)
class Tls:
    """How a client checks a service's certificate, and which one it shows; files in PEM."""

    ca: str | Path | None = None
    """The certificates of the authorities that are trusted; None: gRPC's own."""
    certificate: str | Path | None = None
    """What is shown to a service that asks for it, with its `key`."""
    key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files; raise OSError."""
        contents = [
            Path(file).read_bytes() if file else None for file in (self.ca, self.key, self.certificate)
        ]
        return grpc.ssl_channel_credentials(*contents)


class Channel(Protocol):
    """A connection: the part of a gRPC channel that stubs need, and how to wait on it."""

    def __init__(self, address: str, token: str, tls: Tls | None) -> None: ...

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        """Return a callable as of grpc.aio, whose result is awaited."""
        ...

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        """Return a callable as of grpc.aio, whose result is passed to `read`."""
        ...

    async def read(self, call: Any, timeout_s: float) -> Any:
        """Return the next message of a stream, None at its end; raise TimeoutError after so many seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds."""
        ...

    async def close(self) -> None:
        """Close the connection, with the calls that are open."""
        ...


class AsyncChannel:
    """A Channel for one event loop."""

    def __init__(self, address: str, token: str, tls: Tls | None) -> None:
        self._metadata = call_metadata(token)
        self._channel = (
            grpc.aio.secure_channel(address, tls.credentials(), options=OPTIONS)
            if tls
            else grpc.aio.insecure_channel(address, options=OPTIONS)
        )

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        """See Channel."""
        return functools.partial(self._channel.unary_unary(*arguments, **named), metadata=self._metadata)

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        """See Channel."""
        return functools.partial(self._channel.unary_stream(*arguments, **named), metadata=self._metadata)

    async def read(self, call: Any, timeout_s: float) -> Any:
        """See Channel."""
        async with asyncio.timeout(timeout_s):
            message = await call.read()
        return None if message is grpc.aio.EOF else message

    async def sleep(self, seconds: float) -> None:
        """See Channel."""
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """See Channel."""
        await self._channel.close()
