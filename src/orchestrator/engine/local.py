"""The local engine: asyncio, one process, everything it knows is in the log."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Self

from orchestrator.core import config as core_config
from orchestrator.core.create import NewInstance
from orchestrator.core.instance import RESTING, TERMINAL, Instance
from orchestrator.engine.clock import Clock
from orchestrator.engine.live import LiveTexts
from orchestrator.engine.run import Action, Run, RunContext
from orchestrator.engine.scheduler import CallScheduler
from orchestrator.errors import (
    InvalidArgumentError,
    QueueFullError,
    SettingsError,
    at_field,
)
from orchestrator.log.base import DuplicateRequest, Entry, EventLog
from orchestrator.models.base import Models
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event, InstanceRestarted, InstanceRetried

_LOGGER: Final = logging.getLogger(__name__)


class LocalEngine:
    """Runs up to `max_active` instances at once; the rest wait in order. Make it with `running`."""

    def __init__(self, context: RunContext, *, max_active: int, max_queued: int) -> None:
        self._context = context
        self._max_active = max_active
        self._max_queued = max_queued
        self._runs: dict[str, Run] = {}
        self._active = 0
        self._waiting: dict[str, None] = {}
        """Ids of those that wait for a place, in order."""
        self._stopping = False
        self.recovered = 0
        """How many unfinished instances it found that go on; paused ones and those in review wait."""

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
                RunContext(
                    log, models, LiveTexts(), CallScheduler(max_calls, jitter), tasks, Clock(now_s), jitter
                ),
                max_active=max_active,
                max_queued=max_queued,
            )
            for instance_id in await log.unfinished():
                try:
                    instance = await log.load(instance_id)
                    engine._enqueue(instance)
                    engine.recovered += instance.state not in RESTING
                except Exception:  # one instance that cannot be read must not keep the others from going on
                    _LOGGER.exception("%s cannot be taken up", instance_id)
            try:
                yield engine
            except Exception as error:  # noqa: BLE001  a task group would wrap what is not its own
                failure = error
            finally:
                engine._stopping = True
                engine._context.scheduler.close()
                for run in tuple(engine._runs.values()):
                    run.cancel_calls()
        if failure:
            raise failure

    @property
    def live(self) -> LiveTexts:
        """What calls under way have written; see Engine."""
        return self._context.live

    async def create(self, new: NewInstance) -> Instance:
        """Record an instance and see to it that it runs; see Engine."""
        self._check_models(new.config)
        entry = self._creation(new)
        if len(self._waiting) >= self._max_queued:
            return await self._first_of_duplicate(entry)
        return await self._created(entry.instance, self._context.log.append(entry))

    async def create_all(self, wishes: Sequence[NewInstance]) -> Sequence[Instance]:
        """Record instances, all or none; see Engine."""
        for number, new in enumerate(wishes):
            with at_field(f"requests[{number}]"):
                self._check_models(new.config)
        entries = [self._creation(new) for new in wishes]
        if len(self._waiting) + len(entries) > self._max_queued:
            return [await self._first_of_duplicate(entry) for entry in entries]
        durables = self._context.log.append_atomic(entries)
        created = [
            self._created(entry.instance, durable) for entry, durable in zip(entries, durables, strict=True)
        ]
        return await asyncio.gather(*created)

    async def _first_of_duplicate(self, entry: Entry) -> Instance:
        """With a full queue, give the instance that the same request has made; there can be no new one."""
        try:
            await self._context.log.check_new(entry.instance)
        except DuplicateRequest as duplicate:
            return await self._context.log.load(duplicate.instance_id)
        raise QueueFullError(len(self._waiting))

    def _creation(self, new: NewInstance) -> Entry:
        instance, events = new.begin(self._context.clock.now_s())
        return Entry(events, instance)

    def _created(
        self, instance: Instance, durable: "asyncio.Future[None]"
    ) -> Coroutine[None, None, Instance]:
        """Wait until an instance is durable; whoever goes away does not keep it from running."""
        durable.add_done_callback(lambda done: None if done.exception() else self._enqueue(instance))
        return self._once_durable(instance, durable)

    async def _once_durable(self, instance: Instance, durable: "asyncio.Future[None]") -> Instance:
        try:
            await asyncio.shield(durable)
        except DuplicateRequest as duplicate:
            return await self._context.log.load(duplicate.instance_id)
        return instance

    async def steer(self, instance_id: str, action: Action) -> Instance:
        """Do to an instance what a client asks; see Engine."""
        if instance_id not in self._runs:
            instance = await self._context.log.load(instance_id)
            self._runs.setdefault(instance_id, Run(instance, self._context, self._on_durable))
        run = self._runs[instance_id]
        try:
            return await run.steer(partial(self._with_checked_models, action))
        finally:
            if run.is_at_rest:
                self._release(run)

    def _check_models(self, config: pb.InstanceConfig) -> None:
        models = core_config.models(config)
        for path, name in models.items():
            try:
                self._context.models.check(name)
            except SettingsError as error:
                raise InvalidArgumentError("CONFIG_INVALID", str(error), field=f"config.{path}") from None
        if config.budget.HasField("max_cost_usd"):
            for name in models.values():
                if self._context.models.prices.cost_usd(name, 1, 1) is None:
                    raise InvalidArgumentError(
                        "CONFIG_INVALID",
                        f"config.budget.max_cost_usd cannot be kept: no price of {name} is known; set one in "
                        'orchestrator.toml (prices."provider/model"), or use budget.max_tokens',
                        field="config.budget.max_cost_usd",
                    )

    def _with_checked_models(self, action: Action, instance: Instance) -> Sequence[Event]:
        """Do an action unless it brings a configuration whose models cannot be called."""
        events = action(instance)
        for event in events:
            payload = getattr(event, str(event.WhichOneof("payload")))
            if isinstance(payload, InstanceRetried | InstanceRestarted):
                self._check_models(payload.config)
        return events

    def _enqueue(self, instance: Instance) -> None:
        known = self._runs.get(instance.id)
        if known and known.instance.create_time_s != instance.create_time_s:
            known.detach()  # it was another one, which was deleted
        self._runs.setdefault(instance.id, Run(instance, self._context, self._on_durable))
        self._waiting[instance.id] = None
        self._admit()

    def _on_durable(self, run: Run) -> None:
        """Something that a run appended is durable: let it rest, go on, or wait until it may."""
        if run.is_at_rest or run.is_halted:
            self._release(run)
        elif run.is_admitted:
            run.advance()
        elif run.instance.state not in RESTING and run.instance.id not in self._waiting:
            self._waiting[run.instance.id] = None
            self._admit()

    def _release(self, run: Run) -> None:
        if self._runs.get(run.instance.id) is run:
            self._waiting.pop(run.instance.id, None)
            if run.instance.state in TERMINAL or run.is_halted:
                del self._runs[run.instance.id]
        if run.is_admitted:
            run.is_admitted = False
            self._active -= 1
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._active < self._max_active and not self._stopping:
            run = self._runs.get(instance_id := next(iter(self._waiting)))
            del self._waiting[instance_id]
            if run and run.instance.state not in RESTING:
                run.is_admitted = True
                self._active += 1
                run.recover()
                run.advance()
