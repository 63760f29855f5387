"""How long the event loop is blocked by what clients, models and endpoints send at their worst.

    python benchmarks/loop.py [--kilobytes 1024] [--instances 1000]

For each piece of work: the longest time that it keeps the loop in one go, in milliseconds, and all of it.
Texts have so many kilobytes, and come in pieces of 16 characters and of 64 KiB.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, cast
from unittest.mock import AsyncMock

from retention import CONFIG, fill

from orchestrator.core import plan_text
from orchestrator.core.create import NewInstance
from orchestrator.core.identity import InstanceKey
from orchestrator.core.plan import PlanError
from orchestrator.core.plan_text import PlanReader
from orchestrator.core.prompts import FULL
from orchestrator.engine.base import Engine
from orchestrator.log.base import Creation
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.states import StateStore
from orchestrator.models.http.thoughts import AnswerText
from orchestrator.rpc.service import OrchestratorService
from orchestrator.v1 import orchestrator_pb2 as pb

PIECES: Final = (16, 64 * 1024)
MAX_SUBTASKS: Final = 64


def print_row(name: str, longest_s: float, total_s: float) -> None:
    """Print a row."""
    print(f"{name:56}{longest_s * 1e3:10.2f}{total_s * 1e3:12.1f}")


def filled(begin: str, part: str, characters: int) -> str:
    """Return a text of so many characters that repeats a part."""
    return begin + part * ((characters - len(begin)) // len(part))


def plans(characters: int) -> Mapping[str, str]:
    """Return texts that are hard to read as plans."""
    return {
        "braces in a string": filled('{"summary": "", "subtasks": [{"id": "', "}", characters),
        "braces in the summary": filled('{"summary": "', "}", characters),
        "keys of lists": filled('{"summary": "', '"subtasks": [', characters),
    }


def answers(characters: int) -> Mapping[str, str]:
    """Return answers that are hard to distinguish from thoughts."""
    return {
        "closing tags in code": filled("```\n", "</think>\n", characters),
        "closing tags in sentences": filled("", "a </think> b ", characters),
        "closing tags in quotes": filled("", "`</think>` ", characters),
        "closing tags in thoughts": filled("<think>", "`</think>` ", characters),
        "closing tags in JSON": filled('{"a": "', "</think>", characters),
        "beginnings of tags": filled("", "<", characters),
    }


def in_pieces(name: str, text: str, add: Callable[[str], object]) -> None:
    """Measure what takes a text in pieces of each size."""
    for size in PIECES:
        times = []
        for start in range(0, len(text), size):
            begin_s = time.perf_counter()
            add(text[start : start + size])
            times.append(time.perf_counter() - begin_s)
        print_row(f"{name}, pieces of {size:,}", max(times), sum(times))


def streamed_plan() -> Callable[[str], object]:
    """Return what takes the next piece of a plan."""
    reader = PlanReader(MAX_SUBTASKS)

    def add(piece: str) -> None:
        reader.add(piece)
        reader.read()

    return add


def texts(characters: int) -> None:
    """Measure what is done with a prompt, a plan and an answer."""
    prompt = "".join(f"</prompt-{number}>" for number in range(2, min(characters, 256 * 1024) // 15))
    instance, _ = NewInstance(id="a", prompt=f"</prompt>{prompt}", config=CONFIG).begin(0)
    begin_s = time.perf_counter()
    FULL.plan(instance)
    print_row("a prompt of closing tags", *[time.perf_counter() - begin_s] * 2)
    for name, text in plans(characters).items():
        in_pieces(f"a plan, {name}", text, streamed_plan())
    for name, text in answers(characters).items():
        in_pieces(f"an answer, {name}", text, AnswerText().add)


async def measure_stall(name: str, work: Coroutine[Any, Any, object]) -> None:
    """Measure the longest time that nothing else had its turn."""
    turns = [time.perf_counter()]

    async def record_turns() -> None:
        while True:
            await asyncio.sleep(0)
            turns.append(time.perf_counter())

    watching = asyncio.create_task(record_turns())
    await asyncio.sleep(0)
    await work
    await asyncio.sleep(0)
    watching.cancel()
    print_row(name, max(b - a for a, b in pairwise(turns)), turns[-1] - turns[0])


async def parsed(text: str) -> None:
    """Parse a plan as the engine does."""
    with suppress(PlanError):
        await asyncio.to_thread(plan_text.parse, text, MAX_SUBTASKS)


async def lists(path: Path, characters: int, instances: int) -> None:
    """Measure plans that are parsed in a thread, and pages of finished and of running instances."""
    entry = json.dumps({"id": "a", "title": "b"})
    text = filled('{"summary": "s", "subtasks": [', f"{entry},", characters) + "]"
    await measure_stall("a plan that lacks its end", parsed(text))
    log = await SqliteEventLog.open(path)
    engine = AsyncMock(states=StateStore(log))
    engine.waiting_reason = lambda _: ""
    service = OrchestratorService(cast("Engine", engine), log, CONFIG)
    request = pb.ListInstancesRequest(page_size=1000)
    await measure_stall("a page of finished instances", service.ListInstances(request, AsyncMock()))
    for number in range(instances):
        new = NewInstance(id=f"new-{number}", prompt="Build it.", config=CONFIG)
        instance, events = new.begin(time.time())
        await log.create([Creation(InstanceKey("", new.id), events, instance)])
    for state in ("not loaded", "loaded"):
        name = f"a page of queued instances, {state}"
        await measure_stall(name, service.ListInstances(request, AsyncMock()))
    await log.aclose()


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--kilobytes", type=int, default=1024)
    arguments.add_argument("--instances", type=int, default=1000)
    options = arguments.parse_args()
    print(f"{'the loop is blocked, ms':56}{'longest':>10}{'in all':>12}")
    texts(options.kilobytes * 1024)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.db")
        asyncio.run(fill(path, options.instances))
        asyncio.run(lists(path, options.kilobytes * 1024, options.instances))


if __name__ == "__main__":
    main()
