"""HTTP to model endpoints: the one module that knows the HTTP library, and what its errors mean to us.

The library is httpx over aiohttp's connections, a transport chosen by measurement: see
docs/decisions/0003-http-transport.md. Nothing is tried again here, for an attempt that the event log does not
show did not happen.
"""

import asyncio
import ipaddress
import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from orchestrator.errors import AddressError, ModelError, SettingsError
from orchestrator.models.http import trust
from orchestrator.models.http.address import Address
from orchestrator.models.http.compression import ACCEPTED, Decompressor, EncodingError

CONNECT_TIMEOUT_S: Final = 10.0
"""The longest a connection may take to open; the rest of a call's time is the model's."""

IDLE_TIMEOUT_S: Final = 120.0
"""The longest a streamed answer may be silent, unless set otherwise: some models think that long."""

_PROBE_S: Final = 3.0  # the longest that a look for TLS may take
PROXY_LOGIN: Final = "it wants a login, as in {scheme}_PROXY=http://user:password@proxy:3128"
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG")
"""What OpenSSL makes of an answer that is no TLS."""
_VALIDITY_CODES: Final = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_FOR_ANOTHER_HOST: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
_END_S: Final = 0.2  # the longest that the end of a stream may come after its last event

MAX_ANSWER_BYTES: Final = 32 * 1024 * 1024
"""The longest answer that is read: far above any model's, far below what would hurt."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An HTTP answer of any status; header names are read case-insensitively."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StreamingResponse:
    """An HTTP answer of any status whose body is still coming in."""

    def __init__(self, response: httpx.Response, host: str, idle_timeout_s: float | None) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._body = response.aiter_raw()
        self._encoding = response.headers.get("Content-Encoding", "")
        self._host = host
        self._idle_timeout_s = idle_timeout_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes; raise ModelError where it breaks off or is longer than any answer."""
        received = 0
        with mapped_errors(self._host, self._idle_timeout_s):
            async for chunk in self._decompressed():
                received += len(chunk)
                if received > MAX_ANSWER_BYTES:
                    problem = (
                        f"{self._host} sent over {MAX_ANSWER_BYTES >> 20} MiB: that is no model's answer"
                    )
                    raise ModelError("OUTPUT_INVALID", problem, retryable=True)
                yield chunk

    async def _decompressed(self) -> AsyncIterator[bytes]:
        try:
            decompressor = Decompressor(self._encoding)
            async for chunk in self._body:
                for piece in decompressor.feed(chunk):
                    yield piece
                    await asyncio.sleep(0)  # a chunk may stand for a thousand times as much
        except EncodingError as error:
            problem = f"{self._host} sent what cannot be decompressed: {error}"
            raise ModelError("CONNECTION_FAILED", problem, retryable=True) from None

    async def read_all(self, max_bytes: int = MAX_ANSWER_BYTES) -> HttpResponse:
        """Wait for the rest, or for so many bytes of it: what follows those is left out."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > max_bytes:
                break
        return HttpResponse(self.status, self.headers, bytes(body[:max_bytes]))

    async def end(self) -> None:
        """Wait a moment for the end of a body that has been read as far as it matters."""
        with suppress(ModelError), mapped_errors(self._host):
            async with asyncio.timeout(_END_S):
                async for _ in self._body:
                    pass


@contextmanager
def mapped_errors(
    host: str, idle_timeout_s: float | None = None, setting: str = "the address"
) -> Iterator[None]:
    """Raise a ModelError in place of whatever the HTTP library raises when a call breaks.

    It is retryable, unless nothing but a change of a setting helps. `called` is the address' name.
    """
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, aiohttp.ClientError, OSError) as error:
        # The transport calls a refused connection a timeout; what aiohttp raised says it better.
        cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
        raise _to_model_error(cause, host, idle_timeout_s, setting) from None


class _BrokenOffError(ModelError):
    """A connection that there was, and that ended."""


def _to_model_error(
    error: BaseException, host: str, idle_timeout_s: float | None, setting: str
) -> ModelError:
    reason = "CONNECTION_FAILED"
    match error:
        case aiohttp.ConnectionTimeoutError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
            reason = "CONNECT_TIMEOUT"
            problem = f"could not connect to {host} within {CONNECT_TIMEOUT_S:g} s: is {setting} right?"
        case aiohttp.ServerTimeoutError() | httpx.ReadTimeout():
            reason = "IDLE_TIMEOUT"
            silence = f"{idle_timeout_s:g} s" if idle_timeout_s else "too long"
            problem = (
                f"{host} was silent for {silence} in the midst of a call: see ORCHESTRATOR_IDLE_TIMEOUT_S"
            )
        case aiohttp.InvalidURL() | httpx.UnsupportedProtocol() | httpx.InvalidURL():
            problem = f"{host} is not an address that can be called ({type(error).__name__})"
            return AddressError("REQUEST_REJECTED", problem, f"correct {setting}")
        case aiohttp.ClientConnectorCertificateError():
            return _certificate_error(getattr(error, "certificate_error", None), host, setting)
        case aiohttp.ClientConnectorSSLError():
            cause = error.os_error
            said = getattr(cause, "reason", None) or cause.strerror or cause
            problem = f"no TLS connection to {host} ({said})"
            if said in _NO_TLS:
                problem += ", which speaks none at that port"
                return AddressError(reason, problem, f"begin {setting} with http://, or correct its port")
        case aiohttp.ClientConnectorDNSError():
            problem = f"there is no host {host} ({error.os_error.strerror}): is {setting} right, "
            problem += "and is there a network?"
        case aiohttp.ClientProxyConnectionError():
            problem = f"could not connect to the system's proxy: {error.os_error.strerror or error.os_error}"
        case aiohttp.ClientHttpProxyError():
            status = getattr(error, "status", 0)
            problem = f"the system's proxy did not connect to {host}, status {status}"
            if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
                return AddressError(reason, problem, PROXY_LOGIN.format(scheme="HTTPS"))
        case aiohttp.ClientConnectorError():
            problem = f"could not connect to {host}: {error.os_error.strerror or error.os_error}"
        case _:
            problem = (
                f"the connection to {host} broke before the answer was complete ({type(error).__name__})"
            )
            return _BrokenOffError(reason, problem, retryable=True)
    return ModelError(reason, problem, retryable=True)


def _certificate_error(error: object, host: str, setting: str) -> AddressError:
    """Return what is wrong with a certificate, and what to do about that."""
    variable, path = trust.ca_source()
    authorities = f"{variable}, which is {path}" if variable else "the system"
    problem = f"the certificate of {host} is not trusted"
    mend = "set SSL_CERT_FILE to a PEM file with the certificate of the authority that issued it"
    if isinstance(error, ssl.SSLCertVerificationError):
        problem += f" ({error.verify_message}), by the authorities of {authorities}"
        if error.verify_code in _VALIDITY_CODES:
            mend = "is this machine's clock right? Otherwise whoever runs the endpoint has to renew it"
        elif error.verify_code in _FOR_ANOTHER_HOST:
            mend = f"correct {setting}, which must have the name that is in the certificate"
    return AddressError("CONNECTION_FAILED", problem, mend)


def tls_required_error(where: str, setting: str, said: str = "") -> AddressError:
    """Plain HTTP was sent where TLS is spoken."""
    problem, mend = f"{where} speaks TLS at that port", f"begin {setting} with https://"
    return AddressError("CONNECTION_FAILED", problem, mend, said)


class EndpointClient:
    """Posts JSON to one endpoint over connections that are kept; as many are open as there are calls."""

    def __init__(self, address: Address, headers: Mapping[str, str]) -> None:
        """Raise SettingsError where the address cannot be called. Nothing is opened yet.

        A login in the address takes the place of the header Authorization.
        """
        try:
            httpx.URL(address.base)
        except httpx.InvalidURL:
            raise SettingsError(
                f"{address.shown()!r} is not an address: {address.host!r} is no host"
            ) from None
        self.host = address.netloc
        self._address = address
        self._scheme = address.scheme
        self._base_url = address.base
        login = {"Authorization": address.authorization} if address.login else {}
        own = {"Content-Type": "application/json", "Accept-Encoding": ACCEPTED}
        self._headers = {**own, **headers, **login}
        self._client: httpx.AsyncClient | None = None
        self._has_proxy = False
        self._has_answered = False

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, idle_timeout_s: float | None = None
    ) -> AsyncIterator[StreamingResponse]:
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
        is_reusable = self._scheme != "http" or idle_timeout_s is None
        headers = None if is_reusable else {"Connection": "close"}
        try:
            with mapped_errors(self.host, idle_timeout_s, self._address.setting):
                async with client.stream(
                    "POST", self._address.url(path), content=body, headers=headers, timeout=waits
                ) as response:
                    self._has_answered = True
                    streamed = StreamingResponse(response, self.host, idle_timeout_s)
                    yield streamed
                    if is_reusable:
                        await streamed.end()  # a connection in the midst of an answer cannot be used again
        except ModelError as error:
            if not isinstance(error, _BrokenOffError) or not await self._peer_speaks_tls():
                raise
            raise tls_required_error(self.host, self._address.setting) from None

    async def _peer_speaks_tls(self) -> bool:
        """Return whether a plain HTTP call broke because the other side speaks TLS, which it does not say."""
        if self._scheme != "http" or self._has_proxy or self._has_answered:
            return False
        unverified = ssl.create_default_context()  # nothing is sent over it
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        parts = urlsplit(self._base_url)
        try:
            async with asyncio.timeout(_PROBE_S):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, ssl=unverified)
        except (OSError, TimeoutError):
            return False
        writer.transport.abort()
        return True

    def _open(self) -> httpx.AsyncClient:
        proxy = _proxy(self._scheme, self._address.host)
        self._has_proxy = proxy is not None
        try:
            trusted = trust.context()
        except SettingsError as error:
            problem, _, mend = str(error).rpartition(": ")
            raise AddressError("CONNECTION_FAILED", problem, mend) from None
        self._client = httpx.AsyncClient(
            headers=self._headers,
            transport=AiohttpTransport(
                verify=trusted,
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
    """Return the system's proxy for a host; never for loopback. Raise ModelError where we cannot use it."""
    if _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    proxy = urllib.request.getproxies().get(scheme)
    if proxy is not None and urlsplit(proxy).scheme not in ("http", "https"):
        problem = f"the system's {scheme} proxy is not an http:// one"
        raise AddressError("REQUEST_REJECTED", problem, f"unset {scheme.upper()}_PROXY or change it")
    return proxy


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
