"""Which calls a stopping server still serves: those under way; all others are told to call again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from orchestrator.errors import UnavailableError
from orchestrator.waiting import is_set_within

_QUIET_S: Final = 0.05
"""A server that no call has come to for so long is stopped."""
_MAX_HOLD_S: Final = 0.7
"""How long a call waits at most to be told that the server stops."""
_RETRY_AFTER_S: Final = 1.0


class Drain:
    """Admits calls until it is closed, then holds them until it is released, and rejects them.

    gRPC cancels the calls that come to a server just as it stops. A client that was told to call again would
    do so at that very moment; one that still waits for its answer does not.
    """

    def __init__(self) -> None:
        self._open = 0
        self._is_closed = False
        self._changed = asyncio.Event()
        self._released = asyncio.Event()

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Count a call; raise UnavailableError (SHUTTING_DOWN) once the server stops."""
        if self._is_closed:
            self._changed.set()
            await is_set_within(self._released, _MAX_HOLD_S)
            raise UnavailableError(
                "SHUTTING_DOWN", "the service is stopping: call again", retry_after_s=_RETRY_AFTER_S
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            self._changed.set()

    async def close(self, grace_s: float) -> None:
        """Admit no more calls; return once all have ended and no more come, or after `grace_s` seconds."""
        self._is_closed = True
        with contextlib.suppress(TimeoutError):  # what is still there then is cancelled
            async with asyncio.timeout(grace_s):
                while self._open or await self._has_changed():
                    await self._has_changed()

    async def _has_changed(self) -> bool:
        self._changed.clear()
        return await is_set_within(self._changed, _QUIET_S)

    def release(self) -> None:
        """Reject the calls that are held: the server takes no more."""
        self._released.set()
