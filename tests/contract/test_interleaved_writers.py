"""Whatever two writers do in whatever order: the log agrees with a model that does one thing at a time."""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.histories import History
from support.logs import create, events, global_pages, key, open_log
from support.writers import Writer

from orchestrator.core import lifecycle
from orchestrator.core.identity import InstanceRef
from orchestrator.core.instance import TERMINAL, State
from orchestrator.errors import AlreadyExistsError, InstanceNotFoundError, StateForbidsError
from orchestrator.log.base import EventLog, FencedError, Query, SequenceConflictError
from orchestrator.v1 import instance_pb2 as pb

IDS = ("a", "b")
DONE = type(None)


@dataclass
class Modelled:
    """One history as it must be."""

    ref: InstanceRef
    state: State = pb.STATE_QUEUED
    last_sequence: int = 1
    epoch: int = 0


@dataclass
class Hand:
    """What one writer does to one instance."""

    writer: Writer
    epoch: int | None = None
    has_failed: bool = False


@dataclass
class Race:
    """Two writers on a log, and the model of what the log holds."""

    log: EventLog
    histories: dict[str, Modelled] = field(default_factory=dict)
    deleted: list[InstanceRef] = field(default_factory=list)
    hands: dict[tuple[int, str], Hand] = field(default_factory=dict)
    outcomes: list[tuple["asyncio.Future[None]", type]] = field(default_factory=list)
    """What is on its way, and what has to come of it."""

    async def create(self, instance_id: str) -> None:
        if instance_id in self.histories:
            with pytest.raises(AlreadyExistsError):
                await create(self.log, History(instance_id))
        else:
            self.histories[instance_id] = Modelled(await create(self.log, History(instance_id)))

    async def look(self, who: int, instance_id: str) -> None:
        writer = self.hands[who, instance_id].writer if (who, instance_id) in self.hands else Writer(self.log)
        if instance_id in self.histories:
            await writer.look(instance_id)
            self.hands[who, instance_id] = Hand(writer)
        else:
            with pytest.raises(InstanceNotFoundError):
                await writer.look(instance_id)

    async def lease(self, who: int, instance_id: str) -> None:
        if hand := self.hands.get((who, instance_id)):
            ref, history = hand.writer.seen.ref, self.histories.get(instance_id)
            if history and history.ref == ref:
                history.epoch = hand.epoch = await self.log.acquire_lease(ref)
            else:
                with pytest.raises(InstanceNotFoundError):
                    await self.log.acquire_lease(ref)

    async def append(self, who: int, instance_id: str, *, ends: bool) -> None:
        """Go on from what was seen, without waiting for what is on its way."""
        hand = self.hands.get((who, instance_id))
        if hand is None:
            return
        writer, (ref, instance) = hand.writer, hand.writer.seen
        expected = self._expect(ref, hand, instance.last_sequence)
        if instance.state in TERMINAL:
            queued = writer.append(History("a").terminated().retried().events[-1], epoch=hand.epoch)
        elif ends:
            queued = writer.append(*lifecycle.terminate(instance), epoch=hand.epoch)
        else:
            queued = writer.plan(epoch=hand.epoch)
        self.outcomes.append((queued, expected))
        hand.has_failed |= expected is not DONE
        if expected is DONE:
            after = writer.seen.instance
            self.histories[instance_id].state = after.state
            self.histories[instance_id].last_sequence = after.last_sequence

    def _expect(self, ref: InstanceRef, hand: Hand, last_sequence: int) -> type:
        history = self.histories.get(ref.id)
        if history is None or history.ref != ref:
            return InstanceNotFoundError
        if hand.epoch is not None and hand.epoch < history.epoch:
            return FencedError
        return SequenceConflictError if hand.has_failed or history.last_sequence != last_sequence else DONE

    async def delete(self, instance_id: str) -> None:
        history = self.histories.get(instance_id)
        if history is None:
            return
        if history.state in TERMINAL:
            await self.log.delete(history.ref)
            self.deleted.append(self.histories.pop(instance_id).ref)
        else:
            with pytest.raises(StateForbidsError):
                await self.log.delete(history.ref)

    async def check(self) -> None:
        """Everything that was done came out as in the model, and the log holds what it holds."""
        results = await asyncio.gather(*(queued for queued, _ in self.outcomes), return_exceptions=True)
        assert [type(result) for result in results] == [expected for _, expected in self.outcomes]
        rows = {row.head.ref.id: row for row in (await self.log.list(Query())).rows}
        assert rows.keys() == self.histories.keys()
        told = await global_pages(self.log, limit=5)
        assert [deletion.ref for page in told for deletion in page.deletions] == self.deleted
        streamed = [event for page in told for event in page.events.events()]
        for instance_id, history in self.histories.items():
            head = await self.log.head(key(instance_id))
            assert head == (history.ref, history.state, history.last_sequence)
            assert rows[instance_id].head == head
            assert bool(rows[instance_id].view) == (history.state in TERMINAL)
            found = await events(self.log, history.ref)
            assert [event.sequence for event in found] == list(range(1, history.last_sequence + 1))
            assert [event for event in streamed if event.instance_id == instance_id] == found
            for hand in self.hands.values():  # whose states were topped up, or are of another history
                if hand.writer.seen.ref == history.ref:
                    assert (await hand.writer.look(instance_id)).seen == await self._fresh(instance_id)
        assert len(streamed) == sum(history.last_sequence for history in self.histories.values())

    async def _fresh(self, instance_id: str) -> object:
        return (await Writer(self.log).look(instance_id)).seen


STEP = st.tuples(
    st.sampled_from(["create", "look", "lease", "plan", "plan", "plan", "end", "delete", "wait"]),
    st.integers(0, 1),
    st.sampled_from(IDS),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEP, max_size=40))
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_two_writers_in_any_order_leave_the_log_as_the_model_predicts(
    kind: str, steps: list[tuple[str, int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = await open_log(kind, tmp_path_factory.mktemp("log"))
    race = Race(log)
    for instance_id in IDS:
        await race.create(instance_id)
        for who in (0, 1):
            await race.look(who, instance_id)
    for what, who, instance_id in steps:
        match what:
            case "create":
                await race.create(instance_id)
            case "look":
                await race.look(who, instance_id)
            case "lease":
                await race.lease(who, instance_id)
            case "delete":
                await race.delete(instance_id)
            case "wait":
                await asyncio.gather(*(queued for queued, _ in race.outcomes), return_exceptions=True)
            case _:
                await race.append(who, instance_id, ends=what == "end")
    await race.check()
    await log.aclose()
