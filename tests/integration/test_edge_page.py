"""The page's files, as Envoy serves them."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from support import stub_service
from support.stub_service import StubService

from orchestrator import edge

pytestmark = pytest.mark.asyncio(loop_scope="session")

WEB = Path(edge.__file__).with_name("web")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
FILES = sorted(file.relative_to(WEB).as_posix() for file in WEB.rglob("*") if file.suffix in TYPES)
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with (
        stub_service.serving(StubService()) as grpc_address,
        edge.running(rest_address="127.0.0.1:0", grpc_address=grpc_address) as process,
        httpx.AsyncClient(base_url=f"http://{process.address}", trust_env=False) as running,
    ):
        yield running


@pytest.mark.parametrize("name", FILES)
async def test_each_file_of_the_page_is_served_unchanged(name: str, client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/-/ui/{name.replace('index.html', '')}")
    assert answer.status_code == 200, f"{name} is not served"
    assert answer.content == (WEB / name).read_bytes()
    assert answer.headers["content-type"] == TYPES[Path(name).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"


async def test_a_new_file_of_the_page_is_served_without_a_route_in_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "orchestrator"
    shutil.copytree(WEB, package / "web")
    shutil.copytree(WEB.with_name("v1"), package / "v1")
    monkeypatch.setattr(edge, "_PACKAGE_FOLDER", package)
    new = {"new.js": "text/javascript", "parts/new.css": "text/css", "vendor/new.svg": "image/svg+xml"}
    (package / "web/parts").mkdir()
    for name in new:
        (package / "web" / name).write_text(f"/* {name} */")
    (package / "web/notes.txt").write_text("not the page's")
    async with (
        stub_service.serving(StubService()) as grpc_address,
        edge.running(rest_address="127.0.0.1:0", grpc_address=grpc_address) as process,
        httpx.AsyncClient(base_url=f"http://{process.address}", trust_env=False) as client,
    ):
        for name, content_type in new.items():
            answer = await client.get(f"/-/ui/{name}")
            assert (answer.status_code, answer.text) == (200, f"/* {name} */")
            assert answer.headers["content-type"] == content_type
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert (await client.get("/-/ui/notes.txt")).status_code == 404
        assert (await client.get("/-/ui/app.js")).content == (WEB / "app.js").read_bytes()


async def test_the_content_policy_allows_only_the_pages_own_files(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/-/ui/")).headers["content-security-policy"]
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == "'self'"
    assert directives["require-trusted-types-for"] == "'script'"
    assert set(directives.values()) <= {"'none'", "'self'", "'script'", "dompurify"}


async def test_a_browser_is_redirected_to_the_page_and_a_program_gets_the_list(
    client: httpx.AsyncClient,
) -> None:
    led = await client.get("/", headers=BROWSER)
    assert led.status_code == 303
    assert led.headers["location"] == "/-/ui/"
    assert led.content == b""
    assert (await client.head("/", headers=BROWSER)).headers["location"] == led.headers["location"]
    for accept in ("application/json", "*/*"):
        answer = await client.get("/", headers={"accept": accept})
        assert answer.json() == {"instances": [], "nextPageToken": ""}
    created = await client.post("/", headers=BROWSER, json={"prompt": "x"})
    assert created.status_code == 200
    assert (await client.get("/-/ui")).headers["location"].endswith("/-/ui/")


async def test_a_path_outside_of_the_page_is_404_in_json(client: httpx.AsyncClient) -> None:
    for path in ("/-/ui/index.htm", "/-/ui/vendor/", "/-/ui/../edge.py", "/-/ui/%2e%2e/edge.py"):
        answer = await client.get(path)
        assert answer.status_code == 404
        assert answer.json()["code"] == 5
