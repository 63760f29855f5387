"""HTTP to model endpoints: the one module that knows the HTTP library, and what its errors mean to us.

The library is httpx over aiohttp's connections, a transport chosen by measurement: see
docs/decisions/0003-http-transport.md. Nothing is tried again here, for an attempt that the event log does not
show did not happen.
"""

import asyncio
import ipaddress
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from orchestrator.errors import ModelError, SettingsError

CONNECT_TIMEOUT_S: Final = 10.0
"""The longest a connection may take to open; the rest of a call's time is the model's."""

IDLE_TIMEOUT_S: Final = 120.0
"""The longest a streamed answer may be silent, unless set otherwise: some models think that long."""

_END_S: Final = 0.2  # the longest that the end of a stream may come after its last event

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
"""The longest answer that is read: far above any model's, far below what would hurt."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer of any status; header names are read case-insensitively."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Incoming:
    """An HTTP answer of any status whose body is still coming in."""

    def __init__(self, response: httpx.Response, host: str, idle_timeout_s: float | None) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._body = response.aiter_bytes()
        self._host = host
        self._idle_timeout_s = idle_timeout_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; raise ModelError where it breaks off or is longer than any model's answer."""
        received = 0
        with mapped_errors(self._host, self._idle_timeout_s):
            async for chunk in self._body:
                received += len(chunk)
                if received > MAX_ANSWER_BYTES:
                    problem = (
                        f"{self._host} sent over {MAX_ANSWER_BYTES >> 20} MiB: that is no model's answer"
                    )
                    raise ModelError("OUTPUT_INVALID", problem, retryable=True)
                yield chunk

    async def whole(self) -> Answer:
        """Wait for the rest."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
        return Answer(self.status, self.headers, bytes(body))

    async def end(self) -> None:
        """Wait a moment for the end of a body that has been read as far as it matters."""
        with suppress(ModelError), mapped_errors(self._host):
            async with asyncio.timeout(_END_S):
                async for _ in self._body:
                    pass


@contextmanager
def mapped_errors(host: str, idle_timeout_s: float | None = None) -> Iterator[None]:
    """Raise a retryable ModelError in place of whatever the HTTP library raises when a call breaks."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, aiohttp.ClientError, OSError) as error:
        # The transport calls a refused connection a timeout; what aiohttp raised says it better.
        cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
        raise _broken(cause, host, idle_timeout_s) from None


def _broken(error: BaseException, host: str, idle_timeout_s: float | None) -> ModelError:
    reason = "CONNECTION_FAILED"
    match error:
        case aiohttp.ConnectionTimeoutError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
            reason = "CONNECT_TIMEOUT"
            problem = f"could not connect to {host} within {CONNECT_TIMEOUT_S:g} s: is the address right?"
        case aiohttp.ServerTimeoutError() | httpx.ReadTimeout():
            reason = "IDLE_TIMEOUT"
            silence = f"{idle_timeout_s:g} s" if idle_timeout_s else "too long"
            problem = (
                f"{host} was silent for {silence} in the midst of a call: see ORCHESTRATOR_IDLE_TIMEOUT_S"
            )
        case aiohttp.InvalidURL() | httpx.UnsupportedProtocol() | httpx.InvalidURL():
            problem = f"{host} is not an address that can be called: {type(error).__name__}"
            return ModelError("REQUEST_REJECTED", problem, retryable=False)
        case aiohttp.ClientConnectorError():
            problem = f"could not connect to {host}: {error.os_error.strerror or error.os_error}"
        case _:
            problem = (
                f"the connection to {host} broke before the answer was complete ({type(error).__name__})"
            )
    return ModelError(reason, problem, retryable=True)


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
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, idle_timeout_s: float | None = None
    ) -> AsyncIterator[Incoming]:
        """Post a body and read the answer as it comes, within the block; raise ModelError if there is none.

        How long that may take is for the caller to bound: cancelling closes the connection at once. A
        redirect is an answer too: following it could hand the key to another host.

        `idle_timeout_s` bounds the silence before each byte; None: where nothing is streamed, nothing is
        heard until the answer is complete.
        """
        client = self._client or self._open()
        waits = httpx.Timeout(
            None,
            connect=CONNECT_TIMEOUT_S,
            pool=CONNECT_TIMEOUT_S,  # by this the transport bounds looking up the name too
            read=idle_timeout_s,
        )
        # Unless asked to, llama.cpp hangs up after a stream though it says that it will not, and the next
        # call on the same connection breaks. Another connection costs nothing where there is no TLS.
        is_kept = self._scheme != "http" or idle_timeout_s is None
        headers = None if is_kept else {"Connection": "close"}
        with mapped_errors(self.host, idle_timeout_s):
            async with client.stream(
                "POST", f"{self._base_url}/{path}", content=body, headers=headers, timeout=waits
            ) as response:
                incoming = Incoming(response, self.host, idle_timeout_s)
                yield incoming
                if is_kept:
                    await incoming.end()  # a connection in the midst of an answer cannot be used again

    def _open(self) -> httpx.AsyncClient:
        proxy = _proxy(self._scheme, self._name)
        self._client = httpx.AsyncClient(
            headers=self._headers,
            transport=AiohttpTransport(
                # aiohttp's 0 is no limit: how many calls run at once is decided above, and a wait for a
                # connection in here would count as the model's time.
                limits=httpx.Limits(max_connections=0, keepalive_expiry=15.0),
                proxy=httpx.Proxy(proxy) if proxy else None,
            ),
            # The system's proxy is read here; a login from ~/.netrc is not wanted.
            trust_env=False,
            # An endpoint must not tell one instance's calls from another's by a cookie.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )
        return self._client

    async def aclose(self) -> None:
        """Close all connections, those of open calls too."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _proxy(scheme: str, host: str) -> str | None:
    """The system's proxy for a host; never for loopback. Raise ModelError where we cannot use it."""
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
