"""Instances as text: one in full, many as a table."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.cli.answer import Answer
from orchestrator.cli.display import state_label
from orchestrator.cli.progress import UNKNOWN_COST, cost_text, usage_line
from orchestrator.cli.reporters import build_console
from orchestrator.cli.text import age, command, duration, one_line, pluralize, strip_controls
from orchestrator.core import instance as core
from orchestrator.core.instance import usage_of
from orchestrator.v1 import instance_pb2 as pb

_NO_WRAPPING: Final = 10_000
_GAP: Final = "  "
_MIN_PROMPT_COLUMNS: Final = 20
"""Below this width of the prompt the last numeric column is dropped."""
_MIN_SHOWN_PROMPT_COLUMNS: Final = 8
_MIN_WIDTH_FOR_NUMBERS: Final = 72
"""Below this many columns the subtasks are shown without numbers."""


def print_instances(instances: Iterable[pb.Instance]) -> None:
    """Print a table in a terminal; in a pipe one instance a line, its fields separated by tabs."""
    if not sys.stdout.isatty():
        for instance in instances:
            print(*_fields(instance), sep="\t", flush=True)  # noqa: T201  the answer itself
        return
    console = build_console()
    for line in table_lines(list(instances), time.time(), console.width):
        # An id that is cut cannot be copied: on the narrowest terminals the terminal itself breaks the line.
        console.print(line, soft_wrap=True)


def print_files(files: Sequence[pb.File]) -> None:
    """Print a table in a terminal; in a pipe one file a line, its fields separated by tabs."""
    if not sys.stdout.isatty():
        for file in files:
            print(one_line(file.path), file.size_bytes, file.source, sep="\t", flush=True)  # noqa: T201
        return
    console = build_console()
    if not files:
        console.print(Text("no files", style="dim"))
        return
    columns = [
        _Column("path", [Text(one_line(file.path)) for file in files]),
        _Column("bytes", [Text(f"{file.size_bytes:,}") for file in files], is_number=True),
        _Column("from", [Text(one_line(file.source)) for file in files]),
    ]
    for number in range(len(files) + 1):
        line = Text().join(column.line(number) for column in columns)
        line.rstrip()
        console.print(line, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class _Column:
    """A heading and a cell for each instance."""

    heading: str
    cells: Sequence[Text]
    is_number: bool = False

    @property
    def width(self) -> int:
        """The width in terminal columns, with the gap behind it."""
        return max(len(self.heading), *(cell.cell_len for cell in self.cells)) + len(_GAP)

    def line(self, number: int) -> Text:
        """Return the heading (0) or a cell (from 1), padded to the width."""
        text = self.cells[number - 1].copy() if number else Text(self.heading, "dim")
        missing = self.width - len(_GAP) - text.cell_len
        text.pad_left(missing) if self.is_number else text.pad_right(missing)
        return text.append(_GAP)


def table_lines(instances: Sequence[pb.Instance], now_s: float, width: int) -> Iterator[Text]:
    """Format the table for that many columns; numeric columns are dropped where the prompt has no room."""
    if not instances:
        yield Text("no instances", style="dim")
        return
    columns = [
        _Column("id", [Text(one_line(it.id)) for it in instances]),
        _Column("state", [state_label(it.state) for it in instances]),
        _Column("age", [Text(age(now_s - it.create_time.seconds)) for it in instances], is_number=True),
        _Column("done", [Text(_done_count(it)) for it in instances], is_number=True),
        _Column("tokens", [Text(_tokens(own_usage(it))) for it in instances], is_number=True),
        _Column("cost", [Text(cost_text(usage_of(own_usage(it)))) for it in instances], is_number=True),
    ]
    columns = [
        column for column in columns if any(cell.plain not in ("", UNKNOWN_COST) for cell in column.cells)
    ]
    while len(columns) > 2 and width - _width(columns) < _MIN_PROMPT_COLUMNS:  # noqa: PLR2004  the id and state
        columns.pop()
    room = width - _width(columns)
    for number in range(len(instances) + 1):
        line = Text().join(column.line(number) for column in columns)
        reason = instances[number - 1].waiting_reason if number else ""
        prompt = Text(one_line(instances[number - 1].prompt, 200)) if number else Text("prompt", "dim")
        if room >= _MIN_SHOWN_PROMPT_COLUMNS:
            prompt.truncate(room, overflow="ellipsis")
            line.append_text(prompt)
        line.rstrip()
        yield line
        if reason:
            why = Text(f"  ↳ {one_line(reason)}", "yellow")
            why.truncate(max(width, _MIN_PROMPT_COLUMNS), overflow="ellipsis")
            yield why


def _width(columns: Iterable[_Column]) -> int:
    return sum(column.width for column in columns)


def print_outcome(instance: core.Instance) -> None:
    """Print the result of an instance, or its error."""
    console = build_console()
    console.print()
    if instance.error:
        console.print(_error_text(instance.error.reason, instance.error.message))
    elif instance.final_result:
        Answer(instance.final_result).print_on(console)


def print_instance(instance: pb.Instance, *, full: bool, address_option: str = "") -> None:
    """Print one instance: its state, subtasks, usage, and result or error.

    `address_option` makes the advised command reach the same service.
    """
    console = build_console()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, value in _facts(instance, address_option):
        facts.add_row(name, value)
    parts: list[RenderableType] = [facts]
    if instance.subtasks:
        parts += [Text(), _subtasks(instance, console.width if console.is_terminal else _NO_WRAPPING)]
    if full:
        for subtask in instance.subtasks:
            parts += [Text(), Text(f"{one_line(subtask.id)} {one_line(subtask.title)}", style="bold")]
            parts += [_indented(subtask.instructions, "dim")] if subtask.instructions else []
            parts += [Text(), _markdown(subtask.output, console)] if subtask.output else []
    if instance.HasField("error"):
        parts += [Text(), _error_text(instance.error.reason, instance.error.message)]
    if instance.final_result:
        parts += [Text(), _markdown(instance.final_result, console)]
    _print(console, parts)


def print_plan(instance: pb.Instance) -> None:
    """Print a plan: the summary, and each subtask with its instructions."""
    subtasks = [subtask for subtask in instance.subtasks if not subtask.merges]
    heading = f"plan of {one_line(instance.id)}: {pluralize(len(subtasks), 'subtask')}"
    parts: list[RenderableType] = [Text(heading, style="bold")]
    if instance.summary:
        parts += [Text(), Text(strip_controls(instance.summary))]
    for subtask in subtasks:
        title = Text(one_line(subtask.id), style="bold")
        if subtask.title and subtask.title != subtask.id:
            title.append(f"  {one_line(subtask.title)}")
        about = [f"after {', '.join(map(one_line, subtask.depends_on))}"] if subtask.depends_on else []
        about += [f"worker {one_line(subtask.worker)}"] if subtask.worker else []
        if about:
            title.append(f"  {', '.join(about)}", style="dim")
        parts += [Text(), title, _indented(subtask.instructions)]
    _print(build_console(), parts)


def _markdown(text: str, console: Console) -> RenderableType:
    return Answer(text) if console.is_terminal else strip_controls(text)


def _print(console: Console, parts: Sequence[RenderableType]) -> None:
    if console.is_terminal:
        console.print(Group(*parts), crop=False)  # a line of code is the terminal's to break
        return
    console.width = _NO_WRAPPING  # the reader of a pipe wraps lines
    for part in parts:
        if isinstance(part, str):
            print(part)  # noqa: T201  the answer itself, tabs and all
            continue
        with console.capture() as drawn:
            console.print(part)
        print("\n".join(line.rstrip() for line in drawn.get().splitlines()))  # noqa: T201  likewise


def own_usage(instance: pb.Instance) -> pb.Usage:
    """Return the usage of the instance's own calls; services of earlier versions report only `usage`."""
    return instance.own_usage if instance.HasField("own_usage") else instance.usage


def _fields(instance: pb.Instance) -> tuple[str, ...]:
    own = own_usage(instance)
    return (
        one_line(instance.id),
        state_label(instance.state).plain,
        _local_time(instance.create_time),
        _elapsed(instance),
        _done_count(instance),
        str(own.input_tokens + own.output_tokens),
        f"{own.cost_usd:.4f}" if own.cost_usd else UNKNOWN_COST,
        one_line(instance.prompt, 200),
        *([one_line(instance.waiting_reason)] if instance.waiting_reason else []),
    )


def _done_count(instance: pb.Instance) -> str:
    done = sum(subtask.state == pb.SUBTASK_STATE_COMPLETED for subtask in instance.subtasks)
    return f"{done}/{len(instance.subtasks)}" if instance.subtasks else ""


def _tokens(usage: pb.Usage) -> str:
    tokens = usage.input_tokens + usage.output_tokens
    return f"{tokens:,}" if tokens else ""


def _facts(instance: pb.Instance, address_option: str) -> Iterable[tuple[str, Text]]:
    config = instance.config
    yield "id", Text(one_line(instance.id))
    yield "state", state_label(instance.state)
    if instance.waiting_reason:
        yield "waits", Text(one_line(instance.waiting_reason), style="yellow")
    yield "prompt", Text(one_line(instance.prompt, 300), style="bold")
    models = (
        config.big_model
        if config.big_model == config.small_model
        else f"{config.big_model}, {config.small_model}"
    )
    yield "models", Text(one_line(models))
    yield "created", Text(_local_time(instance.create_time))
    if elapsed := _elapsed(instance):
        yield "took", Text(elapsed)
    own = usage_of(own_usage(instance))
    if usage := usage_line(own):
        yield "used", Text(usage)
    if instance.labels:
        yield (
            "labels",
            Text(one_line(" ".join(f"{key}={value}" for key, value in sorted(instance.labels.items())))),
        )
    if instance.forked_from:
        copied = usage_line(usage_of(instance.usage).minus(own))
        paid = f", which paid for what is copied ({copied})" if copied else ""
        yield "forked from", Text(one_line(instance.forked_from) + paid)
    yield "events", Text(str(instance.last_sequence))
    if instance.state in _NEXT:
        yield "next", Text(command(_NEXT[instance.state].format(instance.id) + address_option))


_NEXT: Final = {
    core.PAUSED: "resume {}",
    core.WAITING: "review {}",
    core.COMPLETE: "result {}",
    core.ERRORED: "retry {}",
    core.TERMINATED: "retry {}",
}
"""The likely next command for an instance at rest."""


def _subtasks(instance: pb.Instance, width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    numbers = {
        "attempts": [str(subtask.attempt or "") for subtask in instance.subtasks],
        "took": [_elapsed(subtask) for subtask in instance.subtasks],
        "tokens": [_tokens(subtask.usage) for subtask in instance.subtasks],
        "cost": [cost_text(usage_of(subtask.usage)) for subtask in instance.subtasks],
    }
    has_room = width >= _MIN_WIDTH_FOR_NUMBERS
    shown = [name for name, cells in numbers.items() if has_room and set(cells) - {"", UNKNOWN_COST}]
    for heading in ("id", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in shown:
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("subtask")
    for subtask, *cells in zip(instance.subtasks, *(numbers[name] for name in shown), strict=True):
        title = Text(one_line(subtask.title))
        if subtask.depends_on:
            title.append(f"  after {', '.join(map(one_line, subtask.depends_on))}", style="dim")
        if subtask.HasField("error"):
            title.append("\n").append_text(_error_text(subtask.error.reason, subtask.error.message))
        table.add_row(Text(one_line(subtask.id)), _subtask_state(subtask.state), *cells, title)
    return table


def _subtask_state(state: core.SubtaskState) -> Text:
    name = pb.SubtaskState.Name(state) if state in pb.SubtaskState.values() else f"STATE_{state}"
    words = name.removeprefix("SUBTASK_STATE_").lower()
    return Text(words, style=_SUBTASK_STYLES.get(state, "dim"))


_SUBTASK_STYLES: Final = {
    core.IN_PROGRESS: "cyan",
    core.COMPLETED: "green",
    core.FAILED: "red",
    core.SKIPPED: "yellow",
}


def _error_text(reason: str, message: str) -> Text:
    return Text(f"{one_line(reason)}: {one_line(message)}", style="red")


def _indented(text: str, style: str = "") -> Padding:
    return Padding(Text(strip_controls(text), style), (0, 0, 0, 2))


def _local_time(moment: Timestamp) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment.seconds))


def _elapsed(it: pb.Instance | pb.Subtask) -> str:
    if not it.HasField("start_time"):
        return ""
    start_s = it.start_time.seconds + it.start_time.nanos / 1e9
    end_s = it.end_time.seconds + it.end_time.nanos / 1e9 if it.HasField("end_time") else time.time()
    return duration(end_s - start_s)
