"""What the log promises to several writers, each with a state of its own of the instances."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.histories import History, labelled
from support.logs import append, create, creation, events, global_pages, key, record
from support.writers import Writer

from orchestrator.core import lifecycle
from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.core.view import instance as view_of
from orchestrator.errors import AlreadyExistsError, InstanceNotFoundError
from orchestrator.log.base import (
    Created,
    Duplicate,
    EventLog,
    FencedError,
    Head,
    Page,
    Query,
    SequenceConflictError,
)
from orchestrator.log.states import Loaded, StateStore
from orchestrator.log.subscription import wait_for_end
from orchestrator.v1 import instance_pb2 as pb


@pytest.fixture
async def writers(log: EventLog) -> tuple[Writer, Writer]:
    """Two writers that have loaded the new instance "a"."""
    await create(log, History("a"))
    return await Writer(log).load("a"), await Writer(log).load("a")


async def test_the_slower_of_two_writers_gets_a_conflict_reloads_and_continues(
    log: EventLog, writers: tuple[Writer, Writer]
) -> None:
    fast, slow = writers
    results = await asyncio.gather(fast.append_planning(), slow.append_planning(), return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], SequenceConflictError)
    assert results[1].last_sequence == 3
    await slow.load("a")
    assert slow.loaded == fast.loaded
    await slow.append_planning()
    with pytest.raises(SequenceConflictError, match="the last event is 5"):
        await fast.append_planning()
    found = await events(log, slow.loaded.ref)
    assert [event.sequence for event in found] == [1, 2, 3, 4, 5]
    assert (await fast.load("a")).loaded == slow.loaded


async def test_appends_queued_behind_a_rejected_append_are_rejected_with_it(
    log: EventLog, writers: tuple[Writer, Writer]
) -> None:
    fast, slow = writers
    results = await asyncio.gather(
        fast.append_planning(),
        *(slow.append_planning() for _ in range(3)),
        fast.append_planning(),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [
        type(None),
        *[SequenceConflictError] * 3,
        type(None),
    ]
    assert len(await events(log, fast.loaded.ref)) == 5


@pytest.mark.parametrize("is_one_commit", [True, False])
async def test_an_append_behind_a_rejected_one_is_rejected_though_its_sequence_matches(
    log: EventLog, writers: tuple[Writer, Writer], is_one_commit: bool
) -> None:
    fast, slow = writers
    first = fast.append_planning()  # makes the last sequence what the slow one's second append expects
    refused = slow.append_planning()
    if not is_one_commit:
        await asyncio.wait([refused])
    second = slow.append_planning()
    results = await asyncio.gather(first, refused, second, return_exceptions=True)
    assert results[0] is None
    assert all(isinstance(result, SequenceConflictError) for result in results[1:])
    assert results[2].last_sequence == 3
    assert len(await events(log, fast.loaded.ref)) == 3


async def test_an_append_behind_a_cancelled_one_is_rejected(
    log: EventLog, writers: tuple[Writer, Writer]
) -> None:
    writer, other = writers
    writer.append_planning().cancel()
    with pytest.raises(SequenceConflictError):
        await writer.append_planning()
    await other.load("a")  # only the log knows whether the first is recorded
    await other.append_planning()
    found = await events(log, other.loaded.ref)
    assert [event.sequence for event in found] == list(range(1, len(found) + 1))


async def test_only_the_newest_lease_can_write_and_appends_without_a_lease_still_can(
    log: EventLog, writers: tuple[Writer, Writer]
) -> None:
    old, new = writers
    ref = old.loaded.ref
    epoch = await log.acquire_lease(ref)
    await old.append_planning(epoch=epoch)
    in_time = old.append_planning(epoch=epoch)  # queued before the next lease, so it counts
    newer = await log.acquire_lease(ref)
    assert newer > epoch
    await in_time
    with pytest.raises(FencedError):
        await old.append_planning(epoch=epoch)
    await new.load("a")
    await new.append_planning(epoch=newer)
    steering = await Writer(log).load("a")
    await steering.append_planning()
    with pytest.raises(SequenceConflictError):
        await new.append_planning(epoch=newer)
    assert len(await events(log, ref)) == 9


async def test_a_fenced_append_reports_the_fence_before_a_conflict(
    log: EventLog, writers: tuple[Writer, Writer]
) -> None:
    old, new = writers
    epoch = await log.acquire_lease(old.loaded.ref)
    newer = await log.acquire_lease(old.loaded.ref)
    await new.append_planning(epoch=newer)
    with pytest.raises(FencedError):
        await old.append_planning(epoch=epoch)
    with pytest.raises(InstanceNotFoundError):
        await log.acquire_lease(InstanceRef(key("a"), 99))


async def test_a_lease_survives_appends_and_ends_with_the_incarnation(log: EventLog) -> None:
    history = History("a")
    ref = await create(log, history)
    assert [await log.acquire_lease(ref) for _ in range(3)] == [1, 2, 3]
    await record(log, history.terminated())
    with pytest.raises(FencedError):
        await log.append(append(history.retried(), ref, 2)._replace(epoch=2))
    await log.delete(ref)
    assert await log.acquire_lease(await create(log, History("a"))) == 1


async def replace_incarnation(log: EventLog, ref: InstanceRef, history: History) -> InstanceRef:
    """Delete a finished instance, and create another one under its key."""
    await log.delete(ref)
    return await create(log, history)


async def test_an_incarnation_may_be_replaced_between_two_reads(log: EventLog) -> None:
    old, new = History("a").planned().terminated(), History("a", instructions="another")
    ref = await create(log, old)
    writer = await Writer(log).load("a")
    assert writer.loaded == (ref, old.instance)
    new_ref = await replace_incarnation(log, ref, new)
    await writer.load("a")
    assert writer.loaded == (new_ref, new.instance)
    with pytest.raises(InstanceNotFoundError):
        await writer.states.at(Head(ref, old.instance.state, len(old.events) + 1))


class InterruptedLog:
    """A log in which something happens after the first page that is read."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.replaced_by: History | None = None

    async def head(self, of: InstanceKey) -> Head:
        return await self._log.head(of)

    async def read(self, ref: InstanceRef, after: int) -> Page:
        page = await self._log.read(ref, after, limit=2)
        if history := self.replaced_by:
            self.replaced_by = None
            await replace_incarnation(self._log, ref, history)
        return page


async def test_an_incarnation_may_be_replaced_between_two_pages_of_a_load(log: EventLog) -> None:
    old = History("a").planned().done("t1").terminated()
    await create(log, old)
    interrupted = InterruptedLog(log)
    interrupted.replaced_by = (
        History("a", instructions="another").planned().done("t1", "t2", "t3").terminated()
    )
    new = interrupted.replaced_by.instance
    states = StateStore(interrupted)  # type: ignore[arg-type]  the two methods that it uses
    with pytest.raises(InstanceNotFoundError):
        await states.load(key("a"))
    assert (await states.load(key("a"))).instance == new


async def test_an_append_for_one_incarnation_never_reaches_the_next(log: EventLog) -> None:
    old, new = History("a").terminated(), History("a").terminated()
    ref = await create(log, old)
    writer = await Writer(log).load("a")
    new_ref = await replace_incarnation(log, ref, new)
    retried = old.retried().events[-1]
    with pytest.raises(InstanceNotFoundError):
        await writer.append(retried)
    with pytest.raises(InstanceNotFoundError):
        await log.read(ref, 0)
    assert await events(log, new_ref) == new.events


async def test_a_wait_for_the_end_never_returns_the_end_of_another_incarnation(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = await create(log, History("a").terminated())
    states = StateStore(log)
    load = states.load

    async def replace_before_load(of: InstanceKey) -> Loaded:
        await replace_incarnation(log, ref, History("a"))
        return await load(of)

    monkeypatch.setattr(states, "load", replace_before_load)
    with pytest.raises(InstanceNotFoundError):
        await wait_for_end(log, states, ref.key, 30)


async def test_deletions_are_reported_at_their_position_in_the_order(log: EventLog) -> None:
    refs = [await create(log, labelled(name, team="red").terminated()) for name in "abcd"]
    await create(log, History("e"))
    await log.delete(refs[0])
    await create(log, History("f"))
    for ref in refs[1:3]:
        await log.delete(ref)
    last = await log.last_position()
    assert await read_all(log) == ["d1", "d2", "e1", "-a", "f1", "-b", "-c"]
    for limit in (1, 2, 3):
        assert await read_all(log, limit=limit) == ["d1", "d2", "e1", "-a", "f1", "-b", "-c"]
    assert await read_all(log, labels=[("team", "red")]) == ["d1", "d2", "-a", "-b", "-c"]
    assert await read_all(log, labels=[("team", "blue")]) == []
    assert await read_all(log, after=last - 1) == ["-c"]
    assert await read_all(log, after=last) == []


async def test_many_consecutive_deletions_are_all_reported(log: EventLog) -> None:
    refs = [await create(log, History(f"i{number}").terminated()) for number in range(30)]
    for ref in refs:
        await log.delete(ref)
    await create(log, History("last"))
    expected = [f"-i{number}" for number in range(30)] + ["last1"]
    assert await read_all(log) == expected
    assert await read_all(log, limit=7) == expected
    assert await read_all(log, labels=[("team", "red")]) == []


async def test_a_deletion_is_reported_to_a_reader_in_the_middle_of_the_instance(log: EventLog) -> None:
    history = History("a").planned().terminated()
    ref = await create(log, history)
    page = await log.read_all(0, 2)
    await log.delete(ref)
    assert await read_all(log, after=page.cursor) == ["-a"]
    assert await read_all(log) == ["-a"]


async def read_all(
    log: EventLog,
    after: int = 0,
    limit: int = 256,
    tenant: str | None = None,
    labels: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """Read all: id and sequence of each event, - and id of each deletion; in the order of positions."""
    found: list[tuple[int, str]] = []
    for page in await global_pages(log, after, limit, tenant=tenant, labels=labels):
        new = [
            (position, f"{event.instance_id}{event.sequence}")
            for position, event in zip(page.events.ordinals, page.events.events(), strict=True)
        ]
        new += [(deletion.position, f"-{deletion.ref.id}") for deletion in page.deletions]
        assert all(position <= page.cursor for position, _ in new)
        found += new
    assert [position for position, _ in found] == sorted({position for position, _ in found})
    return [what for _, what in found]


async def test_of_two_creations_with_one_id_one_succeeds(log: EventLog) -> None:
    results = await asyncio.gather(
        log.create([creation(History("a", instructions="first"))]),
        log.create([creation(History("a", instructions="second"))]),
        return_exceptions=True,
    )
    assert isinstance(results[1], AlreadyExistsError)
    seen = (await Writer(log).load("a")).loaded.instance
    assert seen == History("a", instructions="first").instance


def requested(instance_id: str, request_id: str = "key") -> History:
    history = History(instance_id)
    created = history.events[0].instance_created
    created.request_id, created.request_digest = request_id, b"digest"
    history.instance = replace(history.instance, request_id=request_id, request_digest=b"digest")
    return history


async def test_two_creations_with_one_request_id_return_the_same_instance(log: EventLog) -> None:
    (first,), (second,) = await asyncio.gather(
        log.create([creation(requested("a"))]), log.create([creation(requested("b"))])
    )
    assert isinstance(first, Created)
    assert second == Duplicate(first.ref)
    assert await read_all(log) == ["a1"]


async def test_tenants_may_use_the_same_ids_and_see_only_their_own(log: EventLog) -> None:
    histories = {tenant: requested("a") for tenant in ("red", "blue")}
    refs = {tenant: await create(log, history, tenant) for tenant, history in histories.items()}
    with pytest.raises(AlreadyExistsError):
        await log.create([creation(History("a"), "red")])
    assert await log.create([creation(requested("b"), "blue")]) == [Duplicate(refs["blue"])]
    assert await log.create([creation(requested("c", "other"), "green")]) != [Duplicate(refs["blue"])]
    with pytest.raises(InstanceNotFoundError):
        await log.head(InstanceKey("", "a"))
    red = await Writer(log).load("a", "red")
    await red.append(*lifecycle.terminate(red.loaded.instance))
    assert (await Writer(log).load("a", "blue")).loaded == (refs["blue"], histories["blue"].instance)
    for tenant, ids in {"red": ["a"], "blue": ["a"], "green": ["c"], "": [], None: ["c", "a", "a"]}.items():
        page = await log.list(Query(tenant=tenant))
        assert [row.head.ref.id for row in page.rows] == ids
        assert all(tenant in (None, row.head.ref.key.tenant) for row in page.rows)
    await log.delete(refs["red"])
    assert await read_all(log, tenant="red") == ["-a"]
    assert await read_all(log, tenant="blue") == ["a1"]
    assert await read_all(log, tenant="green") == ["c1"]
    assert await read_all(log, tenant="") == []
    assert await read_all(log) == ["a1", "c1", "-a"]
    assert (await log.head(refs["blue"].key)).ref == refs["blue"]


async def view(log: EventLog) -> pb.Instance | None:
    """What lists show of the one instance there is, without its state."""
    (row,) = (await log.list(Query())).rows
    return pb.Instance.FromString(row.view) if row.view else None


async def test_a_list_shows_instances_at_rest_and_no_stale_view(log: EventLog) -> None:
    history = History("a")
    await create(log, history)
    assert await view(log) is None
    await record(log, history.planned().done("t1"))
    assert await view(log) is None
    await record(log, history.terminated())
    assert await view(log) == view_of(history.instance)
    await record(log, history.retried())
    assert await view(log) is None
    ref = await record(log, history.terminated())
    assert await view(log) == view_of(history.instance)
    (row,) = (await log.list(Query())).rows
    assert row.head == (ref, pb.STATE_TERMINATED, len(history.events))


async def test_an_instance_created_at_rest_is_listed_at_once(log: EventLog) -> None:
    history = History("a").planned().terminated()
    await create(log, history)
    assert await view(log) == view_of(history.instance)


async def test_a_rejected_append_changes_neither_state_nor_view(
    log: EventLog, writers: tuple[Writer, Writer]
) -> None:
    fast, slow = writers
    await fast.append_planning()
    with pytest.raises(SequenceConflictError):
        await slow.append(*lifecycle.terminate(slow.loaded.instance))
    assert await view(log) is None
    assert await log.head(key("a")) == (fast.loaded.ref, fast.loaded.instance.state, 3)
    assert [head.ref for head in await log.unfinished()] == [fast.loaded.ref]


async def test_two_events_in_one_commit_leave_the_view_of_the_last(
    log: EventLog, writers: tuple[Writer, Writer]
) -> None:
    writer, _ = writers
    ended = writer.append(*lifecycle.terminate(writer.loaded.instance))
    again = writer.append(History("a").terminated().retried().events[-1])
    await asyncio.gather(ended, again)
    assert await view(log) is None
    assert await log.finished_before(2e9, 9) == []
    await writer.append(*lifecycle.terminate(writer.loaded.instance))
    assert await view(log) == view_of(writer.loaded.instance)
