"""Which authorities are trusted: those that the usual variables name, else the system's and Mozilla's."""

import functools
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import certifi

from orchestrator.errors import SettingsError

VARIABLES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""The first that is set counts: OpenSSL's own, then those of requests and curl."""


def ca_source(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return the variable that counts, and the file or folder that it names; both empty: none is set."""
    return next(((name, environment[name]) for name in VARIABLES if environment.get(name)), ("", ""))


def context() -> ssl.SSLContext:
    """Build the TLS context; raise SettingsError where the variable names no certificates."""
    return _context(*ca_source())


@functools.cache  # it takes as long as some calls do
def _context(variable: str, path: str) -> ssl.SSLContext:
    if not variable:
        tls = ssl.create_default_context()
        tls.load_verify_locations(certifi.where())
        return tls
    try:
        is_folder = Path(path).is_dir()
        tls = ssl.create_default_context(
            cafile=None if is_folder else path, capath=path if is_folder else None
        )
    except OSError as error:  # an SSLError is one
        said = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise SettingsError(
            f"{variable} is {path!r}, and no certificates can be read there ({said}): "
            "set it to a PEM file of them, or unset it"
        ) from None
    return tls
