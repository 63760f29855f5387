"""Which fields of a configuration a client changes, with and without an update mask."""

import pytest
from google.protobuf.duration_pb2 import Duration
from support.histories import History, part

from orchestrator.core import config, lifecycle
from orchestrator.core.events import whole_plan
from orchestrator.core.fork import fork
from orchestrator.errors import InvalidArgumentError
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1 import orchestrator_pb2 as api

DEFAULTS = config.default("a/big", "a/small", [pb.Worker(name="any")])
OWN = pb.Subtask(id="mine", instructions="Do it.")
RECORDED = pb.InstanceConfig(
    big_model="a/other",
    small_model="a/other",
    max_subtasks=3,
    max_parallel_subtasks=2,
    max_output_tokens=10,
    max_continuations=3,
    instructions="In German",
    retry=pb.RetryPolicy(
        max_attempts=2,
        initial_delay=Duration(seconds=2),
        max_delay=Duration(seconds=3),
        multiplier=3,
        attempt_timeout=Duration(seconds=4),
        max_crashes=7,
    ),
    budget=pb.Budget(max_tokens=5, max_cost_usd=1, max_duration=Duration(seconds=9)),
    tolerated_failures=1,
    review_plan=True,
    subtasks=[OWN],
    max_input_characters=5000,
    workers=[pb.Worker(name="coder")],
)
WITHOUT_DEFAULT = {"instructions", "subtasks", "budget"}


FIELDS = [known.name for known in pb.InstanceConfig.DESCRIPTOR.fields if known.name != "catalogue"]


def changed(mask: list[str], **values: object) -> pb.InstanceConfig:
    return config.read_changes(pb.InstanceConfig(**values), mask, DEFAULTS).apply(RECORDED)


def test_the_recorded_configuration_of_these_tests_sets_every_field() -> None:
    assert {known.name for known, _ in RECORDED.ListFields()} == set(FIELDS)


def test_without_a_mask_the_fields_that_are_set_replace_the_recorded_ones() -> None:
    result = changed([], max_subtasks=9, budget={"max_tokens": 6})
    assert (result.max_subtasks, result.budget.max_tokens, result.budget.max_cost_usd) == (9, 6, 1)
    assert list(result.subtasks) == [OWN]
    assert changed([]) == RECORDED


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_named_and_not_set_returns_to_its_default(name: str) -> None:
    result = changed([name])
    expected = pb.InstanceConfig()
    expected.CopyFrom(RECORDED)
    expected.ClearField(name)
    if name not in WITHOUT_DEFAULT:
        expected.MergeFrom(pb.InstanceConfig(**{name: getattr(DEFAULTS, name)}))
    assert result == expected
    assert result != RECORDED
    assert result.HasField("budget") == (name != "budget")


@pytest.mark.parametrize("name", [known.name for known in pb.RetryPolicy.DESCRIPTOR.fields])
def test_a_part_of_the_retry_policy_returns_to_its_default_alone(name: str) -> None:
    result = changed([f"retry.{name}"])
    assert getattr(result.retry, name) == getattr(DEFAULTS.retry, name)
    for other in set(pb.RetryPolicy.DESCRIPTOR.fields_by_name) - {name}:
        assert getattr(result.retry, other) == getattr(RECORDED.retry, other)


@pytest.mark.parametrize("name", [known.name for known in pb.Budget.DESCRIPTOR.fields])
def test_one_limit_of_the_budget_can_be_cleared_alone(name: str) -> None:
    result = changed([f"budget.{name}"])
    assert not result.budget.HasField(name)
    assert len(result.budget.ListFields()) == 2


def test_a_budget_without_limits_is_cleared() -> None:
    limits = [f"budget.{known.name}" for known in pb.Budget.DESCRIPTOR.fields]
    assert not changed(limits).HasField("budget")


def test_exactly_the_named_fields_are_taken_from_the_request() -> None:
    values = {"max_subtasks": 9, "max_parallel_subtasks": -5, "budget": {"max_tokens": 6}}
    result = changed(["max_subtasks", "budget", "subtasks"], **values)
    assert (result.max_subtasks, result.max_parallel_subtasks) == (9, 2)
    assert result.budget == pb.Budget(max_tokens=6)
    assert not result.subtasks


def test_a_named_list_is_replaced_by_the_list_of_the_request() -> None:
    workers = [pb.Worker(name="writer")]
    assert list(changed(["workers"], workers=workers).workers) == workers
    assert list(changed(["workers"]).workers) == list(DEFAULTS.workers)


def test_a_value_that_equals_the_default_is_kept_where_it_is_set() -> None:
    result = changed(
        ["instructions", "review_plan", "tolerated_failures"], instructions="", review_plan=False
    )
    assert (result.instructions, result.HasField("instructions")) == ("", True)
    assert (result.review_plan, result.tolerated_failures) == (False, 0)


def test_a_star_names_every_field() -> None:
    assert changed(["*"]) == DEFAULTS
    assert changed(["*"], max_subtasks=9).max_subtasks == 9


def test_a_value_out_of_range_is_rejected_where_it_is_named() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        changed(["max_parallel_subtasks"], max_parallel_subtasks=-5)
    assert caught.value.field == "config.max_parallel_subtasks"


@pytest.mark.parametrize(
    "path",
    ["prompt", "Budget", "budget.", ".budget", "budget.max_tokens.x", "retry.*", "workers.name", "**", ""],
)
def test_an_unknown_path_is_rejected_with_the_known_ones(path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        config.read_changes(pb.InstanceConfig(), ["budget", path])
    assert (caught.value.reason, caught.value.field) == ("CONFIG_INVALID", "update_mask")
    for known in ("*", "subtasks", "retry", "retry.max_crashes", "budget.max_tokens", "workers"):
        assert f" {known}," in f"{caught.value},"


def with_own_plan() -> History:
    own = part("mine")
    return History(subtasks=[OWN]).then(*whole_plan(0, "", [own], "", None)).terminated()


def test_a_retry_cannot_clear_a_completed_plan() -> None:
    history = with_own_plan()
    for mask in ("subtasks", "*"):
        with pytest.raises(InvalidArgumentError, match="fork the instance at STAGE_PLAN") as caught:
            lifecycle.retry(history.instance, config.read_changes(pb.InstanceConfig(), [mask], DEFAULTS))
        assert caught.value.field == "config.subtasks"


def test_a_fork_that_keeps_the_plan_cannot_clear_it() -> None:
    history = with_own_plan()
    changes = config.read_changes(pb.InstanceConfig(), ["subtasks"], DEFAULTS)
    with pytest.raises(InvalidArgumentError, match="fork at STAGE_PLAN"):
        fork(history.instance, api.STAGE_SUBTASKS, changes, new_id="b")
    assert not fork(history.instance, api.STAGE_PLAN, changes, new_id="b").config.subtasks


def test_a_review_left_out_of_the_mask_is_not_requested() -> None:
    history = History().planned(part("a")).done("a").completed()
    given = pb.InstanceConfig(review_plan=True)
    changes = config.read_changes(given, ["max_subtasks"], DEFAULTS)
    assert not fork(history.instance, api.STAGE_SUBTASKS, changes, new_id="b").config.review_plan


def test_a_catalogue_of_the_client_replaces_the_services_and_back() -> None:
    recorded = config.default("a/big", "a/small")
    recorded.catalogue = "earlier"
    now = config.default("a/big", "a/small")
    now.catalogue = "now"
    own = config.read_changes(pb.InstanceConfig(workers=[pb.Worker(name="mine")])).apply(recorded)
    assert ([worker.name for worker in own.workers], own.catalogue) == (["mine"], "")
    for before in (own, recorded):
        cleared = config.read_changes(pb.InstanceConfig(), ["workers"], now).apply(before)
        assert (len(cleared.workers), cleared.catalogue) == (0, "now")
    assert config.read_changes(pb.InstanceConfig(max_subtasks=3)).apply(recorded).catalogue == "earlier"
    none = config.read_changes(pb.InstanceConfig(), ["workers"]).apply(recorded)
    assert (len(none.workers), none.catalogue) == (0, "")


def test_a_client_cannot_name_a_catalogue() -> None:
    asked = pb.InstanceConfig(catalogue="another's")
    assert config.resolve(asked, config.default("a/big", "a/small")).catalogue == ""
