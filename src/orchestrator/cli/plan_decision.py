"""The interactive review of a plan in a terminal."""

import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Final, TextIO

from orchestrator.cli.exit_codes import UsageError, print_error
from orchestrator.cli.expectation import describe_change
from orchestrator.cli.options import read_plan
from orchestrator.cli.review import plan_json
from orchestrator.cli.tables import print_plan
from orchestrator.client import Client, ServiceError
from orchestrator.core.instance import WAITING
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
    """Ask about the plan of an instance in VIEW_FULL until it is decided; return False for later.

    What is decided is decided of the plan that was shown: where the instance has gone on meanwhile, say how,
    show the plan that waits now, and ask again. An edit is offered again then.
    """
    edit = ""
    subtasks: Sequence[Subtask]
    while True:
        decision, subtasks, feedback = DECISION_APPROVE, (), ""
        match (await _read_line(_QUESTION, keys)).lower():
            case "a" | "approve":
                pass
            case "e" | "edit":
                edit, subtasks = await _edit_plan(instance, edit, keys)
                if not subtasks:
                    continue
            case "r" | "reject":
                decision, feedback = DECISION_REJECT, await _read_line("what should be better? ", keys)
            case "l" | "later" | "q" | "quit":
                return False
            case _:
                continue
        refusal = await _submit_decision(client, instance, decision, subtasks, feedback)
        if refusal is None:
            return True
        if refusal.reason not in ("SEQUENCE_MISMATCH", "STATE_FORBIDS"):
            continue
        now = (await client.get(instance.id, full=True)).instance
        if now.state != WAITING:
            _keep(edit, instance.id)
            return True
        print_plan(now)
        if edit:
            print("\nyour edit is kept: [e]dit opens it", file=sys.stderr)  # noqa: T201
        instance = now


def _keep(edit: str, instance_id: str) -> None:
    """Write an edit that came too late to a file, and say where."""
    if not edit:
        return
    with NamedTemporaryFile(
        "w", prefix=f"{instance_id}-", suffix=".json", encoding="utf-8", delete=False
    ) as file:
        file.write(edit)
    print(f"your edit of the plan is kept in {file.name}", file=sys.stderr)  # noqa: T201


async def _submit_decision(
    client: Client,
    instance: Instance,
    decision: Decision.ValueType,
    subtasks: Sequence[Subtask],
    feedback: str,
) -> ServiceError | None:
    """Submit the decision on the plan that `instance` shows; print and return what refuses it."""
    try:
        await client.review(
            instance.id,
            decision,
            subtasks=subtasks,
            feedback=feedback,
            expected_sequence=instance.last_sequence,
        )
    except ServiceError as error:
        if error.reason == "SEQUENCE_MISMATCH":
            print_error(await describe_change(client, instance.id, instance.last_sequence))
        else:
            print_error(str(error))
        return error
    return None


async def _edit_plan(instance: Instance, edit: str, keys: TextIO) -> tuple[str, Sequence[Subtask]]:
    """Open the plan, or an earlier edit, in an editor; return the text, and its subtasks if it is usable."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    plan = text = edit or plan_json(instance) + "\n"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        file.write_text(plan, encoding="utf-8")
        try:
            process = await asyncio.create_subprocess_exec(*shlex.split(editor), str(file), stdin=keys)
            is_aborted = bool(await process.wait())
            text = file.read_text(encoding="utf-8")
            if is_aborted or (text == plan and not edit):
                raise UsageError("the plan is as it was")
            return text, read_plan(file).subtasks
        except UsageError as error:
            print_error(str(error))
        except (OSError, ValueError) as error:
            print_error(f"{editor} cannot be started ({error}): set EDITOR to another editor")
    return text if edit or text != plan else "", ()


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
