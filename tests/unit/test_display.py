"""What a person sees is the fold of the events, fits the terminal and cannot steer it."""

import io
import re
from collections.abc import Sequence

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len
from rich.console import Console, RenderableType
from support.scripted_service import payload_event

from orchestrator.cli.answer import Answer
from orchestrator.cli.display import Mark, Row, select_visible, subtask_rows, view
from orchestrator.cli.live_text import LiveText
from orchestrator.cli.progress import Progress
from orchestrator.cli.text import duration, one_line, pluralize, strip_controls
from orchestrator.client import OutputDelta
from orchestrator.v1 import event_pb2 as pb
from orchestrator.v1 import instance_pb2

START_S = 1_800_000_000.0
EVIL = "\x1b[31mred\x07 [bold]b[/bold] \x9b2J \u202egnp\r\n"
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def progress_of(payloads: Sequence[Message], *, seconds_apart: float = 1.0) -> Progress:
    progress = Progress()
    for i, payload in enumerate(payloads):
        progress.apply(payload_event("i1", i + 1, payload, START_S + i * seconds_apart))
    return progress


def subtask_planned(subtask_id: str, title: str = "", depends_on: Sequence[str] = ()) -> pb.SubtaskPlanned:
    subtask = instance_pb2.Subtask(id=subtask_id, title=title, depends_on=depends_on)
    return pb.SubtaskPlanned(attempt=1, subtask=subtask)


def plan_events(*subtasks: pb.SubtaskPlanned, prompt: str = "Build it") -> list[Message]:
    return [
        pb.InstanceCreated(prompt=prompt),
        pb.PlanningStarted(attempt=1, model="openai/big"),
        *subtasks,
        pb.PlanCompleted(attempt=1, model="openai/big"),
    ]


def subtask_failed(
    subtask_id: str, *, retry_at_s: float | None = None, message: str = "429"
) -> pb.SubtaskFailed:
    error = instance_pb2.Failure(reason="RATE_LIMITED", message=message)
    event = pb.SubtaskFailed(subtask_id=subtask_id, attempt=1, model="openai/small", error=error)
    if retry_at_s is not None:
        event.retry_time.CopyFrom(Timestamp(seconds=int(retry_at_s)))
    return event


def subtask_started(subtask_id: str, attempt: int = 1) -> pb.SubtaskStarted:
    return pb.SubtaskStarted(subtask_id=subtask_id, attempt=attempt, model="openai/small")


def render(renderable: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, markup=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_subtask_is_shown_waiting_until_its_dependencies_are_settled() -> None:
    plan = plan_events(subtask_planned("t1"), subtask_planned("t2", "Second", ["t1"]))
    assert subtask_rows(progress_of(plan).instance, START_S)[1] == Row(
        Mark.WAITING, "t2", "Second", "after t1"
    )
    done = pb.SubtaskCompleted(subtask_id="t1", attempt=1, output="x")
    assert subtask_rows(progress_of([*plan, subtask_started("t1"), done]).instance, START_S)[1].note == ""


def test_a_running_subtask_shows_its_elapsed_time() -> None:
    progress = progress_of([*plan_events(subtask_planned("t1", "First")), subtask_started("t1")])
    (row,) = subtask_rows(progress.instance, START_S + 4 + 2.5)
    assert row == Row(Mark.RUNNING, "t1", "First", "", 2.5)


def test_a_clock_behind_the_services_shows_no_negative_time() -> None:
    progress = progress_of([*plan_events(subtask_planned("t1")), subtask_started("t1")])
    assert subtask_rows(progress.instance, START_S)[0].elapsed_s == 0.0


def test_a_retry_counts_down_and_shows_its_reason() -> None:
    progress = progress_of(
        [
            *plan_events(subtask_planned("t1")),
            subtask_started("t1"),
            subtask_failed("t1", retry_at_s=START_S + 20),
        ]
    )
    (row,) = subtask_rows(progress.instance, START_S + 13)
    assert (row.mark, row.note, row.error) == (Mark.RETRYING, "attempt 2 in 7s", "rate limited: 429")


def test_a_clock_far_behind_the_services_counts_a_retry_down_from_its_delay() -> None:
    progress = progress_of(
        [
            *plan_events(subtask_planned("t1")),
            subtask_started("t1"),
            subtask_failed("t1", retry_at_s=START_S + 20),
        ]
    )
    failed_s = progress.instance.update_time_s
    (row,) = subtask_rows(progress.instance, START_S - 3600)
    assert row.note == f"attempt 2 in {START_S + 20 - failed_s:.0f}s"


def test_a_second_attempt_is_shown_without_the_error_of_the_first() -> None:
    events = [
        *plan_events(subtask_planned("t1")),
        subtask_started("t1"),
        subtask_failed("t1", retry_at_s=START_S + 5),
        subtask_started("t1", 2),
    ]
    (row,) = subtask_rows(progress_of(events).instance, START_S + 9)
    assert (row.mark, row.note, row.error) == (Mark.RUNNING, "attempt 2", "")


def test_a_failed_and_a_skipped_subtask_show_the_reason() -> None:
    skipped = pb.SubtaskSkipped(
        subtask_id="t2", error=instance_pb2.Failure(reason="DEPENDENCY_FAILED", message="t1 failed")
    )
    plan = plan_events(subtask_planned("t1"), subtask_planned("t2", depends_on=["t1"]))
    first, second = subtask_rows(
        progress_of([*plan, subtask_started("t1"), subtask_failed("t1"), skipped]).instance, START_S + 60
    )
    assert (first.mark, first.elapsed_s, first.error) == (Mark.FAILED, 1.0, "rate limited: 429")
    assert (second.mark, second.error) == (Mark.SKIPPED, "dependency failed: t1 failed")


def test_elapsed_time_stops_when_the_instance_ends() -> None:
    progress = progress_of(
        [*plan_events(subtask_planned("t1")), subtask_started("t1"), pb.InstanceTerminated()]
    )
    assert render(view(progress.instance, START_S + 10)) == render(view(progress.instance, START_S + 999))


def test_an_event_of_a_later_version_is_ignored() -> None:
    progress = progress_of([pb.InstanceCreated(prompt="p")])
    unknown = pb.Event(instance_id="i1", sequence=2)
    progress.apply(unknown)
    progress.apply(payload_event("i1", 3, pb.PlanningStarted(attempt=1, model="m/m"), START_S))
    assert progress.instance.planning.model == "m/m"
    assert "later version" in progress.describe(unknown)


@pytest.mark.parametrize(
    ("decision", "words"),
    [(0, "later version"), (1, "plan approved"), (2, "plan rejected"), (17, "later version")],
)
def test_a_decision_is_shown_by_its_name_and_an_unknown_one_as_unknown(decision: int, words: str) -> None:
    event = payload_event("i1", 1, pb.PlanReviewed(decision=decision), START_S)
    assert words in Progress().describe(event)


def test_reading_from_the_middle_still_describes_each_event() -> None:
    progress = Progress()
    event = payload_event("i1", 9, subtask_started("t4", 2), START_S)
    progress.apply(event)
    assert progress.describe(event) == "t4 started with openai/small, attempt 2"


@pytest.mark.parametrize(
    "kind", [field.name for field in pb.Event.DESCRIPTOR.oneofs_by_name["payload"].fields]
)
def test_every_kind_of_event_has_a_description(kind: str) -> None:
    event = pb.Event(instance_id="i1", sequence=1)
    getattr(event, kind).SetInParent()
    progress = Progress()
    progress.apply(event)
    words = progress.describe(event)
    assert words
    assert kind not in words
    assert "\n" not in words


@pytest.mark.parametrize("width", [20, 50, 80, 100, 200])
@pytest.mark.parametrize("title", ["Short", "日本語のドキュメントを書く" * 8, "long " * 40, EVIL])
def test_no_line_exceeds_the_terminals_width_or_contains_control_sequences(width: int, title: str) -> None:
    plan = plan_events(subtask_planned("t1", title), subtask_planned("t2", title, ["t1"]), prompt=title)
    again = subtask_failed("t1", retry_at_s=START_S + 100, message=title * 3)
    progress = progress_of([*plan, subtask_started("t1"), again])
    live_texts = {"t1": LiveText(1, len(title), title)}
    live = render(view(progress.instance, START_S + 20, width=width, height=24, live_texts=live_texts), width)
    whole = render(view(progress.instance, START_S + 20, width=width, live_texts=live_texts), width)
    for text in (live, whole):
        assert all(cell_len(line) <= width for line in text.splitlines())
        assert not STEERING.search(text)
    assert len(live.splitlines()) == 10  # nothing has been wrapped


@pytest.mark.parametrize("width", [20, 60, 120])
@pytest.mark.parametrize("text", ["Short", "日本語のドキュメントを書く" * 80, "long " * 400, EVIL * 9])
def test_live_text_fits_and_contains_no_control_sequences(width: int, text: str) -> None:
    progress = progress_of([*plan_events(subtask_planned("t1", "First")), subtask_started("t1")])
    shown = view(
        progress.instance, START_S + 9, width=width, height=24, live_texts={"t1": LiveText(1, 99, text)}
    )
    lines = render(shown, width).splitlines()
    assert all(cell_len(line) <= width for line in lines)
    assert 9 <= len(lines) <= 24
    assert not STEERING.search("\n".join(lines))


def test_a_running_subtask_shows_the_end_of_its_live_text() -> None:
    progress = progress_of(
        [
            *plan_events(subtask_planned("t1"), subtask_planned("t2")),
            subtask_started("t1"),
            subtask_started("t2", 2),
        ]
    )
    story = LiveText(1, 99, "".join(f"line {number}\n\n" for number in range(20)))
    live_texts = {"t1": story, "t2": LiveText(1, 99, "of an earlier attempt")}
    lines = render(view(progress.instance, START_S + 9, height=24, live_texts=live_texts)).splitlines()
    at = next(i for i, line in enumerate(lines) if " t1 " in line)
    assert [line.strip() for line in lines[at + 1 : at + 7]] == [f"│ line {i}" for i in range(14, 20)]
    assert "t2" in lines[at + 7]
    assert "earlier" not in "\n".join(lines)


@pytest.mark.parametrize("height", [10, 16, 24])
def test_live_texts_share_the_rows_that_are_left(height: int) -> None:
    names = [f"t{i}" for i in range(6)]
    progress = progress_of([*plan_events(*map(subtask_planned, names)), *map(subtask_started, names)])
    live_texts = {name: LiveText(1, 9999, "word " * 800) for name in names}
    text = render(view(progress.instance, START_S + 20, width=80, height=height, live_texts=live_texts), 80)
    assert len(text.splitlines()) <= max(height, 12)
    assert ("word" in text) == (height >= 24)


def test_live_text_merges_deltas_by_offset() -> None:
    def delta(offset: int, text: str, attempt: int = 1) -> OutputDelta:
        return OutputDelta(subtask_id="t1", attempt=attempt, offset=offset, text=text)

    live_text = LiveText().with_delta(delta(0, "one ")).with_delta(delta(4, "two "))
    assert live_text == LiveText(1, 8, "one two ")
    assert live_text.with_delta(delta(4, "two three")) == LiveText(1, 13, "one two three")
    assert live_text.with_delta(delta(0, "one two three")) == LiveText(1, 13, "one two three")
    assert live_text.with_delta(delta(0, "anew")) == LiveText(1, 4, "anew")
    assert live_text.with_delta(delta(20, "after a gap")) == LiveText(1, 31, "after a gap")
    assert live_text.with_delta(delta(0, "again", attempt=2)) == LiveText(2, 5, "again")
    long = live_text.with_delta(delta(8, "x" * 9000))
    assert (long.length, set(long.text)) == (9008, {"x"})
    assert len(long.text) < 9000
    assert long.with_delta(delta(0, "one two")) == LiveText(1, 7, "one two")


def test_while_the_service_is_unreachable_the_drawing_shows_it() -> None:
    progress = progress_of(plan_events(subtask_planned("t1")))
    assert "reconnecting… 7.0s" in render(view(progress.instance, START_S + 9, disconnected_s=7))
    assert "reconnecting" in render(view(Progress().instance, START_S, disconnected_s=7))
    assert "reconnecting" not in render(view(progress.instance, START_S + 9))


def test_a_plan_awaiting_review_is_shown_with_the_review_command() -> None:
    created = pb.InstanceCreated(prompt="p", config=instance_pb2.InstanceConfig(review_plan=True))
    progress = progress_of([created, *plan_events(subtask_planned("t1"))[1:]])
    assert "review i1 --approve" in render(view(progress.instance, START_S + 9))
    elsewhere = view(progress.instance, START_S + 9, width=160, address_option=" --address 127.0.0.1:1")
    assert "review i1 --address 127.0.0.1:1 --approve" in render(elsewhere, 160)
    completed = payload_event("i1", 9, plan_events(subtask_planned("t1"))[-1])
    assert progress.describe(completed) == "plan complete: 1 subtask, waits for review"


def test_each_piece_of_work_shows_its_usage_where_there_is_room() -> None:
    usage = instance_pb2.Usage(input_tokens=1000, output_tokens=234, model_calls=1)
    done = pb.SubtaskCompleted(subtask_id="t1", attempt=1, output="x", usage=usage)
    plan = plan_events(subtask_planned("t1", "First"), subtask_planned("t2", "Second", ["t1"]))
    progress = progress_of([*plan, subtask_started("t1"), done, subtask_started("t2")])
    lines = render(view(progress.instance, START_S + 9, width=100)).splitlines()
    assert next(line for line in lines if "First" in line).endswith("1,234 tok   1.0s")
    assert "after t1" in next(line for line in lines if "Second" in line)
    assert "$" not in "".join(lines)
    narrow = render(view(progress.instance, START_S + 9, width=50))
    assert "tok " not in narrow
    assert "1,234 tokens" in narrow
    done.usage.cost_usd = 0.0123
    progress = progress_of([*plan, subtask_started("t1"), done])
    first = next(
        line
        for line in render(view(progress.instance, START_S + 9, width=100)).splitlines()
        if "First" in line
    )
    assert first.endswith("1,234 tok   $0.0123   1.0s")


def test_the_error_of_an_ended_instance_is_shown_in_full() -> None:
    message = "no key for openai: set OPENAI_API_KEY, or choose another ORCHESTRATOR_BIG_MODEL"
    error = instance_pb2.Failure(reason="MODEL_UNAUTHENTICATED", message=message)
    events = [*plan_events()[:2], pb.PlanningFailed(attempt=1, error=error), pb.InstanceErrored(error=error)]
    lines = render(view(progress_of(events).instance, START_S + 9, width=40), 40).splitlines()
    assert message in " ".join(line.strip() for line in lines)


def test_markup_in_a_title_is_shown_literally() -> None:
    progress = progress_of(plan_events(subtask_planned("t1", "[bold]x[/bold] [red]")))
    assert "[bold]x[/bold] [red]" in render(view(progress.instance, START_S))


@pytest.mark.parametrize("height", [10, 16, 24])
def test_a_long_plan_fits_the_terminals_height(height: int) -> None:
    plan = plan_events(*[subtask_planned(f"t{i}") for i in range(60)])
    progress = progress_of([*plan, *[subtask_started(f"t{i}") for i in range(40, 60)]])
    text = render(view(progress.instance, START_S + 100, height=height))
    assert len(text.splitlines()) <= max(height, 12)
    assert "40 waiting" in text


def test_where_room_is_short_active_rows_are_shown_before_completed_ones() -> None:
    marks = [Mark.DONE, Mark.WAITING, Mark.RUNNING, Mark.DONE, Mark.FAILED, Mark.RETRYING]
    all_rows = [Row(mark, f"t{i}", "") for i, mark in enumerate(marks)]
    assert [row.label for row in select_visible(all_rows, 3)] == ["t2", "t4", "t5"]
    assert [row.label for row in select_visible(all_rows, 5)] == ["t1", "t2", "t3", "t4", "t5"]
    assert select_visible(all_rows, 6) == all_rows


def test_an_answer_cannot_send_control_sequences_to_the_terminal() -> None:
    text = render(Answer(f"# {EVIL}\n\n{EVIL} &#x202e;gnp &#27;[2J &#13;over\n\n```\n{EVIL}\n```\n"))
    assert not STEERING.search(text)
    assert "\\x1b[31mred" in text


def test_an_answers_links_show_their_target() -> None:
    text = render(Answer("[your bank](https://elsewhere.example)"))
    assert "https://elsewhere.example" in text
    assert "\x1b]8" not in text


def test_control_characters_are_escaped() -> None:
    assert strip_controls("a\tb\r\nc\x1b[0m\x9b\u202e") == "a\tb\nc\\x1b[0m\\x9b\\u202e"
    assert one_line(" a\n\tb\x00 ") == "a b\\x00"
    assert one_line("abcdef", 4) == "abc…"


def test_times_and_numbers_are_formatted_for_people() -> None:
    spans = (-1, 0.04, 9.94, 9.96, 59.4, 59.6, 125, 3599.6, 3720)
    expected = ["0.0s", "0.0s", "9.9s", "10s", "59s", "1m00s", "2m05s", "1h00m", "1h02m"]
    assert [duration(span) for span in spans] == expected
    assert (pluralize(1, "token"), pluralize(12340, "token")) == ("1 token", "12,340 tokens")
