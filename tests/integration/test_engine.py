"""The engine on a real SQLite log, with scripted models."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path

import pytest
from support.engines import GatedProvider, engine_on
from support.histories import CONFIG, NOW_S, History, changes, part, resolved
from support.logs import ended, ids, key, load, read, ref, steer

from orchestrator.core import lifecycle
from orchestrator.core.config import read_changes
from orchestrator.core.create import NewInstance
from orchestrator.core.events import calls_interrupted
from orchestrator.core.input_files import input_file
from orchestrator.core.instance import Instance, Usage
from orchestrator.core.plan import Plan
from orchestrator.core.plan_text import parse as parse_plan
from orchestrator.core.prompts import FULL
from orchestrator.core.replies import ModelReply
from orchestrator.engine.local import LocalEngine
from orchestrator.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    ModelError,
    QueueFullError,
    StateForbidsError,
)
from orchestrator.log.base import Creation
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models.base import ModelRequest, Models
from orchestrator.models.prices import Price, Prices
from orchestrator.models.providers import UnavailableProvider
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import DECISION_APPROVE, DECISION_REJECT

QUICK = pb.RetryPolicy(max_attempts=3)
QUICK.initial_delay.nanos = 1_000_000


def new_instance(instance_id: str = "a", config: pb.InstanceConfig = CONFIG) -> NewInstance:
    return NewInstance(instance_id, "Build it", config)


async def kinds(log: SqliteEventLog, instance_id: str = "a") -> list[str]:
    return [str(event.WhichOneof("payload")) for event in (await read(log, instance_id)).events()]


async def run(
    path: Path,
    script: Callable[[ModelRequest], Answer | Awaitable[Answer]],
    config: pb.InstanceConfig = CONFIG,
) -> tuple[Instance, list[str]]:
    async with engine_on(path, Scripted(script)) as (engine, log):
        await engine.create(new_instance(config=config))
        return await ended(log, "a", 20), await kinds(log)


def answering(**failures: list[Answer]) -> Callable[[ModelRequest], Answer]:
    """A good model, except for the answers that are given in turn first, by role or subtask."""

    def answer(request: ModelRequest) -> Answer:
        name = request.prompt.subtask_id or request.prompt.role
        if failures.get(name):
            return failures[name].pop(0)
        return {"planning": plan_text(3), "work": f"out {name}", "synthesis": "done"}[request.prompt.role]

    return answer


FLAKY = ModelError("OVERLOADED", "busy", retryable=True, input_tokens=5)
FATAL = ModelError("REQUEST_REJECTED", "no", retryable=False)


async def test_a_prompt_becomes_a_result(tmp_path: Path) -> None:
    instance, events = await run(tmp_path / "log.db", answering())
    assert instance.state == pb.STATE_COMPLETE
    assert instance.final_result == "done"
    assert events[:6] == ["instance_created", "planning_started", *["subtask_planned"] * 3, "plan_completed"]
    assert sorted(events[6:12]) == ["subtask_completed"] * 3 + ["subtask_started"] * 3
    assert events[12:] == ["synthesis_started", "synthesis_completed", "instance_completed"]


async def test_a_failed_attempt_is_recorded_and_retried(tmp_path: Path) -> None:
    script = answering(planning=[FLAKY, "no JSON here"], t2=[FLAKY], synthesis=[FLAKY])
    instance, events = await run(tmp_path / "log.db", script, resolved(retry=QUICK))
    assert instance.state == pb.STATE_COMPLETE
    assert events.count("planning_failed") == 2
    assert events.count("subtask_failed") == 1
    assert events.count("synthesis_failed") == 1
    assert instance.usage.input_tokens == 15
    assert instance.usage.model_calls == 5 + 4


async def test_a_planner_without_a_valid_answer_errs_with_the_fault(tmp_path: Path) -> None:
    instance, events = await run(tmp_path / "log.db", lambda _: "I would rather not.", resolved(retry=QUICK))
    assert instance.error
    assert instance.error.reason == "PLAN_INVALID"
    assert "the answer is not a plan" in instance.error.message
    assert events.count("planning_failed") == 3


async def test_impossible_token_counts_and_unpaired_surrogates_fail_nothing(tmp_path: Path) -> None:
    def answer_oddly(request: ModelRequest) -> Answer:
        text = plan_text(3) if request.prompt.role == "planning" else "half"
        return ModelReply(text, 2**63, -5)

    instance, _ = await run(tmp_path / "log.db", answer_oddly)
    assert instance.state == pb.STATE_COMPLETE
    assert instance.usage.output_tokens == 0


async def test_stopping_starts_no_queued_call(tmp_path: Path) -> None:
    gated = GatedProvider(holds="work")
    async with engine_on(tmp_path / "log.db", gated.provider, max_active=1) as (engine, _):
        for number in range(20):
            await engine.create(new_instance(f"i{number}"))
        await gated.until(lambda: gated.open == 3)
        gated.gate.set()
    calls_before = len(gated.calls)
    await asyncio.sleep(0)
    assert len(gated.calls) == calls_before
    assert gated.open == 0


async def test_beyond_the_queue_limit_creations_are_rejected(tmp_path: Path) -> None:
    gated = GatedProvider()
    async with engine_on(tmp_path / "log.db", gated.provider, max_active=1, max_queued=2) as (engine, log):
        for name in "abc":
            await engine.create(new_instance(name))
        with pytest.raises(QueueFullError) as caught:
            await engine.create(new_instance("d"))
        assert caught.value.retry_after_s
        assert len(await ids(log)) == 3
        with pytest.raises(QueueFullError):
            await engine.create_all([new_instance("d"), new_instance("e")])
        await steer(engine, "c", lifecycle.terminate)  # who has gone keeps no place in the queue
        await engine.create(new_instance("d"))
        repeated = NewInstance("f", "Build it", CONFIG, request_id="key", request_digest=b"x")
        with pytest.raises(QueueFullError):
            await engine.create(repeated)


async def test_an_instance_with_large_files_is_read_again_when_its_turn_comes(tmp_path: Path) -> None:
    gated = GatedProvider()
    async with engine_on(tmp_path / "log.db", gated.provider, max_active=1) as (engine, log):
        await engine.create(new_instance("first"))
        files = (input_file("large.txt", "x" * 100_000),)
        await engine.create_all([replace(new_instance("second"), files=files), new_instance("third")])
        assert [instance is None for instance in engine._waiting.values()] == [True, False]
        gated.gate.set()
        assert (await ended(log, "second", 20)).files == files
        assert (await ended(log, "third", 20)).final_result == "done"


async def test_a_repeated_request_is_answered_though_the_queue_is_full(tmp_path: Path) -> None:
    gated = GatedProvider()
    first = NewInstance("a", "Build it", CONFIG, request_id="key", request_digest=b"x")
    async with engine_on(tmp_path / "log.db", gated.provider, max_active=1, max_queued=1) as (engine, _):
        await engine.create(first)
        await engine.create(new_instance("b"))
        again = NewInstance("other", "Build it", CONFIG, request_id="key", request_digest=b"x")
        assert (await engine.create(again)).ref.id == "a"
        assert [loaded.ref.id for loaded in await engine.create_all([again])] == ["a"]
        with pytest.raises(AlreadyExistsError):
            await engine.create(new_instance("b"))


async def test_siblings_of_a_failed_subtask_keep_their_results(tmp_path: Path) -> None:
    instance, _ = await run(tmp_path / "log.db", answering(t2=[FATAL]))
    assert instance.error
    assert (instance.error.reason, instance.error.subtask_id) == ("SUBTASK_FAILED", "t2")
    assert [subtask.output for subtask in instance.subtasks.values()] == ["out t1", "", "out t3"]


async def test_an_unexpected_exception_fails_only_the_attempt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(request: ModelRequest) -> Answer:
        if request.prompt.role == "synthesis":
            raise ZeroDivisionError
        return answering()(request)

    instance, _ = await run(tmp_path / "log.db", broken)
    assert instance.error
    assert instance.error.reason == "SYNTHESIS_FAILED"
    assert "ZeroDivisionError" in caplog.text


async def test_an_attempt_that_exceeds_its_timeout_fails(tmp_path: Path) -> None:
    policy = pb.RetryPolicy(max_attempts=1)
    policy.attempt_timeout.nanos = 10_000_000

    async def hang(_: ModelRequest) -> Answer:
        await asyncio.Event().wait()
        return ""

    instance, _ = await run(tmp_path / "log.db", hang, resolved(retry=policy))
    assert instance.error
    assert instance.error.message == (
        "planning failed after 1 attempt: the script did not answer within 0.01 s: "
        "see the attempt_timeout of the retry policy"
    )


async def test_an_unknown_model_is_rejected_before_anything_is_recorded(tmp_path: Path) -> None:
    async with engine_on(tmp_path / "log.db", Scripted()) as (engine, log):
        with pytest.raises(InvalidArgumentError, match="must be provider/model, one of scripted/") as caught:
            await engine.create(new_instance(config=resolved(small_model="nobody/knows")))
        assert caught.value.field == "config.small_model"
        assert await ids(log) == []


async def test_a_workers_model_is_validated_like_the_others(tmp_path: Path) -> None:
    catalogue = [pb.Worker(name="any"), pb.Worker(name="coder", model="nobody/knows")]
    async with engine_on(tmp_path / "log.db", Scripted()) as (engine, log):
        with pytest.raises(InvalidArgumentError, match="must be provider/model, one of scripted/") as caught:
            await engine.create(new_instance(config=resolved(workers=catalogue)))
        assert caught.value.field == "config.workers[1].model"
        assert await ids(log) == []


async def test_a_budget_in_dollars_needs_the_price_of_every_workers_model(tmp_path: Path) -> None:
    prices = Prices(dict.fromkeys(("scripted/big", "scripted/small"), Price(1.0, 1.0)))
    catalogue = [pb.Worker(name="coder", model="scripted/codex")]
    log = await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, Models({"scripted": Scripted()}, prices)) as engine:
        new = new_instance(config=resolved(workers=catalogue, budget=pb.Budget(max_cost_usd=1)))
        with pytest.raises(InvalidArgumentError, match="no price of scripted/codex is known") as caught:
            await engine.create(new)
        assert caught.value.field == "config.budget.max_cost_usd"
    await log.aclose()


async def test_each_worker_has_its_model_its_instructions_its_sampling_and_its_price(tmp_path: Path) -> None:
    plan = plan_text(4).replace('"worker": ""', '"worker": "%s"') % ("coder", "writer", "unknown", "")
    asked: dict[str, ModelRequest] = {}

    def answer(request: ModelRequest) -> Answer:
        asked[request.prompt.subtask_id or request.prompt.role] = request
        text = plan if request.prompt.role == "planning" else "done"
        return ModelReply(text, input_tokens=1_000_000)

    catalogue = [
        pb.Worker(name="coder", model="scripted/codex", instructions="Tests first.", temperature=0.2),
        pb.Worker(name="writer", instructions="No adjectives.", temperature=0.0, top_p=0.5),
    ]
    usd = {"scripted/big": 0.0, "scripted/small": 1.0, "scripted/codex": 5.0}  # a call
    prices = Prices({model: Price(price, 0.0) for model, price in usd.items()})
    log = await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, Models({"scripted": Scripted(answer)}, prices)) as engine:
        await engine.create(new_instance(config=resolved(workers=catalogue)))
        instance = await ended(log, "a", 20)
    await log.aclose()
    assert instance.state == pb.STATE_COMPLETE
    assert {name: (request.model, request.prompt.sampling) for name, request in asked.items()} == {
        "planning": ("big", {}),
        "t1": ("codex", {"temperature": 0.2}),
        "t2": ("small", {"temperature": 0.0, "top_p": 0.5}),
        "t3": ("small", {}),
        "t4": ("small", {}),
        "synthesis": ("big", {}),
    }
    prompts = {name: request.prompt.messages[-1].content for name, request in asked.items()}
    assert [name for name, text in prompts.items() if "Tests first." in text] == ["t1"]
    assert [name for name, text in prompts.items() if "No adjectives." in text] == ["t2"]
    works = {name: subtask.work for name, subtask in instance.subtasks.items()}
    assert {name: (work.model, work.usage.cost_usd) for name, work in works.items()} == {
        "t1": ("scripted/codex", 5.0),
        "t2": ("scripted/small", 1.0),
        "t3": ("scripted/small", 1.0),
        "t4": ("scripted/small", 1.0),
    }


async def test_subtasks_run_in_parallel_within_both_limits(tmp_path: Path) -> None:
    gated = GatedProvider(plan_text(6))
    async with engine_on(tmp_path / "log.db", gated.provider, max_calls=5) as (engine, log):
        await engine.create(new_instance("a", resolved(max_parallel_subtasks=3)))
        await engine.create(new_instance("b", resolved(max_parallel_subtasks=3)))
        await gated.until(lambda: gated.open == 5)
        gated.gate.set()
        await ended(log, "a", 20)
        await ended(log, "b", 20)
    assert gated.max_open == 5


async def test_instances_beyond_the_limit_wait_in_order(tmp_path: Path) -> None:
    gated = GatedProvider()
    async with engine_on(tmp_path / "log.db", gated.provider, max_active=1) as (engine, log):
        for name in "abc":
            await engine.create(new_instance(name))
        await gated.until(lambda: gated.open == 3)
        assert (await load(log, "b")).state == pb.STATE_QUEUED
        assert (await steer(engine, "b", lifecycle.terminate)).state == pb.STATE_TERMINATED
        gated.gate.set()
        assert (await ended(log, "c", 20)).state == pb.STATE_COMPLETE
        assert (await load(log, "a")).end_time_s <= (await load(log, "c")).start_time_s
        assert await kinds(log, "b") == ["instance_created", "instance_terminated"]


async def test_terminating_cancels_open_calls_and_records_nothing_after_it(tmp_path: Path) -> None:
    gated = GatedProvider()
    async with engine_on(tmp_path / "log.db", gated.provider) as (engine, log):
        await engine.create(new_instance())
        await gated.until(lambda: gated.open == 3)
        instance = await steer(engine, "a", lifecycle.terminate)
        assert instance.state == pb.STATE_TERMINATED
        await gated.until(lambda: gated.open == 0)
        gated.gate.set()
        with pytest.raises(StateForbidsError, match="is terminated: it cannot be asked to terminate"):
            await steer(engine, "a", lifecycle.terminate)
        assert (await kinds(log))[-1] == "instance_terminated"
    assert "synthesis" not in gated.calls


async def test_a_restart_of_the_service_repeats_only_calls_that_were_in_progress(tmp_path: Path) -> None:
    gated = GatedProvider(plan_text(2, chained=True), holds="")
    stuck = GatedProvider(plan_text(2, chained=True), holds="synthesis")
    async with engine_on(tmp_path / "log.db", stuck.provider) as (engine, _):
        await engine.create(new_instance())
        await stuck.until(lambda: "synthesis" in stuck.calls)
    async with engine_on(tmp_path / "log.db", gated.provider) as (_, log):
        instance = await ended(log, "a", 20)
        events = await kinds(log)
    assert instance.state == pb.STATE_COMPLETE
    assert stuck.calls == ["planning", "t1", "t2", "synthesis"]
    assert gated.calls == ["synthesis"]
    assert events[-4:] == [
        "synthesis_failed",
        "synthesis_started",
        "synthesis_completed",
        "instance_completed",
    ]


async def test_a_retry_that_is_not_yet_due_waits_across_a_restart(tmp_path: Path) -> None:
    policy = pb.RetryPolicy()
    policy.initial_delay.seconds = policy.max_delay.seconds = 3600
    async with engine_on(tmp_path / "log.db", Scripted(lambda _: FLAKY)) as (engine, log):
        await engine.create(new_instance(config=resolved(retry=policy)))
        with log.notifier.watch(await ref(log, "a")) as woken:
            while (await load(log, "a")).planning.failures == 0:
                await woken.wait()
                woken.clear()
    eager = GatedProvider(holds="")
    async with engine_on(tmp_path / "log.db", eager.provider) as (engine, log):
        await engine.create(new_instance("b"))
        await ended(log, "b", 20)
        assert (await load(log, "a")).planning.failures == 1
    assert eager.calls.count("planning") == 1


async def test_an_instance_whose_creation_was_cancelled_after_queueing_still_runs(tmp_path: Path) -> None:
    async with engine_on(tmp_path / "log.db", Scripted()) as (engine, log):
        creating = asyncio.create_task(engine.create(new_instance()))
        await asyncio.sleep(0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        with log.notifier.watch() as woken:
            while not await ids(log):
                await woken.wait()
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE


async def until(log: SqliteEventLog, state: pb.State.ValueType, instance_id: str = "a") -> Instance:
    with log.notifier.watch(await ref(log, instance_id)) as woken:
        while (instance := await load(log, instance_id)).state != state:
            await woken.wait()
            woken.clear()
    return instance


async def test_pausing_lets_running_calls_finish_and_resuming_continues_across_a_restart(
    tmp_path: Path,
) -> None:
    gated = GatedProvider(plan_text(2, chained=True))
    async with engine_on(tmp_path / "log.db", gated.provider, max_active=1) as (engine, log):
        await engine.create(new_instance())
        await engine.create(new_instance("b"))
        await gated.until(lambda: gated.open == 1)
        assert (await steer(engine, "a", lifecycle.pause)).state == pb.STATE_WAITING_FOR_PAUSE
        gated.gate.set()
        await until(log, pb.STATE_PAUSED)
        assert (await ended(log, "b", 20)).state == pb.STATE_COMPLETE  # its place was given on
        assert gated.calls.count("t2") == 1
    async with engine_on(tmp_path / "log.db", gated.provider) as (engine, log):
        assert (await load(log, "a")).state == pb.STATE_PAUSED
        assert (await steer(engine, "a", lifecycle.resume)).state == pb.STATE_RUNNING
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
    assert gated.calls.count("t1") == 2  # once for each instance


async def test_a_resumed_instance_waits_for_a_free_place(tmp_path: Path) -> None:
    gated = GatedProvider(plan_text(2, chained=True))
    async with engine_on(tmp_path / "log.db", gated.provider, max_active=1) as (engine, log):
        await engine.create(new_instance())
        await gated.until(lambda: gated.open == 1)
        await steer(engine, "a", lifecycle.pause)
        gated.gate.set()
        await until(log, pb.STATE_PAUSED)
        gated.gate.clear()
        await engine.create(new_instance("b"))
        await gated.until(lambda: gated.open == 1)
        await steer(engine, "a", lifecycle.resume)
        calls_before = len(gated.calls)
        gated.gate.set()
        assert (await ended(log, "b", 20)).state == pb.STATE_COMPLETE
        assert gated.calls[calls_before : calls_before + 2] == [
            "t2",
            "synthesis",
        ]  # both are b's: a's t2 comes after them
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
        assert (await load(log, "a")).end_time_s >= (await load(log, "b")).end_time_s


async def test_a_budget_in_dollars_stops_the_next_call_and_a_retry_with_more_continues(
    tmp_path: Path,
) -> None:
    def answer(request: ModelRequest) -> Answer:
        return ModelReply(str(answering()(request)), input_tokens=100, output_tokens=200)

    prices = Prices(dict.fromkeys(("scripted/big", "scripted/small"), Price(1000.0, 1000.0)))  # 0.30 a call
    models = Models({"scripted": Scripted(answer)}, prices)
    log = await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, models) as engine:
        config = resolved(budget=pb.Budget(max_cost_usd=0.5), max_parallel_subtasks=1)
        await engine.create(new_instance(config=config))
        instance = await ended(log, "a", 20)
        assert instance.error
        assert instance.error.reason == "BUDGET_EXCEEDED"
        assert "0.6 USD are spent and budget.max_cost_usd is 0.5" in instance.error.message
        assert (instance.usage.model_calls, round(instance.usage.cost_usd, 6)) == (2, 0.6)
    await log.aclose()
    log = await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, models) as engine:
        assert (await load(log, "a")).usage == instance.usage  # exact after a restart
        more = changes(budget=pb.Budget(max_cost_usd=5))
        await steer(engine, "a", partial(lifecycle.retry, changes=more))
        instance = await ended(log, "a", 20)
        assert instance.state == pb.STATE_COMPLETE
        assert (instance.usage.model_calls, round(instance.usage.cost_usd, 6)) == (5, 1.5)
        parts = [instance.planning, instance.synthesis, *(s.work for s in instance.subtasks.values())]
        assert instance.usage == reduce(Usage.plus, (part.usage for part in parts))
    await log.aclose()


async def test_retrying_calls_only_failed_subtasks_and_the_synthesis(tmp_path: Path) -> None:
    broken = {"t5"}
    calls: list[str] = []

    def answer(request: ModelRequest) -> Answer:
        name = request.prompt.subtask_id or request.prompt.role
        calls.append(name)
        if name in broken:
            return FATAL
        return {"planning": plan_text(8), "work": f"out {name}", "synthesis": "done"}[request.prompt.role]

    async with engine_on(tmp_path / "log.db", Scripted(answer)) as (engine, log):
        await engine.create(new_instance())
        assert (await ended(log, "a", 20)).state == pb.STATE_ERRORED
        assert len(calls) == 9
        broken.clear()
        await steer(engine, "a", lambda instance: lifecycle.retry(instance, changes()))
        instance = await ended(log, "a", 20)
    assert instance.state == pb.STATE_COMPLETE
    assert calls[9:] == ["t5", "synthesis"]
    assert instance.subtasks["t5"].work.attempt == 2


async def test_a_retry_with_an_unknown_model_is_rejected(tmp_path: Path) -> None:
    async with engine_on(tmp_path / "log.db", Scripted(lambda _: FATAL)) as (engine, log):
        await engine.create(new_instance())
        before = await ended(log, "a", 20)
        unknown = changes(small_model="nobody/knows")
        with pytest.raises(InvalidArgumentError):
            await steer(engine, "a", lambda instance: lifecycle.retry(instance, unknown))
        assert await load(log, "a") == before


async def test_two_concurrent_retries_reopen_an_instance_once(tmp_path: Path) -> None:
    gated = GatedProvider(holds="planning")

    async def fail_then_hold(request: ModelRequest) -> Answer:
        return await gated._answer(request) if gated.calls else FATAL

    async with engine_on(tmp_path / "log.db", Scripted(fail_then_hold)) as (engine, log):
        await engine.create(new_instance())
        await ended(log, "a", 20)
        gated.calls.append("failed")
        retries = (
            steer(engine, "a", lambda instance: lifecycle.retry(instance, changes())) for _ in range(2)
        )
        results = await asyncio.gather(*retries, return_exceptions=True)
        assert sum(isinstance(result, StateForbidsError) for result in results) == 1
        gated.gate.set()
        await ended(log, "a", 20)
        assert (await kinds(log)).count("instance_retried") == 1


async def test_a_plan_waits_for_review_across_a_restart_and_may_be_rejected(tmp_path: Path) -> None:
    gated = GatedProvider(plan_text(2), holds="")
    async with engine_on(tmp_path / "log.db", gated.provider) as (engine, log):
        await engine.create(new_instance(config=resolved(review_plan=True)))
        await until(log, pb.STATE_WAITING)
    async with engine_on(tmp_path / "log.db", gated.provider) as (engine, log):
        await steer(engine, "a", lambda i: lifecycle.review(i, DECISION_REJECT, [], "smaller parts"))
        await until(log, pb.STATE_WAITING)
        edited = [pb.Subtask(id="only", instructions="do it")]
        await steer(engine, "a", lambda i: lifecycle.review(i, DECISION_APPROVE, edited, ""))
        instance = await ended(log, "a", 20)
    assert instance.state == pb.STATE_COMPLETE
    assert gated.calls == ["planning", "planning", "only", "synthesis"]


async def test_restarting_starts_over_and_keeps_the_history(tmp_path: Path) -> None:
    gated = GatedProvider(plan_text(1), holds="")
    async with engine_on(tmp_path / "log.db", gated.provider) as (engine, log):
        await engine.create(new_instance())
        first = await ended(log, "a", 20)
        await steer(engine, "a", lambda instance: lifecycle.restart(instance, changes()))
        second = await ended(log, "a", 20)
        events = await kinds(log)
    assert second.state == pb.STATE_COMPLETE
    assert gated.calls == ["planning", "t1", "synthesis"] * 2
    assert events[first.last_sequence] == "instance_restarted"
    assert second.last_sequence == len(events)


async def test_the_duration_budget_counts_time_while_the_service_is_down(tmp_path: Path) -> None:
    gated = GatedProvider(plan_text(2, chained=True))
    budget = pb.Budget()
    budget.max_duration.seconds = 3600
    async with engine_on(tmp_path / "log.db", gated.provider) as (engine, log):
        await engine.create(new_instance(config=resolved(budget=budget)))
        await gated.until(lambda: gated.open == 1)
        started_s = (await load(log, "a")).start_time_s
    gated.gate.set()
    log = await SqliteEventLog.open(tmp_path / "log.db")
    models = Models({"scripted": gated.provider})
    async with LocalEngine.running(log, models, now_s=lambda: started_s + 3601) as engine:
        instance = await ended(log, "a", 20)
        assert instance.error
        assert instance.error.reason == "DEADLINE_EXCEEDED"
        longer = pb.InstanceConfig(budget=pb.Budget())
        longer.budget.max_duration.seconds = 7200
        await steer(engine, "a", partial(lifecycle.retry, changes=read_changes(longer)))
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
    await log.aclose()
    assert gated.calls.count("planning") == 1


async def test_the_queue_keeps_its_order_across_a_restart(tmp_path: Path) -> None:
    gated = GatedProvider()
    async with engine_on(tmp_path / "log.db", gated.provider, max_active=1) as (engine, log):
        for name in "abcd":
            await engine.create(new_instance(name))
        await gated.until(lambda: gated.open == 3)
    gated.gate.set()
    async with engine_on(tmp_path / "log.db", gated.provider, max_active=1) as (engine, log):
        end_times_s = [(await ended(log, name, 20)).end_time_s for name in "abcd"]
    assert end_times_s == sorted(end_times_s)


async def test_an_instance_with_many_subtasks_does_not_starve_the_others(tmp_path: Path) -> None:
    gated = GatedProvider(plan_text(12))
    own = [pb.Subtask(id="small", instructions="do it")]
    async with engine_on(tmp_path / "log.db", gated.provider, max_calls=1) as (engine, log):
        await engine.create(new_instance("big", resolved(max_parallel_subtasks=12)))
        await gated.until(lambda: gated.open == 1 and "t1" in gated.calls)
        await engine.create(new_instance("small", resolved(subtasks=own)))
        await until(log, pb.STATE_RUNNING, "small")
        gated.gate.set()
        await ended(log, "small", 20)
        await ended(log, "big", 20)
    assert (
        gated.calls.index("small") <= 4
    )  # the planning, t1 that had its slot already, and one slot of big's


async def test_outputs_too_long_for_the_model_are_merged_and_the_instance_completes(tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []

    def answer(request: ModelRequest) -> Answer:
        role, name = request.prompt.role, request.prompt.subtask_id
        calls.append((role, name))
        if sum(len(message.content) for message in request.prompt.messages) > 12_000:
            return ModelError("INPUT_TOO_LONG", "too long", retryable=True)
        if role == "planning":
            return plan_text(6)
        return f"# {name}\n" + "x" * 4000 if role == "work" else f"merged {name}" if name else "done"

    instance, events = await run(
        tmp_path / "log.db", answer, resolved(retry=QUICK, max_input_characters=30_000)
    )
    assert instance.state == pb.STATE_COMPLETE
    assert events.count("synthesis_failed") == 1
    merges = [subtask for subtask in instance.subtasks.values() if subtask.merges]
    assert len(merges) >= 2
    assert all(subtask.output == f"merged {subtask.id}" for subtask in merges)
    assert [name for role, name in calls if role == "work"] == [f"t{number}" for number in range(1, 7)]


async def test_a_prompt_too_long_for_the_planner_is_not_retried(tmp_path: Path) -> None:
    too_long = ModelError("INPUT_TOO_LONG", "too long", retryable=True)
    instance, events = await run(tmp_path / "log.db", lambda _: too_long, resolved(retry=QUICK))
    assert instance.error
    assert instance.error.reason == "PLANNING_FAILED"
    assert events.count("planning_started") == 1


async def test_each_call_is_recorded_with_the_version_of_its_prompts(tmp_path: Path) -> None:
    async with engine_on(tmp_path / "log.db", Scripted()) as (engine, log):
        await engine.create(new_instance())
        await ended(log, "a", 20)
        started = [
            getattr(event, kind).prompts
            for event in (await read(log, "a")).events()
            for kind in ("planning_started", "subtask_started", "synthesis_started")
            if event.HasField(kind)
        ]
    assert started == [FULL.version] * 7


async def test_an_instance_waits_for_an_unavailable_provider_without_counting_attempts(
    tmp_path: Path,
) -> None:
    gated = GatedProvider()
    path = tmp_path / "log.db"
    async with engine_on(path, gated.provider) as (engine, _):
        created = await engine.create(new_instance())
        await gated.until(lambda: gated.open == 3)
    gated.gate.set()
    without_key = UnavailableProvider("no key for scripted: set SCRIPTED_API_KEY")
    async with engine_on(path, without_key) as (engine, log):
        while not (reason := engine.waiting_reason(created.ref)):  # noqa: ASYNC110  each pass of the loop
            await asyncio.sleep(0)
        assert reason == "no key for scripted: set SCRIPTED_API_KEY"
        before = await load(log, "a")
        assert before.state == pb.STATE_RUNNING
        await asyncio.sleep(0)
        assert await load(log, "a") == before
    async with engine_on(path, gated.provider) as (engine, log):
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
        assert engine.waiting_reason(created.ref) == ""


async def test_an_orderly_stop_is_recorded_at_once_and_is_not_a_crash(tmp_path: Path) -> None:
    gated = GatedProvider()
    path = tmp_path / "log.db"
    for _ in range(5):
        async with engine_on(path, gated.provider) as (engine, log):
            if not gated.calls:
                await engine.create(new_instance())
            await gated.until(lambda: gated.open == 3)
    log = await SqliteEventLog.open(path)
    instance = await load(log, "a")
    assert not instance.has_open_calls
    assert instance.crashes == {}
    assert instance.usage.model_calls == 1 + 5 * 3
    failed = [e.subtask_failed for e in (await read(log, "a")).events() if e.HasField("subtask_failed")]
    assert {failure.error.reason for failure in failed} == {"INTERRUPTED"}
    await log.aclose()


async def test_an_instance_that_repeatedly_crashes_the_service_is_paused_at_the_next_start(
    tmp_path: Path,
) -> None:
    path = tmp_path / "log.db"
    history = History().planned(part("t1"), part("t2"))
    for _ in range(2):
        history.started("t1").then(*calls_interrupted(history.instance, NOW_S, by_crash=True))
    history.started("t1")  # and the process ended without recording more
    log = await SqliteEventLog.open(path)
    await log.create([Creation(key("a"), history.events, history.instance)])
    await log.aclose()
    gated = GatedProvider()
    async with engine_on(path, gated.provider) as (engine, log):
        instance = await until(log, pb.STATE_PAUSED)
        assert instance.pause_cause
        assert instance.pause_cause.reason == "CRASHED_REPEATEDLY"
        assert instance.usage.model_calls == 1 + 3
        assert gated.calls == []
        gated.gate.set()
        await steer(engine, "a", lifecycle.resume)
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE


@pytest.mark.parametrize(("characters", "is_beside"), [(100, False), (100_000, True)])
async def test_a_long_plan_is_parsed_outside_of_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, characters: int, *, is_beside: bool
) -> None:
    threads: list[threading.Thread] = []

    def parse(text: str, max_subtasks: int, paths: Collection[str]) -> Plan:
        threads.append(threading.current_thread())
        return parse_plan(text, max_subtasks, paths)

    monkeypatch.setattr("orchestrator.core.plan_text.parse", parse)
    plan = json.dumps({"summary": "x" * characters, "subtasks": [{"id": "t1", "instructions": "Do it."}]})

    def answer(request: ModelRequest) -> Answer:
        return plan if request.prompt.role == "planning" else "done"

    async with engine_on(tmp_path / "log.db", Scripted(answer)) as (engine, log):
        await engine.create(new_instance())
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
    (thread,) = threads
    assert (thread is not threading.main_thread()) == is_beside
