import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.histories import NOW_S, History, at, part, states

from orchestrator.core import lifecycle, view
from orchestrator.core.commands import CallModel, Record, WakeAfter, model_for
from orchestrator.core.decider import decide
from orchestrator.core.events import (
    call_failed,
    call_started,
    calls_interrupted,
    plan_completed,
    work_completed,
)
from orchestrator.core.instance import (
    COMPLETED,
    IN_PROGRESS,
    PAUSED,
    PLANNING,
    SYNTHESIS,
    TERMINAL,
    Subtask,
    Usage,
    WorkKey,
)
from orchestrator.core.plan import Plan
from orchestrator.errors import ModelError
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1.event_pb2 import Event

LATER_S = NOW_S + 1e6
PAUSE = Event(instance_pause_requested=event_pb2.InstancePauseRequested())


def commands(history: History, now_s: float = LATER_S) -> list:
    return list(decide(history.instance, at(now_s)))


def recorded(history: History) -> Event:
    (command,) = commands(history)
    assert isinstance(command, Record)
    return command.events[-1]


def fail(history: History, call: WorkKey, error: ModelError) -> History:
    history.then(call_started(history.instance, call))
    now_s = history.instance.update_time_s + 1  # what `then` gives the next event
    return history.then(call_failed(history.instance, call, error, Usage(), now_s=now_s, jitter=0))


FATAL = ModelError("REQUEST_REJECTED", "no", retryable=False)
FLAKY = ModelError("OVERLOADED", "later", retryable=True)


def test_planning_is_the_first_command() -> None:
    assert commands(History()) == [CallModel(PLANNING)]


def test_a_plan_in_progress_is_not_started_twice() -> None:
    history = History()
    assert commands(history.then(call_started(history.instance, PLANNING))) == []


def test_a_plan_of_the_client_is_recorded_without_a_call() -> None:
    history = History(subtasks=[instance_pb2.Subtask(id="x", instructions="do x")])
    (command,) = commands(history)
    history.then(*command.events)
    assert commands(history) == [CallModel(WorkKey("subtask", "x"))]
    assert history.instance.subtasks["x"].title == "x"


def test_independent_subtasks_start_together_and_dependents_wait() -> None:
    history = History().planned(part("a"), part("b"), part("c", "a"))
    assert commands(history) == [CallModel(WorkKey("subtask", "a")), CallModel(WorkKey("subtask", "b"))]


def test_a_dependent_starts_the_moment_its_own_dependencies_are_done() -> None:
    history = History().planned(part("a"), part("b"), part("c", "a")).started("b").done("a")
    assert commands(history) == [CallModel(WorkKey("subtask", "c"))]


def test_no_more_run_in_parallel_than_allowed() -> None:
    history = History(max_parallel_subtasks=2).planned(*map(part, "abcd"))
    assert commands(history) == [CallModel(WorkKey("subtask", "a")), CallModel(WorkKey("subtask", "b"))]
    history.started("a")
    assert commands(history) == [CallModel(WorkKey("subtask", "b"))]
    history.started("b")
    assert commands(history) == []


def test_a_retry_waits_for_its_delay() -> None:
    history = fail(History(), PLANNING, FLAKY)
    failed_s = history.instance.update_time_s
    assert commands(history, now_s=failed_s + 0.25) == [WakeAfter(0.75)]
    assert commands(history, now_s=failed_s + 1) == [CallModel(PLANNING)]


def test_the_endpoints_retry_after_is_a_lower_bound() -> None:
    slow = ModelError("RATE_LIMITED", "slow down", retryable=True, retry_after_s=30)
    history = fail(History(), PLANNING, slow)
    assert commands(history, now_s=history.instance.update_time_s) == [WakeAfter(30)]


@pytest.mark.parametrize(("max_delay_s", "longest_s"), [(1, 600), (3000, 3000)])
def test_no_recorded_wait_exceeds_the_policys_longest(max_delay_s: int, longest_s: float) -> None:
    policy = instance_pb2.RetryPolicy()
    policy.max_delay.seconds = max_delay_s
    history = History(retry=policy)
    history.then(call_started(history.instance, PLANNING))
    failed = event_pb2.PlanningFailed(attempt=1)
    failed.retry_time.seconds = int(NOW_S) + 86400
    history.then(Event(planning_failed=failed))
    assert commands(history, now_s=history.instance.update_time_s) == [WakeAfter(longest_s)]


def test_an_endpoints_wait_is_capped_at_the_longest_wait() -> None:
    years = ModelError("RATE_LIMITED", "slow down", retryable=True, retry_after_s=1e9)
    history = fail(History(), PLANNING, years)
    assert history.instance.planning.retry_time_s - history.instance.update_time_s == 600


def test_planning_fails_after_the_last_attempt() -> None:
    history = History(retry=instance_pb2.RetryPolicy(max_attempts=2))
    for _ in range(2):
        fail(history, PLANNING, FLAKY)
    error = recorded(history).instance_errored.error
    assert error.reason == "PLANNING_FAILED"
    assert error.message == "planning failed after 2 attempts: later"


@pytest.mark.parametrize("reason", ["MODEL_REFUSED", "MODEL_UNAUTHENTICATED", "MODEL_NOT_FOUND"])
def test_a_reason_that_names_the_mend_becomes_the_instances_error(reason: str) -> None:
    history = fail(History(), PLANNING, ModelError(reason, "mend me", retryable=False))
    assert recorded(history).instance_errored.error.reason == reason


def test_a_call_goes_to_its_workers_model_or_else_to_the_small_model() -> None:
    catalogue = [
        instance_pb2.Worker(name="coder", model="scripted/codex"),
        instance_pb2.Worker(name="writer", use="writes prose"),
    ]
    names = {"a": "coder", "b": "writer", "c": "unknown", "d": "", "e": "Coder"}
    history = History(workers=catalogue).planned(*(part(key)._replace(worker=names[key]) for key in names))
    models = {key: model_for(history.instance, WorkKey("subtask", key)) for key in names}
    assert models == {"a": "scripted/codex", **dict.fromkeys("bcde", "scripted/small")}
    assert call_started(history.instance, WorkKey("subtask", "a")).subtask_started.model == "scripted/codex"
    assert call_started(history.instance, WorkKey("subtask", "c")).subtask_started.model == "scripted/small"
    assert model_for(history.instance, PLANNING) == "scripted/big"
    assert model_for(history.instance, SYNTHESIS) == "scripted/big"


def test_siblings_of_a_failed_subtask_continue_and_its_dependents_are_skipped() -> None:
    history = fail(
        History().planned(part("a"), part("b"), part("c", "a"), part("d", "c")),
        WorkKey("subtask", "a"),
        FATAL,
    )
    skipped = recorded(history).subtask_skipped
    assert (skipped.subtask_id, skipped.error.reason) == ("c", "DEPENDENCY_FAILED")
    assert skipped.error.message == "it depends on a, which failed"
    history.then(recorded(history))
    history.then(recorded(history))
    assert states(history.instance) == ["FAILED", "PENDING", "SKIPPED", "SKIPPED"]
    assert commands(history) == [CallModel(WorkKey("subtask", "b"))]


def test_a_failed_subtask_errs_the_instance_once_its_siblings_are_done() -> None:
    history = fail(History().planned(part("a"), part("b")), WorkKey("subtask", "a"), FATAL).done("b")
    error = recorded(history).instance_errored.error
    assert (error.reason, error.subtask_id) == ("SUBTASK_FAILED", "a")


def test_a_tolerated_failure_does_not_prevent_the_synthesis() -> None:
    history = fail(
        History(tolerated_failures=1).planned(part("a"), part("b")), WorkKey("subtask", "a"), FATAL
    ).done("b")
    assert commands(history) == [CallModel(SYNTHESIS)]


def test_with_no_completed_subtask_there_is_no_synthesis() -> None:
    history = fail(History(tolerated_failures=9).planned(part("a")), WorkKey("subtask", "a"), FATAL)
    assert recorded(history).instance_errored.error.reason == "SUBTASK_FAILED"


def test_an_instance_with_a_synthesis_is_complete() -> None:
    history = History().planned(part("a")).done("a")
    assert commands(history) == [CallModel(SYNTHESIS)]
    history.then(call_started(history.instance, SYNTHESIS))
    history.then(work_completed(history.instance, SYNTHESIS, "result", Usage(1, 1, 1)))
    assert recorded(history).instance_completed.usage.model_calls == 3


def test_pausing_starts_nothing_new_and_lets_running_calls_finish() -> None:
    history = History().planned(part("a"), part("b")).started("a").then(PAUSE)
    assert commands(history) == []
    history.then(work_completed(history.instance, WorkKey("subtask", "a"), "out", Usage()))
    assert recorded(history).WhichOneof("payload") == "instance_paused"
    history.then(recorded(history))
    assert commands(history) == []
    history.then(Event(instance_resumed=event_pb2.InstanceResumed()))
    assert commands(history) == [CallModel(WorkKey("subtask", "b"))]


def test_a_spent_token_budget_lets_running_calls_finish_and_then_errs() -> None:
    history = History(budget=instance_pb2.Budget(max_tokens=30)).planned(part("a"), part("b"))
    assert recorded(history).instance_errored.error.reason == "BUDGET_EXCEEDED"
    history = History(budget=instance_pb2.Budget(max_tokens=31)).planned(part("a"), part("b"), part("c"))
    history.started("b").done("a")
    assert commands(history) == []
    history.then(work_completed(history.instance, WorkKey("subtask", "b"), "out", Usage(1, 1, 1)))
    assert recorded(history).instance_errored.error.reason == "BUDGET_EXCEEDED"


def test_a_passed_deadline_errs() -> None:
    budget = instance_pb2.Budget()
    budget.max_duration.seconds = 60
    history = History(budget=budget).planned(part("a"))
    assert commands(history, now_s=history.instance.start_time_s + 59) == [CallModel(WorkKey("subtask", "a"))]
    (command,) = commands(history, now_s=history.instance.start_time_s + 60)
    assert command.events[0].instance_errored.error.reason == "DEADLINE_EXCEEDED"


def test_a_crash_records_interrupted_calls_and_counts_no_failure() -> None:
    history = (
        History(retry=instance_pb2.RetryPolicy(max_attempts=1)).planned(part("a"), part("b")).started("a")
    )
    history.then(*calls_interrupted(history.instance, NOW_S, by_crash=True))
    work = history.instance.subtasks["a"].work
    assert (work.error.reason, work.attempt, work.failures) == ("INTERRUPTED", 1, 0)
    assert (work.usage, history.instance.usage.model_calls) == (Usage(model_calls=1), 2)
    assert commands(history) == [CallModel(WorkKey("subtask", "a")), CallModel(WorkKey("subtask", "b"))]
    assert calls_interrupted(history.instance, NOW_S, by_crash=True) == ()


def crashed(history: History) -> History:
    return history.then(*calls_interrupted(history.instance, NOW_S, by_crash=True))


def test_an_instance_at_which_the_service_crashes_repeatedly_is_paused_with_the_reason() -> None:
    history = History().planned(part("a"), part("b"))
    for _ in range(2):
        crashed(history.started("a"))
        assert CallModel(WorkKey("subtask", "a")) in commands(history)
    crashed(history.started("a"))
    cause = recorded(history).instance_pause_requested.cause
    assert (cause.reason, cause.subtask_id) == ("CRASHED_REPEATEDLY", "a")
    assert "3 times in a row during subtask a" in cause.message
    history.then(*commands(history)[0].events)
    history.then(*commands(history)[0].events)
    assert history.instance.state == PAUSED
    assert view.instance(history.instance).waiting_reason == cause.message
    history.then(*lifecycle.resume(history.instance))
    assert CallModel(WorkKey("subtask", "a")) in commands(
        history
    )  # a person wants it tried again: three times more
    assert view.instance(history.instance).waiting_reason == ""


def test_completed_work_between_crashes_resets_their_count() -> None:
    history = History().planned(part("a"), part("b"), part("c"))
    for done in ("b", "c"):
        crashed(crashed(history.started("a")).started("a"))
        history.done(done)
    crashed(crashed(history.started("a")).started("a"))
    assert commands(history) == [CallModel(WorkKey("subtask", "a"))]


def test_orderly_stops_are_not_counted_as_crashes_and_a_failed_call_resets_the_count() -> None:
    history = History().planned(part("a"))
    for _ in range(5):
        history.started("a").then(*calls_interrupted(history.instance, NOW_S, by_crash=False))
    crashed(crashed(history.started("a")).started("a"))
    history.started("a").then(
        call_failed(history.instance, WorkKey("subtask", "a"), FLAKY, Usage(), now_s=NOW_S, jitter=0.5)
    )
    crashed(history.started("a"))
    assert history.instance.crashes == {WorkKey("subtask", "a"): 1}


def test_the_number_of_tolerated_crashes_is_configurable() -> None:
    history = History(retry=instance_pb2.RetryPolicy(max_crashes=1)).planned(part("a"))
    crashed(history.started("a"))
    assert recorded(history).instance_pause_requested.cause.reason == "CRASHED_REPEATEDLY"


def test_an_instance_that_has_ended_waits_or_is_paused_gets_no_command() -> None:
    assert commands(History().planned(part("a")).done("a").completed()) == []
    assert commands(History(review_plan=True).planned(part("a"))) == []


@st.composite
def plans(draw: st.DrawFn) -> tuple:
    count = draw(st.integers(1, 8))
    subtasks = []
    for number in range(count):
        needs = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        subtasks.append(part(f"t{number}", *(f"t{need}" for need in sorted(needs))))
    return tuple(draw(st.permutations(subtasks)))


@given(
    plan=plans(),
    parallel=st.integers(1, 4),
    tolerated=st.integers(0, 3),
    data=st.data(),
)
def test_every_instance_ends_and_no_result_is_paid_for_twice_whatever_happens(
    plan: tuple[Subtask, ...], parallel: int, tolerated: int, data: st.DataObject
) -> None:
    history = History(max_parallel_subtasks=parallel, tolerated_failures=tolerated)
    now_s = NOW_S
    crashes = 5
    paid: list[str] = []
    running: set = set()
    for turn in itertools.count():
        if history.instance.state in TERMINAL:
            break
        assert turn < 1000, (history.instance, decide(history.instance, at(now_s)))
        for command in decide(history.instance, at(now_s)):
            match command:
                case Record(events):
                    history.then(*events)
                    break
                case WakeAfter(wait_s):
                    now_s += 0 if running else wait_s
                case CallModel(call):
                    history.then(call_started(history.instance, call))
                    running.add(call)
        at_work = [name for name, s in history.instance.subtasks.items() if s.work.state == IN_PROGRESS]
        assert len(at_work) <= parallel
        if history.instance.state == PAUSED:
            assert max(history.instance.crashes.values()) == 3
            history.then(*lifecycle.resume(history.instance))
        if not running:
            continue
        if crashes and data.draw(st.integers(0, 9), label="crash") == 9:
            crashes -= 1
            history.instance = history.refolded()
            by_crash = data.draw(st.booleans(), label="by_crash")
            history.then(*calls_interrupted(history.instance, now_s, by_crash=by_crash))
            running.clear()
            continue
        call = data.draw(st.sampled_from(sorted(running, key=str)), label="ends")
        running.discard(call)
        outcome = data.draw(st.sampled_from(["done", "done", "done", "flaky", "fatal"]), label="outcome")
        if outcome != "done":
            error = FLAKY if outcome == "flaky" else FATAL
            history.then(call_failed(history.instance, call, error, Usage(), now_s=now_s, jitter=0.5))
        elif call == PLANNING:
            history.then(*plan_completed(history.instance, Plan("", plan), Usage(1, 1, 1)))
        elif call != SYNTHESIS:
            paid.append(call.subtask_id)
            needs = history.instance.subtasks[call.subtask_id].depends_on
            assert all(history.instance.subtasks[name].work.state == COMPLETED for name in needs)
            history.then(work_completed(history.instance, call, "out", Usage(1, 1, 1)))
        else:
            history.then(work_completed(history.instance, SYNTHESIS, "result", Usage(1, 1, 1)))
    assert len(paid) == len(set(paid))
    failed = states(history.instance).count("FAILED")
    if history.instance.state == instance_pb2.STATE_COMPLETE:
        assert failed <= tolerated
    assert "RUNNING" not in states(history.instance)
    assert [event.sequence for event in history.events] == list(range(1, len(history.events) + 1))
    assert history.refolded() == history.instance
