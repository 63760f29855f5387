"""Files and follow-ups over REST: real Envoy, real gRPC, real SQLite, real processes."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.endpoint import Answer, Call, Endpoint
from support.process import Process, on_endpoint, process

MIB = 1024 * 1024
APP = {"path": "src/app.py", "content": "def app():\n    return 'π'\n"}
README = {"path": "README.md", "content": "# Shop\n"}
RESULT = "Done.\n\n```python path=src/app.py\ndef app():\n    return 3\n```\n"


def plan(*paths: str) -> str:
    subtask = {"id": "t1", "title": "One", "instructions": "Do it.", "depends_on": [], "worker": ""}
    return json.dumps({"summary": "how", "subtasks": [{**subtask, "files": paths}]})


def team(call: Call) -> Answer:
    return {"planning": plan("src/app.py"), "work": "did it", "synthesis": RESULT}[call.role]


def on_rest(service: Process) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{service.rest_address}", trust_env=False, timeout=120)


async def ended(rest: httpx.AsyncClient, instance_id: str) -> dict[str, Any]:
    answer = await rest.get(f"/{instance_id}:wait", params={"timeout": "100s"})
    assert answer.json()["status"]["status"] == "complete", answer.text
    full = await rest.get(f"/{instance_id}", params={"view": "VIEW_FULL"})
    instance: dict[str, Any] = full.json()["instance"]
    return instance


async def test_files_reach_the_models_and_the_result_is_gone_on_from_after_a_kill(tmp_path: Path) -> None:
    async with (
        Endpoint(team) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        on_rest(service) as rest,
    ):
        wanted = {"id": "first", "prompt": "Build a shop", "files": [APP, README]}
        created = (await rest.post("/", json=wanted)).json()["instance"]
        assert [(file["path"], file["content"], file["sizeBytes"]) for file in created["files"]] == [
            ("src/app.py", "", "27"),
            ("README.md", "", "7"),
        ]
        instance = await ended(rest, "first")
        assert [file["content"] for file in instance["files"]] == [APP["content"], README["content"]]
        assert [subtask["files"] for subtask in instance["subtasks"]] == [["src/app.py"]]
        planning, work, synthesis = endpoint.calls
        assert all(APP["content"] in call.prompt_text for call in (planning, work))
        assert README["content"] not in work.prompt_text
        assert all("README.md (7 bytes)" in call.prompt_text for call in (planning, work, synthesis))

        await service.kill()
        await service.start("up")
        wanted = {"id": "next", "prompt": "Add pages", "continues": "first", "requestId": "once"}
        assert (await rest.post("/", json=wanted)).json()["instance"]["continues"] == "first"
        assert (await rest.delete("/first")).status_code == 200
        instance = await ended(rest, "next")
        assert {file["path"]: file["content"] for file in instance["files"]} == {
            "README.md": README["content"],
            "src/app.py": "def app():\n    return 3\n",
        }
        for call in endpoint.calls[3:]:
            assert "Build a shop" in call.prompt_text
            assert "return 3" in call.prompt_text
        assert (await rest.post("/", json=wanted)).json()["id"] == "next"
        refusal = await rest.post("/", json={"prompt": "x", "continues": "first"})
        assert refusal.status_code == 404
        assert refusal.json()["details"][0]["reason"] == "INSTANCE_NOT_FOUND"


@pytest.mark.parametrize("character", ["x", "\x01"])
async def test_the_most_files_come_through_in_whatever_way_json_writes_them(
    tmp_path: Path, character: str
) -> None:
    async with (
        Endpoint(team) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
        on_rest(service) as rest,
    ):
        files = [{"path": f"src/app.py{number}", "content": character * MIB} for number in range(8)]
        config = {"subtasks": [{"id": "t1", "instructions": "do"}]}
        wanted: dict[str, Any] = {"id": "a", "prompt": "x", "config": config, "files": files}
        answer = await rest.post("/", json=wanted)
        assert answer.status_code == 200, answer.text
        assert [file["content"] for file in (await ended(rest, "a"))["files"]] == [character * MIB] * 8
        refusal = await rest.post("/", json={**wanted, "files": [*files, APP]})
        assert refusal.status_code == 400
        assert refusal.json()["details"][0]["reason"] == "FILES_INVALID"
        assert "src/app.py0 (1,048,576 bytes)" in refusal.json()["message"]
        async with rest.stream("GET", "/a/events") as events:
            data = [line async for line in events.aiter_lines() if line.startswith("data: ")]
        first = json.loads(data[0].removeprefix("data: "))["instanceCreated"]
        assert [file["content"] for file in first["files"]] == [character * MIB] * 8
