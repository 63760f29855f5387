"""What is piped in: context beside a prompt, the prompt where there is none, and never a reason to hang."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.scripted_service import ScriptedService, play_success
from support.shell import COMMAND, Shell, run_in_terminal

from orchestrator.core.create import MAX_PROMPT_BYTES

DIFF = "--- a/x.py\n+++ b/x.py\n-print('ü')\n+print('é')\n"
REVIEW_OF_DIFF = f"Review this\n\n```\n{DIFF}```\n"


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    async with ScriptedService(play_success) as service:
        yield await service.start(rest_port=0)


@pytest.fixture
def shell(tmp_path: Path, service: ScriptedService) -> Shell:
    return Shell.without_service(tmp_path).on(service)


async def run_line(shell: Shell, line: str) -> tuple[int | None, str]:
    """Run a line of bash, in which `$o` is the command; the exit code and what goes to stderr."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", line),
        cwd=shell.folder,
        env={**shell.environment, "o": " ".join(COMMAND)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await process.communicate()
    return process.returncode, err.decode()


@pytest.mark.parametrize("command", ["run", "create"])
@pytest.mark.parametrize(
    "line",
    [
        'cat diff | $o {} "Review this"',
        '$o {} "Review this" < diff',
        'echo "Review this" > prompt; cat diff | $o {} --prompt-file prompt',
        '(sleep 2; cat diff) | $o {} "Review this"',
    ],
    ids=["pipe", "file", "beside a prompt's file", "slow"],
)
async def test_piped_text_is_the_prompts_context(
    shell: Shell, service: ScriptedService, command: str, line: str
) -> None:
    (shell.folder / "diff").write_text(DIFF)
    code, err = await run_line(shell, line.format(command))
    assert code == 0, err
    assert [request.prompt for request in service.requests] == [REVIEW_OF_DIFF]
    assert f"context from stdin: {len(DIFF.encode())} bytes" in err


@pytest.mark.parametrize("text", ["", "\n \n"])
async def test_an_empty_pipe_adds_nothing(shell: Shell, service: ScriptedService, text: str) -> None:
    outcome = await shell.run("create", "Review this", stdin=text)
    assert (outcome.code, outcome.err) == (0, "")
    assert [request.prompt for request in service.requests] == ["Review this"]


@pytest.mark.parametrize("command", ["run", "create"])
@pytest.mark.parametrize("flag", ["--prompt-file -", "--prompt-file=-"])
async def test_a_dash_as_the_prompt_file_reads_stdin(
    shell: Shell, service: ScriptedService, command: str, flag: str
) -> None:
    (shell.folder / "prompt").write_text("Review this")
    for line in (f"cat prompt | $o {command} {flag}", f"$o {command} {flag} < prompt"):
        code, err = await run_line(shell, line)
        assert code == 0, err
    assert [request.prompt for request in service.requests] == ["Review this"] * 2


async def test_an_empty_stdin_as_the_prompt_file_is_an_empty_prompt(shell: Shell) -> None:
    for line in ("$o create --prompt-file - < /dev/null", "$o create --prompt-file - <&-"):
        code, err = await run_line(shell, line)
        assert code == 2
        assert err.startswith("error: the prompt is empty: ")


async def test_a_dash_as_the_plan_file_reads_stdin(shell: Shell, service: ScriptedService) -> None:
    plan = '[{"id": "mine", "instructions": "Do it."}]'
    for arguments in (("create", "p", "--plan", "-"), ("run", "p", "--plan=-")):
        outcome = await shell.run(*arguments, stdin=plan)
        assert outcome.code == 0, outcome.err
    plans = [[subtask.id for subtask in request.config.subtasks] for request in service.requests]
    assert plans == [["mine"]] * 2
    assert [request.prompt for request in service.requests] == ["p"] * 2
    outcome = await shell.run("create", "p", "--plan", "-", stdin="{")
    assert outcome.code == 2
    assert outcome.err.startswith("error: stdin must be a JSON list of subtasks, as in ")


async def test_a_dash_or_no_prompt_reads_the_prompt_from_stdin(
    shell: Shell, service: ScriptedService
) -> None:
    for arguments in (("-",), ()):
        outcome = await shell.run("run", *arguments, stdin="\ufeffa prompt\r\n")
        assert outcome.code == 0, outcome.err
    (shell.folder / "p").write_text("a prompt\n")
    assert (await run_line(shell, "$o run < p"))[0] == 0
    assert [request.prompt for request in service.requests] == ["a prompt\n"] * 3


async def test_a_byte_order_mark_is_dropped_and_a_fence_in_the_text_does_not_end_it(
    shell: Shell, service: ScriptedService
) -> None:
    await shell.run("create", "p", stdin="\ufeffa\n```sh\nls\n````\nb")
    assert service.requests[0].prompt == "p\n\n`````\na\n```sh\nls\n````\nb\n`````\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"\xff\xfea\0", "UTF-16"), (b"\x89PNG\r\n\x1a\n", "UTF-8"), (b"a\xe9", "UTF-8")],
    ids=["UTF-16", "an image", "Latin-1"],
)
async def test_input_that_is_not_utf_8_is_reported(
    shell: Shell, service: ScriptedService, data: bytes, words: str
) -> None:
    process = await shell.start("run", "p")
    _, err = await process.communicate(data)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1
    assert "piped in as context" in err.decode()
    assert words in err.decode()
    assert not service.requests


@pytest.mark.parametrize("size", [MAX_PROMPT_BYTES - 10, 50 * MAX_PROMPT_BYTES])
async def test_a_context_that_is_too_long_is_reported_with_both_sizes(
    shell: Shell, service: ScriptedService, size: int
) -> None:
    code, err = await run_line(shell, f'head -c {size} /dev/zero | tr "\\0" x | $o run "Review this"')
    assert (code, len(err.splitlines())) == (2, 1)
    size_text = f"{size:,}" if size < MAX_PROMPT_BYTES else f"over {MAX_PROMPT_BYTES:,}"
    assert f"the prompt has 11 bytes and the context that is piped in {size_text}" in err
    assert f"{MAX_PROMPT_BYTES:,}" in err
    assert not service.requests


async def test_a_device_or_a_closed_stdin_is_not_read(shell: Shell, service: ScriptedService) -> None:
    for redirection in ("< /dev/null", "< /dev/zero", "<&-"):
        code, err = await run_line(shell, f"$o create p {redirection}")
        assert (code, err) == (0, "")
    code, err = await run_line(shell, "$o create < /dev/null")
    assert (code, "the prompt is empty" in err) == (2, True)
    assert [request.prompt for request in service.requests] == ["p"] * 3


def ends_of(kind: str) -> tuple[Any, Any]:
    """Return the end that a command reads, and the one that its parent keeps open."""
    if kind == "pipe":
        ours, theirs = os.pipe()
        return os.fdopen(ours, "rb"), os.fdopen(theirs, "wb")
    return socket.socketpair()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_an_open_idle_stdin_does_not_block(shell: Shell, service: ScriptedService, kind: str) -> None:
    ours, theirs = ends_of(kind)
    with ours, theirs:
        process = await shell.start("create", "p", stdin=ours)
        async with asyncio.timeout(40):
            _, err = await process.communicate()
    assert process.returncode == 0
    lines = err.decode().splitlines()
    assert lines[0] == "reading context from stdin…"
    assert lines[1].startswith("nothing came from stdin in 5 s: going on without it")
    assert [request.prompt for request in service.requests] == ["p"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the writers of a pipe")
async def test_a_slow_upstream_command_is_awaited(shell: Shell, service: ScriptedService) -> None:
    code, err = await run_line(shell, "(sleep 7; echo late) | $o create p")
    assert (code, err.splitlines()[0]) == (0, "reading context from stdin…")
    assert [request.prompt for request in service.requests] == ["p\n\n```\nlate\n```\n"]


@pytest.mark.parametrize("arguments", [("create", "p"), ("create", "--prompt-file", "p")])
async def test_a_terminal_is_not_read(
    shell: Shell, service: ScriptedService, arguments: Sequence[str]
) -> None:
    (shell.folder / "p").write_text("p")
    code, text = await run_in_terminal(shell, *arguments)
    assert (code, text.splitlines()[0]) == (0, "i1")
    assert text.splitlines()[2].endswith(f"orchestrator result i1 --address {service.address}")
    assert [request.prompt for request in service.requests] == ["p"]
