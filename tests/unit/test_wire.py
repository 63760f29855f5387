import itertools

import pytest

from orchestrator.core import wire
from orchestrator.core.events import completed, failed, started
from orchestrator.core.instance import PLANNING, SYNTHESIS, Failure, Usage, WorkKey

SUBTASK = WorkKey("subtask", "t1")
PAYLOAD_OF = {
    "started": lambda key: started(key, 3, "scripted/m", "p-1"),
    "failed": lambda key: failed(key, 3, "scripted/m", Failure("OVERLOADED", "later"), Usage(1, 2, 1)),
    "completed": lambda key: completed(key, 3, "scripted/m", "text", Usage(1, 2, 1)),
}


@pytest.mark.parametrize(
    ("key", "step"),
    # A plan is recorded subtask by subtask.
    [(PLANNING, "started"), (PLANNING, "failed"), *itertools.product((SUBTASK, SYNTHESIS), PAYLOAD_OF)],
    ids=str,
)
def test_the_event_of_a_piece_of_work_identifies_it(key: WorkKey, step: str) -> None:
    event = PAYLOAD_OF[step](key)
    name = event.WhichOneof("payload")
    payload = getattr(event, name)
    assert name == getattr(wire.WORK_EVENTS[key.kind], step)
    assert (wire.work_key(payload), payload.attempt, payload.model) == (key, 3, "scripted/m")


def test_a_failure_names_its_own_subtask() -> None:
    cause = Failure("OVERLOADED", "later", "t9")
    assert failed(SUBTASK, 1, "m", cause, Usage()).subtask_failed.error.subtask_id == "t1"
    assert failed(PLANNING, 1, "m", cause, Usage()).planning_failed.error.subtask_id == ""


def test_a_failure_without_a_retry_has_no_retry_time_and_without_a_call_no_usage() -> None:
    bare = failed(SYNTHESIS, 1, "m", Failure("OVERLOADED", "later"), Usage()).synthesis_failed
    assert not bare.HasField("retry_time")
    assert not bare.HasField("usage")
    whole = failed(SYNTHESIS, 1, "m", Failure("OVERLOADED", "later"), Usage(1, 2, 1), 7.5).synthesis_failed
    assert whole.retry_time.ToMicroseconds() == 7_500_000
    assert whole.usage.input_tokens == 1
