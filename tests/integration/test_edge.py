"""Real Envoy with the real envoy.yaml, in front of a stub of the gRPC service."""

import asyncio
import codecs
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support import stub_service
from support.stub_service import StubService

from orchestrator import edge
from orchestrator.rpc import sizes

# grpc.aio does not bear a second event loop in one process.
pytestmark = pytest.mark.asyncio(loop_scope="session")

ANY_PORT = "127.0.0.1:0"
LOOPBACK_PAGE = "http://localhost:3000"
FOREIGN_PAGE = "https://app.example.com"
# A time in it would be another one in each process that collects the tests.
compressed = partial(gzip.compress, mtime=0)

CREATION = '{"prompt": "Grüße 🦙"}'.encode()
VERBS = ("pause", "resume", "terminate", "retry", "restart", "fork", "review")


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def service() -> StubService:
    return StubService()


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def address(service: StubService) -> AsyncIterator[str]:
    async with (
        stub_service.serving(service) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address) as process,
    ):
        yield process.address


@pytest_asyncio.fixture(loop_scope="session")
async def client(address: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(address) as http:
        yield http


def client_of(address: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{address}", timeout=20)


def assert_error(response: httpx.Response, status: int, code: int) -> dict[str, Any]:
    """Assert the shape that every failure has, of the service and of Envoy."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert_nothing_leaks(response)
    error: dict[str, Any] = response.json()
    assert set(error) == {"code", "message", "details"}
    assert error["code"] == code
    assert error["message"]
    assert isinstance(error["details"], list)
    return error


def assert_nothing_leaks(response: httpx.Response) -> None:
    assert [name for name in response.headers if name.startswith(("grpc-", "x-envoy-", "x-http-"))] == []


# What a client of the demo does


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", None])
async def test_post_creates_with_any_content_type(
    client: httpx.AsyncClient, service: StubService, content_type: str | None
) -> None:
    body = json.dumps({"prompt": "Grüße", "labels": {"a": "b"}, "config": {"maxSubtasks": 3}}).encode()
    headers = {"content-type": content_type} if content_type else {}
    response = await client.post("/", content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert_nothing_leaks(response)
    answer = response.json()
    assert (answer["id"], answer["details"], answer["instance"]["state"]) == (
        "made",
        {"status": "queued"},
        "STATE_QUEUED",
    )
    request = service.created[-1]
    assert (request.prompt, dict(request.labels), request.config.max_subtasks) == ("Grüße", {"a": "b"}, 3)


async def test_get_answers_in_the_shape_of_the_demo(client: httpx.AsyncClient) -> None:
    response = await client.get("/some-id_1")
    assert response.status_code == 200
    assert_nothing_leaks(response)
    answer = response.json()
    assert answer["status"] == {
        "status": "complete",
        "output": {"orchestratorTasks": ["one"], "workerResponses": ["eins"], "finalResult": "done"},
    }
    assert answer["instance"]["id"] == "some-id_1"
    assert answer["instance"]["lastSequence"] == "12", "int64 is a string in protobuf's JSON"
    assert answer["instance"]["subtasks"] == [], "what is empty is shown as empty"


async def test_listing_takes_repeated_and_snake_case_parameters(
    client: httpx.AsyncClient, service: StubService
) -> None:
    response = await client.get("/?labels=a%3Db&labels=c%3Dd&states=STATE_QUEUED&page_size=3&pageToken=x")
    assert response.json() == {"instances": [], "nextPageToken": ""}
    request = service.listed[-1]
    assert (list(request.labels), request.page_size, request.page_token) == (["a=b", "c=d"], 3, "x")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/a:wait?timeout=3s", None),
        ("POST", "/a:pause", None),
        ("POST", "/a:pause", {}),
        ("POST", "/-/instances:batchCreate", {"requests": [{"prompt": "x"}]}),
        ("DELETE", "/a", None),
    ],
)
async def test_verbs_reach_their_methods(
    client: httpx.AsyncClient, method: str, path: str, body: object
) -> None:
    response = await client.request(method, path, json=body)
    assert response.status_code == 200, response.text
    assert_nothing_leaks(response)


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (compressed(CREATION), {"content-encoding": "gzip"}),
        (compressed(CREATION), {"content-encoding": "GZip"}),
        (compressed(CREATION), {"content-encoding": "x-gzip"}),
        (compressed(CREATION), {"content-encoding": "X-GZip"}),
        (compressed(b" " * 5000 + CREATION), {"content-encoding": "gzip"}),
        (CREATION, {"content-encoding": "identity"}),
        (CREATION, {"content-encoding": ""}),
        (codecs.BOM_UTF8 + CREATION, {}),
        (compressed(codecs.BOM_UTF8 + CREATION), {"content-encoding": "gzip"}),
        (b" \r\n\t" + CREATION + b"\n", {}),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_may_be_compressed_and_begin_with_a_byte_order_mark(
    client: httpx.AsyncClient, service: StubService, content: bytes, headers: dict[str, str], *, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 7):
            yield content[start : start + 7]

    response = await client.post("/", content=pieces() if chunked else content, headers=headers)
    assert response.status_code == 200, response.text
    assert service.created[-1].prompt == "Grüße 🦙"


async def test_a_large_well_compressed_body_is_accepted(
    client: httpx.AsyncClient,
) -> None:
    requests = [{"id": f"i{n}", "prompt": "x" * 256 * 1024} for n in range(100)]
    content = compressed(json.dumps({"requests": requests}).encode())
    response = await client.post(
        "/-/instances:batchCreate", content=content, headers={"content-encoding": "gzip"}
    )
    assert len(response.json()["instances"]) == 100


WHOLE = compressed(CREATION)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(WHOLE[:-8], id="no trailer"),
        pytest.param(WHOLE[:-4], id="no size"),
        pytest.param(WHOLE[:-1], id="one byte short"),
        pytest.param(WHOLE[:-12], id="the data cut"),
        pytest.param(WHOLE[:-8] + b"\0\0\0\0" + WHOLE[-4:], id="another CRC"),
        pytest.param(WHOLE[:-4] + b"\0\0\0\0", id="another size"),
        pytest.param(WHOLE + b"junk", id="junk behind"),
        pytest.param(WHOLE + bytes(512), id="padding behind"),
        pytest.param(WHOLE + compressed(b" "), id="a second member"),
        pytest.param(compressed(CREATION[:12]) + compressed(CREATION[12:]), id="two halves"),
    ],
)
@pytest.mark.parametrize("coding", ["gzip", "x-gzip"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_in_damaged_gzip_or_in_several_members_is_rejected(
    client: httpx.AsyncClient, service: StubService, content: bytes, coding: str, *, chunked: bool
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in content:
            yield bytes([byte])

    before = len(service.created)
    response = await client.post(
        "/", content=pieces() if chunked else content, headers={"content-encoding": coding}
    )
    assert "damaged, or in more than one member" in assert_error(response, 400, 3)["message"]
    assert len(service.created) == before


@pytest.mark.parametrize(
    "content",
    [b"{", b'{"prompt": "x', b'{"prompt": "x\\"}', b'{"labels": {"a": "}"}', b"  ", b"tru", b'"x', b"1"],
)
async def test_a_compressed_body_that_ends_before_its_json_is_rejected_at_once(
    client: httpx.AsyncClient, content: bytes
) -> None:
    response = await client.post(
        "/", content=compressed(content), headers={"content-encoding": "gzip"}, timeout=5
    )
    assert "ends before its JSON" in assert_error(response, 400, 3)["message"]


async def test_a_compressed_body_may_contain_brackets_and_quotes_in_its_texts(
    client: httpx.AsyncClient, service: StubService
) -> None:
    prompt = 'an open "{[ and a closed ]} \\" and \\'
    content = compressed(json.dumps({"prompt": prompt}).encode())
    response = await client.post("/", content=content, headers={"content-encoding": "gzip"})
    assert response.status_code == 200, response.text
    assert service.created[-1].prompt == prompt


async def test_a_body_that_inflates_to_over_64_mib_is_413(
    client: httpx.AsyncClient, service: StubService
) -> None:
    before = len(service.created)
    bomb = compressed(b'{"prompt": "' + b"x" * 500 * 1024 * 1024)
    response = await client.post("/", content=bomb, headers={"content-encoding": "gzip"})
    assert "64 MiB" in assert_error(response, 413, 3)["message"]
    assert len(service.created) == before


async def test_a_large_result_is_returned(client: httpx.AsyncClient) -> None:
    answer = (await client.get(f"/{stub_service.LARGE}")).json()
    assert len(answer["instance"]["finalResult"]) == 8 * 1024 * 1024


async def test_a_batch_of_the_largest_prompts_is_accepted(client: httpx.AsyncClient) -> None:
    requests = [{"id": f"i{n}", "prompt": "x" * 256 * 1024} for n in range(100)]
    response = await client.post("/-/instances:batchCreate", json={"requests": requests})
    assert [each["id"] for each in response.json()["instances"]] == [f"i{n}" for n in range(100)]


async def test_the_request_id_reaches_the_service_and_is_returned(
    client: httpx.AsyncClient, service: StubService
) -> None:
    response = await client.get("/a", headers={"x-request-id": "mine"})
    assert service.metadata["x-request-id"] == response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    "accept", ["*/*", "text/markdown", "text/html,application/xhtml+xml", "application/json"]
)
async def test_the_result_is_returned_as_markdown_alone(client: httpx.AsyncClient, accept: str) -> None:
    response = await client.get("/a/result", headers={"accept": accept})
    assert response.status_code == 200
    assert response.content == stub_service.RESULT.encode()
    assert response.headers["content-type"] == "text/markdown; charset=utf-8"
    assert response.headers.get_list("x-content-type-options") == ["nosniff"]
    assert_nothing_leaks(response)
    large = await client.get(f"/{stub_service.LARGE}/result", headers={"accept": accept})
    assert len(large.content) == 8 * 1024 * 1024
    assert_error(await client.get(f"/{stub_service.MISSING}/result", headers={"accept": accept}), 404, 5)


async def test_the_service_describes_itself(client: httpx.AsyncClient) -> None:
    response = await client.get("/-/info")
    assert response.json()["version"] == "1.2.3"
    assert response.json()["workers"] == []


@pytest.mark.parametrize("said", [None, "1", "lots"])
async def test_rest_overrides_the_message_limit_of_a_client_with_64_mib(
    client: httpx.AsyncClient, service: StubService, said: str | None
) -> None:
    headers = {"max-response-bytes": said} if said else {}
    assert (await client.get("/a", headers=headers)).status_code == 200
    assert service.metadata["max-response-bytes"] == str(sizes.LIMIT_BYTES)


# Errors


async def test_the_services_errors_keep_their_details(client: httpx.AsyncClient) -> None:
    error = assert_error(await client.post("/", json={"prompt": ""}), 400, 3)
    assert error["message"] == "the prompt is empty: «say» what to do"
    assert [each["@type"].rpartition(".")[2] for each in error["details"]] == ["ErrorInfo", "BadRequest"]
    assert error["details"][0]["reason"] == "PROMPT_EMPTY"
    assert error["details"][1]["fieldViolations"][0]["field"] == "prompt"


async def test_an_error_without_details_has_the_same_shape(client: httpx.AsyncClient) -> None:
    error = assert_error(await client.get(f"/{stub_service.MISSING}"), 404, 5)
    assert error == {"code": 5, "message": "no instance 'missing'", "details": []}


async def test_a_post_without_a_body_is_passed_to_the_service(client: httpx.AsyncClient) -> None:
    assert assert_error(await client.post("/"), 400, 3)["details"][0]["reason"] == "PROMPT_EMPTY"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "said"),
    [
        ("POST", "/", b'{"prompt": ', 400, 3, "Unexpected end"),
        ("POST", "/", b"prompt=x", 400, 3, "prompt=x"),
        ("POST", "/", b'{"prompt": 1}', 400, 3, "prompt"),
        ("POST", "/", b'{"config": {"maxSubtasks": "many"}}', 400, 3, "many"),
        ("GET", "/a?viev=VIEW_FULL", None, 400, 3, "viev"),
        ("GET", "/a?view=ALL", None, 400, 3, "view"),
        ("GET", "/a:wait?timeout=soon", None, 400, 3, "timeout"),
        ("GET", "/a/b/c", None, 404, 5, "/a/b/c"),
        ("GET", "/-/nothing", None, 404, 5, "/-/nothing"),
        ("POST", "/a:fly", b"{}", 404, 5, "/a:fly"),
        ("GET", "/favicon.ico", None, 404, 5, "no such path"),
        ("GET", "/robots.txt", None, 404, 5, "no such path"),
        ("POST", "/orchestrator.v1.Orchestrator/CreateInstance", b"{}", 404, 5, "no such path"),
    ],
)
async def test_envoys_own_errors_have_the_same_shape(
    client: httpx.AsyncClient, method: str, path: str, body: bytes | None, status: int, code: int, said: str
) -> None:
    error = assert_error(await client.request(method, path, content=body), status, code)
    assert said in error["message"]
    assert error["details"] == []


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (compressed(CREATION), {}, 400, "gzip"),
        (CREATION, {"content-encoding": "gzip"}, 400, "not in gzip"),
        (compressed(compressed(CREATION)), {"content-encoding": "gzip"}, 400, "once"),
        (compressed(compressed(CREATION)), {"content-encoding": "gzip, gzip"}, 415, "once"),
        (zlib.compress(CREATION), {"content-encoding": "deflate"}, 415, "deflate"),
        (b"\x0b\x07\x80", {"content-encoding": "br"}, 415, "br"),
        (b"(\xb5/\xfd", {"content-encoding": "zstd"}, 415, "zstd"),
        (CREATION.decode().encode("utf-16"), {}, 400, "UTF-8"),
        (CREATION.decode().encode("utf-16-le"), {}, 400, "UTF-8"),
        (CREATION.decode().encode("utf-16-be"), {}, 400, "UTF-8"),
        (CREATION.decode().encode("utf-32"), {}, 400, "UTF-8"),
        ('{"prompt": "Grüße"}'.encode("latin-1"), {}, 400, "UTF-8"),
        ('{"prompt": "Grü'.encode("latin-1"), {}, 400, "UTF-8"),
        (b'{"prompt": "\xc0\x80"}', {}, 400, "UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", {}, 400, "UTF-8"),
        (b"\0", {}, 400, "UTF-8"),
        (b"\x1b[31m{", {}, 400, "[31m{"),
        (b'{"prompt": "\\ud83d"}', {}, 400, "surrogate"),
        (b'{"prompt": "\\u001b", \\u001b}', {}, 400, "\\u001b"),
        (b'{"config": {"maxSubtasks": "\x01\x02"}}', {}, 400, "max_subtasks"),
    ],
)
async def test_a_body_that_is_not_utf_8_json_is_rejected_without_quoting_its_bytes(
    client: httpx.AsyncClient, content: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    message = assert_error(await client.post("/", content=content, headers=headers), status, 3)["message"]
    assert said in message
    assert message.isascii()
    assert message.replace("\n", "").isprintable()


async def test_parameters_that_are_not_text_are_rejected_without_quoting_their_bytes(
    client: httpx.AsyncClient,
) -> None:
    for path in ("/a?view=%e2%82", "/a?view=%00%1b", "/a:wait?timeout=%ff", "/a?%ff=1"):
        message = assert_error(await client.get(path), 400, 3)["message"]
        assert message.isascii(), path
        assert message.isprintable(), path


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/", {"GET", "POST"}),
        ("/a", {"GET", "DELETE"}),
        ("/a?view=VIEW_FULL", {"GET", "DELETE"}),
        ("/a/events", {"GET"}),
        ("/-/events", {"GET"}),
        ("/a/result", {"GET"}),
        ("/a/result?x=y", {"GET"}),
        ("/-/info", {"GET"}),
        ("/-/metrics", {"GET"}),
        ("/-/openapi.json", {"GET"}),
        ("/a:wait", {"GET"}),
        ("/-/instances:batchCreate", {"POST"}),
        *((f"/a:{verb}", {"POST"}) for verb in VERBS),
    ],
)
async def test_another_method_is_405_with_the_allowed_ones(
    client: httpx.AsyncClient, path: str, methods: set[str]
) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - methods:
        response = await client.request(method, path)
        assert method in assert_error(response, 405, 12)["message"]
        assert set(response.headers["allow"].split(", ")) == methods


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/?pageSize=1", "/a", "/a?view=VIEW_FULL", f"/{stub_service.MISSING}"),
        *("/a/result", f"/{stub_service.MISSING}/result", f"/{stub_service.LARGE}/result", "/-/info"),
        "/-/metrics",
        *(f"/{stub_service.LARGE}", "/-/healthy", "/-/ready", "/-/ui/", "/-/ui/app.js", "/-/openapi.json"),
    ],
)
async def test_head_is_get_without_its_body(address: str, client: httpx.AsyncClient, path: str) -> None:
    got = await client.get(path)
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for request in (f"HEAD {path}", "GET /-/healthy"):
        writer.write(f"{request} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    said = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    assert said[0].split()[1] == str(got.status_code)
    for name in ("content-length", "content-type"):
        assert f"{name}: {got.headers[name]}" in said
    assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n", "the next answer, and no body"
    writer.close()


async def test_head_of_an_endless_response_is_rejected(client: httpx.AsyncClient) -> None:
    for path in ("/a/events", "/-/events", "/a:wait"):
        answer = await client.head(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"it's!odd": "x"}, {}),  # legal in HTTP, not in gRPC
        ({"x-some-bin": "no base64!"}, {}),
        ({"x-name": b"Jos\xc3\xa9"}, {"x-name": "Jos??"}),
        ({"last-event-id": b"\xff"}, {"last-event-id": "?"}),
        ({"content-type": "application/grpc"}, {}),
        ({"te": "gzip"}, {}),
    ],
)
async def test_headers_that_grpc_cannot_carry_are_dropped_without_an_error(
    client: httpx.AsyncClient, service: StubService, headers: dict[str, str | bytes], passes: dict[str, str]
) -> None:
    response = await client.get("/a", headers=headers)
    assert response.status_code == 200, response.text
    assert passes.items() <= service.metadata.items()
    assert not {"it's!odd", "x-some-bin"} & service.metadata.keys()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/a?id=b"),
        ("HEAD", "/a?id=b"),
        ("DELETE", "/a?id=b"),
        ("DELETE", "/a?%69%64=b"),
        ("DELETE", "/a?view=VIEW_FULL&id"),
        ("GET", "/a/result?id=b"),
        ("GET", "/a/events?id=b"),
        ("GET", "/a:wait?timeout=1s&id=b"),
        ("POST", "/a:pause?id=b"),
    ],
)
async def test_no_query_overrides_the_instance_of_the_path(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    response = await client.request(method, path)
    assert response.status_code == 400
    if method != "HEAD":
        assert "in the path" in assert_error(response, 400, 3)["message"]


async def test_no_body_overrides_the_instance_of_the_path(client: httpx.AsyncClient) -> None:
    assert_error(await client.post("/a:pause", json={"id": "b"}), 400, 3)
    assert (await client.post("/a:pause", json={"id": "a"})).status_code == 200


async def test_labels_that_contain_id_are_not_a_parameter_named_id(client: httpx.AsyncClient) -> None:
    assert (await client.get("/?labels=id%3Db&labels=x=id")).status_code == 200


RETRIES = {"x-envoy-retry-on": "5xx,reset,gateway-error,retriable-4xx", "x-envoy-max-retries": "60"}
"""With these a client had one request tried 61 times."""
COMMANDS: list[dict[str, str]] = [
    RETRIES,
    {**RETRIES, "x-envoy-upstream-rq-per-try-timeout-ms": "20"},
    {**RETRIES, "x-envoy-upstream-rq-per-try-timeout-ms": "20", "x-envoy-hedge-on-per-try-timeout": "true"},
    {"x-envoy-retry-grpc-on": "unavailable,cancelled,internal,deadline-exceeded", "x-envoy-max-retries": "9"},
    {**RETRIES, "x-envoy-retry-on": "retriable-status-codes", "x-envoy-retriable-status-codes": "200,503"},
    {**RETRIES, "x-envoy-retry-on": "retriable-headers", "x-envoy-retriable-header-names": "date"},
    {**RETRIES, "x-envoy-internal": "true", "x-forwarded-for": "127.0.0.1, 10.0.0.1"},
    {"X-Envoy-Upstream-Rq-Timeout-Ms": "20"},
    {"x-envoy-upstream-rq-timeout-ms": "20", "x-envoy-upstream-rq-timeout-alt-response": "1"},
    {"x-envoy-upstream-stream-duration-ms": "20"},
    {"x-envoy-expected-rq-timeout-ms": "20", "x-envoy-is-timeout-retry": "true"},
    {"x-envoy-original-path": "/a:terminate", "x-envoy-original-host": "evil.example"},
    {"x-envoy-attempt-count": "7", "x-envoy-decorator-operation": "x", "x-envoy-force-trace": "true"},
    {"x-envoy-overloaded": "true", "x-envoy-immediate-health-check-fail": "true"},
    *(
        {"grpc-timeout": value}
        for value in ("0S", "1n", "1m", "20m", "99999999H", "999999999S", "-1S", "soon", "1", "")
    ),
    {"grpc-encoding": "gzip"},
    {"grpc-encoding": "nonsense"},
    {"grpc-accept-encoding": "gzip,deflate"},
    {"grpc-status": "14", "grpc-message": "x", "grpc-previous-rpc-attempts": "3"},
    {"x-forwarded-proto": "https", "x-forwarded-host": "evil.example", "x-forwarded-port": "1"},
    {"x-forwarded-client-cert": "Hash=1;Subject=admin", "forwarded": "for=1.2.3.4;host=evil.example"},
    *({"te": value} for value in ("trailers", "gzip", "trailers, deflate;q=0.5", "")),
    *(
        {"upgrade": value, "connection": "upgrade"}
        for value in ("websocket", "h2c", "connect-udp", "TLS/1.3", "")
    ),
    {"upgrade": "h2c", "connection": "Upgrade, HTTP2-Settings", "http2-settings": "AAMAAABkAAQAAP__"},
    {"expect": "100-continue"},
]


@pytest.mark.parametrize("commands", COMMANDS, ids=str)
async def test_no_header_decides_how_a_request_is_retried_timed_out_or_routed(
    client: httpx.AsyncClient, service: StubService, commands: dict[str, str]
) -> None:
    for instance_id, status in (("a", 200), (stub_service.LATE, 200), (stub_service.FAILING, 503)):
        before = len(service.created)
        response = await client.post("/", json={"prompt": "x", "id": instance_id}, headers=commands)
        assert response.status_code == status, response.text
        assert_nothing_leaks(response)
        if status == 200:
            assert response.json()["id"] == instance_id
        else:
            assert assert_error(response, 503, 14)["message"] == "it stops"
        assert len(service.created) - before == 1
    said = {name for name in commands if name.lower() not in {"connection", "expect", "upgrade", "te"}}
    told = {name: service.metadata[name] for name in said & service.metadata.keys()}
    assert not told.items() & commands.items(), "the service is not told either"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_64_mib_is_413(
    client: httpx.AsyncClient, service: StubService, *, chunked: bool
) -> None:
    piece = b"x" * 1024 * 1024

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(65):
            yield piece

    before = len(service.created)
    content = pieces() if chunked else b'{"prompt": "' + piece * 65
    error = assert_error(await client.post("/", content=content), 413, 3)
    assert "64 MiB" in error["message"]
    assert len(service.created) == before


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"GARBAGE\r\n\r\n", 400, 3),
        (b"GET / HTTP/1.1\r\n\r\n", 400, 3),
        (b"GET /%ff%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, 3),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: odd\r\n\r\n", 501, 12),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nLong: " + b"x" * 100_000 + b"\r\n\r\n", 431, 3),
    ],
)
async def test_malformed_http_is_answered_in_json(address: str, raw: bytes, status: int, code: int) -> None:
    assert await answered(address, raw) == (status, code)


async def answered(address: str, raw: bytes) -> tuple[int, int]:
    """Send bytes; give the status and the code of the error that comes back."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(raw)
    head, _, body = (await reader.read(4096)).partition(b"\r\n\r\n")
    writer.close()
    error = json.loads(body)
    assert set(error) == {"code", "message", "details"}
    assert error["message"]
    return int(head.split()[1]), error["code"]


async def test_http_1_0_is_answered_with_and_without_a_host(address: str, service: StubService) -> None:
    async def answer_to(*lines: str, content: bytes = b"") -> tuple[str, bytes]:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")  # it closes after the answer
        writer.close()
        return head.decode().splitlines()[0], body

    assert await answer_to("GET / HTTP/1.0") == ("HTTP/1.0 200 OK", b'{"instances":[],"nextPageToken":""}')
    line, body = await answer_to("GET /a HTTP/1.0", f"Host: {address}")
    assert (line, json.loads(body)["instance"]["id"]) == ("HTTP/1.0 200 OK", "a")
    size = f"Content-Length: {len(CREATION)}"
    line, _ = await answer_to("POST / HTTP/1.0", size, content=CREATION)
    assert (line, service.created[-1].prompt) == ("HTTP/1.0 200 OK", "Grüße 🦙")
    line, body = await answer_to("GET /a/events HTTP/1.0")
    assert line == "HTTP/1.0 200 OK"
    assert body.startswith(b": ok\n\nid: 1\nevent: instance_created\n")
    line, body = await answer_to(f"GET /{stub_service.MISSING} HTTP/1.0")
    assert (line, json.loads(body)["code"]) == ("HTTP/1.0 404 Not Found", 5)


async def test_without_a_service_requests_are_503_and_readiness_fails() -> None:
    async with stub_service.serving(StubService()) as grpc_address:
        running = edge.running(rest_address=ANY_PORT, grpc_address=grpc_address)
        process = await running.__aenter__()
    try:
        async with client_of(process.address) as client:
            for request in (client.post("/", json={"prompt": "x"}), client.get("/a/events")):
                error = assert_error(await request, 503, 14)
                assert "cannot be reached" in error["message"]
            async with asyncio.timeout(10):
                while (response := await client.get("/-/ready")).status_code == 200:
                    pass  # Envoy asks the service every second
            assert_error(response, 503, 14)
            assert (await client.get("/-/healthy")).status_code == 200
    finally:
        await running.__aexit__(None, None, None)


@asynccontextmanager
async def impatient(monkeypatch: pytest.MonkeyPatch, setting: str) -> AsyncIterator[str]:
    """Run an edge that waits for 0.2 s where `envoy.yaml` has 60 s; give its address."""
    render = edge.render

    def rendered(**settings: Any) -> str:
        text = render(**settings)
        assert f" {setting}: 60s" in text
        return text.replace(f" {setting}: 60s", f" {setting}: 0.2s")

    monkeypatch.setattr(edge, "render", rendered)
    async with (
        stub_service.serving(StubService()) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address) as process,
    ):
        yield process.address


async def test_an_answer_that_takes_too_long_is_504(monkeypatch: pytest.MonkeyPatch) -> None:
    async with impatient(monkeypatch, "timeout") as address, client_of(address) as client:
        assert "too long" in assert_error(await client.get(f"/{stub_service.SLOW}"), 504, 4)["message"]


async def test_a_request_that_arrives_too_slowly_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    async with impatient(monkeypatch, "request_timeout") as address:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
        assert await answered(address, head) == (408, 4)


# Streams


@pytest.mark.parametrize(("path", "instance_id"), [("/a/events", "a"), ("/-/events", "")])
async def test_server_sent_events_are_passed_through_byte_by_byte(
    client: httpx.AsyncClient, service: StubService, path: str, instance_id: str
) -> None:
    response = await client.get(path, params={"afterSequence": "3"})
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert_nothing_leaks(response)
    assert response.content == (
        b": ok\n\nid: 1\nevent: instance_created\ndata: {}\n\nid: 2\nevent: instance_completed\ndata: {}\n\n"
    )
    assert (service.streams[-1].id, service.streams[-1].after_sequence) == (instance_id, 3)


async def test_the_last_event_id_becomes_metadata(client: httpx.AsyncClient, service: StubService) -> None:
    await client.get("/a/events", headers={"Last-Event-ID": "41"})
    assert service.metadata["last-event-id"] == "41"


async def test_the_service_can_answer_204(client: httpx.AsyncClient) -> None:
    response = await client.get(f"/{stub_service.FINISHED}/events")
    assert (response.status_code, response.content) == (204, b"")
    assert_nothing_leaks(response)


async def test_a_stream_of_an_unknown_instance_is_404(client: httpx.AsyncClient) -> None:
    assert_error(await client.get(f"/{stub_service.MISSING}/events"), 404, 5)


async def test_a_quiet_stream_sends_its_headers_at_once_and_ends_when_its_reader_disconnects(
    client: httpx.AsyncClient, service: StubService
) -> None:
    service.stream_closed.clear()
    async with client.stream("GET", f"/{stub_service.QUIET}/events") as response:
        assert await anext(response.aiter_bytes()) == b": ok\n\n"
        assert not service.stream_closed.is_set()
    async with asyncio.timeout(10):
        await service.stream_closed.wait()


async def test_stalled_readers_do_not_block_the_others(
    address: str, client: httpx.AsyncClient, service: StubService
) -> None:
    host, _, port = address.partition(":")
    stalled = []
    try:
        for _ in range(40):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
            writer.write(f"GET /{stub_service.FLOOD}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            stalled.append((reader, writer))  # reading is paused once 2 KiB wait
        async with asyncio.timeout(60):
            while await _floods(service):
                pass
        assert (await client.get("/a", timeout=5)).status_code == 200
        assert (await client.get("/a/events", timeout=5)).status_code == 200
    finally:
        for _, writer in stalled:
            writer.transport.abort()


async def _floods(service: StubService) -> bool:
    """Tell whether any stream still moves: within half a second one would say something."""
    service.flooded.clear()
    try:
        async with asyncio.timeout(0.5):
            await service.flooded.wait()
    except TimeoutError:
        return False
    return True


# Browsers


@pytest.mark.parametrize(("path", "method"), [("/", "POST"), ("/a:pause", "POST"), ("/a", "DELETE")])
async def test_a_preflight_from_this_machine_is_accepted(
    client: httpx.AsyncClient, path: str, method: str
) -> None:
    response = await client.options(
        path,
        headers={
            "origin": LOOPBACK_PAGE,
            "access-control-request-method": method,
            "access-control-request-headers": "content-type",
        },
    )
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == LOOPBACK_PAGE
    assert method in response.headers["access-control-allow-methods"]
    assert "content-type" in response.headers["access-control-allow-headers"]


async def test_a_page_of_this_machine_may_read_answers(client: httpx.AsyncClient) -> None:
    for path in ("/a", f"/{stub_service.MISSING}", "/a/result", "/a/events", "/-/info", "/-/openapi.json"):
        response = await client.get(path, headers={"origin": LOOPBACK_PAGE})
        assert response.headers.get_list("access-control-allow-origin") == [LOOPBACK_PAGE]


@pytest.mark.parametrize(
    "origin", [FOREIGN_PAGE, "null", "http://localhost.example.com", "http://127.0.0.1.example.com"]
)
async def test_a_page_of_another_origin_can_neither_read_nor_change_anything(
    client: httpx.AsyncClient, service: StubService, origin: str
) -> None:
    for path in ("/a", "/-/openapi.json"):
        answer = await client.get(path, headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers
    before = len(service.created)
    # What a form of that page sends without asking first.
    posted = await client.post(
        "/", content=b'{"prompt": "x"}', headers={"origin": origin, "content-type": "text/plain"}
    )
    assert "origin" in assert_error(posted, 403, 7)["message"]
    preflight = {"origin": origin, "access-control-request-method": "DELETE"}
    assert_error(await client.options("/a", headers=preflight), 403, 7)
    assert len(service.created) == before


EVERY_PATH = (
    *(("GET", path) for path in ("/", "/a", "/a/result", "/a:wait", "/a/events", "/-/events", "/-/info")),
    *(
        ("GET", path)
        for path in ("/-/ui/", "/-/ui", "/-/ui/app.js", "/-/openapi.json", "/-/healthy", "/-/ready")
    ),
    *(("GET", path) for path in ("/favicon.ico", "/a/b/c")),
    *(("POST", path) for path in ("/", "/a:terminate", "/-/instances:batchCreate")),
    ("DELETE", "/a"),
    ("HEAD", "/a"),
    ("OPTIONS", "/a"),
    ("PUT", "/a"),
)


@pytest.mark.parametrize(("method", "path"), EVERY_PATH)
async def test_a_page_cannot_reach_this_machine_under_a_host_name_of_its_own(
    client: httpx.AsyncClient, service: StubService, method: str, path: str
) -> None:
    service.metadata = {}
    own_page = {"host": "evil.example:8787", "origin": "http://evil.example:8787"}
    for headers in ({"host": "evil.example"}, own_page, {**own_page, "accept": "text/html"}):
        response = await client.request(method, path, headers=headers)
        if method == "HEAD":
            assert response.status_code == 421
        else:
            assert "evil.example" in assert_error(response, 421, 7)["message"]
    assert service.metadata == {}, "nothing reaches the service"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8787", "127.0.0.1:1", "localhost", "localhost:3000", "LocalHost:80"),
        *("localhost.", "localhost.:80", "[::1]", "[::1]:8787", "127.0.0.2", "127.255.255.254:9"),
    ],
)
async def test_this_machines_own_host_names_are_accepted(client: httpx.AsyncClient, host: str) -> None:
    for path in ("/a", "/-/healthy", "/-/ui/", "/-/info"):
        assert (await client.get(path, headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("localhost.evil.example", "127.0.0.1.evil.example", "evil.example:127.0.0.1", "evil-localhost"),
        *("mylocalhost", "localhost.localdomain", "127.0.0.1@evil.example", "127.0.0.1.nip.io"),
        *(
            "0.0.0.0",
            "192.168.0.7",
            "1127.0.0.1",
            "127.1",
            "2130706433",
            "[::]",
            "[::2]",
            "::1",
            "a,localhost",
        ),
        *("evil.example#localhost", "evil.example?localhost", "xn--lcalhost-0fg"),
    ],
)
async def test_other_host_names_are_rejected(address: str, host: str) -> None:
    status, code = await answered(address, f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert (status, code) in {(421, 7), (400, 3)}, "400 of what is no name at all"


async def test_the_host_in_the_request_line_takes_precedence(address: str) -> None:
    line = b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert await answered(address, line) == (421, 7)
    assert await answered(address, b"GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n") == (421, 7)
    assert await answered(address, b"GET / HTTP/1.1\r\nHost:\r\n\r\n") == (421, 7)


async def test_configured_hosts_are_accepted(service: StubService) -> None:
    async with (
        stub_service.serving(service) as grpc_address,
        edge.running(
            rest_address=ANY_PORT, grpc_address=grpc_address, hosts=("app.example.com", "[2001:db8::7]")
        ) as process,
        client_of(process.address) as client,
    ):
        for host in ("app.example.com", "App.Example.com:443", "[2001:db8::7]:80", "localhost"):
            assert (await client.get("/a", headers={"host": host})).status_code == 200
        for host in ("example.com", "x.app.example.com", "appXexample.com"):
            assert_error(await client.get("/a", headers={"host": host}), 421, 7)


async def test_a_redirect_names_no_host(client: httpx.AsyncClient) -> None:
    for path, status in (("/", 303), ("/-/ui", 301)):
        response = await client.get(path, headers={"accept": "text/html"})
        assert (response.status_code, response.headers["location"]) == (status, "/-/ui/")


async def test_pages_of_the_configured_origins_may_call() -> None:
    origins = (FOREIGN_PAGE, "http://192.168.0.7:3000")
    async with (
        stub_service.serving(StubService()) as grpc_address,
        edge.running(rest_address=ANY_PORT, grpc_address=grpc_address, origins=origins) as process,
        client_of(process.address) as client,
    ):
        for origin in (*origins, LOOPBACK_PAGE):
            posted = await client.post("/", json={"prompt": "x"}, headers={"origin": origin})
            assert posted.status_code == 200
            assert posted.headers["access-control-allow-origin"] == origin
            described = await client.get("/-/openapi.json", headers={"origin": origin})
            assert described.headers["access-control-allow-origin"] == origin
            assert described.headers["vary"] == "origin"
        for origin in ("https://appXexample.com", "https://app.example.com.evil.test", "http://192.168.0.7"):
            assert_error(await client.post("/", headers={"origin": origin}), 403, 7)


# Health and the description


@pytest.mark.parametrize("path", ["/-/healthy", "/-/ready"])
async def test_health_is_json(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code == 200
    assert response.json() == {"status": path.removeprefix("/-/")}
    assert_nothing_leaks(response)


async def test_the_description_is_served_as_built(client: httpx.AsyncClient) -> None:
    response = await client.get("/-/openapi.json")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.content == Path(edge.__file__).with_name("v1").joinpath("openapi.json").read_bytes()
    assert response.json()["openapi"].startswith("3.1.")
    head = await client.head("/-/openapi.json")
    assert (head.status_code, head.headers["content-length"]) == (200, response.headers["content-length"])
