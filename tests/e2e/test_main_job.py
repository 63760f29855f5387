"""The main job as a REST client sees it: real Envoy, real gRPC, real SQLite, real processes."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support.endpoint import Call, Endpoint, failing, hang
from support.misbehaviour import stall_amid_stream
from support.process import Process, on_endpoint, process

PROMPT = "Build a TypeScript REST API for a todo list, with tests and a Dockerfile"


async def create_instance(rest: httpx.AsyncClient, **fields: object) -> str:
    answer = await rest.post("/", json={"prompt": PROMPT, **fields})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["details"]["status"] == "queued"
    instance_id: str = body["id"]
    return instance_id


async def wait_for_end(rest: httpx.AsyncClient, instance_id: str) -> dict[str, Any]:
    answer = await rest.get(f"/{instance_id}:wait", params={"timeout": "100s"}, timeout=120)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = (await rest.get(f"/{instance_id}")).json()
    return body


def on_rest(service: Process) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False)


async def sse(rest: httpx.AsyncClient, path: str, **headers: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) of each message, until the server ends the stream."""
    found = []
    async with rest.stream("GET", path, headers=headers, timeout=60) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        message: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if not line and "data" in message:
                found.append((message.get("id", ""), message["event"], json.loads(message["data"])))
            if not line:
                message = {}
            elif not line.startswith(":"):
                name, _, value = line.partition(": ")
                message[name] = value
    return found


async def test_a_prompt_becomes_a_result_through_a_scripted_endpoint(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=5) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        on_rest(service) as rest,
    ):
        instance_id = await create_instance(rest)
        status = (await wait_for_end(rest, instance_id))["status"]
        assert status["status"] == "complete"
        output = status["output"]
        assert output["orchestratorTasks"] == [f"Part {number}" for number in range(1, 6)]
        assert output["workerResponses"] == [f"The output of t{number}." for number in range(1, 6)]
        assert output["finalResult"].startswith("# The result")
        assert len(endpoint.calls) == 7
        assert [endpoint.count(role) for role in ("planning", "work", "synthesis")] == [1, 5, 1]

        messages = await sse(rest, f"/{instance_id}/events")
        ids = [int(frame_id) for frame_id, event, _ in messages if event != "end"]
        assert ids == list(range(1, len(ids) + 1))
        assert messages[-1][1:] == ("end", {"state": "STATE_COMPLETE", "sequence": str(len(ids))})
        again = await sse(rest, f"/{instance_id}/events", **{"Last-Event-ID": "5"})
        assert again == messages[5:]
        nothing = await rest.get(f"/{instance_id}/events", headers={"Last-Event-ID": str(len(ids))})
        assert nothing.status_code == 204


async def test_a_prompt_becomes_a_result_by_the_embedded_model(tmp_path: Path) -> None:
    async with process(tmp_path, "up") as service, on_rest(service) as rest:
        instance_id = await create_instance(rest)
        messages = await sse(rest, f"/{instance_id}/events?include_deltas=true")
        body = await wait_for_end(rest, instance_id)
    status = body["status"]
    assert status["status"] == "complete", status
    written: dict[str, str] = {}
    for _, event, data in messages:
        if event == "delta" and (delta := data).get("subtaskId"):
            text = written.setdefault(delta["subtaskId"], "")
            assert int(delta["offset"]) == len(text)
            written[delta["subtaskId"]] = text + delta["text"]
    assert sorted(written.values()) == sorted(status["output"]["workerResponses"])
    assert sum(event == "delta" for _, event, _ in messages) > 5 * len(written)  # as tokens came
    tasks = status["output"]["orchestratorTasks"]
    assert 1 <= len(tasks) <= 8
    assert all(re.search(r"[a-z]{3}", task) for task in tasks)
    assert len(status["output"]["workerResponses"]) == len(tasks)
    assert all(response.strip() for response in status["output"]["workerResponses"])
    assert len(status["output"]["finalResult"]) > 100
    kinds = [event for _, event, _ in messages]
    assert kinds.count("subtask_completed") == len(tasks)
    assert kinds[-2:] == ["instance_completed", "end"]
    assert body["instance"]["config"]["bigModel"] == "llama/smollm2-135m-instruct"


async def test_a_subscriber_that_joins_during_a_call_gets_its_text_so_far(
    tmp_path: Path,
) -> None:
    async with (
        Endpoint(lambda call: stall_amid_stream if call.role == "work" else None, subtasks=1) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        on_rest(service) as rest,
    ):
        instance_id = await create_instance(rest)
        await endpoint.wait_for_calls(2)
        written = ""
        path = f"/{instance_id}/events?include_deltas=true"
        async with asyncio.timeout(20), rest.stream("GET", path, timeout=20) as answer:
            lines = answer.aiter_lines()
            while written != "half an ans":
                while await anext(lines) != "event: delta":
                    pass
                delta = json.loads((await anext(lines)).removeprefix("data: "))
                assert (delta["subtaskId"], int(delta["offset"])) == ("t1", len(written))
                written += delta["text"]
        assert endpoint.open_calls == 1


async def test_an_instance_is_steered_through_rest(tmp_path: Path) -> None:
    async with (
        Endpoint(lambda call: hang if call.role == "work" else None) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        on_rest(service) as rest,
    ):
        instance_id = await create_instance(rest)
        await endpoint.wait_for_calls(4)
        paused = await rest.post(f"/{instance_id}:pause", json={})
        assert paused.json()["instance"]["state"] == "STATE_WAITING_FOR_PAUSE"
        resumed = await rest.post(f"/{instance_id}:resume")
        assert resumed.json()["instance"]["state"] == "STATE_RUNNING"
        ended_now = await rest.post(f"/{instance_id}:terminate")
        assert ended_now.json()["instance"]["state"] == "STATE_TERMINATED"
        async with asyncio.timeout(1):
            await endpoint.disconnected.wait()
        forbidden = await rest.post(f"/{instance_id}:pause")
        assert forbidden.status_code == 400
        assert forbidden.json()["details"][0]["reason"] == "STATE_FORBIDS"


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        ('{"prompt":""}', 400, "prompt is empty"),
        ("{}", 400, "prompt is empty"),
        (json.dumps({"prompt": "x" * (300 * 1024)}), 400, "shorten it"),
        ('{"prompt": ', 400, ""),
        ('{"prompt":"x","id":"-bad"}', 400, "does not match"),
    ],
    ids=["empty", "missing", "too large", "malformed", "bad id"],
)
async def test_an_invalid_request_is_explained_in_json(
    content: str, status: int, words: str, edge: httpx.AsyncClient
) -> None:
    answer = await edge.post("/", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert {"code", "message", "details"} <= set(answer.json())
    assert answer.json()["code"] == 3
    assert words in answer.json()["message"]


@pytest.mark.parametrize(
    ("path", "status", "code"), [("/nobody", 404, 5), ("/-bad", 400, 3), ("/a/b/c", 404, 5)]
)
async def test_an_unknown_instance_is_reported_in_json(
    path: str, status: int, code: int, edge: httpx.AsyncClient
) -> None:
    answer = await edge.get(path)
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] == code
    assert answer.json()["message"]


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201
    async with (
        Endpoint() as endpoint,
        process(tmp_path_factory.mktemp("edge"), "up", **on_endpoint(endpoint.url)) as service,
        on_rest(service) as rest,
    ):
        yield rest


async def test_a_wrong_key_errs_with_the_variable_to_set_and_without_the_key(tmp_path: Path) -> None:
    def locked(_: Call) -> Any:
        return failing(401, "Incorrect API key provided: sk-a-secret-of-this-test")

    async with (
        Endpoint(locked) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        on_rest(service) as rest,
    ):
        body = await wait_for_end(rest, await create_instance(rest))
        assert body["status"]["status"] == "errored"
        assert body["status"]["error"]["name"] == "MODEL_UNAUTHENTICATED"
        assert "OPENAI_API_KEY" in body["status"]["error"]["message"]
        assert len(endpoint.calls) == 1
        assert "sk-a-secret" not in json.dumps(body)
    assert not [file for file in tmp_path.iterdir() if b"sk-a-secret" in file.read_bytes()]


async def test_an_unreachable_endpoint_is_retried_and_named(tmp_path: Path) -> None:
    variables = on_endpoint("http://127.0.0.1:9/v1")
    async with process(tmp_path, "up", **variables) as service, on_rest(service) as rest:
        retry = {"maxAttempts": 2, "initialDelay": "0.01s"}
        body = await wait_for_end(rest, await create_instance(rest, config={"retry": retry}))
    error = body["status"]["error"]
    assert error["name"] == "PLANNING_FAILED"
    assert "after 2 attempts" in error["message"]
    assert "127.0.0.1:9" in error["message"]


async def test_an_endpoint_that_answers_nonsense_is_retried_and_reported(tmp_path: Path) -> None:
    async with (
        Endpoint(lambda _: "I am a teapot.") as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        on_rest(service) as rest,
    ):
        retry = {"maxAttempts": 3, "initialDelay": "0.01s"}
        body = await wait_for_end(rest, await create_instance(rest, config={"retry": retry}))
        assert len(endpoint.calls) == 3
    assert body["status"]["error"]["name"] == "PLAN_INVALID"
    assert "not a plan" in body["status"]["error"]["message"]
