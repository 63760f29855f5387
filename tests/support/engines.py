"""The engine on a real SQLite log, with one provider as `scripted`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from orchestrator.engine.local import LocalEngine
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models.base import Models, Provider


@asynccontextmanager
async def engine_on(
    path: Path, provider: Provider, **options: int
) -> AsyncIterator[tuple[LocalEngine, SqliteEventLog]]:
    log = await SqliteEventLog.open(path)
    try:
        async with LocalEngine.running(log, Models({"scripted": provider}), **options) as engine:
            yield engine, log
    finally:
        await log.aclose()
