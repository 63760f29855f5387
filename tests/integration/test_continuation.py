"""Answers longer than the token limit: continued part by part, whatever happens between two parts."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.logs import read
from support.service import Service, service

from orchestrator.core.replies import Finish, ModelReply
from orchestrator.errors import ModelError
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

QUICK = instance_pb2.RetryPolicy(max_attempts=3)
QUICK.initial_delay.nanos = 1_000_000
PLAN = plan_text(2)
LONG = "".join(f"Line {number} of an answer that takes long to write.\n" for number in range(40))
SYNTHESIS = "".join(f"Sentence {number} of the result. " for number in range(40)).strip()
TEXTS = {"planning": PLAN, "t1": LONG, "t2": "short", "synthesis": SYNTHESIS}


class Cutting:
    """A model that writes so many characters of its text in a call, and goes on where it is shown to be."""

    def __init__(self, *cut: str, characters: int = 500, texts: Mapping[str, str] = TEXTS) -> None:
        self.texts = texts
        self.cut = cut or tuple(texts)
        self.characters = characters
        self.calls: list[tuple[str, int]] = []
        """Of each call the work, and how much of its text there was already."""
        self.prompts: dict[str, str] = {}
        """Of each work what it was asked last."""
        self.overlap = 0
        """How many characters before a part it repeats."""
        self.answered = asyncio.Condition()
        self.on_call: Callable[[str, int], Answer | None] = lambda _name, _start: None
        self.gate: asyncio.Event | None = None
        """Where calls that continue wait."""
        self.provider = Scripted(self._answer)

    def count(self, name: str) -> int:
        return [called for called, _ in self.calls].count(name)

    async def _answer(self, request: ModelRequest) -> Answer:
        name = request.prompt.subtask_id or request.prompt.role
        so_far = [each.content for each in request.prompt.messages if each.role == "assistant"]
        start = len(so_far[0]) if so_far else 0
        assert self.texts[name].startswith("".join(so_far))
        self.calls.append((name, start))
        self.prompts[name] = request.prompt.messages[1].content
        async with self.answered:
            self.answered.notify_all()
        if start and self.gate:
            await self.gate.wait()
        if (answer := self.on_call(name, start)) is not None:
            return answer
        again, rest = self.texts[name][max(0, start - self.overlap) : start], self.texts[name][start:]
        if name in self.cut and len(rest) > self.characters:
            return ModelReply(again + rest[: self.characters], 10, 100, Finish.CUT)
        return ModelReply(again + rest, 10, 50)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.answered:
            await self.answered.wait_for(condition)


async def create(running: Service, **config: object) -> None:
    wanted = instance_pb2.InstanceConfig(retry=QUICK, **config)
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="Build it", id="a", config=wanted))


@asynccontextmanager
async def between_parts(path: Path, model: Cutting, start: int) -> AsyncIterator[Service]:
    """A service whose instance waits for the part of `t1` behind so many characters, at the model's gate."""
    model.gate = asyncio.Event()
    async with service(path / "log.db", model.provider) as running:
        await create(running)
        await model.until(lambda: ("t1", start) in model.calls)
        yield running


async def shown(running: Service, instance_id: str = "a") -> instance_pb2.Instance:
    """The instance as it is now, in full."""
    return (await running.stub.GetInstance(pb.GetInstanceRequest(id=instance_id, view=pb.VIEW_FULL))).instance


async def events(running: Service, instance_id: str = "a") -> list[event_pb2.Event]:
    return list((await read(running.log, instance_id)).events())


async def run(
    path: Path, model: Cutting, **config: object
) -> tuple[instance_pb2.Instance, list[event_pb2.Event]]:
    async with service(path / "log.db", model.provider) as running:
        await create(running, **config)
        await running.ended("a")
        return await shown(running), await events(running)


def kinds(events: list[event_pb2.Event]) -> list[str]:
    return [str(event.WhichOneof("payload")) for event in events]


async def kinds_until(running: Service, last: str) -> list[str]:
    """The kinds of all events up to the first of a kind."""
    found: list[str] = []
    async for message in running.stub.StreamEvents(pb.StreamEventsRequest(id="a")):
        found += kinds(list(message.batch.events))
        if last in found:
            break
    return found


def payloads(events: list[event_pb2.Event], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("payload") == kind]


def assert_whole(instance: instance_pb2.Instance) -> None:
    assert instance.state == instance_pb2.STATE_COMPLETE
    assert {subtask.id: subtask.output for subtask in instance.subtasks} == {"t1": LONG, "t2": "short"}
    assert instance.final_result == SYNTHESIS
    assert not instance.is_partial
    assert not any(subtask.is_partial for subtask in instance.subtasks)


async def test_every_kind_of_answer_is_continued_in_the_same_attempt_until_it_is_whole(
    tmp_path: Path,
) -> None:
    model = Cutting(characters=100)
    instance, recorded = await run(tmp_path, model, max_continuations=64)
    assert_whole(instance)
    for name, text in TEXTS.items():
        starts = [start for called, start in model.calls if called == name]
        assert starts == list(range(0, len(text), 100))
    assert instance.usage.model_calls == len(model.calls)
    assert payloads(recorded, "instance_completed")[0].usage == instance.usage
    assert {payload.attempt for payload in payloads(recorded, "subtask_completed")} == {1}
    parts = payloads(recorded, "subtask_continued")
    assert [part.part for part in parts] == list(range(1, len(parts) + 1))
    assert all((part.subtask_id, part.attempt, part.model) == ("t1", 1, "scripted/small") for part in parts)
    assert "".join(part.text for part in parts) == LONG[: 100 * len(parts)]
    assert all(part.usage.output_tokens == 100 for part in parts)
    assert {"planning_continued", "synthesis_continued"} <= set(kinds(recorded))


async def test_a_merge_that_is_cut_off_is_continued_too(tmp_path: Path) -> None:
    merged = "".join(f"Fact {number} of both outputs. " for number in range(60))
    model = Cutting("merge-1", characters=900, texts={**TEXTS, "t2": LONG, "merge-1": merged})
    instance, recorded = await run(tmp_path, model, max_input_characters=2500)
    assert instance.state == instance_pb2.STATE_COMPLETE
    outputs = {subtask.id: subtask.output for subtask in instance.subtasks}
    assert outputs == {"t1": LONG, "t2": LONG, "merge-1": merged}
    starts = [start for name, start in model.calls if name == "merge-1"]
    assert starts == list(range(0, len(merged), 900))
    assert {part.subtask_id for part in payloads(recorded, "subtask_continued")} == {"merge-1"}


async def test_subtasks_begin_while_the_plan_is_still_being_continued(tmp_path: Path) -> None:
    model = Cutting("planning", characters=len(PLAN) - 10)
    model.gate = asyncio.Event()
    async with service(tmp_path / "log.db", model.provider) as running:
        await create(running)
        await model.until(lambda: model.count("t1") == 1)
        assert "plan_completed" not in kinds(await events(running))
        model.gate.set()
        await running.ended("a")
        assert_whole(await shown(running))
    assert {name: model.count(name) for name in TEXTS} == {"planning": 2, "t1": 1, "t2": 1, "synthesis": 1}


async def test_a_cut_plan_that_waits_for_review_is_asked_for_again_with_a_higher_limit(
    tmp_path: Path,
) -> None:
    limits: list[int] = []

    async def answer(request: ModelRequest) -> Answer:
        limits.append(request.max_output_tokens)
        return ModelReply(PLAN[:50], finish=Finish.CUT) if len(limits) < 3 else PLAN

    async with service(tmp_path / "log.db", Scripted(answer)) as running:
        await create(running, review_plan=True, max_output_tokens=100)
        assert "planning_continued" not in await kinds_until(running, "plan_completed")
    assert limits == [100, 200, 400]


@pytest.mark.parametrize("most", [0, 1, 3])
async def test_an_answer_that_does_not_end_stops_at_the_limit_and_can_be_read(
    tmp_path: Path, most: int
) -> None:
    model = Cutting("t1", characters=50)
    instance, recorded = await run(tmp_path, model, max_continuations=most)
    assert model.count("t1") == 1 + most
    assert instance.error.reason == "SUBTASK_FAILED"
    assert "was cut off at the token limit" in instance.error.message
    assert len(payloads(recorded, "subtask_continued")) == most
    (failure,) = payloads(recorded, "subtask_failed")
    assert failure.error.reason == "OUTPUT_TRUNCATED"
    assert not failure.HasField("retry_time")
    subtask = instance.subtasks[0]
    assert subtask.output == LONG[: 50 * (1 + most)]
    assert subtask.is_partial
    assert model.count("synthesis") == 0


async def test_a_result_that_does_not_end_can_be_read_as_far_as_it_came(tmp_path: Path) -> None:
    model = Cutting("synthesis", characters=50)
    instance, _ = await run(tmp_path, model, max_continuations=2)
    assert instance.state == instance_pb2.STATE_ERRORED
    assert instance.error.reason == "SYNTHESIS_FAILED"
    assert instance.final_result == SYNTHESIS[:150]
    assert instance.is_partial


async def test_a_tolerated_answer_that_did_not_end_reaches_the_synthesis_as_far_as_it_came(
    tmp_path: Path,
) -> None:
    model = Cutting("t1", characters=50)
    instance, _ = await run(tmp_path, model, max_continuations=1, tolerated_failures=1)
    assert instance.state == instance_pb2.STATE_COMPLETE
    assert LONG[:100] in model.prompts["synthesis"]
    assert LONG[:101] not in model.prompts["synthesis"]


async def test_a_retry_continues_behind_what_is_recorded(tmp_path: Path) -> None:
    model = Cutting("t1", characters=600)
    async with service(tmp_path / "log.db", model.provider) as running:
        await create(running, max_continuations=1)
        await running.ended("a")
        more = instance_pb2.InstanceConfig(max_continuations=5)
        await running.stub.RetryInstance(pb.RetryInstanceRequest(id="a", config=more))
        await running.ended("a")
        assert_whole(await shown(running))
    assert [start for name, start in model.calls if name == "t1"] == list(range(0, len(LONG), 600))


async def test_a_failure_between_two_parts_costs_neither(tmp_path: Path) -> None:
    model = Cutting("t1", characters=900)
    failures = [ModelError("OVERLOADED", "busy", retryable=True)]
    model.on_call = lambda name, start: failures.pop() if failures and name == "t1" and start else None
    instance, recorded = await run(tmp_path, model)
    assert_whole(instance)
    assert [start for name, start in model.calls if name == "t1"] == [0, 900, 900, 1800]
    assert payloads(recorded, "subtask_completed")[-1].attempt == 2


@pytest.mark.parametrize("name", ["t1", "synthesis", "planning"])
async def test_an_answer_that_was_cut_off_at_its_very_end_is_whole_when_nothing_follows(
    tmp_path: Path, name: str
) -> None:
    model = Cutting("nothing")
    model.on_call = lambda called, start: (
        None
        if called != name
        else ModelReply("", 10, 0)
        if start
        else ModelReply(TEXTS[name], 10, 100, Finish.CUT)
    )
    instance, recorded = await run(tmp_path, model)
    assert_whole(instance)
    assert [start for called, start in model.calls if called == name] == [0, len(TEXTS[name])]
    assert not [kind for kind in kinds(recorded) if kind.endswith("_failed")]


async def test_an_endpoint_that_sends_no_answer_between_two_parts_costs_neither(tmp_path: Path) -> None:
    model = Cutting("t1", characters=900)
    failures = [ModelError("OUTPUT_INVALID", "sent a web page", retryable=True)]
    model.on_call = lambda name, start: failures.pop() if failures and name == "t1" and start else None
    instance, _ = await run(tmp_path, model)
    assert_whole(instance)
    assert [start for name, start in model.calls if name == "t1"] == [0, 900, 900, 1800]


async def test_an_orderly_stop_between_two_parts_costs_neither(tmp_path: Path) -> None:
    model = Cutting("t1", characters=900)
    async with between_parts(tmp_path, model, 900):
        pass
    model.gate.set()
    async with service(tmp_path / "log.db", model.provider) as running:
        await running.ended("a")
        assert_whole(await shown(running))
    assert [start for name, start in model.calls if name == "t1"] == [0, 900, 900, 1800]


async def test_a_pause_starts_no_further_part_and_a_resume_goes_on_behind_the_last(tmp_path: Path) -> None:
    model = Cutting("t1", characters=900)
    async with between_parts(tmp_path, model, 900) as running:
        await running.stub.PauseInstance(pb.PauseInstanceRequest(id="a"))
        model.gate.set()
        await kinds_until(running, "instance_paused")
        paused = await shown(running)
        assert paused.subtasks[0].output == LONG[:1800]
        assert paused.subtasks[0].is_partial
        assert model.count("t1") == 2
        await running.stub.ResumeInstance(pb.ResumeInstanceRequest(id="a"))
        await running.ended("a")
        assert_whole(await shown(running))
    assert [start for name, start in model.calls if name == "t1"] == [0, 900, 1800]


async def test_a_budget_is_looked_at_before_each_part(tmp_path: Path) -> None:
    model = Cutting("t1", characters=100)
    async with service(tmp_path / "log.db", model.provider) as running:
        await create(running, budget=instance_pb2.Budget(max_tokens=500))
        await running.ended("a")
        instance = await shown(running)
        assert instance.error.reason == "BUDGET_EXCEEDED"
        used = instance.usage.input_tokens + instance.usage.output_tokens
        assert 500 <= used < 500 + 110
        text = instance.subtasks[0].output
        assert LONG.startswith(text)
        assert instance.subtasks[0].is_partial
        more = instance_pb2.InstanceConfig(budget=instance_pb2.Budget(max_tokens=100_000))
        more.max_continuations = 64
        await running.stub.RetryInstance(pb.RetryInstanceRequest(id="a", config=more))
        await running.ended("a")
        assert_whole(await shown(running))
    starts = [start for name, start in model.calls if name == "t1"]
    assert starts == list(range(0, len(LONG), 100))


async def test_a_terminated_answer_ends_and_a_retry_goes_on_behind_its_last_part(tmp_path: Path) -> None:
    model = Cutting("t1", characters=900)
    async with between_parts(tmp_path, model, 900) as running:
        await running.stub.TerminateInstance(pb.TerminateInstanceRequest(id="a"))
        instance = await shown(running)
        assert (instance.subtasks[0].output, instance.subtasks[0].is_partial) == (LONG[:900], True)
        assert kinds(await events(running))[-1] == "instance_terminated"
        model.gate.set()
        await running.stub.RetryInstance(pb.RetryInstanceRequest(id="a"))
        await running.ended("a")
        assert_whole(await shown(running))
    assert [start for name, start in model.calls if name == "t1"] == [0, 900, 900, 1800]


async def test_a_fork_keeps_whole_outputs_that_came_in_parts_and_begins_the_rest_anew(tmp_path: Path) -> None:
    model = Cutting(characters=900)
    async with service(tmp_path / "log.db", model.provider) as running:
        await create(running)
        await running.ended("a")
        calls = len(model.calls)
        await running.stub.ForkInstance(pb.ForkInstanceRequest(id="a", new_id="b", stage=pb.STAGE_SYNTHESIS))
        await running.ended("b")
        assert_whole(await shown(running, "b"))
        await running.stub.RestartInstance(pb.RestartInstanceRequest(id="b"))
        await running.ended("b")
        assert_whole(await shown(running, "b"))
    again = [call for call in model.calls[calls:] if call[0] == "synthesis"]
    assert again == [("synthesis", 0), ("synthesis", 900)] * 2


async def test_a_watcher_gets_each_character_once_across_the_parts(tmp_path: Path) -> None:
    model = Cutting("t1", characters=300)
    model.overlap = 60
    async with between_parts(tmp_path, model, 300) as running:
        request = pb.StreamEventsRequest(id="a", include_deltas=True)
        texts: dict[str, str] = {}
        async for message in running.stub.StreamEvents(request):
            if message.HasField("caught_up"):
                model.gate.set()
            if message.HasField("delta"):
                delta = message.delta
                assert delta.attempt == 1
                assert delta.offset == len(texts.get(delta.subtask_id, ""))
                texts[delta.subtask_id] = texts.get(delta.subtask_id, "") + delta.text
        assert texts["t1"] == LONG
        assert_whole(await shown(running))


async def test_a_later_attempts_text_begins_with_what_is_recorded(tmp_path: Path) -> None:
    model = Cutting("t1", characters=900)
    model.gate = asyncio.Event()
    failures = [ModelError("OVERLOADED", "busy", retryable=True)]
    model.on_call = lambda name, start: failures.pop() if failures and name == "t1" and start else None
    async with service(tmp_path / "log.db", model.provider) as running:
        await create(running)
        await model.until(lambda: ("t1", 900) in model.calls)
        texts: dict[int, str] = {}
        async for message in running.stub.StreamEvents(pb.StreamEventsRequest(id="a", include_deltas=True)):
            if message.HasField("caught_up"):
                model.gate.set()
            if message.HasField("delta") and message.delta.subtask_id == "t1":
                delta = message.delta
                assert delta.offset == len(texts.get(delta.attempt, ""))
                texts[delta.attempt] = texts.get(delta.attempt, "") + delta.text
    assert texts[2] == LONG
    assert texts.get(1, LONG[:900]) == LONG[:900]


async def test_an_answer_that_is_begun_anew_replaces_what_a_watcher_was_given(tmp_path: Path) -> None:
    model = Cutting("t1", characters=600)
    anew = LONG[:200] + "# In other words\n" + LONG[200:]
    model.on_call = lambda name, start: anew if name == "t1" and start else None
    async with service(tmp_path / "log.db", model.provider) as running:
        model.gate = asyncio.Event()
        await create(running)
        await model.until(lambda: ("t1", 600) in model.calls)
        text = ""
        async for message in running.stub.StreamEvents(pb.StreamEventsRequest(id="a", include_deltas=True)):
            if message.HasField("caught_up"):
                model.gate.set()
            if message.HasField("delta") and message.delta.subtask_id == "t1":
                text = text[: message.delta.offset] + message.delta.text
        instance = await shown(running)
    assert instance.subtasks[0].output == text == anew


async def test_thinking_that_used_up_the_limit_is_given_twice_as_much_once(tmp_path: Path) -> None:
    limits: list[int] = []

    async def answer(request: ModelRequest) -> Answer:
        if request.prompt.subtask_id != "t1":
            return TEXTS[request.prompt.subtask_id or request.prompt.role]
        limits.append(request.max_output_tokens)
        return ModelReply("", 5, 6, Finish.CUT, token_limit=limits[-1], has_thoughts=True)

    async with service(tmp_path / "log.db", Scripted(answer)) as running:
        await create(running, max_output_tokens=100)
        await running.ended("a")
        instance = await shown(running)
    assert limits == [100, 200]
    assert instance.error.reason == "SUBTASK_FAILED"
    assert "thinking" in instance.error.message
    assert instance.subtasks[0].usage.model_calls == 2
    assert not instance.subtasks[0].is_partial
