"""Third-party clients: of the demo, of SSE and of gRPC."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse
from support.endpoint import Answer, Call, Endpoint, hang
from support.process import Process, on_endpoint, process

from orchestrator.v1 import event_pb2

ROOT = Path(__file__).parents[2]
NODE = ROOT / "tests/node"
BUF = Path(sys.executable).with_name("buf")
PAYLOADS = [field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Process]:
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as running,
    ):
        yield running


async def output_of(*command: str | Path) -> str:
    """What a command prints; it must succeed."""
    run = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(run.communicate(), 60)
    assert run.returncode == 0, errors.decode()
    return output.decode()


async def create_instance(service: Process, **fields: object) -> str:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(f"http://{service.rest_address}/", json={"prompt": "Build it", **fields})
    assert answer.status_code == 200, answer.text
    instance_id: str = answer.json()["id"]
    return instance_id


def sequences(events: list[ServerSentEvent]) -> list[int]:
    return [int(event.id) for event in events if event.event in PAYLOADS]


async def test_a_client_of_the_demo_works_unchanged(service: Process) -> None:
    output = json.loads(
        await output_of("node", NODE / "demo.js", f"http://{service.rest_address}/", "Build it")
    )
    assert output["id"]
    assert output["seen"][0] == "queued"
    assert output["seen"][-1] == "complete"
    assert output["output"] == {
        "orchestratorTasks": ["Part 1", "Part 2"],
        "workerResponses": ["The output of t1.", "The output of t2."],
        "finalResult": "# The result\n\nAll parts, put together.",
    }


async def test_answers_have_the_exact_shape_of_the_demos(service: Process) -> None:
    page = {"origin": "http://localhost:5173"}
    async with httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False) as http:
        posted = await http.post("/", json={"prompt": "Build it"}, headers=page)
        body = posted.json()
        assert {"id": body["id"], "details": {"status": "queued"}}.items() <= body.items()
        await http.get(f"/{body['id']}:wait")
        shown = await http.get(f"/{body['id']}", headers=page)
        assert set(shown.json()["status"]) == {"status", "output"}
        for answer in (posted, shown):
            assert answer.headers["access-control-allow-origin"] == page["origin"]


async def test_a_python_client_resumes_with_the_last_event_id(service: Process) -> None:
    instance_id = await create_instance(service)
    url = f"http://{service.rest_address}/{instance_id}/events"
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        async with aconnect_sse(http, "GET", url) as source:
            events = [event async for event in source.aiter_sse()]
        async with aconnect_sse(http, "GET", url, headers={"Last-Event-ID": events[3].id}) as source:
            rest = [event async for event in source.aiter_sse()]
    assert sequences(events) == list(range(1, len(events)))
    assert events[-1].event == "end"
    assert [event.data for event in rest] == [event.data for event in events[4:]]


async def test_a_python_client_reads_all_instances_by_position(service: Process) -> None:
    first, second = await create_instance(service), await create_instance(service)
    url = f"http://{service.rest_address}/-/events"
    done = set()
    positions = []
    async with (
        httpx.AsyncClient(trust_env=False, timeout=30) as http,
        aconnect_sse(http, "GET", url) as source,
    ):
        async for event in source.aiter_sse():
            positions.append(int(event.id))
            if event.event == "instance_completed":
                done.add(event.json()["instanceId"])
            if done == {first, second}:
                break
    assert positions == sorted(set(positions))


async def test_curl_shows_events_as_they_happen(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        return hang if call.role == "work" else None

    async with (
        Endpoint(script, subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
    ):
        instance_id = await create_instance(service)
        curl = await asyncio.create_subprocess_exec(
            *("curl", "--no-buffer", "--silent", f"http://{service.rest_address}/{instance_id}/events"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert curl.stdout
        lines = []
        async with asyncio.timeout(30):
            while not lines or "event: subtask_started" not in lines[-1]:
                lines.append((await curl.stdout.readline()).decode())
        assert curl.returncode is None, "the stream goes on"
        assert lines[0] == ": ok\n"
        async with httpx.AsyncClient(trust_env=False) as http:
            await http.post(f"http://{service.rest_address}/{instance_id}:terminate")
        rest, _ = await asyncio.wait_for(curl.communicate(), 30)
        assert b"event: end\n" in rest
        assert curl.returncode == 0


async def test_an_event_source_reads_on_across_a_restart_and_stops_at_204(tmp_path: Path) -> None:
    waits = True

    def script(call: Call) -> Answer:
        return hang if waits and call.role == "synthesis" else None

    async with (
        Endpoint(script, subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
    ):
        instance_id = await create_instance(service)
        url = f"http://{service.rest_address}/{instance_id}/events"
        page = await asyncio.create_subprocess_exec(
            *("node", NODE / "events.js", url, "end", *PAYLOADS), stdout=asyncio.subprocess.PIPE
        )
        assert page.stdout
        output: list[dict[str, Any]] = []
        async with asyncio.timeout(60):
            while not output or output[-1].get("type") != "synthesis_started":
                output.append(json.loads(await page.stdout.readline()))
            await service.stop()
            waits = False
            await service.start("up")
            output.extend([json.loads(line) async for line in page.stdout])
        assert await page.wait() == 0
    events = [each for each in output if each.get("type") in PAYLOADS]
    assert [int(event["lastEventId"]) for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "instance_completed"
    ends = [each["data"] for each in output if each.get("type") == "end"]
    assert ends == [{"state": "STATE_COMPLETE", "sequence": str(len(events))}]
    losses = [each["closed"] for each in output if "closed" in each]
    assert losses[-1] is True, "204 closes it for good"
    assert losses[:-1]
    assert not any(losses[:-1]), "it tried again after the restart and after the end"


async def test_grpc_from_node_needs_nothing_but_the_protos(service: Process) -> None:
    output = json.loads(
        await output_of("node", NODE / "grpc.js", service.grpc_address, ROOT / "protos", "Build it")
    )
    assert [int(sequence) for sequence in output["sequences"]] == list(range(1, len(output["sequences"]) + 1))
    assert output["kinds"][-1] == "end"
    assert output["end"] == {"state": "STATE_COMPLETE", "sequence": str(len(output["sequences"]))}
    assert output["status"]["status"] == "complete"
    assert output["status"]["output"]["final_result"].startswith("# The result")
    assert output["refused"] == {
        "code": 5,
        "reason": "INSTANCE_NOT_FOUND",
        "domain": "orchestrator",
        "metadata": {"id": "nobody"},
    }


async def test_the_readmes_example_for_node_follows_an_instance(service: Process, tmp_path: Path) -> None:
    (script,) = re.findall(r"```js\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "readme.mjs").write_text(script.replace("127.0.0.1:50051", service.grpc_address))
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    await create_instance(service, id="haiku")
    kinds = (await output_of("env", f"--chdir={ROOT}", "node", tmp_path / "readme.mjs")).split()
    assert kinds[0] == "batch"
    assert kinds[-1] == "end"


async def test_a_client_generated_by_buf_follows_an_instance(service: Process, tmp_path: Path) -> None:
    path = f"{NODE / 'node_modules/.bin'}:{os.environ['PATH']}"
    await output_of("env", f"--chdir={ROOT}", f"PATH={path}", BUF, "generate", "--output", tmp_path)
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    output = json.loads(
        await output_of("node", NODE / "generated.js", service.grpc_address, tmp_path / "gen", "Build it")
    )
    assert output["payloads"][0] == "instanceCreated"
    assert output["payloads"][-1] == "instanceCompleted"
    assert output["result"].startswith("# The result")
    assert output["refused"] == {"code": "NotFound", "reason": "INSTANCE_NOT_FOUND"}


async def test_buf_curl_uses_the_service_by_reflection(service: Process) -> None:
    method = f"http://{service.grpc_address}/orchestrator.v1.Orchestrator/"
    buf = (BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge")
    answer = json.loads(await output_of(*buf, "--data", '{"prompt": "Build it"}', f"{method}CreateInstance"))
    streamed = await output_of(*buf, "--data", json.dumps({"id": answer["id"]}), f"{method}StreamEvents")
    assert '"STATE_COMPLETE"' in streamed
    limits = await output_of(*buf, "--list-methods", f"http://{service.grpc_address}")
    assert "orchestrator.v1.Orchestrator/BatchCreateInstances" in limits
