"""The command as a shell meets it: what it prints where, and the exit code it leaves."""

import asyncio
import json
import os
import pty
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
from support.endpoint import Endpoint
from support.scripted_service import ScriptedService, play_planning_failure, play_success
from support.shell import (
    COMMAND,
    COMMANDS,
    NO_MODELS,
    Shell,
    assert_one_line,
    read_all,
    read_until,
    run_in_terminal,
)

from orchestrator.cli.options import read_requests
from orchestrator.v1 import event_pb2, instance_pb2

ANSWER = "# Answer\n\none \x1b[31mtwo\n"
"""What `play_success` ends with, as a pipe gets it."""


@pytest.fixture
def shell_without_service(tmp_path: Path) -> Shell:
    return Shell.without_service(tmp_path)


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    async with ScriptedService(play_success) as service:
        yield await service.start(rest_port=0)


@pytest.fixture
def shell(shell_without_service: Shell, service: ScriptedService) -> Shell:
    return shell_without_service.on(service)


async def test_help_has_examples_and_the_address_option_and_needs_no_slow_import(
    shell_without_service: Shell,
) -> None:
    outcomes = await asyncio.gather(*(shell_without_service.run(name, "--help") for name in COMMANDS))
    for name, outcome in zip(COMMANDS, outcomes, strict=True):
        assert (outcome.code, outcome.err) == (0, "")
        assert "Examples:" in outcome.out
        assert f"orchestrator {name}" in outcome.out
        assert "--address HOST:PORT" in outcome.out.replace("-grpc-address", "").replace("-rest-address", "")
    look = (
        "import sys, orchestrator.cli; print({'grpc', 'rich', 'httpx', 'google.protobuf'} & set(sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", look, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0] == b"set()\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("get",),
        ("get", "i1", "--what"),
        ("list", "--state", "odd"),
        ("list", "--limit", "0"),
        ("list", "--label", "team"),
        ("create",),
        ("create", "p", "--prompt-file", "p.md"),
        ("create", "--prompt-file", "nowhere.md"),
        ("create", "p", "--max-subtasks", "99999999999"),
        ("retry", "i1", "--max-attempts", "99999999999"),
        ("fork", "i1", "--stage", "odd"),
        ("run", " \n"),
        ("get", "i1", "--address", "nonsense"),
        ("list", "--address", "http://127.0.0.1:50051"),
        ("run", "p", "--address", "https://localhost:50051"),
        ("serve", "--log-level", "loud"),
        ("up", "--rest-address", "8787"),
    ],
    ids=" ".join,
)
async def test_bad_usage_is_reported_in_one_line(
    shell_without_service: Shell, arguments: Sequence[str]
) -> None:
    outcome = await shell_without_service.run(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert_one_line(outcome)


async def test_without_a_command_it_shows_its_help(shell_without_service: Shell) -> None:
    outcome = await shell_without_service.run()
    assert outcome.code == 2
    assert "Commands:" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [("create", "p"), ("get", "i1"), ("list",), ("events", "i1"), ("wait", "i1"), ("terminate", "i1")],
    ids=" ".join,
)
async def test_without_a_service_it_names_the_command_to_start_one(
    shell_without_service: Shell, arguments: Sequence[str]
) -> None:
    outcome = await shell_without_service.run(*arguments)
    assert (outcome.code, outcome.out) == (3, "")
    assert_one_line(outcome)
    assert "orchestrator up" in outcome.err


async def test_a_rejection_by_the_service_is_bad_usage(shell: Shell, service: ScriptedService) -> None:
    for arguments in (("get", "nix"), ("events", "nix"), ("wait", "nix"), ("terminate", "nix")):
        outcome = await shell.run(*arguments)
        assert (outcome.code, outcome.err) == (2, "error: no instance 'nix'\n")
    service.create_error = (grpc.StatusCode.INVALID_ARGUMENT, "ID_INVALID", "the id is\n\x1b[31mno id")
    for arguments in (("create", "p"), ("run", "p")):
        outcome = await shell.run(*arguments)
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1] == "error: the id is \\x1b[31mno id"


async def test_a_prompt_is_read_from_the_argument_a_file_or_stdin(
    shell: Shell, service: ScriptedService
) -> None:
    (shell.folder / "p.md").write_text("from a file: ü\n")
    assert (await shell.run("create", "plain")).out == "i1\n"
    assert (await shell.run("create", "--prompt-file", "p.md")).out == "i2\n"
    assert (await shell.run("create", "-", stdin="from a dash\n")).out == "i3\n"
    assert (await shell.run("create", stdin="from a pipe\n")).out == "i4\n"
    prompts = [request.prompt for request in service.requests]
    assert prompts == ["plain", "from a file: ü\n", "from a dash\n", "from a pipe\n"]


async def test_a_byte_order_mark_is_dropped_from_input(shell: Shell, service: ScriptedService) -> None:
    mark, folder = "\ufeff", shell.folder
    (folder / "p.md").write_text(f"{mark}from a file", "utf-8")
    (folder / "plan.json").write_text(f'{mark}[{{"id": "t1", "title": "T", "instructions": "I"}}]', "utf-8")
    (folder / "b.jsonl").write_text(f'{mark}{{"prompt": "from a batch"}}\r\n{{"prompt": "b"}}\r\n', "utf-8")
    (folder / "orchestrator.toml").write_text(f'{mark}log_level = "error"\r\n', "utf-8")
    assert (await shell.run("create", "--prompt-file", "p.md", "--plan", "plan.json")).code == 0
    assert (await shell.run("create", stdin=f"{mark}from a pipe")).code == 0
    assert [request.prompt for request in service.requests] == ["from a file", "from a pipe"]
    assert [subtask.id for subtask in service.requests[0].config.subtasks] == ["t1"]
    assert [request.prompt for request in read_requests(folder / "b.jsonl")] == ["from a batch", "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
async def test_a_file_in_utf_16_is_reported_as_utf_16(shell_without_service: Shell, encoding: str) -> None:
    for name in ("p.md", "plan.json", "b.jsonl", "orchestrator.toml"):
        (shell_without_service.folder / name).write_text('log_level = "info"', encoding)
        arguments = {
            "p.md": ("create", "--prompt-file", "p.md"),
            "plan.json": ("create", "p", "--plan", "plan.json"),
            "b.jsonl": ("batch", "b.jsonl"),
            "orchestrator.toml": ("list",),
        }[name]
        outcome = await shell_without_service.run(*arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert_one_line(outcome)
        assert f"{name} is " in outcome.err
        assert "UTF-16" in outcome.err
        assert "save it as UTF-8" in outcome.err
        (shell_without_service.folder / name).unlink()


async def test_create_sends_exactly_its_arguments(shell: Shell, service: ScriptedService) -> None:
    options = "--id mine --request-id k --label a=b --label c=d=e --max-subtasks 3 --max-attempts 2"
    outcome = await shell.run("create", "p", *options.split(), "--max-cost-usd", "0.5", "--json")
    assert outcome.json["id"] == "mine"
    assert outcome.json["instance"]["config"]["maxSubtasks"] == 3
    (request,) = service.requests
    assert (request.request_id, dict(request.labels)) == ("k", {"a": "b", "c": "d=e"})
    config = instance_pb2.InstanceConfig(max_subtasks=3)
    config.retry.max_attempts = 2
    config.budget.max_cost_usd = 0.5
    assert request.config == config


async def test_get_and_list_print_for_people_and_programs(shell: Shell) -> None:
    for _ in range(3):
        await shell.run("create", "a prompt")
    assert (await shell.run("wait", "i3")).out == "complete\n"
    shown = await shell.run("get", "i1", "--full")
    assert all(
        words in shown.out for words in ("complete", "First [bold]part", "openai/big", "two", "# Answer")
    )
    assert "\x1b" not in shown.out
    assert (await shell.run("get", "i1", "--json")).json["status"]["output"]["orchestratorTasks"]
    lines = (await shell.run("list", "--limit", "2")).out.splitlines()
    assert [line.split("\t")[:2] for line in lines] == [["i3", "complete"], ["i2", "complete"]]
    listed = (await shell.run("list", "--state", "complete", "--json")).json
    assert [instance["id"] for instance in listed["instances"]] == ["i3", "i2", "i1"]


NO_OBJECT = "of stdin is no JSON object: each line must be a whole one, as in"
BATCHES = {
    '{"prompt": "a"}\n\n{"prompt":\n': f"line 3 {NO_OBJECT}",
    '[{"prompt": "a"}]': f"line 1 {NO_OBJECT}",
    "\n": "stdin holds no requests: each line must be a whole one, as in",
    '{"requestId": "a", "request_id": "b"}': "line 1 of stdin: request_id is given twice, in both spellings",
    "[" * 100_000: "line 1 of stdin is no JSON object",
    '{"promt": "a"}': "line 1 of stdin: promt is no field: did you mean prompt?",
    '{"prompt": 1}': "line 1 of stdin: prompt must be text in quotes",
    '{"config": {"maxSubtask": 3}}': "config.maxSubtask is no field: did you mean maxSubtasks?",
    '{"config": {"max_subtasks": "many"}}': "config.max_subtasks must be a whole number of at most",
    '{"config": {"budget": {"maxDuration": "soon"}}}': 'maxDuration must be seconds in quotes, as in "1.5s"',
    '{"config": {"subtasks": [{"id": "a"}, {"dependsOn": "a"}]}}': (
        "config.subtasks[1].dependsOn must be a list, each item text in quotes"
    ),
    '{"config": {"subtasks": {}}}': "config.subtasks must be a list, each item an object",
    '{"config": {"reviewPlan": "yes"}}': "config.reviewPlan must be true or false",
    '{"labels": {"a": 1}}': "labels must be an object whose values are text in quotes",
}


async def test_a_malformed_batch_names_the_line_and_the_expectation(
    shell_without_service: Shell,
) -> None:
    outcomes = await asyncio.gather(
        *(shell_without_service.run("batch", "-", stdin=text) for text in BATCHES)
    )
    for words, outcome in zip(BATCHES.values(), outcomes, strict=True):
        assert (outcome.code, outcome.out) == (2, "")
        assert_one_line(outcome)
        assert words in outcome.err
        assert "orchestrator.v1" not in outcome.err


def test_a_batch_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"prompt": "one\u2028two"}\r\n\n{"prompt": "b", "config": {"max_subtasks": 3}}\n')
    first, second = read_requests(file)
    assert first.prompt == "one\u2028two"
    assert second.config.max_subtasks == 3


async def test_a_malformed_plan_names_the_subtask(shell_without_service: Shell) -> None:
    plan = shell_without_service.folder / "plan.json"
    for text, words in (
        ("{}", "plan.json must be a JSON list of subtasks, as in [{"),
        ("[", "plan.json must be a JSON list of subtasks, as in [{"),
        ('[{"id": "a"}, 3]', "subtask 2 of plan.json: it must be an object, in braces"),
        ('[{"id": "a", "dependOn": []}]', "dependOn is no field: did you mean dependsOn?"),
    ):
        plan.write_text(text)
        outcome = await shell_without_service.run("create", "p", "--plan", "plan.json")
        assert outcome.code == 2
        assert_one_line(outcome)
        assert words in outcome.err


async def test_events_are_printed_as_lines_or_json(shell: Shell, service: ScriptedService) -> None:
    await shell.run("create", "p")
    outcome = await shell.run("events", "i1")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 12
    assert "t1 First [bold]part done in" in outcome.out
    found = await shell.run("events", "i1", "--after", "9", "--json")
    assert [event["sequence"] for event in found.events] == ["10", "11", "12"]
    await service.record("open", event_pb2.InstanceCreated(prompt="p"))
    assert len((await shell.run("events", "open", "--no-follow")).out.splitlines()) == 1


async def test_wait_reports_the_outcome_by_its_exit_code(shell: Shell, service: ScriptedService) -> None:
    await service.record("open", event_pb2.InstanceCreated(prompt="p"))
    assert (await shell.run("wait", "open", "--timeout", "0.1")).code == 124
    assert (await shell.run("terminate", "open")).out == "open is terminated\n"
    assert (await shell.run("wait", "open")).code == 1
    await service.record("bad", event_pb2.InstanceCreated(prompt="p"))
    await play_planning_failure(service, "bad")
    outcome = await shell.run("wait", "bad", "--json")
    assert (outcome.code, outcome.json["status"]["status"]) == (1, "errored")
    assert outcome.err == "error: MODEL_UNAUTHENTICATED: no key for openai: set OPENAI_API_KEY\n"


async def test_run_prints_only_the_answer_on_stdout(shell: Shell, service: ScriptedService) -> None:
    outcome = await shell.run("run", "p", "--label", "a=b")
    assert (outcome.code, outcome.out) == (0, ANSWER)
    assert "openai/big plans, openai/small works" in outcome.err
    assert "t2 Second started with openai/small" in outcome.err
    assert "\x1b" not in outcome.err
    assert service.requests[0].labels == {"a": "b"}
    assert service.created_over_rest == 1


async def test_run_prints_the_events_for_programs(shell: Shell) -> None:
    outcome = await shell.run("run", "p", "--json")
    assert outcome.code == 0
    assert [int(event["sequence"]) for event in outcome.events] == list(range(1, 13))
    assert outcome.events[10]["synthesisCompleted"]["finalResult"] == ANSWER.rstrip("\n")


async def test_run_of_a_failing_instance_reports_the_reason(shell_without_service: Shell) -> None:
    async with ScriptedService(play_planning_failure) as service:
        await service.start(rest_port=0)
        shell = shell_without_service.on(service)
        outcome = await shell.run("run", "p")
    assert (outcome.code, outcome.out) == (1, "")
    last = outcome.err.splitlines()[-1]
    assert last == "error: MODEL_UNAUTHENTICATED: no key for openai: set OPENAI_API_KEY"


async def test_run_works_without_rest_where_only_grpc_is_served(shell_without_service: Shell) -> None:
    async with ScriptedService(play_success) as service:
        await service.start()
        outcome = await shell_without_service.with_variables(ORCHESTRATOR_GRPC_ADDRESS=service.address).run(
            "run", "p"
        )
    assert (outcome.code, outcome.out) == (0, ANSWER)
    assert "over gRPC" in outcome.err


async def test_run_survives_a_restart_of_the_service(shell: Shell, service: ScriptedService) -> None:
    service.cut_after = 5
    outcome = await shell.run("run", "p", "--json")
    assert [int(event["sequence"]) for event in outcome.events] == list(range(1, 13))


@pytest.mark.parametrize(
    ("number", "code", "options"), [(signal.SIGINT, 130, ()), (signal.SIGTERM, 143, ("-v",))]
)
async def test_run_detaches_when_interrupted(
    shell_without_service: Shell, number: signal.Signals, code: int, options: Sequence[str]
) -> None:
    async with ScriptedService() as service:
        await service.start(rest_port=0)
        shell = shell_without_service.on(service)
        process = await shell.start("run", "p", *options)
        assert process.stderr
        while b"created i1" not in await process.stderr.readline():
            pass
        process.send_signal(number)
        _, err = await process.communicate()
    assert process.returncode == code
    lines = err.decode().splitlines()[-4:]
    assert lines[0] == "detached: i1 goes on without you"
    again = " ".join(("orchestrator events i1 --follow", *options))
    assert lines[1].endswith(f"{again} --address {service.address}")
    assert lines[2].endswith(f"orchestrator terminate i1 --address {service.address}")
    assert lines[3].endswith(f"orchestrator result i1 --address {service.address}")


async def test_in_a_terminal_run_draws_and_the_answer_cannot_send_control_sequences(shell: Shell) -> None:
    code, text = await run_in_terminal(shell, "run", "p")
    assert code == 0
    assert "✓" in text
    assert "First [bold]part" in text
    assert "\\x1b[31mtwo" in text
    assert "\x1b[31mtwo" not in text


async def test_in_a_terminal_events_are_drawn_and_end_with_the_result(
    shell: Shell, service: ScriptedService
) -> None:
    await shell.run("create", "p")
    await shell.run("wait", "i1")
    code, text = await run_in_terminal(shell, "events", "i1")
    assert code == 0
    assert "2 of 2 done" in text
    assert text.rindex("Answer") > text.rindex("2 of 2 done")
    for arguments in (("--no-follow",), ("--after", "3")):
        _, text = await run_in_terminal(shell, "events", "i1", *arguments)
        assert "synthesis done" in text
        assert "2 of 2 done" not in text
    await service.record("bad", event_pb2.InstanceCreated(prompt="p"))
    await play_planning_failure(service, "bad")
    code, text = await run_in_terminal(shell, "events", "bad", columns=100)
    assert code == 0
    assert "MODEL_UNAUTHENTICATED: no key for openai: set OPENAI_API_KEY" in text


async def test_in_a_terminal_list_is_a_table_and_get_a_page(shell: Shell) -> None:
    name = "an-id-that-is-longer-than-the-terminal-is-wide-and-must-be-copied-whole"
    await shell.run("create", "a prompt", "--id", name)
    await shell.run("wait", name)
    _, table = await run_in_terminal(shell, "list")
    assert name in table
    assert "complete" in table
    code, page = await run_in_terminal(shell, "get", name)
    assert code == 0
    assert "First [bold]part" in page
    assert "\x1b[31mtwo" not in page


async def test_live_text_is_drawn_and_printed_for_programs(shell_without_service: Shell) -> None:
    async def play(service: ScriptedService, instance_id: str) -> None:
        await service.record(
            instance_id,
            event_pb2.PlanningStarted(attempt=1, model="m/m"),
            event_pb2.SubtaskPlanned(attempt=1, subtask=instance_pb2.Subtask(id="t1", title="First")),
            event_pb2.PlanCompleted(attempt=1, model="m/m"),
            event_pb2.SubtaskStarted(subtask_id="t1", attempt=1, model="m/m"),
        )
        await service.write(instance_id, "half a \x1b[31msentence", subtask_id="t1")

    async with ScriptedService(play) as service:
        await service.start(rest_port=0)
        shell = shell_without_service.on(service)
        process = await shell.start("run", "p", "--live", "--json")
        assert process.stdout
        while '"delta"' not in (line := (await process.stdout.readline()).decode()):
            pass
        assert json.loads(line)["delta"] == {
            "subtaskId": "t1",
            "attempt": 1,
            "text": "half a \x1b[31msentence",
        }
        ours, theirs = pty.openpty()
        drawing = await shell.with_variables(TERM="xterm-256color", COLUMNS="60", LINES="20").start(
            "events", "i1", "-v", stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        reading = asyncio.to_thread(read_until, ours, b"half a \\x1b[31msentence")
        assert b"\x1b[31msentence" not in await reading
        await service.record("i1", event_pb2.InstanceTerminated())
        await asyncio.to_thread(read_all, ours)
        assert await drawing.wait() == 0
        await process.communicate()
        assert process.returncode == 1


async def test_a_service_that_disconnects_and_returns_is_reported(
    shell: Shell, service: ScriptedService
) -> None:
    service.cut_after = 5
    outcome = await shell.run("run", "p")
    assert (outcome.code, outcome.out) == (0, ANSWER)
    lines = outcome.err.splitlines()
    assert [line for line in lines if "away" in line] == [
        "the service is away, reconnecting…: the service stops"
    ]
    assert "the service is back" in lines


async def test_an_interrupted_events_command_prints_how_to_resume(
    shell: Shell, service: ScriptedService
) -> None:
    await service.record("open", event_pb2.InstanceCreated(prompt="p"))
    for options, again in (((), "events open --follow"), (("-v",), "events open --follow -v")):
        process = await shell.start("events", "open", *options)
        assert process.stdout
        assert b"created open" in await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert process.returncode == 130
        assert err.decode().splitlines()[0] == "detached: open goes on without you"
        assert err.decode().splitlines()[1].endswith(f"{again} --address {service.address}")


async def test_a_reader_that_closes_the_pipe_causes_no_error(shell: Shell, service: ScriptedService) -> None:
    await service.record("big", event_pb2.InstanceCreated(prompt="p" * 500_000))
    await service.record("big", event_pb2.InstanceTerminated())
    process = await shell.start("events", "big", "--json")
    assert process.stdout
    assert process.stderr
    await process.stdout.read(1)
    process.stdout._transport.close()  # type: ignore[attr-defined]
    err = await process.stderr.read()
    assert (await process.wait(), err) == (141, b"")


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--help",), ("--version",), ("list", "--help"), ("doctor",), ("doctor", "--json")),
        *(("create", "p"), ("get", "x"), ("list", "--json"), ("events", "x"), ("wait", "x"), ("run", "p")),
        ("serve", "--grpc-address", "127.0.0.1:0"),
    ],
    ids=" ".join,
)
async def test_a_full_stdout_is_reported_as_a_full_disk(
    shell: Shell, service: ScriptedService, arguments: Sequence[str]
) -> None:
    await service.record("x", event_pb2.InstanceCreated(prompt="p"))
    await service.record("x", event_pb2.InstanceTerminated())
    if arguments[0] == "serve":
        arguments = (*arguments, "--database", str(shell.folder / "log.db"))
        shell = shell.with_variables(**NO_MODELS, OPENAI_API_KEY="k")
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123  a device
        process = await shell.start(*arguments, stdout=full)
        _, err = await process.communicate()
    assert process.returncode == 2
    last = err.decode().splitlines()[-1]
    message, _, kept = last.partition("; ")
    assert message == "error: cannot write to stdout: No space left on device"
    assert (" result i2" in kept) == (arguments[0] == "run")
    assert b"Traceback" not in err


async def test_a_full_stderr_does_not_stop_the_command(shell: Shell) -> None:
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123  a device
        process = await shell.start("run", "p", stderr=full)
        out, _ = await process.communicate()
    assert (process.returncode, out.decode()) == (0, ANSWER)


async def test_commands_tolerate_closed_standard_streams(shell: Shell, service: ScriptedService) -> None:
    """As a shell closes them with `<&- >&- 2>&-`."""
    for closed, code in (("<&-", 2), (">&-", 2), ("2>&-", 2), ("<&- >&- 2>&-", 2)):
        line = f'exec "$@" {closed}'
        command = ("sh", "-c", line, "sh", *COMMAND, "create")
        process = await asyncio.create_subprocess_exec(
            *command, cwd=shell.folder, env=shell.environment, stdin=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == code
    for closed, code in (("<&- 2>&-", 0), ("<&- >&- 2>&-", 2)):
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND, "create", "p"),
            cwd=shell.folder,
            env=shell.environment,
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert await process.wait() == code
    assert [request.prompt for request in service.requests] == ["p", "p"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--help",), ("--version",), ("create", "p"), ("get", "x"), ("list",), ("list", "--json")),
        *(("events", "x"), ("wait", "x"), ("run", "p"), ("run", "p", "--json"), ("doctor",)),
    ],
    ids=" ".join,
)
async def test_a_closed_stdout_is_reported_as_closed(
    shell: Shell, service: ScriptedService, arguments: Sequence[str]
) -> None:
    await service.record("x", event_pb2.InstanceCreated(prompt="p"))
    await service.record("x", event_pb2.InstanceTerminated())
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, *arguments),
        cwd=shell.folder,
        env=shell.environment,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert process.returncode == 2
    last = err.decode().splitlines()[-1]
    assert last.startswith("error: cannot write to stdout: Bad file descriptor")
    assert b"Traceback" not in err


async def test_a_non_blocking_stdout_receives_all_output(shell: Shell, service: ScriptedService) -> None:
    await service.record("big", event_pb2.InstanceCreated(prompt="p" * 500_000))
    await service.record("big", event_pb2.InstanceTerminated())
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = await shell.start("events", "big", "--json", stdout=writer)
    os.close(writer)
    with open(reader, "rb") as file:  # noqa: ASYNC230, PTH123  a pipe
        out = await asyncio.to_thread(file.read)
    assert await process.wait() == 0
    assert len(out) > 500_000


async def test_doctor_reports_missing_settings_and_shows_no_keys(shell_without_service: Shell) -> None:
    shell = shell_without_service.with_variables(
        ORCHESTRATOR_BIG_MODEL="openai/gpt", ORCHESTRATOR_SMALL_MODEL="nix/x"
    )
    outcome = await shell.run("doctor", "--json")
    assert (outcome.code, outcome.json["ok"]) == (1, False)
    checks = {check["subject"]: check for check in outcome.json["checks"]}
    assert "OPENAI_API_KEY" in checks["big model"]["mend"]
    assert "openai/…" in checks["small model"]["mend"]
    assert checks["grpc"]["status"] == checks["database"]["status"] == "ok"
    async with Endpoint() as endpoint:
        shell = shell.with_variables(OPENAI_API_KEY="secret-1", OPENAI_BASE_URL=endpoint.url)
        outcome = await shell.run("doctor")
    assert f"openai/gpt at {endpoint.url}, with OPENAI_API_KEY: it answers" in outcome.out
    assert "secret-1" not in outcome.out + outcome.err


async def test_doctor_checks_that_the_database_is_writable(shell_without_service: Shell) -> None:
    for path, words in (
        ("/proc/new/orchestrator.db", "its folder can be made and written, or set ORCHESTRATOR_DATABASE"),
        ("/dev/null", "set ORCHESTRATOR_DATABASE to another path"),
        ("/etc", "it is a folder: name a file in it, or set ORCHESTRATOR_DATABASE to another path"),
    ):
        shell = shell_without_service.with_variables(ORCHESTRATOR_DATABASE=path, **NO_MODELS)
        outcome = await shell.run("doctor", "--json")
        checks = {check["subject"]: check for check in outcome.json["checks"]}
        assert (outcome.code, checks["database"]["status"]) == (1, "broken")
        assert words in checks["database"]["mend"]


async def test_doctor_distinguishes_our_service_from_another_program(
    shell: Shell, service: ScriptedService
) -> None:
    service.info = None  # of an earlier version: it does not say where its REST is
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        shell = shell.with_variables(ORCHESTRATOR_REST_ADDRESS=address, **NO_MODELS)
        outcome = await shell.run("doctor")
    assert outcome.code == 1
    assert f"{service.address} is answered by the service" in outcome.out
    assert f"{address} cannot be listened on" in outcome.out
    assert "ORCHESTRATOR_REST_ADDRESS" in outcome.out


async def test_a_service_that_cannot_listen_reports_it_in_one_line(
    shell: Shell, service: ScriptedService
) -> None:
    for arguments in (("serve",), ("up",)):
        outcome = await shell.run(*arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert_one_line(outcome)
        assert service.address in outcome.err
        assert "ORCHESTRATOR_GRPC_ADDRESS" in outcome.err


async def test_run_reports_when_its_own_service_cannot_start(shell_without_service: Shell) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        outcome = await shell_without_service.with_variables(ORCHESTRATOR_REST_ADDRESS=address).run(
            "run", "p"
        )
    assert (outcome.code, outcome.out) == (2, "")
    note, error = outcome.err.splitlines()
    assert note.startswith("no service at")
    assert error.startswith("error: ORCHESTRATOR_REST_ADDRESS")


async def complete(shell: Shell, kind: str, line: str) -> list[str]:
    """What typer's script for a shell is offered behind a line."""
    words = line.split(" ")
    shell = shell.with_variables(
        _ORCHESTRATOR_COMPLETE=f"complete_{kind}",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
        _TYPER_COMPLETE_ARGS=line,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
    )
    outcome = await shell.run()
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out.split("\n")[:-1] if outcome.out.strip() else []


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
async def test_commands_and_ids_are_completed(shell: Shell, service: ScriptedService, kind: str) -> None:
    for name in ("rain-1", "rain-2", "sun", "$(touch evil)"):
        await service.record(name, event_pb2.InstanceCreated(prompt="p"))
    commands = "\n".join(await complete(shell, kind, "orchestrator re"))
    assert all(name in commands for name in ("resume", "retry", "restart", "review"))
    offered = await complete(shell, kind, "orchestrator get rain")
    expected = {
        "bash": ["rain-2", "rain-1"],
        "zsh": ['_arguments \'*: :(("rain-2":"queued"', '"rain-1":"queued"))\''],
        "fish": ["rain-2\tqueued", "rain-1\tqueued"],
    }
    assert offered == expected[kind]
    everything = "\n".join(await complete(shell, kind, "orchestrator terminate "))
    assert "sun" in everything
    assert "touch" not in everything


async def test_ids_are_completed_from_the_service_that_the_line_names(
    shell_without_service: Shell, service: ScriptedService
) -> None:
    await service.record("rain", event_pb2.InstanceCreated(prompt="p"))
    line = f"orchestrator get --address {service.address} r"
    assert await complete(shell_without_service, "bash", line) == ["rain"]


async def test_without_a_quick_answer_no_ids_are_completed(shell_without_service: Shell) -> None:
    assert await complete(shell_without_service, "bash", "orchestrator get r") == []
    assert await complete(shell_without_service, "bash", "orchestrator get --address nonsense r") == []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        line = f"orchestrator get --address {address} r"
        async with asyncio.timeout(10):
            assert await complete(shell_without_service, "bash", line) == []


async def test_bash_completes_by_the_script_that_is_printed_and_installed(
    shell: Shell, service: ScriptedService
) -> None:
    await service.record("rain", event_pb2.InstanceCreated(prompt="p"))
    folder = Path(sys.executable).parent
    shell = shell.with_variables(HOME=str(shell.folder), PATH=f"{folder}:{os.environ['PATH']}")
    tab = """
        COMP_WORDS=(orchestrator get r) COMP_CWORD=2
        $(complete -p orchestrator | sed 's/.*-F \\([^ ]*\\).*/\\1/') orchestrator
        echo "${COMPREPLY[@]}"
    """
    for script in (
        'eval "$(orchestrator --show-completion)"',
        "orchestrator --install-completion; source ~/.bashrc",
    ):
        process = await asyncio.create_subprocess_exec(
            "bash", "-c", script + tab, env=shell.environment, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert out.decode().splitlines()[-1] == "rain"


@pytest.mark.parametrize("kind", ["zsh", "fish"])
async def test_other_shells_get_their_script(shell_without_service: Shell, kind: str) -> None:
    shell = shell_without_service.with_variables(
        HOME=str(shell_without_service.folder), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    shown = await shell.run("--show-completion", kind)
    assert f"_ORCHESTRATOR_COMPLETE=complete_{kind}" in shown.out
    assert (await shell.run("--install-completion", kind)).code == 0
    path = {"zsh": ".zfunc/_orchestrator", "fish": ".config/fish/completions/orchestrator.fish"}[kind]
    assert (shell_without_service.folder / path).read_text().strip() == shown.out.strip()
