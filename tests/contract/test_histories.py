"""Logs of released versions, made by running them (tests/histories/record.py), are read by this one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from support.logs import global_pages, ids, load

from orchestrator.core import view
from orchestrator.log.sqlite import SqliteEventLog
from orchestrator.v1.event_pb2 import Event

HISTORIES = Path(__file__).parents[1] / "histories"
ADDED_LATER = {"planning_continued", "subtask_continued", "synthesis_continued"}
RELEASES = sorted(path.name for path in HISTORIES.iterdir() if path.is_dir())


def restrict_to_recorded(folded: Any, recorded: Any) -> Any:
    """What is folded today, without the fields that the recording release did not have."""
    if isinstance(folded, dict) and isinstance(recorded, dict):
        return {
            name: restrict_to_recorded(value, recorded[name])
            for name, value in folded.items()
            if name in recorded
        }
    if isinstance(folded, list) and isinstance(recorded, list) and len(folded) == len(recorded):
        return [restrict_to_recorded(*pair) for pair in zip(folded, recorded, strict=True)]
    return folded


@pytest.mark.parametrize("release", RELEASES)
async def test_a_released_log_folds_to_the_same_instances(release: str, tmp_path: Path) -> None:
    recorded = json.loads((HISTORIES / release / "instances.json").read_text())
    log = await SqliteEventLog.open(Path(shutil.copy(HISTORIES / release / "log.db", tmp_path)))
    try:
        assert await ids(log) == list(reversed(recorded))
        for instance_id, resource in recorded.items():
            folded = MessageToDict(view.instance(await load(log, instance_id), full=True))
            assert restrict_to_recorded(folded, resource) == resource, instance_id
    finally:
        await log.aclose()


@pytest.mark.parametrize("release", RELEASES)
async def test_a_released_log_is_streamed_as_it_was_written(release: str, tmp_path: Path) -> None:
    log = await SqliteEventLog.open(Path(shutil.copy(HISTORIES / release / "log.db", tmp_path)))
    kinds: set[str] = set()
    try:
        last: dict[str, int] = {}
        for page in await global_pages(log):
            for event in page.events.events():
                assert event.sequence == last.get(event.instance_id, 0) + 1
                last[event.instance_id] = event.sequence
                kinds.add(str(event.WhichOneof("payload")))
    finally:
        await log.aclose()
    known = {field.name for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
    assert kinds == known - ADDED_LATER
