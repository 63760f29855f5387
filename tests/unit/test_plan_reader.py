"""A plan read while it is being written."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import plan
from orchestrator.core.plan import PlanReader
from orchestrator.core.state import Subtask

PROSE = st.text(st.sampled_from('ab "{}[]\\\n,:é😀`'), max_size=30)
PLANS = st.builds(
    lambda summary, parts: {
        "summary": summary,
        "subtasks": [
            {"id": f"t{number}", "title": title, "instructions": f"do {text}", "depends_on": [], "worker": ""}
            for number, (title, text) in enumerate(parts)
        ],
    },
    PROSE,
    st.lists(st.tuples(PROSE, PROSE), min_size=1, max_size=6),
)


def feed(reader: PlanReader, piece: str) -> Sequence[Subtask]:
    reader.add(piece)
    return reader.read()


def read(text: str, size: int) -> tuple[list[Subtask], PlanReader]:
    reader = PlanReader(16)
    told = [
        subtask for start in range(0, len(text), size) for subtask in feed(reader, text[start : start + size])
    ]
    return told, reader


@given(PLANS, st.integers(1, 40), st.sampled_from([None, 2]), st.booleans())
def test_it_tells_of_every_subtask_as_the_whole_text_does(
    value: object, size: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    told, reader = read(text, size)
    whole = plan.parse(text, 16)
    assert tuple(told) == whole.subtasks
    assert reader.summary == whole.summary


@given(PLANS, st.text(st.sampled_from('{}[]",:\\ subtasks'), max_size=20), st.integers(1, 40))
def test_whatever_stands_before_it_never_tells_what_the_whole_does_not(
    value: object, before: str, size: int
) -> None:
    text = before + json.dumps(value)
    told, _ = read(text, size)
    try:
        whole = plan.parse(text, 16).subtasks
    except plan.PlanError:
        return
    assert tuple(told) in (whole, ())


def test_each_subtask_is_told_as_soon_as_it_is_whole() -> None:
    reader = PlanReader(16)
    assert not feed(reader, '{"summary": "how", "subtasks": [{"id": "a", "instructions": "do {a}"')
    assert reader.summary == "how"
    (first,) = feed(reader, '}, {"id": "b"')
    assert (first.id, first.instructions) == ("a", "do {a}")
    (second,) = feed(reader, ', "instructions": "x", "depends_on": ["c"]} ')
    assert second.depends_on == ("c",)
    assert not feed(reader, "]}")


@pytest.mark.parametrize(
    "text",
    [
        '{"subtasks": [{"id": "a", "instructions": "x"}], "summary": "too late"}',
        '{"summary": 3, "subtasks": [{"id": "a", "instructions": "x"}]}',
        '{"plan": {"summary": "s", "subtasks": [{"id": "a", "instructions": "x"}]}}',
        '{"summary": "s", "subtasks": [{"id": "a b", "instructions": "x"}]}',
        '{"summary": "s", "subtasks": [{"id": "a"}]}',
        '{"summary": "s", "subtasks": ["a"]}',
    ],
)
def test_where_it_is_not_sure_it_tells_nothing(text: str) -> None:
    assert read(text, 5)[0] == []


def test_beyond_the_allowed_number_it_tells_nothing_more() -> None:
    parts = ", ".join(f'{{"id": "t{number}", "instructions": "x"}}' for number in range(5))
    reader = PlanReader(3)
    told = [
        subtask.id for piece in f'{{"summary": "", "subtasks": [{parts}' for subtask in feed(reader, piece)
    ]
    assert told == ["t0", "t1", "t2"]
