"""What an instance is given outlives it in any log: files, and what it goes on from."""

from dataclasses import replace

import pytest
from support.histories import CONFIG, NOW_S, History
from support.logs import key

from orchestrator.core.create import NewInstance, go_on_from
from orchestrator.core.input_files import input_file
from orchestrator.core.instance import Predecessor
from orchestrator.log.base import Created, Creation, Duplicate, EventLog
from orchestrator.log.states import StateStore

MIB = 1024 * 1024
FILES = (
    input_file("src/app.py", "print('π')\r\n"),
    input_file("empty", ""),
    *(input_file(f"large-{number}.txt", "é" * (MIB // 2)) for number in range(8)),
)
NEW = NewInstance("new", "Go on", CONFIG, request_id="once", request_digest=b"d", files=FILES)


def creation(new: NewInstance) -> Creation:
    instance, events = new.begin(NOW_S)
    return Creation(key(new.id), events, instance)


async def test_files_and_a_predecessor_are_read_back_as_they_were_recorded(log: EventLog) -> None:
    finished = History("old").planned().done("t1", "t2", "t3").completed().instance
    new = go_on_from(NEW, finished)
    made = creation(new)
    [outcome] = await log.create([made])
    assert isinstance(outcome, Created)
    loaded = (await StateStore(log).load(key("new"))).instance
    assert loaded == made.instance
    assert loaded.files == FILES
    assert loaded.predecessor == Predecessor("old", "Build it", "the result")


async def test_a_creation_is_known_by_its_request_alone(log: EventLog) -> None:
    [outcome] = await log.create([creation(NEW)])
    again = Creation(key("other"), (), replace(NEW, id="other", files=()).identity)
    assert await log.check_creation(again) == Duplicate(outcome.ref)
    assert await log.check_creation(again._replace(instance=replace(NEW, request_id="").identity)) is None


@pytest.mark.parametrize("room", [20 * MIB, MIB])
async def test_files_count_for_the_room_of_states_that_are_kept(log: EventLog, room: int) -> None:
    await log.create([creation(NEW)])
    await log.create([creation(NewInstance("small", "x", CONFIG))])
    states = StateStore(log, max_characters=room)
    first = (await states.load(key("new"))).instance
    await states.load(key("small"))
    is_kept = (await states.load(key("new"))).instance is first
    assert is_kept == (room > MIB)
