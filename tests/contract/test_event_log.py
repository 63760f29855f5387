"""What every event log promises, asked of each of them."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.histories import NOW_S, History, part
from support.logs import (
    append,
    create,
    creation,
    delete,
    ended,
    events,
    global_pages,
    ids,
    key,
    load,
    open_log,
    read,
    record,
)

from orchestrator.core.events import work_completed
from orchestrator.core.identity import InstanceRef
from orchestrator.core.instance import Usage, WorkKey
from orchestrator.errors import (
    AlreadyExistsError,
    InstanceNotFoundError,
    SequenceOutOfRangeError,
    StateForbidsError,
    StorageError,
    UnavailableError,
)
from orchestrator.log import subscription
from orchestrator.log.base import (
    Created,
    Duplicate,
    EventLog,
    Page,
    Query,
    SequenceConflictError,
)
from orchestrator.log.retention import retain, sweep
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.event_pb2 import Event


def requested(instance_id: str, request_id: str = "", digest: bytes = b"", **labels: str) -> History:
    history = History(instance_id)
    created = history.events[0].instance_created
    created.request_id, created.request_digest = request_id, digest
    created.labels.update(labels)
    history.instance = replace(history.instance, request_id=request_id, request_digest=digest, labels=labels)
    return history


def planning_event(kind: str, attempt: int) -> Event:
    event = Event()
    getattr(event, kind).attempt = attempt
    if kind.endswith("failed"):
        getattr(event, kind).retry_time.seconds = 1
    return event


def attempt_planning(history: History) -> History:
    """Two more events that leave the instance as far as it was."""
    attempt = history.instance.planning.attempt + 1
    return history.then(
        planning_event("planning_started", attempt), planning_event("planning_failed", attempt)
    )


async def test_appended_events_are_read_back_in_order(log: EventLog) -> None:
    history = History("a").planned().done("t1", "t2", "t3").completed()
    ref = await create(log, history)
    assert await events(log, ref) == history.events
    assert await load(log, "a") == history.instance


async def test_an_instance_grows_append_by_append(log: EventLog) -> None:
    history = History("a")
    ref = await create(log, history)
    for more in (
        history.planned,
        lambda: history.done("t1", "t2"),
        lambda: history.done("t3"),
        history.completed,
    ):
        more()
        assert await record(log, history) == ref
        assert await load(log, "a") == history.refolded()
        assert await log.head(key("a")) == (ref, history.instance.state, len(history.events))
    assert await events(log, ref) == history.events


async def test_appends_become_durable_in_the_order_they_were_queued(log: EventLog) -> None:
    history = History("a")
    ref = await create(log, history)
    order: list[int] = []
    futures: list[asyncio.Future[None]] = []
    for number in range(5):
        before = len(history.events)
        queued = append(attempt_planning(history), ref, before)
        futures.append(log.append(queued._replace(previous=futures[-1] if futures else None)))
        futures[-1].add_done_callback(lambda _, number=number: order.append(number))
    await asyncio.gather(*futures)
    await asyncio.sleep(0)
    assert order == [0, 1, 2, 3, 4]
    assert await events(log, ref) == history.events


async def test_a_creation_and_the_appends_queued_before_it_become_durable_together(log: EventLog) -> None:
    history, other = History("a"), History("b")
    ref = await create(log, history)
    appended = log.append(append(attempt_planning(history), ref, 1))
    created = log.create([creation(other)])
    await created
    assert appended.done()
    assert await ids(log) == ["b", "a"]


async def test_an_unknown_instance_is_not_found(log: EventLog) -> None:
    unknown = InstanceRef(key("unknown"), 7)
    with pytest.raises(InstanceNotFoundError, match="no instance 'unknown'"):
        await log.head(unknown.key)
    with pytest.raises(InstanceNotFoundError):
        await log.read(unknown, 0)
    with pytest.raises(InstanceNotFoundError):
        await log.append(append(History("unknown").planned(), unknown, 1))
    with pytest.raises(InstanceNotFoundError):
        await log.acquire_lease(unknown)
    with pytest.raises(InstanceNotFoundError):
        await log.delete(unknown)
    assert await log.last_position() == 0


async def test_an_id_is_found_with_each_tenant_that_has_it(log: EventLog) -> None:
    refs = [await create(log, requested("same"), tenant) for tenant in ("b", "", "a")]
    await create(log, requested("other"), "c")
    assert [head.ref for head in await log.find("same")] == [refs[1], refs[2], refs[0]]
    assert [head.ref.key.tenant for head in await log.find("other")] == ["c"]
    assert await log.find("sam") == []


async def test_a_used_id_is_rejected_and_the_first_instance_stays(log: EventLog) -> None:
    ref = await create(log, History("a"))
    with pytest.raises(AlreadyExistsError) as caught:
        await log.create([creation(History("a"))])
    assert caught.value.reason == "INSTANCE_ALREADY_EXISTS"
    with pytest.raises(AlreadyExistsError, match="there is an instance 'a' already"):
        await log.check_creation(creation(History("a")))
    assert await events(log, ref) == History("a").events


async def test_concurrent_creations_with_one_request_id_make_one_instance(log: EventLog) -> None:
    outcomes = [
        outcome
        for (outcome,) in await asyncio.gather(
            *(log.create([creation(requested(f"i{number}", "key", b"same"))]) for number in range(100))
        )
    ]
    (winner,) = [outcome.ref for outcome in outcomes if isinstance(outcome, Created)]
    assert [outcome.ref for outcome in outcomes if isinstance(outcome, Duplicate)] == [winner] * 99
    assert await ids(log) == [winner.id]
    assert await log.check_creation(creation(requested("late", "key", b"same"))) == Duplicate(winner)
    assert await log.check_creation(creation(requested("late", "another", b"same"))) is None


async def test_a_request_id_with_another_payload_is_rejected(log: EventLog) -> None:
    await create(log, requested("a", "key", b"one"))
    with pytest.raises(AlreadyExistsError) as caught:
        await log.create([creation(requested("b", "key", b"two"))])
    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert caught.value.metadata == {"id": "a"}


async def test_a_rejected_creation_does_not_fail_others_in_its_commit(log: EventLog) -> None:
    results = await asyncio.gather(
        *(log.create([creation(History(name))]) for name in ("a", "b", "a", "c")), return_exceptions=True
    )
    assert [isinstance(result, AlreadyExistsError) for result in results] == [False, False, True, False]
    assert await ids(log) == ["c", "b", "a"]


async def test_a_rejected_append_does_not_fail_others_in_its_commit(log: EventLog) -> None:
    history, other = History("a").planned(), History("b")
    ref = await create(log, history)
    other_ref = await create(log, other)
    results = await asyncio.gather(
        log.append(append(history, ref, 1)),
        log.append(append(other.planned(), other_ref, 1)),
        return_exceptions=True,
    )
    assert isinstance(results[0], SequenceConflictError)
    assert results[1] is None
    assert await events(log, ref) == history.events
    assert await events(log, other_ref) == other.events


async def test_events_that_leave_a_gap_are_rejected(log: EventLog) -> None:
    history = History("a")
    ref = await create(log, history)
    history.planned()
    for gap in (history.events[2:], history.events[1:2] + history.events[3:], history.events[1:2] * 2, []):
        with pytest.raises(StorageError):
            await log.append(append(history, ref, 1)._replace(events=gap))
    assert await events(log, ref) == history.events[:1]
    for gap in (history.events[1:], [], history.events[:1] + history.events[2:]):
        with pytest.raises(StorageError):
            await log.create([creation(History("b"))._replace(events=gap)])
    assert await ids(log) == ["a"]
    await log.append(append(history, ref, 1))
    assert await events(log, ref) == history.events


async def test_positions_follow_the_order_of_commits_over_all_instances(log: EventLog) -> None:
    histories = [History(name) for name in "abc"]
    for history in histories:
        await create(log, history)
    for history in reversed(histories):
        await record(log, history.planned())
    pages = [page.events for page in await global_pages(log, limit=4)]
    found = [event for page in pages for event in page.events()]
    places = [place for page in pages for place in page.ordinals]
    assert places == sorted(set(places))
    assert [event.instance_id for event in found] == list("abc") + ["c"] * 5 + ["b"] * 5 + ["a"] * 5
    for name in "abc":
        mine = [event.sequence for event in found if event.instance_id == name]
        assert mine == list(range(1, 7))
    assert await log.last_position() == places[-1]


async def test_a_read_of_all_advances_past_events_that_do_not_match(log: EventLog) -> None:
    red = requested("red", team="red")
    await create(log, red)
    history = History("noise")
    await create(log, history)
    for _ in range(3000):
        attempt_planning(history)
    await record(log, history)
    await record(log, red.planned())
    pages = await global_pages(log, labels=[("team", "red")])
    assert [event for page in pages for event in page.events.events()] == red.events
    assert pages[-1].cursor == await log.last_position()
    assert len(pages) > 2  # no single read looks at everything
    assert all(not page.events.ordinals for page in await global_pages(log, labels=[("team", "none")]))


async def test_instances_are_listed_newest_first_by_state_and_label(log: EventLog) -> None:
    for number in range(6):
        await create(log, requested(f"i{number}", team="red" if number % 2 else "blue", stage="one"))
    await create(log, requested("ended", team="red").terminated())

    async def listed(**filters: object) -> list[str]:
        return [row.head.ref.id for row in (await log.list(Query(**filters))).rows]

    assert await listed() == ["ended", "i5", "i4", "i3", "i2", "i1", "i0"]
    assert await listed(states=[pb.STATE_TERMINATED]) == ["ended"]
    assert await listed(states=[pb.STATE_QUEUED, pb.STATE_RUNNING]) == ["i5", "i4", "i3", "i2", "i1", "i0"]
    assert await listed(labels=[("team", "red")]) == ["ended", "i5", "i3", "i1"]
    assert await listed(labels=[("team", "red"), ("stage", "one")]) == ["i5", "i3", "i1"]
    assert await listed(labels=[("team", "green")]) == []
    assert await listed(id_prefix="i") == ["i5", "i4", "i3", "i2", "i1", "i0"]
    assert await listed(id_prefix="i4") == ["i4"]
    assert await listed(id_prefix="i", states=[pb.STATE_TERMINATED]) == []
    assert await listed(id_prefix="I") == []
    assert [head.ref.id for head in await log.unfinished()] == ["i0", "i1", "i2", "i3", "i4", "i5"]


@pytest.mark.parametrize("scanned", [1, 3, 2048])
async def test_a_list_is_paged_to_its_end_whatever_the_filter_matches(
    scanned: int, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.log.sqlite.event_log._SCANNED_INSTANCES", scanned)
    await create(log, requested("oldest", team="red", stage="one").terminated())
    for number in range(12):
        await create(log, requested(f"i{number}", team="red" if number % 3 else "blue"))
    both, ended, red = [pb.STATE_QUEUED, pb.STATE_TERMINATED], [pb.STATE_TERMINATED], [("team", "red")]
    names = [f"i{number}" for number in reversed(range(12))] + ["oldest"]
    reds = [name for name in names if name == "oldest" or int(name[1:]) % 3]
    for query, expected in (
        (Query(), names),
        (Query(labels=red), reds),
        (Query(labels=red, states=ended), ["oldest"]),
        (Query(labels=red, states=both), reds),
        (Query(labels=red, states=[pb.STATE_PAUSED]), []),
        (Query(labels=[("team", "none")], states=both), []),
        (Query(labels=[*red, ("stage", "one")]), ["oldest"]),
        (Query(states=both), names),
        (Query(states=[*both, pb.STATE_QUEUED]), names),
        (Query(states=both, id_prefix="i1"), ["i11", "i10", "i1"]),
        (Query(id_prefix="old"), ["oldest"]),
        (Query(tenant="", states=ended), ["oldest"]),
        (Query(tenant="other", labels=red), []),
    ):
        for limit in (1, 2, 50):
            assert await page_through(log, query._replace(limit=limit)) == expected


async def page_through(log: EventLog, query: Query) -> list[str]:
    """Each instance of a list, page by page: each page goes on further down."""
    found: list[str] = []
    while True:
        page = await log.list(query)
        assert len(page.rows) <= query.limit
        found += [row.head.ref.id for row in page.rows]
        if not page.before:
            return found
        assert not query.before or page.before < query.before
        query = query._replace(before=page.before)


async def test_followers_at_one_position_share_reads_and_miss_no_event(log: EventLog) -> None:
    history = History("a")
    ref = await create(log, history)

    async def collect() -> list[int]:
        seen: list[int] = []
        async with aclosing(subscription.follow_all(log)) as steps:
            async for step in steps:
                if isinstance(step, Page):
                    seen += step.ordinals
                if len(seen) == 41:
                    return seen
        raise AssertionError

    followers = [asyncio.create_task(collect()) for _ in range(20)]
    for _ in range(20):
        before = len(history.events)
        attempt_planning(history)
        await log.append(append(history, ref, before))
    for seen in await asyncio.wait_for(asyncio.gather(*followers), 10):
        assert seen == list(range(1, 42))


async def test_paging_sees_each_instance_once_while_others_are_created(log: EventLog) -> None:
    for number in range(25):
        await create(log, History(f"old{number}"))
    seen: list[str] = []
    before = 0
    while True:
        page = await log.list(Query(before=before, limit=4))
        seen += [row.head.ref.id for row in page.rows]
        if not page.before:
            break
        before = page.before
        await create(log, History(f"new{len(seen)}"))
    assert seen == [f"old{number}" for number in reversed(range(25))]


async def steps(log: EventLog, instance_id: str, **options: object) -> list[subscription.Step]:
    head = await log.head(key(instance_id))
    return [step async for step in subscription.follow(log, head, **options)]


async def test_a_finished_instance_is_replayed_and_its_stream_ends(log: EventLog) -> None:
    history = History("a").planned().done("t1", "t2", "t3").completed()
    await create(log, history)
    *pages, end = await steps(log, "a")
    assert [event for page in pages for event in page.events()] == history.events
    assert end == subscription.End(pb.STATE_COMPLETE, len(history.events))
    assert await steps(log, "a", after=len(history.events)) == [end]


async def test_reading_resumes_exactly_after_the_last_sequence_seen(log: EventLog) -> None:
    history = History("a").planned().done("t1", "t2", "t3").completed()
    await create(log, history)
    for after in range(len(history.events)):
        page, _ = await steps(log, "a", after=after)
        assert page.ordinals[0] == after + 1


@pytest.mark.parametrize("after", [2, 99, -1])
async def test_reading_past_the_end_is_out_of_range(log: EventLog, after: int) -> None:
    await create(log, History("a"))
    with pytest.raises(SequenceOutOfRangeError) as caught:
        await steps(log, "a", after=after)
    assert caught.value.metadata == {"last_sequence": "1"}


@pytest.mark.parametrize("after", [2, 99, -1])
async def test_reading_all_past_the_end_is_out_of_range(log: EventLog, after: int) -> None:
    await create(log, History("a"))
    with pytest.raises(SequenceOutOfRangeError):
        await anext(subscription.follow_all(log, after=after))


async def test_without_follow_a_reader_stops_once_caught_up(log: EventLog) -> None:
    await create(log, History("a"))
    page, caught_up = await steps(log, "a", live=False)
    assert isinstance(page, Page)
    assert caught_up == subscription.CaughtUp(1)


async def test_a_quiet_stream_yields_heartbeats(log: EventLog) -> None:
    await create(log, History("a"))
    async with aclosing(subscription.follow(log, await log.head(key("a")), idle_s=0.001)) as reader:
        found = [await anext(reader) for _ in range(4)]
    assert found[1:] == [subscription.CaughtUp(1), subscription.Idle(1), subscription.Idle(1)]


async def test_closing_ends_readers_with_an_error_that_asks_them_to_resume(log: EventLog) -> None:
    await create(log, History("a"))
    async with aclosing(subscription.follow(log, await log.head(key("a")))) as reader:
        await anext(reader)
        await anext(reader)
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        log.notifier.close()
        with pytest.raises(UnavailableError, match="resume with the last sequence seen"):
            await waiting


async def test_all_instances_are_followed_live(log: EventLog) -> None:
    ref = await create(log, History("a").terminated())
    async with aclosing(subscription.follow_all(log)) as reader:
        first = await anext(reader)
        assert isinstance(first, Page)
        assert await anext(reader) == subscription.CaughtUp(first.ordinals[-1])
        await create(log, History("b"))
        page = await anext(reader)
        assert isinstance(page, Page)
        assert [event.instance_id for event in page.events()] == ["b"]
        await log.delete(ref)
        deletion = await anext(reader)
    assert isinstance(deletion, subscription.Deletion)
    assert deletion == (ref, await log.last_position())


async def test_instances_with_a_label_are_followed_alone(log: EventLog) -> None:
    for number in range(6):
        await create(log, requested(f"i{number}", team="red" if number % 2 else "blue", stage="one"))
    labels = [("team", "red"), ("stage", "one")]
    page, caught_up = [step async for step in subscription.follow_all(log, labels=labels, live=False)]
    assert isinstance(page, Page)
    assert [event.instance_id for event in page.events()] == ["i1", "i3", "i5"]
    assert page.ordinals == [2, 4, 6]
    assert caught_up == subscription.CaughtUp(6)
    rest, _ = [step async for step in subscription.follow_all(log, after=2, labels=labels, live=False)]
    assert isinstance(rest, Page)
    assert rest.ordinals == [4, 6]


async def test_a_reader_of_all_reports_the_position_scanned_though_nothing_matched(log: EventLog) -> None:
    for number in range(6):
        await create(log, requested(f"i{number}", team="blue"))
    found = [step async for step in subscription.follow_all(log, labels=[("team", "red")], live=False)]
    assert found == [subscription.CaughtUp(6)]


async def test_a_wait_for_the_end_returns_the_end_or_the_state_at_its_timeout(log: EventLog) -> None:
    history = History("a")
    await create(log, history)
    assert (await ended(log, "a", 0.001)).state == pb.STATE_QUEUED
    waiting = asyncio.create_task(ended(log, "a", 30))
    await asyncio.sleep(0)
    await record(log, history.terminated())
    assert (await waiting).state == pb.STATE_TERMINATED


@settings(max_examples=30, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.none() | st.floats(0, 1)), max_size=12))
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_readers_that_join_anywhere_see_every_event_once_and_in_order(
    kind: str, steps: list[tuple[int, bool, float | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = await open_log(kind, tmp_path_factory.mktemp("log"))
    history = History("a")
    ref = await create(log, history)
    readers = []

    async def follow(after: int) -> list[int]:
        seen: list[int] = []
        async for step in subscription.follow(log, await log.head(ref.key), after=after):
            if isinstance(step, Page):
                seen += [event.sequence for event in step.events()]
        return seen

    durable: asyncio.Future[None] | None = None
    for attempts, is_awaited, joins_at in steps:
        if joins_at is not None:
            after = int(joins_at * (await log.head(ref.key)).last_sequence)
            readers.append((after, asyncio.create_task(follow(after))))
        before = len(history.events)
        for _ in range(attempts):
            attempt_planning(history)
        durable = log.append(append(history, ref, before)._replace(previous=durable))
        if is_awaited:
            await durable
    before = len(history.events)
    await log.append(append(history.terminated(), ref, before)._replace(previous=durable))
    for after, reader in readers:
        assert await reader == list(range(after + 1, len(history.events) + 1))
    await log.aclose()


def test_the_fixture_for_a_created_instance_equals_its_fold() -> None:
    history = requested("a", "key", b"digest", team="red")
    assert history.refolded() == history.instance


def finished(instance_id: str, request_id: str = "", end_time_s: float = 0) -> History:
    history = requested(instance_id, request_id, b"x", team="red").terminated()
    if end_time_s:
        history.instance = replace(history.instance, end_time_s=end_time_s)
    return history


async def test_a_deleted_instance_is_gone_for_every_method(log: EventLog) -> None:
    ref = await create(log, finished("a", "key"))
    await create(log, requested("b", team="red"))
    await log.delete(ref)
    with pytest.raises(InstanceNotFoundError):
        await log.head(ref.key)
    with pytest.raises(InstanceNotFoundError):
        await log.read(ref, 0)
    with pytest.raises(InstanceNotFoundError):
        await log.delete(ref)
    page = await log.list(Query(labels=[("team", "red")]))
    assert [row.head.ref.id for row in page.rows] == ["b"]
    pages = await global_pages(log)
    assert {event.instance_id for page in pages for event in page.events.events()} == {"b"}


async def test_only_a_finished_instance_is_deleted(log: EventLog) -> None:
    history = History("a")
    ref = await create(log, history)
    with pytest.raises(
        StateForbidsError, match="is queued: it cannot be asked to delete; terminate it first"
    ):
        await log.delete(ref)
    assert await load(log, "a") == history.instance


async def test_positions_of_deleted_instances_are_not_reused(log: EventLog) -> None:
    ref = await create(log, finished("a"))
    last = await log.last_position()
    await log.delete(ref)
    assert await log.last_position() == last + 1
    new_ref = await create(log, finished("a", "key"))
    assert new_ref.incarnation > ref.incarnation
    page = await log.read_all(last + 1)
    assert list(page.events.ordinals) == [last + 2, last + 3]


async def test_an_id_and_a_request_id_are_free_again_after_deletion(log: EventLog) -> None:
    await create(log, finished("a", "key"))
    await delete(log, "a")
    history = finished("a", "key")
    assert await events(log, await create(log, history)) == history.events


async def test_a_reader_of_a_deleted_instance_gets_not_found_even_if_the_id_is_reused(log: EventLog) -> None:
    history = History("a")
    await create(log, history)
    async with aclosing(subscription.follow(log, await log.head(key("a")), idle_s=5)) as reader:
        assert isinstance(await anext(reader), Page)
        assert isinstance(await anext(reader), subscription.CaughtUp)
        await record(log, history.terminated())
        await delete(log, "a")
        await create(log, History("a").planned())
        with pytest.raises(InstanceNotFoundError):
            await anext(reader)


async def test_an_append_to_a_deleted_instance_is_rejected(log: EventLog) -> None:
    history = finished("a")
    ref = await create(log, history)
    before = len(history.events)
    await log.delete(ref)
    with pytest.raises(InstanceNotFoundError):
        await log.append(append(history.retried(), ref, before))
    assert await ids(log) == []


async def test_a_batch_of_creations_is_atomic(log: EventLog) -> None:
    await create(log, History("taken"))
    last = await log.last_position()
    for refused in (["a", "taken", "b"], ["a", "b", "a"]):
        with pytest.raises(AlreadyExistsError):
            await log.create([creation(History(name)) for name in refused])
        assert await ids(log) == ["taken"]
    assert await log.last_position() == last
    outcomes = await log.create([creation(History(name)) for name in "ab"])
    assert [(type(outcome), outcome.ref.id) for outcome in outcomes] == [(Created, "a"), (Created, "b")]
    assert await ids(log) == ["b", "a", "taken"]
    assert await events(log, outcomes[1].ref) == History("b").events


async def test_a_repeated_request_in_a_batch_does_not_prevent_the_other_creations(log: EventLog) -> None:
    await create(log, requested("first", "key", b"same"))
    histories = [
        requested("a"),
        requested("again", "key", b"same"),
        requested("b", "other", b"x"),
        requested("c", "other", b"x"),
    ]
    outcomes = await log.create([creation(history) for history in histories])
    assert [(type(outcome), outcome.ref.id) for outcome in outcomes] == [
        (Created, "a"),
        (Duplicate, "first"),
        (Created, "b"),
        (Duplicate, "b"),
    ]
    assert outcomes[3].ref == outcomes[2].ref
    assert await ids(log) == ["b", "a", "first"]


async def test_finished_instances_are_found_by_end_time(log: EventLog) -> None:
    for name, end_time_s in (("late", 300.0), ("early", 100.0), ("middle", 200.0)):
        await create(log, finished(name, end_time_s=end_time_s))
    await create(log, History("running"))

    async def before(time_s: float, limit: int = 9) -> list[str]:
        return [ref.id for ref in await log.finished_before(time_s, limit)]

    assert await before(250) == ["early", "middle"]
    assert await before(250, 1) == ["early"]
    assert await before(100) == []


async def test_a_retried_instance_is_not_listed_as_finished(log: EventLog) -> None:
    history = finished("a")
    await create(log, history)
    await record(log, history.retried())
    assert await log.finished_before(NOW_S + 10**6, 9) == []
    assert [head.ref.id for head in await log.unfinished()] == ["a"]


async def test_a_sweep_removes_instances_that_finished_before_the_limit(log: EventLog) -> None:
    for number in range(5):
        await create(log, finished(f"i{number}", end_time_s=100.0 + number))
    await create(log, History("running"))
    assert await sweep(log, 103) == 3
    assert await ids(log) == ["running", "i4", "i3"]


async def test_retention_continues_after_an_exception(
    log: EventLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await create(log, finished("old", end_time_s=100.0))
    find = log.finished_before

    async def fail_once(_: float, __: int) -> Sequence[InstanceRef]:
        monkeypatch.setattr(log, "finished_before", find)
        raise ZeroDivisionError

    monkeypatch.setattr(log, "finished_before", fail_once)
    retaining = asyncio.create_task(retain(log, 0.01))
    async with asyncio.timeout(5):
        while await ids(log):  # noqa: ASYNC110  a deletion notifies no reader here
            await asyncio.sleep(0.001)
    retaining.cancel()
    await asyncio.wait([retaining])
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError


async def test_a_page_ends_early_when_its_events_are_large(log: EventLog) -> None:
    history = History("a").planned(*(part(f"t{number}") for number in range(8)))
    for number in range(8):
        history.started(f"t{number}")
        history.then(
            work_completed(history.instance, WorkKey("subtask", f"t{number}"), "x" * 400_000, Usage())
        )
    await create(log, history)
    pages = []
    after = 0
    while True:
        pages.append(await read(log, "a", after))
        after = pages[-1].ordinals[-1]
        if pages[-1].at_end:
            break
    assert [event.sequence for page in pages for event in page.events()] == list(range(1, after + 1))
    assert after == len(history.events)
    assert max(len(page.data) for page in pages) < 1_500_000
    assert len(pages) >= 3
    everything = await global_pages(log)
    assert [event for page in everything for event in page.events.events()] == history.events
    assert max(len(page.events.data) for page in everything) < 1_500_000


async def test_a_log_tells_its_size_and_how_many_instances_are_in_each_state(log: EventLog) -> None:
    for number in range(40):
        await create(log, History(f"i{number}", instructions="y" * 30_000))
    await create(log, History("ended").terminated())
    counts = {state: count for state, count in (await log.count_by_state()).items() if count}
    assert counts == {pb.STATE_QUEUED: 40, pb.STATE_TERMINATED: 1}
    assert 1_200_000 < log.size_bytes() < 10_000_000
    assert log.is_writable


async def test_a_closed_log_has_written_its_queue_and_rejects_further_writes(log: EventLog) -> None:
    history = History("a").terminated()
    queued = log.create([creation(history)])
    await log.aclose()
    (created,) = await queued
    assert isinstance(created, Created)
    for refused in (
        log.create([creation(History("b"))]),
        log.append(append(history.retried(), created.ref, 2)),
        log.delete(created.ref),
        log.acquire_lease(created.ref),
    ):
        with pytest.raises(UnavailableError, match="stopping") as caught:
            await refused
        assert caught.value.reason == "SHUTTING_DOWN"
