"""Commands that act only on what was seen, and `retry` of many by filter: against the real service."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.service import Service, service
from support.shell import Shell, assert_one_line, run_in_terminal

from orchestrator.models.base import ModelError, ModelRequest
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

COMPLETE, ERRORED = instance_pb2.STATE_COMPLETE, instance_pb2.STATE_ERRORED


class Models:
    """Answers well while it has a key, and refuses every call without."""

    def __init__(self, *, has_key: bool = True) -> None:
        self.has_key = has_key

    def __call__(self, request: ModelRequest) -> Answer:
        if not self.has_key:
            raise ModelError("MODEL_UNAUTHENTICATED", "openai refuses the key", retryable=False)
        return plan_text(2) if request.prompt.role == "planning" else f"did {request.prompt.subtask_id}"


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
async def running(tmp_path: Path, models: Models) -> AsyncIterator[Service]:
    async with service(tmp_path / "log.db", Scripted(models)) as running:
        yield running


@pytest.fixture
def shell(tmp_path: Path, running: Service) -> Shell:
    return Shell.without_service(tmp_path).with_variables(ORCHESTRATOR_GRPC_ADDRESS=running.address)


async def get_instance(running: Service, instance_id: str) -> instance_pb2.Instance:
    request = pb.GetInstanceRequest(id=instance_id, view=pb.VIEW_FULL)
    return (await running.stub.GetInstance(request)).instance


async def create_instance(
    running: Service, instance_id: str, *, review_plan: bool = False, **labels: str
) -> None:
    config = instance_pb2.InstanceConfig(review_plan=review_plan)
    await running.stub.CreateInstance(
        pb.CreateInstanceRequest(prompt="p", id=instance_id, config=config, labels=labels)
    )


async def in_review(shell: Shell, running: Service, instance_id: str = "a") -> int:
    """Create an instance, wait for its plan, and return its sequence."""
    await create_instance(running, instance_id, review_plan=True)
    assert (await shell.run("wait", instance_id)).code == 4
    return (await get_instance(running, instance_id)).last_sequence


async def test_a_decision_on_the_shown_plan_is_never_applied_to_another(
    shell: Shell, running: Service
) -> None:
    sequence = await in_review(shell, running)
    shown = await shell.run("review", "a")
    assert f"--approve --expected-sequence {sequence}\n" in shown.err
    (shell.folder / "plan.json").write_text((await shell.run("review", "a", "--json")).out)
    await shell.run("review", "a", "--reject", "smaller, please")
    assert (await shell.run("wait", "a")).code == 4
    for arguments in (
        ("--approve", "--expected-sequence", str(sequence)),
        ("--reject", "no", "--expected-sequence", str(sequence)),
        ("--approve", "--plan", "plan.json"),
    ):
        outcome = await shell.run("review", "a", *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert_one_line(outcome)
        assert f"a has gone on since event {sequence}: plan rejected; planning with" in outcome.err
        assert "plan complete: 2 subtasks, waits for review. Nothing was changed" in outcome.err
    now = await get_instance(running, "a")
    assert now.state == instance_pb2.STATE_WAITING
    outcome = await shell.run(
        "review", "a", "--approve", "--plan", "plan.json", "--expected-sequence", str(now.last_sequence)
    )
    assert (outcome.code, outcome.out) == (0, "a is running\n")


async def test_a_plan_of_another_instance_brings_no_expected_sequence_and_an_invalid_one_is_rejected(
    shell: Shell, running: Service
) -> None:
    await in_review(shell, running, "b")
    plan = json.loads((await shell.run("review", "b", "--json")).out) | {"lastSequence": 1}
    await in_review(shell, running)
    (shell.folder / "plan.json").write_text(json.dumps(plan))
    outcome = await shell.run("review", "a", "--approve", "--plan", "plan.json")
    assert (outcome.code, outcome.out) == (0, "a is running\n")
    for wrong in ("4", 0, True, 1.5):
        (shell.folder / "plan.json").write_text(json.dumps(plan | {"lastSequence": wrong}))
        outcome = await shell.run("review", "b", "--approve", "--plan", "plan.json")
        assert outcome.code == 2
        assert "lastSequence of plan.json must be a whole number from 1" in outcome.err


@pytest.mark.parametrize("verb", ["pause", "terminate", "resume", "retry", "restart"])
async def test_an_outdated_expected_sequence_changes_nothing(
    shell: Shell, running: Service, verb: str
) -> None:
    sequence = await in_review(shell, running)
    if verb != "pause":
        await shell.run("pause" if verb in ("terminate", "resume") else "terminate", "a")
    before = (await get_instance(running, "a")).last_sequence
    stale = sequence if verb != "pause" else sequence - 1
    outcome = await shell.run(verb, "a", "--expected-sequence", str(stale))
    assert (outcome.code, outcome.out) == (2, "")
    assert f"a has gone on since event {stale}: " in outcome.err
    assert f"--expected-sequence {before} if need be" in outcome.err
    assert (await get_instance(running, "a")).last_sequence == before
    outcome = await shell.run(verb, "a", "--expected-sequence", "999")
    assert outcome.code == 2
    assert f"a is at event {before} and was expected at 999" in outcome.err
    assert (await shell.run(verb, "a", "--expected-sequence", str(before))).code == 0


async def test_an_expected_sequence_applies_to_one_instance(shell: Shell) -> None:
    outcome = await shell.run("pause", "a", "b", "--expected-sequence", "3")
    assert (outcome.code, outcome.err) == (
        2,
        "error: --expected-sequence goes with one instance: each has events of its own\n",
    )


async def refused(running: Service, models: Models, *ids: str, **labels: str) -> None:
    models.has_key = False
    for name in ids:
        await create_instance(running, name, **labels)
        await running.ended(name)
    models.has_key = True


async def test_a_bulk_retry_retries_the_failures_of_one_reason_and_nothing_else(
    shell: Shell, running: Service, models: Models
) -> None:
    await refused(running, models, "a1", "a2", team="shop")
    await refused(running, models, "b1", team="other")
    await create_instance(running, "done", team="shop")
    await running.ended("done")
    bulk = ("retry", "--state", "errored", "--reason", "MODEL_UNAUTHENTICATED", "--label", "team=shop")
    dry = await shell.run(*bulk, "--dry-run")
    assert (dry.code, dry.err) == (0, "2 instances would be retried\n")
    assert [line.split("\t")[0] for line in dry.out.splitlines()] == ["a2", "a1"]
    assert (await get_instance(running, "a1")).state == ERRORED
    outcome = await shell.run(*bulk)
    assert outcome.out == "a2 is retried (1 of 2)\na1 is retried (2 of 2)\n"
    assert (outcome.code, outcome.err) == (0, "2 instances retried\n")
    for name in ("a1", "a2"):
        assert (await running.ended(name)).instance.state == COMPLETE
    again = await shell.run(*bulk)
    assert (again.code, again.out, again.err) == (0, "", "no instance fits: nothing to retry\n")
    assert (await get_instance(running, "b1")).state == ERRORED
    assert (await shell.run("retry", "--reason", "BUDGET_EXCEEDED")).err.startswith("no instance fits")
    outcome = await shell.run("retry", "--reason", "model-unauthenticated", "--json")
    assert [each["instance"]["id"] for each in outcome.events] == ["b1"]


async def test_two_concurrent_bulk_retries_retry_nothing_twice(
    shell: Shell, running: Service, models: Models
) -> None:
    names = [f"a{number}" for number in range(20)]
    await refused(running, models, *names)
    first, second = await asyncio.gather(*(shell.run("retry", "--state", "errored") for _ in range(2)))
    assert (first.code, second.code) == (0, 0)
    retried = [line.split()[0] for line in (first.out + second.out).splitlines()]
    assert sorted(retried) == sorted(names)
    for name in names:
        await running.ended(name)
        events = running.stub.StreamEvents(pb.StreamEventsRequest(id=name, follow=False))
        kinds = [event.WhichOneof("payload") async for each in events for event in each.batch.events]
        assert kinds.count("instance_retried") == 1


async def test_in_a_terminal_a_bulk_retry_asks_for_confirmation(
    shell: Shell, running: Service, models: Models
) -> None:
    await refused(running, models, "a")
    code, text = await run_in_terminal(shell, "retry", "--state", "errored", "--yes")
    assert (code, "[y/N]" in text) == (0, False)
    assert (await running.ended("a")).instance.state == COMPLETE


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give either ids, or which instances by --state, --reason and --label"),
        (("a", "--state", "errored"), "give either ids, or which instances"),
        (("a", "--dry-run"), "--dry-run goes with --state, --reason or --label"),
        (("--state", "errored", "--expected-sequence", "3"), "goes with one instance: give its id"),
    ],
)
async def test_an_invalid_bulk_retry_is_rejected(
    shell: Shell, arguments: tuple[str, ...], words: str
) -> None:
    outcome = await shell.run("retry", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err


async def test_a_watched_list_reports_deletions(shell: Shell, running: Service) -> None:
    await create_instance(running, "a")
    await running.ended("a")
    for option, words in ((("--json",), '{"deleted": {"instanceId": "a"}}'), ((), "a\tdeleted")):
        process = await shell.start("list", "--watch", *option)
        assert process.stdout
        assert b"a" in await process.stdout.readline()
        await running.stub.DeleteInstance(pb.DeleteInstanceRequest(id="a"))
        assert (await process.stdout.readline()).decode() == f"{words}\n"
        process.terminate()
        await process.wait()
        await create_instance(running, "a")
        await running.ended("a")
