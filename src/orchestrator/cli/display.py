"""What a person watches while an instance runs: rows from its state, drawn calmly.

`rows` and `visible` are pure; `view` lays the rows out for a width and a height. All text goes through
`neutral` and is never read as Rich markup.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markdown import Heading, Markdown
from rich.segment import Segment
from rich.text import Text

from orchestrator.cli.progress import usage_line
from orchestrator.cli.text import counted, duration, neutral, one_line
from orchestrator.core import state as core
from orchestrator.core.state import Instance, Subtask, Work
from orchestrator.v1 import instance_pb2 as pb

_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAMES_PER_SECOND: Final = 8
_NARROW: Final = 64
"""Below this many columns a row has room for its title and its time only."""
_AROUND_ROWS: Final = 9
"""Lines beside the subtasks: header, plan, synthesis, footer, the blank ones, and the prompt below."""
_FEWEST_ROWS: Final = 3
_ID_SHOWN: Final = 12
_IDS_SHOWN: Final = 4
_TIME_COLUMNS: Final = 7
_LEAST_TITLE: Final = 28
"""Columns for sign, title and time, before a note has room."""
_WIDEST: Final = 100


class Mark(Enum):
    """How a piece of work stands: a sign and a colour, so that either alone tells it."""

    WAITING = ("·", "dim")
    RUNNING = ("⠿", "cyan")
    RETRYING = ("↻", "yellow")
    DONE = ("✓", "green")
    FAILED = ("✗", "red")
    SKIPPED = ("-", "yellow")


@dataclass(frozen=True, slots=True)
class Row:
    """One piece of work, as shown."""

    mark: Mark
    label: str
    """Before the title: a subtask's id. Empty for planning and synthesis."""
    title: str
    note: str = ""
    elapsed_s: float | None = None
    trouble: str = ""
    """What went wrong, in words; it takes a line of its own."""


def rows(instance: Instance, now_s: float) -> list[Row]:
    """The subtasks in the plan's order; `now_s` is seconds since the epoch."""
    return [_subtask_row(instance, subtask, now_s) for subtask in instance.subtasks.values()]


def visible(all_rows: Sequence[Row], room: int) -> list[Row]:
    """The rows worth showing where there is room for so many lines, in their order.

    What moves comes first, then what failed, then what comes next; what is done gives way, the oldest first.
    """
    urgency = {
        Mark.RUNNING: 0,
        Mark.RETRYING: 0,
        Mark.FAILED: 1,
        Mark.SKIPPED: 3,
        Mark.WAITING: 2,
        Mark.DONE: 4,
    }
    ranked = sorted(
        range(len(all_rows)),
        key=lambda i: (urgency[all_rows[i].mark], -i if all_rows[i].mark is Mark.DONE else i),
    )
    chosen: list[int] = []
    for i in ranked:
        room -= 2 if all_rows[i].trouble else 1
        if room < 0:
            break
        chosen.append(i)
    return [all_rows[i] for i in sorted(chosen)]


def _subtask_row(instance: Instance, subtask: Subtask, now_s: float) -> Row:
    work = subtask.work
    label = one_line(subtask.id, _ID_SHOWN)
    title = one_line(subtask.title)
    if title == subtask.id:
        label = ""
    open_ids = [
        one_line(other, _ID_SHOWN)
        for other in subtask.depends_on
        if other in instance.subtasks and instance.subtasks[other].work.state not in core.SETTLED
    ]
    others = ", ".join(open_ids) if len(open_ids) <= _IDS_SHOWN else f"{len(open_ids)} others"
    mark, note = _standing(work, now_s, f"after {others}" if open_ids else "")
    return Row(mark, label, title, note, _elapsed(work, now_s), _trouble(work))


def _standing(work: Work, now_s: float, waits_for: str) -> tuple[Mark, str]:
    match work.state:
        case core.AT_WORK:
            return Mark.RUNNING, f"attempt {work.attempt}" if work.attempt > 1 else ""
        case core.DONE:
            return Mark.DONE, counted(work.attempt, "attempt") if work.attempt > 1 else ""
        case core.FAILED:
            return Mark.FAILED, counted(work.attempt, "attempt") if work.attempt > 1 else ""
        case core.SKIPPED:
            return Mark.SKIPPED, "skipped"
        case _ if work.error and work.retry_time_s:
            return Mark.RETRYING, f"attempt {work.attempt + 1} in {max(0, round(work.retry_time_s - now_s))}s"
        case _:
            return Mark.WAITING, waits_for


def _elapsed(work: Work, now_s: float) -> float | None:
    if not work.start_time_s:
        return None
    return max(0.0, (work.end_time_s or now_s) - work.start_time_s)


def _trouble(work: Work) -> str:
    if work.error is None or work.state in (core.DONE, core.AT_WORK):  # what is tried again may yet succeed
        return ""
    words = work.error.reason.lower().replace("_", " ")
    return f"{words}: {one_line(work.error.message)}" if work.error.message else words


def _stage_row(title: str, work: Work, now_s: float, note: str) -> Row:
    mark, standing = _standing(work, now_s, "")
    note = ", ".join(part for part in (note, standing) if part)
    return Row(mark, "", title, note, _elapsed(work, now_s), _trouble(work))


def view(instance: Instance, now_s: float, *, width: int = 80, height: int = 1000) -> RenderableType:
    """Draw the instance for a terminal of so many columns and lines."""
    if not instance.create_time_s:
        return Text("")
    now_s = instance.end_time_s or now_s
    width = min(width, _WIDEST)
    all_rows = rows(instance, now_s)
    shown = visible(all_rows, max(_FEWEST_ROWS, height - _AROUND_ROWS))
    planned = counted(len(all_rows), "subtask") if all_rows else ""
    hidden = _hidden(all_rows, shown)
    return Group(
        *_header(instance, width),
        Text(),
        *_lines(_stage_row("Plan", instance.planning, now_s, planned), now_s, width),
        *(line for row in shown for line in _lines(row, now_s, width, indent=2)),
        *([Text(f"  … {hidden}", style="dim")] if hidden else []),
        *_lines(_stage_row("Synthesis", instance.synthesis, now_s, ""), now_s, width),
        Text(),
        _footer(instance, now_s, width),
    )


def _lines(row: Row, now_s: float, width: int, *, indent: int = 0) -> Iterator[Text]:
    """A row's line: sign and title on the left, note and time on the right; below it, what went wrong."""
    sign, style = row.mark.value
    if row.mark is Mark.RUNNING:
        sign = _SPINNER[int(now_s * _FRAMES_PER_SECOND) % len(_SPINNER)]
    is_quiet = row.mark in (Mark.WAITING, Mark.SKIPPED)
    left = Text(" " * indent).append(sign, style=style).append(" ")
    if row.label:
        left.append(f"{row.label} ", style="dim")
    left.append(row.title, style="dim" if is_quiet else "" if indent else "bold")
    right = Text()
    has_room = width - len(row.note) >= _LEAST_TITLE
    if row.note and has_room and (width >= _NARROW or row.mark is not Mark.WAITING):  # its sign says enough
        right.append(f"  {row.note}", style=style if row.mark is Mark.RETRYING else "dim")
    if row.note or row.elapsed_s is not None:
        elapsed = duration(row.elapsed_s) if row.elapsed_s is not None else ""
        right.append(f"{elapsed:>{_TIME_COLUMNS}}", style="dim")
    left.truncate(max(0, width - right.cell_len), overflow="ellipsis", pad=bool(right))
    yield left.append_text(right)
    if row.trouble:
        yield _cut(Text(" " * (indent + 2)).append(row.trouble, style=f"dim {style}"), width)


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text


def _hidden(all_rows: Sequence[Row], shown: Sequence[Row]) -> str:
    words = {Mark.DONE: "done", Mark.WAITING: "waiting", Mark.FAILED: "failed", Mark.SKIPPED: "skipped"}
    marks = [row.mark for row in all_rows]
    for row in shown:
        marks.remove(row.mark)
    moving = sum(mark not in words for mark in marks)
    parts = [f"{marks.count(mark)} {word}" for mark, word in words.items() if mark in marks]
    return ", ".join([f"{moving} running", *parts] if moving else parts)


_STATE_STYLES: Final = {
    core.COMPLETE: "green",
    core.ERRORED: "red",
    core.TERMINATED: "yellow",
    core.PAUSED: "yellow",
    core.WAITING_FOR_PAUSE: "yellow",
    core.WAITING: "magenta",
    core.RUNNING: "cyan",
}


def state_text(state: core.State) -> Text:
    """An instance's state in words and colour."""
    name = pb.State.Name(state) if state in pb.State.values() else f"STATE_{state}"
    words = name.removeprefix("STATE_").lower().replace("_", " ")
    return Text(words, style=_STATE_STYLES.get(state, "dim"))


def _header(instance: Instance, width: int) -> Iterator[Text]:
    yield _cut(Text(one_line(instance.prompt, width), style="bold"), width)
    yield _cut(Text(f"{one_line(instance.id)}  ", style="dim").append_text(state_text(instance.state)), width)


def _footer(instance: Instance, now_s: float, width: int) -> Text:
    parts = [duration(now_s - instance.create_time_s)]
    if instance.subtasks:
        done = sum(subtask.work.state == core.DONE for subtask in instance.subtasks.values())
        parts.append(f"{done} of {len(instance.subtasks)} done")
    if used := usage_line(instance.usage):
        parts.append(used)
    return _cut(Text(" · ".join(parts), style="dim"), width)


class _LeftHeading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"  # Rich centres
        yield self.text


class _LeftMarkdown(Markdown):
    elements: ClassVar = {**Markdown.elements, "heading_open": _LeftHeading}


class Answer:
    """A model's Markdown, drawn for a terminal that it must not steer."""

    def __init__(self, text: str) -> None:
        # Links are written out: a hidden target is a trap.
        self._markdown = _LeftMarkdown(neutral(text), hyperlinks=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return self._segments(console, options)

    def _segments(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._markdown, options):
            # Markdown decodes entities such as &#x202e; on its own.
            yield segment if segment.control else Segment(neutral(segment.text), segment.style)
