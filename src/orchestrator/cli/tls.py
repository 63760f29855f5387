"""TLS between a command and a service: whom it trusts, and what is wrong where no connection comes about."""

import asyncio
import ssl
from typing import Final

from orchestrator.errors import SettingsError
from orchestrator.settings import Settings, split_address

SYSTEM: Final = "system"
"""In place of a file: the authorities of this machine."""
_TIMEOUT_S: Final = 2.0


def context(settings: Settings) -> ssl.SSLContext:
    """Build the context for the authority and the certificate of the settings; raise SettingsError."""
    name, file = settings.name_of("tls_ca"), settings.tls_ca
    try:
        trusting = ssl.create_default_context(cafile=None if file == SYSTEM else file)
        name, file = settings.name_of("tls_client_cert"), settings.tls_client_cert
        if file:
            trusting.load_cert_chain(file, settings.tls_client_key or None, password="")
    except OSError as error:  # an SSLError is one
        said = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise SettingsError(f"{name} is {file}, which cannot be used: {said}") from None
    return trusting


async def tls_problem(address: str, settings: Settings) -> str:
    """Return why a connection to what listens at an address fails, if TLS is the cause; else nothing."""
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE  # nothing is sent but the handshake
    speaks_tls = await _handshake(address, blind)
    if isinstance(speaks_tls, OSError) and not isinstance(speaks_tls, ssl.SSLError | ConnectionResetError):
        return ""
    if not settings.tls_ca:
        if speaks_tls:
            return ""
        return (
            f"{address} speaks TLS: name with --tls-ca the file of the authority that has signed its "
            "certificate, or `--tls-ca system`"
        )
    if speaks_tls:
        return f"{address} does not speak TLS: leave {settings.name_of('tls_ca')} out"
    failure = await _handshake(address, context(settings))
    if isinstance(failure, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {address} is not one that {settings.name_of('tls_ca')} ({settings.tls_ca}) "
            f"vouches for: {failure.verify_message}"
        )
    if not settings.tls_client_cert:
        return (
            f"{address} has shown its certificate and ends the connection: it may ask for one of yours, so "
            "give --tls-client-cert and --tls-client-key"
        )
    return f"{address} refuses {settings.name_of('tls_client_cert')} ({settings.tls_client_cert})"


async def _handshake(address: str, trusting: ssl.SSLContext) -> OSError | None:
    """Connect and shake hands; return what went wrong, if anything."""
    host, port = split_address(address, "--address")
    trusting.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=trusting)
    except OSError as error:  # so are TimeoutError and SSLError
        return error
    writer.close()
    return None
