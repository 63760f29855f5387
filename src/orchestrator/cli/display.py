"""What a person watches while an instance runs: rows from its state, drawn calmly.

`rows` and `visible` are pure; `view` lays the rows out for a width and a height. All text goes through
`strip_controls` and is never read as Rich markup.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from orchestrator.cli.live_text import Draft
from orchestrator.cli.progress import cost, usage_line
from orchestrator.cli.text import command, counted, duration, one_line, strip_controls
from orchestrator.core import instance as core
from orchestrator.core.instance import Instance, Subtask, Usage, Work
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
_TOKENS_COLUMNS: Final = 13
_COST_COLUMNS: Final = 10
_LEAST_TITLE: Final = 28
"""Columns for sign, title and time, before a note has room."""
_WIDE: Final = 96
"""From here on each row has room for what it cost."""
_WIDEST: Final = 120
_DRAFT_LINES: Final = 6
"""The most lines that are shown of what one model is writing."""
_TROUBLE_LINES: Final = 6
"""The most lines that are shown of what went wrong, once it has ended."""
_BLANK_LINES: Final = re.compile(r"\n\s*\n")
_NO_USAGE: Final = Usage()
_NO_DRAFTS: Final[Mapping[str, Draft]] = {}


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
    after: str = ""
    """What it had to wait for, once it waits no more."""
    usage: Usage = _NO_USAGE
    draft: str = ""
    """What is being written, if that is heard."""


def rows(instance: Instance, now_s: float, drafts: Mapping[str, Draft] = _NO_DRAFTS) -> list[Row]:
    """The subtasks in the plan's order; `now_s` is seconds since the epoch."""
    return [
        _subtask_row(instance, subtask, now_s, _heard(drafts, subtask.id, subtask.work))
        for subtask in instance.subtasks.values()
    ]


def _heard(drafts: Mapping[str, Draft], key: str, work: Work) -> str:
    draft = drafts.get(key)
    return draft.text if draft and work.state == core.IN_PROGRESS and work.attempt == draft.attempt else ""


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


def _subtask_row(instance: Instance, subtask: Subtask, now_s: float, draft: str) -> Row:
    work = subtask.work
    label = one_line(subtask.id, _ID_SHOWN)
    title = one_line(subtask.title)
    if title == subtask.id:
        label = ""
    open_ids = [
        other
        for other in subtask.depends_on
        if other in instance.subtasks and instance.subtasks[other].work.state not in core.SETTLED
    ]
    mark, note = _standing(work, now_s, _after(open_ids))
    after = _after(subtask.depends_on) if mark is not Mark.WAITING else ""
    return Row(mark, label, title, note, _elapsed(work, now_s), _trouble(work), after, work.usage, draft)


def _after(ids: Sequence[str]) -> str:
    if len(ids) > _IDS_SHOWN:
        return f"after {len(ids)} others"
    return f"after {', '.join(one_line(name, _ID_SHOWN) for name in ids)}" if ids else ""


def _standing(work: Work, now_s: float, waits_for: str) -> tuple[Mark, str]:
    match work.state:
        case core.IN_PROGRESS:
            return Mark.RUNNING, f"attempt {work.attempt}" if work.attempt > 1 else ""
        case core.COMPLETED:
            return Mark.DONE, counted(work.attempt, "attempt") if work.attempt > 1 else ""
        case core.FAILED:
            return Mark.FAILED, counted(work.attempt, "attempt") if work.attempt > 1 else ""
        case core.SKIPPED:
            return Mark.SKIPPED, "skipped"
        case _ if work.error and work.retry_time_s:
            wait_s = work.retry_time_s - max(now_s, work.fail_time_s)  # this clock is not the service's
            return Mark.RETRYING, f"attempt {work.attempt + 1} in {max(0, round(wait_s))}s"
        case _:
            return Mark.WAITING, waits_for


def _elapsed(work: Work, now_s: float) -> float | None:
    if not work.start_time_s:
        return None
    return max(0.0, (work.end_time_s or now_s) - work.start_time_s)


def _trouble(work: Work) -> str:
    if work.error is None or work.state in (
        core.COMPLETED,
        core.IN_PROGRESS,
    ):  # what is tried again may yet succeed
        return ""
    words = work.error.reason.lower().replace("_", " ")
    return f"{words}: {one_line(work.error.message)}" if work.error.message else words


def _stage_row(title: str, work: Work, now_s: float, *, note: str = "", draft: str = "") -> Row:
    mark, standing = _standing(work, now_s, "")
    note = ", ".join(part for part in (note, standing) if part)
    return Row(mark, "", title, note, _elapsed(work, now_s), _trouble(work), usage=work.usage, draft=draft)


def view(
    instance: Instance,
    now_s: float,
    *,
    width: int = 80,
    height: int | None = None,
    drafts: Mapping[str, Draft] = _NO_DRAFTS,
    away_s: float | None = None,
    where: str = "",
) -> RenderableType:
    """Draw the instance for a terminal of so many columns and lines; without a height, all of it.

    `away_s` is for how long the service has been away, `where` the flag that leads a command to it.
    """
    if not instance.create_time_s:
        return Text("reconnecting…", style="yellow") if away_s is not None else Text("")
    now_s = instance.end_time_s or now_s
    width = min(width, _WIDEST)
    plan_row = _stage_row(
        "Plan",
        instance.planning,
        now_s,
        note=counted(len(instance.subtasks), "subtask") if instance.subtasks else "",
    )
    synthesis_row = _stage_row(
        "Synthesis", instance.synthesis, now_s, draft=_heard(drafts, "", instance.synthesis)
    )
    all_rows = rows(instance, now_s, drafts)
    shown = all_rows if height is None else visible(all_rows, max(_FEWEST_ROWS, height - _AROUND_ROWS))
    lines = _Lines(
        now_s,
        width,
        instance.usage,
        draft_lines=_room_for_drafts([*shown, synthesis_row], height),
        trouble_lines=_TROUBLE_LINES if height is None else 1,
    )
    hidden = _hidden(all_rows, shown)
    return Group(
        *_header(instance, width, away_s, where),
        Text(),
        *lines.of(plan_row),
        *(line for row in shown for line in lines.of(row, indent=2)),
        *([Text(f"  … {hidden}", style="dim")] if hidden else []),
        *lines.of(synthesis_row),
        Text(),
        _footer(instance, now_s, width),
    )


def _room_for_drafts(shown: Sequence[Row], height: int | None) -> int:
    """How many lines of each text that is being written fit below its row."""
    writers = sum(bool(row.draft) for row in shown)
    if not writers or height is None:
        return 0
    taken = _AROUND_ROWS + sum(2 if row.trouble else 1 for row in shown)
    return max(0, min(_DRAFT_LINES, (height - taken) // writers))


@dataclass(frozen=True, slots=True)
class _Lines:
    """Draws rows for one moment and one width."""

    now_s: float
    width: int
    total: Usage
    """The instance's: where it has no tokens or no costs, rows have no columns for them."""
    draft_lines: int
    trouble_lines: int

    def of(self, row: Row, *, indent: int = 0) -> Iterator[RenderableType]:
        """A row's line, sign and title on the left, the rest on the right; below it, what belongs to it."""
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
        if row.trouble:
            yield _Excerpt(Text(row.trouble, f"dim {style}"), self.width, below, self.trouble_lines)
        if row.draft and self.draft_lines:
            text = Text(self._end_of(row.draft), "dim italic")
            bar = below.copy().append("│ ", style="cyan")  # what stands behind it is the model's
            yield _Excerpt(text, self.width, bar, self.draft_lines, is_end=True)

    def _end_of(self, draft: str) -> str:
        """Enough of the text to fill its lines, from the beginning of a line, so that wrapping stays put."""
        text = _BLANK_LINES.sub("\n", draft.rstrip())
        begin = text.rfind("\n", 0, max(0, len(text) - self.draft_lines * self.width)) + 1
        return strip_controls(text[begin:])

    def _right(self, row: Row, left_columns: int) -> Text:
        """Note, usage and time, as far as there is room for them."""
        right = Text()
        columns = ""
        if self.total.model_calls and self.width >= _NARROW:
            tokens = row.usage.input_tokens + row.usage.output_tokens
            columns += (f"{tokens:,} tok" if tokens else "").rjust(_TOKENS_COLUMNS)
        if self.total.cost_usd and self.width >= _WIDE:
            columns += cost(row.usage).rjust(_COST_COLUMNS)
        if row.note or columns or row.elapsed_s is not None:
            elapsed = duration(row.elapsed_s) if row.elapsed_s is not None else ""
            columns += elapsed.rjust(_TIME_COLUMNS)
        has_room = self.width - len(row.note) >= _LEAST_TITLE
        says_more = self.width >= _NARROW or row.mark is not Mark.WAITING  # whose sign says enough
        if row.note and has_room and says_more:
            right.append(f"  {row.note}", style=row.mark.value[1] if row.mark is Mark.RETRYING else "dim")
        after = Text(f"  {row.after}", "dim")
        if row.after and left_columns + after.cell_len + right.cell_len + len(columns) <= self.width:
            right = after.append_text(right)
        return right.append(columns, style="dim")


@dataclass(frozen=True, slots=True)
class _Excerpt:
    """What of a text goes into about so many lines, wrapped: its beginning, or its end."""

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


def _header(instance: Instance, width: int, away_s: float | None, where: str) -> Iterator[Text]:
    yield _cut(Text(one_line(instance.prompt, width), style="bold"), width)
    standing = Text(f"{one_line(instance.id)}  ", style="dim").append_text(state_text(instance.state))
    if away_s is not None:
        standing.append(f"  the service is away, reconnecting… {duration(away_s)}", style="yellow")
    elif instance.state == core.WAITING:
        review = command(f"review {instance.id}{where} --approve")
        standing.append(f"  look at the plan, then: {review}", style="magenta")
    yield _cut(standing, width)


def _footer(instance: Instance, now_s: float, width: int) -> Text:
    parts = [duration(now_s - instance.create_time_s)]
    if instance.subtasks:
        done = sum(subtask.work.state == core.COMPLETED for subtask in instance.subtasks.values())
        parts.append(f"{done} of {len(instance.subtasks)} done")
    if used := usage_line(instance.own_usage):
        parts.append(used)
    return _cut(Text(" · ".join(parts), style="dim"), width)
