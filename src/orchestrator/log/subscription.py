"""Replay, then live: a reader's way through the log.

A subscription holds no cursor and no buffer. It reads a page, hands it over, and when there is nothing more
it waits to be woken and reads again. The watch begins before the first read, so nothing falls between.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from orchestrator.core.instance import TERMINAL, Instance, State
from orchestrator.errors import InstanceNotFoundError, SequenceOutOfRangeError
from orchestrator.log.base import EventLog, Page, Wakeups


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Everything recorded so far has been handed over; `last` is the last sequence."""

    last: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing happened for a while; `last` is the last sequence."""

    last: int


@dataclass(frozen=True, slots=True)
class End:
    """The instance is finished and wholly read."""

    state: State
    last: int


Step = Page | CaughtUp | Idle | End


async def follow(
    log: EventLog, instance_id: str, *, after: int = 0, live: bool = True, idle_s: float = 15.0
) -> AsyncIterator[Step]:
    """Yield an instance's events after a sequence: pages, CaughtUp once, then live pages, and End.

    With `live` false it stops at CaughtUp or End. A Idle comes whenever `idle_s` seconds pass without
    anything else. Raise InstanceNotFoundError, and SequenceOutOfRangeError when `after` is past the last
    event, and UnavailableError when the service stops.
    """
    last_sequence = await log.last_sequence(instance_id)
    if not 0 <= after <= last_sequence:
        raise SequenceOutOfRangeError("after_sequence", after, last_sequence)

    async def read(last: int) -> Page:
        return await log.read(instance_id, last)

    async for step in _follow(log.wakeups, instance_id, read, after, live=live, idle_s=idle_s):
        yield step


async def follow_all(
    log: EventLog,
    *,
    after: int = 0,
    labels: Sequence[tuple[str, str]] = (),
    live: bool = True,
    idle_s: float = 15.0,
) -> AsyncIterator[Step]:
    """Yield events after a position, of all instances that have all labels, as `follow` does; no End."""
    last_position = await log.last_position()
    if not 0 <= after <= last_position:
        raise SequenceOutOfRangeError("after_position", after, last_position)

    async def read(last: int) -> Page:
        return await log.read_all(last, labels=labels)

    async for step in _follow(log.wakeups, "", read, after, live=live, idle_s=idle_s):
        yield step


async def wait_for_end(log: EventLog, instance_id: str, timeout_s: float) -> Instance:
    """Give the instance once it is finished, or as it is after so many seconds; errors as of `follow`."""
    with log.wakeups.watch(instance_id) as woken:
        try:
            async with asyncio.timeout(timeout_s):
                while (await log.load(instance_id)).state not in TERMINAL:
                    log.wakeups.check_open()
                    await woken.wait()
                    woken.clear()
        except TimeoutError:
            pass
    return await log.load(instance_id)


async def _follow(
    wakeups: Wakeups,
    instance_id: str,
    read: Callable[[int], Awaitable[Page]],
    last: int,
    *,
    live: bool,
    idle_s: float,
) -> AsyncIterator[Step]:
    caught_up = False
    key = 0
    with wakeups.watch(instance_id) as woken:
        while True:
            wakeups.check_open()
            woken.clear()
            page = await read(last)
            if key and page.key != key:
                raise InstanceNotFoundError(instance_id)  # deleted, and made anew under the same id
            key = page.key
            if page.ordinals:
                last = page.ordinals[-1]
                yield page
            if not page.at_end:
                continue
            if page.state in TERMINAL:
                yield End(page.state, last)
                return
            if not caught_up:
                caught_up = True
                yield CaughtUp(last)
            if not live:
                return
            while not await _set_within(woken, idle_s):
                yield Idle(last)


async def _set_within(woken: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            return await woken.wait()
    except TimeoutError:
        return False
