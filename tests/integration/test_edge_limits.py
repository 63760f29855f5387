"""What real Envoy writes down of requests, and how much of one client it takes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support import stub_service
from support.stub_service import StubService

from orchestrator import edge

# grpc.aio does not bear a second event loop in one process.
pytestmark = pytest.mark.asyncio(loop_scope="session")

ANY_PORT = "127.0.0.1:0"
SECRET = "sk-a-secret-of-this-test"


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[edge.EdgeProcess]:
    async with (
        stub_service.serving(StubService()) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address, **settings) as process,
    ):
        yield process


async def test_the_access_log_has_a_line_for_each_request_without_secrets(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    async with (
        running(access_log=str(file)) as process,
        httpx.AsyncClient(base_url=process.url) as client,
    ):
        bearer = {"authorization": f"Bearer {SECRET}", "cookie": f"session={SECRET}"}
        own = {**bearer, "x-request-id": "mine", "user-agent": 'a "quoted"\\ agent'}
        await client.get(f"/some-id?view=VIEW_FULL&token={SECRET}", headers=own)
        await client.post("/", json={"prompt": SECRET}, headers=bearer)
        await client.get(f"/{stub_service.MISSING}")
        await client.get("/", headers={"host": "evil.example"})
        await client.get(f"/a/b/c?{SECRET}#{SECRET}")
    text = file.read_text()
    assert SECRET not in text
    lines = [line for line in map(json.loads, text.splitlines()) if line["path"] != "/-/ready"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/some-id", 400),
        ("POST", "/", 200),
        ("GET", "/missing", 404),
        ("GET", "/", 421),
        ("GET", "/a/b/c", 404),
    ]
    first = lines[0]
    assert (first["client"], first["protocol"], first["request_id"]) == ("127.0.0.1", "HTTP/1.1", "mine")
    assert first["user_agent"] == 'a "quoted"\\ agent'
    assert lines[1]["request_bytes"] > 0
    assert lines[1]["response_bytes"] > 0
    assert isinstance(lines[1]["duration_ms"], int)


async def test_the_access_log_may_be_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(access_log="-") as process, httpx.AsyncClient(base_url=process.url) as client:
        await client.get("/some-id")
    output, errors = capfd.readouterr()
    assert [json.loads(line)["path"] for line in errors.splitlines() if '"path"' in line][-1] == "/some-id"
    assert output == ""


async def test_without_the_setting_nothing_is_written_down(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with running() as process, httpx.AsyncClient(base_url=process.url) as client:
        await client.get("/some-id")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


async def test_a_client_beyond_its_limit_is_told_when_to_ask_again() -> None:
    async with running(max_requests_per_second=5) as process:

        def client_at(source: str) -> httpx.AsyncClient:
            return httpx.AsyncClient(
                base_url=process.url, transport=httpx.AsyncHTTPTransport(local_address=source)
            )

        async with client_at("127.0.0.1") as busy, client_at("127.0.0.2") as other:
            answers = await asyncio.gather(*(busy.get("/a") for _ in range(50)))
            refused = [answer for answer in answers if answer.status_code != 200]
            assert len(refused) >= 30
            for answer in refused:
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
                error = answer.json()
                assert set(error) == {"code", "message", "details"}
                assert error["code"] == 8
                assert error["details"] == [
                    {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"}
                ]
                assert not [name for name in answer.headers if name.startswith("x-envoy")]
            assert (await other.get("/a")).status_code == 200, "another client has tokens of its own"
            for _ in range(20):
                assert (await busy.get("/-/healthy")).status_code == 200
            async with asyncio.timeout(10):
                while (await busy.get("/a")).status_code != 200:
                    pass


async def test_without_a_limit_a_client_may_send_what_it_likes() -> None:
    async with running() as process, httpx.AsyncClient(base_url=process.url) as client:
        answers = await asyncio.gather(*(client.get("/a") for _ in range(200)))
        assert {answer.status_code for answer in answers} == {200}


async def test_a_connection_without_a_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    render = edge.render

    def rendered(**settings: Any) -> str:
        text = render(**settings)
        assert " idle_timeout: 900s" in text
        return text.replace(" idle_timeout: 900s", " idle_timeout: 0.2s")

    monkeypatch.setattr(edge, "render", rendered)
    async with running() as process:
        host, _, port = process.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_headers_beyond_their_number_are_431() -> None:
    async with running() as process, httpx.AsyncClient(base_url=process.url) as client:
        assert (await client.get("/a", headers={f"x-{n}": "" for n in range(90)})).status_code == 200
        response = await client.get("/a", headers={f"x-{n}": "" for n in range(150)})
        assert response.status_code == 431
        assert set(response.json()) == {"code", "message", "details"}


async def test_a_header_with_an_underscore_is_dropped() -> None:
    service = StubService()
    async with (
        stub_service.serving(service) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address) as process,
        httpx.AsyncClient(base_url=process.url) as client,
    ):
        await client.get("/a", headers={"x_mine": "x", "last_event_id": "3", "x-mine": "y"})
        assert not {"x_mine", "last_event_id"} & service.metadata.keys()
        assert service.metadata["x-mine"] == "y"


async def test_http_2_has_a_limit_of_streams_and_asks_whether_its_client_is_there() -> None:
    config = yaml.safe_load(edge.render(rest_address="127.0.0.1:1", grpc_address="127.0.0.1:2"))
    chain = config["static_resources"]["listeners"][0]["filter_chains"][0]
    http2 = chain["filters"][0]["typed_config"]["http2_protocol_options"]
    assert http2["max_concurrent_streams"] == 100
    assert http2["connection_keepalive"] == {"interval": "30s", "timeout": "30s"}
    async with running() as process:
        host, _, port = process.address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        head = await reader.readexactly(9)
        assert head[3] == 4, "its settings"
        settings = await reader.readexactly(int.from_bytes(head[:3], "big"))
        pairs = {
            int.from_bytes(settings[start : start + 2], "big"): int.from_bytes(
                settings[start + 2 : start + 6], "big"
            )
            for start in range(0, len(settings), 6)
        }
        assert pairs[3] == 100, "SETTINGS_MAX_CONCURRENT_STREAMS"
        writer.close()
