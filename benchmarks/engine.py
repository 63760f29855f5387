"""What engine and log cost, beside the least that the disk and SQLite allow, in one run.

    python benchmarks/engine.py [--instances 3000] [--repeats 3] [--alone 200]

An instance is a plan, five subtasks and a synthesis by a scripted model that answers at once; fsync is on.
Two measures stand beside it. Raw group commit writes the same bytes into the same tables, a hundred rows a
transaction, with nothing else to do. The bare way has an asyncio task for each call and the same log, and
nothing between them: it writes the same kinds of events in order, but has no state, so it could neither
recover, retry, pause, bound its calls nor keep a budget. One instance alone is compared with one fsync.
"""

import argparse
import asyncio
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.app import tune_garbage_collector
from orchestrator.core import config
from orchestrator.core.create import NewInstance
from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.instance import COMPLETE, QUEUED, RUNNING, Instance, State
from orchestrator.core.summary import Summary
from orchestrator.engine.local import LocalEngine
from orchestrator.log.base import Append, Creation, EventLog
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.subscription import wait_for_end
from orchestrator.models.base import Models
from orchestrator.models.scripted import Scripted, plan_text
from orchestrator.v1 import event_pb2 as pb
from orchestrator.v1.instance_pb2 import Subtask, Usage

MODELS = Models({"scripted": Scripted(subtasks=5)})
BIG, SMALL = "scripted/big", "scripted/small"
CONFIG = config.default(BIG, SMALL)
PLAN = plan_text(5)
ROWS_A_COMMIT = 100


def new_instance(number: int) -> NewInstance:
    return NewInstance(id=f"bench-{number}", prompt="Build a todo list service, with tests.", config=CONFIG)


async def through_engine(path: Path, instances: int) -> float:
    """Seconds until all instances are complete."""
    log = await SqliteEventLog.open(path)
    async with LocalEngine.running(log, MODELS, max_calls=1000) as engine:
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(instances):
                tasks.create_task(engine.create(new_instance(number)))
        for number in range(instances):
            await wait_for_end(log, engine.states, InstanceKey("", f"bench-{number}"), 60)
        elapsed = time.perf_counter() - begin
    await log.aclose()
    return elapsed


class Bare:
    """One instance without an engine: calls in order, and their events to the log."""

    def __init__(self, log: EventLog, instance_id: str) -> None:
        self.log = log
        self.key = InstanceKey("", instance_id)
        self.ref: InstanceRef
        self.sequence = 0
        self.last: asyncio.Future[None] | None = None

    def append(self, *events: pb.Event, state: State = RUNNING) -> "asyncio.Future[None]":
        append = Append(
            self.ref, self.sequence, self.placed(events), Summary(state, 0, b""), previous=self.last
        )
        self.last = self.log.append(append)
        return self.last

    def placed(self, events: Sequence[pb.Event]) -> Sequence[pb.Event]:
        now_ns = time.time_ns()
        for event in events:
            self.sequence += 1
            event.instance_id, event.sequence = self.key.id, self.sequence
            event.event_time.FromNanoseconds(now_ns)
        return events

    async def run(self) -> None:
        one = Usage(model_calls=1)
        created = pb.Event(instance_created=pb.InstanceCreated(prompt=new_instance(0).prompt, config=CONFIG))
        first = Instance(id=self.key.id, state=QUEUED, last_sequence=1)
        (outcome,) = await self.log.create([Creation(self.key, self.placed([created]), first)])
        self.ref = outcome.ref
        self.append(pb.Event(planning_started=pb.PlanningStarted(attempt=1, model=BIG)))
        plan = json.loads(await answer(PLAN))
        subtasks = [Subtask(**subtask) for subtask in plan["subtasks"]]
        planned = [pb.SubtaskPlanned(attempt=1, subtask=subtask) for subtask in subtasks]
        completed = pb.PlanCompleted(attempt=1, model=BIG, summary=plan["summary"], usage=one)
        await self.append(
            *(pb.Event(subtask_planned=each) for each in planned), pb.Event(plan_completed=completed)
        )
        async with asyncio.TaskGroup() as tasks:
            for subtask in subtasks:
                tasks.create_task(self.work(subtask.id))
        self.append(pb.Event(synthesis_started=pb.SynthesisStarted(attempt=1, model=BIG)))
        result = await answer("# The result\n\nAll parts, put together.")
        synthesis = pb.SynthesisCompleted(attempt=1, model=BIG, final_result=result, usage=one)
        end = pb.InstanceCompleted(usage=Usage(model_calls=7))
        await self.append(
            pb.Event(synthesis_completed=synthesis), pb.Event(instance_completed=end), state=COMPLETE
        )

    async def work(self, name: str) -> None:
        self.append(pb.Event(subtask_started=pb.SubtaskStarted(subtask_id=name, attempt=1, model=SMALL)))
        completed = pb.SubtaskCompleted(
            subtask_id=name,
            attempt=1,
            model=SMALL,
            output=await answer(f"The output of {name}."),
            usage=Usage(model_calls=1),
        )
        await self.append(pb.Event(subtask_completed=completed))


async def answer(text: str) -> str:
    return text


async def bare(path: Path, instances: int) -> float:
    """Seconds until all instances are complete that no engine runs."""
    log = await SqliteEventLog.open(path)
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(instances):
            tasks.create_task(Bare(log, f"bench-{number}").run())
    elapsed = time.perf_counter() - begin
    await log.aclose()
    return elapsed


async def one_alone(path: Path, repeats: int) -> list[float]:
    """Seconds of each instance, one after the other."""
    log = await SqliteEventLog.open(path)
    times = []
    async with LocalEngine.running(log, MODELS) as engine:
        for number in range(repeats):
            begin = time.perf_counter()
            await engine.create(new_instance(number))
            await wait_for_end(log, engine.states, InstanceKey("", f"bench-{number}"), 60)
            times.append(time.perf_counter() - begin)
    await log.aclose()
    return times


def raw(source: Path, path: Path) -> tuple[float, int]:
    """Seconds to write the events of another log, and how many there are."""
    with sqlite3.connect(source) as origin:
        events = origin.execute("SELECT position, instance, sequence, data FROM event").fetchall()
        instances = origin.execute("SELECT * FROM instance").fetchall()
        tables = origin.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    copy = sqlite3.connect(path, isolation_level="IMMEDIATE")
    copy.execute("PRAGMA journal_mode = WAL")
    copy.execute("PRAGMA synchronous = FULL")
    for (table,) in tables:
        copy.execute(table)
    copy.commit()
    begin = time.perf_counter()
    copy.executemany(f"INSERT INTO instance VALUES ({', '.join('?' * len(instances[0]))})", instances)
    for start in range(0, len(events), ROWS_A_COMMIT):
        copy.executemany("INSERT INTO event VALUES (?, ?, ?, ?)", events[start : start + ROWS_A_COMMIT])
        copy.commit()
    elapsed = time.perf_counter() - begin
    copy.close()
    return elapsed, len(events)


def fsync_s(path: Path, count: int = 200) -> float:
    """Median seconds of one fsync of four more kilobytes."""
    times = []
    with path.open("wb") as file:
        for _ in range(count):
            file.write(b"x" * 4096)
            file.flush()
            begin = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--instances", type=int, default=3000)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--alone", type=int, default=200, help="instances one after the other")
    options = arguments.parse_args()
    tune_garbage_collector()
    print(f"{'':14}{'instances/s':>14}{'events/s':>12}{'of raw':>9}{'of bare':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.repeats):
            ours, others = Path(folder, f"{number}.db"), Path(folder, f"bare-{number}.db")
            engine_s = asyncio.run(through_engine(ours, options.instances))
            bare_s = asyncio.run(bare(others, options.instances))
            raw_s, events = raw(ours, Path(folder, f"raw-{number}.db"))
            for name, seconds in (("raw", raw_s), ("bare", bare_s), ("engine and log", engine_s)):
                rates = f"{options.instances / seconds:14,.0f}{events / seconds:12,.0f}"
                print(f"{name:14}{rates}{raw_s / seconds:9.0%}{bare_s / seconds:9.0%}")
        alone = asyncio.run(one_alone(Path(folder, "alone.db"), options.alone))[options.alone // 10 :]
        fsync = fsync_s(Path(folder, "fsync"))
    middle = statistics.median(alone)
    print(f"one instance alone: median {middle * 1e3:.2f} ms; one fsync: median {fsync * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
