"""`run --plan`: the plan before work begins, looked at and decided on."""

import asyncio
import fcntl
import json
import os
import pty
import termios
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.service import Service, service
from support.shell import Shell, read_all, read_until

from orchestrator.cli.plan_option import rewrite_plan_option
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

PLAN_OF_A = """\
plan of a: 2 subtasks

The parts fit together by number.

t1  Part 1
  Write part 1 of 2.

t2  Part 2
  Write part 2 of 2.
"""
RESULT = "# The result\n\nAll parts, put together.\n"
QUESTION = b"decide [l]ater? "


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path / "log.db", Scripted(subtasks=2)) as running:
        yield running


@pytest.fixture
def shell(tmp_path: Path, running: Service) -> Shell:
    return Shell.without_service(tmp_path).with_variables(ORCHESTRATOR_GRPC_ADDRESS=running.address)


async def state_of(running: Service, instance_id: str) -> instance_pb2.State.ValueType:
    return (await running.stub.GetInstance(pb.GetInstanceRequest(id=instance_id))).instance.state


async def test_in_a_pipe_the_plan_is_printed_with_the_next_commands(shell: Shell, running: Service) -> None:
    outcome = await shell.run("run", "--plan", "p", "--id", "a")
    assert (outcome.code, outcome.out) == (0, PLAN_OF_A)
    lines = [line.replace(f" --address {running.address}", "") for line in outcome.err.splitlines()[-4:]]
    assert lines[0] == "the plan of a waits for review"
    sequence = (await running.stub.GetInstance(pb.GetInstanceRequest(id="a"))).instance.last_sequence
    assert lines[2].endswith(f"orchestrator review a --approve --expected-sequence {sequence}")
    assert await state_of(running, "a") == instance_pb2.STATE_WAITING
    await shell.run("review", "a", "--approve")
    assert (await shell.run("wait", "a")).out == "complete\n"


async def test_programs_get_the_events_up_to_the_plan(shell: Shell) -> None:
    outcome = await shell.run("run", "p", "--plan", "--json")
    assert outcome.code == 0
    assert "planCompleted" in outcome.events[-1]


async def test_a_plan_file_is_used_as_the_plan(shell: Shell, running: Service) -> None:
    plan = [{"id": "mine", "instructions": "Do it."}]
    (shell.folder / "plan.json").write_text(json.dumps(plan))
    for arguments in (("--plan", "plan.json", "p"), ("p", "--plan", "plan.json"), ("p", "--plan=plan.json")):
        outcome = await shell.run("run", *arguments)
        assert (outcome.code, outcome.out) == (0, RESULT)
    page = await running.stub.ListInstances(pb.ListInstancesRequest())
    assert [[subtask.id for subtask in it.subtasks] for it in page.instances] == [["mine"]] * 3
    outcome = await shell.run("run", "p", "--plan", "nowhere.json")
    assert (outcome.code, outcome.err) == (2, "error: cannot read nowhere.json: No such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (["--plan", "Build it"], ["--plan", "Build it"]),
        (["--plan", "--id", "a", "p"], ["--plan", "--id", "a", "p"]),
        (["p", "--plan"], ["p", "--plan"]),
        (["--", "--plan", "x.json"], ["--", "--plan", "x.json"]),
        (["--plan", "x.json"], ["--plan-file", "x.json"]),
        (["--plan=x"], ["--plan-file=x"]),
    ],
)
def test_a_file_after_the_flag_is_distinguished_from_a_prompt(
    arguments: Sequence[str], read: Sequence[str]
) -> None:
    assert list(rewrite_plan_option(arguments)) == read


class TerminalSession:
    """A command in a pseudo-terminal, with its keyboard and screen."""

    def __init__(self, process: asyncio.subprocess.Process, terminal: int) -> None:
        self.process = process
        self._terminal = terminal

    async def read_until_text(self, words: bytes) -> str:
        return (await asyncio.to_thread(read_until, self._terminal, words)).decode()

    def type_line(self, line: str) -> None:
        os.write(self._terminal, f"{line}\n".encode())

    async def wait_closed(self) -> str:
        text = (await asyncio.to_thread(read_all, self._terminal)).decode()
        await self.process.wait()
        return text


async def open_session(shell: Shell, *arguments: str, **options: Any) -> TerminalSession:
    controller, terminal = pty.openpty()
    process = await shell.with_variables(TERM="xterm-256color", COLUMNS="100", LINES="40").start(
        *arguments, **{"stdin": terminal, "stdout": terminal, "stderr": terminal, **options}
    )
    os.close(terminal)
    return TerminalSession(process, controller)


def set_controlling_terminal() -> None:
    """Make the terminal that a process writes to the one that it belongs to, as a login does."""
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)


async def test_in_a_terminal_a_person_rejects_edits_and_approves(tmp_path: Path) -> None:
    feedbacks: list[bool] = []

    def script(request: ModelRequest) -> Answer:
        if request.prompt.role == "planning":
            feedbacks.append("smaller, please" in str(request.prompt.messages))
            return plan_text(2)
        return f"did {request.prompt.subtask_id}"

    async with service(tmp_path / "log.db", Scripted(script)) as running:
        shell = Shell.without_service(tmp_path).with_variables(ORCHESTRATOR_GRPC_ADDRESS=running.address)
        shell = shell.with_variables(EDITOR="sed -i s/part.1/everything/")
        person = await open_session(shell, "run", "p", "--plan", "--id", "a")
        assert "Write part 1 of 2." in await person.read_until_text(QUESTION)
        person.type_line("what?")
        await person.read_until_text(QUESTION)
        person.type_line("r")
        await person.read_until_text(b"what should be better? ")
        person.type_line("smaller, please")
        assert "2 attempts" in await person.read_until_text(QUESTION)
        assert await state_of(running, "a") == instance_pb2.STATE_WAITING
        person.type_line("e")
        assert "2 of 2 done" in await person.wait_closed()
        found = await running.stub.GetInstance(pb.GetInstanceRequest(id="a", view=pb.VIEW_FULL))
    assert person.process.returncode == 0
    assert feedbacks == [False, True]
    assert [it.instructions for it in found.instance.subtasks] == [
        "Write everything of 2.",
        "Write part 2 of 2.",
    ]


async def test_an_unchanged_or_invalid_edit_is_asked_about_again(shell: Shell, running: Service) -> None:
    for editor, words in (
        ("true", "the plan is as it was"),
        ("false", "the plan is as it was"),
        ("nix-editor", "set EDITOR to another editor"),
        ("sed -i s/Write.*/x/", "must be a JSON list of subtasks"),
        ("sed -i s/t2/t1/", "t1"),  # which the service refuses
    ):
        person = await open_session(
            shell.with_variables(EDITOR=editor), "run", "p", "--review-plan", "--id", "a"
        )
        await person.read_until_text(QUESTION)
        person.type_line("e")
        assert f"error: {words}" in (shown := await person.read_until_text(QUESTION)) or words in shown
        person.type_line("l")
        assert "the plan of a waits for review" in await person.wait_closed()
        assert person.process.returncode == 0
        await running.stub.TerminateInstance(pb.TerminateInstanceRequest(id="a"))
        await running.stub.DeleteInstance(pb.DeleteInstanceRequest(id="a"))


async def test_with_context_on_stdin_questions_go_to_the_terminal(shell: Shell, running: Service) -> None:
    (shell.folder / "diff").write_text("-a\n+b\n")
    with (shell.folder / "diff").open("rb") as diff:
        person = await open_session(
            shell,
            *("run", "Review this", "--plan", "--id", "a"),
            stdin=diff,
            start_new_session=True,
            preexec_fn=set_controlling_terminal,
        )
    await person.read_until_text(QUESTION)
    person.type_line("a")
    assert "All parts, put together." in await person.wait_closed()
    found = await running.stub.GetInstance(pb.GetInstanceRequest(id="a"))
    assert found.instance.prompt == "Review this\n\n```\n-a\n+b\n```\n"


async def test_a_question_ends_when_another_client_decides(shell: Shell, running: Service) -> None:
    person = await open_session(shell, "run", "p", "--plan", "--id", "a")
    await person.read_until_text(QUESTION)
    await running.stub.ReviewPlan(pb.ReviewPlanRequest(id="a", decision=1))
    await running.ended("a")
    person.type_line("a")
    text = await person.wait_closed()
    assert person.process.returncode == 0
    assert "error: a has gone on since event 5: plan approved; t1 Part 1 started" in text
    assert "All parts, put together." in text


async def test_in_a_pipe_review_plan_waits_for_a_reviewer(shell: Shell, running: Service) -> None:
    process = await shell.start("run", "p", "--review-plan", "--id", "a")
    assert process.stderr
    while b"the plan waits for review: " not in await process.stderr.readline():
        pass
    await running.stub.ReviewPlan(pb.ReviewPlanRequest(id="a", decision=1))
    out, _ = await process.communicate()
    assert (process.returncode, out.decode()) == (0, RESULT)


async def test_an_edit_of_a_plan_that_has_changed_is_offered_again(shell: Shell, running: Service) -> None:
    shell = shell.with_variables(EDITOR="sed -i s/part.1/everything/")
    person = await open_session(shell, "run", "p", "--plan", "--id", "a")
    await person.read_until_text(QUESTION)
    await running.stub.PauseInstance(pb.PauseInstanceRequest(id="a"))
    await running.stub.ResumeInstance(pb.ResumeInstanceRequest(id="a"))
    person.type_line("e")
    text = await person.read_until_text(QUESTION)
    assert "error: a has gone on since event 5: " in text
    assert "resumed. Nothing was changed" in text.replace("\r\n", "").replace("  ", " ")
    assert "your edit is kept: [e]dit opens it" in text
    assert await state_of(running, "a") == instance_pb2.STATE_WAITING
    person.type_line("e")
    await person.wait_closed()
    found = await running.stub.GetInstance(pb.GetInstanceRequest(id="a", view=pb.VIEW_FULL))
    assert found.instance.subtasks[0].instructions == "Write everything of 2."


async def test_a_late_edit_is_saved_to_a_file(shell: Shell, running: Service) -> None:
    shell = shell.with_variables(EDITOR="sed -i s/part.1/everything/", TMPDIR=str(shell.folder))
    person = await open_session(shell, "run", "p", "--plan", "--id", "a")
    await person.read_until_text(QUESTION)
    await running.stub.ReviewPlan(pb.ReviewPlanRequest(id="a", decision=1))
    await running.ended("a")
    person.type_line("e")
    assert "your edit of the plan is kept in " in await person.wait_closed()
    [kept] = shell.folder.glob("a-*.json")
    assert "Write everything of 2." in kept.read_text()
