"""HTTP to model endpoints: the one module that knows the HTTP library, and what its errors mean to us.

The library is aiohttp, chosen by measurement: see docs/decisions/0003-http-transport.md. Nothing is tried
again here, for an attempt that the event log does not show did not happen.
"""

import ipaddress
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from orchestrator.errors import ModelError, SettingsError

CONNECT_TIMEOUT_S: Final = 10.0
"""The longest a connection may take to open; the rest of a call's time is the model's."""

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
"""The longest answer that is read: far above any model's, far below what would hurt."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer of any status; header names are read case-insensitively."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@contextmanager
def mapped_errors(host: str, timeout_s: float) -> Iterator[None]:
    """Raise a retryable ModelError in place of whatever the HTTP library raises when a call breaks."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        problem = f"could not connect to {host} within {CONNECT_TIMEOUT_S:g} s: is the address right?"
        raise ModelError("CONNECTION_FAILED", problem, retryable=True) from None
    except TimeoutError:
        problem = f"{host} did not answer within {timeout_s:g} s: see the attempt_timeout of the retry policy"
        raise ModelError("TIMEOUT", problem, retryable=True) from None
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        problem = f"{host} is not an address that can be called: {type(error).__name__}"
        raise ModelError("REQUEST_REJECTED", problem, retryable=False) from None
    except aiohttp.ClientConnectorError as error:
        problem = f"could not connect to {host}: {error.os_error.strerror or error.os_error}"
        raise ModelError("CONNECTION_FAILED", problem, retryable=True) from None
    except (aiohttp.ClientError, OSError) as error:
        problem = f"the connection to {host} broke before the answer was complete ({type(error).__name__})"
        raise ModelError("CONNECTION_FAILED", problem, retryable=True) from None


class Client:
    """Posts JSON to one endpoint over connections that are kept; as many are open as there are calls."""

    def __init__(self, base_url: str, headers: Mapping[str, str]) -> None:
        """Take an `http(s)://` address; raise SettingsError where it is none. Nothing is opened yet."""
        try:
            parts = urlsplit(base_url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(f"{base_url!r} is not an address: it must begin with http:// or https://")
        self.host = f"{parts.hostname}:{port}" if port else parts.hostname
        self._name = parts.hostname
        self._scheme = parts.scheme
        self._base_url = base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json", **headers}
        self._session: aiohttp.ClientSession | None = None
        self._proxy: str | None = None

    async def post(self, path: str, body: bytes, timeout_s: float) -> Answer:
        """Post a body and read the whole answer; raise ModelError where there is none.

        Cancelling closes the connection at once. A redirect is an answer too: following it could hand the
        key to another host.
        """
        session = self._session or self._open()
        # Rounded up by the library to whole seconds where it is over five. 0 would mean no limit at all.
        timeout = aiohttp.ClientTimeout(total=max(timeout_s, 0.001), sock_connect=CONNECT_TIMEOUT_S)
        with mapped_errors(self.host, timeout_s):
            async with session.post(
                f"{self._base_url}/{path}",
                data=body,
                timeout=timeout,
                proxy=self._proxy,
                allow_redirects=False,
            ) as response:
                return Answer(response.status, response.headers, await self._read(response))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                problem = f"{self.host} sent over {MAX_ANSWER_BYTES >> 20} MiB: that is no model's answer"
                raise ModelError("OUTPUT_INVALID", problem, retryable=True)
        return bytes(body)

    def _open(self) -> aiohttp.ClientSession:
        self._proxy = _proxy(self._scheme, self._name)
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            # No limit: how many calls run at once is decided above, and a wait for a connection in here
            # would count as the model's time.
            connector=aiohttp.TCPConnector(limit=0),
            # An endpoint must not tell one instance's calls from another's by a cookie.
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self._session

    async def aclose(self) -> None:
        """Close all connections, those of open calls too."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _proxy(scheme: str, host: str) -> str | None:
    """The system's proxy for a host; never for loopback. Raise ModelError where we cannot use it.

    Read here and not by the library, which would also take a login from ~/.netrc.
    """
    if _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(scheme)
    if proxy is not None and urlsplit(proxy).scheme not in ("http", "https"):
        problem = (
            f"the system's {scheme} proxy is not an http:// one: unset {scheme.upper()}_PROXY or change it"
        )
        raise ModelError("REQUEST_REJECTED", problem, retryable=False)
    return proxy


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
