import pytest
from support import histories
from support.histories import NOW_S, History, at, part

from orchestrator.core.commands import CallModel, Record
from orchestrator.core.decider import decide
from orchestrator.core.events import call_failed, call_started
from orchestrator.core.fork import fork
from orchestrator.core.instance import PLANNING, SYNTHESIS, Instance, Usage, WorkKey
from orchestrator.errors import InvalidArgumentError, ModelError, StateForbidsError
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1 import orchestrator_pb2 as api
from orchestrator.v1.event_pb2 import Event

APPROVED = Event(plan_reviewed=event_pb2.PlanReviewed(decision=event_pb2.DECISION_APPROVE))


def forked(source: History, stage: api.Stage.ValueType, **changes: object) -> tuple[Instance, list[str]]:
    """The fork after its first events, and their kinds."""
    new = fork(source.instance, stage, histories.changes(**changes), new_id="fork")
    instance, events = new.begin(NOW_S)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert {event.instance_id for event in events} == {"fork"}
    return instance, [str(event.WhichOneof("payload")) for event in events]


def complete() -> History:
    return History().planned(part("a"), part("b", "a")).done("a", "b").completed()


def test_a_fork_at_the_plan_keeps_only_the_prompt() -> None:
    instance, kinds = forked(complete(), api.STAGE_PLAN, max_subtasks=3)
    assert kinds == ["instance_created"]
    assert (instance.prompt, instance.forked_from, instance.config.max_subtasks) == ("Build it", "a", 3)
    assert decide(instance, at(NOW_S)) == (CallModel(PLANNING),)


def test_a_fork_at_the_subtasks_keeps_the_plan_and_its_usage() -> None:
    source = complete()
    instance, kinds = forked(source, api.STAGE_SUBTASKS, small_model="scripted/other")
    planned = ["planning_started", "subtask_planned", "subtask_planned", "plan_completed"]
    assert kinds == ["instance_created", *planned]
    assert instance.summary == source.instance.summary
    assert instance.usage == source.instance.planning.usage
    assert decide(instance, at(NOW_S)) == (CallModel(WorkKey("subtask", "a")),)


def test_a_fork_at_the_synthesis_keeps_every_output() -> None:
    source = complete()
    instance, _ = forked(source, api.STAGE_SYNTHESIS, big_model="scripted/other")
    assert [task.output for task in instance.subtasks.values()] == ["output of a", "output of b"]
    assert instance.usage == Usage(12, 24, 3)  # the plan and both outputs, not the source's synthesis
    assert decide(instance, at(NOW_S)) == (CallModel(SYNTHESIS),)
    assert source.instance == source.refolded()


def test_copied_usage_counts_for_the_budget_and_not_as_the_forks_own() -> None:
    new = fork(
        complete().instance,
        api.STAGE_SYNTHESIS,
        histories.changes(),
        new_id="fork",
    )
    instance, events = new.begin(NOW_S)
    assert instance.own_usage == Usage()
    history = History()
    history.instance, history.events = instance, list(events)
    own = history.completed().instance.synthesis.usage
    assert own == Usage(3, 4, 1)
    assert history.instance.own_usage == own
    assert history.instance.usage == instance.usage.plus(own)
    assert history.instance == history.refolded()


def test_failed_attempts_of_the_source_are_left_out_and_their_usage_is_kept() -> None:
    source = History().planned(part("a"))
    source.then(call_started(source.instance, WorkKey("subtask", "a")))
    flaky = ModelError("OVERLOADED", "later", retryable=True)
    source.then(
        call_failed(source.instance, WorkKey("subtask", "a"), flaky, Usage(5, 0, 1), now_s=NOW_S, jitter=0)
    )
    source.done("a")
    instance, kinds = forked(source, api.STAGE_SYNTHESIS)
    assert kinds[-2:] == ["subtask_started", "subtask_completed"]
    assert instance.subtasks["a"].work.usage == Usage(6, 2, 2)


def test_failed_and_skipped_subtasks_keep_their_state() -> None:
    source = History(tolerated_failures=1).planned(part("a"), part("b", "a"), part("c"))
    source.then(call_started(source.instance, WorkKey("subtask", "a")))
    fatal = ModelError("REQUEST_REJECTED", "no", retryable=False)
    source.then(
        call_failed(source.instance, WorkKey("subtask", "a"), fatal, Usage(5, 0, 1), now_s=NOW_S, jitter=0)
    )
    (record,) = decide(source.instance, at(NOW_S))
    assert isinstance(record, Record)
    source.then(*record.events).done("c")
    instance, _ = forked(source, api.STAGE_SYNTHESIS)
    for mine, theirs in zip(instance.subtasks.values(), source.instance.subtasks.values(), strict=True):
        assert (mine.work.state, mine.work.error) == (theirs.work.state, theirs.work.error)
    assert decide(instance, at(NOW_S)) == (CallModel(SYNTHESIS),)


def test_a_plan_of_the_client_is_kept_without_a_call() -> None:
    mine = [instance_pb2.Subtask(id="x", instructions="do x")]
    source = History(subtasks=mine)
    (record,) = decide(source.instance, at(NOW_S))
    assert isinstance(record, Record)
    instance, kinds = forked(source.then(*record.events), api.STAGE_SUBTASKS)
    assert kinds == ["instance_created", "subtask_planned", "plan_completed"]
    assert instance.usage == Usage()


@pytest.mark.parametrize(
    ("reviewed", "changes", "waits"),
    [
        (True, {}, False),
        (False, {}, True),
        (True, {"review_plan": True}, True),
        (False, {"review_plan": False}, False),
    ],
)
def test_a_plan_is_reviewed_again_only_on_request(
    reviewed: bool, changes: dict[str, object], waits: bool
) -> None:
    source = History(review_plan=True).planned(part("a"))
    if reviewed:
        source.then(APPROVED)
    instance, _ = forked(source, api.STAGE_SUBTASKS, **changes)
    assert (instance.state == instance_pb2.STATE_WAITING) == waits


def test_a_fork_at_the_synthesis_is_not_reviewed() -> None:
    instance, _ = forked(complete(), api.STAGE_SYNTHESIS, review_plan=True)
    assert decide(instance, at(NOW_S)) == (CallModel(SYNTHESIS),)


@pytest.mark.parametrize(
    ("source", "stage"),
    [
        (History(), api.STAGE_SUBTASKS),
        (History(), api.STAGE_SYNTHESIS),
        (History().planned(part("a"), part("b")).done("a"), api.STAGE_SYNTHESIS),
    ],
)
def test_a_stage_that_the_source_has_not_reached_cannot_be_forked(
    source: History, stage: api.Stage.ValueType
) -> None:
    with pytest.raises(StateForbidsError, match=r"cannot be asked to fork at .* before") as caught:
        forked(source, stage)
    assert caught.value.metadata["action"] == "fork"


@pytest.mark.parametrize(
    ("stage", "changes", "field"),
    [
        (api.STAGE_UNSPECIFIED, {}, "stage"),
        (7, {}, "stage"),
        (api.STAGE_SUBTASKS, {"subtasks": [instance_pb2.Subtask(id="x")]}, "config.subtasks"),
        (api.STAGE_PLAN, {"max_subtasks": 1000}, "config.max_subtasks"),
    ],
)
def test_an_inconsistent_fork_is_rejected(
    stage: api.Stage.ValueType, changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        forked(complete(), stage, **changes)
    assert caught.value.field == field
