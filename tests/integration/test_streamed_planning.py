"""Subtasks begin while the plan is still being written."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from aiohttp import web
from support import streams
from support.endpoint import Call, Endpoint, Misbehaviour
from support.histories import changes, resolved
from support.logs import ended, load, read, ref, steer
from support.provider_calls import chat, messages

from orchestrator.core import lifecycle
from orchestrator.core.create import NewInstance
from orchestrator.core.instance import Instance
from orchestrator.core.replies import ModelReply
from orchestrator.engine.local import LocalEngine
from orchestrator.errors import ModelError
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models.base import ModelRequest, Models, Provider, TextCallback
from orchestrator.models.http.endpoint import HttpProvider
from orchestrator.models.scripted import Answer, Scripted
from orchestrator.v1 import instance_pb2 as pb

HEAD = '{"summary": "how", "subtasks": ['
QUICK = pb.RetryPolicy(max_attempts=3)
QUICK.initial_delay.nanos = 1_000_000


def part(name: str, *needs: str, text: str = "do it") -> str:
    needed = ", ".join(f'"{need}"' for need in needs)
    return f'{{"id": "{name}", "title": "{name}", "instructions": "{text}", "depends_on": [{needed}]}}'


class Planner:
    """Writes the plan that the test scripts; workers answer at once, unless they are held."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[str | ModelError | None] = asyncio.Queue()
        self.worked: list[str] = []
        self.held: set[str] = set()
        self.cut: list[str] = []
        self.changed = asyncio.Condition()
        self.prompts: dict[str, str] = {}

    async def _answer(self, request: ModelRequest) -> Answer:
        match request.prompt.role:
            case "planning":
                return self._plan()
            case "work":
                return await self._work(request)
            case "synthesis":
                return "The result."

    async def _plan(self) -> AsyncIterator[str]:
        while piece := await self.pieces.get():
            if isinstance(piece, ModelError):
                raise piece
            yield piece

    async def _work(self, request: ModelRequest) -> str:
        name = request.prompt.subtask_id
        self.prompts[name] = request.prompt.messages[-1].content
        async with self.changed:
            self.worked.append(name)
            self.changed.notify_all()
        try:
            if name in self.held:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cut.append(name)
            raise
        return f"out {name}"

    async def until_worked(self, *names: str) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: set(names) <= set(self.worked))

    def write(self, *pieces: str | ModelError | None) -> None:
        for piece in pieces:
            self.pieces.put_nowait(piece)

    @property
    def models(self) -> Models:
        return Models({"scripted": Scripted(self._answer)})


async def kinds(log: SqliteEventLog) -> list[str]:
    return [str(event.WhichOneof("payload")) for event in (await read(log, "a")).events()]


def new_instance(**changes: object) -> NewInstance:
    return NewInstance("a", "Build it", resolved(retry=QUICK, **changes))


async def done(log: SqliteEventLog, *names: str) -> None:
    with log.notifier.watch(await ref(log, "a")) as woken:
        while True:
            subtasks = (await load(log, "a")).subtasks
            if all(name in subtasks and subtasks[name].output for name in names):
                return
            await woken.wait()
            woken.clear()


async def test_a_subtask_starts_as_soon_as_it_is_complete_and_its_dependencies_are_done(
    tmp_path: Path,
) -> None:
    planner, log = Planner(), await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, planner.models) as engine:
        await engine.create(new_instance())
        planner.write(HEAD + part("a") + ", " + part("b", "a"))
        await planner.until_worked("a", "b")
        assert "how" in planner.prompts["a"]
        assert "out a" in planner.prompts["b"]
        planner.write(", " + part("d", "e"))
        planner.write(", " + part("e"))
        await planner.until_worked("d", "e")
        assert planner.worked.index("e") < planner.worked.index("d")
        assert "plan_completed" not in await kinds(log)
        planner.write("]}", None)
        instance = await ended(log, "a", 20)
        assert instance.state == pb.STATE_COMPLETE
        assert sorted(planner.worked) == ["a", "b", "d", "e"]
        assert (await kinds(log)).count("subtask_planned") == 4
    await log.aclose()


async def test_a_plan_for_review_is_not_started(tmp_path: Path) -> None:
    planner, log = Planner(), await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, planner.models) as engine:
        await engine.create(new_instance(review_plan=True))
        planner.write(HEAD + part("a") + "]}", None)
        with log.notifier.watch(await ref(log, "a")) as woken:
            while (await load(log, "a")).state != pb.STATE_WAITING:
                await woken.wait()
                woken.clear()
        assert planner.worked == []
    await log.aclose()


async def test_when_planning_fails_running_calls_are_cancelled_and_completed_results_are_kept(
    tmp_path: Path,
) -> None:
    planner, log = Planner(), await SqliteEventLog.open(tmp_path / "log.db")
    planner.held = {"slow"}
    async with LocalEngine.running(log, planner.models) as engine:
        await engine.create(new_instance())
        planner.write(HEAD + part("a") + ", " + part("b", "a") + ", " + part("c") + ", " + part("slow"))
        await done(log, "a", "b", "c")
        await planner.until_worked("slow")
        planner.write(ModelError("STREAM_CUT", "cut", retryable=True))
        changed = part("c", text="do something else")
        planner.write(HEAD + part("a") + ", " + part("b", "a") + ", " + changed + "]}", None)
        instance = await ended(log, "a", 20)
        assert instance.state == pb.STATE_COMPLETE
        assert planner.cut == ["slow"]
        assert list(instance.subtasks) == ["a", "b", "c"]
        assert [planner.worked.count(name) for name in ("a", "b", "c")] == [1, 1, 2]
        events = await kinds(log)
        cut = events.index("planning_failed")
        assert events[cut - 1] == "subtask_failed"
        assert instance.usage.model_calls == 8  # two plans, a, b, c twice, the one cut off, and the synthesis
    await log.aclose()


async def test_a_planner_without_a_valid_answer_starts_work_only_on_its_first_two_plans(
    tmp_path: Path,
) -> None:
    planner, log = Planner(), await SqliteEventLog.open(tmp_path / "log.db")
    planner.held = {"slow"}
    async with LocalEngine.running(log, planner.models) as engine:
        await engine.create(new_instance())
        for name in ("first", "second"):
            planner.write(HEAD + part(name) + ", " + part("slow"))
            await done(log, name)
            await planner.until_worked(name, "slow")
            planner.write(", " + part("b", "nobody") + "]}", None)
        planner.write(HEAD + part("third") + ", " + part("b", "nobody") + "]}", None)
        instance = await ended(log, "a", 20)
        assert (instance.state, instance.error.reason) == (pb.STATE_ERRORED, "PLAN_INVALID")
        assert planner.worked == ["first", "slow", "second", "slow"]
        assert list(instance.reusable) == ["first", "second"]
        assert instance.usage.model_calls == 3 + 4
    await log.aclose()


async def test_after_two_failed_plans_the_third_starts_once_it_is_complete(tmp_path: Path) -> None:
    planner, log = Planner(), await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, planner.models) as engine:
        await engine.create(new_instance())
        for _ in range(2):
            planner.write(HEAD + part("a"))
            await done(log, "a")
            planner.write(ModelError("STREAM_CUT", "cut", retryable=True))
        planner.write(HEAD + part("a") + ", " + part("b") + "]}", None)
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
        assert planner.worked == ["a", "b"]
        events = await kinds(log)
        third = [place for place, kind in enumerate(events) if kind == "planning_started"][2]
        whole = events.index("plan_completed")
        assert set(events[third + 1 : whole]) == {"subtask_planned"}
    await log.aclose()


async def test_calls_cancelled_by_a_termination_count(tmp_path: Path) -> None:
    planner, log = Planner(), await SqliteEventLog.open(tmp_path / "log.db")
    planner.held = {"slow"}
    async with LocalEngine.running(log, planner.models) as engine:
        await engine.create(new_instance())
        planner.write(HEAD + part("a") + ", " + part("slow"))
        await done(log, "a")
        await planner.until_worked("slow")
        instance = await steer(engine, "a", lifecycle.terminate)
        assert instance.usage.model_calls == 3  # the plan, a, and the slow one
    await log.aclose()


async def test_a_reusable_result_survives_a_kill_during_planning(tmp_path: Path) -> None:
    planner, log = Planner(), await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, planner.models) as engine:
        await engine.create(new_instance())
        planner.write(HEAD + part("a"))
        await done(log, "a")
    await log.aclose()
    planner.pieces = asyncio.Queue()
    log = await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, planner.models):
        planner.write(HEAD + part("a") + ", " + part("b") + "]}", None)
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
        assert planner.worked == ["a", "b"]
    await log.aclose()


async def test_terminating_during_planning_and_retrying_keeps_completed_results(tmp_path: Path) -> None:
    planner, log = Planner(), await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, planner.models) as engine:
        await engine.create(new_instance())
        planner.write(HEAD + part("a"))
        await done(log, "a")
        await steer(engine, "a", lifecycle.terminate)
        planner.pieces = asyncio.Queue()
        await steer(engine, "a", lambda instance: lifecycle.retry(instance, changes()))
        planner.write(HEAD + part("a") + "]}", None)
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
        assert planner.worked == ["a"]
    await log.aclose()


async def test_pausing_during_planning_starts_nothing_more(tmp_path: Path) -> None:
    planner, log = Planner(), await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, planner.models) as engine:
        await engine.create(new_instance())
        planner.write(HEAD + part("a"))
        await done(log, "a")
        await steer(engine, "a", lifecycle.pause)
        planner.write(", " + part("b") + "]}", None)
        with log.notifier.watch(await ref(log, "a")) as woken:
            while (await load(log, "a")).state != pb.STATE_PAUSED:
                await woken.wait()
                woken.clear()
        assert planner.worked == ["a"]
        await steer(engine, "a", lifecycle.resume)
        assert (await ended(log, "a", 20)).state == pb.STATE_COMPLETE
    await log.aclose()


async def test_an_answer_that_contradicts_its_streamed_subtasks_is_a_failed_attempt(tmp_path: Path) -> None:
    planner, log = Planner(), await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, planner.models) as engine:
        await engine.create(new_instance())
        planner.write(HEAD + part("a") + ", " + part("b", "nobody") + "]}", None)
        planner.write(HEAD + part("a") + "]}", None)
        instance = await ended(log, "a", 20)
        assert instance.state == pb.STATE_COMPLETE
        assert planner.worked == ["a"]
        failed = [e.planning_failed for e in (await read(log, "a")).events() if e.HasField("planning_failed")]
        assert failed[0].error.reason == "PLAN_INVALID"
        assert "'nobody', which is not in the plan" in failed[0].error.message
    await log.aclose()


async def completed(tmp_path: Path, provider: Provider) -> tuple[Instance, list[str]]:
    """The instance when it is complete, and the kinds of its events."""
    log = await SqliteEventLog.open(tmp_path / "log.db")
    async with LocalEngine.running(log, Models({"scripted": provider})) as engine:
        await engine.create(new_instance())
        instance = await ended(log, "a", 20)
        events = await kinds(log)
    await log.aclose()
    assert instance.state == pb.STATE_COMPLETE
    return instance, events


@pytest.mark.parametrize("make", [chat, messages])
@pytest.mark.parametrize("thoughts", ["<think>\n{}\n</think>\n\n", "Perhaps so:\n{}\n</think>\n\n"])
async def test_no_subtask_of_a_plan_within_thoughts_starts(
    tmp_path: Path, make: Callable[[Endpoint], HttpProvider], thoughts: str
) -> None:
    def script(call: Call) -> str | None:
        draft = HEAD + part("draft") + "]}"
        return thoughts.format(draft) + HEAD + part("real") + "]}" if call.role == "planning" else None

    async with Endpoint(script) as endpoint, aclosing(make(endpoint)) as provider:
        _, events = await completed(tmp_path, provider)
    assert [call.subtask_id for call in endpoint.calls if call.role == "work"] == ["real"]
    assert events.count("planning_started") == 1


@pytest.mark.parametrize("start", ["", "```json\n"])
async def test_a_plan_at_the_beginning_starts_while_the_endpoint_still_streams_it(
    tmp_path: Path, start: str
) -> None:
    worked = asyncio.Event()

    async def plan(call: Call) -> web.StreamResponse:
        response = await streams.start_response(call.request)
        await response.write(streams.encode(streams.text_event(call.request, start + HEAD + part("a"))))
        await worked.wait()
        for event in (streams.text_event(call.request, "]}"), streams.end_event(call.request)):
            await response.write(streams.encode(event))
        return response

    def script(call: Call) -> str | Misbehaviour | None:
        if call.role == "work":
            worked.set()
        return plan if call.role == "planning" else None

    async with Endpoint(script) as endpoint, aclosing(chat(endpoint)) as provider:
        _, events = await completed(tmp_path, provider)
    assert events.index("subtask_started") < events.index("plan_completed")


async def test_text_parsed_before_a_plan_restarted_is_discarded(tmp_path: Path) -> None:
    class Thinker(Scripted):
        """Emits a plan, restarts, and emits another."""

        async def complete(self, request: ModelRequest, on_text: TextCallback | None = None) -> ModelReply:
            if request.prompt.role != "planning":
                return await super().complete(request, on_text)
            real = HEAD + part("real") + "]}"
            if on_text is not None:
                on_text(HEAD)
                on_text(HEAD + part("real"), is_restart=True)
                on_text("]}")
            return ModelReply(real)

    instance, _ = await completed(tmp_path, Thinker())
    assert list(instance.subtasks) == ["real"]
