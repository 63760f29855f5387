"""What the real service refuses, as a REST client sees it: the right HTTP status, one shape, the reason."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.endpoint import Endpoint, hang
from support.process import on_endpoint, process


@pytest.fixture(scope="module")
async def rest(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    """A service that has room for one instance at work, `a`, and for one that waits."""
    few = {"ORCHESTRATOR_MAX_ACTIVE_INSTANCES": "1", "ORCHESTRATOR_MAX_QUEUED_INSTANCES": "1"}
    async with (
        Endpoint(lambda _: hang) as endpoint,
        process(tmp_path_factory.mktemp("refusals"), "up", **on_endpoint(endpoint.url), **few) as service,
        httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as client,
    ):
        await client.post("/", json={"prompt": "x", "id": "a", "requestId": "once"})
        await endpoint.wait_for_calls(1)
        yield client


def refusal(response: httpx.Response, status: int, code: int, reason: str) -> dict[str, Any]:
    """The details by their type."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()
    assert set(error) == {"code", "message", "details"}
    assert error["code"] == code
    details = {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}
    assert (details["ErrorInfo"]["reason"], details["ErrorInfo"]["domain"]) == (reason, "orchestrator")
    return details


async def test_a_conflict_with_an_existing_instance_is_409(rest: httpx.AsyncClient) -> None:
    taken = await rest.post("/", json={"prompt": "y", "id": "a"})
    refusal(taken, 409, 6, "INSTANCE_ALREADY_EXISTS")
    reused = await rest.post("/", json={"prompt": "another", "requestId": "once"})
    refusal(reused, 409, 6, "REQUEST_ID_REUSED")


async def test_an_action_that_the_state_forbids_is_400(rest: httpx.AsyncClient) -> None:
    details = refusal(await rest.post("/a:retry"), 400, 9, "STATE_FORBIDS")
    assert details["ErrorInfo"]["metadata"] == {"state": "running", "action": "retry"}


async def test_a_sequence_that_is_not_reached_yet_is_400(rest: httpx.AsyncClient) -> None:
    response = await rest.get("/a/events", headers={"Last-Event-ID": "999"})
    details = refusal(response, 400, 11, "SEQUENCE_OUT_OF_RANGE")
    assert details["ErrorInfo"]["metadata"] == {"last_sequence": "2"}


@pytest.mark.parametrize(
    ("path", "body", "reason", "field"),
    [
        ("/", {"prompt": " "}, "PROMPT_EMPTY", "prompt"),
        ("/", {"prompt": "é" * 131_073}, "PROMPT_TOO_LARGE", "prompt"),
        ("/", {"prompt": "x", "id": "a b"}, "ID_INVALID", "id"),
        ("/", {"prompt": "x", "config": {"maxSubtasks": 65}}, "CONFIG_INVALID", "config.max_subtasks"),
        ("/", {"prompt": "x", "config": {"subtasks": [{"id": "t"}]}}, "PLAN_INVALID", "config.subtasks"),
        ("/a:review", {"decision": 0}, "CONFIG_INVALID", "decision"),
    ],
)
async def test_an_invalid_value_is_400_and_named(
    rest: httpx.AsyncClient, path: str, body: dict[str, Any], reason: str, field: str
) -> None:
    details = refusal(await rest.post(path, json=body), 400, 3, reason)
    assert [fault["field"] for fault in details["BadRequest"]["fieldViolations"]] == [field]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/?pageToken=nonsense", "PAGE_TOKEN_INVALID"),
        ("/?pageSize=-1", "CONFIG_INVALID"),
        ("/a:wait?timeout=-1s", "CONFIG_INVALID"),
        ("/a%20b", "ID_INVALID"),
        ("/a%2Fb", "ID_INVALID"),
    ],
)
async def test_a_malformed_request_is_400(rest: httpx.AsyncClient, path: str, reason: str) -> None:
    refusal(await rest.get(path), 400, 3, reason)


async def test_an_unknown_field_is_dropped_as_documented(rest: httpx.AsyncClient) -> None:
    response = await rest.post("/", json={"prompt": "y", "id": "a", "nonsense": 1})
    refusal(response, 409, 6, "INSTANCE_ALREADY_EXISTS")
    refusal(await rest.post("/", json={"promt": "y"}), 400, 3, "PROMPT_EMPTY")


async def test_a_long_list_of_filters_is_accepted(rest: httpx.AsyncClient) -> None:
    labels = [f"key{number}={'x' * 250}" for number in range(64)]
    response = await rest.get("/", params={"labels": labels})
    assert response.json() == {"instances": [], "nextPageToken": ""}
    header = await rest.get("/", headers={"x-long": "x" * 50_000})
    assert header.status_code == 200, header.text


async def test_an_exhausted_resource_is_429_with_a_retry_time(rest: httpx.AsyncClient) -> None:
    await rest.post("/", json={"prompt": "x", "id": "b"})
    details = refusal(await rest.post("/", json={"prompt": "x"}), 429, 8, "QUEUE_FULL")
    assert details["RetryInfo"]["retryDelay"].endswith("s")
