"""Records a log that later versions must be able to read: run it with the release that is to be recorded.

    git worktree add ../released COMMIT && cd ../released && make install
    .venv/bin/python ../orchestrator/tests/histories/record.py ../orchestrator/tests/histories/0.1.0

It writes `log.db`, with every kind of event in it, and `instances.json`, each instance in VIEW_FULL as that
release folded it. What is recorded once is never recorded again.
"""

import asyncio
import json
import sys
from functools import partial
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from support.logs import delete, ended, ids, load, steer

from orchestrator.core import config, create, lifecycle, view
from orchestrator.core.fork import fork
from orchestrator.core.instance import COMPLETE, PAUSED, TERMINAL, WAITING, Instance
from orchestrator.core.replies import ModelReply
from orchestrator.engine.local import LocalEngine
from orchestrator.errors import ModelError
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models.base import ModelRequest, Models
from orchestrator.models.scripted import Scripted, plan_text
from orchestrator.v1 import event_pb2
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1 import orchestrator_pb2 as api

DEFAULTS = config.default("scripted/big", "scripted/small", [pb.Worker(name="coder", use="code")])
QUICK = pb.RetryPolicy(max_attempts=3)
QUICK.initial_delay.nanos = 1_000_000
BUSY = ModelError("OVERLOADED", "busy", retryable=True, input_tokens=5)
BROKEN = ModelError("REQUEST_REJECTED", "no", retryable=False)


class Model:
    """Answers as the prompt asks: `fail=NAME` fails that call for good, `hold=NAME` keeps it open."""

    def __init__(self) -> None:
        self.failed: set[tuple[str, str]] = set()
        self.never = asyncio.Event()

    async def answer(self, request: ModelRequest) -> ModelReply | ModelError:
        text = " ".join(message.content for message in request.prompt.messages)
        name = request.prompt.subtask_id or request.prompt.role
        if f"hold={name}" in text:
            await self.never.wait()
        if f"fail={name}" in text:
            return BROKEN
        if f"flaky={name}" in text and (name, text) not in self.failed:
            self.failed.add((name, text))
            return BUSY
        if request.prompt.role == "planning":
            return ModelReply(plan_text(4, chained="chained" in text), 11, 22)
        if request.prompt.role == "work":
            return ModelReply(f"Output of {name}.\n\n```python\nprint('{name} ✓')\n```\n" + "x" * 900, 33, 44)
        return ModelReply("# Result\n\nDone: 完了 🎉", 55, 66)


async def record(folder: Path) -> None:
    log = await SqliteEventLog.open(folder / "log.db")
    models = Models({"scripted": Scripted(Model().answer)})

    async def until(instance_id: str, *states: int) -> Instance:
        async with asyncio.timeout(20):
            while (instance := await load(log, instance_id)).state not in states:
                await asyncio.sleep(0.01)
        return instance

    async def until_attempt(instance_id: str, subtask_id: str, attempt: int) -> None:
        async with asyncio.timeout(20):
            while True:
                found = (await load(log, instance_id)).subtasks.get(subtask_id)
                if found and found.work.attempt == attempt:
                    return
                await asyncio.sleep(0.01)

    async with LocalEngine.running(log, models) as engine:

        async def begin(instance_id: str, prompt: str, **settings: object) -> None:
            request = api.CreateInstanceRequest(
                prompt=prompt,
                id=instance_id,
                request_id=f"key-{instance_id}",
                config=pb.InstanceConfig(retry=QUICK, **settings),  # type: ignore[arg-type]
                labels={"team": "infra", "name": instance_id},
            )
            await engine.create(create.new_instance(request, base=DEFAULTS, fallback_id=""))

        async def finish(instance_id: str) -> Instance:
            return await ended(log, instance_id, 20)

        await begin("complete", "Build it, flaky=planning flaky=t2 flaky=synthesis")
        await begin("chained", "Build it, chained")
        await begin("merged", "Build it", max_input_characters=2000)
        await begin("skipped", "Build it, chained fail=t2", tolerated_failures=3)
        await begin("errored", "Build it, fail=synthesis")
        await begin("reviewed", "Build it", review_plan=True)
        await begin("rejected", "Build it", review_plan=True)
        await begin("paused", "Build it", review_plan=True)
        await begin("terminated", "Build it, hold=t3")
        own = [
            pb.Subtask(id="a", instructions="Write a"),
            pb.Subtask(id="b", instructions="b", depends_on=["a"]),
        ]
        await begin("own-plan", "Build it", subtasks=own)
        for instance_id in ("complete", "chained", "merged", "skipped", "errored", "own-plan"):
            await finish(instance_id)
        review = partial(lifecycle.review, subtasks=(), feedback="")
        for instance_id in ("reviewed", "rejected", "paused"):
            await until(instance_id, WAITING)
        await steer(engine, "reviewed", partial(review, decision=event_pb2.DECISION_APPROVE))
        rejection = partial(review, decision=event_pb2.DECISION_REJECT, feedback="Fewer parts.")
        await steer(engine, "rejected", rejection)
        await steer(engine, "paused", lifecycle.pause)
        await until("rejected", WAITING)
        await until("paused", PAUSED)
        await finish("reviewed")
        await begin("retried", "Build it, fail=t1 flaky=t2")
        await finish("retried")
        await steer(
            engine,
            "retried",
            partial(lifecycle.retry, changes=config.read_changes(pb.InstanceConfig(tolerated_failures=1))),
        )
        await finish("retried")
        await begin("restarted", "Build it")
        await finish("restarted")
        await steer(
            engine,
            "restarted",
            partial(lifecycle.restart, changes=config.read_changes(pb.InstanceConfig(max_subtasks=5))),
        )
        await finish("restarted")
        await begin("resumed", "Build it", review_plan=True)
        await until("resumed", WAITING)
        await steer(engine, "resumed", lifecycle.pause)
        await until("resumed", PAUSED)
        await steer(engine, "resumed", lifecycle.resume)
        source = await load(log, "complete")
        for stage in (api.STAGE_PLAN, api.STAGE_SUBTASKS, api.STAGE_SYNTHESIS):
            forked = fork(source, stage, config.read_changes(pb.InstanceConfig()), new_id=f"forked-{stage}")
            await engine.create(forked)
            await finish(f"forked-{stage}")
        await begin("deleted", "Build it")
        await finish("deleted")
        await delete(log, "deleted")
        terminated = await load(log, "terminated")
        assert terminated.state not in TERMINAL
        await steer(engine, "terminated", lifecycle.terminate)
        await begin("interrupted", "Build it, hold=t4")
        await until_attempt("interrupted", "t4", 1)
    # The service has stopped amid a call: the next start records that it was cut off.
    async with LocalEngine.running(log, models):
        await until_attempt("interrupted", "t4", 2)
    found = await ids(log)
    instances = {name: await load(log, name) for _, name in reversed(found)}
    assert instances["complete"].state == COMPLETE
    resources = {
        name: MessageToDict(view.instance(instance, full=True)) for name, instance in instances.items()
    }
    (folder / "instances.json").write_text(json.dumps(resources, indent=1, ensure_ascii=False) + "\n")
    await log.aclose()


if __name__ == "__main__":
    asyncio.run(record(Path(sys.argv[1])))
