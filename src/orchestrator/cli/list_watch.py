"""`list --watch`: follow the list of instances."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeAlias

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from orchestrator.cli import reporters, tables
from orchestrator.cli.text import duration, one_line
from orchestrator.client import ServiceError
from orchestrator.v1.instance_pb2 import Instance
from orchestrator.v1.orchestrator_pb2 import Deletion, ListInstancesResponse, StreamAllEventsResponse

_PERIOD_S: Final = 1.0
_IDLE_RATIO: Final = 10
"""A fetch takes no more than this fraction (1/n) of the time: a slow list is fetched less often."""

Fetch: TypeAlias = Callable[[], Awaitable[ListInstancesResponse]]
"""Fetches the current list."""


IsDeleted: TypeAlias = Callable[[str], Awaitable[bool]]
"""Tells whether an instance that is listed no more is gone, rather than beyond the limit or another state."""


async def watch(fetch: Fetch, is_deleted: IsDeleted, *, as_json: bool) -> None:
    """Show the list until Ctrl-C, through restarts of the service; raise ServiceError where there is none."""
    is_table = sys.stdout.isatty() and not as_json
    await (_watch_table(fetch) if is_table else _watch_lines(fetch, is_deleted, as_json=as_json))


async def _watch_table(fetch: Fetch) -> None:
    """Redraw the list in place, as far as it fits."""
    console = reporters.build_console()
    instances: Sequence[Instance] | None = None
    disconnected_since_s: float | None = None
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            start_s = time.monotonic()
            try:
                instances = (await fetch()).instances
                disconnected_since_s = None
            except ServiceError as error:
                if instances is None or not error.is_connection_loss:
                    raise
                disconnected_since_s = disconnected_since_s or start_s
            disconnected_s = start_s - disconnected_since_s if disconnected_since_s else None
            live.update(Group(*_visible_lines(instances, console, disconnected_s)), refresh=True)
            await _pause(start_s)


async def _watch_lines(fetch: Fetch, is_deleted: IsDeleted, *, as_json: bool) -> None:
    """Print deletions and each instance that has changed or started to wait, the oldest first."""
    seen: dict[str, tuple[int, int, bool]] = {}
    instances: Sequence[Instance] | None = None
    while True:
        start_s = time.monotonic()
        try:
            instances = (await fetch()).instances
        except ServiceError as error:
            if instances is None or not error.is_connection_loss:
                raise
        for instance in reversed(instances):
            now = (
                instance.create_time.ToNanoseconds(),
                instance.last_sequence,
                bool(instance.waiting_reason),
            )
            if seen.get(instance.id) == now:
                continue
            seen[instance.id] = now
            if as_json:
                reporters.print_json(instance)
            else:
                tables.print_instances([instance])
        for instance_id in seen.keys() - {instance.id for instance in instances}:
            with contextlib.suppress(ServiceError):  # the next look asks again
                if await is_deleted(instance_id):
                    _print_deleted(instance_id, as_json=as_json)
                del seen[instance_id]
        await _pause(start_s)


def _print_deleted(instance_id: str, *, as_json: bool) -> None:
    if as_json:
        reporters.print_json(StreamAllEventsResponse(deleted=Deletion(instance_id=instance_id)))
    else:
        print(one_line(instance_id), "deleted", sep="\t", flush=True)  # noqa: T201  the answer itself


async def _pause(start_s: float) -> None:
    await asyncio.sleep(max(_PERIOD_S, (time.monotonic() - start_s) * (_IDLE_RATIO - 1)))


def _visible_lines(
    instances: Sequence[Instance], console: Console, disconnected_s: float | None
) -> Iterator[Text]:
    room = max(1, console.height - 3)  # less the heading, and what stands above and below
    if disconnected_s is not None:
        yield Text(f"the service is away, reconnecting… {duration(disconnected_s)}", "yellow")
    for line in tables.table_lines(instances[:room], time.time(), console.width):
        line.no_wrap = True
        yield line
    if len(instances) > room:
        yield Text(f"… {len(instances) - room} more", "dim")
