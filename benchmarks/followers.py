"""What a one-row read and a commit take beside live followers of a label that every instance has.

    python benchmarks/followers.py [--instances 60000] [--followers 0 1 16 1000] [--seconds 2]

Instances are created one after the other, each is read once it is durable, and the followers are notified.
Then the list is walked by labels and states that many, one or none of the instances have.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from orchestrator.app import tune_garbage_collector
from orchestrator.core import config
from orchestrator.core.create import NewInstance
from orchestrator.core.decider import apply_with_consequences
from orchestrator.core.identity import InstanceKey
from orchestrator.core.lifecycle import terminate
from orchestrator.log.base import Creation, Page, Query
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.log.subscription import follow_all
from orchestrator.v1 import instance_pb2 as pb

CONFIG = config.default("scripted/big", "scripted/small")
COMMON = [("team", "all")]
AT_ONCE = 500


def queued(name: str) -> Creation:
    """An instance with one event and the common label."""
    new = NewInstance(id=name, prompt="Build it.", config=CONFIG, labels=dict(COMMON))
    instance, events = new.begin(time.time())
    return Creation(InstanceKey("", name), events, instance)


async def fill(log: SqliteEventLog, instances: int) -> None:
    """Write instances, the first of which is terminated."""
    first = queued("first")
    now_s = time.time()
    instance, ended = apply_with_consequences(
        first.instance, terminate(first.instance), now_s, lambda time_s: now_s - time_s
    )
    await log.create([Creation(first.key, [*first.events, *ended], instance)])
    for start in range(0, instances, AT_ONCE):
        names = range(start, min(start + AT_ONCE, instances))
        await asyncio.gather(*(log.create([queued(f"old-{number}")]) for number in names))


async def read_on(log: SqliteEventLog, after: int) -> None:
    """Follow the common label live."""
    async with aclosing(follow_all(log, after=after, labels=COMMON)) as steps:
        async for step in steps:
            assert not isinstance(step, Page) or step.ordinals


async def measure_beside(log: SqliteEventLog, followers: int, seconds: float) -> str:
    """Commit and read beside so many followers."""
    after = await log.last_position()
    tasks = [asyncio.create_task(read_on(log, after)) for _ in range(followers)]
    commits, reads = list[float](), list[float]()
    end_s = time.perf_counter() + seconds
    while (begin_s := time.perf_counter()) < end_s:
        name = f"new-{followers}-{len(commits)}"
        await log.create([queued(name)])
        commits.append(time.perf_counter() - begin_s)
        begin_s = time.perf_counter()
        head = await log.head(InstanceKey("", name))
        await log.read(head.ref, 0)
        reads.append(time.perf_counter() - begin_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return f"{followers:>10,}{len(commits) / seconds:12,.0f}{format_ms(commits)}{format_ms(reads)}"


def format_ms(times: Sequence[float]) -> str:
    """Median and maximum in milliseconds."""
    ordered = sorted(times)
    return f"{ordered[len(ordered) // 2] * 1e3:12.2f}{ordered[-1] * 1e3:10.2f}"


async def walk(log: SqliteEventLog, query: Query) -> str:
    """Walk a list to its first 50 instances or its end; the time of each read of it and of all."""
    times, found = list[float](), 0
    while True:
        begin_s = time.perf_counter()
        page = await log.list(query)
        times.append(time.perf_counter() - begin_s)
        found += len(page.rows)
        query = query._replace(before=page.before)
        if found or not page.before:
            return f"{found:8,}{len(times):8,}{max(times) * 1e3:10.2f}{sum(times) * 1e3:10.2f}"


async def measure(path: Path, instances: int, followers: Sequence[int], seconds: float) -> None:
    """Print both tables."""
    log = await SqliteEventLog.open(path)
    await fill(log, instances)
    print(f"{'followers':>10}{'commits/s':>12}{'commit p50':>12}{'max':>10}{'read p50':>12}{'max, ms':>10}")
    for count in followers:
        print(await measure_beside(log, count, seconds))
    print(f"{'list by':32}{'found':>8}{'reads':>8}{'longest':>10}{'all, ms':>10}")
    for name, query in {
        "a common label": Query(labels=COMMON),
        "a rare state": Query(states=[pb.STATE_TERMINATED]),
        "common label, rare state": Query(labels=COMMON, states=[pb.STATE_TERMINATED]),
        "common label, unknown state": Query(labels=COMMON, states=[pb.STATE_PAUSED]),
        "unknown label, common state": Query(labels=[("team", "none")], states=[pb.STATE_QUEUED]),
        "the oldest id": Query(id_prefix="first"),
    }.items():
        print(f"{name:32}{await walk(log, query)}")
    await log.aclose()


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--instances", type=int, default=60_000)
    arguments.add_argument("--followers", type=int, nargs="+", default=[0, 1, 16, 1000])
    arguments.add_argument("--seconds", type=float, default=2, help="of each measurement")
    options = arguments.parse_args()
    tune_garbage_collector()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.db")
        asyncio.run(measure(path, options.instances, options.followers, options.seconds))


if __name__ == "__main__":
    main()
