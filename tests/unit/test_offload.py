"""Work is done beside the event loop, one piece after the other."""

import asyncio
import threading

import pytest

from orchestrator.offload import offload


async def test_the_loop_goes_on_meanwhile() -> None:
    has_turned = threading.Event()
    asyncio.get_running_loop().call_soon(has_turned.set)
    assert await offload(lambda: has_turned.wait(60))


async def test_no_two_pieces_of_work_run_at_once() -> None:
    running = 0

    def work() -> int:
        nonlocal running
        running += 1
        others = running
        threading.Event().wait(0)  # gives way
        running -= 1
        return others

    assert await asyncio.gather(*(offload(work) for _ in range(50))) == [1] * 50


async def test_what_the_work_raises_is_raised() -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await offload(work)
