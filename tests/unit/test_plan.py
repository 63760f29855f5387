"""A plan: how it is read from a planner's text, and what makes it invalid."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.endpoint import fenced

from orchestrator.core import plan
from orchestrator.core.plan import PlanError
from orchestrator.core.state import Subtask
from orchestrator.models.scripted import plan_text

ids = st.from_regex(plan.ID, fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text == text.strip())


@st.composite
def plans(draw: st.DrawFn) -> tuple[Subtask, ...]:
    """Valid plans: each subtask depends on earlier ones only."""
    names = draw(st.lists(ids, min_size=1, max_size=16, unique=True))
    return tuple(
        Subtask(
            id=name,
            title=" ".join(draw(texts).split())[:200].strip() or name,
            instructions=draw(texts),
            depends_on=tuple(draw(st.sets(st.sampled_from(names[:index])) if index else st.just(set()))),
            worker=draw(st.sampled_from(["", "coder"])),
        )
        for index, name in enumerate(names)
    )


def written(subtasks: tuple[Subtask, ...], summary: str = "all of it") -> str:
    entries = [
        {
            "id": subtask.id,
            "title": subtask.title,
            "instructions": subtask.instructions,
            "depends_on": list(subtask.depends_on),
            "worker": subtask.worker,
        }
        for subtask in subtasks
    ]
    return json.dumps({"summary": summary, "subtasks": entries})


def parsed(*entries: dict[str, Any]) -> plan.Plan:
    return plan.parse(json.dumps({"subtasks": entries}), 16)


@given(plans())
def test_a_valid_plan_is_read_as_it_was_written(subtasks: tuple[Subtask, ...]) -> None:
    read = plan.parse(written(subtasks), 16)
    assert (read.summary, read.subtasks) == ("all of it", subtasks)


@given(plans(), st.sampled_from(["Sure! {", "", "```json\n", "\ufeff", "[1] "]))
def test_prose_or_a_fence_around_a_plan_does_not_matter(subtasks: tuple[Subtask, ...], before: str) -> None:
    text = written(subtasks)
    assert plan.parse(f"{before}{text}\n```\nGood luck {{", 16).subtasks == subtasks
    assert plan.parse(fenced(text), 16).subtasks == subtasks


@given(st.text() | st.text('{}[]",:n1 ', max_size=60) | st.just("{" * 100_000) | st.just('{"a":' * 50_000))
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    try:
        read = plan.parse(text, 16)
    except PlanError:
        return
    assert plan.validate(read.subtasks, 16) == read.subtasks


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("id", "title", "instructions", "depends_on", "worker"), json_values)
)


@given(st.lists(entries | json_values, max_size=4), json_values)
def test_json_of_any_shape_is_a_plan_or_a_plan_error(subtasks: list[Any], summary: Any) -> None:
    try:
        read = plan.parse(json.dumps({"summary": summary, "subtasks": subtasks}), 3)
    except PlanError:
        return
    assert 1 <= len(read.subtasks) <= 3


@given(plans(), st.data())
def test_a_cycle_is_found_and_shown(subtasks: tuple[Subtask, ...], data: st.DataObject) -> None:
    first, last = sorted(data.draw(st.integers(0, len(subtasks) - 1)) for _ in range(2))
    chained = list(subtasks)
    for index in range(first, last):
        chained[index + 1] = chained[index + 1]._replace(depends_on=(chained[index].id,))
    chained[first] = chained[first]._replace(depends_on=(chained[last].id,))
    with pytest.raises(PlanError, match="cycle") as caught:
        plan.validate(chained, 16)
    assert chained[first].id in str(caught.value)


def test_what_a_planner_leaves_out_is_filled_in() -> None:
    read = parsed(
        {"title": "Write it"}, {"instructions": "Test it"}, {"id": "x", "title": "T", "depends_on": None}
    )
    assert read.subtasks == (
        Subtask("t1", "Write it", "Write it"),
        Subtask("t2", "t2", "Test it"),
        Subtask("x", "T", "T"),
    )


def test_a_title_is_one_line_of_bounded_length() -> None:
    [subtask] = parsed({"title": "a\n b" * 200}).subtasks
    assert "\n" not in subtask.title
    assert len(subtask.title) == plan.MAX_TITLE_CHARACTERS


def test_a_dependency_said_twice_counts_once() -> None:
    read = parsed({"title": "a"}, {"title": "b", "depends_on": ["t1", "t1"]})
    assert read.subtasks[1].depends_on == ("t1",)


@pytest.mark.parametrize(
    ("entries", "mend"),
    [
        ((), "1 to 16 subtasks; this one has 0"),
        (({"title": "a"},) * 17, "1 to 16 subtasks; this one has 17"),
        (({"id": "a b", "title": "a"},), "subtask id 'a b' does not match"),
        (({"id": "-a", "title": "a"},), "subtask id '-a' does not match"),
        (({"id": "a\n", "title": "a"}, {"id": "a", "title": "a"}), "'a' is there twice"),
        (({"id": "a"},), "'a' has no instructions"),
        (({"instructions": "ä" * 32769},), "over 64 KiB"),
        (({"title": "a", "depends_on": ["b"]},), "depends on 'b', which is not in the plan"),
        (({"title": "a", "depends_on": ["t1"]},), "cycle: t1 → t1"),
        (({"title": "a", "depends_on": "t1"},), "not a list"),
        (("Write it",), "subtask 1 is not a JSON object"),
    ],
)
def test_an_invalid_plan_says_what_to_mend(entries: tuple[Any, ...], mend: str) -> None:
    with pytest.raises(PlanError, match=mend):
        parsed(*entries)


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("I cannot do that.", "no JSON object"),
        ('{"summary": "a", "subtasks": [{"title": "b"', "breaks at character"),
        ('{"plan": []}', 'no "subtasks" list'),
        ('{"subtasks": {"t1": {}}}', 'no "subtasks" list'),
    ],
)
def test_an_answer_that_is_no_plan_says_why(text: str, mend: str) -> None:
    with pytest.raises(PlanError, match=mend):
        plan.parse(text, 16)


@pytest.mark.parametrize("chained", [False, True])
def test_the_scripted_plan_is_valid(chained: bool) -> None:
    assert len(plan.parse(plan_text(16, chained=chained), 16).subtasks) == 16


def test_the_schema_is_what_strict_endpoints_ask_for() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("type") == "object":
                assert value["additionalProperties"] is False
                assert set(value["required"]) == set(value["properties"])
            for inner in value.values():
                check(inner)

    check(plan.schema(7))
    assert plan.schema(7)["properties"]["subtasks"]["maxItems"] == 7  # type: ignore[index]
