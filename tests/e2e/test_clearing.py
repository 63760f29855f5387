"""What is recorded of a configuration is cleared through REST, by the JSON form of a field mask."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.endpoint import Endpoint
from support.process import Process, on_endpoint, process

PLAN = [{"id": "mine", "instructions": "Do it."}]


async def post(service: Process, path: str, body: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{service.rest_address}/{path}", json=body) as answer,
    ):
        return answer.status, await answer.json()


async def wait_for_end(service: Process, instance_id: str) -> Any:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{service.rest_address}/{instance_id}:wait") as answer,
    ):
        return (await answer.json())["instance"]


async def test_plan_limits_and_workers_are_cleared_by_name_in_json(tmp_path: Path) -> None:
    recorded = {
        "subtasks": PLAN,
        "budget": {"maxTokens": "100000", "maxDuration": "60s"},
        "workers": [{"name": "mine"}],
        "maxSubtasks": 3,
    }
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
    ):
        await post(service, "", {"prompt": "Build it", "id": "a", "config": recorded})
        assert [each["id"] for each in (await wait_for_end(service, "a"))["subtasks"]] == ["mine"]
        mask = "subtasks,budget.maxTokens,workers,maxSubtasks"
        for action, name in (("fork", "b"), ("restart", "a")):
            body = {"updateMask": mask, "config": {"maxSubtasks": 5}}
            more = {"newId": name, "stage": "STAGE_PLAN"} if action == "fork" else {}
            status, _ = await post(service, f"a:{action}", body | more)
            assert status == 200
            instance = await wait_for_end(service, name)
            assert [each["id"] for each in instance["subtasks"]] == ["t1", "t2"]
            config = instance["config"]
            assert config["budget"] == {"maxDuration": "60s"}
            assert (config["workers"], config["maxSubtasks"]) == ([], 5)


@pytest.mark.parametrize("action", ["retry", "restart", "fork"])
async def test_an_unknown_field_is_rejected_in_json(action: str, tmp_path: Path) -> None:
    async with (
        Endpoint() as endpoint,
        process(tmp_path, "up", **on_endpoint(endpoint.url)) as service,
    ):
        await post(service, "", {"prompt": "Build it", "id": "a"})
        await wait_for_end(service, "a")
        more = {"stage": "STAGE_PLAN"} if action == "fork" else {}
        status, refusal = await post(service, f"a:{action}", {"updateMask": "budget,planOfMine"} | more)
        assert (status, refusal["code"]) == (400, 3)
        assert refusal["details"][0]["reason"] == "CONFIG_INVALID"
        assert "update_mask names 'plan_of_mine', which is no field of config" in refusal["message"]
        for malformed in (["budget"], 5):
            status, refusal = await post(service, f"a:{action}", {"updateMask": malformed} | more)
            assert (status, refusal["code"]) == (400, 3)
