"""Instances as a person reads them: one in full, many as a table."""

import sys
import time
from collections.abc import Iterable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.cli.display import Answer, state_text
from orchestrator.cli.progress import usage_line
from orchestrator.cli.reporters import terminal
from orchestrator.cli.text import duration, neutral, one_line
from orchestrator.core.state import usage_of
from orchestrator.v1 import instance_pb2 as pb

_NO_WRAPPING: Final = 10_000


def print_instances(instances: Iterable[pb.Instance]) -> None:
    """A table in a terminal; in a pipe one instance a line, its fields parted by tabs."""
    if not sys.stdout.isatty():
        for instance in instances:
            print(*_fields(instance), sep="\t")  # noqa: T201  the answer itself
        return
    instances = list(instances)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    # An id that is cut cannot be copied: on a narrow terminal the prompt gives way.
    table.add_column("id", no_wrap=True, min_width=max((len(it.id) for it in instances), default=0))
    for heading in ("state", "created", "took", "done"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("took", "done") else "left")
    table.add_column("prompt", ratio=1, no_wrap=True, overflow="ellipsis")
    for instance in instances:
        name, _, _, *rest = _fields(instance)
        created = Text(_recent(instance.create_time))
        table.add_row(Text(name), state_text(instance.state), created, *map(Text, rest))
    console = terminal()
    console.print(table if table.row_count else Text("no instances", style="dim"))


def print_instance(instance: pb.Instance, *, full: bool) -> None:
    """One instance: where it stands, its subtasks, what it used, its result or its error."""
    console = terminal()
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, value in _facts(instance):
        facts.add_row(name, value)
    parts: list[RenderableType] = [facts]
    if instance.subtasks:
        parts += [Text(""), _subtasks(instance)]
    if full:
        for subtask in instance.subtasks:
            parts += [Text(""), Text(f"{one_line(subtask.id)} {one_line(subtask.title)}", style="bold")]
            parts += [_indented(text) for text in (subtask.instructions, subtask.output) if text]
    if instance.HasField("error"):
        error = Text(f"{instance.error.reason}: {one_line(instance.error.message)}", style="red")
        parts += [Text(""), error]
    if instance.final_result:
        result = (
            Answer(instance.final_result) if console.is_terminal else Text(neutral(instance.final_result))
        )
        parts += [Text(""), result]
    if console.is_terminal:
        console.print(Group(*parts))
        return
    console.width = _NO_WRAPPING  # whoever reads a pipe wraps for himself
    with console.capture() as drawn:
        console.print(Group(*parts))
    for line in drawn.get().splitlines():
        print(line.rstrip())  # noqa: T201  the answer itself


def _fields(instance: pb.Instance) -> tuple[str, str, str, str, str, str]:
    done = sum(subtask.state == pb.SUBTASK_STATE_COMPLETED for subtask in instance.subtasks)
    return (
        one_line(instance.id),
        state_text(instance.state).plain,
        _local(instance.create_time),
        _took(instance),
        f"{done}/{len(instance.subtasks)}" if instance.subtasks else "",
        one_line(instance.prompt, 200),
    )


def _facts(instance: pb.Instance) -> Iterable[tuple[str, Text]]:
    config = instance.config
    yield "id", Text(one_line(instance.id))
    yield "state", state_text(instance.state)
    yield "prompt", Text(one_line(instance.prompt, 300))
    models = (
        config.big_model
        if config.big_model == config.small_model
        else f"{config.big_model}, {config.small_model}"
    )
    yield "models", Text(one_line(models))
    yield "created", Text(_local(instance.create_time))
    if took := _took(instance):
        yield "took", Text(took)
    if used := usage_line(usage_of(instance.usage)):
        yield "used", Text(used)
    if instance.labels:
        yield (
            "labels",
            Text(one_line(" ".join(f"{key}={value}" for key, value in sorted(instance.labels.items())))),
        )
    if instance.forked_from:
        yield "forked from", Text(one_line(instance.forked_from))
    yield "events", Text(str(instance.last_sequence))


def _subtasks(instance: pb.Instance) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("id", "state", "attempts", "subtask"):
        table.add_column(
            heading, no_wrap=heading != "subtask", justify="right" if heading == "attempts" else "left"
        )
    for subtask in instance.subtasks:
        state = pb.SubtaskState.Name(subtask.state).removeprefix("SUBTASK_STATE_").lower()
        title = Text(one_line(subtask.title))
        if subtask.HasField("error"):
            title.append(f"\n{subtask.error.reason}: {one_line(subtask.error.message)}", style="red")
        table.add_row(Text(one_line(subtask.id)), state, str(subtask.attempt), title)
    return table


def _indented(text: str) -> Padding:
    return Padding(Text(neutral(text)), (0, 0, 0, 2))


def _local(moment: Timestamp) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment.seconds))


def _recent(moment: Timestamp) -> str:
    """The time of today, or the day."""
    then = time.localtime(moment.seconds)
    today = time.strftime("%Y-%m-%d", then) == time.strftime("%Y-%m-%d")
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d", then)


def _took(instance: pb.Instance) -> str:
    if not instance.HasField("start_time"):
        return ""
    start_s = instance.start_time.seconds + instance.start_time.nanos / 1e9
    end = instance.end_time
    end_s = end.seconds + end.nanos / 1e9 if instance.HasField("end_time") else time.time()
    return duration(end_s - start_s)
