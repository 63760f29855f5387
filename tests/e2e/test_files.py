"""The files of a result over REST: paths as URLs write them, and no file that a browser would run."""

import asyncio
import zipfile
from collections.abc import AsyncIterator, Mapping
from http.client import HTTPResponse
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from support.service import service

from orchestrator import edge
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Scripted, plan_text

FILES = {
    "README.md": "# Grüße\n",
    "app/[id]/page.tsx": "x\n",
    "docs/two words.md": "# Two\n",
    "src/a.py": "x\n",
    "src/ä.css": "y\n",
    "100%.txt": "z\n",
    "a+b&c=d,e;f.txt": "+\n",
    "a#b?c.txt": "#\n",
    "x/y:wait.txt": ":\n",
    "run:wait": "w\n",
    "data.json": "{}\n",
    "data.csv": "a,b\n",
    "Makefile": "all:\n",
    "main.ts": "t\n",
    "logo.svg": "<svg/>\n",
    "index.html": "<script>alert(1)</script>\n",
    "page.XHTML": "<html/>\n",
    "app.js": "alert(1)\n",
    "app.mjs": "alert(1)\n",
    "feed.xml": "<a/>\n",
    "über uns.html": "<b>\n",
}


def _answer(request: ModelRequest) -> str:
    match request.prompt.role:
        case "planning":
            return plan_text(1)
        case "work":
            return "None."
        case "synthesis":
            return "".join(f'```text path="{path}"\n{content}```\n\n' for path, content in FILES.items())


@pytest.fixture(scope="module")
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """A service with a complete instance `done`."""
    path = tmp_path_factory.mktemp("files") / "log.db"
    async with (
        service(path, Scripted(_answer)) as running,
        edge.running(rest_address="127.0.0.1:0", grpc_address=running.address) as envoy,
        httpx.AsyncClient(base_url=f"http://{envoy.address}") as client,
    ):
        await client.post("/", json={"prompt": "x", "id": "done"})
        await running.ended("done")
        yield envoy.address


class _Head:
    """What http.client parses an answer from."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> BytesIO:
        return BytesIO(self._data)


async def _get(address: str, path: str, method: str = "GET") -> tuple[int, Mapping[str, str], bytes]:
    """Ask for a path as it stands here: clients change `..` and encode what they like."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
    response = HTTPResponse(_Head(await reader.read()), method=method)  # type: ignore[arg-type]
    writer.close()
    response.begin()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


async def test_files_are_listed(address: str) -> None:
    status, headers, body = await _get(address, "/done/files")
    listed = httpx.Response(status, content=body).json()["files"]
    assert headers["content-type"] == "application/json"
    assert [file["path"] for file in listed] == sorted(FILES)
    assert {key: listed[0][key] for key in ("content", "sizeBytes", "source")} == {
        "content": "",
        "sizeBytes": "2",
        "source": "result",
    }


ENCODED = {
    "src/a.py": ("src/a.py", "src%2Fa.py", "src%2fa.py", "%73rc/a%2Epy"),
    "docs/two words.md": ("docs/two%20words.md",),
    "src/ä.css": ("src/%C3%A4.css", "src%2F%c3%a4.css"),
    "app/[id]/page.tsx": ("app/[id]/page.tsx", "app/%5Bid%5D/page.tsx"),
    "100%.txt": ("100%25.txt",),
    "a+b&c=d,e;f.txt": ("a+b&c=d,e;f.txt", "a%2Bb%26c%3Dd%2Ce%3Bf.txt"),
    "a#b?c.txt": ("a%23b%3Fc.txt",),
    "x/y:wait.txt": ("x/y:wait.txt", "x%2Fy%3Await.txt"),
    "run:wait": ("run%3Await",),
}


@pytest.mark.parametrize(("path", "url"), [(path, url) for path, urls in ENCODED.items() for url in urls])
async def test_a_file_is_found_by_its_path_as_urls_write_it(address: str, path: str, url: str) -> None:
    status, _, body = await _get(address, f"/done/files/{url}")
    assert (status, body.decode()) == (200, FILES[path])


@pytest.mark.parametrize(
    "url",
    [
        "b.py", "src", "src/", "src//a.py", "../done/result", "%2e%2e/README.md", "..%2FREADME.md", "%00",
        "src/..%2f..%2fREADME.md", "src%5Ca.py", "src/a.py%00", "%ff", "%2Fsrc%2Fa.py",
    ],
)  # fmt: skip
async def test_any_other_path_is_not_found(address: str, url: str) -> None:
    status, headers, body = await _get(address, f"/done/files/{url}")
    assert status in (400, 404), body
    assert headers["content-type"] == "application/json"
    assert "content-disposition" not in headers


async def test_what_is_not_found_names_what_there_is(address: str) -> None:
    status, _, body = await _get(address, "/done/files/b.py")
    error = httpx.Response(status, content=body).json()
    assert (status, error["code"], error["details"][0]["reason"]) == (404, 5, "FILE_NOT_FOUND")
    assert "src/a.py" in error["message"]


INLINE = {
    "README.md": "text/markdown",
    "src/a.py": "text/x-python",
    "src/ä.css": "text/css",
    "data.json": "application/json",
    "data.csv": "text/csv",
    "Makefile": "text/plain",
    "main.ts": "text/plain",
    "docs/two words.md": "text/markdown",
}
ATTACHED = {
    "index.html": ("text/plain", 'attachment; filename="index.html"'),
    "page.XHTML": ("text/plain", 'attachment; filename="page.XHTML"'),
    "app.js": ("text/plain", 'attachment; filename="app.js"'),
    "app.mjs": ("text/plain", 'attachment; filename="app.mjs"'),
    "feed.xml": ("text/plain", 'attachment; filename="feed.xml"'),
    "logo.svg": ("image/svg+xml", 'attachment; filename="logo.svg"'),
    "über uns.html": (
        "text/plain",
        "attachment; filename=\"_ber uns.html\"; filename*=UTF-8''%C3%BCber%20uns.html",
    ),
}


def _url(path: str) -> str:
    return httpx.URL(f"http://x/done/files/{path}").raw_path.decode()


@pytest.mark.parametrize(("path", "media_type"), INLINE.items())
async def test_text_has_its_own_media_type(address: str, path: str, media_type: str) -> None:
    status, headers, body = await _get(address, _url(path))
    assert (status, body.decode()) == (200, FILES[path])
    assert headers["content-type"] == f"{media_type}; charset=utf-8"
    assert "content-disposition" not in headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert not [name for name in headers if name.startswith(("grpc-", "x-envoy-"))]


@pytest.mark.parametrize(("path", "expected"), ATTACHED.items())
async def test_what_a_browser_would_run_is_saved_instead(
    address: str, path: str, expected: tuple[str, str]
) -> None:
    status, headers, body = await _get(address, _url(path))
    assert (status, body.decode()) == (200, FILES[path])
    assert (headers["content-type"], headers["content-disposition"]) == (
        f"{expected[0]}; charset=utf-8",
        expected[1],
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; sandbox"


async def test_an_archive_is_saved_under_the_instances_name(address: str, tmp_path: Path) -> None:
    status, headers, body = await _get(address, "/done/archive")
    assert (status, headers["content-type"]) == (200, "application/zip")
    assert headers["content-disposition"] == 'attachment; filename="done.zip"'
    with zipfile.ZipFile(BytesIO(body)) as held:
        assert {name: held.read(name).decode() for name in held.namelist()} == FILES
        held.extractall(tmp_path)
    assert (tmp_path / "src/a.py").read_text() == "x\n"


@pytest.mark.parametrize(
    "path", ["/done/files", "/done/files/src/a.py", "/done/archive", "/done/files/index.html"]
)
async def test_head_is_get_without_its_body(address: str, path: str) -> None:
    _, got, _ = await _get(address, path)
    status, headers, body = await _get(address, path, "HEAD")
    assert (status, body) == (200, b"")
    for name in ("content-type", "content-length", "content-disposition"):
        assert headers.get(name) == got.get(name)


@pytest.mark.parametrize("path", ["/done/files", "/done/files/src/a.py", "/done/archive"])
async def test_another_method_is_405(address: str, path: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        status, headers, _ = await _get(address, path, method)
        assert (status, headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("query", ["path=README.md", "%70ath=README.md", "id=other"])
async def test_no_query_overrides_what_the_path_names(address: str, query: str) -> None:
    status, _, body = await _get(address, f"/done/files/src/a.py?{query}")
    assert status == 400
    assert b"in the path" in body
