"""The certificate of the gRPC server, read again once it is renewed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import grpc

from orchestrator.tls import CertificateFiles, Certificates


class _Configuration:
    """What the server shows; each handshake asks for it, in a thread of gRPC's own."""

    def __init__(self, certificates: Certificates) -> None:
        self._newer: Certificates | None = None
        self.initial: Final = _configuration(certificates)

    def renew(self, certificates: Certificates) -> None:
        """Show these from the next handshake on."""
        self._newer = certificates

    def fetch(self) -> "grpc.ServerCertificateConfiguration | None":
        """Return what is new since the last time; None, as gRPC documents and its types do not: nothing."""
        newer, self._newer = self._newer, None
        return _configuration(newer) if newer else None


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    pairs = [(certificates.key, certificates.certificate)]
    return grpc.ssl_server_certificate_configuration(pairs, certificates.client_ca)


@asynccontextmanager
async def renewed_credentials(
    files: CertificateFiles | None,
) -> AsyncIterator[grpc.ServerCredentials | None]:
    """Yield the server's credentials, which stay new while the block runs; None: there is no TLS.

    Raise SettingsError where the files do not fit together.
    """
    if files is None:
        yield None
        return
    certificates = files.read()
    configuration = _Configuration(certificates)

    async def renew() -> None:
        async for renewed in files.renewals(certificates):
            configuration.renew(renewed)

    renewing = asyncio.create_task(renew())
    try:
        yield grpc.dynamic_ssl_server_credentials(
            configuration.initial,
            configuration.fetch,  # type: ignore[arg-type]
            require_client_authentication=files.client_ca is not None,
        )
    finally:
        renewing.cancel()
        with suppress(asyncio.CancelledError):
            await renewing
