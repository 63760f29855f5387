"""What every event log promises, asked of each of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lives import Life

from orchestrator.errors import (
    AlreadyExistsError,
    InstanceNotFoundError,
    SequenceOutOfRangeError,
    StateForbidsError,
    UnavailableError,
)
from orchestrator.log import subscription
from orchestrator.log.base import DuplicateRequest, Entry, EventLog, Page
from orchestrator.log.memory import MemoryEventLog
from orchestrator.log.retention import sweep
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event, InstanceRetried, InstanceTerminated


@pytest.fixture(params=["memory", "sqlite"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    log = await open_log(request.param, tmp_path)
    yield log
    await log.aclose()


def record(log: EventLog, life: Life, since: int = 0) -> "asyncio.Future[None]":
    return log.append(Entry(life.events[since:], life.instance))


def wish(instance_id: str, request_id: str = "", digest: bytes = b"", **labels: str) -> Life:
    life = Life(instance_id)
    created = life.events[0].instance_created
    created.request_id, created.request_digest = request_id, digest
    created.labels.update(labels)
    life.instance = replace(life.instance, request_id=request_id, request_digest=digest, labels=labels)
    return life


async def read_all(log: EventLog, instance_id: str, page: int = 3) -> list[Event]:
    events: list[Event] = []
    while True:
        found = await log.read(instance_id, len(events), page)
        assert [event.sequence for event in found.events()] == list(found.ordinals)
        events += found.events()
        if found.at_end:
            return events


async def test_what_was_appended_is_read_back_in_order(log: EventLog) -> None:
    life = Life("a").planned().done("t1", "t2", "t3").completed()
    await record(log, life)
    assert await read_all(log, "a") == life.events
    assert await log.load("a") == life.instance


async def test_an_instance_grows_entry_by_entry(log: EventLog) -> None:
    life = Life("a")
    await record(log, life)
    for more in (life.planned, lambda: life.done("t1", "t2"), lambda: life.done("t3"), life.completed):
        before = len(life.events)
        more()
        await record(log, life, before)
        assert await log.load("a") == life.refolded()
    assert await read_all(log, "a") == life.events


async def test_entries_become_durable_in_the_order_they_were_queued(log: EventLog) -> None:
    life = Life("a")
    await record(log, life)
    order: list[int] = []
    futures = []
    for number in range(5):
        before = len(life.events)
        life.then(life_event("planning_started", number + 1), life_event("planning_failed", number + 1))
        futures.append(record(log, life, before))
        futures[-1].add_done_callback(lambda _, number=number: order.append(number))
    await asyncio.gather(*futures)
    await asyncio.sleep(0)
    assert order == [0, 1, 2, 3, 4]


def life_event(kind: str, attempt: int) -> Event:
    event = Event()
    getattr(event, kind).attempt = attempt
    if kind.endswith("failed"):
        getattr(event, kind).retry_time.seconds = 1
    return event


async def test_an_unknown_instance_is_not_found(log: EventLog) -> None:
    with pytest.raises(InstanceNotFoundError, match="no instance 'nobody'"):
        await log.load("nobody")
    with pytest.raises(InstanceNotFoundError):
        await log.read("nobody", 0)


async def test_a_taken_id_is_refused_and_the_first_stays(log: EventLog) -> None:
    await record(log, Life("a"))
    with pytest.raises(AlreadyExistsError) as caught:
        await record(log, Life("a"))
    assert caught.value.reason == "INSTANCE_ALREADY_EXISTS"
    assert len(await read_all(log, "a")) == 1


async def test_many_at_once_with_one_request_id_make_one_instance(log: EventLog) -> None:
    results = await asyncio.gather(
        *(record(log, wish(f"i{number}", "key", b"same")) for number in range(100)), return_exceptions=True
    )
    assert results.count(None) == 1
    winner = f"i{results.index(None)}"
    assert all(result.instance_id == winner for result in results if isinstance(result, DuplicateRequest))
    assert sum(isinstance(result, DuplicateRequest) for result in results) == 99
    assert len(await log.find(limit=1000)) == 1


async def test_a_request_id_with_another_payload_is_refused(log: EventLog) -> None:
    await record(log, wish("a", "key", b"one"))
    with pytest.raises(AlreadyExistsError) as caught:
        await record(log, wish("b", "key", b"two"))
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert caught.value.metadata == {"id": "a"}


async def test_a_refused_creation_does_not_take_its_neighbours_along(log: EventLog) -> None:
    results = await asyncio.gather(
        *(record(log, Life(name)) for name in ("a", "b", "a", "c")), return_exceptions=True
    )
    assert [isinstance(result, AlreadyExistsError) for result in results] == [False, False, True, False]
    assert [name for _, name in await log.find(limit=9)] == ["c", "b", "a"]


async def test_positions_follow_the_order_of_commits_over_all_instances(log: EventLog) -> None:
    lives = [Life(name) for name in "abc"]
    for life in lives:
        await record(log, life)
    for life in reversed(lives):
        life.planned()
        await record(log, life, 1)
    events: list[Event] = []
    places: list[int] = []
    while True:
        page = await log.read_all(places[-1] if places else 0, 4)
        events += page.events()
        places += page.ordinals
        if page.at_end:
            break
    assert places == sorted(set(places))
    assert [event.instance_id for event in events] == list("abc") + ["c"] * 5 + ["b"] * 5 + ["a"] * 5
    for name in "abc":
        mine = [event.sequence for event in events if event.instance_id == name]
        assert mine == list(range(1, 7))


async def test_instances_are_found_newest_first_by_state_and_label(log: EventLog) -> None:
    for number in range(6):
        await record(log, wish(f"i{number}", team="red" if number % 2 else "blue", stage="one"))
    ended = wish("ended", team="red")
    await record(log, ended)
    await record(log, ended.then(Event(instance_terminated=InstanceTerminated())), 1)

    async def ids(**filters: object) -> list[str]:
        return [name for _, name in await log.find(limit=50, **filters)]

    assert await ids() == ["ended", "i5", "i4", "i3", "i2", "i1", "i0"]
    assert await ids(states=[pb.STATE_TERMINATED]) == ["ended"]
    assert await ids(states=[pb.STATE_QUEUED, pb.STATE_RUNNING]) == ["i5", "i4", "i3", "i2", "i1", "i0"]
    assert await ids(labels=[("team", "red")]) == ["ended", "i5", "i3", "i1"]
    assert await ids(labels=[("team", "red"), ("stage", "one")]) == ["i5", "i3", "i1"]
    assert await ids(labels=[("team", "green")]) == []
    assert await ids(id_prefix="i") == ["i5", "i4", "i3", "i2", "i1", "i0"]
    assert await ids(id_prefix="i4") == ["i4"]
    assert await ids(id_prefix="i", states=[pb.STATE_TERMINATED]) == []
    assert await ids(id_prefix="I") == []
    assert list(await log.unfinished()) == ["i0", "i1", "i2", "i3", "i4", "i5"]


async def test_paging_sees_each_instance_once_while_others_are_created(log: EventLog) -> None:
    for number in range(25):
        await record(log, Life(f"old{number}"))
    seen: list[str] = []
    before = 0
    while page := await log.find(before=before, limit=4):
        seen += [name for _, name in page]
        before = page[-1][0]
        await record(log, Life(f"new{len(seen)}"))
    assert seen == [f"old{number}" for number in reversed(range(25))]


async def steps(log: EventLog, instance_id: str, **options: object) -> list[subscription.Step]:
    return [step async for step in subscription.follow(log, instance_id, **options)]


async def test_a_finished_instance_is_replayed_and_ended(log: EventLog) -> None:
    life = Life("a").planned().done("t1", "t2", "t3").completed()
    await record(log, life)
    *pages, end = await steps(log, "a")
    assert [event for page in pages for event in page.events()] == life.events
    assert end == subscription.End(pb.STATE_COMPLETE, len(life.events))
    assert await steps(log, "a", after=len(life.events)) == [end]


async def test_reading_resumes_exactly_after_the_last_sequence_seen(log: EventLog) -> None:
    life = Life("a").planned().done("t1", "t2", "t3").completed()
    await record(log, life)
    for after in range(len(life.events)):
        page, _ = await steps(log, "a", after=after)
        assert page.ordinals[0] == after + 1


@pytest.mark.parametrize("after", [2, 99, -1])
async def test_reading_past_the_end_is_out_of_range(log: EventLog, after: int) -> None:
    await record(log, Life("a"))
    with pytest.raises(SequenceOutOfRangeError) as caught:
        await steps(log, "a", after=after)
    assert caught.value.metadata == {"last_sequence": "1"}


@pytest.mark.parametrize("after", [2, 99, -1])
async def test_reading_all_past_the_end_is_out_of_range(log: EventLog, after: int) -> None:
    await record(log, Life("a"))
    with pytest.raises(SequenceOutOfRangeError):
        await anext(subscription.follow_all(log, after=after))


async def test_without_follow_a_reader_stops_once_it_has_caught_up(log: EventLog) -> None:
    await record(log, Life("a"))
    page, caught_up = await steps(log, "a", live=False)
    assert isinstance(page, Page)
    assert caught_up == subscription.CaughtUp(1)


async def test_a_quiet_stream_says_so(log: EventLog) -> None:
    await record(log, Life("a"))
    async with aclosing(subscription.follow(log, "a", idle_s=0.001)) as reader:
        found = [await anext(reader) for _ in range(4)]
    assert found[1:] == [subscription.CaughtUp(1), subscription.Idle(1), subscription.Idle(1)]


async def test_closing_sends_readers_away_with_word_to_come_back(log: EventLog) -> None:
    await record(log, Life("a"))
    async with aclosing(subscription.follow(log, "a")) as reader:
        await anext(reader)
        await anext(reader)
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        log.wakeups.close()
        with pytest.raises(UnavailableError, match="resume with the last sequence seen"):
            await waiting


async def test_all_instances_are_followed_live(log: EventLog) -> None:
    await record(log, Life("a"))
    async with aclosing(subscription.follow_all(log)) as reader:
        first = await anext(reader)
        assert await anext(reader) == subscription.CaughtUp(first.ordinals[-1])
        await record(log, Life("b"))
        page = await anext(reader)
    assert [event.instance_id for event in page.events()] == ["b"]


async def test_instances_with_a_label_are_followed_alone(log: EventLog) -> None:
    for number in range(6):
        await record(log, wish(f"i{number}", team="red" if number % 2 else "blue", stage="one"))
    labels = [("team", "red"), ("stage", "one")]
    page, caught_up = [step async for step in subscription.follow_all(log, labels=labels, live=False)]
    assert [event.instance_id for event in page.events()] == ["i1", "i3", "i5"]
    assert page.ordinals == [2, 4, 6]
    assert caught_up == subscription.CaughtUp(6)
    rest = [step async for step in subscription.follow_all(log, after=2, labels=labels, live=False)]
    assert rest[0].ordinals == [4, 6]


async def test_whoever_waits_for_an_end_gets_it_or_the_state_when_time_is_up(log: EventLog) -> None:
    life = Life("a")
    await record(log, life)
    assert (await subscription.wait_for_end(log, "a", 0.001)).state == pb.STATE_QUEUED
    waiting = asyncio.create_task(subscription.wait_for_end(log, "a", 30))
    await asyncio.sleep(0)
    await record(log, life.then(Event(instance_terminated=InstanceTerminated())), 1)
    assert (await waiting).state == pb.STATE_TERMINATED


async def open_log(kind: str, folder: Path) -> EventLog:
    return MemoryEventLog() if kind == "memory" else await SqliteEventLog.open(folder / "log.db")


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.none() | st.floats(0, 1)), max_size=12))
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_readers_who_join_anywhere_see_every_event_once_and_in_order(
    kind: str, steps: list[tuple[int, bool, float | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = await open_log(kind, tmp_path_factory.mktemp("log"))
    life = Life("a")
    await record(log, life)
    readers = []

    async def follow(after: int) -> list[int]:
        seen: list[int] = []
        async for step in subscription.follow(log, "a", after=after):
            if isinstance(step, Page):
                seen += [event.sequence for event in step.events()]
        return seen

    for attempts, is_awaited, joins_at in steps:
        if joins_at is not None:
            after = int(joins_at * (await log.load("a")).last_sequence)
            readers.append((after, asyncio.create_task(follow(after))))
        before = len(life.events)
        for _ in range(attempts):
            attempt = life.instance.planning.attempt + 1
            life.then(life_event("planning_started", attempt), life_event("planning_failed", attempt))
        durable = record(log, life, before)
        if is_awaited:
            await durable
    before = len(life.events)
    await record(log, life.then(Event(instance_terminated=InstanceTerminated())), before)
    for after, reader in readers:
        assert await reader == list(range(after + 1, len(life.events) + 1))
    await log.aclose()


def test_the_fixture_for_a_wish_is_what_the_fold_gives() -> None:
    life = wish("a", "key", b"digest", team="red")
    assert life.refolded() == life.instance


async def finished(log: EventLog, instance_id: str, request_id: str = "", end_time_s: float = 0) -> Life:
    life = wish(instance_id, request_id, b"x", team="red")
    life.then(Event(instance_terminated=InstanceTerminated()))
    if end_time_s:
        life.instance = replace(life.instance, end_time_s=end_time_s)
    await record(log, life)
    return life


async def test_a_deleted_instance_is_gone_for_everybody(log: EventLog) -> None:
    await finished(log, "a", "key")
    await record(log, wish("b", team="red"))
    await log.delete("a")
    with pytest.raises(InstanceNotFoundError):
        await log.load("a")
    with pytest.raises(InstanceNotFoundError):
        await log.read("a", 0)
    with pytest.raises(InstanceNotFoundError):
        await log.last_sequence("a")
    assert [name for _, name in await log.find(labels=[("team", "red")], limit=9)] == ["b"]
    assert {event.instance_id for event in (await log.read_all(0)).events()} == {"b"}
    with pytest.raises(InstanceNotFoundError):
        await log.delete("a")


async def test_only_a_finished_instance_is_deleted(log: EventLog) -> None:
    life = Life("a")
    await record(log, life)
    with pytest.raises(
        StateForbidsError, match="is queued: it cannot be asked to delete; terminate it first"
    ):
        await log.delete("a")
    assert await log.load("a") == life.instance


async def test_places_of_the_deleted_are_not_given_again(log: EventLog) -> None:
    await finished(log, "a")
    ((key, _),) = await log.find(limit=1)
    last = await log.last_position()
    await log.delete("a")
    assert await log.last_position() == last
    await finished(log, "a", "key")
    ((new_key, _),) = await log.find(limit=1)
    assert new_key > key
    page = await log.read_all(last)
    assert list(page.ordinals) == [last + 1, last + 2]


async def test_an_id_and_a_request_id_are_free_again_after_deletion(log: EventLog) -> None:
    await finished(log, "a", "key")
    await log.delete("a")
    life = await finished(log, "a", "key")
    assert await read_all(log, "a") == life.events


async def test_a_reader_of_a_deleted_instance_is_told_so_even_if_the_id_lives_on(log: EventLog) -> None:
    life = Life("a")
    await record(log, life)
    async with aclosing(subscription.follow(log, "a", idle_s=5)) as reader:
        assert isinstance(await anext(reader), Page)
        assert isinstance(await anext(reader), subscription.CaughtUp)
        before = len(life.events)
        await record(log, life.then(Event(instance_terminated=InstanceTerminated())), before)
        await log.delete("a")
        await record(log, Life("a").planned())
        with pytest.raises(InstanceNotFoundError):
            await anext(reader)


async def test_what_follows_on_a_deleted_instance_is_refused(log: EventLog) -> None:
    life = await finished(log, "a")
    before = len(life.events)
    life.then(Event(instance_retried=InstanceRetried(config=life.instance.config)))
    await log.delete("a")
    with pytest.raises(InstanceNotFoundError):
        await record(log, life, before)
    assert await log.find(limit=1) == []


async def test_creations_that_go_together_are_all_there_or_none(log: EventLog) -> None:
    await record(log, Life("taken"))
    for refused in (["a", "taken", "b"], ["a", "b", "a"]):
        futures = log.append_atomic([Entry(life.events, life.instance) for life in map(Life, refused)])
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(result, AlreadyExistsError) for result in results)
        assert [name for _, name in await log.find(limit=9)] == ["taken"]
    futures = log.append_atomic([Entry(life.events, life.instance) for life in map(Life, "ab")])
    assert await asyncio.gather(*futures) == [None, None]
    assert [name for _, name in await log.find(limit=9)] == ["b", "a", "taken"]
    assert await read_all(log, "b") == Life("b").events


async def test_a_repeated_request_among_creations_keeps_the_others_from_nothing(log: EventLog) -> None:
    await record(log, wish("first", "key", b"same"))
    lives = [wish("a"), wish("again", "key", b"same"), wish("b", "other", b"x"), wish("c", "other", b"x")]
    futures = log.append_atomic([Entry(life.events, life.instance) for life in lives])
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert (results[0], results[2]) == (None, None)
    assert [error.instance_id for error in results if isinstance(error, DuplicateRequest)] == ["first", "b"]
    assert {name for _, name in await log.find(limit=9)} == {"first", "a", "b"}


async def test_finished_instances_are_found_by_when_they_finished(log: EventLog) -> None:
    for name, end_time_s in (("late", 300.0), ("early", 100.0), ("middle", 200.0)):
        await finished(log, name, end_time_s=end_time_s)
    await record(log, Life("running"))
    assert await log.finished_before(250, 9) == ["early", "middle"]
    assert await log.finished_before(250, 1) == ["early"]
    assert await log.finished_before(100, 9) == []


async def test_a_sweep_removes_what_finished_before(log: EventLog) -> None:
    for number in range(5):
        await finished(log, f"i{number}", end_time_s=100.0 + number)
    await record(log, Life("running"))
    assert await sweep(log, 103) == 3
    assert [name for _, name in await log.find(limit=9)] == ["running", "i4", "i3"]
