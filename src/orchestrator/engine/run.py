"""One instance at work: asks the core what to do, does it, and appends what came of it.

What calls bring is applied together: all that comes in one pass of the loop is one step of the instance and
one append to the log. A run is not the only writer: who pauses or terminates the instance appends to it too.
Where the log holds another event than the run expects, the run *rebases*: what it had queued was refused, so
it loads the instance as it is recorded and records what its calls have brought against that.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, assert_never

from orchestrator.core import budget, context, continuation, decider, references, replies
from orchestrator.core.commands import CallModel, Record, WakeAfter, model_for
from orchestrator.core.continuation import Part
from orchestrator.core.events import call_started, calls_interrupted
from orchestrator.core.identity import InstanceRef
from orchestrator.core.instance import PLANNING, RESTING, SYNTHESIS, Instance, Usage, Work, WorkKey
from orchestrator.core.outcomes import CallEnded, Outcome, SubtasksStreamed, is_in_progress
from orchestrator.core.plan import Plan
from orchestrator.core.plan_text import PlanReader
from orchestrator.core.prompts import Profile, prompt_for
from orchestrator.core.references import Synthesis
from orchestrator.core.replies import ModelReply
from orchestrator.core.summary import summarize
from orchestrator.engine.clock import Clock
from orchestrator.engine.expanded_text import ExpandedText
from orchestrator.engine.joined_text import JoinedText, JoinedTextCallback
from orchestrator.engine.live import Attempt, LiveTexts
from orchestrator.engine.observer import NO_OBSERVER, ObservedCall, Observer, instance_fields
from orchestrator.engine.scheduler import CallScheduler, Slot
from orchestrator.errors import InstanceNotFoundError, ModelError, SettingsError, UnavailableError
from orchestrator.log.base import Append, EventLog, FencedError, SequenceConflictError
from orchestrator.log.states import StateStore
from orchestrator.models.base import ModelRequest, Models, Provider, TextCallback
from orchestrator.offload import offload
from orchestrator.v1.event_pb2 import Event

_LOGGER: Final = logging.getLogger(__name__)
_MOST_TOKENS: Final = 2**40
_MAX_SEARCHED_HERE: Final = 16 * 1024
"""How many characters of outputs and a synthesis are searched for files on the loop, at up to 1 µs each."""
_MAX_PARSED_HERE: Final = 2 * 1024
"""How many characters of a plan are parsed on the loop; what has to be repaired takes up to 3 µs for each."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """What all runs share: the log, the models, the bound on open calls, the time and the dice."""

    log: EventLog
    states: StateStore
    models: Models
    live: LiveTexts
    scheduler: CallScheduler
    tasks: asyncio.TaskGroup
    clock: Clock
    jitter: Callable[[], float]
    """A number from 0 to 1, another one each time."""
    observer: Observer = NO_OBSERVER
    callable_models: dict[str, tuple[Provider, str]] = field(default_factory=dict)
    """Those found to be callable by this process: the provider of each, and its own name for it."""


class _Granted(NamedTuple):
    """A call that may start."""

    work: WorkKey
    model: str
    slot: Slot


class _Queued(NamedTuple):
    """An append that is not known to be durable."""

    durable: "asyncio.Future[None]"
    instance: Instance
    """After it."""
    events: Sequence[Event]
    outcomes: Sequence[Outcome]
    """What it records of calls, to be recorded anew should it be refused."""


class _TextWatch:
    """Notes when the first piece of an answer comes."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self.first_s: float | None = None

    def around(self, on_text: TextCallback) -> TextCallback:
        """Return a callback that does the same, and is watched."""

        def watched(piece: str, *, is_restart: bool = False) -> None:
            if self.first_s is None:
                self.first_s = self._now_s()
            on_text(piece, is_restart=is_restart)

        return watched


@dataclass(slots=True, eq=False)
class Run:
    """Carries one instance forward. It reacts: what happens is appended, then `advance` starts what follows.

    `instance` is ahead of the log by what is queued there; readers see only what is durable.
    """

    ref: InstanceRef
    instance: Instance
    context: RunContext
    on_durable: Callable[["Run"], None]
    """Called whenever something that was appended has become durable, and after a rebase."""
    epoch: int | None = None
    """Of the lease under which it writes."""
    is_halted: bool = False
    """Whether it does nothing more: the instance was deleted, another holds its lease, or something went
    wrong that must not happen, and only the log knows how the instance stands."""
    _calls: dict["asyncio.Task[ModelError | None]", Attempt] = field(default_factory=dict)
    """What is under way, each call for which attempt."""
    _pending: list[Outcome] = field(default_factory=list)
    """What calls have brought since it was applied last."""
    _queue: list[_Queued] = field(default_factory=list)
    """In order, few at a time. A run holds no deque, nor what has one: each takes 0.7 KB."""
    _is_rebasing: bool = False
    _rebase_task: "asyncio.Task[None] | None" = None
    """The latest rebase."""
    _is_stale: bool = False
    """Whether another writer has appended since the run last loaded the instance."""
    _planning: tuple[int, PlanReader] | None = None
    """Which attempt is writing a plan, and what reads it meanwhile, if one is."""
    _apply_handle: asyncio.Handle | None = None
    _timer: asyncio.TimerHandle | None = None
    _obstacle: str = ""
    """Why a call cannot be made by this process."""
    _awaited_model: str = ""
    """For which model a slot is waited for."""
    _dispatched: Instance | None = None
    """The instance when everything that the core asked for it had been started, if it has been."""

    @property
    def is_at_rest(self) -> bool:
        """Whether the instance is finished, paused or waits for review, and that is durable."""
        return self.instance.state in RESTING and not self._queue and not self._is_rebasing

    def recover(self) -> None:
        """Record as cut off the calls that are in progress in the log but not open here: a crash did that."""
        try:
            still_open = {attempt.work for attempt in self._calls.values()}
            self._append(
                calls_interrupted(
                    self.instance, self.context.clock.now_s(), by_crash=True, except_works=still_open
                )
            )
        except Exception as error:  # noqa: BLE001  as in `advance`
            self._halt(error)

    def apply_pending(self) -> None:
        """Append what calls have brought; it is done by itself as soon as the loop has come round."""
        if self._apply_handle:
            self._apply_handle.cancel()
            self._apply_handle = None
        if self.is_halted or self._is_rebasing:
            return
        if self._planning:
            attempt, reader = self._planning
            if reader.read():
                self._pending.append(SubtasksStreamed(attempt, tuple(reader.emitted), reader.summary))
        pending, self._pending = self._pending, []
        try:
            if pending:
                self._append_outcomes(pending)
        except Exception as error:  # noqa: BLE001  as in `advance`
            self._halt(error)

    def _append_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        clock, planning = self.context.clock, self.instance.planning
        instance, events = decider.apply_outcomes(self.instance, outcomes, clock.now_s(), clock.elapsed_s)
        if events:
            self._queue_append(instance, events, outcomes)
        if self.instance.planning is not planning:
            self._cancel_ended_calls()

    def _cancel_ended_calls(self) -> None:
        """Close the calls whose attempt has ended without them, as that of a plan that has failed."""
        for task, attempt in self._calls.items():
            if not is_in_progress(self.instance, attempt.work, attempt.number):
                task.cancel()

    def _schedule_apply(self) -> None:
        if not self._apply_handle:
            self._apply_handle = asyncio.get_running_loop().call_soon(self.apply_pending)

    def advance(self) -> None:
        """Start whatever is to be done now, and wake up when something is to be done later."""
        self.apply_pending()
        try:
            if not self.is_halted and not self._is_rebasing:
                self._advance()
        except Exception as error:  # noqa: BLE001  whatever it is, it is this instance's alone
            self._halt(error)

    def _advance(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        elapsed_s = self.context.clock.elapsed_s
        waits_s: list[float] = []
        granted: list[_Granted] = []
        models_without_slot: set[str] = set()
        self._dispatched = None
        self._obstacle = self._awaited_model = ""
        commands = decider.decide(self.instance, elapsed_s)
        try:
            for command in commands:
                match command:
                    case CallModel(key):
                        model = model_for(self.instance, key)
                        slot = None if model in models_without_slot else self._acquire(model)
                        if slot:
                            granted.append(_Granted(key, model, slot))
                        elif model not in models_without_slot:
                            models_without_slot.add(model)  # for as long as this pass takes
                            if (left_s := budget.left_s(self.instance, elapsed_s)) is not None:
                                waits_s.append(left_s)  # it may pass while the instance waits
                    case Record(events):
                        self._append(events)
                    case WakeAfter(wait_s):
                        waits_s.append(wait_s)
                    case _:
                        assert_never(command)
            attempts = self._record_starts(granted) if granted else ()
        except BaseException:
            for call in granted:
                self.context.scheduler.release(call.slot, None)
            raise
        for call, attempt in zip(granted, attempts, strict=True):
            task = self.context.tasks.create_task(self._perform(attempt))
            self._calls[task] = attempt
            task.add_done_callback(partial(self._on_call_done, call.slot))
        if waits_s:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, min(waits_s)), self.advance)
        if not any(isinstance(command, Record) for command in commands):
            self._dispatched = self.instance

    def _acquire(self, model: str) -> Slot | None:
        """Acquire a slot for a call. Without one, `waiting_reason` says why, and `advance` is called again.

        A model that this process cannot call at all, for want of a key say, is not called: that would be an
        attempt. The instance waits for a process that can.
        """
        if model not in self.context.callable_models:
            try:
                provider, name = self.context.models.resolve(model)
                provider.check(name)
            except SettingsError as error:
                self._obstacle = str(error)
                return None
            self.context.callable_models[model] = provider, name
        slot = self.context.scheduler.acquire(model, self.ref, self.advance)
        if slot is None and not self._obstacle:
            self._awaited_model = model
        return slot

    @property
    def waiting_reason(self) -> str:
        """Why nothing happens, if nothing does though there is something to do."""
        if self._calls or self.instance.state in RESTING:
            return ""
        if self._awaited_model and not self._obstacle:
            return self.context.scheduler.obstacle(self._awaited_model)
        return self._obstacle

    def _record_starts(self, granted: Sequence[_Granted]) -> Sequence[Attempt]:
        """Queue that attempts begin. That is not waited for: should the service end now, no harm is done."""
        events = [
            call_started(self.instance, call.work, self._prompt_version(call.model)) for call in granted
        ]
        self._queue_append(decider.apply(self.instance, events, self.context.clock.now_s()), events)
        return [
            Attempt(call.work, self.instance.work(call.work).attempt, event.sequence)
            for call, event in zip(granted, events, strict=True)
        ]

    def _prompt_version(self, model: str) -> str:
        provider, _ = self.context.callable_models[model]
        return provider.profile.version

    def _on_call_done(self, slot: Slot, task: "asyncio.Task[ModelError | None]") -> None:
        del self._calls[task]
        self.context.scheduler.release(slot, None if task.cancelled() else task.result())

    def cancel_calls(self) -> None:
        """Close every open call, having applied what they brought."""
        self.apply_pending()
        if self._timer:
            self._timer.cancel()
        for task in self._calls:
            task.cancel()

    def stop(self) -> None:
        """Close every open call because the service stops, and record that: it was no crash."""
        self.cancel_calls()
        try:
            if not self._is_rebasing:
                self._append(calls_interrupted(self.instance, self.context.clock.now_s(), by_crash=False))
        except Exception as error:  # noqa: BLE001  as in `advance`
            self._halt(error)
        self.is_halted = True

    def _halt(self, error: BaseException) -> None:
        _LOGGER.error(
            "instance does nothing more until it is steered",
            exc_info=error,
            extra=instance_fields(self.ref, self.instance.origin),
        )
        self.detach()

    def detach(self) -> None:
        """Do nothing more."""
        self.is_halted = True
        self.cancel_calls()
        self.on_durable(self)

    def rebase(self) -> None:
        """Go on from what another writer appended."""
        self._is_stale = True
        if not self._is_rebasing and not self.is_halted:
            self._is_rebasing = True
            self._rebase_task = self.context.tasks.create_task(self._rebase())

    async def _rebase(self) -> None:
        lost: list[Outcome] = []
        try:
            while self._is_stale and not self.is_halted:
                self._is_stale = False
                while self._queue:
                    await asyncio.wait([self._queue[-1].durable])
                    lost += self._drop_settled()
                head = await self.context.log.head(self.ref.key)
                if head.ref != self.ref:
                    raise InstanceNotFoundError(self.ref.id)
                self.instance = (await self.context.states.at(head)).instance
        except InstanceNotFoundError:
            self._is_rebasing = False
            self.detach()
        except Exception as error:  # noqa: BLE001  as in `advance`
            self._is_rebasing = False
            self._halt(error)
        else:
            self._is_rebasing = False
            self._dispatched = None
            self._pending[:0] = lost
            self.apply_pending()
            self._cancel_ended_calls()
            self.recover()
            self.on_durable(self)

    def _drop_settled(self) -> Sequence[Outcome]:
        """Empty the queue, all of which is settled; give the outcomes of what was refused."""
        lost: list[Outcome] = []
        for durable, _, _, outcomes in self._queue:
            if durable.cancelled() or durable.exception():
                lost += outcomes
        self._queue.clear()
        return lost

    def _append(self, events: Sequence[Event]) -> None:
        """Queue what happened for the log, together with whatever follows from it without a call."""
        if not events or self.is_halted:
            return
        clock = self.context.clock
        self._queue_append(
            *decider.apply_with_consequences(self.instance, events, clock.now_s(), clock.elapsed_s)
        )

    def _queue_append(
        self, instance: Instance, events: Sequence[Event], outcomes: Sequence[Outcome] = ()
    ) -> None:
        if instance.start_time_s == instance.update_time_s:
            budget.left_s(instance, self.context.clock.elapsed_s)  # looked at before the clock can be set
        append = Append(
            self.ref,
            self.instance.last_sequence,
            events,
            summarize(instance),
            self.epoch,
            waits_for_storage=True,
            previous=self._queue[-1].durable if self._queue else None,
        )
        self.instance = instance
        durable = self.context.log.append(append)
        queued = _Queued(durable, instance, events, outcomes)
        self._queue.append(queued)
        durable.add_done_callback(partial(self._on_appended, queued))

    def _on_appended(self, queued: _Queued, durable: "asyncio.Future[None]") -> None:
        if not (durable.cancelled() or durable.exception()):
            self.context.observer.on_recorded(self.ref, queued.instance, queued.events)
        if self._is_rebasing or self.is_halted or durable.cancelled():
            return
        match durable.exception():
            case None:
                self._queue.pop(0)
                if queued.instance.state in RESTING:
                    self.context.states.keep(self.ref, queued.instance)
                if self.instance is not self._dispatched or self.is_at_rest:
                    self.on_durable(self)
            case SequenceConflictError():
                self.rebase()
            case InstanceNotFoundError() | FencedError():
                self.detach()  # it was deleted, or runs elsewhere
            case UnavailableError():
                pass  # the log tells the next start how far this came
            case error:
                self._halt(error)

    async def _perform(self, attempt: Attempt) -> ModelError | None:
        """Make the calls of an attempt whose start is recorded, and queue their outcomes.

        Return what went wrong.
        """
        try:
            outcome = await self._call_part(attempt)
            while isinstance(outcome.result, Part) and await self._goes_on(attempt):
                outcome = await self._call_part(attempt)
        except Exception as error:  # noqa: BLE001  whatever it is, it is this instance's alone
            self._halt(error)
            return None
        finally:
            self.context.live.end(self.ref, attempt)
        return outcome.result if isinstance(outcome.result, ModelError) else None

    async def _call_part(self, attempt: Attempt) -> CallEnded:
        """Make one call, for the whole answer or for its next part, and queue its outcome."""
        outcome = await self._call(attempt)
        if attempt.work == PLANNING:
            self._planning = None
        self._pending.append(outcome)
        self._schedule_apply()
        return outcome

    async def _goes_on(self, attempt: Attempt) -> bool:
        """Return whether the next part of an attempt is due, once the one that it has brought is durable."""
        self.apply_pending()
        if self._queue:
            await asyncio.wait([self._queue[-1].durable])
        while self._rebase_task and self._is_rebasing:
            await asyncio.wait([self._rebase_task])
        return not self.is_halted and is_in_progress(self.instance, attempt.work, attempt.number)

    async def _call(self, attempt: Attempt) -> CallEnded:
        """Make one call; what came of it."""
        key, number, _ = attempt
        work = self.instance.work(key)
        result: Plan | str | Synthesis | Part | ModelError
        tokens, response_id = (0, 0), ""
        now_s = asyncio.get_running_loop().time
        begin_s, text_watch, outcome = now_s(), _TextWatch(now_s), "cancelled"
        try:
            if key == SYNTHESIS and self._is_long(key, len(work.text)):
                await offload(partial(references.references, self.instance))  # it is kept at hand
            on_text = None if key == PLANNING else self._live_text(attempt, work)
            profile, request, reply = await self._call_model(attempt, work, on_text, text_watch)
            tokens, response_id = (reply.input_tokens, reply.output_tokens), reply.response_id
            read = partial(replies.read, profile, self.instance, key, request.prompt, reply, request.model)
            is_long = self._is_long(key, len(work.text) + len(reply.text))
            result = await offload(read) if is_long else read()
            outcome = "continued" if isinstance(result, Part) else "completed"
            if isinstance(on_text, ExpandedText) and not isinstance(result, Part):
                on_text.finish(result.added if isinstance(result, Synthesis) else "")
        except ModelError as error:
            outcome = error.reason
            result, response_id = error, error.response_id
            tokens = error.input_tokens, error.output_tokens
        except Exception:
            fields = instance_fields(self.ref, self.instance.origin, stage=key.kind, subtask=key.subtask_id)
            _LOGGER.exception("attempt failed unexpectedly", extra=fields)
            outcome = "INTERNAL"
            result = ModelError(outcome, "the service failed; its log has the details", retryable=False)
        finally:
            first_text_s = text_watch.first_s and text_watch.first_s - begin_s
            observed = ObservedCall(key.kind, work.model, outcome, now_s() - begin_s, first_text_s)
            self.context.observer.on_call_ended(observed)
        usage = self._usage(work.model, *tokens)
        return CallEnded(key, number, result, usage, response_id, self.context.jitter())

    def _is_long(self, key: WorkKey, characters: int) -> bool:
        """Return whether a reply of so many characters takes long to read: the loop must not wait for it."""
        if key == SYNTHESIS:  # it may refer to any file of the outputs
            outputs = (len(subtask.output) for subtask in self.instance.subtasks.values())
            return characters + sum(outputs) > _MAX_SEARCHED_HERE
        return key == PLANNING and (characters > _MAX_PARSED_HERE or bool(self.instance.files))

    def _live_text(self, attempt: Attempt, work: Work) -> JoinedTextCallback:
        """Return what takes the text of an attempt's next call for those who watch the instance."""
        found = references.references(self.instance) if attempt.work == SYNTHESIS else None
        writer = partial(self.context.live.writer, self.ref, attempt)
        return writer(work.text) if found is None else ExpandedText(found, work.text, writer)

    async def _call_model(
        self, attempt: Attempt, work: Work, on_text: JoinedTextCallback | None, text_watch: "_TextWatch"
    ) -> tuple[Profile, ModelRequest, ModelReply]:
        instance, key = self.instance, attempt.work
        provider, model = self.context.callable_models[work.model]
        profile = provider.profile
        prompt = partial(prompt_for, profile, instance, key)
        attempt_timeout = instance.config.retry.attempt_timeout
        request = ModelRequest(
            model=model,
            prompt=await offload(prompt) if context.is_there(instance) else prompt(),
            max_output_tokens=continuation.token_limit(instance, work),
            timeout_s=attempt_timeout.seconds + attempt_timeout.nanos / 1e9,
            is_watched=key == PLANNING or self.context.live.is_watched(self.ref),
            is_last_attempt=work.failures + 1 >= instance.config.retry.max_attempts,
        )
        if key == PLANNING:
            reader = profile.plan_reader(instance)
            self._planning = (work.attempt, reader) if reader else None
            on_text = self._on_plan_text if reader else None
            if reader and work.text:
                self._on_plan_text(work.text)
        if on_text is None:
            return profile, request, await provider.complete(request)
        if not work.text:
            return profile, request, await provider.complete(request, text_watch.around(on_text))
        joined = JoinedText(work.text, on_text)
        reply = await provider.complete(request, text_watch.around(joined))
        joined.finish()
        return profile, request, reply

    def _on_plan_text(self, piece: str, *, is_restart: bool = False, replaces: bool = False) -> None:
        """Record each subtask as soon as the planner has written it, so that it can begin."""
        if is_restart or replaces:
            self._planning = None  # it may have read thoughts: only the whole plan can be trusted
        if self._planning:
            _, reader = self._planning
            reader.add(piece)
            self._schedule_apply()

    def _usage(self, model: str, input_tokens: int, output_tokens: int) -> Usage:
        """Return one call's usage; an endpoint's impossible count must not fail an instance."""
        sent = min(max(input_tokens, 0), _MOST_TOKENS)
        received = min(max(output_tokens, 0), _MOST_TOKENS)
        cost_usd = self.context.models.prices.cost_usd(model, sent, received)
        return Usage(sent, received, model_calls=1, cost_usd=cost_usd or 0.0)
