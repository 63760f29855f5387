"""The page's session: a cookie that real Envoy makes of a token, and a token of the cookie."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import trustme
from support import stub_service
from support.stub_service import WRONG_TOKEN, StubService

from orchestrator import edge
from orchestrator.tls import CertificateFiles

# grpc.aio does not bear a second event loop in one process.
pytestmark = pytest.mark.asyncio(loop_scope="session")

ANY_PORT = "127.0.0.1:0"
TOKEN = "orc_0123abc.DEF_~+/-=="
BEARER = {"authorization": f"Bearer {TOKEN}"}
COOKIE = {"cookie": f"orchestrator_session={TOKEN}"}


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def service() -> StubService:
    return StubService()


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def url(service: StubService) -> AsyncIterator[str]:
    async with (
        stub_service.serving(service) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address) as process,
    ):
        yield process.url


@pytest_asyncio.fixture(loop_scope="session")
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url) as http:
        yield http


async def test_bearer_credentials_reach_the_service_as_they_are(
    client: httpx.AsyncClient, service: StubService
) -> None:
    for method, path in (("GET", "/a"), ("POST", "/"), ("GET", "/a/events"), ("DELETE", "/a")):
        service.metadata = {}
        await client.request(method, path, headers=BEARER)
        assert service.metadata["authorization"] == f"Bearer {TOKEN}"


async def test_a_good_token_becomes_a_cookie_that_scripts_and_other_sites_cannot_use(
    client: httpx.AsyncClient, url: str
) -> None:
    response = await client.post("/-/session", headers={**BEARER, "origin": url})
    assert response.status_code == 200
    assert response.json()["version"] == "1.2.3"
    (cookie,) = response.headers.get_list("set-cookie")
    assert cookie == f"orchestrator_session={TOKEN}; Path=/; HttpOnly; SameSite=Strict"
    assert response.headers["cache-control"] == "no-store"
    behind_tls = {"host": "localhost", "origin": "https://localhost"}
    response = await client.post("/-/session", headers={**BEARER, **behind_tls})
    assert response.headers["set-cookie"].endswith("; SameSite=Strict; Secure")


@pytest.mark.parametrize(
    "credentials",
    [
        {"authorization": f"Bearer {WRONG_TOKEN}"},
        {"authorization": "Bearer a; Domain=evil.example"},
        {"authorization": "Basic YTpi"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer " + "a" * 5000},
        {},
    ],
    ids=str,
)
async def test_what_is_no_good_token_makes_no_cookie(
    client: httpx.AsyncClient, credentials: dict[str, str]
) -> None:
    response = await client.post("/-/session", headers=credentials)
    assert "set-cookie" not in response.headers
    if WRONG_TOKEN in credentials.get("authorization", ""):
        assert (response.status_code, response.json()["code"]) == (401, 16)
        assert response.headers["www-authenticate"] == "Bearer"


async def test_the_cookie_is_the_token_of_the_pages_requests(
    client: httpx.AsyncClient, service: StubService, url: str
) -> None:
    among_others = {"cookie": f"a=b; orchestrator_session={TOKEN}; c=d"}
    for headers in (COOKIE, {**COOKIE, "origin": url}, among_others):
        for method, path in (("GET", "/a"), ("POST", "/"), ("GET", "/a/events"), ("GET", "/-/info")):
            service.metadata = {}
            await client.request(method, path, headers=headers)
            assert service.metadata["authorization"] == f"Bearer {TOKEN}"
            assert "cookie" not in service.metadata
    await client.get("/a", headers={**COOKIE, "authorization": "Bearer other"})
    assert service.metadata["authorization"] == "Bearer other", "who says who it is, is that"


@pytest.mark.parametrize(
    "cookie", ["orchestrator_session=", "x_orchestrator_session=a", "orchestrator_session=a b"]
)
async def test_other_cookies_are_no_credentials(
    client: httpx.AsyncClient, service: StubService, cookie: str
) -> None:
    await client.get("/a", headers={"cookie": cookie})
    assert not {"authorization", "cookie"} & service.metadata.keys()


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:3000", "null"])
async def test_pages_of_other_origins_cannot_use_the_cookie(
    client: httpx.AsyncClient, service: StubService, origin: str
) -> None:
    service.metadata = {}
    for method, path in (("GET", "/a"), ("POST", "/"), ("POST", "/-/session"), ("DELETE", "/-/session")):
        response = await client.request(method, path, headers={**COOKIE, "origin": origin})
        assert "set-cookie" not in response.headers
        assert "authorization" not in service.metadata


async def test_signing_out_takes_the_cookie_away(client: httpx.AsyncClient, url: str) -> None:
    response = await client.delete("/-/session", headers={**COOKIE, "origin": url})
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["set-cookie"] == (
        "orchestrator_session=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"
    )


async def test_a_session_is_neither_read_nor_replaced(client: httpx.AsyncClient) -> None:
    for method in ("GET", "PUT", "PATCH"):
        response = await client.request(method, "/-/session", headers=BEARER)
        assert (response.status_code, response.headers["allow"]) == (405, "POST, DELETE")
        assert "set-cookie" not in response.headers


async def test_a_page_of_this_service_under_another_name_is_of_its_own_origin(service: StubService) -> None:
    async with (
        stub_service.serving(service) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address, hosts=("app.example.com",)) as process,
        httpx.AsyncClient(base_url=process.url) as client,
    ):

        async def status(host: str, origin: str) -> int:
            headers = {"host": host, "origin": origin}
            return (await client.post("/", json={"prompt": "x"}, headers=headers)).status_code

        assert await status("app.example.com", "https://app.example.com") == 200
        assert await status("app.example.com:8443", "https://app.example.com:8443") == 200
        assert await status("app.example.com", "https://evil.example") == 403
        assert await status("localhost", "https://app.example.com") == 403
        assert await status("evil.example", "http://evil.example") == 421


async def test_over_tls_the_cookie_is_secure_and_plain_pages_are_foreign(
    service: StubService, tmp_path: Path
) -> None:
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    files = CertificateFiles(tmp_path / "server.pem", tmp_path / "server.key", None, ("", "", ""))
    own.cert_chain_pems[0].write_to_path(str(files.certificate))
    own.private_key_pem.write_to_path(str(files.key))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with (
        stub_service.serving(service) as grpc_address,
        edge.running(
            rest_address=ANY_PORT, grpc_address=grpc_address, tls=files, hosts=("app.example.com",)
        ) as process,
        httpx.AsyncClient(base_url=process.url, verify=trusting) as client,
    ):
        for headers in (BEARER, {**BEARER, "origin": process.url}):
            response = await client.post("/-/session", headers=headers)
            assert response.headers["set-cookie"].endswith("; SameSite=Strict; Secure")
        plain = {"host": "app.example.com", "origin": "http://app.example.com"}
        assert (await client.post("/", json={"prompt": "x"}, headers=plain)).status_code == 403
