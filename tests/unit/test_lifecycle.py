from collections.abc import Callable, Sequence
from functools import partial

import pytest
from support.histories import History, changes, part

from orchestrator.core import lifecycle
from orchestrator.core.instance import Instance
from orchestrator.core.state import TRANSITIONS
from orchestrator.errors import InvalidArgumentError, StateForbidsError
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1.event_pb2 import Event

NO_CHANGE = changes()
ACTIONS: dict[str, Callable[[Instance], Sequence[Event]]] = {
    "pause": lifecycle.pause,
    "resume": lifecycle.resume,
    "terminate": lifecycle.terminate,
    "retry": partial(lifecycle.retry, changes=NO_CHANGE),
    "restart": partial(lifecycle.restart, changes=NO_CHANGE),
    "review": partial(lifecycle.review, decision=event_pb2.DECISION_APPROVE, subtasks=[], feedback=""),
}


def paused() -> Event:
    return Event(instance_pause_requested=event_pb2.InstancePauseRequested())


def histories() -> dict[str, History]:
    """An instance in each state."""
    working = History().planned(part("a"), part("b")).started("a")
    return {
        "QUEUED": History(),
        "RUNNING": working,
        "WAITING_FOR_PAUSE": History().planned(part("a")).started("a").then(paused()),
        "PAUSED": History().then(paused(), Event(instance_paused=event_pb2.InstancePaused())),
        "WAITING": History(review_plan=True).planned(part("a")),
        "COMPLETE": History().planned(part("a")).done("a").completed(),
        "ERRORED": History().then(Event(instance_errored=event_pb2.InstanceErrored())),
        "TERMINATED": History().then(Event(instance_terminated=event_pb2.InstanceTerminated())),
    }


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("state", histories())
def test_an_action_is_allowed_exactly_where_the_table_allows_its_event(state: str, action: str) -> None:
    history = histories()[state]
    assert instance_pb2.State.Name(history.instance.state) == f"STATE_{state}"
    before = history.refolded()
    if lifecycle.allows(history.instance.state, action):
        events = ACTIONS[action](history.instance)
        kind = str(events[0].WhichOneof("payload"))
        assert history.then(*events).instance.state in TRANSITIONS[before.state][kind]
    else:
        with pytest.raises(StateForbidsError) as caught:
            ACTIONS[action](history.instance)
        assert caught.value.metadata["action"] == action
        assert history.instance == before


@pytest.mark.parametrize(
    ("state", "action", "words"),
    [
        ("RUNNING", "retry", "is running: it cannot be asked to retry; terminate it first"),
        ("RUNNING", "resume", "is running: it cannot be asked to resume; you can pause or terminate it"),
        ("RUNNING", "review", "; you can pause or terminate it"),
        ("PAUSED", "pause", "is paused: it cannot be asked to pause; you can resume or terminate it"),
        ("PAUSED", "restart", "; terminate it first"),
        ("WAITING", "resume", "; you can pause, terminate or review it"),
        ("COMPLETE", "terminate", "; you can restart, fork or delete it"),
        ("ERRORED", "pause", "; you can retry, restart, fork or delete it"),
    ],
)
def test_a_rejection_names_the_allowed_actions(state: str, action: str, words: str) -> None:
    with pytest.raises(StateForbidsError) as caught:
        ACTIONS[action](histories()[state].instance)
    assert str(caught.value).endswith(words)


def test_a_retry_changes_the_config_and_records_it_completely() -> None:
    (event,) = lifecycle.retry(histories()["ERRORED"].instance, changes(max_subtasks=3))
    assert event.instance_retried.config.max_subtasks == 3
    assert event.instance_retried.config.big_model == "scripted/big"


def test_a_review_may_edit_the_plan_or_reject_it_with_feedback() -> None:
    edited = [instance_pb2.Subtask(id="x", instructions="do x")]
    history = histories()["WAITING"]
    history.then(*lifecycle.review(history.instance, event_pb2.DECISION_APPROVE, edited, ""))
    assert list(history.instance.subtasks) == ["x"]
    history = histories()["WAITING"]
    history.then(*lifecycle.review(history.instance, event_pb2.DECISION_REJECT, [], "smaller parts"))
    assert not history.instance.subtasks
    assert history.instance.feedback == "smaller parts"


@pytest.mark.parametrize(
    ("decision", "subtasks", "feedback", "reason"),
    [
        (event_pb2.DECISION_UNSPECIFIED, [], "", "CONFIG_INVALID"),
        (event_pb2.DECISION_REJECT, [instance_pb2.Subtask(id="x", instructions="i")], "", "PLAN_INVALID"),
        (event_pb2.DECISION_APPROVE, [], "better", "CONFIG_INVALID"),
        (event_pb2.DECISION_APPROVE, [instance_pb2.Subtask(id="x")], "", "PLAN_INVALID"),
    ],
)
def test_an_inconsistent_review_is_rejected(
    decision: event_pb2.Decision.ValueType,
    subtasks: list[instance_pb2.Subtask],
    feedback: str,
    reason: str,
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        lifecycle.review(histories()["WAITING"].instance, decision, subtasks, feedback)
    assert caught.value.reason == reason
