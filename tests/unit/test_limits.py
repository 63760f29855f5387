"""Each limit of the protos at its edge: what is at it is taken, what is beyond it is refused."""

import math
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from orchestrator.core import config, create, limits, plan
from orchestrator.core.instance import Subtask
from orchestrator.errors import InvalidArgumentError, SettingsError
from orchestrator.rpc import info
from orchestrator.settings import Settings
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.orchestrator_pb2 import BatchCreateInstancesRequest, CreateInstanceRequest

PARTS = {"": pb.InstanceConfig, "retry": pb.RetryPolicy, "budget": pb.Budget}
BASE = config.default("a/big", "a/small")
WORKERS = [{"name": f"w{number}"} for number in range(33)]
LABELS = [f"k{number}" for number in range(65)]


def numbers() -> Iterator[tuple[str, list[float], list[float]]]:
    """Each number of a configuration: its path, what is at its limits, and what is just beyond them."""
    for owner, part in PARTS.items():
        for field in part.DESCRIPTOR.fields:
            bounds = limits.of(part, field.name)
            if not bounds.HasField("minimum"):
                continue
            least, most = bounds.minimum, bounds.maximum
            if field.type == FieldDescriptor.TYPE_DOUBLE:
                beyond = [math.nextafter(least, -math.inf), math.nextafter(most, math.inf)]
            elif field.message_type:
                beyond = [least - 1e-6, most + 1e-6]
            else:
                beyond = [least - 1, int(most) + 1]
            yield f"{owner}.{field.name}".lstrip("."), [least, most], beyond


def with_number(path: str, value: float) -> pb.InstanceConfig:
    wanted = pb.InstanceConfig()
    owner, _, name = path.rpartition(".")
    message: Message = getattr(wanted, owner) if owner else wanted
    kind = message.DESCRIPTOR.fields_by_name[name]
    if kind.message_type:
        getattr(message, name).FromNanoseconds(round(value * 1e9))
    else:
        setattr(message, name, value if kind.type == FieldDescriptor.TYPE_DOUBLE else int(value))
    return wanted


@pytest.mark.parametrize(("path", "at", "beyond"), list(numbers()), ids=str)
def test_a_number_is_accepted_from_its_minimum_to_its_maximum(
    path: str, at: list[float], beyond: list[float]
) -> None:
    for value in at:
        config.resolve(with_number(path, value), BASE)
    for value in beyond:
        with pytest.raises(InvalidArgumentError) as caught:
            config.resolve(with_number(path, value), BASE)
        assert (caught.value.reason, caught.value.field) == ("CONFIG_INVALID", f"config.{path}")
        assert str(caught.value).startswith(f"config.{path} ")


def test_every_number_of_a_configuration_has_limits() -> None:
    number_types = {FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_DOUBLE}
    for owner, part in (*PARTS.items(), ("workers", pb.Worker)):
        for field in part.DESCRIPTOR.fields:
            if field.type in number_types or field.message_type is Duration.DESCRIPTOR:
                bounds = limits.of(part, field.name)
                assert bounds.HasField("minimum"), (owner, field.name)
                assert bounds.HasField("maximum"), (owner, field.name)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"max_subtasks": 65}, "config.max_subtasks is 65: it must be 1 to 64"),
        ({"max_output_tokens": 1_000_001}, "config.max_output_tokens is 1000001: it must be 1 to 1000000"),
        ({"retry": {"multiplier": 0.5}}, "config.retry.multiplier is 0.5: it must be 1 to 10"),
        ({"retry": {"multiplier": math.nan}}, "config.retry.multiplier is nan: it must be 1 to 10"),
        ({"budget": {"max_cost_usd": 0}}, "config.budget.max_cost_usd is 0: it must be 1e-06 to 1000000000"),
        (
            {"budget": {"max_tokens": 0}},
            "config.budget.max_tokens is 0: it must be 1 to 4611686018427387904",
        ),
        (
            {"retry": {"max_delay": {"seconds": 86401}}},
            "config.retry.max_delay must be 0:00:00 to 1 day, 0:00:00 (h:mm:ss)",
        ),
        ({"instructions": "é" * 16385}, "config.instructions are over 32 KiB: shorten them"),
        ({"big_model": "m" * 201}, "config.big_model is over 200 characters: shorten it"),
        (
            {"workers": [{"name": f"w{n}"} for n in range(33)]},
            "config.workers has 33 workers: there may be 32",
        ),
        (
            {"workers": [{"name": "w", "top_p": math.inf}]},
            "config.workers[0].top_p is inf: it must be 0 to 1",
        ),
    ],
)
def test_a_value_beyond_a_limit_is_reported_with_the_value_and_the_limit(wanted: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        config.resolve(pb.InstanceConfig(**wanted), BASE)
    assert str(caught.value) == words


@pytest.mark.parametrize(
    "wanted",
    [
        {"instructions": "é" * 16384},
        {"big_model": "m" * 200, "small_model": "é" * 200},
        {"workers": WORKERS[1:]},
    ],
)
def test_a_value_at_a_limit_is_accepted(wanted: Any) -> None:
    config.resolve(pb.InstanceConfig(**wanted), BASE)


@pytest.mark.parametrize(
    ("at", "beyond"),
    [
        ({"instructions": "é" * 32768}, {"instructions": "é" * 32768 + "x"}),
        ({"title": "é" * 200}, {"title": "é" * 201}),
        ({"worker": "é" * 100}, {"worker": "é" * 101}),
        ({"id": "x" * 100}, {"id": "x" * 101}),
        ({"id": "x"}, {"id": "x\n"}),
    ],
)
def test_a_subtask_is_accepted_at_each_limit_and_rejected_beyond_it(at: Any, beyond: Any) -> None:
    subtask = Subtask("t1", "Part 1", "Write it.")
    plan.validate([subtask._replace(**at)], 1)
    with pytest.raises(plan.PlanError):
        plan.validate([subtask._replace(**beyond)], 1)


@pytest.mark.parametrize(
    ("at", "beyond", "field"),
    [
        ({"prompt": "é" * 131_072}, {"prompt": "é" * 131_072 + "x"}, "prompt"),
        ({"request_id": "é" * 200}, {"request_id": "é" * 201}, "request_id"),
        ({"id": "x" * 100}, {"id": "x" * 101}, "id"),
        (
            {"labels": {f"k{n}": "" for n in range(64)}},
            {"labels": {f"k{n}": "" for n in range(65)}},
            "labels",
        ),
        ({"labels": {"k" * 63: ""}}, {"labels": {"k" * 64: ""}}, f"labels[{'k' * 64}]"),
        ({"labels": {"k": "é" * 256}}, {"labels": {"k": "é" * 257}}, "labels[k]"),
        ({"labels": {"k": ""}}, {"labels": {"k\n": ""}}, "labels[k\n]"),
    ],
)
def test_a_request_is_accepted_at_each_limit_and_rejected_beyond_it(at: Any, beyond: Any, field: str) -> None:
    def ask(wanted: Any) -> None:
        create.new_instance(CreateInstanceRequest(**{"prompt": "x", **wanted}), base=BASE, fallback_id="a")

    ask(at)
    with pytest.raises(InvalidArgumentError) as caught:
        ask(beyond)
    assert caught.value.field == field


@pytest.mark.parametrize(("name", "most"), [("max_output_tokens", 1_000_000), ("max_crashes", 1000)])
def test_a_setting_has_the_limits_of_the_field_that_it_defaults(name: str, most: int) -> None:
    assert getattr(Settings(**{name: most}), name) == most
    with pytest.raises(SettingsError, match=f"is {most + 1}: it must be at most {most}$"):
        Settings(**{name: most + 1})


def test_the_limits_reported_by_the_service_are_those_of_the_protos() -> None:
    reported = info.service_info(Settings(), BASE).limits
    assert reported.max_prompt_bytes == limits.of(CreateInstanceRequest, "prompt").max_bytes == 262_144
    assert reported.max_batch_instances == limits.of(BatchCreateInstancesRequest, "requests").max_items == 100


def test_the_page_accepts_titles_as_long_as_the_service_does() -> None:
    page = resources.files("orchestrator").joinpath("web/review.js").read_text()
    assert f'maxlength="{limits.of(pb.Subtask, "title").max_length}"' in page
