"""One instance at work: asks the core what to do, does it, and appends what came of it.

What calls bring is taken in together: all that comes in one pass of the loop is one step of the instance and
one entry in the log.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, assert_never

from orchestrator.core import budget, decider, replies
from orchestrator.core.commands import CallModel, Record, WakeAfter, model_for
from orchestrator.core.events import call_started, calls_interrupted
from orchestrator.core.instance import (
    PLANNING,
    RESTING,
    TERMINAL,
    Instance,
    Usage,
    Work,
    WorkKey,
)
from orchestrator.core.outcomes import CallEnded, Outcome, SubtasksStreamed, is_in_progress
from orchestrator.core.plan import Plan
from orchestrator.core.plan_text import PlanReader
from orchestrator.core.prompts import Profile, prompt_for
from orchestrator.core.replies import ModelReply
from orchestrator.engine.clock import Clock
from orchestrator.engine.live import Attempt, LiveTexts
from orchestrator.engine.scheduler import CallScheduler, Slot
from orchestrator.errors import (
    InstanceNotFoundError,
    ModelError,
    SettingsError,
    StateForbidsError,
    UnavailableError,
)
from orchestrator.log.base import Entry, EventLog
from orchestrator.models.base import ModelRequest, Models, OnText
from orchestrator.v1.event_pb2 import Event

_LOGGER: Final = logging.getLogger(__name__)
_MOST_TOKENS: Final = 2**40

Action = Callable[[Instance], Sequence[Event]]
"""What a client asks of an instance: the events that do it, or a RequestError; see core/lifecycle.py."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all runs share: the log, the models, the bound on open calls, the time and the dice."""

    log: EventLog
    models: Models
    live: LiveTexts
    scheduler: CallScheduler
    tasks: asyncio.TaskGroup
    clock: Clock
    jitter: Callable[[], float]
    """A number from 0 to 1, another one each time."""


@dataclass(slots=True)
class Run:
    """Carries one instance forward. It reacts: what happens is appended, then `advance` starts what follows.

    `instance` is ahead of the log by what is queued there; readers see only what is durable.
    """

    instance: Instance
    context: RunContext
    on_durable: Callable[["Run"], None]
    """Told whenever something that was appended has become durable: the run is to go on, or rests."""
    is_admitted: bool = False
    """Whether it may make calls: only so many instances are active at once."""
    _calls: dict["asyncio.Task[ModelError | None]", Attempt] = field(default_factory=dict)
    """What is under way, each call for which attempt."""
    _pending: list[Outcome] = field(default_factory=list)
    """What came of calls since the instance took it in last."""
    _planning: tuple[int, PlanReader] | None = None
    """Which attempt is writing a plan, and what reads it meanwhile, if one is."""
    _apply_handle: asyncio.Handle | None = None
    _timer: asyncio.TimerHandle | None = None
    is_halted: bool = False
    """Whether it was deleted, or something went wrong that must not happen: only the log knows how the
    instance stands."""
    _durable: "asyncio.Future[None] | None" = None
    """Done once everything appended so far is durable."""
    _dispatched: Instance | None = None
    """The instance when everything that the core asked for it had been begun, if it has been."""

    @property
    def is_at_rest(self) -> bool:
        """Whether the instance is finished, paused or waits for review, and that is durable."""
        return self.instance.state in RESTING and (self._durable is None or self._durable.done())

    def recover(self) -> None:
        """Record that a crash cut off the calls under way."""
        try:
            self._append(calls_interrupted(self.instance, self.context.clock.now_s()))
        except Exception as error:  # noqa: BLE001  as in `advance`
            self._halt(error)

    def apply_pending(self) -> None:
        """Append what calls have brought; it is done by itself as soon as the loop has come round."""
        if self._apply_handle:
            self._apply_handle.cancel()
            self._apply_handle = None
        if self.is_halted:
            return
        pending, self._pending = self._pending, []
        try:
            if self._planning:
                attempt, reader = self._planning
                if reader.read():
                    pending.append(SubtasksStreamed(attempt, tuple(reader.emitted), reader.summary))
            if pending:
                self._append_outcomes(pending)
        except Exception as error:  # noqa: BLE001  as in `advance`
            self._halt(error)

    def _append_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        clock, planning = self.context.clock, self.instance.planning
        instance, events = decider.apply_outcomes(self.instance, outcomes, clock.now_s(), clock.since_s)
        if events:
            self._queue(instance, events)
        if self.instance.planning is not planning:
            self._cancel_ended_calls()

    def _schedule_apply(self) -> None:
        if not self._apply_handle:
            self._apply_handle = asyncio.get_running_loop().call_soon(self.apply_pending)

    def advance(self) -> None:
        """Start whatever is to be done now, and wake up when something is to be done later."""
        self.apply_pending()
        try:
            if self.is_admitted and not self.is_halted:
                self._advance()
        except Exception as error:  # noqa: BLE001  whatever it is, it is this instance's alone
            self._halt(error)

    def _advance(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        since_s = self.context.clock.since_s
        waits_s: list[float] = []
        begun: list[tuple[WorkKey, str, Slot]] = []
        self._dispatched = None
        commands = decider.decide(self.instance, since_s)
        for command in commands:
            match command:
                case Record(events):
                    self._append(events)
                case WakeAfter(wait_s):
                    waits_s.append(wait_s)
                case CallModel(key):
                    model = model_for(self.instance, key)
                    endpoint, _, _ = model.partition("/")
                    if slot := self.context.scheduler.acquire(endpoint, self.instance.id, self.advance):
                        begun.append((key, model, slot))
                    elif (left_s := budget.left_s(self.instance, since_s)) is not None:
                        waits_s.append(left_s)  # it may pass while the instance waits for a slot
                case _:
                    assert_never(command)
        if begun:
            self._start_calls(begun)
        if waits_s:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, min(waits_s)), self.advance)
        if not any(isinstance(command, Record) for command in commands):
            self._dispatched = self.instance

    def _start_calls(self, begun: Sequence[tuple[WorkKey, str, Slot]]) -> None:
        # Not waited for: should the service stop now, the calls will have left no trace, and no harm.
        try:
            events = [
                call_started(self.instance, key, self._prompt_version(model)) for key, model, _ in begun
            ]
            self._queue(decider.apply(self.instance, events, self.context.clock.now_s()), events)
        except BaseException:
            for _, _, slot in begun:
                self.context.scheduler.release(slot, None)
            raise
        for (key, _, slot), event in zip(begun, events, strict=True):
            attempt = Attempt(key, self.instance.work(key).attempt, event.sequence)
            task = self.context.tasks.create_task(self._perform(attempt))
            self._calls[task] = attempt
            task.add_done_callback(partial(self._on_call_done, slot))

    def _prompt_version(self, model: str) -> str:
        try:
            provider, _ = self.context.models.resolve(model)
        except SettingsError:
            return ""  # which the call itself will tell
        return provider.profile.version

    def _on_call_done(self, slot: Slot, task: "asyncio.Task[ModelError | None]") -> None:
        del self._calls[task]
        self.context.scheduler.release(slot, None if task.cancelled() else task.result())

    async def steer(self, action: Action) -> Instance:
        """Do what a client asks, and give the instance as it is then; raise what the action raises.

        Raise UnavailableError while nothing can be recorded.
        """
        self.apply_pending()
        try:
            events = action(self.instance)
        except StateForbidsError:
            await self._until_durable()  # what forbids it must not be news that a crash could take back
            raise
        self.context.log.check_writable()
        self._append(events)
        instance = self.instance
        if instance.state in TERMINAL:
            self.cancel_calls()
        await self._until_durable()
        return instance

    def cancel_calls(self) -> None:
        """Close every open call, having taken in what they brought."""
        self.apply_pending()
        if self._timer:
            self._timer.cancel()
        for task in self._calls:
            task.cancel()

    def _halt(self, error: BaseException) -> None:
        _LOGGER.error("%s stands still until it is steered", self.instance.id, exc_info=error)
        self.detach()

    def detach(self) -> None:
        """Do nothing more."""
        self.is_halted = True
        self.cancel_calls()
        self.on_durable(self)

    def _append(self, events: Sequence[Event]) -> None:
        """Queue what happened for the log, together with whatever follows from it without a call."""
        if not events or self.is_halted:
            return
        clock = self.context.clock
        self._queue(*decider.apply_with_consequences(self.instance, events, clock.now_s(), clock.since_s))

    def _queue(self, instance: Instance, events: Sequence[Event]) -> None:
        if instance.start_time_s == instance.update_time_s:
            budget.left_s(instance, self.context.clock.since_s)  # looked at before the clock can be set
        self.instance = instance
        self._durable = self.context.log.append(Entry(events, instance))
        self._durable.add_done_callback(self._on_appended)

    def _on_appended(self, durable: "asyncio.Future[None]") -> None:
        if durable.cancelled():
            return
        if error := durable.exception():
            if isinstance(error, InstanceNotFoundError):
                self.detach()  # it was deleted
            elif not isinstance(error, UnavailableError):  # the log tells the next start how far this came
                self._halt(error)
        elif self.instance is not self._dispatched or self.is_at_rest:
            self.on_durable(self)

    async def _until_durable(self) -> None:
        """Wait for the log; shielded, since a caller who leaves must not take the log's word away."""
        if self._durable:
            await asyncio.shield(self._durable)

    async def _perform(self, attempt: Attempt) -> ModelError | None:
        """Make a call that has begun, and hand in what came of it; what went wrong."""
        try:
            outcome = await self._attempt(attempt)
            if attempt.work == PLANNING:
                self._planning = None
            self._pending.append(outcome)
            self._schedule_apply()
        except Exception as error:  # noqa: BLE001  whatever it is, it is this instance's alone
            self._halt(error)
            return None
        finally:
            self.context.live.end(self.instance.id, attempt)
        return outcome.result if isinstance(outcome.result, ModelError) else None

    def _cancel_ended_calls(self) -> None:
        """Close the calls whose attempt has ended without them, as that of a plan that has failed."""
        for task, attempt in self._calls.items():
            if not is_in_progress(self.instance, attempt.work, attempt.number):
                task.cancel()

    async def _attempt(self, attempt: Attempt) -> CallEnded:
        """Make one call; what came of it."""
        key, number, _ = attempt
        work = self.instance.work(key)
        result: Plan | str | ModelError
        tokens, response_id = (0, 0), ""
        try:
            profile, request, reply = await self._call_model(attempt, work)
            tokens, response_id = (reply.input_tokens, reply.output_tokens), reply.response_id
            result = replies.read(profile, self.instance, key, request.prompt, reply, request.model)
        except ModelError as error:
            result, response_id = error, error.response_id
            tokens = error.input_tokens, error.output_tokens
        except Exception:
            _LOGGER.exception("%s: %s failed unexpectedly", self.instance.id, key)
            result = ModelError("INTERNAL", "the service failed; its log has the details", retryable=False)
        usage = self._usage(work.model, *tokens)
        return CallEnded(key, number, result, usage, response_id, self.context.jitter())

    async def _call_model(self, attempt: Attempt, work: Work) -> tuple[Profile, ModelRequest, ModelReply]:
        instance, key = self.instance, attempt.work
        try:
            provider, model = self.context.models.resolve(work.model)
        except SettingsError as error:
            raise ModelError("MODEL_NOT_FOUND", str(error), retryable=False) from None
        profile = provider.profile
        attempt_timeout = instance.config.retry.attempt_timeout
        request = ModelRequest(
            model=model,
            prompt=prompt_for(profile, instance, key),
            max_output_tokens=instance.config.max_output_tokens,
            timeout_s=attempt_timeout.seconds + attempt_timeout.nanos / 1e9,
            is_watched=key == PLANNING or self.context.live.is_watched(instance.id),
            is_last_attempt=work.failures + 1 >= instance.config.retry.max_attempts,
        )
        on_text: OnText | None
        if key == PLANNING:
            reader = profile.plan_reader(instance)
            self._planning = (work.attempt, reader) if reader else None
            on_text = self._on_plan_text if reader else None
        else:
            on_text = self.context.live.writer(instance.id, attempt)
        return profile, request, await provider.complete(request, on_text)

    def _on_plan_text(self, piece: str, *, is_anew: bool = False) -> None:
        """Each subtask is recorded as soon as the planner has told of it, so that it can begin."""
        if is_anew:
            self._planning = None  # it may have read thoughts: only the whole plan can be trusted
        if self._planning:
            _, reader = self._planning
            reader.add(piece)
            self._schedule_apply()

    def _usage(self, model: str, input_tokens: int, output_tokens: int) -> Usage:
        """One call's usage; an endpoint's impossible count must not be what fails an instance."""
        sent = min(max(input_tokens, 0), _MOST_TOKENS)
        received = min(max(output_tokens, 0), _MOST_TOKENS)
        cost_usd = self.context.models.prices.cost_usd(model, sent, received)
        return Usage(sent, received, model_calls=1, cost_usd=cost_usd or 0.0)
