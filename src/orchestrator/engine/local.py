"""The local engine: asyncio, one process, everything it knows is in the log."""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

from orchestrator.core.create import NewInstance
from orchestrator.core.state import Instance, evolve
from orchestrator.core.wire import STATUS, timestamp
from orchestrator.engine.run import Run, Workshop
from orchestrator.engine.turns import Turns
from orchestrator.errors import InvalidArgumentError, QueueFullError, SettingsError, StateForbidsError
from orchestrator.log.base import DuplicateRequest, Entry, EventLog
from orchestrator.models.base import Models
from orchestrator.v1.event_pb2 import Event, InstanceCreated


class LocalEngine:
    """Runs up to `max_active` instances at once; the rest wait in order. Make it with `running`."""

    def __init__(self, shop: Workshop, *, max_active: int, max_queued: int) -> None:
        self._shop = shop
        self._max_active = max_active
        self._max_queued = max_queued
        self._runs: dict[str, Run] = {}
        self._active: set[str] = set()
        self._waiting: deque[str] = deque()
        self._stopping = False

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        log: EventLog,
        models: Models,
        *,
        max_active: int = 1000,
        max_queued: int = 10_000,
        max_calls: int = 64,
        now_s: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> AsyncIterator[Self]:
        """Take up every unfinished instance in the log, and run until the block ends.

        At its end open calls are cut off; the next start records and repeats them.
        """
        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            engine = cls(
                Workshop(log, models, Turns(max_calls), tasks, now_s, jitter),
                max_active=max_active,
                max_queued=max_queued,
            )
            for instance_id in await log.unfinished():
                engine._enqueue(await log.load(instance_id))
            try:
                yield engine
            except Exception as error:  # noqa: BLE001  a task group would wrap what is not its own
                failure = error
            finally:
                engine._stopping = True
                for run in engine._runs.values():
                    run.cut()
        if failure:
            raise failure

    async def create(self, new: NewInstance) -> Instance:
        """Record an instance and see to it that it runs; see Engine."""
        self._check_models(new)
        if len(self._waiting) >= self._max_queued:
            raise QueueFullError(len(self._waiting))
        created = InstanceCreated(
            prompt=new.prompt,
            config=new.config,
            labels=new.labels,
            request_id=new.request_id,
            request_digest=new.request_digest,
        )
        event = Event(
            instance_id=new.id,
            sequence=1,
            event_time=timestamp(self._shop.now_s()),
            instance_created=created,
        )
        instance = evolve(Instance(), event)
        durable = self._shop.log.append(Entry([event], instance))
        # A callback, not a line below: a caller who goes away must not leave an instance that never runs.
        durable.add_done_callback(lambda done: None if done.exception() else self._enqueue(instance))
        try:
            await asyncio.shield(durable)
        except DuplicateRequest as duplicate:
            return await self._shop.log.load(duplicate.instance_id)
        return instance

    async def terminate(self, instance_id: str) -> Instance:
        """Stop an instance and close its model calls; see Engine."""
        run = self._runs.get(instance_id)
        if run is None:
            instance = await self._shop.log.load(instance_id)
            raise StateForbidsError(instance_id, state=STATUS[instance.state], action="terminate")
        return await run.terminate()

    def _check_models(self, new: NewInstance) -> None:
        for name in ("big_model", "small_model"):
            try:
                self._shop.models.check(getattr(new.config, name))
            except SettingsError as error:
                raise InvalidArgumentError("CONFIG_INVALID", str(error), field=f"config.{name}") from None

    def _enqueue(self, instance: Instance) -> None:
        self._runs[instance.id] = Run(instance, self._shop, self._ended)
        self._waiting.append(instance.id)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._max_active and not self._stopping:
            if run := self._runs.get(instance_id := self._waiting.popleft()):
                self._active.add(instance_id)
                run.recover()
                run.advance()

    def _ended(self, instance_id: str) -> None:
        self._runs.pop(instance_id, None)
        self._active.discard(instance_id)
        self._admit()
