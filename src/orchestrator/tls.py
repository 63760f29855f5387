"""The certificate that a server shows: its files, read, checked, and read again once they are renewed."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.errors import SettingsError

_LOGGER: Final = logging.getLogger(__name__)
_POLL_S: Final = 1.0
"""How often the files are looked at. They are asked, not watched: each tool renews them in a way of its own
(writes over them, renames, moves a link), and some file systems announce nothing."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """The contents of the files, in PEM."""

    certificate: bytes
    """The server's own, then those between it and the root."""
    key: bytes
    client_ca: bytes | None
    """Who signs the certificates that clients must show; None: they need none."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where the certificate, its key and, for mTLS, the clients' authority are."""

    certificate: Path
    key: Path
    client_ca: Path | None
    names: tuple[str, str, str]
    """What a person changes to change each of the three, for messages."""

    def read(self) -> Certificates:
        """Read the files and check that they fit together; raise SettingsError."""
        certificate_name, key_name, ca_name = self.names
        contents = Certificates(
            _read(self.certificate, certificate_name),
            _read(self.key, key_name),
            _read(self.client_ca, ca_name) if self.client_ca else None,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # With a password, so that OpenSSL does not ask at the terminal for one.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, ValueError) as error:
            raise SettingsError(
                f"{certificate_name} ({self.certificate}) and {key_name} ({self.key}) are no certificate and "
                f"its key in PEM, the key without a password: {_words(error)}"
            ) from None
        if self.client_ca:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise SettingsError(
                    f"{ca_name} ({self.client_ca}) holds no certificates in PEM: {_words(error)}"
                ) from None
        return contents

    async def renewals(self, known: Certificates) -> AsyncIterator[Certificates]:
        """Yield what the files hold each time it has changed and fits together; log once what does not.

        `known` is what they held when they were read before. It goes on until it is cancelled.
        """
        seen: Certificates | str = known
        while True:
            await asyncio.sleep(_POLL_S)
            found: Certificates | str
            try:
                found = await asyncio.to_thread(self.read)
            except SettingsError as error:
                found = str(error)
            if found == seen:
                continue
            seen = found
            if isinstance(found, Certificates):
                if found != known:
                    known = found
                    yield found
            else:
                _LOGGER.error("the certificate that was read before stays in use: %s", found)


def _read(file: Path, name: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SettingsError(f"{name} is {file}, which cannot be read: {error.strerror}") from None


def _words(error: Exception) -> str:
    """Return what OpenSSL says, without the place in its source."""
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()
