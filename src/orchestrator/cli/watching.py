"""`list --watch`: the list as it changes."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeAlias

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from orchestrator.cli import reporters, tables
from orchestrator.cli.text import duration
from orchestrator.client import ServiceError
from orchestrator.v1.instance_pb2 import Instance
from orchestrator.v1.orchestrator_pb2 import ListInstancesResponse

_PERIOD_S: Final = 1.0
_SHARE: Final = 10
"""A list that takes long is fetched less often: it takes no more than such a part of the time."""

Fetch: TypeAlias = Callable[[], Awaitable[ListInstancesResponse]]
"""Gives the list as it is now."""


async def watch(fetch: Fetch, *, as_json: bool) -> None:
    """Show the list until Ctrl-C, through restarts of the service; raise ServiceError where there is none."""
    is_table = sys.stdout.isatty() and not as_json
    await (_watch_table(fetch) if is_table else _watch_lines(fetch, as_json=as_json))


async def _watch_table(fetch: Fetch) -> None:
    """Draw the list in place, as much of it as there is room for."""
    console = reporters.terminal()
    instances: Sequence[Instance] | None = None
    away_since_s: float | None = None
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            begin_s = time.monotonic()
            try:
                instances = (await fetch()).instances
                away_since_s = None
            except ServiceError as error:
                if instances is None or not error.is_connection_loss:
                    raise
                away_since_s = away_since_s or begin_s
            away_s = begin_s - away_since_s if away_since_s else None
            live.update(Group(*_fitting(instances, console, away_s)), refresh=True)
            await _pause(begin_s)


async def _watch_lines(fetch: Fetch, *, as_json: bool) -> None:
    """Print each instance whenever it has changed, the oldest first."""
    last_sequences: dict[str, int] = {}
    found: Sequence[Instance] | None = None
    while True:
        begin_s = time.monotonic()
        try:
            found = (await fetch()).instances
        except ServiceError as error:
            if found is None or not error.is_connection_loss:
                raise
        for instance in reversed(found):
            if last_sequences.get(instance.id) == instance.last_sequence:
                continue
            last_sequences[instance.id] = instance.last_sequence
            if as_json:
                reporters.print_json(instance)
            else:
                tables.print_instances([instance])
        await _pause(begin_s)


async def _pause(begin_s: float) -> None:
    await asyncio.sleep(max(_PERIOD_S, (time.monotonic() - begin_s) * (_SHARE - 1)))


def _fitting(instances: Sequence[Instance], console: Console, away_s: float | None) -> Iterator[Text]:
    room = max(1, console.height - 3)  # less the heading, and what stands above and below
    if away_s is not None:
        yield Text(f"the service is away, reconnecting… {duration(away_s)}", "yellow")
    for line in tables.lines_of(instances[:room], time.time(), console.width):
        line.no_wrap = True
        yield line
    if len(instances) > room:
        yield Text(f"… {len(instances) - room} more", "dim")
