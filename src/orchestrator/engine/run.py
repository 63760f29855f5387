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

from orchestrator.core import budget, decider
from orchestrator.core.decider import Call, MakePlan, Record, RunSubtask, Synthesize, WakeAfter
from orchestrator.core.plan import PlanError
from orchestrator.core.plan_text import PlanReader
from orchestrator.core.prompts import Profile
from orchestrator.core.state import RESTING, TERMINAL, Instance, Usage, Work
from orchestrator.engine.clock import Clock
from orchestrator.engine.live import LiveTexts
from orchestrator.engine.turns import Turn, Turns
from orchestrator.errors import (
    InstanceNotFoundError,
    ModelError,
    SettingsError,
    StateForbidsError,
    UnavailableError,
)
from orchestrator.log.base import Entry, EventLog
from orchestrator.models.base import ModelReply, ModelRequest, Models
from orchestrator.v1.event_pb2 import Event

_LOGGER: Final = logging.getLogger(__name__)
_MOST_TOKENS: Final = 2**40

Action = Callable[[Instance], Sequence[Event]]
"""What a client asks of an instance: the events that do it, or a RequestError; see core/lifecycle.py."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all runs share: the log, the models, the bound on open calls, the time and the dice."""

    log: EventLog
    models: Models
    live: LiveTexts
    turns: Turns
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
    shop: Workshop
    on_durable: Callable[["Run"], None]
    """Told whenever something that was appended has become durable: the run is to go on, or rests."""
    admitted: bool = False
    """Whether it may make calls: only so many instances are active at once."""
    _calls: dict["asyncio.Task[ModelError | None]", Call] = field(default_factory=dict)
    """What is under way."""
    _news: list[Event] = field(default_factory=list)
    """What calls have brought since the instance took it in last."""
    _reader: PlanReader | None = None
    """What reads the plan that is being written, if one is."""
    _taking_in: asyncio.Handle | None = None
    _timer: asyncio.TimerHandle | None = None
    stands_still: bool = False
    """Whether it was deleted, or something went wrong that must not happen: only the log knows how the
    instance stands."""
    _durable: "asyncio.Future[None] | None" = None
    """Done once everything appended so far is durable."""
    _done: Instance | None = None
    """The instance when everything that the core asked for it had been begun, if it has been."""

    @property
    def rests(self) -> bool:
        """Whether the instance is finished, paused or waits for review, and that is durable."""
        return self.instance.state in RESTING and (self._durable is None or self._durable.done())

    def recover(self) -> None:
        """Record that a crash cut off the calls under way."""
        try:
            self._append(decider.interrupted(self.instance, self.shop.clock.now_s()))
        except Exception as error:  # noqa: BLE001  as in `advance`
            self._stand_still(error)

    def take_in(self) -> None:
        """Append what calls have brought; it is done by itself as soon as the loop has come round."""
        if self._taking_in:
            self._taking_in.cancel()
            self._taking_in = None
        if self.stands_still:
            return
        news, self._news = self._news, []
        try:
            if self._reader and (subtasks := self._reader.read()):
                news += decider.planning(self.instance, subtasks, self._reader.summary)
            if self.instance.state not in TERMINAL:
                self._append(news)
        except Exception as error:  # noqa: BLE001  as in `advance`
            self._stand_still(error)

    def _take_in_soon(self) -> None:
        if not self._taking_in:
            self._taking_in = asyncio.get_running_loop().call_soon(self.take_in)

    def advance(self) -> None:
        """Start whatever is to be done now, and wake up when something is to be done later."""
        self.take_in()
        try:
            if self.admitted and not self.stands_still:
                self._advance()
        except Exception as error:  # noqa: BLE001  whatever it is, it is this instance's alone
            self._stand_still(error)

    def _advance(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        since_s = self.shop.clock.since_s
        waits_s: list[float] = []
        begun: list[tuple[Call, str, Turn]] = []
        self._done = None
        commands = decider.decide(self.instance, since_s)
        for command in commands:
            match command:
                case Record(events):
                    self._append(events)
                case WakeAfter(wait_s):
                    waits_s.append(wait_s)
                case MakePlan() | RunSubtask() | Synthesize():
                    model = decider.model_for(self.instance, command)
                    endpoint, _, _ = model.partition("/")
                    if turn := self.shop.turns.take(endpoint, self.instance.id, self.advance):
                        begun.append((command, model, turn))
                    elif (left_s := budget.left_s(self.instance, since_s)) is not None:
                        waits_s.append(left_s)  # it may pass while the instance waits for a turn
                case _:
                    assert_never(command)
        if begun:
            self._begin(begun)
        if waits_s:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, min(waits_s)), self.advance)
        if not any(isinstance(command, Record) for command in commands):
            self._done = self.instance

    def _begin(self, begun: Sequence[tuple[Call, str, Turn]]) -> None:
        # Not waited for: should the service stop now, the calls will have left no trace, and no harm.
        try:
            events = [decider.begun(self.instance, call, self._prompts(model)) for call, model, _ in begun]
            self._queue(decider.take(self.instance, events, self.shop.clock.now_s()), events)
        except BaseException:
            for _, _, turn in begun:
                self.shop.turns.give_back(turn, None)
            raise
        for call, _, turn in begun:
            task = self.shop.tasks.create_task(self._carry_out(call))
            self._calls[task] = call
            task.add_done_callback(partial(self._called, turn))

    def _prompts(self, model: str) -> str:
        try:
            provider, _ = self.shop.models.resolve(model)
        except SettingsError:
            return ""  # which the call itself will tell
        return provider.profile.version

    def _called(self, turn: Turn, task: "asyncio.Task[ModelError | None]") -> None:
        del self._calls[task]
        self.shop.turns.give_back(turn, None if task.cancelled() else task.result())

    async def steer(self, action: Action) -> Instance:
        """Do what a client asks, and give the instance as it is then; raise what the action raises.

        Raise UnavailableError while nothing can be recorded.
        """
        self.take_in()
        try:
            events = action(self.instance)
        except StateForbidsError:
            await self._until_durable()  # what forbids it must not be news that a crash could take back
            raise
        self.shop.log.check_writable()
        self._append(events)
        instance = self.instance
        if instance.state in TERMINAL:
            self.cut()
        await self._until_durable()
        return instance

    def cut(self) -> None:
        """Close every open call, having taken in what they brought."""
        self.take_in()
        if self._timer:
            self._timer.cancel()
        for task in self._calls:
            task.cancel()

    def _stand_still(self, error: BaseException) -> None:
        _LOGGER.error("%s stands still until it is steered", self.instance.id, exc_info=error)
        self.leave()

    def leave(self) -> None:
        """Do nothing more."""
        self.stands_still = True
        self.cut()
        self.on_durable(self)

    def _append(self, events: Sequence[Event]) -> None:
        """Queue what happened for the log, together with whatever follows from it without a call."""
        if not events or self.stands_still:
            return
        clock = self.shop.clock
        self._queue(*decider.follow(self.instance, events, clock.now_s(), clock.since_s))

    def _queue(self, instance: Instance, events: Sequence[Event]) -> None:
        if instance.start_time_s == instance.update_time_s:
            budget.left_s(instance, self.shop.clock.since_s)  # looked at before the clock can be set
        self.instance = instance
        self._durable = self.shop.log.append(Entry(events, instance))
        self._durable.add_done_callback(self._recorded)

    def _recorded(self, durable: "asyncio.Future[None]") -> None:
        if durable.cancelled():
            return
        if error := durable.exception():
            if isinstance(error, InstanceNotFoundError):
                self.leave()  # it was deleted
            elif not isinstance(error, UnavailableError):  # the log tells the next start how far this came
                self._stand_still(error)
        elif self.instance is not self._done or self.rests:
            self.on_durable(self)

    async def _until_durable(self) -> None:
        """Wait for the log; shielded, since a caller who leaves must not take the log's word away."""
        if self._durable:
            await asyncio.shield(self._durable)

    async def _carry_out(self, call: Call) -> ModelError | None:
        """Make a call that has begun, and hand in what came of it; what went wrong."""
        try:
            events, failure = await self._attempt(call)
            if isinstance(call, MakePlan):
                self._reader = None
                if failure:
                    self.take_in()
                    events = [*self._abandon(), *events]
            self._news += events
            self._take_in_soon()
        except Exception as error:  # noqa: BLE001  whatever it is, it is this instance's alone
            self._stand_still(error)
            return None
        return failure

    def _abandon(self) -> Sequence[Event]:
        """Cut off what was begun of a plan that has failed."""
        for task, call in self._calls.items():
            if isinstance(call, RunSubtask):
                task.cancel()
        return decider.abandoned(self.instance)

    async def _attempt(self, call: Call) -> tuple[Sequence[Event], ModelError | None]:
        """Make one call; the events that say how it went, and what went wrong."""
        work = decider.work_of(self.instance, call)
        try:
            profile, reply = await self._ask(call, work)
            usage = self._usage(work.model, reply.input_tokens, reply.output_tokens)
            match call:
                case MakePlan():
                    plan = profile.read_plan(self.instance, reply.text)
                    return decider.planned(self.instance, plan, usage), None
                case RunSubtask(subtask_id):
                    return [decider.worked(self.instance, subtask_id, reply.text, usage)], None
                case Synthesize():
                    result = profile.read_synthesis(self.instance, reply.text)
                    return [decider.synthesized(self.instance, result, usage)], None
            assert_never(call)
        except PlanError as fault:
            error = ModelError(
                "PLAN_INVALID",
                str(fault),
                retryable=True,
                input_tokens=reply.input_tokens,
                output_tokens=reply.output_tokens,
            )
        except ModelError as fault:
            error = fault
        except Exception:
            _LOGGER.exception("%s: %s failed unexpectedly", self.instance.id, call)
            error = ModelError("INTERNAL", "the service failed; its log has the details", retryable=False)
        now_s = self.shop.clock.now_s()
        usage = self._usage(work.model, error.input_tokens, error.output_tokens)
        jitter = self.shop.jitter()
        return [decider.failed(self.instance, call, error, usage, now_s=now_s, jitter=jitter)], error

    async def _ask(self, call: Call, work: Work) -> tuple[Profile, ModelReply]:
        instance = self.instance
        try:
            provider, model = self.shop.models.resolve(work.model)
        except SettingsError as error:
            raise ModelError("MODEL_NOT_FOUND", str(error), retryable=False) from None
        profile = provider.profile
        subtask_id = ""
        match call:
            case MakePlan():
                prompt = profile.plan(instance)
            case RunSubtask(subtask_id):
                prompt = profile.work(instance, instance.subtasks[subtask_id])
            case Synthesize():
                prompt = profile.synthesize(instance)
            case _:
                assert_never(call)
        attempt_timeout = instance.config.retry.attempt_timeout
        request = ModelRequest(
            model=model,
            prompt=prompt,
            max_output_tokens=instance.config.max_output_tokens,
            timeout_s=attempt_timeout.seconds + attempt_timeout.nanos / 1e9,
            is_watched=isinstance(call, MakePlan) or self.shop.live.is_watched(instance.id),
            is_last_attempt=work.failures + 1 >= instance.config.retry.max_attempts,
        )
        if isinstance(call, MakePlan):
            self._reader = profile.plan_reader(instance)
            return profile, await provider.complete(request, self._hear if self._reader else None)
        with self.shop.live.writing(instance.id, subtask_id, work.attempt) as on_text:
            return profile, await provider.complete(request, on_text)

    def _hear(self, piece: str, *, is_anew: bool = False) -> None:
        """Each subtask is recorded as soon as the planner has told of it, so that it can begin."""
        if is_anew:
            self._reader = None  # it may have read thoughts: only the whole plan can be trusted
        if self._reader:
            self._reader.add(piece)
            self._take_in_soon()

    def _usage(self, model: str, input_tokens: int, output_tokens: int) -> Usage:
        """One call's usage; an endpoint's impossible count must not be what fails an instance."""
        sent = min(max(input_tokens, 0), _MOST_TOKENS)
        received = min(max(output_tokens, 0), _MOST_TOKENS)
        cost_usd = self.shop.models.prices.cost_usd(model, sent, received)
        return Usage(sent, received, model_calls=1, cost_usd=cost_usd or 0.0)
