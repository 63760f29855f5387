"""Steering an instance through REST and by the command, on a service that is restarted meanwhile."""

import asyncio
import json
from pathlib import Path

from aiohttp import web
from support.endpoint import Answer, Call, Endpoint, completion, failing
from support.process import on_endpoint, process, run_command

from orchestrator.client import Client
from orchestrator.v1 import instance_pb2


async def test_retrying_after_one_of_eight_failed_pays_for_one_worker_and_one_synthesis(
    tmp_path: Path,
) -> None:
    broken = {"t5"}

    def script(call: Call) -> Answer:
        return failing(400, "no") if call.subtask_id in broken else None

    async with (
        Endpoint(script, subtasks=8) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
    ):
        async with Client(service.grpc_address) as client:
            await client.create("Build it", instance_id="a")
            answer = await client.wait("a", timeout_s=30)
            assert answer.instance.error.reason == "SUBTASK_FAILED"
            assert (endpoint.count("work"), endpoint.count("synthesis")) == (8, 0)
        await service.stop()
        await service.start()
        broken.clear()
        assert await run_command(service, "retry", "a", "--small-model", "openai/other") == "a is queued"
        async with Client(service.grpc_address) as client:
            answer = await client.wait("a", timeout_s=30)
        assert answer.instance.state == instance_pb2.STATE_COMPLETE
        assert (endpoint.count("work"), endpoint.count("synthesis")) == (9, 1)
        assert endpoint.calls[-2].body["model"] == "other"


async def test_a_plan_is_reviewed_by_the_command(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
    ):
        await run_command(service, "create", "Build it", "--id", "a", "--review-plan")
        async with Client(service.grpc_address) as client:
            async for event in client.stream_events("a"):
                if event.WhichOneof("payload") == "plan_completed":
                    break
            assert (await client.get("a")).status.status == "waiting"
            plan = tmp_path / "plan.json"
            plan.write_text(json.dumps([{"id": "only", "instructions": "do it"}]))
            await run_command(service, "review", "a", "--approve", "--plan", str(plan))
            answer = await client.wait("a", timeout_s=30)
        assert list(answer.status.output.worker_responses) == ["The output of only."]
        assert endpoint.count("work") == 1


async def test_an_instance_is_paused_and_resumed(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(call: Call) -> web.StreamResponse:
        await gate.wait()
        return web.json_response(completion(f"out {call.subtask_id}"))

    async with (
        Endpoint(lambda call: slow if call.role == "work" else None, subtasks=2, chained=True) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
    ):
        async with Client(service.grpc_address) as client:
            await client.create("Build it", instance_id="a")
            await endpoint.wait_for_calls(2)
            assert await run_command(service, "pause", "a") == "a is waitingForPause"
            gate.set()
            async for event in client.stream_events("a"):
                if event.WhichOneof("payload") == "instance_paused":
                    break
        await service.kill()
        await service.start()
        async with Client(service.grpc_address) as client:
            assert (await client.get("a")).status.status == "paused"
            assert endpoint.count("work") == 1
            assert await run_command(service, "resume", "a") == "a is running"
            answer = await client.wait("a", timeout_s=30)
        assert answer.instance.state == instance_pb2.STATE_COMPLETE
        assert endpoint.count("work") == 2


async def test_an_instance_is_forked_and_deleted_by_the_command(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=2) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await run_command(service, "create", "Build it", "--id", "a")
        await client.wait("a", timeout_s=30)
        arguments = ("--stage", "synthesis", "--id", "b", "--big-model", "openai/other")
        assert await run_command(service, "fork", "a", *arguments) == "b is running"
        answer = await client.wait("b", timeout_s=30)
        assert answer.instance.forked_from == "a"
        assert (endpoint.count("planning"), endpoint.count("work"), endpoint.count("synthesis")) == (1, 2, 2)
        assert endpoint.calls[-1].body["model"] == "other"
        assert await run_command(service, "delete", "a") == "a is deleted"
        assert json.loads(await run_command(service, "delete", "b", "--json")) == {"id": "b"}
        assert not (await client.list()).instances


async def test_a_file_of_requests_becomes_instances(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        requests = tmp_path / "requests.jsonl"
        plan = [{"id": "only", "instructions": "do it"}]
        wishes = [{"prompt": "one", "id": "a"}, {"prompt": "two", "id": "b", "config": {"subtasks": plan}}]
        requests.write_text("\n".join(map(json.dumps, wishes)))
        assert await run_command(service, "batch", str(requests)) == "a\nb"
        for name in "ab":
            answer = await client.wait(name, timeout_s=30)
            assert answer.instance.state == instance_pb2.STATE_COMPLETE
        assert endpoint.count("planning") == 1  # the second brought its own plan


async def test_finished_instances_are_deleted_after_the_retention_period(tmp_path: Path) -> None:
    async with (
        Endpoint(subtasks=1) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url), ORCHESTRATOR_RETENTION="1s") as service,
        Client(service.grpc_address) as client,
    ):
        await client.create("Build it", instance_id="a")
        await client.wait("a", timeout_s=30)
        async with asyncio.timeout(20):
            while (await client.list()).instances:  # noqa: ASYNC110  a deletion is no event
                await asyncio.sleep(0.05)
        await client.create("Build it", instance_id="a")  # the id is free again
        assert (await client.wait("a", timeout_s=30)).instance.state == instance_pb2.STATE_COMPLETE
