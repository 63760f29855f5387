"""Specialised workers from orchestrator.toml, by the service as its own process, over real HTTP."""

import asyncio
from pathlib import Path

import pytest
from support.endpoint import Answer, Call, Endpoint, failing, hang
from support.process import COMMAND, environment, on_endpoint, process

from orchestrator.client import Client
from orchestrator.models.scripted import plan_text
from orchestrator.v1 import instance_pb2

CATALOGUE = """
[[workers]]
name = "coder"
use = "writes and changes code"
model = "openai/codex"
instructions = "Tests first."
temperature = 0.2

[[workers]]
name = "writer"
use = "writes prose"
instructions = "No adjectives."
"""
ANOTHER = CATALOGUE.replace("codex", "newer").replace("Tests first.", "Move fast.").replace("0.2", "1.5")
PLAN = plan_text(3).replace('"worker": ""', '"worker": "%s"') % ("coder", "writer", "poet")


def planning(call: Call) -> Answer:
    return PLAN if call.role == "planning" else None


def calls_of(endpoint: Endpoint, subtask_id: str) -> list[Call]:
    return [call for call in endpoint.calls if call.subtask_id == subtask_id]


async def test_each_subtask_is_sent_to_the_model_of_its_worker(tmp_path: Path) -> None:
    (tmp_path / "orchestrator.toml").write_text(CATALOGUE)
    async with (
        Endpoint(planning) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create("Build it", instance_id="a")
        answer = await client.wait("a", timeout_s=30)
    assert answer.instance.state == instance_pb2.STATE_COMPLETE
    assert "coder: writes and changes code\nwriter: writes prose" in endpoint.calls[0].prompt_text
    (coder,), (writer,), (poet,) = (calls_of(endpoint, subtask_id) for subtask_id in ("t1", "t2", "t3"))
    assert (coder.body["model"], coder.body["temperature"]) == ("codex", 0.2)
    assert "Tests first." in coder.prompt_text
    assert (writer.body["model"], "temperature" in writer.body) == ("small", False)
    assert "No adjectives." in writer.prompt_text
    assert poet.body["model"] == "small"
    models = [subtask.model for subtask in answer.instance.subtasks]
    assert models == ["openai/codex", "openai/small", "openai/small"]
    assert [worker.name for worker in answer.instance.config.workers] == ["coder", "writer"]


async def test_the_catalogue_is_recorded_once_and_not_with_each_instance(tmp_path: Path) -> None:
    full = "".join(
        f'[[workers]]\nname = "w{number}"\nuse = "{"u" * 1000}"\ninstructions = "{"i" * 8192}"\n'
        for number in range(32)
    )
    (tmp_path / "orchestrator.toml").write_text(full)
    async with (
        Endpoint(planning) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create("x", instance_id="a")
        first = await anext(client.stream_events("a"))
        assert first.ByteSize() < 500
        digest = first.instance_created.config.catalogue
        info = await client.info()
        assert (info.default_config.catalogue, len(info.workers)) == (digest, 32)
        full_view = await client.get("a", full=True)
        assert [worker.instructions for worker in full_view.instance.config.workers] == ["i" * 8192] * 32


async def test_an_endpoint_that_rejects_sampling_parameters_is_called_without_them(tmp_path: Path) -> None:
    def script(call: Call) -> Answer:
        if "temperature" in call.body:
            return failing(400, "Unsupported value: 'temperature' does not support 0.2 with this model.")
        return planning(call)

    (tmp_path / "orchestrator.toml").write_text(CATALOGUE)
    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
        Client(service.grpc_address) as client,
    ):
        await client.create("Build it", instance_id="a")
        answer = await client.wait("a", timeout_s=30)
    assert answer.instance.state == instance_pb2.STATE_COMPLETE
    assert answer.instance.subtasks[0].attempt == 1
    assert ["temperature" in call.body for call in calls_of(endpoint, "t1")] == [True, False]


async def test_a_changed_catalogue_applies_only_to_new_instances(tmp_path: Path) -> None:
    holds = True

    def script(call: Call) -> Answer:
        return hang if holds and call.role == "work" else planning(call)

    file = tmp_path / "orchestrator.toml"
    file.write_text(CATALOGUE)
    async with (
        Endpoint(script) as endpoint,
        process(tmp_path, **on_endpoint(endpoint.url)) as service,
    ):
        async with Client(service.grpc_address) as client:
            await client.create("Build it", instance_id="old")
            await endpoint.wait_for_calls(4)
            async for event in client.stream_events("old"):
                if event.subtask_started.subtask_id == "t1":
                    break  # what a kill cuts off now is in the log
        await service.kill()
        holds = False
        file.write_text(ANOTHER)
        await service.start()
        async with Client(service.grpc_address) as client:
            old = (await client.wait("old", timeout_s=30)).instance
            assert old.state == instance_pb2.STATE_COMPLETE
            assert old.subtasks[0].attempt == 2
            calls = calls_of(endpoint, "t1")
            await client.create("Build it", instance_id="new")
            assert (await client.wait("new", timeout_s=30)).instance.state == instance_pb2.STATE_COMPLETE
    assert [(call.body["model"], call.body["temperature"]) for call in calls] == [("codex", 0.2)] * 2
    assert all("Tests first." in call.prompt_text for call in calls)
    newest = calls_of(endpoint, "t1")[-1]
    assert (newest.body["model"], newest.body["temperature"]) == ("newer", 1.5)
    assert "Move fast." in newest.prompt_text


@pytest.mark.parametrize(
    ("catalogue", "words"),
    [
        (CATALOGUE.replace("openai/codex", "codex"), "model in orchestrator.toml: no model 'codex'"),
        (
            CATALOGUE.replace("openai/codex", "anthropic/m"),
            "model in orchestrator.toml: no key for anthropic: set",
        ),
        (CATALOGUE.replace("0.2", "20"), "temperature in orchestrator.toml is 20: it must be 0 to 2"),
    ],
)
async def test_an_invalid_catalogue_is_one_line_at_the_start(
    catalogue: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "orchestrator.toml").write_text(catalogue)
    command = await asyncio.create_subprocess_exec(
        *(COMMAND, "serve"),
        cwd=tmp_path,
        env=environment(**on_endpoint("http://127.0.0.1:9/v1"), ANTHROPIC_API_KEY=""),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(command.communicate(), 60)
    assert command.returncode == 2
    assert errors.decode().startswith(f"error: workers[0].{words}")
    assert errors.count(b"\n") == 1
