"""Run every contract test against each event log."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.logs import open_log

from orchestrator.log.base import EventLog


@pytest.fixture(params=["memory", "sqlite"])
async def log(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EventLog]:
    log = await open_log(request.param, tmp_path)
    yield log
    await log.aclose()
