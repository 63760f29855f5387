"""The engine before a real HTTP endpoint that takes so many calls a second, in real time."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from support.endpoint import Answer, Call, Endpoint, completion, failing
from support.limits import SlidingWindow
from support.logs import ended, events

from orchestrator.core import config
from orchestrator.core.create import NewInstance
from orchestrator.engine.local import LocalEngine
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models.base import Models
from orchestrator.models.http.chat_completions import ChatCompletions
from orchestrator.v1 import instance_pb2 as pb

PER_S = 40


class LimitedModel:
    """Answers 40 calls in any second, in a tenth of one each; refuses others, and one on request."""

    def __init__(self) -> None:
        self._limit = SlidingWindow(PER_S)
        self.refuses_next = False
        self.taken_s: list[float] = []
        self.refusals = 0

    def __call__(self, _: Call) -> Answer:
        now_s = asyncio.get_running_loop().time()
        if self.refuses_next or self._limit.try_acquire(now_s) is not None:
            self.refuses_next = False
            self.refusals += 1
            return failing(429, Retry_After="1")
        self.taken_s.append(now_s)
        return self._answer

    async def _answer(self, _: Call) -> web.StreamResponse:
        await asyncio.sleep(0.1)
        return web.json_response(completion("done"))


async def run(engine: LocalEngine, log: SqliteEventLog, name: str, instances: int, subtasks: int) -> None:
    """Run instances with plans of their own to their ends."""
    own = [pb.Subtask(id=f"t{number}", instructions="Do it.") for number in range(subtasks)]
    changes = pb.InstanceConfig(subtasks=own)
    wished = config.resolve(changes, config.default("openai/big", "openai/small"))
    ids = [f"{name}-{number}" for number in range(instances)]
    for instance_id in ids:
        await engine.create(NewInstance(instance_id, "Build it", wished))
    for instance_id in ids:
        assert (await ended(log, instance_id, 60)).state == pb.STATE_COMPLETE


async def test_bursts_after_light_traffic_and_a_refusal_reach_the_endpoints_rate(tmp_path: Path) -> None:
    limited = LimitedModel()
    log = await SqliteEventLog.open(tmp_path / "log.db")
    async with Endpoint(limited) as endpoint:
        provider = ChatCompletions("openai", endpoint.url, api_key="k")
        async with LocalEngine.running(log, Models({"openai": provider})) as engine:
            for case in range(2):
                limited.refuses_next = True
                await run(engine, log, f"light{case}", 4, 3)
                limited.taken_s.clear()
                limited.refusals = 0
                begin_s = asyncio.get_running_loop().time()
                await run(engine, log, f"burst{case}", 25, 7)
                late_s = [taken_s - begin_s for taken_s in limited.taken_s if taken_s > begin_s + 1]
                assert len(limited.taken_s) == 200
                assert limited.refusals <= 20
                # Far below what the simulated endpoints are held to: this is real time, on any machine.
                assert len(late_s) / (late_s[-1] - 1) > 0.5 * PER_S
        await provider.aclose()
    await log.aclose()


@pytest.mark.parametrize(
    ("words", "is_shared"), [("Slow down", False), ("Your account's limit is reached", True)]
)
async def test_the_big_models_limit_bounds_the_small_model_only_where_the_account_shares_it(
    tmp_path: Path, words: str, is_shared: bool
) -> None:
    small_called = asyncio.Event()

    def answer(call: Call) -> Answer:
        if call.body["model"] == "big":
            return failing(429, words, Retry_After="30")
        small_called.set()
        return web.json_response(completion("done"))

    log = await SqliteEventLog.open(tmp_path / "log.db")
    async with Endpoint(answer) as endpoint:
        provider = ChatCompletions("openai", endpoint.url, api_key="k")
        async with LocalEngine.running(log, Models({"openai": provider})) as engine:
            default = config.default("openai/big", "openai/small")
            planned = await engine.create(NewInstance("planned", "Build it", default))
            while not any(it.HasField("planning_failed") for it in await events(log, planned.ref)):  # noqa: ASYNC110  each read
                await asyncio.sleep(0)
            own = pb.InstanceConfig(subtasks=[pb.Subtask(id="t", instructions="Do it.")])
            waiting = await engine.create(NewInstance("own", "Build it", config.resolve(own, default)))
            if is_shared:
                while not (reason := engine.waiting_reason(waiting.ref)):  # noqa: ASYNC110  each pass of the loop
                    await asyncio.sleep(0)
                assert reason.startswith("openai takes no more calls for now")
                assert not small_called.is_set()
            else:
                await asyncio.wait_for(small_called.wait(), 20)
        await provider.aclose()
    await log.aclose()
