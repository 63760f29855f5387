"""Whose turn it is: a bound on open model calls that is shared fairly."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """At most `limit` calls at once; those that wait are let in one from each instance in turn.

    So an instance with many subtasks cannot starve others (round robin; Nagle, RFC 970).
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, instance_id: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the block runs."""
        await self._enter(instance_id)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, instance_id: str) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(instance_id, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._leave()  # it was given to one who has gone
            raise

    def _leave(self) -> None:
        while self._waiting:
            instance_id = next(iter(self._waiting))
            turns = self._waiting.pop(instance_id)
            turn = turns.popleft()
            if turns:
                self._waiting[instance_id] = turns  # behind all others
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1
