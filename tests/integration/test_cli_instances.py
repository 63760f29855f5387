"""Commands that name instances, against the real service: by whole ids and prefixes, one and several."""

import asyncio
import json
import os
import pty
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.scripted_service import ScriptedService, play_planning_failure, play_success
from support.service import Service, service
from support.shell import Shell, assert_one_line, read_all, read_until, run_in_terminal

from orchestrator.core.replies import ModelReply
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

RESULT = "# The result\n\nAll parts, put together."


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path / "log.db", Scripted(subtasks=2)) as running:
        yield running


@pytest.fixture
async def stuck(tmp_path: Path) -> AsyncIterator[Service]:
    """A service whose models never answer."""

    async def never(_: ModelRequest) -> Answer:
        await asyncio.Event().wait()
        return ""

    async with service(tmp_path / "log.db", Scripted(never)) as running:
        yield running


def shell_on(folder: Path, running: Service) -> Shell:
    return Shell.without_service(folder).with_variables(ORCHESTRATOR_GRPC_ADDRESS=running.address)


async def create_instances(running: Service, *ids: str, **config: object) -> None:
    for name in ids:
        await running.stub.CreateInstance(
            pb.CreateInstanceRequest(prompt="p", id=name, config=instance_pb2.InstanceConfig(**config))
        )


async def finished(running: Service, *ids: str) -> None:
    await create_instances(running, *ids)
    for name in ids:
        await running.ended(name)


async def test_an_id_may_be_any_unique_prefix(tmp_path: Path, running: Service) -> None:
    await finished(running, "rain-1", "rain-10", "sun")
    shell = shell_on(tmp_path, running)
    assert "rain-10" in (await shell.run("get", "rain-10")).out
    assert (await shell.run("get", "rain-1", "--json")).json["instance"]["id"] == "rain-1"  # not a prefix
    assert (await shell.run("get", "s", "--json")).json["instance"]["id"] == "sun"
    assert (await shell.run("wait", "s")).out == "complete\n"
    assert (await shell.run("events", "s")).out.count("created sun") == 1
    assert (await shell.run("result", "s")).out == f"{RESULT}\n"
    assert (await shell.run("fork", "s", "--stage", "synthesis", "--id", "moon")).code == 0
    assert (await shell.run("restart", "su")).out == "sun is queued\n"
    await running.ended("sun")
    assert (await shell.run("delete", "rain-10", "r")).out == "rain-10 is deleted\nrain-1 is deleted\n"
    for command in ("get", "wait", "events", "result", "terminate", "delete", "review"):
        outcome = await shell.run(command, "r")
        assert (outcome.code, outcome.err) == (2, "error: no instance 'r'\n")


async def test_an_ambiguous_prefix_lists_its_instances(tmp_path: Path, stuck: Service) -> None:
    await create_instances(stuck, *(f"rain-{number}" for number in range(7)), "sun")
    shell = shell_on(tmp_path, stuck)
    for command in ("get", "wait", "terminate", "pause"):
        outcome = await shell.run(command, "rain")
        assert (outcome.code, outcome.out) == (2, "")
        assert_one_line(outcome)
        newest = ", ".join(f"rain-{number}" for number in (6, 5, 4, 3, 2))
        assert f"several ids begin with 'rain': {newest}, …" in outcome.err
    assert (await shell.run("terminate", "su")).out == "sun is terminated\n"


async def test_several_instances_are_steered_and_the_worst_outcome_is_the_exit_code(
    tmp_path: Path, stuck: Service
) -> None:
    await create_instances(stuck, "a", "b", "c")
    shell = shell_on(tmp_path, stuck)
    assert (await shell.run("pause", "a", "b", "a")).out == "a is waitingForPause\nb is waitingForPause\n"
    assert (await shell.run("resume", "a", "b")).out == "a is running\nb is running\n"
    outcome = await shell.run("terminate", "a", "nix", "b")
    assert (outcome.code, outcome.out) == (2, "a is terminated\nb is terminated\n")
    assert outcome.err == "error: no instance 'nix'\n"
    outcome = await shell.run("retry", "a", "c", "b", "--json")
    assert outcome.code == 2
    assert [each["instance"]["id"] for each in outcome.events] == ["a", "b"]
    assert "'c' is running" in outcome.err
    await shell.run("terminate", "a", "b")
    outcome = await shell.run("delete", "a", "c", "b", "--json")
    assert (outcome.code, outcome.events) == (2, [{"id": "a"}, {"id": "b"}])
    assert (await shell.run("list")).out.split("\t")[0] == "c"


async def test_the_result_is_printed_as_markdown_alone(tmp_path: Path, running: Service) -> None:
    await finished(running, "a")
    shell = shell_on(tmp_path, running)
    outcome = await shell.run("result", "a")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{RESULT}\n", "")
    assert (await shell.run("result", "a", "--json")).json == {"id": "a", "finalResult": RESULT}
    assert "result a" in (await shell.run("get", "a")).out


async def test_without_a_result_the_reason_and_the_mend_are_printed(tmp_path: Path, stuck: Service) -> None:
    await create_instances(stuck, "a")
    shell = shell_on(tmp_path, stuck)
    outcome = await shell.run("result", "a")
    assert (outcome.code, outcome.out) == (2, "")
    assert_one_line(outcome)
    assert "a is running and has no result yet: wait for it with" in outcome.err
    await shell.run("terminate", "a")
    outcome = await shell.run("result", "a")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "error: a was terminated\n")


async def test_suggested_commands_address_the_same_service(tmp_path: Path, running: Service) -> None:
    await create_instances(running, "a", review_plan=True)
    await finished(running, "b")
    shell = Shell.without_service(tmp_path)
    where = ("--address", running.address)
    assert (await shell.run("wait", "a", *where)).code == 4
    outcome = await shell.run("result", "a", *where)
    assert outcome.code == 2
    assert "look at its plan with" in outcome.err
    assert f"orchestrator review a --address {running.address}`" in outcome.err
    assert f"orchestrator review a --address {running.address}\n" in (await shell.run("get", "a", *where)).out
    assert f"orchestrator result b --address {running.address}\n" in (await shell.run("get", "b", *where)).out


async def test_the_result_of_a_failed_instance_is_its_error(tmp_path: Path) -> None:
    async with ScriptedService() as scripted:
        await scripted.start()
        await scripted.record("bad", event_pb2.InstanceCreated(prompt="p"))
        await play_planning_failure(scripted, "bad")
        outcome = await Shell.without_service(tmp_path).on(scripted).run("result", "bad")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: MODEL_UNAUTHENTICATED: no key for openai: set OPENAI_API_KEY\n"


async def test_in_a_terminal_the_result_is_its_source_without_control_sequences(tmp_path: Path) -> None:
    async with ScriptedService() as scripted:
        await scripted.start()
        await scripted.record("i1", event_pb2.InstanceCreated(prompt="p"))
        await play_success(scripted, "i1")
        code, text = await run_in_terminal(Shell.without_service(tmp_path).on(scripted), "result", "i1")
    assert (code, text) == (0, "# Answer\r\n\r\none \\x1b[31mtwo\r\n")


async def test_wait_reports_that_a_review_is_due(tmp_path: Path, running: Service) -> None:
    shell = shell_on(tmp_path, running)
    await create_instances(running, "a", review_plan=True)
    outcome = await shell.run("wait", "a")
    assert (outcome.code, outcome.out) == (4, "waiting\n")
    lines = outcome.err.splitlines()
    assert lines[0] == "the plan of a waits for review"
    assert lines[1].endswith(f"orchestrator review a --address {running.address}")
    assert lines[2].endswith(f"orchestrator review a --address {running.address} --approve")
    outcome = await shell.run("wait", "a", "--timeout", "1m", "--json")
    assert (outcome.code, outcome.json["status"]["status"]) == (4, "waiting")
    assert (await shell.run("review", "a", "--approve")).code == 0
    assert (await shell.run("wait", "a", "--timeout", "1m")).code == 0


async def test_wait_reports_a_review_that_becomes_due(tmp_path: Path) -> None:
    plan = asyncio.Event()

    async def answer_later(_: ModelRequest) -> Answer:
        await plan.wait()
        return plan_text(1)

    async with service(tmp_path / "log.db", Scripted(answer_later)) as running:
        await create_instances(running, "a", review_plan=True)
        process = await shell_on(tmp_path, running).start("wait", "a")
        plan.set()
        out, _ = await process.communicate()
    assert (process.returncode, out) == (4, b"waiting\n")


async def test_review_prints_the_plan_for_people_and_for_programs(tmp_path: Path, running: Service) -> None:
    shell = shell_on(tmp_path, running)
    await create_instances(running, "a", review_plan=True)
    await shell.run("wait", "a")
    outcome = await shell.run("review", "a")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "plan of a: 2 subtasks",
        "",
        "The parts fit together by number.",
        "",
        "t1  Part 1",
        "  Write part 1 of 2.",
        "",
        "t2  Part 2",
        "  Write part 2 of 2.",
    ]
    assert "review a --approve" in outcome.err.replace(f" --address {running.address}", "")
    plan = (await shell.run("review", "a", "--json")).json
    assert plan["summary"] == "The parts fit together by number."
    subtasks = plan["subtasks"]
    assert subtasks[0] == {
        "id": "t1",
        "title": "Part 1",
        "instructions": "Write part 1 of 2.",
        "dependsOn": [],
        "worker": "",
    }
    # What it prints can be edited and given back.
    subtasks[1] |= {"dependsOn": ["t1"], "worker": "coder", "instructions": "Write it."}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert (await shell.run("review", "a", "--approve", "--plan", "plan.json")).code == 0
    edited = await shell.run("review", "a")
    assert "t2  Part 2  after t1, worker coder\n  Write it." in edited.out
    assert edited.err.endswith("no review is due\n")


async def test_review_without_a_plan_or_with_two_decisions_is_rejected(
    tmp_path: Path, stuck: Service
) -> None:
    await create_instances(stuck, "a", review_plan=True)
    shell = shell_on(tmp_path, stuck)
    for arguments in ((), ("--approve", "--reject", "no"), ("--plan", "p.json")):
        outcome = await shell.run("review", "a", *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert_one_line(outcome)


PRICES = {name: {"input_usd": 2000, "output_usd": 4000} for name in ("scripted/big", "scripted/small")}
"""A call that reads a token and writes two costs a cent."""


async def test_the_totals_of_a_list_are_the_paid_usage(tmp_path: Path) -> None:
    calls: list[ModelRequest] = []

    def answer_with_usage(request: ModelRequest) -> Answer:
        calls.append(request)
        return ModelReply(plan_text(2) if request.prompt.role == "planning" else "x", 1, 2)

    async with service(tmp_path / "log.db", Scripted(answer_with_usage), prices=PRICES) as running:
        shell = shell_on(tmp_path, running)
        await finished(running, "source")
        for stage in ("plan", "subtasks", "synthesis"):
            await shell.run("fork", "source", "--stage", stage, "--id", stage)
            await running.ended(stage)
        await shell.run("restart", "source")
        await running.ended("source")
        listed = (await shell.run("list", "--json")).json["instances"]
        fields = [line.split("\t") for line in (await shell.run("list")).out.splitlines()]
        page = await shell.run("get", "synthesis")
    assert sum(each["usage"]["modelCalls"] for each in listed) == len(calls) == 16
    assert sum(int(each["usage"]["outputTokens"]) for each in listed) == 2 * len(calls)
    assert sum(each["usage"]["costUsd"] for each in listed) == pytest.approx(0.01 * len(calls))
    assert {name: (tokens, cost) for name, *_, tokens, cost, _ in fields} == {
        "source": ("24", "0.0800"),
        "plan": ("12", "0.0400"),
        "subtasks": ("9", "0.0300"),
        "synthesis": ("3", "0.0100"),
    }
    assert "used         3 tokens, $0.0100" in page.out
    assert "forked from  source, which paid for what is copied (9 tokens, $0.0300)" in page.out


async def test_an_unknown_cost_is_a_dash(tmp_path: Path, running: Service) -> None:
    await finished(running, "a")
    assert (await shell_on(tmp_path, running).run("list")).out.split("\t")[6] == "-"


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600), ("90s", 90), ("1h30m", 5400), ("0.5", 0.5)])
async def test_a_time_budget_has_a_flag(tmp_path: Path, stuck: Service, text: str, seconds: float) -> None:
    outcome = await shell_on(tmp_path, stuck).run("create", "p", "--max-duration", text, "--json")
    duration = outcome.json["instance"]["config"]["budget"]["maxDuration"]
    assert float(duration.removesuffix("s")) == seconds


async def test_settings_are_cleared_by_name(tmp_path: Path, running: Service) -> None:
    plan = [instance_pb2.Subtask(id="mine", instructions="Do it.")]
    limits = {"max_tokens": 10_000, "max_duration": {"seconds": 3600}}
    await create_instances(running, "a", subtasks=plan, budget=limits, instructions="In German")
    await running.ended("a")
    shell = shell_on(tmp_path, running)
    cleared = ("--clear", "subtasks", "--clear", "budget.max-tokens", "--max-subtasks", "5")
    assert (await shell.run("restart", "a", *cleared)).code == 0
    again = (await running.ended("a")).instance
    assert [subtask.id for subtask in again.subtasks] == ["t1", "t2"]
    assert (again.config.max_subtasks, again.config.budget.HasField("max_tokens")) == (5, False)
    assert again.config.budget.max_duration.seconds == 3600
    assert (await shell.run("fork", "a", "--stage", "plan", "--id", "b", "--clear", "budget")).code == 0
    assert not (await running.ended("b")).instance.config.HasField("budget")


@pytest.mark.parametrize("command", [("retry", "a"), ("restart", "a"), ("fork", "a", "--stage", "plan")])
async def test_a_setting_that_cannot_be_cleared_is_reported_in_one_line(
    command: tuple[str, ...], tmp_path: Path, running: Service
) -> None:
    await finished(running, "a")
    shell = shell_on(tmp_path, running)
    unknown = await shell.run(*command, "--clear", "plan")
    assert unknown.code == 2
    assert "update_mask names 'plan', which is no field of config: those are *, big_model" in unknown.err
    both = await shell.run(*command, "--clear", "budget.max-tokens", "--max-tokens", "5")
    assert both.code == 2
    assert_one_line(both)
    assert "--clear budget.max_tokens and a value for it are given" in both.err


@pytest.mark.parametrize("text", ["soon", "-1", "5x", "m", "1h 30m", ""])
async def test_an_invalid_duration_is_reported(tmp_path: Path, text: str) -> None:
    shell = Shell.without_service(tmp_path)
    for arguments in (("create", "p", f"--max-duration={text}"), ("wait", "a", f"--timeout={text}")):
        outcome = await shell.run(*arguments)
        assert outcome.code == 2
        assert "no time span: give one as in 90s, 10m or 1h30m" in outcome.err


WATCH = ("list", "--watch")


async def test_a_watched_list_prints_changes_for_programs(tmp_path: Path, stuck: Service) -> None:
    await create_instances(stuck, "a", "b")
    process = await shell_on(tmp_path, stuck).start(*WATCH, "--json")
    assert process.stdout
    first = [json.loads(await process.stdout.readline()) for _ in range(2)]
    assert [each["id"] for each in first] == ["a", "b"]
    await stuck.stub.TerminateInstance(pb.TerminateInstanceRequest(id="a"))
    while (changed := json.loads(await process.stdout.readline()))["state"] != "STATE_TERMINATED":
        pass
    assert changed["id"] == "a"
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130


async def test_in_a_terminal_a_watched_list_is_redrawn_and_survives_a_restart(tmp_path: Path) -> None:
    async with ScriptedService() as scripted:
        await scripted.start()
        await scripted.record("rain", event_pb2.InstanceCreated(prompt="p"))
        shell = Shell.without_service(tmp_path).on(scripted)
        ours, theirs = pty.openpty()
        process = await shell.with_variables(TERM="xterm-256color", COLUMNS="60", LINES="20").start(
            *WATCH, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        await asyncio.to_thread(read_until, ours, b"queued")
        await scripted.stop()
        await asyncio.to_thread(read_until, ours, "reconnecting…".encode())
        await scripted.record("rain", event_pb2.InstanceTerminated())
        await scripted.start()
        await asyncio.to_thread(read_until, ours, b"terminated")
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(read_all, ours)
        assert await process.wait() == 130


async def test_watching_without_a_service_is_an_error(tmp_path: Path) -> None:
    outcome = await Shell.without_service(tmp_path).run(*WATCH)
    assert outcome.code == 3
    assert_one_line(outcome)
