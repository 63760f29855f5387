"""No header of a request has the whole service do its work twice."""

import asyncio
import json
from pathlib import Path

import httpx
from support.endpoint import Endpoint
from support.process import on_endpoint, process

RETRY_EVERYTHING = {
    "x-envoy-retry-on": "5xx,reset,connect-failure,retriable-4xx,retriable-headers,retriable-status-codes",
    "x-envoy-retry-grpc-on": "cancelled,deadline-exceeded,internal,resource-exhausted,unavailable",
    "x-envoy-retriable-status-codes": "200,400,409,503,504",
    "x-envoy-retriable-header-names": "date,content-type",
    "x-envoy-max-retries": "60",
}
ATTEMPTS = [
    {},
    RETRY_EVERYTHING,
    {**RETRY_EVERYTHING, "x-envoy-upstream-rq-per-try-timeout-ms": "1"},
    {**RETRY_EVERYTHING, "x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-hedge-on-per-try-timeout": "true"},
    {
        **RETRY_EVERYTHING,
        "x-forwarded-for": "10.0.0.1",
        "x-envoy-internal": "true",
        "x-forwarded-proto": "https",
    },
    {
        **RETRY_EVERYTHING,
        "grpc-timeout": "1n",
        "te": "trailers",
        "upgrade": "websocket",
        "connection": "upgrade",
    },
]


async def curl_over_http_2(url: str, headers: dict[str, str], body: str) -> str:
    lines = [
        part for name, value in headers.items() if name != "connection" for part in ("-H", f"{name}: {value}")
    ]
    run = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--http2-prior-knowledge", url, "-d", body, *lines),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(run.communicate(), 60)
    return output.decode()


async def test_one_post_makes_one_instance_whatever_its_headers_say(tmp_path: Path) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        httpx.AsyncClient(base_url=f"http://{service.rest_address}", timeout=30) as client,
    ):
        for number, headers in enumerate(ATTEMPTS):
            for version in ("HTTP/1.1", "HTTP/2"):
                labels = {"attempt": f"{number}-{version[-1]}"}
                body = json.dumps({"prompt": "Write a haiku", "labels": labels})
                if version == "HTTP/2":
                    created = await curl_over_http_2(f"{client.base_url}", headers, body)
                else:
                    created = (await client.post("/", content=body, headers=headers)).text
                instance_id = json.loads(created)["id"]
                query = {"labels": f"attempt={labels['attempt']}"}
                listed = (await client.get("/", params=query)).json()["instances"]
                assert [each["id"] for each in listed] == [instance_id], (version, headers)
