from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.histories import NOW_S, History, at, changes, part

from orchestrator.core import lifecycle
from orchestrator.core.commands import CallModel
from orchestrator.core.decider import apply_outcomes, decide
from orchestrator.core.events import call_started
from orchestrator.core.instance import IN_PROGRESS, PLANNING, SYNTHESIS, Instance, Usage, WorkKey
from orchestrator.core.outcomes import CallEnded, Outcome, SubtasksStreamed, events_for
from orchestrator.core.plan import Plan
from orchestrator.core.state import fold
from orchestrator.errors import ModelError, StateForbidsError
from orchestrator.v1.event_pb2 import Event

USED = Usage(1, 2, 1, 0.5)
A, B = WorkKey("subtask", "a"), WorkKey("subtask", "b")
FLAKY = ModelError("OVERLOADED", "later", retryable=True)
FATAL = ModelError("REQUEST_REJECTED", "no", retryable=False)
PLAN = Plan("how", (part("a"), part("b"), part("c", "a")))


def kinds(events: Sequence[Event]) -> list[str]:
    return [str(event.WhichOneof("payload")) for event in events]


def planning() -> History:
    history = History()
    return history.then(call_started(history.instance, PLANNING))


def test_a_plan_is_recorded_subtask_by_subtask() -> None:
    events = events_for(planning().instance, CallEnded(PLANNING, 1, PLAN, USED), NOW_S)
    assert kinds(events) == ["subtask_planned"] * 3 + ["plan_completed"]
    assert events[-1].plan_completed.usage.cost_usd == 0.5


@pytest.mark.parametrize("key", [A, SYNTHESIS])
def test_a_text_completes_its_work(key: WorkKey) -> None:
    history = History().planned(part("a"))
    history = history.started("a") if key == A else history.done("a")
    if key == SYNTHESIS:
        history.then(call_started(history.instance, SYNTHESIS))
    (event,) = events_for(history.instance, CallEnded(key, 1, "the text", USED), NOW_S)
    history.then(event)
    assert history.instance.work(key).usage == USED
    texts = [
        history.instance.final_result,
        *(subtask.output for subtask in history.instance.subtasks.values()),
    ]
    assert "the text" in texts


def test_a_failure_is_retried_after_a_delay_that_starts_when_it_is_recorded() -> None:
    (event,) = events_for(planning().instance, CallEnded(PLANNING, 1, FLAKY, USED, jitter=0.5), NOW_S + 100)
    assert event.planning_failed.retry_time.ToMicroseconds() == int((NOW_S + 100.75) * 1e6)
    (event,) = events_for(planning().instance, CallEnded(PLANNING, 1, FATAL, USED), NOW_S)
    assert not event.planning_failed.HasField("retry_time")


def test_a_streamed_subtask_is_recorded_once_however_often_it_is_queued() -> None:
    history = planning()
    for number in (1, 1, 2, 3, 3, 2):
        streamed = SubtasksStreamed(1, PLAN.subtasks[:number], "how")
        history.then(*events_for(history.instance, streamed, NOW_S))
    assert list(history.instance.subtasks) == ["a", "b", "c"]
    assert kinds(events_for(history.instance, CallEnded(PLANNING, 1, PLAN, USED), NOW_S)) == [
        "plan_completed"
    ]


def test_a_plan_that_contradicts_its_streamed_subtasks_is_invalid_and_ends_their_calls() -> None:
    history = planning()
    history.then(*events_for(history.instance, SubtasksStreamed(1, (part("x"),), "how"), NOW_S)).started("x")
    events = events_for(history.instance, CallEnded(PLANNING, 1, PLAN, USED), NOW_S)
    assert kinds(events) == ["subtask_failed", "planning_failed"]
    assert events[0].subtask_failed.error.reason == "INTERRUPTED"
    failed = events[1].planning_failed
    assert (failed.error.reason, failed.usage.input_tokens) == ("PLAN_INVALID", 1)
    assert failed.HasField("retry_time")


@pytest.mark.parametrize(
    "outcome",
    [
        CallEnded(A, 1, "late", USED),
        CallEnded(A, 3, "from nowhere", USED),
        CallEnded(A, 1, FLAKY, USED),
        CallEnded(B, 1, "done twice", USED),
        CallEnded(WorkKey("subtask", "gone"), 1, "of another plan", USED),
        CallEnded(PLANNING, 1, PLAN, USED),
        CallEnded(SYNTHESIS, 1, "early", USED),
        SubtasksStreamed(1, (part("z"),), ""),
    ],
    ids=str,
)
def test_nothing_is_recorded_for_an_attempt_that_is_not_in_progress(outcome: Outcome) -> None:
    history = History().planned(part("a"), part("b")).started("a")
    history.then(*events_for(history.instance, CallEnded(A, 1, FLAKY, USED), NOW_S)).started("a").done("b")
    assert history.instance.work(A).attempt == 2
    assert events_for(history.instance, outcome, NOW_S) == ()
    assert apply_outcomes(history.instance, [outcome], NOW_S, at(NOW_S)) == (history.instance, ())


def test_consecutive_outcomes_see_the_changes_of_those_before_them() -> None:
    history = planning()
    history.then(*events_for(history.instance, SubtasksStreamed(1, PLAN.subtasks[:2], "how"), NOW_S))
    history.started("a").started("b")
    outcomes = [
        CallEnded(A, 1, "kept", USED),
        CallEnded(PLANNING, 1, FLAKY, USED),
        CallEnded(B, 1, "-", USED),
    ]
    instance, events = apply_outcomes(history.instance, outcomes, NOW_S, at(NOW_S))
    assert kinds(events) == ["subtask_completed", "subtask_failed", "planning_failed"]
    assert list(instance.reusable) == ["a"]


def test_consequences_without_a_call_are_recorded_with_their_outcomes() -> None:
    history = History().planned(part("a")).done("a")
    history.then(call_started(history.instance, SYNTHESIS))
    instance, events = apply_outcomes(
        history.instance, [CallEnded(SYNTHESIS, 1, "r", USED)], NOW_S, at(NOW_S)
    )
    assert kinds(events) == ["synthesis_completed", "instance_completed"]
    assert [event.sequence for event in events] == [
        history.instance.last_sequence + 1,
        instance.last_sequence,
    ]


STEERING = (
    lifecycle.pause,
    lifecycle.resume,
    lifecycle.terminate,
    lambda instance: lifecycle.retry(instance, changes()),
)


def foreign(instance: Instance, number: int) -> Sequence[Event]:
    """What another writer may append: something a client asks for, or the end of some attempt."""
    if number < len(STEERING):
        try:
            return STEERING[number](instance)
        except StateForbidsError:
            return ()
    under_way = [(key, work) for key, work in instance.works if work.state == IN_PROGRESS]
    if not under_way:
        return ()
    key, work = under_way[number % len(under_way)]
    result = PLAN if key == PLANNING else "theirs"
    return events_for(instance, CallEnded(key, work.attempt, FLAKY if number % 2 else result, USED), NOW_S)


@given(st.data())
def test_an_outcome_is_recorded_at_most_once_and_never_breaks_the_log(
    data: st.DataObject,
) -> None:
    history = History()
    asked: list[tuple[WorkKey, int]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        now_s = history.instance.update_time_s + 1000
        for command in decide(history.instance, at(now_s)):
            if isinstance(command, CallModel):
                history.then(call_started(history.instance, command.work))
                asked.append((command.work, history.instance.work(command.work).attempt))
        history.then(*foreign(history.instance, data.draw(st.integers(0, 9))))
        if not asked:
            continue
        key, attempt = data.draw(st.sampled_from(asked))
        text_or_plan = PLAN if key == PLANNING else "ours"
        outcome: Outcome = CallEnded(
            key, attempt, data.draw(st.sampled_from([text_or_plan, FLAKY, FATAL])), USED
        )
        if data.draw(st.booleans()):
            outcome = SubtasksStreamed(attempt, PLAN.subtasks[: data.draw(st.integers(1, 3))], "how")
        before = history.instance
        after, events = apply_outcomes(before, [outcome], now_s, at(now_s))
        assert fold(events, before) == after
        assert bool(events) == bool(events_for(before, outcome, now_s))
        assert apply_outcomes(after, [outcome], now_s, at(now_s)) == (after, ())
        history.then(*events)
    assert history.refolded() == history.instance
