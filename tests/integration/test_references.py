"""A synthesis that names workers' files: clients get whole files, and the log holds what was written too."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from support.logs import read
from support.service import Service, service

from orchestrator.client import Client, OutputDelta
from orchestrator.core.replies import Finish, ModelReply
from orchestrator.models.base import ModelRequest
from orchestrator.models.scripted import Answer, Scripted, plan_text
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1 import orchestrator_pb2 as pb

QUICK = instance_pb2.RetryPolicy(max_attempts=3)
QUICK.initial_delay.nanos = 1_000_000
BLOCKS = {
    "t1": "```python path=src/a.py\nprint('a')\n```",
    "t2": "```markdown path=docs/b.md\n# B\n```\n\n```text path=old.txt\nold\n```",
}
A, B, OLD = (f"<keep-file>{name}</keep-file>" for name in ("t1:src/a.py", "t2:docs/b.md", "t2:old.txt"))
DROP_OLD = OLD.replace("keep", "drop")
WRITTEN = f"# Done\n\nThe code:\n\n{A}\n\n{B}\n\n{DROP_OLD}\nThat is all."
SEEN = f"# Done\n\nThe code:\n\n{BLOCKS['t1']}\n\n```markdown path=docs/b.md\n# B\n```\n\nThat is all."

Events = list[event_pb2.Event]
Synthesis = Callable[[ModelRequest, int], Answer]
"""Answers the how-manieth call, from 1."""


class Model(Scripted):
    """Its workers write files; `prompts` are those of its syntheses."""

    def __init__(self, synthesis: Synthesis) -> None:
        super().__init__(self._answer_to)
        self.prompts: list[str] = []
        self._synthesis = synthesis

    def _answer_to(self, request: ModelRequest) -> Answer:
        match request.prompt.role:
            case "planning":
                return plan_text(2)
            case "work":
                return f"Here it is.\n\n{BLOCKS[request.prompt.subtask_id]}\n"
            case "synthesis":
                self.prompts.append("\n".join(message.content for message in request.prompt.messages))
                return self._synthesis(request, len(self.prompts))


async def _run(
    path: Path, model: Scripted, **config: object
) -> tuple[instance_pb2.Instance, list[event_pb2.Event]]:
    async with service(path / "log.db", model) as running:
        await _create(running, **config)
        await running.ended("a")
        return await _shown(running), list((await read(running.log, "a")).events())


async def _create(running: Service, **config: object) -> None:
    wanted = instance_pb2.InstanceConfig(retry=QUICK, **config)  # type: ignore[arg-type]
    await running.stub.CreateInstance(pb.CreateInstanceRequest(prompt="Build it", id="a", config=wanted))


async def _shown(running: Service) -> instance_pb2.Instance:
    return (await running.stub.GetInstance(pb.GetInstanceRequest(id="a", view=pb.VIEW_FULL))).instance


def _completed(events: Events) -> event_pb2.SynthesisCompleted:
    (found,) = [event.synthesis_completed for event in events if event.HasField("synthesis_completed")]
    return found


def _failures(events: Events) -> list[instance_pb2.Failure]:
    return [event.synthesis_failed.error for event in events if event.HasField("synthesis_failed")]


async def test_references_become_whole_files_and_the_log_has_both(tmp_path: Path) -> None:
    model = Model(lambda _request, _call: WRITTEN)
    instance, events = await _run(tmp_path, model)
    assert instance.final_result == SEEN
    assert (_completed(events).final_result, _completed(events).written) == (SEEN, WRITTEN)
    for reference in (A, B, OLD):
        assert f"\n{reference}\n" in model.prompts[0]


async def test_a_synthesis_in_full_is_recorded_as_it_is(tmp_path: Path) -> None:
    full = f"{BLOCKS['t1'].replace('a', 'b')}\n\n{BLOCKS['t1']}\n\n{BLOCKS['t2']}"
    instance, events = await _run(tmp_path, Model(lambda _request, _call: full))
    assert (instance.final_result, _completed(events).written) == (full, "")


async def test_nothing_is_offered_where_no_worker_wrote_a_file(tmp_path: Path) -> None:
    prompts = []

    def answer(request: ModelRequest) -> str:
        prompts.append("\n".join(message.content for message in request.prompt.messages))
        return plan_text(1) if request.prompt.role == "planning" else f"{A}, as it is"

    instance, _ = await _run(tmp_path, Scripted(answer))
    assert instance.final_result == f"{A}, as it is"
    assert "keep-file" not in prompts[0]


async def test_an_unknown_reference_is_told_to_the_next_attempt(tmp_path: Path) -> None:
    model = Model(lambda _request, call: WRITTEN if call == 2 else WRITTEN.replace("t1:", "t9:"))
    instance, events = await _run(tmp_path, model)
    assert instance.final_result == SEEN
    (failure,) = _failures(events)
    assert failure.reason == "RESULT_INVALID"
    assert "t9:src/a.py; there are: t1:src/a.py, t2:docs/b.md, t2:old.txt" in failure.message
    assert failure.message in model.prompts[1]


async def test_a_file_that_is_passed_over_is_asked_for_once_and_then_added(tmp_path: Path) -> None:
    model = Model(lambda _request, _call: f"# Done\n\n{A}")
    instance, events = await _run(tmp_path, model)
    (failure,) = _failures(events)
    assert failure.reason == "RESULT_INVALID"
    assert "neither holds nor drops t2:docs/b.md, t2:old.txt" in model.prompts[1]
    assert instance.final_result.startswith(f"# Done\n\n{BLOCKS['t1']}")
    for block in BLOCKS["t2"].split("\n\n"):
        assert block in instance.final_result
    assert _completed(events).written == f"# Done\n\n{A}"


async def test_after_two_unusable_answers_the_answer_is_asked_for_in_full(tmp_path: Path) -> None:
    model = Model(lambda _request, call: "<keep-file>t9:x</keep-file>" if call < 3 else SEEN)
    instance, _ = await _run(tmp_path, model)
    assert instance.final_result == SEEN
    assert ["keep-file>t1:src/a.py" in prompt for prompt in model.prompts] == [True, True, False]


async def _pieces(text: str, size: int) -> AsyncIterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]
        await asyncio.sleep(0)


async def _live_text(client: Client, held: asyncio.Event) -> str:
    """Return the text of the synthesis as it comes; `held` is set once the synthesis is watched."""
    live = ""
    async for item in client.stream("a"):
        if isinstance(item, OutputDelta):
            if not item.subtask_id:
                assert item.offset == len(live)
                live += item.text
        elif item.HasField("synthesis_started"):
            held.set()
    return live


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_live_text_is_that_of_the_result_and_never_has_a_reference(tmp_path: Path, size: int) -> None:
    held = asyncio.Event()

    async def answer(_request: ModelRequest, _call: int) -> AsyncIterator[str]:
        await held.wait()
        async for piece in _pieces(WRITTEN, size):
            yield piece

    model = Model(answer)
    async with service(tmp_path / "log.db", model) as running, Client(running.address) as client:
        await _create(running)
        live = await _live_text(client, held)
    assert live == SEEN


def _cut(size: int) -> Synthesis:
    """Write so many characters a call, and go on behind what there is."""

    def answer(request: ModelRequest, _call: int) -> ModelReply:
        start = sum(len(each.content) for each in request.prompt.messages if each.role == "assistant")
        rest = WRITTEN[start:]
        return ModelReply(rest[:size], 1, 1, Finish.CUT if len(rest) > size else Finish.NORMAL)

    return answer


@pytest.mark.parametrize("size", [9, 33, 50])
async def test_a_cut_may_fall_into_a_reference(tmp_path: Path, size: int) -> None:
    model = Model(_cut(size))
    instance, events = await _run(tmp_path, model, max_continuations=64)
    assert instance.final_result == SEEN
    parts = [event.synthesis_continued for event in events if event.HasField("synthesis_continued")]
    assert len(parts) == (len(WRITTEN) - 1) // size
    seen = "".join(part.text for part in parts)
    assert SEEN.startswith(seen)
    assert "keep-file" not in seen
    written = "".join(part.written or part.text for part in parts)
    assert WRITTEN.startswith(written)
    assert len(written) == size * len(parts)


async def test_what_is_there_of_a_cut_synthesis_is_shown_expanded(tmp_path: Path) -> None:
    instance, events = await _run(tmp_path, Model(_cut(60)), max_continuations=0)
    assert instance.is_partial
    assert instance.final_result == f"# Done\n\nThe code:\n\n{BLOCKS['t1']}\n\n"
    failed = events[-2].synthesis_failed
    assert (failed.text, failed.written) == (instance.final_result, WRITTEN[:60])


async def test_live_text_goes_on_behind_a_part(tmp_path: Path) -> None:
    held = asyncio.Event()

    def answer(request: ModelRequest, call: int) -> Answer:
        start = sum(len(each.content) for each in request.prompt.messages if each.role == "assistant")
        if call == 1:
            return _wait(ModelReply(WRITTEN[:30], 1, 1, Finish.CUT))
        return _pieces(WRITTEN[start:], 5)

    async def _wait(reply: ModelReply) -> ModelReply:
        await held.wait()
        return reply

    async with (
        service(tmp_path / "log.db", Model(answer)) as running,
        Client(running.address) as client,
    ):
        await _create(running)
        live = await _live_text(client, held)
    assert live == SEEN


async def test_a_synthesis_goes_on_behind_its_references_after_a_restart(tmp_path: Path) -> None:
    first, second = Model(_hung_after(60)), Model(_cut(1000))
    async with service(tmp_path / "log.db", first) as running:
        await _create(running)
        async for message in running.stub.StreamEvents(pb.StreamEventsRequest(id="a")):
            if any(event.HasField("synthesis_continued") for event in message.batch.events):
                break
        partial = await _shown(running)
    assert (partial.final_result, partial.is_partial) == (f"# Done\n\nThe code:\n\n{BLOCKS['t1']}\n\n", True)
    async with service(tmp_path / "log.db", second) as running:
        await running.ended("a")
        assert (await _shown(running)).final_result == SEEN
    assert len(second.prompts) == 1


def _hung_after(size: int) -> Synthesis:
    """Write so many characters, and nothing more."""

    def answer(_request: ModelRequest, call: int) -> Answer:
        return ModelReply(WRITTEN[:size], 1, 1, Finish.CUT) if call == 1 else _never()

    async def _never() -> ModelReply:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    return answer
