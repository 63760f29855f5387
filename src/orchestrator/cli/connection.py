"""The service that a command talks to: one address names it."""

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from orchestrator.cli.connection_options import load_settings
from orchestrator.cli.exit_codes import NoServiceError, UsageError
from orchestrator.cli.text import command
from orchestrator.cli.tls import SYSTEM, tls_problem
from orchestrator.errors import SettingsError
from orchestrator.settings import Settings, is_loopback, split_address

if TYPE_CHECKING:  # imported when a command runs: see the package's docstring
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from orchestrator.client import Client

T = TypeVar("T")

_MAX_CANDIDATES: Final = 5
"""The most ids that are listed where a prefix fits several."""


def call_service(address: str | None, call: "Callable[[Client], Awaitable[T]]") -> T:
    """Call the service at the address, or at that of the settings."""
    target = resolve_address(address)

    async def run() -> T:
        async with connect(target) as client:
            return await call(client)

    return asyncio.run(run())


def resolve_address(address: str | None) -> str:
    """Return the address, or that of the settings where it is None."""
    return load_settings(address=address).grpc_address


def open_client(
    address: str, settings: Settings | None = None, *, timeout_s: float | None = None
) -> "Client":
    """Return a client with the credentials that the settings name; raise SettingsError, UsageError."""
    from orchestrator.client import UNARY_TIMEOUT_S, Client, Tls  # noqa: PLC0415

    settings = settings or load_settings()
    token, tls = settings.client_token, None
    if settings.tls_ca:
        ca = None if settings.tls_ca == SYSTEM else settings.tls_ca
        tls = Tls(ca, settings.tls_client_cert or None, settings.tls_client_key or None)
    elif token and not settings.insecure and not is_loopback(split_address(address, "--address")[0]):
        raise UsageError(
            f"the token would be sent to {address} for all to read: name with --tls-ca the authority of the "
            "service's certificate"
        )
    try:
        return Client(address, token=token, tls=tls, timeout_s=timeout_s or UNARY_TIMEOUT_S)
    except OSError as error:
        raise SettingsError(f"{error.filename} cannot be read: {error.strerror}") from None


@asynccontextmanager
async def connect(address: str) -> "AsyncIterator[Client]":
    """Connect; raise NoServiceError where nothing answers that is an orchestrator."""
    import grpc  # noqa: PLC0415

    from orchestrator.client import ServiceError  # noqa: PLC0415

    async with open_client(address) as client:
        try:
            yield client
        except ServiceError as error:
            if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
                raise await no_service_error(address) from None
            if error.code is grpc.StatusCode.UNKNOWN and not error.reason:
                # Envoy closes a stream of HTTP/2 that it does not route without a status.
                from orchestrator.cli import rest  # noqa: PLC0415

                raise await rest.http_error(address) or error from None
            if error.code is grpc.StatusCode.UNIMPLEMENTED:
                raise NoServiceError(
                    f"what answers at {address} is no orchestrator, or an older one that cannot do this: "
                    "start it anew, or name another with --address"
                ) from None
            raise


async def no_service_error(address: str) -> NoServiceError:
    """Return the error for an address where no gRPC answers: where to find it, or how to start a service."""
    from orchestrator.cli import rest  # noqa: PLC0415

    settings = load_settings()
    if problem := await tls_problem(address, settings):
        return NoServiceError(problem)
    if error := await rest.http_error(address):
        return error
    start = command("up" if address == Settings().grpc_address else f"up --address {address}")
    return NoServiceError(
        f"no service answers at {address}: start one with `{start}`, or name another with --address"
    )


async def with_full_id(client: "Client", prefix: str, call: "Callable[[str], Awaitable[T]]") -> T:
    """Call with the id; where no instance has it, with the only id that has it as its prefix.

    Raise UsageError where several have.
    """
    from orchestrator.client import ServiceError  # noqa: PLC0415

    try:
        return await call(prefix)
    except ServiceError as error:
        if error.reason != "INSTANCE_NOT_FOUND":
            raise
        ids = await _ids_with_prefix(client, prefix)
        if not ids:
            raise
    if len(ids) > 1:
        more = ", …" if len(ids) > _MAX_CANDIDATES else ""
        listed = ", ".join(ids[:_MAX_CANDIDATES])
        raise UsageError(
            f"several ids begin with {prefix!r}: {listed}{more}; give more of the one that is meant"
        )
    return await call(ids[0])


async def full_id_of(client: "Client", prefix: str) -> str:
    """Return the id of an instance that an id or a prefix names; empty for an empty one."""
    return (await with_full_id(client, prefix, client.get)).instance.id if prefix else ""


async def _ids_with_prefix(client: "Client", prefix: str) -> "Sequence[str]":
    """List the newest ids with the prefix, at most one more than are shown."""
    ids: list[str] = []
    token = ""
    while len(ids) <= _MAX_CANDIDATES:
        page = await client.list(page_size=_MAX_CANDIDATES + 1, page_token=token, id_prefix=prefix)
        # Services of earlier versions know no `id_prefix`.
        ids += [instance.id for instance in page.instances if instance.id.startswith(prefix)]
        token = page.next_page_token
        if not token:
            break
    return ids[: _MAX_CANDIDATES + 1]
