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
class ExpectedInstance:
    """The expected state of one incarnation."""

    ref: InstanceRef
    state: State = pb.STATE_QUEUED
    last_sequence: int = 1
    epoch: int = 0


@dataclass
class WriterState:
    """One writer to one instance."""

    writer: Writer
    epoch: int | None = None
    has_failed: bool = False


@dataclass
class Race:
    """Two writers on a log, and the model of what the log holds."""

    log: EventLog
    histories: dict[str, ExpectedInstance] = field(default_factory=dict)
    deleted: list[InstanceRef] = field(default_factory=list)
    writers: dict[tuple[int, str], WriterState] = field(default_factory=dict)
    outcomes: list[tuple["asyncio.Future[None]", type]] = field(default_factory=list)
    """The pending appends, and the type of their expected outcomes."""

    async def create(self, instance_id: str) -> None:
        if instance_id in self.histories:
            with pytest.raises(AlreadyExistsError):
                await create(self.log, History(instance_id))
        else:
            self.histories[instance_id] = ExpectedInstance(await create(self.log, History(instance_id)))

    async def load(self, who: int, instance_id: str) -> None:
        writer = (
            self.writers[who, instance_id].writer if (who, instance_id) in self.writers else Writer(self.log)
        )
        if instance_id in self.histories:
            await writer.load(instance_id)
            self.writers[who, instance_id] = WriterState(writer)
        else:
            with pytest.raises(InstanceNotFoundError):
                await writer.load(instance_id)

    async def lease(self, who: int, instance_id: str) -> None:
        if writer_state := self.writers.get((who, instance_id)):
            ref, history = writer_state.writer.loaded.ref, self.histories.get(instance_id)
            if history and history.ref == ref:
                history.epoch = writer_state.epoch = await self.log.acquire_lease(ref)
            else:
                with pytest.raises(InstanceNotFoundError):
                    await self.log.acquire_lease(ref)

    async def append(self, who: int, instance_id: str, *, ends: bool) -> None:
        """Go on from what was seen, without waiting for what is on its way."""
        writer_state = self.writers.get((who, instance_id))
        if writer_state is None:
            return
        writer, (ref, instance) = writer_state.writer, writer_state.writer.loaded
        expected = self._expect(ref, writer_state, instance.last_sequence)
        if instance.state in TERMINAL:
            queued = writer.append(History("a").terminated().retried().events[-1], epoch=writer_state.epoch)
        elif ends:
            queued = writer.append(*lifecycle.terminate(instance), epoch=writer_state.epoch)
        else:
            queued = writer.append_planning(epoch=writer_state.epoch)
        self.outcomes.append((queued, expected))
        writer_state.has_failed |= expected is not DONE
        if expected is DONE:
            after = writer.loaded.instance
            self.histories[instance_id].state = after.state
            self.histories[instance_id].last_sequence = after.last_sequence

    def _expect(self, ref: InstanceRef, writer_state: WriterState, last_sequence: int) -> type:
        history = self.histories.get(ref.id)
        if history is None or history.ref != ref:
            return InstanceNotFoundError
        if writer_state.epoch is not None and writer_state.epoch < history.epoch:
            return FencedError
        return (
            SequenceConflictError
            if writer_state.has_failed or history.last_sequence != last_sequence
            else DONE
        )

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
        pages = await global_pages(self.log, limit=5)
        assert [deletion.ref for page in pages for deletion in page.deletions] == self.deleted
        streamed = [event for page in pages for event in page.events.events()]
        for instance_id, history in self.histories.items():
            head = await self.log.head(key(instance_id))
            assert head == (history.ref, history.state, history.last_sequence)
            assert rows[instance_id].head == head
            assert bool(rows[instance_id].view) == (history.state in TERMINAL)
            found = await events(self.log, history.ref)
            assert [event.sequence for event in found] == list(range(1, history.last_sequence + 1))
            assert [event for event in streamed if event.instance_id == instance_id] == found
            for (
                writer_state
            ) in self.writers.values():  # whose states were topped up, or are of another incarnation
                if writer_state.writer.loaded.ref == history.ref:
                    assert (await writer_state.writer.load(instance_id)).loaded == await self._fresh(
                        instance_id
                    )
        assert len(streamed) == sum(history.last_sequence for history in self.histories.values())

    async def _fresh(self, instance_id: str) -> object:
        return (await Writer(self.log).load(instance_id)).loaded


STEP = st.tuples(
    st.sampled_from(["create", "load", "lease", "plan", "plan", "plan", "end", "delete", "wait"]),
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
            await race.load(who, instance_id)
    for what, who, instance_id in steps:
        match what:
            case "create":
                await race.create(instance_id)
            case "load":
                await race.load(who, instance_id)
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
