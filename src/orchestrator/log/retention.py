"""Finished instances are removed once they have been kept long enough."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Final, Never

from orchestrator.errors import InstanceNotFoundError, StateForbidsError, UnavailableError
from orchestrator.log.base import EventLog

_LOGGER: Final = logging.getLogger(__name__)
_AT_A_TIME: Final = 100
_LONGEST_SLEEP_S: Final = 3600.0


async def retain(log: EventLog, retention_s: float, now_s: Callable[[], float] = time.time) -> Never:
    """Remove what finished over `retention_s` seconds ago, now and then, until cancelled."""
    while True:
        try:
            if removed := await sweep(log, now_s() - retention_s):
                _LOGGER.info("removed %d instances that finished over %g s ago", removed, retention_s)
        except (UnavailableError, sqlite3.Error) as error:
            _LOGGER.warning("retention waits: %s", error)
        except Exception:  # the instances at work go on without it
            _LOGGER.exception("retention failed, and is tried again")
        await asyncio.sleep(min(retention_s / 10, _LONGEST_SLEEP_S))


async def sweep(log: EventLog, before_s: float) -> int:
    """Remove what finished before a time, in seconds since the epoch, and count it.

    After each deletion it waits for as long as that took: half of the time the log is others' alone.
    """
    removed = 0
    loop = asyncio.get_running_loop()
    while expired := await log.finished_before(before_s, _AT_A_TIME):
        for ref in expired:
            begin_s = loop.time()
            try:
                await log.delete(ref)
                removed += 1
            except (InstanceNotFoundError, StateForbidsError):
                continue  # a client was faster, to delete it or to let it go on
            await asyncio.sleep(loop.time() - begin_s)
    return removed
