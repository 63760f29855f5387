"""The list of instances fits the terminal; ids are never cut."""

import pytest
from rich.cells import cell_len

from orchestrator.cli.tables import table_lines
from orchestrator.cli.text import age
from orchestrator.v1 import instance_pb2 as pb

NOW_S = 1_800_000_000.0
UUID = "0b6f0d4e-7c2f-4a53-9a3e-6d1f2a9c8e11"


def instance(
    instance_id: str = "i1", prompt: str = "A prompt that says what is to be done", **more: float
) -> pb.Instance:
    made = pb.Instance(id=instance_id, state=pb.STATE_RUNNING, prompt=prompt)
    made.create_time.FromSeconds(int(NOW_S) - 7200)
    made.subtasks.add(id="t1", state=pb.SUBTASK_STATE_COMPLETED)
    made.subtasks.add(id="t2")
    made.usage.CopyFrom(pb.Usage(input_tokens=12_000, output_tokens=340, **more))
    return made


def lines(*instances: pb.Instance, width: int = 120) -> list[str]:
    return [line.plain for line in table_lines(instances, NOW_S, width)]


def test_each_instance_shows_its_numbers_where_there_is_room() -> None:
    heading, line = lines(instance(cost_usd=0.0123))
    assert heading.split() == ["id", "state", "age", "done", "tokens", "cost", "prompt"]
    assert line.split()[:6] == ["i1", "running", "2h", "1/2", "12,340", "$0.0123"]
    assert line.endswith("A prompt that says what is to be done")


def test_an_unknown_cost_is_a_dash() -> None:
    heading, known, unknown = lines(instance(cost_usd=0.0123), instance("i2", model_calls=1))
    assert known.split()[5] == "$0.0123"
    assert unknown.split()[4:6] == ["12,340", "-"]
    assert "cost" in heading


def test_a_fork_is_listed_with_the_usage_of_its_own_calls() -> None:
    fork = instance(cost_usd=0.0123, model_calls=4)
    fork.own_usage.CopyFrom(pb.Usage(input_tokens=1000, output_tokens=2, model_calls=1, cost_usd=0.001))
    assert lines(fork)[1].split()[4:6] == ["1,002", "$0.0010"]
    fork.own_usage.Clear()  # it has not called yet
    assert lines(fork)[1].split()[4:6] == ["A", "prompt"]


def test_a_cost_of_nothing_has_no_column() -> None:
    assert "cost" not in lines(instance())[0]


@pytest.mark.parametrize("width", [30, 60, 80, 100])
@pytest.mark.parametrize("prompt", ["short", "long " * 50, "日本語のドキュメント" * 9, "\x1b[31mevil\n\x07"])
def test_the_table_fits_the_terminal_and_cuts_no_id(width: int, prompt: str) -> None:
    for line in lines(instance(UUID, prompt, cost_usd=0.5), width=width)[1:]:
        assert UUID in line
        assert "running" in line
        assert cell_len(line) <= max(width, len(UUID) + len("  running"))
        assert "\x1b" not in line


def test_numbers_yield_their_room_to_the_prompt() -> None:
    headings = [
        lines(instance(UUID, cost_usd=0.5), width=width)[0].split() for width in (120, 90, 74, 64, 48)
    ]
    assert [len(words) for words in headings] == sorted((len(words) for words in headings), reverse=True)
    assert headings[0][-2:] == ["cost", "prompt"]
    assert headings[-2] == ["id", "state", "prompt"]
    assert headings[-1] == ["id", "state"]


def test_an_empty_list_is_reported() -> None:
    assert lines() == ["no instances"]


def test_an_age_is_shown_in_its_largest_unit() -> None:
    assert [age(s) for s in (-3, 0, 59.9, 60, 3599, 7200, 86_399, 86_400 * 9)] == [
        *("0s", "0s", "59s", "1m", "59m", "2h", "23h", "9d")
    ]
