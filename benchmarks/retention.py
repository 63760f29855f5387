"""What creating an instance takes while finished ones are removed beside it, and how fast they go.

    python benchmarks/retention.py [--instances 20000] [--rate 200] [--seconds 5] [--repeats 3]

The log holds so many finished instances of 21 events each. Then instances are created at a steady rate, with
nothing else to do and with a sweep beside them, in turns. A creation's time counts from when it was due, so
that one that delays the next ones is not measured too favourably.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.app import tune_garbage_collector
from orchestrator.core import config
from orchestrator.core.create import NewInstance
from orchestrator.core.decider import apply_with_consequences
from orchestrator.core.events import call_started, plan_completed, work_completed
from orchestrator.core.identity import InstanceKey
from orchestrator.core.instance import PLANNING, SYNTHESIS, Instance, Subtask, Usage, WorkKey
from orchestrator.core.plan import Plan
from orchestrator.log.base import Creation
from orchestrator.log.retention import sweep
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.v1.event_pb2 import Event

CONFIG = config.default("scripted/big", "scripted/small")
PLAN = Plan("How.", tuple(Subtask(f"t{n}", f"Part {n}", f"Write part {n}.") for n in range(1, 6)))
USED = Usage(100, 20, 1)
AT_ONCE = 500


def finished(number: int) -> Creation:
    """A complete history: a plan, five subtasks and a synthesis."""
    instance, events = NewInstance(id=f"old-{number}", prompt="Build it.", config=CONFIG).begin(time.time())
    history = list(events)

    def then(*more: Event) -> Instance:
        now_s = time.time()
        after, followed = apply_with_consequences(instance, more, now_s, lambda time_s: now_s - time_s)
        history.extend(followed)
        return after

    instance = then(call_started(instance, PLANNING))
    instance = then(*plan_completed(instance, PLAN, USED))
    for subtask in PLAN.subtasks:
        instance = then(call_started(instance, WorkKey("subtask", subtask.id)))
        instance = then(work_completed(instance, WorkKey("subtask", subtask.id), "The text. " * 20, USED))
    instance = then(call_started(instance, SYNTHESIS))
    instance = then(work_completed(instance, SYNTHESIS, "The result.", USED))
    return Creation(InstanceKey("", instance.id), history, instance)


async def fill(path: Path, instances: int) -> int:
    """Write finished instances; how many events each has."""
    log = await SqliteEventLog.open(path)
    for start in range(0, instances, AT_ONCE):
        batch = [finished(number) for number in range(start, min(start + AT_ONCE, instances))]
        await asyncio.gather(*(log.create([creation]) for creation in batch))
    await log.aclose()
    return len(batch[-1].events)


async def creations(log: SqliteEventLog, run: str, rate: float, seconds: float) -> list[float]:
    """Seconds that each creation took, from when it was due until it was durable."""
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def create(number: int, due_s: float) -> None:
        new = NewInstance(id=f"{run}-{number}", prompt="Build it.", config=CONFIG)
        instance, events = new.begin(time.time())
        await log.create([Creation(InstanceKey("", new.id), events, instance)])
        times.append(loop.time() - due_s)

    begin_s = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for number in range(round(rate * seconds)):
            due_s = begin_s + number / rate
            await asyncio.sleep(due_s - loop.time())
            tasks.create_task(create(number, due_s))
    return times


async def creations_beside_a_sweep(log: SqliteEventLog, run: str, rate: float, seconds: float) -> list[float]:
    """As `creations`, while finished instances are removed; how many went is printed."""
    before = await finished_count(log)
    sweeping = asyncio.create_task(sweep(log, time.time()))
    times = await creations(log, run, rate, seconds)
    sweeping.cancel()
    await asyncio.wait([sweeping])
    removed = before - await finished_count(log)
    print(f"{'removed':16}{removed:8,}{removed / seconds:10,.0f}/s{' (all)' * (removed == before)}")
    return times


async def finished_count(log: SqliteEventLog) -> int:
    return len(await log.finished_before(time.time(), 10**9))


def format_row(name: str, times: Sequence[float]) -> str:
    """Median, 99th percentile and maximum, in milliseconds."""
    ordered = sorted(times)
    ranks = (len(ordered) // 2, min(len(ordered) - 1, round(len(ordered) * 0.99)), -1)
    return f"{name:16}{len(ordered):8,}" + "".join(f"{ordered[rank] * 1e3:10.2f}" for rank in ranks)


async def measure(path: Path, rate: float, seconds: float, repeats: int) -> None:
    """Print the table: in turns, so that a disturbance hits both."""
    log = await SqliteEventLog.open(path)
    print(f"{'create, ms':16}{'count':>8}{'p50':>10}{'p99':>10}{'max':>10}")
    for number in range(repeats):
        print(format_row("alone", await creations(log, f"alone-{number}", rate, seconds)))
        print(
            format_row(
                "beside a sweep", await creations_beside_a_sweep(log, f"beside-{number}", rate, seconds)
            )
        )
    await log.aclose()


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--instances", type=int, default=20_000)
    arguments.add_argument("--rate", type=float, default=200, help="creations a second")
    arguments.add_argument("--seconds", type=float, default=5, help="of each measurement")
    arguments.add_argument("--repeats", type=int, default=3)
    options = arguments.parse_args()
    tune_garbage_collector()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.db")
        events = asyncio.run(fill(path, options.instances))
        size_mb = path.stat().st_size / 1e6
        print(f"{options.instances:,} finished instances of {events} events, {size_mb:,.0f} MB")
        asyncio.run(measure(path, options.rate, options.seconds, options.repeats))


if __name__ == "__main__":
    main()
