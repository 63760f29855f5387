"""The text of attempts, read by some who come early, late, or read slowly."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.events import completed, failed
from orchestrator.core.instance import RUNNING, SYNTHESIS, Failure, Usage, WorkKey
from orchestrator.engine.live import Attempt, LiveText, LiveTexts, TextReader, merge_live_text
from orchestrator.log.base import Page, encode_row
from orchestrator.log.subscription import CaughtUp, Step
from orchestrator.v1.event_pb2 import Event, InstanceTerminated

T1 = WorkKey("subtask", "t1")


def end_of(attempt: Attempt, sequence: int) -> Event:
    event = completed(attempt.work, attempt.number, "m", "text", Usage())
    event.sequence = sequence
    return event


def page(event: Event) -> Page:
    return Page(encode_row(event), [event.sequence], at_end=True, state=RUNNING)


def emitted_by(reader: TextReader) -> list[tuple[str, int, int, str]]:
    return [(delta.subtask_id, delta.attempt, delta.offset, delta.text) for delta in reader.read()]


def test_offsets_continue_across_the_calls_of_an_attempt() -> None:
    texts, attempt = LiveTexts(), Attempt(SYNTHESIS, 2, 9)
    with texts.subscribe("i") as reader:
        texts.writer("i", attempt)("One ")
        assert emitted_by(reader) == [("", 2, 0, "One ")]
        texts.writer("i", attempt, "One ")("twö")
        assert emitted_by(reader) == [("", 2, 4, "twö")]
        with texts.subscribe("i") as late:
            assert emitted_by(late) == [("", 2, 0, "One twö")]
        texts.end("i", attempt)
        with texts.subscribe("i") as later:
            assert emitted_by(later) == []


def test_thoughts_of_a_later_call_are_replaced_from_the_start_of_that_call() -> None:
    texts, attempt = LiveTexts(), Attempt(T1, 1, 3)
    with texts.subscribe("i") as reader:
        texts.writer("i", attempt)("One ")
        write = texts.writer("i", attempt, "One ")
        write("hm, ")
        assert emitted_by(reader) == [("t1", 1, 0, "One hm, ")]
        write("two", is_restart=True)
        write("!")
        assert emitted_by(reader) == [("t1", 1, 4, "two!")]
        with texts.subscribe("i") as late:
            assert emitted_by(late) == [("t1", 1, 0, "One two!")]


def test_an_ended_attempt_yields_nothing_and_a_later_one_with_its_number_everything() -> None:
    texts = LiveTexts()
    old, new = Attempt(T1, 1, 3), Attempt(T1, 1, 8)
    with texts.subscribe("i") as reader:
        texts.writer("i", old)("old")
        texts.writer("i", new)("new")  # of another plan, which numbers its attempts from 1
        reader.note([end_of(old, 6)])
        assert emitted_by(reader) == [("t1", 1, 0, "new")]


def test_text_written_after_the_instance_ended_is_not_delivered() -> None:
    texts, attempt = LiveTexts(), Attempt(T1, 1, 3)
    with texts.subscribe("i") as reader:
        reader.note([Event(sequence=5, instance_terminated=InstanceTerminated())])
        texts.writer("i", attempt)("too late")
        assert emitted_by(reader) == []
        texts.writer("i", Attempt(T1, 2, 7))("retried")
        assert emitted_by(reader) == [("t1", 2, 0, "retried")]


def test_a_failure_ends_only_the_text_of_its_attempt() -> None:
    texts = LiveTexts()
    first, other = Attempt(T1, 1, 3), Attempt(WorkKey("subtask", "t2"), 1, 4)
    with texts.subscribe("i") as reader:
        texts.writer("i", first)("gone")
        texts.writer("i", other)("here")
        failure = failed(T1, 1, "m", Failure("STREAM_CUT", "cut"), Usage())
        failure.sequence = 5
        reader.note([failure])
        assert emitted_by(reader) == [("t2", 1, 0, "here")]


async def test_a_slow_reader_gets_all_text_before_the_event_that_ends_it() -> None:
    texts, attempt = LiveTexts(), Attempt(T1, 1, 3)
    queue: asyncio.Queue[Step] = asyncio.Queue()

    async def steps() -> AsyncIterator[Step]:
        while True:
            found = await queue.get()
            asyncio.get_running_loop().call_soon(queue.task_done)
            yield found

    queue.put_nowait(CaughtUp(3))
    with texts.subscribe("i") as reader:
        merged = merge_live_text(steps(), reader)
        assert await anext(merged) == CaughtUp(3)
        write = texts.writer("i", attempt)
        write("One ")
        assert isinstance(await anext(merged), LiveText)
        # While that is being sent, the rest is written, and the attempt ends.
        write("two")
        texts.end("i", attempt)
        ended = page(end_of(attempt, 4))
        queue.put_nowait(ended)
        await queue.join()
        rest = await anext(merged)
        assert isinstance(rest, LiveText)
        assert [(delta.offset, delta.text) for delta in rest.deltas] == [(4, "two")]
        assert await anext(merged) == ended
        await merged.aclose()


STEPS = st.one_of(st.text(max_size=5), st.sampled_from(["call", "anew", "read", "join"]))


@given(st.lists(STEPS, max_size=30))
def test_every_reader_reconstructs_the_same_text_whenever_it_joins_and_reads(steps: list[str]) -> None:
    texts, attempt = LiveTexts(), Attempt(T1, 1, 3)
    write, begins, whole = texts.writer("i", attempt), 0, ""
    seen: dict[TextReader, str] = {}

    def read_all() -> None:
        for reader, text in seen.items():
            for delta in reader.read():
                assert delta.offset <= len(text)
                text = text[: delta.offset] + delta.text  # noqa: PLW2901  what it has so far
            seen[reader] = text

    with ExitStack() as stack:
        for step in steps:
            match step:
                case "call":
                    write, begins = texts.writer("i", attempt, whole), len(whole)
                case "anew":
                    write("anew", is_restart=True)
                    whole = whole[:begins] + "anew"
                case "read":
                    read_all()
                case "join":
                    seen[stack.enter_context(texts.subscribe("i"))] = ""
                case text:
                    write(text)
                    whole += text
        read_all()
    assert set(seen.values()) <= {whole}
