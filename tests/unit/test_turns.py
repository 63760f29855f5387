import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.turns import Turns


async def queue(turns: Turns, names: str, order: list[str]) -> list["asyncio.Task[None]"]:
    """A task for each letter, waiting for its instance's turn in this order."""

    async def take(name: str) -> None:
        async with turns.turn(name):
            order.append(name)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(take(name)) for name in names]
    await asyncio.sleep(0)
    return tasks


async def test_instances_that_wait_are_let_in_by_turns() -> None:
    turns, order = Turns(1), list[str]()
    async with turns.turn("x"):
        tasks = await queue(turns, "aaaabbc", order)
    await asyncio.gather(*tasks)
    assert "".join(order) == "abcabaa"


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_no_more_are_in_at_once_than_the_limit(limit: int) -> None:
    turns = Turns(limit)
    inside = most = 0

    async def take(name: str) -> None:
        nonlocal inside, most
        async with turns.turn(name):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(take(name) for name in "abcabcabcabc"))
    assert most == limit


@given(names=st.text("abc", min_size=1, max_size=12), gone=st.sets(st.integers(0, 11)), late=st.booleans())
async def test_whoever_leaves_the_queue_keeps_nobody_out(names: str, gone: set[int], late: bool) -> None:
    turns, order = Turns(2), list[str]()
    async with turns.turn("x"), turns.turn("y"):
        tasks = await queue(turns, names, order)
        if not late:
            for number in gone & set(range(len(tasks))):
                tasks[number].cancel()
            await asyncio.sleep(0)
    for number in gone & set(range(len(tasks))):
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(1), turns.turn("z"), turns.turn("z"):
        assert len(order) >= len(names) - len(gone)
