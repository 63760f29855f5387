import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from support.histories import History, part, resolved, states

from orchestrator.core import view, wire
from orchestrator.core.instance import TERMINAL, Instance, Usage
from orchestrator.core.state import TRANSITIONS, IllegalEventError, evolve, fold
from orchestrator.v1 import event_pb2, instance_pb2
from orchestrator.v1.event_pb2 import Event

OUTPUT_ONLY = ("subtask.state", "subtasks.state")
"""Output-only fields, which clients may send back: they are ignored."""
PAYLOADS = [field.name for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields]


def bare(kind: str, sequence: int) -> Event:
    event = Event(instance_id="a", sequence=sequence)
    getattr(event, kind).SetInParent()
    return event


def test_a_complete_history_folds_to_its_result() -> None:
    history = History().planned().done("t1", "t2", "t3").completed()
    instance = history.instance
    assert instance.state == instance_pb2.STATE_COMPLETE
    assert instance.final_result == "the result"
    assert [subtask.output for subtask in instance.subtasks.values()] == [
        "output of t1",
        "output of t2",
        "output of t3",
    ]
    assert instance.usage == Usage(16, 30, 5)
    assert instance.last_sequence == len(history.events)
    assert 0 < instance.create_time_s < instance.start_time_s < instance.end_time_s


def test_folding_stored_bytes_gives_the_state_that_was_evolved() -> None:
    history = History().planned().done("t1").started("t2")
    assert history.refolded() == history.instance


def test_a_returned_state_never_changes() -> None:
    approved = Event(plan_reviewed=event_pb2.PlanReviewed(decision=event_pb2.DECISION_APPROVE))
    history = History(review_plan=True).planned().then(approved).done("t1").started("t2")
    history.then(bare("instance_terminated", 0)).then(bare("instance_retried", 0)).done(
        "t2", "t3"
    ).completed()
    history.then(bare("instance_restarted", 0)).planned(part("t1"), part("other"))
    names = [field.name for field in fields(Instance)]
    instance = Instance()
    for event in history.events:
        values = ((name, getattr(instance, name)) for name in names)
        held = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values}
        after = evolve(instance, event)
        assert {name: getattr(instance, name) for name in names} == held, event
        instance = after
    assert instance == history.instance


@pytest.mark.parametrize("state", TRANSITIONS)
def test_every_state_has_only_transitions_of_known_events_to_known_states(state: int) -> None:
    for kind, targets in TRANSITIONS[state].items():
        assert kind in PAYLOADS
        assert targets
        assert set(targets) <= set(instance_pb2.State.values())


def test_a_terminal_state_is_left_only_by_retry_or_restart() -> None:
    for state in TERMINAL:
        assert set(TRANSITIONS[state]) <= {"instance_retried", "instance_restarted"}


@pytest.mark.parametrize("state", TRANSITIONS)
def test_an_event_that_the_table_forbids_raises(state: int) -> None:
    instance = Instance(id="a", state=state, last_sequence=3)
    for kind in set(PAYLOADS) - set(TRANSITIONS[state]):
        with pytest.raises(IllegalEventError, match=kind):
            evolve(instance, bare(kind, 4))


@pytest.mark.parametrize("sequence", [0, 3, 5])
def test_an_event_out_of_sequence_raises(sequence: int) -> None:
    running = Instance(state=instance_pb2.STATE_RUNNING, last_sequence=3)
    with pytest.raises(IllegalEventError, match="cannot follow event 3"):
        evolve(running, bare("instance_terminated", sequence))


def test_an_event_of_a_future_version_raises() -> None:
    newer = Event.FromString(Event(sequence=1).SerializeToString() + b"\xfa\x3e\x00")  # field 1007
    for event in (Event(sequence=1), newer):
        with pytest.raises(IllegalEventError, match="no payload that this version knows"):
            evolve(Instance(), event)


def enums_in(message: Descriptor, path: str = "", above: tuple[Descriptor, ...] = ()) -> Iterator[str]:
    """The path of each enum field in a message and all that it holds."""
    for field in message.fields:
        name = f"{path}{field.name}"
        if field.enum_type:
            yield name
        elif field.message_type and field.message_type not in above:
            yield from enums_in(field.message_type, f"{name}.", (*above, message))


def oneofs_in(message: Descriptor, path: str = "", above: tuple[Descriptor, ...] = ()) -> Iterator[str]:
    """The path of each oneof in a message and all that it holds, optional fields left out."""
    yield from (f"{path}{oneof.name}" for oneof in message.oneofs if not oneof.name.startswith("_"))
    for field in message.fields:
        if field.message_type and field.message_type not in above:
            yield from oneofs_in(field.message_type, f"{path}{field.name}.", (*above, message))


def test_an_event_determines_its_change_by_one_enum_and_one_oneof() -> None:
    # A new one needs a test that an unknown value of it is refused, as those of these two are.
    enums = {path for path in enums_in(Event.DESCRIPTOR) if not path.endswith(OUTPUT_ONLY)}
    assert enums == {"plan_reviewed.decision"}
    assert list(oneofs_in(Event.DESCRIPTOR)) == ["payload"]


@pytest.mark.parametrize("decision", [0, 3, 17, 2**31 - 1, -1])
def test_an_unknown_decision_is_rejected(decision: int) -> None:
    history = History(review_plan=True).planned()
    before = history.refolded()
    with pytest.raises(IllegalEventError, match=f"decision {decision} is none that this version knows"):
        history.then(Event(plan_reviewed=event_pb2.PlanReviewed(decision=decision)))
    assert history.instance == before
    assert history.instance.state == instance_pb2.STATE_WAITING


@pytest.mark.parametrize("state", [0, instance_pb2.SUBTASK_STATE_COMPLETED, 17])
def test_the_state_of_a_subtask_in_a_plan_is_ignored(state: int) -> None:
    subtask = instance_pb2.Subtask(id="t1", instructions="do it", state=state)
    history = History().then(Event(planning_started=event_pb2.PlanningStarted(attempt=1)))
    history.then(Event(subtask_planned=event_pb2.SubtaskPlanned(attempt=1, subtask=subtask)))
    assert states(history.instance) == ["PENDING"]


def test_changing_an_event_does_not_change_the_configuration_folded_from_it() -> None:
    history = History(max_subtasks=3)
    kinds = ("instance_created", "instance_retried", "instance_restarted")
    history.terminated().retried(max_subtasks=4).terminated()
    restarted = event_pb2.InstanceRestarted(config=resolved(max_subtasks=5))
    before = history.instance
    history.then(Event(instance_restarted=restarted))
    payloads = [getattr(event, kind) for event in history.events for kind in kinds if event.HasField(kind)]
    assert [payload.config.max_subtasks for payload in payloads] == [3, 4, 5]
    for payload in payloads:
        payload.config.max_subtasks = 9
    assert (before.config.max_subtasks, history.instance.config.max_subtasks) == (4, 5)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (event_pb2.SubtaskStarted(subtask_id="t9", attempt=1), "no subtask t9"),
        (event_pb2.SubtaskStarted(subtask_id="t1", attempt=2), "attempt 2 cannot start after attempt 0"),
        (event_pb2.SubtaskCompleted(subtask_id="t1", attempt=1), "not under way"),
        (event_pb2.SubtaskFailed(subtask_id="t1", attempt=1), "not under way"),
        (event_pb2.SubtaskPlanned(subtask=instance_pb2.Subtask(id="t1")), "cannot be planned now"),
        (event_pb2.PlanCompleted(), "complete already"),
        (event_pb2.SynthesisCompleted(attempt=1), "not under way"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_an_event_that_contradicts_its_piece_of_work_leaves_the_state_unchanged(
    payload: Message, words: str
) -> None:
    history = History().planned()
    before = history.refolded()
    name = next(
        field.name
        for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields
        if field.message_type.name == type(payload).DESCRIPTOR.name
    )
    with pytest.raises(IllegalEventError, match=words):
        history.then(Event(**{name: payload}))
    assert history.instance == before


def test_a_failed_planning_attempt_withdraws_its_subtasks() -> None:
    history = History()
    history.then(
        Event(planning_started=event_pb2.PlanningStarted(attempt=1)),
        Event(subtask_planned=event_pb2.SubtaskPlanned(attempt=1, subtask=instance_pb2.Subtask(id="t1"))),
    )
    assert list(history.instance.subtasks) == ["t1"]
    failed = event_pb2.PlanningFailed(attempt=1)
    failed.retry_time.seconds = 1
    history.then(Event(planning_failed=failed))
    assert not history.instance.subtasks


def test_terminating_marks_running_work_as_interrupted() -> None:
    history = (
        History().planned().started("t1").then(Event(instance_terminated=event_pb2.InstanceTerminated()))
    )
    assert states(history.instance) == ["FAILED", "PENDING", "PENDING"]
    assert history.instance.subtasks["t1"].work.error.reason == "INTERRUPTED"


def test_a_call_cancelled_by_a_termination_counts_as_a_call() -> None:
    history = History().planned().started("t1").started("t2").terminated()
    assert history.instance.usage == history.instance.own_usage == Usage(10, 20, 3)
    assert history.instance.subtasks["t1"].work.usage == Usage(model_calls=1)
    assert history.instance.subtasks["t3"].work.usage == Usage()
    history.retried().done("t1")
    assert history.instance.usage == Usage(11, 22, 4)
    assert history.instance.subtasks["t1"].work.usage == Usage(1, 2, 2)


def test_results_of_a_rejected_plan_are_reused_for_equal_subtasks_of_the_next_plan() -> None:
    history = History().planned(part("a"), part("b")).done("a", "b")
    history.terminated().retried(review_plan=True)
    history.then(Event(plan_reviewed=event_pb2.PlanReviewed(decision=event_pb2.DECISION_REJECT)))
    assert not history.instance.subtasks
    history.planned(part("a"), part("c"))
    assert [subtask.output for subtask in history.instance.subtasks.values()] == ["output of a", ""]


def test_retrying_keeps_completed_subtasks_and_resets_the_rest() -> None:
    history = History().planned().done("t1").started("t2")
    history.then(Event(instance_terminated=event_pb2.InstanceTerminated()))
    history.then(Event(instance_retried=event_pb2.InstanceRetried(config=history.instance.config)))
    assert states(history.instance) == ["COMPLETED", "PENDING", "PENDING"]
    assert history.instance.subtasks["t2"].work.attempt == 1
    assert history.instance.state == instance_pb2.STATE_QUEUED
    assert not history.instance.end_time_s


def test_restarting_resets_everything_but_the_request() -> None:
    history = History().planned().done("t1", "t2", "t3").completed()
    history.then(Event(instance_restarted=event_pb2.InstanceRestarted(config=history.instance.config)))
    assert not history.instance.subtasks
    assert history.instance.prompt == "Build it"
    assert history.instance.usage == Usage()


def test_usage_before_a_restart_stays_the_instances_own() -> None:
    history = History().planned(part("t1")).done("t1").completed()
    before = history.instance.usage
    assert before == history.instance.own_usage == Usage(14, 26, 3)
    history.then(Event(instance_restarted=event_pb2.InstanceRestarted(config=history.instance.config)))
    history.planned(part("t1"))
    assert history.instance.usage == Usage(10, 20, 1)
    assert history.instance.own_usage == before.plus(Usage(10, 20, 1))


def test_a_plan_awaiting_review_waits_through_a_pause() -> None:
    history = History(review_plan=True).planned(part("t1"))
    assert history.instance.state == instance_pb2.STATE_WAITING
    history.then(
        Event(instance_pause_requested=event_pb2.InstancePauseRequested()),
        Event(instance_paused=event_pb2.InstancePaused()),
        Event(instance_resumed=event_pb2.InstanceResumed()),
    )
    assert history.instance.state == instance_pb2.STATE_WAITING
    reviewed = event_pb2.PlanReviewed(decision=event_pb2.DECISION_APPROVE)
    assert history.then(Event(plan_reviewed=reviewed)).instance.state == instance_pb2.STATE_RUNNING


def test_the_view_is_basic_unless_full_is_requested() -> None:
    instance = History().planned().done("t1").instance
    basic, full = view.instance(instance), view.instance(instance, full=True)
    assert not basic.subtasks[0].output
    assert not basic.subtasks[0].instructions
    assert full.subtasks[0].output == "output of t1"
    assert full.subtasks[0].instructions == "Write t1."
    assert basic.last_sequence == instance.last_sequence


@pytest.mark.parametrize("state", [state for state in TRANSITIONS if state])
def test_every_state_has_a_name_in_the_style_of_cloudflare_workflows(state: int) -> None:
    names = {"queued", "running", "paused", "waitingForPause", "waiting", "complete", "errored", "terminated"}
    assert view.status(Instance(state=state)).status in names
    assert set(wire.STATUS.values()) == names


def test_the_status_of_a_complete_instance_has_its_output() -> None:
    instance = History().planned().done("t1", "t2", "t3").completed().instance
    output = view.status(instance).output
    assert list(output.orchestrator_tasks) == ["Part t1", "Part t2", "Part t3"]
    assert list(output.worker_responses) == ["output of t1", "output of t2", "output of t3"]
    assert output.final_result == "the result"


def test_folding_no_events_gives_the_initial_state() -> None:
    assert fold([]) == Instance()


def test_the_diagram_in_the_docs_matches_the_table() -> None:
    docs = Path(__file__).parents[2] / "docs"
    run = subprocess.run([sys.executable, docs / "states.py"], capture_output=True, check=True)
    assert run.stdout.decode() == (docs / "states.md").read_text(), (
        "run: python docs/states.py > docs/states.md"
    )


def planned_event(name: str, *needs: str, text: str = "do it") -> Event:
    subtask = instance_pb2.Subtask(id=name, title=name, instructions=text, depends_on=needs)
    return Event(subtask_planned=event_pb2.SubtaskPlanned(attempt=1, subtask=subtask))


def replanned(first: list[Event], done: str) -> History:
    """A plan that was started, partly completed, and failed; the next attempt has started."""
    history = (
        History().then(Event(planning_started=event_pb2.PlanningStarted(attempt=1))).then(*first).done(*done)
    )
    failed = event_pb2.PlanningFailed(attempt=1)
    failed.retry_time.seconds = 1
    return history.then(
        Event(planning_failed=failed), Event(planning_started=event_pb2.PlanningStarted(attempt=2))
    )


def test_a_reusable_result_is_taken_over_in_any_order_of_the_plan() -> None:
    history = replanned([planned_event("a"), planned_event("b", "a")], "ab").then(
        planned_event("b", "a"), planned_event("a")
    )
    assert [subtask.output for subtask in history.instance.subtasks.values()] == [
        "output of b",
        "output of a",
    ]
    assert history.instance == history.refolded()


def test_results_made_from_other_dependencies_are_not_taken_over() -> None:
    history = (
        replanned([planned_event("a"), planned_event("b", "a")], "ab")
        .then(planned_event("a", text="otherwise"))
        .done("a")
    )
    assert not history.then(planned_event("b", "a")).instance.subtasks["b"].output


def test_a_reusable_result_survives_a_termination_during_the_next_plan() -> None:
    history = replanned([planned_event("a"), planned_event("b", "a")], "ab").then(planned_event("a"))
    history.then(Event(instance_terminated=event_pb2.InstanceTerminated()))
    history.then(Event(instance_retried=event_pb2.InstanceRetried(config=history.instance.config)))
    history.then(Event(planning_started=event_pb2.PlanningStarted(attempt=3))).then(
        planned_event("a"), planned_event("b", "a")
    )
    assert [subtask.output for subtask in history.instance.subtasks.values()] == [
        "output of a",
        "output of b",
    ]


def test_a_retry_with_a_plan_of_the_client_discards_a_partial_plan() -> None:
    history = replanned([planned_event("a"), planned_event("b")], "a").then(planned_event("a"))
    history.then(Event(instance_terminated=event_pb2.InstanceTerminated()))
    history.then(Event(instance_retried=event_pb2.InstanceRetried(config=history.instance.config)))
    assert history.instance.subtasks == {}
    assert history.instance.reusable["a"].output


def test_an_edited_plan_keeps_completed_and_unchanged_subtasks() -> None:
    history = History().planned(part("a"), part("b")).done("a", "b")
    history.then(Event(instance_terminated=event_pb2.InstanceTerminated()))
    config = instance_pb2.InstanceConfig()
    config.CopyFrom(history.instance.config)
    config.review_plan = True
    history.then(Event(instance_retried=event_pb2.InstanceRetried(config=config)))
    edited = [
        instance_pb2.Subtask(id="a", title="Part a", instructions="Write a."),
        instance_pb2.Subtask(id="b", instructions="otherwise"),
    ]
    reviewed = event_pb2.PlanReviewed(decision=event_pb2.DECISION_APPROVE, subtasks=edited)
    history.then(Event(plan_reviewed=reviewed))
    assert [subtask.output for subtask in history.instance.subtasks.values()] == ["output of a", ""]
