"""The local engine: asyncio, one process, everything it knows is in the log."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, Self

from orchestrator.core import config as core_config
from orchestrator.core.create import NewInstance
from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.instance import RESTING, Instance
from orchestrator.core.origin import NO_ORIGIN, Origin
from orchestrator.core.quota import NO_QUOTA, Quota
from orchestrator.engine.base import Load
from orchestrator.engine.clock import Clock
from orchestrator.engine.fair_queue import FairQueue
from orchestrator.engine.live import LiveTexts
from orchestrator.engine.observer import NO_OBSERVER, Observer, instance_fields
from orchestrator.engine.run import Run, RunContext
from orchestrator.engine.scheduler import CallScheduler
from orchestrator.engine.spending import Spending, left_of_day_s
from orchestrator.engine.steering import Action, steer
from orchestrator.errors import (
    QUEUE_RETRY_S,
    InvalidArgumentError,
    QueueFullError,
    QuotaExceededError,
    RequestError,
    SettingsError,
    at_field,
)
from orchestrator.log.base import Created, Creation, Duplicate, EventLog
from orchestrator.log.states import Loaded, StateStore
from orchestrator.models.base import Models
from orchestrator.offload import offload
from orchestrator.v1.event_pb2 import Event

_LOGGER: Final = logging.getLogger(__name__)

_QUOTAS_S: Final = 1.0
"""How often it is looked whether those that wait for a quota may start."""
_MAX_WAITING_CHARACTERS: Final = 64 * 1024
"""An instance that is given more is not kept in memory while it waits."""


class LocalEngine:
    """Runs up to `max_active` instances at once; the rest wait in order. Make it with `running`."""

    def __init__(
        self, context: RunContext, *, max_active: int, max_queued: int, quota: Callable[[str], Quota]
    ) -> None:
        self._context = context
        self._quota = quota
        self._spending = Spending(context.log, context.clock.now_s)
        self._max_active = max_active
        self._max_queued = max_queued
        self._runs: dict[InstanceRef, Run] = {}
        """Those that are admitted, and those that were steered meanwhile."""
        self._active = 0
        self._active_by_tenant = Counter[str]()
        self._waiting = FairQueue[Instance | None]()
        """Those that wait for admission; None: it is loaded when its turn comes."""
        self._loading: dict[InstanceRef, bool] = {}
        """Those that are loaded to be started, and whether they were steered meanwhile."""
        self._being_created = Counter[str]()
        """By tenant."""
        self._is_stopping = False
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
        quota: Callable[[str], Quota] = lambda _: NO_QUOTA,
        now_s: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
        observer: Observer = NO_OBSERVER,
    ) -> AsyncIterator[Self]:
        """Take up every unfinished instance in the log, and run until the block ends.

        `quota` returns what a tenant may use, as it is then.
        At its end open calls are cut off; the next start records and repeats them.
        """
        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            engine = cls(
                RunContext(
                    log,
                    StateStore(log),
                    models,
                    LiveTexts(),
                    CallScheduler(max_calls, jitter, observer),
                    tasks,
                    Clock(now_s),
                    jitter,
                    observer,
                ),
                max_active=max_active,
                max_queued=max_queued,
                quota=quota,
            )
            log.watch_storage(engine._context.scheduler.hold)  # what cannot be recorded is not paid for
            goes_on = [head.ref for head in await log.unfinished() if head.state not in RESTING]
            engine.recovered = len(goes_on)
            for ref in goes_on:
                engine._waiting[ref] = None
            await engine._read_spending()
            engine._admit()
            watching = tasks.create_task(engine._watch_quotas())
            try:
                yield engine
            except Exception as error:  # noqa: BLE001  a task group would wrap what is not its own
                failure = error
            finally:
                engine._is_stopping = True
                watching.cancel()
                engine._context.scheduler.close()
                for run in tuple(engine._runs.values()):
                    run.stop()
        if failure:
            raise failure

    @property
    def states(self) -> StateStore:
        """The instances as they are recorded; see Engine."""
        return self._context.states

    @property
    def live(self) -> LiveTexts:
        """What calls under way have written; see Engine."""
        return self._context.live

    def load(self) -> Load:
        """Return how much there is to do now; see Engine."""
        return Load(self._active, len(self._waiting), self._context.scheduler.gates())

    def waiting_reason(self, ref: InstanceRef) -> str:
        """Return why nothing happens to an instance; see Engine."""
        if run := self._runs.get(ref):
            return run.waiting_reason
        if ref in self._waiting:
            return self._quota_obstacle(ref.key.tenant) or (
                f"{self._active} instances are at work, as many as may be at a time "
                "(ORCHESTRATOR_MAX_ACTIVE_INSTANCES)"
            )
        return ""

    async def create(self, new: NewInstance) -> Loaded:
        """Record an instance and see to it that it runs; see Engine."""
        creation = await self._creation(new)
        self._check_models(creation.instance)
        return (await self._create([creation]))[0]

    async def create_all(self, batch: Sequence[NewInstance]) -> Sequence[Loaded]:
        """Record instances, all or none; see Engine."""
        creations = []
        for new in batch:
            creations.append(await self._creation(new))
            await asyncio.sleep(0)  # a hundred long prompts take a while: others have their turn
        for number, creation in enumerate(creations):
            with at_field(f"requests[{number}]"):
                self._check_models(creation.instance)
        return await self._create(creations)

    async def _create(self, creations: Sequence[Creation]) -> Sequence[Loaded]:
        tenant, count = creations[0].key.tenant, len(creations)
        if rejection := await self._rejection(tenant, count):
            return [await self._created_before(creation, rejection) for creation in creations]
        self._being_created[tenant] += count
        outcomes = self._context.log.create(creations)
        outcomes.add_done_callback(lambda done: self._on_created(creations, done))
        # A client that goes away does not keep them from being recorded, nor from running.
        answers = await self._context.log.answer(outcomes)
        return [
            Loaded(outcome.ref, creation.instance)
            if isinstance(outcome, Created)
            else await self.states.load(outcome.ref.key)
            for outcome, creation in zip(answers, creations, strict=True)
        ]

    async def _creation(self, new: NewInstance) -> Creation:
        begin = partial(new.begin, self._context.clock.now_s())
        instance, events = await offload(begin) if new.is_large else begin()
        return Creation(InstanceKey(new.tenant, new.id), events, await self.states.resolve(instance))

    async def _created_before(self, creation: Creation, rejection: RequestError) -> Loaded:
        """Give the instance that the same request has made; there can be no new one."""
        if duplicate := await self._context.log.check_creation(creation):
            return await self.states.load(duplicate.ref.key)
        raise rejection

    async def _rejection(self, tenant: str, count: int) -> RequestError | None:
        """Return why a tenant can have so many more instances not now; None: it can."""
        quota = self._quota(tenant)
        if quota.max_cost_usd_per_day is not None:
            spent_usd = await self._spending.read_usd(tenant)
            if spent_usd >= quota.max_cost_usd_per_day:
                return QuotaExceededError(
                    tenant,
                    _spent(tenant, spent_usd, quota.max_cost_usd_per_day),
                    "max_cost_usd_per_day",
                    retry_after_s=left_of_day_s(self._context.clock.now_s()),
                )
        queued = self._waiting.count(tenant) + self._being_created[tenant]
        free = self._max_active - self._active
        if quota.max_active is not None:
            free = min(free, quota.max_active - self._active_by_tenant[tenant])
        free = max(free, 0)
        if quota.max_queued is not None and queued + count > free + quota.max_queued:
            return QuotaExceededError(
                tenant,
                f"{queued} instances of the tenant {tenant!r} wait for their turn, and its quota allows "
                f"{quota.max_queued}: try again later",
                "max_queued",
                retry_after_s=QUEUE_RETRY_S,
            )
        others = self._waiting.tenants
        share = self._max_queued // (len(others) + (tenant not in others))
        waiting = len(self._waiting) + self._being_created.total()
        # A full queue still takes what is within a tenant's share: another one's must not keep it out.
        if waiting + count > free + self._max_queued and queued + count > share:
            return QueueFullError(len(self._waiting))
        return None

    def _on_created(
        self,
        creations: Sequence[Creation],
        done: "asyncio.Future[Sequence[Created | Duplicate]]",
    ) -> None:
        self._being_created[creations[0].key.tenant] -= len(creations)
        if done.cancelled() or done.exception():
            return
        for creation, outcome in zip(creations, done.result(), strict=True):
            if isinstance(outcome, Created):
                # What a fork copied has been observed before.
                new = (creation.events[0], *creation.events[1 + creation.instance.copied_events :])
                self._context.observer.on_recorded(outcome.ref, creation.instance, new)
                self._waiting[outcome.ref] = creation.instance
        self._admit()
        for creation, outcome in zip(creations, done.result(), strict=True):
            if creation.instance.given_characters > _MAX_WAITING_CHARACTERS and outcome.ref in self._waiting:
                self._waiting[outcome.ref] = None

    async def steer(
        self,
        key: InstanceKey,
        action: Action,
        origin: Origin = NO_ORIGIN,
        expected_sequence: int | None = None,
    ) -> Loaded:
        """Do to an instance what a client asks; see Engine."""
        return await steer(
            self._context.log,
            self.states,
            self._context.clock,
            key,
            action,
            origin=origin,
            expected_sequence=expected_sequence,
            check=self._check_new_models,
            on_durable=self._on_steered,
        )

    def _on_steered(self, steered: Loaded, events: Sequence[Event]) -> None:
        """Let the run that has the instance go on from there, or begin one."""
        ref, instance = steered
        self._context.observer.on_recorded(ref, instance, events)
        if run := self._runs.get(ref):
            run.rebase()
        elif ref in self._loading:
            self._loading[ref] = True
        elif ref in self._waiting:
            if instance.state in RESTING:
                del self._waiting[ref]
            else:
                self._waiting[ref] = instance
        elif instance.state not in RESTING:
            self._waiting[ref] = instance
            self._admit()

    def _check_models(self, instance: Instance) -> None:
        models = core_config.models(instance.config, instance.workers)
        for path, name in models.items():
            try:
                self._context.models.check(name)
            except SettingsError as error:
                raise InvalidArgumentError("CONFIG_INVALID", str(error), field=f"config.{path}") from None
        if instance.config.budget.HasField("max_cost_usd"):
            for name in models.values():
                if self._context.models.prices.cost_usd(name, 1, 1) is None:
                    raise InvalidArgumentError(
                        "CONFIG_INVALID",
                        f"config.budget.max_cost_usd cannot be kept: no price of {name} is known; set one in "
                        'orchestrator.toml (prices."provider/model"), or use budget.max_tokens',
                        field="config.budget.max_cost_usd",
                    )

    def _check_new_models(self, after: Instance, asked: Sequence[Event]) -> None:
        """Check an instance's models where it has got another configuration."""
        if any(event.WhichOneof("payload") in ("instance_retried", "instance_restarted") for event in asked):
            self._check_models(after)

    def _admit(self) -> None:
        while self._active < self._max_active and not self._is_stopping:
            following = self._waiting.pop_next(self._may_start)
            if following is None:
                break
            ref, instance = following
            self._active += 1
            self._active_by_tenant[ref.key.tenant] += 1
            if instance:
                self._context.observer.on_admitted(self._context.clock.elapsed_s(instance.update_time_s))
                self._start(ref, instance)
            else:
                self._context.tasks.create_task(self._load_and_start(ref))

    def _may_start(self, tenant: str) -> bool:
        return not self._quota_obstacle(tenant)

    def _quota_obstacle(self, tenant: str) -> str:
        """Return which quota keeps a tenant's next instance from starting; empty: none does."""
        quota = self._quota(tenant)
        active = self._active_by_tenant[tenant]
        if quota.max_active is not None and active >= quota.max_active:
            return (
                f"{active} instances of the tenant {tenant!r} are at work, and its quota allows "
                f"{quota.max_active}"
            )
        limit_usd = quota.max_cost_usd_per_day
        if limit_usd is None:
            return ""
        spent_usd = self._spending.known_usd(tenant)
        if spent_usd is None:
            return f"what the tenant {tenant!r} has spent today is being added up"
        return _spent(tenant, spent_usd, limit_usd) if spent_usd >= limit_usd else ""

    async def _watch_quotas(self) -> None:
        """Start what waits for a quota once that is raised, or the day is over."""
        while True:
            await asyncio.sleep(_QUOTAS_S)
            try:
                await self._read_spending()
            except Exception:  # instances at work go on
                _LOGGER.exception("what tenants have spent cannot be read")
            self._admit()

    async def _read_spending(self) -> None:
        """Read what was spent by the tenants that have something to start."""
        for tenant in self._waiting.tenants:
            if self._quota(tenant).max_cost_usd_per_day is not None:
                await self._spending.read_usd(tenant)

    async def _load_and_start(self, ref: InstanceRef) -> None:
        try:
            while self._loading.get(ref, True):
                self._loading[ref] = False
                loaded = await self.states.load(ref.key)
        except Exception:  # one instance that cannot be read must not keep the others from going on
            _LOGGER.exception("instance cannot be taken up", extra=instance_fields(ref))
            self._release_place(ref)
        else:
            if loaded.ref == ref:
                self._start(ref, loaded.instance)
            else:  # deleted, and created again under the same id
                self._release_place(ref)
        finally:
            del self._loading[ref]

    def _start(self, ref: InstanceRef, instance: Instance) -> None:
        run = self._runs[ref] = Run(ref, instance, self._context, self._on_durable)
        run.recover()
        run.advance()
        if run.is_at_rest:
            self._release(run)

    def _on_durable(self, run: Run) -> None:
        """Something that a run appended is durable: let it rest, or go on."""
        if run.is_at_rest or run.is_halted:
            self._release(run)
        else:
            run.advance()

    def _release(self, run: Run) -> None:
        if self._runs.get(run.ref) is run:
            del self._runs[run.ref]
            self._context.scheduler.withdraw(run.ref)
            self._release_place(run.ref)

    def _release_place(self, ref: InstanceRef) -> None:
        self._active -= 1
        self._active_by_tenant[ref.key.tenant] -= 1
        self._admit()


def _spent(tenant: str, spent_usd: float, limit_usd: float) -> str:
    return (
        f"the tenant {tenant!r} has spent ${spent_usd:.4g} today, and its quota is ${limit_usd:.4g} a day: "
        "it goes on at midnight UTC"
    )
