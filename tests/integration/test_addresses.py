"""Addresses that do not lead to an API: what is reported, over real HTTP and TLS."""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from support.endpoint import completion, message
from support.process import free_port
from support.provider_calls import KEY, model_request

from orchestrator.cli import doctor
from orchestrator.cli.doctor import Finding
from orchestrator.core.replies import ModelReply
from orchestrator.errors import ModelError, SettingsError
from orchestrator.models.providers import from_environment
from orchestrator.settings import Settings

VARIABLE = {"openai": "OPENAI_BASE_URL", "anthropic": "ANTHROPIC_BASE_URL"}
each_api = pytest.mark.parametrize("provider", ["openai", "anthropic"])

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers every path, and remembers what it was asked."""

    def __init__(self, answer: Answer | web.Response | None, tls: ssl.SSLContext | None) -> None:
        self._answer = answer
        self._tls = tls
        self.asked: list[web.Request] = []
        self.netloc = ""
        self.url = ""

    async def start(self) -> web.AppRunner:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.netloc = f"127.0.0.1:{runner.addresses[0][1]}"
        self.url = f"{'https' if self._tls else 'http'}://{self.netloc}"
        return runner

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        if isinstance(self._answer, web.Response):  # a response can be sent once
            answer = self._answer
            return web.Response(status=answer.status, body=answer.body, headers=answer.headers.copy())
        if self._answer is not None:
            return await self._answer(request)
        is_message = request.path.endswith("/messages")
        return web.json_response(message("Hello") if is_message else completion("Hello"))


@asynccontextmanager
async def serving(
    answer: Answer | web.Response | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    server = Server(answer, tls)
    runner = await server.start()
    try:
        yield server
    finally:
        await runner.cleanup()


async def call(url: str, provider: str = "openai", key: str = KEY) -> ModelReply:
    environment = {VARIABLE[provider]: url, f"{provider.upper()}_API_KEY": key}
    models = from_environment(environment)
    try:
        return await models.resolve(f"{provider}/m")[0].complete(model_request())
    finally:
        await models.aclose()


async def failure(url: str, provider: str = "openai", key: str = KEY) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await call(url, provider, key)
    assert KEY not in str(caught.value)
    return caught.value


async def run_checks(url: str, tmp_path: Path) -> Finding:
    """What the doctor finds about a model at an address."""
    settings = Settings(
        grpc_address=f"127.0.0.1:{free_port()}",
        rest_address=f"127.0.0.1:{free_port()}",
        database=str(tmp_path / "log.db"),
        big_model="openai/m",
        small_model="openai/m",
    )
    environment = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY}
    findings = {it.subject: it for it in await doctor.run_checks(settings, environment)}
    return findings["big model"]


# What is part of an address is sent as it should be


@each_api
async def test_a_login_in_the_address_is_sent_as_basic_auth_and_never_shown(
    provider: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving() as server:
        url = server.url.replace("http://", "http://user:hunter2-%40secret@")
        assert (await call(f"{url}/v1", provider)).text == "Hello"
        assert server.asked[0].headers["Authorization"] == "Basic dXNlcjpodW50ZXIyLUBzZWNyZXQ="
        assert server.asked[0].headers.get("x-api-key") == (KEY if provider == "anthropic" else None)
        assert "@" not in server.asked[0].raw_path
        finding = await run_checks(f"{url}/v1", tmp_path)
    assert not finding.mend
    assert f"at {server.url}/v1, with the login in OPENAI_BASE_URL: it answers" in finding.finding
    echo = json.dumps({"error": {"message": "no dXNlcjpodW50ZXIyLUBzZWNyZXQ= hunter2-@secret"}})
    for status in (401, 500):
        async with serving(web.Response(status=status, text=echo)) as server:
            url = server.url.replace("http://", "http://user:hunter2-%40secret@")
            error = await failure(f"{url}/v1", provider)
            output = f"{error} {error!r} {await run_checks(f'{url}/v1', tmp_path)} {caplog.text}"
        assert "hunter2" not in output
        assert "dXNlcjpod" not in output
        assert status == 500 or f"check {VARIABLE[provider]}" in str(error)


@each_api
async def test_a_query_is_sent_after_the_path_and_its_values_are_not_shown(
    provider: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "orchestrator")
    async with serving() as server:
        url = f"{server.url}/v1?api-version=2024-10-21&sig=hunter2hunter2"
        assert (await call(url, provider)).text == "Hello"
        finding = await run_checks(url, tmp_path)
    path = "/v1/messages" if provider == "anthropic" else "/v1/chat/completions"
    assert server.asked[0].raw_path == f"{path}?api-version=2024-10-21&sig=hunter2hunter2"
    assert f"at {server.url}/v1?api-version=2024-10-21&sig=***, with OPENAI_API_KEY" in finding.finding
    async with serving(web.Response(status=404, text="Cannot POST /v1?sig=hunter2hunter2")) as server:
        url = f"{server.url}/v1?sig=hunter2hunter2"
        output = f"{await failure(url, provider)} {await run_checks(url, tmp_path)} {caplog.text}"
    assert "hunter2" not in output


@pytest.mark.parametrize(
    ("provider", "path", "called"),
    [
        ("openai", "/v1/chat/completions", "/v1/chat/completions"),
        ("openai", "/v1/chat/completions/?a=b", "/v1/chat/completions?a=b"),
        ("openai", "/v1/completions", "/v1/chat/completions"),
        ("openai", "", "/chat/completions"),
        ("anthropic", "/v1/messages", "/v1/messages"),
        ("anthropic", "/v1", "/v1/messages"),
        ("anthropic", "/api/v1/messages/", "/api/v1/messages"),
        ("anthropic", "", "/v1/messages"),
    ],
)
async def test_a_full_path_is_recognised_and_not_appended_twice(
    provider: str, path: str, called: str
) -> None:
    async with serving() as server:
        await call(f" {server.url}{path}\n", provider)
    assert server.asked[0].raw_path == called


@pytest.mark.parametrize(
    ("query", "key", "headers"),
    [
        ("", "key-1", {"Authorization": "Bearer key-1"}),
        ("?api-version=1", "key-1", {"Authorization": "Bearer key-1", "api-key": "key-1"}),
        ("?api-version=1", "eyJ0.a.b", {"Authorization": "Bearer eyJ0.a.b"}),
    ],
)
async def test_azure_gets_a_key_in_its_own_header_too(query: str, key: str, headers: dict[str, str]) -> None:
    async with serving() as server:
        await call(f"{server.url}/openai/deployments/d{query}", key=key)
    sent = server.asked[0].headers
    assert {name: sent[name] for name in ("Authorization", "api-key") if name in sent} == headers


@each_api
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:1234/v1", "did you mean http://127.0.0.1:1234/v1?"),
        ("http://127.0.0.1:1234/v1#x", "leave out what begins with #"),
        ("http://127.0.0.1:1234 /v1", "leave out the white space"),
        ("http://exa\u2024mple..com/v1", "is no host"),
    ],
)
async def test_an_invalid_address_is_rejected_with_its_variable(provider: str, url: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_environment({VARIABLE[provider]: url}).check(f"{provider}/m")
    assert str(caught.value).startswith(f"{VARIABLE[provider]}: ")
    assert words in str(caught.value)


# Somebody else answers there


def page(status: int = 200, title: str = "Sign in") -> web.Response:
    text = f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>a model</body></html>"
    return web.Response(status=status, text=text, content_type="text/html")


@each_api
@pytest.mark.parametrize(
    ("status", "text"),
    [
        (200, '{"error": "Unexpected endpoint or method. (POST /chat/completions)"}'),  # LM Studio
        (404, "404 page not found"),  # Ollama, Go
        (404, '{"detail": "Not Found"}'),  # vLLM, FastAPI
        (404, '{"error": {"message": "Invalid URL (POST /chat/completions)", "code": null}}'),  # OpenAI
        (404, "Cannot POST /chat/completions"),  # Express
        (404, '{"message": "no Route matched with those values"}'),  # Kong
        (404, '{"error": {"code": "404", "message": "Resource not found"}}'),  # Azure
        (404, "<html><head><title>404 Not Found</title></head><body>no model</body></html>"),  # nginx
        (405, "<html><head><title>405 Not Allowed</title></head></html>"),
        (405, '{"detail": "Method Not Allowed"}'),
    ],
)
async def test_a_path_that_does_not_exist_is_an_error_of_the_address(
    provider: str, status: int, text: str
) -> None:
    async with serving(web.Response(status=status, text=text, content_type="application/json")) as server:
        error = await failure(server.url, provider)
        assert (error.reason, error.retryable) == ("MODEL_NOT_FOUND", False)
        assert len(server.asked) == 1
    if provider == "openai":
        assert f"nothing at {server.url}/chat/completions: add /v1 to OPENAI_BASE_URL" in str(error)
        assert f"as in {server.url}/v1" in str(error)
    else:
        assert f"nothing at {server.url}/v1/messages: correct ANTHROPIC_BASE_URL" in str(error)
    assert "<" not in str(error)


@pytest.mark.parametrize(
    "text",
    [
        '{"error": {"message": "model \\"m\\" not found, try pulling it first"}}',
        '{"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}',
        '{"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}',
    ],
)
async def test_a_model_that_does_not_exist_is_no_error_of_the_address(text: str) -> None:
    async with serving(web.Response(status=404, text=text, content_type="application/json")) as server:
        error = await failure(server.url)
    assert "has no model 'm', or the address is wrong" in str(error)


async def test_the_doctor_reports_a_missing_v1(tmp_path: Path) -> None:
    answer = web.json_response({"error": "Unexpected endpoint or method. (POST /chat/completions)"})
    async with serving(answer) as server:
        finding = await run_checks(server.url, tmp_path)
        assert len(server.asked) == 1
    assert finding.is_broken
    assert f"add /v1 to OPENAI_BASE_URL, as in {server.url}/v1" in finding.mend


@each_api
@pytest.mark.parametrize("kind", ["text/html", "text/plain", "application/json", "text/event-stream"])
async def test_a_web_page_with_status_200_is_reported_as_a_web_page(provider: str, kind: str) -> None:
    answer = page()
    answer.content_type = kind
    async with serving(answer) as server:
        error = await failure(f"{server.url}/v1", provider)
    assert (error.reason, error.retryable) == ("OUTPUT_INVALID", True)
    assert f"sent a web page in place of an answer: is {VARIABLE[provider]} right" in str(error)
    assert str(error).endswith("It sent a web page: Sign in")


@each_api
@pytest.mark.parametrize("status", [401, 403, 429, 502, 503])
async def test_only_the_title_of_an_error_page_is_quoted(provider: str, status: int) -> None:
    async with serving(page(status, "Attention &lt;Required&gt;! | Cloudflare")) as server:
        error = await failure(f"{server.url}/v1", provider)
    assert str(error).endswith(". It sent a web page: Attention <Required>! | Cloudflare")
    assert "<!DOCTYPE" not in str(error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@each_api
async def test_a_redirect_is_not_followed_and_its_target_is_reported(
    provider: str, status: int, tmp_path: Path
) -> None:
    async with serving() as other:

        async def redirect(request: web.Request) -> web.StreamResponse:
            location = f"{other.url}/api{request.path}?token=hunter2hunter2"
            return web.Response(status=status, headers={"Location": location})

        async with serving(redirect) as server:
            error = await failure(f"{server.url}/v1", provider)
            assert len(server.asked) == 1
            finding = await run_checks(f"{server.url}/v1", tmp_path)
    assert not other.asked
    assert (error.reason, error.retryable) == ("REQUEST_REJECTED", False)
    new = f"{other.url}/api" if provider == "anthropic" else f"{other.url}/api/v1"
    assert f"redirects to {other.url}/api/v1/" in str(error)
    assert f"set {VARIABLE[provider]} to {new}" in str(error)
    assert "hunter2" not in str(error)
    assert finding.is_broken
    assert f"set OPENAI_BASE_URL to {other.url}/api/v1" in f"{finding.finding} {finding.mend}"


async def test_a_relative_redirect_or_one_to_a_page_is_reported_as_such() -> None:
    for location, words in (
        ("/openai/v1/chat/completions", "set OPENAI_BASE_URL to {url}/openai/v1"),
        (
            "/login?next=%2F",
            "redirects to {url}/login, with status 302: set OPENAI_BASE_URL to that if it is",
        ),
        ("/v1/chat/completions/", "correct OPENAI_BASE_URL"),
        ("nonsense://", "correct OPENAI_BASE_URL"),
    ):
        async with serving(web.Response(status=302, headers={"Location": location})) as server:
            assert words.format(url=server.url) in str(await failure(f"{server.url}/v1"))


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def trust_only_named_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


def certified(authority: trustme.CA, *names: str, **more: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("127.0.0.1",)), **more).configure_cert(context)
    return context


def trust(authority: trustme.CA, variable: str, place: Path, patch: pytest.MonkeyPatch) -> None:
    file = place / "authority.pem"
    authority.cert_pem.write_to_path(file)
    patch.setenv(variable, str(file))


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
async def test_the_authorities_named_by_a_variable_are_trusted(
    variable: str, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(authority, variable, tmp_path, monkeypatch)
    async with serving(tls=certified(authority)) as server:
        assert (await call(f"{server.url}/v1")).text == "Hello"


async def test_a_folder_of_authorities_is_trusted(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(file)
    rehash = await asyncio.create_subprocess_exec("openssl", "rehash", str(tmp_path))
    assert await rehash.wait() == 0
    for variable in ("SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(tmp_path))
            async with serving(tls=certified(authority)) as server:
                assert (await call(f"{server.url}/v1")).text == "Hello"


async def test_a_certificate_of_an_unknown_authority_is_not_retried_and_names_the_variable(
    authority: trustme.CA, tmp_path: Path
) -> None:
    async with serving(tls=certified(authority)) as server:
        error = await failure(f"{server.url}/v1")
        finding = await run_checks(f"{server.url}/v1", tmp_path)
        assert not server.asked
    assert (error.reason, error.retryable) == ("CONNECTION_FAILED", False)
    assert f"the certificate of {server.netloc} is not trusted (unable to get local issuer" in str(error)
    assert "set SSL_CERT_FILE to a PEM file" in str(error)
    assert finding.is_broken
    assert "SSL_CERT_FILE" in finding.mend


async def test_a_certificate_for_another_host_or_period_is_reported_as_such(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(authority, "SSL_CERT_FILE", tmp_path, monkeypatch)
    now = datetime.now(UTC)
    past = {"not_before": now - timedelta(days=9), "not_after": now - timedelta(days=1)}
    future = {"not_before": now + timedelta(days=1), "not_after": now + timedelta(days=9)}
    for tls, problem, mend in (
        (certified(authority, "other.example"), "127.0.0.1", "correct OPENAI_BASE_URL"),
        (certified(authority, "127.0.0.1", **past), "expired", "has to renew it"),
        (certified(authority, "127.0.0.1", **future), "not yet valid", "clock"),
    ):
        async with serving(tls=tls) as server:
            error = await failure(f"{server.url}/v1")
        assert (error.reason, error.retryable) == ("CONNECTION_FAILED", False)
        assert problem in str(error)
        assert mend in str(error)
        assert f"by the authorities of SSL_CERT_FILE, which is {tmp_path}/authority.pem" in str(error)


@pytest.mark.parametrize("text", [None, "no certificates"])
async def test_a_variable_without_valid_certificates_is_named(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "authorities.pem"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
    error = await failure("https://127.0.0.1:9/v1")
    assert (error.reason, error.retryable) == ("CONNECTION_FAILED", False)
    assert str(error).startswith(f"REQUESTS_CA_BUNDLE is '{file}', and no certificates can be read there")


async def test_plain_http_at_a_tls_port_is_not_retried_and_names_the_mend(
    authority: trustme.CA, tmp_path: Path
) -> None:
    async with serving(tls=certified(authority)) as server:
        url = server.url.replace("https", "http")
        error = await failure(f"{url}/v1")
        finding = await run_checks(f"{url}/v1", tmp_path)
    assert (error.reason, error.retryable) == ("CONNECTION_FAILED", False)
    assert f"{server.netloc} speaks TLS at that port: begin OPENAI_BASE_URL with https://" in str(error)
    assert finding.is_broken
    assert "OPENAI_BASE_URL" in finding.mend


@pytest.mark.parametrize(
    "text",
    [
        "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
        "Client sent an HTTP request to an HTTPS server.\n",
        "Bad Request\nThis combination of host and port requires TLS.\n",
        "Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />",
    ],
    ids=["nginx", "go", "tomcat", "apache"],
)
async def test_a_server_that_asks_for_tls_in_its_answer_is_believed(text: str) -> None:
    async with serving(web.Response(status=400, text=text)) as server:
        error = await failure(f"{server.url}/v1")
    assert (error.reason, error.retryable) == ("CONNECTION_FAILED", False)
    assert "begin OPENAI_BASE_URL with https://" in str(error)


async def test_tls_at_a_plain_port_is_not_retried_and_names_the_mend(tmp_path: Path) -> None:
    async with serving() as server:
        url = server.url.replace("http", "https")
        error = await failure(f"{url}/v1")
        finding = await run_checks(f"{url}/v1", tmp_path)
    assert (error.reason, error.retryable) == ("CONNECTION_FAILED", False)
    assert "begin OPENAI_BASE_URL with http://" in str(error)
    assert finding.is_broken
    assert "OPENAI_BASE_URL" in finding.mend


async def test_a_broken_connection_is_retried() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for scheme in ("http", "https"):
            error = await failure(f"{scheme}://127.0.0.1:{port}/v1")
            assert (error.reason, error.retryable) == ("CONNECTION_FAILED", True)


async def test_a_connection_that_breaks_after_an_answer_is_not_taken_for_tls() -> None:
    """Each look for TLS is a connection more at an endpoint that may have too many."""
    connections = 0

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await reader.readuntil(b"\r\n\r\n")
            body = json.dumps(completion("Hello")).encode()
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(body) + body)
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        models = from_environment({"OPENAI_BASE_URL": url})
        provider = models.resolve("openai/m")[0]
        assert (await provider.complete(model_request())).text == "Hello"
        with pytest.raises(ModelError) as caught:
            await provider.complete(model_request())
        await models.aclose()
    assert caught.value.retryable
    assert connections == 2


# No way there


async def test_an_unknown_host_is_retried_and_named() -> None:
    error = await failure("https://no-such-host.invalid/v1")
    assert (error.reason, error.retryable) == ("CONNECTION_FAILED", True)
    assert "there is no host no-such-host.invalid (" in str(error)
    assert "is OPENAI_BASE_URL right, and is there a network?" in str(error)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_requires_a_login_is_reported_and_not_retried(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        error = await failure(f"{scheme}://models.invalid/v1")
    assert not error.retryable
    assert "proxy" in str(error)
    assert f"{scheme.upper()}_PROXY" in str(error)
    assert "http://user:password@proxy:3128" in str(error)


# Keys


@pytest.mark.parametrize("key", ["x", "EMPTY", "sk-…"[:3], "none"])
async def test_a_dummy_key_does_not_mangle_the_quoted_answer(key: str) -> None:
    text = "the next EMPTY box sk- holds none"
    async with serving(web.json_response({"error": {"message": text}}, status=500)) as server:
        assert text in str(await failure(f"{server.url}/v1", key=key))


@each_api
@pytest.mark.parametrize("status", [401, 403])
async def test_a_rejected_key_is_named_with_the_advice_to_restart_the_service(
    provider: str, status: int
) -> None:
    async with serving(web.json_response({"error": {"message": f"no {KEY}"}}, status=status)) as server:
        error = await failure(f"{server.url}/v1", provider)
        assert (error.reason, error.retryable) == ("MODEL_UNAUTHENTICATED", False)
        assert f"refused the service's key with {status}: check {provider.upper()}_API_KEY" in str(error)
        assert "where the service is started, and restart it" in str(error)
    async with serving(web.json_response({"error": {"message": "who?"}}, status=status)) as server:
        error = await failure(f"{server.url}/v1", provider, key="")
        assert f"refused a call without a key with {status}: check {provider.upper()}_API_KEY" in str(error)
