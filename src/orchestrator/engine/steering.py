"""Steering: a client's request about an instance becomes events, wherever the instance runs."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from orchestrator.core import decider
from orchestrator.core.identity import InstanceKey
from orchestrator.core.instance import Instance
from orchestrator.core.origin import Origin
from orchestrator.core.summary import summarize
from orchestrator.engine.clock import Clock
from orchestrator.errors import SequenceMismatchError
from orchestrator.log.base import Append, EventLog, SequenceConflictError
from orchestrator.log.states import Loaded, StateStore
from orchestrator.v1.event_pb2 import Event

Action = Callable[[Instance], Sequence[Event]]
"""What a client asks of an instance: the events that do it, or a RequestError; see core/lifecycle.py."""


async def steer(
    log: EventLog,
    states: StateStore,
    clock: Clock,
    key: InstanceKey,
    action: Action,
    *,
    origin: Origin,
    expected_sequence: int | None,
    check: Callable[[Instance, Sequence[Event]], None] = lambda _after, _asked: None,
    on_durable: Callable[[Loaded, Sequence[Event]], None],
) -> Loaded:
    """Append what an action gives for an instance as it is recorded, and what follows without a call.

    Where another writer is faster, the action is asked again of what that one wrote. `on_durable` is called
    with the instance as it is then and the events, even if the caller has gone; `check` is called with that
    instance and what was asked before anything is appended. Raise SequenceMismatchError where the instance
    has gone on since `expected_sequence`, InstanceNotFoundError, UnavailableError, and what the action and
    `check` raise.
    """
    while True:
        ref, instance = await states.load(key)
        if expected_sequence is not None and expected_sequence != instance.last_sequence:
            raise SequenceMismatchError(key.id, expected_sequence, instance.last_sequence)
        asked = action(instance)
        origin.stamp(asked)
        after, events = decider.apply_with_consequences(instance, asked, clock.now_s(), clock.elapsed_s)
        after = await states.resolve(after)
        check(after, asked)
        durable = log.append(Append(ref, instance.last_sequence, events, summarize(after)))
        steered = Loaded(ref, after)
        durable.add_done_callback(partial(_notify, on_durable, steered, events))
        try:
            await log.answer(durable)
        except SequenceConflictError:
            continue
        states.keep(ref, after)
        return steered


def _notify(
    on_durable: Callable[[Loaded, Sequence[Event]], None],
    steered: Loaded,
    events: Sequence[Event],
    done: "asyncio.Future[None]",
) -> None:
    if not (done.cancelled() or done.exception()):
        on_durable(steered, events)
