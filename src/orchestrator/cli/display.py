"""The live view of an instance in a terminal: rows derived from its state.

`subtask_rows` and `select_visible` are pure; `view` lays the rows out for a width and a height. All text
goes through `strip_controls` and is never read as Rich markup.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from orchestrator.cli.live_text import LiveText
from orchestrator.cli.progress import cost_text, usage_line
from orchestrator.cli.text import command, duration, one_line, pluralize, strip_controls
from orchestrator.core import instance as core
from orchestrator.core.instance import Instance, Subtask, Usage, Work
from orchestrator.v1 import instance_pb2 as pb

_SPINNER: Final = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAMES_PER_SECOND: Final = 8
_MIN_WIDTH_FOR_NOTES: Final = 64
"""Below this width a row shows only its title and time."""
_OTHER_LINES: Final = 9
"""Lines beside the subtasks: header, plan, synthesis, footer, the blank ones, and the prompt below."""
_MIN_ROWS: Final = 3
_MAX_ID_LENGTH: Final = 12
_MAX_IDS: Final = 4
_TIME_COLUMNS: Final = 7
_TOKENS_COLUMNS: Final = 13
_COST_COLUMNS: Final = 10
_MIN_LEFT_COLUMNS: Final = 28
"""Columns reserved for sign, title and time before a note is shown."""
_MIN_WIDTH_FOR_COST: Final = 96
"""From this width on each row shows its cost."""
_MAX_WIDTH: Final = 120
_MAX_LIVE_TEXT_LINES: Final = 6
"""The most lines of live text per row."""
_MAX_ERROR_LINES: Final = 6
"""The most lines of an error after the end."""
_BLANK_LINES: Final = re.compile(r"\n\s*\n")
_NO_USAGE: Final = Usage()
_NO_LIVE_TEXTS: Final[Mapping[str, LiveText]] = {}


class Mark(Enum):
    """The state of a piece of work: a sign and a colour, each sufficient alone."""

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
    error: str = ""
    """The error in words, shown on a line of its own."""
    dependencies: str = ""
    """The dependencies, once they are settled."""
    usage: Usage = _NO_USAGE
    live_text: str = ""
    """The text being written, where live text is streamed."""


def subtask_rows(
    instance: Instance, now_s: float, live_texts: Mapping[str, LiveText] = _NO_LIVE_TEXTS
) -> list[Row]:
    """Build the rows of the subtasks in plan order; `now_s` is seconds since the epoch."""
    return [
        _subtask_row(instance, subtask, now_s, _live_text_of(live_texts, subtask.id, subtask.work))
        for subtask in instance.subtasks.values()
    ]


def _live_text_of(live_texts: Mapping[str, LiveText], key: str, work: Work) -> str:
    live_text = live_texts.get(key)
    return (
        live_text.text
        if live_text and work.state == core.IN_PROGRESS and work.attempt == live_text.attempt
        else ""
    )


def select_visible(all_rows: Sequence[Row], room: int) -> list[Row]:
    """Select the rows that fit into `room` lines, keeping their order.

    Running rows come first, then failed and waiting ones; completed rows are dropped first, the oldest first.
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
        room -= 2 if all_rows[i].error else 1
        if room < 0:
            break
        chosen.append(i)
    return [all_rows[i] for i in sorted(chosen)]


def _subtask_row(instance: Instance, subtask: Subtask, now_s: float, live_text: str) -> Row:
    work = subtask.work
    label = one_line(subtask.id, _MAX_ID_LENGTH)
    title = one_line(subtask.title)
    if title == subtask.id:
        label = ""
    open_ids = [
        other
        for other in subtask.depends_on
        if other in instance.subtasks and instance.subtasks[other].work.state not in core.SETTLED
    ]
    mark, note = _mark_and_note(work, now_s, _dependency_note(open_ids))
    dependencies = _dependency_note(subtask.depends_on) if mark is not Mark.WAITING else ""
    return Row(
        mark,
        label,
        title,
        note,
        _elapsed(work, now_s),
        _error_line(work),
        dependencies,
        work.usage,
        live_text,
    )


def _dependency_note(ids: Sequence[str]) -> str:
    if len(ids) > _MAX_IDS:
        return f"after {len(ids)} others"
    return f"after {', '.join(one_line(name, _MAX_ID_LENGTH) for name in ids)}" if ids else ""


def _mark_and_note(work: Work, now_s: float, dependencies: str) -> tuple[Mark, str]:
    match work.state:
        case core.IN_PROGRESS:
            return Mark.RUNNING, f"attempt {work.attempt}" if work.attempt > 1 else ""
        case core.COMPLETED:
            return Mark.DONE, pluralize(work.attempt, "attempt") if work.attempt > 1 else ""
        case core.FAILED:
            return Mark.FAILED, pluralize(work.attempt, "attempt") if work.attempt > 1 else ""
        case core.SKIPPED:
            return Mark.SKIPPED, "skipped"
        case _ if work.error and work.retry_time_s:
            wait_s = work.retry_time_s - max(now_s, work.fail_time_s)  # this clock is not the service's
            return Mark.RETRYING, f"attempt {work.attempt + 1} in {max(0, round(wait_s))}s"
        case _:
            return Mark.WAITING, dependencies


def _elapsed(work: Work, now_s: float) -> float | None:
    if not work.start_time_s:
        return None
    return max(0.0, (work.end_time_s or now_s) - work.start_time_s)


def _error_line(work: Work) -> str:
    if work.error is None or work.state in (
        core.COMPLETED,
        core.IN_PROGRESS,
    ):  # what is tried again may yet succeed
        return ""
    words = work.error.reason.lower().replace("_", " ")
    return f"{words}: {one_line(work.error.message)}" if work.error.message else words


def _stage_row(title: str, work: Work, now_s: float, *, note: str = "", live_text: str = "") -> Row:
    mark, standing = _mark_and_note(work, now_s, "")
    note = ", ".join(part for part in (note, standing) if part)
    return Row(
        mark, "", title, note, _elapsed(work, now_s), _error_line(work), usage=work.usage, live_text=live_text
    )


def view(
    instance: Instance,
    now_s: float,
    *,
    width: int = 80,
    height: int | None = None,
    live_texts: Mapping[str, LiveText] = _NO_LIVE_TEXTS,
    disconnected_s: float | None = None,
    waiting_reason: str = "",
    address_option: str = "",
) -> RenderableType:
    """Render the instance for a terminal of `width` columns and `height` lines; without a height, all of it.

    `disconnected_s` is for how long there has been no connection, None where there is one; `waiting_reason`
    is why nothing happens, empty where something does;
    `address_option` makes an advised command reach the same service.
    """
    if not instance.create_time_s:
        return Text("reconnecting…", style="yellow") if disconnected_s is not None else Text("")
    now_s = instance.end_time_s or now_s
    width = min(width, _MAX_WIDTH)
    plan_row = _stage_row(
        "Plan",
        instance.planning,
        now_s,
        note=pluralize(len(instance.subtasks), "subtask") if instance.subtasks else "",
    )
    synthesis_row = _stage_row(
        "Synthesis", instance.synthesis, now_s, live_text=_live_text_of(live_texts, "", instance.synthesis)
    )
    all_rows = subtask_rows(instance, now_s, live_texts)
    visible_rows = (
        all_rows if height is None else select_visible(all_rows, max(_MIN_ROWS, height - _OTHER_LINES))
    )
    renderer = _RowRenderer(
        now_s,
        width,
        instance.usage,
        live_text_lines=_live_text_lines([*visible_rows, synthesis_row], height),
        error_lines=_MAX_ERROR_LINES if height is None else 1,
    )
    hidden = _hidden_summary(all_rows, visible_rows)
    return Group(
        *_header(instance, width, disconnected_s, waiting_reason, address_option),
        Text(),
        *renderer.render(plan_row),
        *(line for row in visible_rows for line in renderer.render(row, indent=2)),
        *([Text(f"  … {hidden}", style="dim")] if hidden else []),
        *renderer.render(synthesis_row),
        Text(),
        _footer(instance, now_s, width),
    )


def _live_text_lines(visible_rows: Sequence[Row], height: int | None) -> int:
    """Return how many lines of live text fit below each row that has any."""
    writers = sum(bool(row.live_text) for row in visible_rows)
    if not writers or height is None:
        return 0
    taken = _OTHER_LINES + sum(2 if row.error else 1 for row in visible_rows)
    return max(0, min(_MAX_LIVE_TEXT_LINES, (height - taken) // writers))


@dataclass(frozen=True, slots=True)
class _RowRenderer:
    """Renders rows at one time for one width."""

    now_s: float
    width: int
    total: Usage
    """The instance's: where it has no tokens or no costs, rows have no columns for them."""
    live_text_lines: int
    error_lines: int

    def render(self, row: Row, *, indent: int = 0) -> Iterator[RenderableType]:
        """Render a row: sign and title on the left, the rest on the right, error and live text below."""
        sign, style = row.mark.value
        if row.mark is Mark.RUNNING:
            sign = _SPINNER[int(self.now_s * _FRAMES_PER_SECOND) % len(_SPINNER)]
        is_quiet = row.mark in (Mark.WAITING, Mark.SKIPPED)
        left = Text(" " * indent).append(sign, style=style).append(" ")
        if row.label:
            left.append(f"{row.label} ", style="dim")
        left.append(row.title, style="dim" if is_quiet else "" if indent else "bold")
        right = self._right(row, left.cell_len)
        left.truncate(max(0, self.width - right.cell_len), overflow="ellipsis", pad=bool(right))
        yield left.append_text(right)
        below = Text(" " * (indent + 2))
        if row.error:
            yield _Excerpt(Text(row.error, f"dim {style}"), self.width, below, self.error_lines)
        if row.live_text and self.live_text_lines:
            text = Text(self._tail_of(row.live_text), "dim italic")
            bar = below.copy().append("│ ", style="cyan")  # what stands behind it is the model's
            yield _Excerpt(text, self.width, bar, self.live_text_lines, is_end=True)

    def _tail_of(self, live_text: str) -> str:
        """Return enough of the end to fill its lines, from the start of a line so that wrapping is stable."""
        text = _BLANK_LINES.sub("\n", live_text.rstrip())
        begin = text.rfind("\n", 0, max(0, len(text) - self.live_text_lines * self.width)) + 1
        return strip_controls(text[begin:])

    def _right(self, row: Row, left_columns: int) -> Text:
        """Build note, usage and time, as far as they fit."""
        right = Text()
        columns = ""
        if self.total.model_calls and self.width >= _MIN_WIDTH_FOR_NOTES:
            tokens = row.usage.input_tokens + row.usage.output_tokens
            columns += (f"{tokens:,} tok" if tokens else "").rjust(_TOKENS_COLUMNS)
        if self.total.cost_usd and self.width >= _MIN_WIDTH_FOR_COST:
            columns += cost_text(row.usage).rjust(_COST_COLUMNS)
        if row.note or columns or row.elapsed_s is not None:
            elapsed = duration(row.elapsed_s) if row.elapsed_s is not None else ""
            columns += elapsed.rjust(_TIME_COLUMNS)
        has_room = self.width - len(row.note) >= _MIN_LEFT_COLUMNS
        says_more = (
            self.width >= _MIN_WIDTH_FOR_NOTES or row.mark is not Mark.WAITING
        )  # whose sign says enough
        if row.note and has_room and says_more:
            right.append(f"  {row.note}", style=row.mark.value[1] if row.mark is Mark.RETRYING else "dim")
        dependencies = Text(f"  {row.dependencies}", "dim")
        if (
            row.dependencies
            and left_columns + dependencies.cell_len + right.cell_len + len(columns) <= self.width
        ):
            right = dependencies.append_text(right)
        return right.append(columns, style="dim")


@dataclass(frozen=True, slots=True)
class _Excerpt:
    """The beginning or the end of a text, wrapped to about `lines` lines."""

    text: Text
    width: int
    margin: Text
    lines: int
    is_end: bool = False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = max(1, self.width - self.margin.cell_len)
        text = self.text.copy()
        if not self.is_end:
            text.truncate(room * self.lines, overflow="ellipsis")
        wrapped = text.wrap(console, room, overflow="fold", tab_size=4)
        for line in wrapped[-self.lines :] if self.is_end else wrapped:
            line.rstrip()
            yield self.margin + line


def _truncated(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text


def _hidden_summary(all_rows: Sequence[Row], visible_rows: Sequence[Row]) -> str:
    words = {Mark.DONE: "done", Mark.WAITING: "waiting", Mark.FAILED: "failed", Mark.SKIPPED: "skipped"}
    marks = [row.mark for row in all_rows]
    for row in visible_rows:
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


def state_label(state: core.State) -> Text:
    """Return the state of an instance in words and colour."""
    name = pb.State.Name(state) if state in pb.State.values() else f"STATE_{state}"
    words = name.removeprefix("STATE_").lower().replace("_", " ")
    return Text(words, style=_STATE_STYLES.get(state, "dim"))


def _header(
    instance: Instance, width: int, disconnected_s: float | None, waiting_reason: str, address_option: str
) -> Iterator[Text]:
    yield _truncated(Text(one_line(instance.prompt, width), style="bold"), width)
    standing = Text(f"{one_line(instance.id)}  ", style="dim").append_text(state_label(instance.state))
    if disconnected_s is not None:
        standing.append(f"  the service is away, reconnecting… {duration(disconnected_s)}", style="yellow")
    elif instance.state == core.WAITING:
        review = command(f"review {instance.id}{address_option} --approve")
        standing.append(f"  look at the plan, then: {review}", style="magenta")
    elif instance.pause_cause:
        resume = command(f"resume {instance.id}{address_option}")
        standing.append(f"  to go on: {resume}", style="yellow")
    yield _truncated(standing, width)
    reason = instance.pause_cause.message if instance.pause_cause else waiting_reason
    if reason:
        yield _truncated(Text(f"waits: {one_line(reason)}", style="yellow"), width)


def _footer(instance: Instance, now_s: float, width: int) -> Text:
    parts = [duration(now_s - instance.create_time_s)]
    if instance.subtasks:
        done = sum(subtask.work.state == core.COMPLETED for subtask in instance.subtasks.values())
        parts.append(f"{done} of {len(instance.subtasks)} done")
    if used := usage_line(instance.own_usage):
        parts.append(used)
    return _truncated(Text(" · ".join(parts), style="dim"), width)
