"""What each tenant's model calls have cost today, by the log.

It is read there as far as it was not yet, so it is right after a restart, and for calls of other processes.
What deleted instances have cost is counted only by a service that has read it before.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from orchestrator.core.wire import WORK_EVENTS
from orchestrator.log.base import EventLog
from orchestrator.v1.event_pb2 import Event

DAY_S: Final = 86_400
_PAID: Final = frozenset(
    name for names in WORK_EVENTS.values() for name in (names.continued, names.failed, names.completed)
)


def left_of_day_s(now_s: float) -> float:
    """Return how many seconds are left until midnight, UTC."""
    return DAY_S - now_s % DAY_S


@dataclass(slots=True)
class _Account:
    """One tenant's day, as far as it was read."""

    day: int
    position: int
    spent_usd: float = 0.0
    copies: dict[str, int] = field(default_factory=dict)
    """How many of the next events of an instance are copied by a fork: they were paid for before."""
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            if left := self.copies.get(event.instance_id, 0):
                self.copies[event.instance_id] = left - 1
                continue
            self.copies.pop(event.instance_id, None)
            name = event.WhichOneof("payload")
            if name == "instance_created" and event.instance_created.copied_events:
                self.copies[event.instance_id] = event.instance_created.copied_events
            elif name in _PAID and _day(event) == self.day:
                self.spent_usd += getattr(event, name).usage.cost_usd


class Spending:
    """Adds up costs by tenant."""

    def __init__(self, log: EventLog, now_s: Callable[[], float]) -> None:
        self._log = log
        self._now_s = now_s
        self._accounts: dict[str, _Account] = {}

    def known_usd(self, tenant: str) -> float | None:
        """Return what a tenant has spent today as far as it was read; None: it was not read today."""
        account = self._accounts.get(tenant)
        return account.spent_usd if account and account.day == self._today else None

    async def read_usd(self, tenant: str) -> float:
        """Return what a tenant has spent today, by all that is durable now."""
        account = self._accounts.get(tenant)
        if account is None or account.day != self._today:
            today = self._today
            start = await self._start_of(today)
            account = self._accounts.setdefault(tenant, _Account(today, start))
            if account.day != today:
                account = self._accounts[tenant] = _Account(today, start)
        async with account.reading:
            at_end = False
            while not at_end:
                page = await self._log.read_all(account.position, tenant=tenant)
                account.add(page.events.events())
                account.position = page.cursor
                at_end = page.events.at_end
        return account.spent_usd

    @property
    def _today(self) -> int:
        return math.floor(self._now_s() / DAY_S)

    async def _start_of(self, day: int) -> int:
        """Find a position that is not over the first one of a day: positions grow with time."""
        low, high = 0, await self._log.last_position()
        while low < high:
            middle = (low + high) // 2
            events = (await self._log.read_all(middle, 1)).events.events()
            if events and _day(events[0]) < day:
                low = middle + 1
            else:
                high = middle
        return low


def _day(event: Event) -> int:
    return int(event.event_time.seconds // DAY_S)
