"""The interactive review of a plan in a terminal."""

import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TextIO

from orchestrator.cli.exit_codes import UsageError, print_error
from orchestrator.cli.options import read_plan
from orchestrator.cli.review import plan_json
from orchestrator.client import Client, ServiceError
from orchestrator.v1.event_pb2 import DECISION_APPROVE, DECISION_REJECT, Decision
from orchestrator.v1.instance_pb2 import Instance, Subtask

_QUESTION: Final = "\n[a]pprove, [e]dit, [r]eject, or decide [l]ater? "


def open_keyboard() -> TextIO | None:
    """Open the interactive input: stdin, or the terminal behind a pipe; None where there is no terminal."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        return None
    if sys.stdin.isatty():
        return sys.stdin
    try:
        return Path("/dev/tty").open(encoding=sys.stdin.encoding)
    except OSError:
        return None


async def ask_for_decision(client: Client, instance: Instance, keys: TextIO) -> bool:
    """Ask about the plan of an instance in VIEW_FULL until it is decided; return False for later."""
    while True:
        decision, subtasks, feedback = DECISION_APPROVE, [], ""
        match (await _read_line(_QUESTION, keys)).lower():
            case "a" | "approve":
                pass
            case "e" | "edit":
                subtasks = await _edit_plan(instance, keys)
                if not subtasks:
                    continue
            case "r" | "reject":
                decision, feedback = DECISION_REJECT, await _read_line("what should be better? ", keys)
            case "l" | "later" | "q" | "quit":
                return False
            case _:
                continue
        if await _submit_decision(client, instance.id, decision, subtasks, feedback):
            return True


async def _submit_decision(
    client: Client,
    instance_id: str,
    decision: Decision.ValueType,
    subtasks: Sequence[Subtask],
    feedback: str,
) -> bool:
    """Submit the decision; return whether the plan is decided, by this decision or by another."""
    try:
        await client.review(instance_id, decision, subtasks=subtasks, feedback=feedback)
    except ServiceError as error:
        print_error(str(error))
        return error.reason == "STATE_FORBIDS"
    return True


async def _edit_plan(instance: Instance, keys: TextIO) -> list[Subtask]:
    """Open the plan in an editor; print an error and return no subtasks where the result is unusable."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    plan = plan_json(instance) + "\n"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        file.write_text(plan, encoding="utf-8")
        try:
            process = await asyncio.create_subprocess_exec(*shlex.split(editor), str(file), stdin=keys)
            if await process.wait() or file.read_text(encoding="utf-8") == plan:
                raise UsageError("the plan is as it was")
            return read_plan(file)
        except UsageError as error:
            print_error(str(error))
        except (OSError, ValueError) as error:
            print_error(f"{editor} cannot be started ({error}): set EDITOR to another editor")
    return []


async def _read_line(question: str, keys: TextIO) -> str:
    """Read a line without blocking a service in this process; end of input means later."""
    print(question, end="", file=sys.stderr, flush=True)  # noqa: T201  the command's own voice
    is_readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(keys, is_readable.set)
    try:
        await is_readable.wait()
    except asyncio.CancelledError:
        print(file=sys.stderr)  # noqa: T201  what follows begins a line
        raise
    finally:
        loop.remove_reader(keys)
    line = keys.readline()
    return line.strip() if line else "later"
