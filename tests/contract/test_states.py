"""What a store of folded states promises over any log."""

import asyncio

import pytest
from support.histories import History
from support.logs import create, delete, key, record

from orchestrator.core.identity import InstanceRef
from orchestrator.errors import InstanceNotFoundError
from orchestrator.log.base import EventLog, Head, Page
from orchestrator.log.states import StateStore


class CountingLog:
    """A log that counts what is read, and can be held up behind a read."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.read_after: list[int] = []
        """The sequence that each read began behind."""
        self.has_read, self.may_go_on = asyncio.Event(), asyncio.Event()
        self.may_go_on.set()

    async def head(self, of: tuple[str, str]) -> Head:
        return await self._log.head(key(of[1]))

    async def read(self, ref: InstanceRef, after: int) -> Page:
        self.read_after.append(after)
        page = await self._log.read(ref, after)
        self.has_read.set()
        await self.may_go_on.wait()
        return page


@pytest.fixture
def counting(log: EventLog) -> CountingLog:
    return CountingLog(log)


def store(log: CountingLog, **limits: int) -> StateStore:
    return StateStore(log, **limits)  # type: ignore[arg-type]  the two methods that it uses


async def test_a_cached_state_is_reused_and_updated_with_new_events(
    log: EventLog, counting: CountingLog
) -> None:
    states = store(counting)
    history = History("a").planned()
    await create(log, history)
    for _ in range(3):
        assert (await states.load(key("a"))).instance == history.instance
    assert counting.read_after == [0]
    await record(log, history.done("t1"))
    assert (await states.load(key("a"))).instance == history.instance
    assert counting.read_after == [0, 6]


async def test_a_state_that_its_owner_stores_is_not_read(log: EventLog, counting: CountingLog) -> None:
    states = store(counting)
    history = History("a")
    ref = await create(log, history)
    states.keep(ref, history.instance)
    old = history.instance
    await record(log, history.planned())
    states.keep(ref, history.instance)
    states.keep(ref, old)  # late: an older one changes nothing
    assert await states.load(key("a")) == (ref, history.instance)
    assert counting.read_after == []


async def test_a_state_of_a_deleted_instance_is_never_returned_for_its_id(
    log: EventLog, counting: CountingLog
) -> None:
    states = store(counting)
    await create(log, History("a").planned().terminated())
    await states.load(key("a"))
    await delete(log, "a")
    with pytest.raises(InstanceNotFoundError):
        await states.load(key("a"))
    new = History("a", instructions="another")
    ref = await create(log, new)
    assert await states.load(key("a")) == (ref, new.instance)
    assert counting.read_after == [0, 0]


async def test_a_late_read_does_not_replace_a_newer_state(log: EventLog, counting: CountingLog) -> None:
    states = store(counting)
    history = History("a")
    ref = await create(log, history)
    counting.may_go_on.clear()
    slow = asyncio.create_task(states.load(key("a")))
    await counting.has_read.wait()
    await record(log, history.planned())
    states.keep(ref, history.instance)
    counting.may_go_on.set()
    assert (await slow).instance.last_sequence >= 1
    counting.read_after.clear()
    assert (await states.load(key("a"))).instance == history.instance
    assert counting.read_after == []  # the late one has not replaced the newer


@pytest.mark.parametrize("is_finished", [True, False])
async def test_the_most_recently_used_states_are_kept_up_to_the_limit(
    log: EventLog, counting: CountingLog, is_finished: bool
) -> None:
    states = store(counting, max_characters=3 * 5000)
    for name in "abcd":
        history = History(name)
        await create(log, history.terminated() if is_finished else history)

    async def is_kept(name: str) -> bool:
        counting.read_after.clear()
        await states.load(key(name))
        return not counting.read_after

    assert [await is_kept(name) for name in "abc"] == [False] * 3
    assert await is_kept("a")
    assert not await is_kept("d")  # in place of b, which was used longest ago
    assert await is_kept("a")
    assert not await is_kept("b")


async def test_states_count_by_the_length_of_their_texts_and_one_is_always_kept(
    log: EventLog, counting: CountingLog
) -> None:
    states = store(counting, max_characters=20_000)
    await create(log, History("small"))
    await create(log, History("large", instructions="x" * 30_000))
    for name, read_after in (("small", [0]), ("large", [0]), ("large", []), ("small", [0]), ("small", [])):
        counting.read_after.clear()
        await states.load(key(name))
        assert counting.read_after == read_after


async def test_forgotten_states_free_their_room(log: EventLog, counting: CountingLog) -> None:
    states = store(counting, max_characters=2 * 5000)
    refs = [await create(log, History(name)) for name in "abc"]
    await states.load(key("a"))
    await states.load(key("b"))
    states.forget(refs[0])
    states.forget(refs[0])
    await states.load(key("c"))
    counting.read_after.clear()
    await states.load(key("b"))
    await states.load(key("c"))
    assert counting.read_after == []
