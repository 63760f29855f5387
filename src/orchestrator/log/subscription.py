"""Replay, then live: a reader's way through the log.

A subscription holds no cursor and no buffer. It reads a page, hands it over, and when there is nothing more
it waits to be woken and reads again. The watch begins before the first read, so nothing falls between.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from orchestrator.core.identity import InstanceKey
from orchestrator.core.instance import TERMINAL, State
from orchestrator.errors import InstanceNotFoundError, SequenceOutOfRangeError
from orchestrator.log.base import Deletion, EventLog, Head, Page
from orchestrator.log.states import Loaded, StateStore
from orchestrator.waiting import is_set_within


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
GlobalStep = Page | Deletion | CaughtUp | Idle


async def follow(
    log: EventLog, head: Head, *, after: int = 0, live: bool = True, idle_s: float = 15.0
) -> AsyncIterator[Step]:
    """Yield an instance's events after a sequence: pages, CaughtUp once, then live pages, and End.

    With `live` false it stops at CaughtUp or End. An Idle comes whenever `idle_s` seconds pass without
    anything else. Raise SequenceOutOfRangeError when `after` is past `head`'s last sequence,
    InstanceNotFoundError once the instance is deleted, and UnavailableError when the service stops.
    """
    if not 0 <= after <= head.last_sequence:
        raise SequenceOutOfRangeError("after_sequence", after, head.last_sequence)
    last, has_caught_up = after, False
    with log.notifier.watch(head.ref) as woken:
        while True:
            log.notifier.check_open()
            woken.clear()
            page = await log.read(head.ref, last)
            if page.ordinals:
                last = page.ordinals[-1]
                yield page
            if not page.at_end:
                continue
            if page.state in TERMINAL:
                yield End(page.state, last)
                return
            if not has_caught_up:
                has_caught_up = True
                yield CaughtUp(last)
            if not live:
                return
            while not await is_set_within(woken, idle_s):
                yield Idle(last)


async def follow_all(
    log: EventLog,
    *,
    after: int = 0,
    tenant: str | None = None,
    labels: Sequence[tuple[str, str]] = (),
    live: bool = True,
    idle_s: float = 15.0,
) -> AsyncIterator[GlobalStep]:
    """Yield what happened after a position, to all instances that have all labels, as `follow` does; no End.

    The position of CaughtUp and Idle is how far was looked, matched or not: a reader resumes from there.
    """
    last_position = await log.last_position()
    if not 0 <= after <= last_position:
        raise SequenceOutOfRangeError("after_position", after, last_position)
    last, has_caught_up = after, False
    now_s = asyncio.get_running_loop().time
    yield_time_s = now_s()
    with log.notifier.watch() as woken:
        while True:
            log.notifier.check_open()
            woken.clear()
            page = await log.read_all(last, tenant=tenant, labels=labels)
            last = page.cursor
            if page.events.ordinals:
                yield page.events
            for deletion in page.deletions:
                yield deletion
            if page.events.ordinals or page.deletions:
                yield_time_s = now_s()
            if not page.events.at_end:
                if now_s() - yield_time_s >= idle_s:  # a long way on which nothing matches
                    yield Idle(last)
                    yield_time_s = now_s()
                continue
            if not has_caught_up:
                has_caught_up = True
                yield CaughtUp(last)
            if not live:
                return
            while not await is_set_within(woken, idle_s):
                yield Idle(last)


async def wait_for_end(log: EventLog, states: StateStore, key: InstanceKey, timeout_s: float) -> Loaded:
    """Give the instance once it is finished, or as it is after so many seconds; errors as of `follow`.

    It is the incarnation that the key has at first: raise InstanceNotFoundError once that is deleted.
    """
    head = await log.head(key)
    with log.notifier.watch(head.ref) as woken:
        try:
            async with asyncio.timeout(timeout_s):
                while (now := await log.head(key)).state not in TERMINAL:
                    if now.ref != head.ref:
                        break  # deleted, and created again under the same key
                    log.notifier.check_open()
                    await woken.wait()
                    woken.clear()
        except TimeoutError:
            pass
    loaded = await states.load(key)
    if loaded.ref != head.ref:
        raise InstanceNotFoundError(key.id)
    return loaded
