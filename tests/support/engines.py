"""The engine on a real SQLite log, with one provider as `scripted`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from orchestrator.engine.local import LocalEngine
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.models.base import ModelRequest, Models, Provider
from orchestrator.models.scripted import Answer, Scripted, plan_text


class GatedProvider:
    """A provider whose calls wait at a gate that the test opens; it counts them."""

    def __init__(self, plan: str = "", holds: str = "work") -> None:
        self.plan = plan or plan_text(3)
        self.holds = holds
        self.calls: list[str] = []
        self.open = 0
        self.max_open = 0
        self.gate = asyncio.Event()
        self.changed = asyncio.Condition()
        self.provider = Scripted(self._answer)

    async def _answer(self, request: ModelRequest) -> Answer:
        name = request.prompt.subtask_id or request.prompt.role
        self.calls.append(name)
        self.open += 1
        self.max_open = max(self.max_open, self.open)
        async with self.changed:
            self.changed.notify_all()
        try:
            if request.prompt.role == self.holds:
                await self.gate.wait()
        finally:
            self.open -= 1
            async with self.changed:
                self.changed.notify_all()
        return {"planning": self.plan, "work": f"out {name}", "synthesis": "done"}[request.prompt.role]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self.changed:
            await self.changed.wait_for(condition)


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
