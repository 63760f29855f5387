"""A plan: how it is read from a planner's text, and what makes it invalid."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.endpoint import fenced

from orchestrator.core import config, plan, plan_entries
from orchestrator.core import plan_text as reading
from orchestrator.core.instance import Subtask
from orchestrator.core.plan import PlanError
from orchestrator.core.plan_text import parse
from orchestrator.errors import InvalidArgumentError
from orchestrator.models.scripted import plan_text
from orchestrator.v1 import instance_pb2 as pb

ids = st.from_regex(plan.ID, fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda text: text == text.strip() and text.strip(".…")  # dots alone stand for what is left out
)


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
    return parse(json.dumps({"subtasks": entries}), 16)


@given(plans())
def test_a_valid_plan_is_parsed_as_written(subtasks: tuple[Subtask, ...]) -> None:
    read = parse(written(subtasks), 16)
    assert (read.summary, read.subtasks) == ("all of it", subtasks)


@given(plans(), st.sampled_from(["Sure! {", "", "```json\n", "\ufeff", "[1] "]))
def test_prose_or_a_fence_around_a_plan_is_ignored(subtasks: tuple[Subtask, ...], before: str) -> None:
    text = written(subtasks)
    assert parse(f"{before}{text}\n```\nGood luck {{", 16).subtasks == subtasks
    assert parse(fenced(text), 16).subtasks == subtasks


@given(st.text() | st.text('{}[]",:n1 ', max_size=60) | st.just("{" * 100_000) | st.just('{"a":' * 50_000))
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    try:
        read = parse(text, 16)
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
        read = parse(json.dumps({"summary": summary, "subtasks": subtasks}), 3)
    except PlanError:
        return
    assert 1 <= len(read.subtasks) <= 3


@given(plans(), st.data())
def test_a_cycle_is_detected_and_shown(subtasks: tuple[Subtask, ...], data: st.DataObject) -> None:
    first, last = sorted(data.draw(st.integers(0, len(subtasks) - 1)) for _ in range(2))
    chained = list(subtasks)
    for index in range(first, last):
        chained[index + 1] = chained[index + 1]._replace(depends_on=(chained[index].id,))
    chained[first] = chained[first]._replace(depends_on=(chained[last].id,))
    with pytest.raises(PlanError, match="cycle") as caught:
        plan.validate(chained, 16)
    assert chained[first].id in str(caught.value)


def test_fields_that_a_planner_omits_get_defaults() -> None:
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


def test_a_repeated_dependency_counts_once() -> None:
    read = parsed({"title": "a"}, {"title": "b", "depends_on": ["t1", "t1"]})
    assert read.subtasks[1].depends_on == ("t1",)


@pytest.mark.parametrize(
    ("entries", "mend"),
    [
        ((), "1 to 16 subtasks; this one has 0"),
        (({"title": "a"},) * 17, "1 to 16 subtasks; this one has 17"),
        (({"id": "a\n", "title": "a"}, {"id": "a", "title": "a"}), "'a' is there twice"),
        (({"id": "a"},), "'a' has no instructions"),
        (({"instructions": "ä" * 32769},), "over 64 KiB"),
        (({"title": "a", "depends_on": ["b"]},), "depends on 'b', which is not in the plan"),
        (({"title": "a", "depends_on": ["t1"]},), "cycle: t1 → t1"),
        (({"title": "a", "depends_on": True},), 'has a "depends_on" that is not a list of ids: true'),
        (({"title": "a", "depends_on": {"why": "x"}},), "names no id"),
        (({"title": "a", "depends_on": 0},), "depends on '0', which is not in the plan: its ids are t1"),
        (({"title": "a"}, {"title": "A"}, {"title": "b", "depends_on": "a"}), "may be any of t1, t2"),
        (({"title": "a", "worker": ["x", "y"]},), 'worker" that is not one name'),
        (({"id": "a b", "title": "a"}, {"id": "a b", "title": "b"}), "'a b' is there twice"),
        (({"title": "a", "instructions": "..."},), "subtask 't1' has no instructions"),
        (({"id": "x", "title": "a", "subtasks": [{"title": "b"}]},), "'x' holds subtasks of its own"),
        ((7,), "subtask 1 is neither a JSON object nor a text"),
    ],
)
def test_an_invalid_plan_is_reported_with_its_mend(entries: tuple[Any, ...], mend: str) -> None:
    with pytest.raises(PlanError, match=mend):
        parsed(*entries)


@pytest.mark.parametrize(
    ("subtask", "mend"),
    [
        (Subtask("a b", "A", "do a"), "subtask id 'a b' does not match"),
        (Subtask("-a", "A", "do a"), "subtask id '-a' does not match"),
        (Subtask("a\n", "A", "do a"), "does not match"),
        (Subtask("a", "A", " "), "'a' has no instructions"),
        (Subtask("b", "B", "do b", ("A",)), "depends on 'A', which is not in the plan: its ids are b"),
        (Subtask("a", "A" * 201, "do a"), "a title of over 200 characters"),
        (Subtask("a", "A", "do a", worker="w" * 101), "a worker of over 100 characters"),
    ],
)
def test_a_plan_of_the_client_is_accepted_unchanged(subtask: Subtask, mend: str) -> None:
    with pytest.raises(PlanError, match=mend):
        plan.validate([subtask], 16)


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        (" ", "the answer is empty"),
        ("I cannot do that.", "no JSON object"),
        ('{"summary": "a", "subtasks": [{"title": "b"', r"character 43 .*in subtasks\[0\].* the text ends"),
        ('{"a": 1}', "no \"subtasks\" list; the keys of its JSON object: 'a'"),
        ('{"plan": []}', "1 to 16 subtasks; this one has 0"),
        ('{"subtasks": {"t1": {}}}', "subtask 't1' has no instructions"),
        ('{"subtasks": null}', 'the answer\'s "subtasks" is no list of subtasks: null'),
        ('{"subtasks": "later"}', "no list of subtasks"),
        ('{"subtasks": {"type": "array", "items": {"type": "object"}}}', "no list of subtasks"),
        ("[1, 2]", r'no "subtasks" list, but this one: \[1, 2\]'),
    ],
)
def test_an_answer_that_is_not_a_plan_is_reported_with_the_reason(text: str, mend: str) -> None:
    with pytest.raises(PlanError, match=mend):
        parse(text, 16)


WHOLE = {"summary": "how", "subtasks": [{"title": "a"}, {"title": "b", "depends_on": ["t1"]}]}
ONE = {"id": "t1", "title": "a"}


@pytest.mark.parametrize(
    "needs",
    [
        *(
            "t1",
            "T1",
            "1",
            1,
            1.0,
            [1],
            "Task 1",
            "#1",
            "a",
            "A",
            "t1: a",
            '["t1"]',
            "t1, t1",
            ["t1", "", None],
        ),
        *({"id": "t1"}, {"task": 1}, [{"id": "t1", "why": "x"}], {"title": "a"}, [["t1"]], " t1 ", "t1 & a"),
        *("subtask t1", "Task a", ["step: t1"]),
    ],
    ids=str,
)
def test_a_dependency_is_recognised_in_every_usual_notation(needs: Any) -> None:
    assert parsed(ONE, {"id": "t2", "title": "b", "depends_on": needs}).subtasks[1].depends_on == ("t1",)


@pytest.mark.parametrize(
    "needs",
    [
        *(
            "",
            [""],
            ["none"],
            "None",
            "N/A",
            "null",
            None,
            False,
            [],
            {},
            [None],
            ["-"],
            "no dependencies",
            "[]",
        ),
        *(["None (can start at once)"], "None - it comes first", "none: independent", "N/A, it is the first"),
    ],
    ids=str,
)
def test_the_absence_of_dependencies_is_recognised_in_every_usual_notation(needs: Any) -> None:
    assert parsed(ONE, {"id": "t2", "title": "b", "depends_on": needs}).subtasks[1].depends_on == ()


def test_one_text_may_list_several_dependencies() -> None:
    for needs in ("t1, t2", "t1 and t2", "t1; b", "t1 t2", ["t1, t2"], "1, 2"):
        read = parsed(ONE, {"id": "t2", "title": "b"}, {"title": "c", "depends_on": needs})
        assert read.subtasks[2].depends_on == ("t1", "t2"), needs


def test_an_exact_id_takes_precedence_over_other_interpretations() -> None:
    read = parsed(
        {"id": "none", "title": "t2"},
        {"id": "t2", "title": "1, 2", "depends_on": "none"},
        {"id": "1", "title": "x", "depends_on": ["t2"]},
        {"id": "v", "title": "y", "depends_on": "1, 2"},
    )
    assert [subtask.depends_on for subtask in read.subtasks] == [(), ("none",), ("t2",), ("t2",)]


def test_invalid_ids_are_made_valid_and_their_references_follow() -> None:
    read = parsed(
        {"id": "task 1", "title": "a"},
        {"id": "task-1", "title": "b", "depends_on": ["task 1"]},
        {"id": "été.2", "title": "c", "depends_on": ["task-1"]},
        {"id": "步骤", "title": "d", "depends_on": ["été.2"]},
        {"id": 5, "title": "e", "depends_on": ["步骤"]},
        {"id": "-", "title": "f", "depends_on": [5]},
        {"id": "x" * 200, "title": "g"},
    ).subtasks
    assert [subtask.id for subtask in read] == ["task-1-2", "task-1", "ete-2", "t4", "5", "t6", "x" * 90]
    assert [subtask.depends_on for subtask in read[:6]] == [
        (), ("task-1-2",), ("task-1",), ("ete-2",), ("t4",), ("5",)
    ]  # fmt: skip


def test_a_missing_id_does_not_change_the_other_ids() -> None:
    read = parsed({"title": "a"}, {"id": "t1", "title": "b", "depends_on": ["a"]}).subtasks
    assert [(subtask.id, subtask.depends_on) for subtask in read] == [("t1-2", ()), ("t1", ("t1-2",))]


@pytest.mark.parametrize(
    ("entry", "subtask"),
    [
        ("Write it", Subtask("t1", "Write it", "Write it")),
        ({"name": "A", "description": "do a"}, Subtask("t1", "A", "do a")),
        ({"task": "do a", "agent": "coder"}, Subtask("t1", "t1", "do a", worker="coder")),
        ({"task": "A", "details": "do a"}, Subtask("t1", "A", "A\n\ndo a")),
        ({"step": 3, "Prompt": "do a"}, Subtask("3", "3", "do a")),
        ({"taskId": "x", "title": "A", "steps": ["do a", "do b"]}, Subtask("x", "A", "do a\ndo b")),
        ({"id": "x", "instructions": "do a", "description": "b"}, Subtask("x", "x", "do a")),
        ({"id": "x", "title": "A", "worker": {"name": "coder"}}, Subtask("x", "A", "A", (), "coder")),
        ({"id": "x", "instructions": "do a", "worker": ["coder"]}, Subtask("x", "x", "do a", (), "coder")),
        ({"id": "x", "instructions": "do a", "worker": None}, Subtask("x", "x", "do a")),
        ({"id": "x", "instructions": "do a", "worker": "none", "note": 1}, Subtask("x", "x", "do a")),
    ],
)  # fmt: skip
def test_usual_alternative_names_and_forms_of_a_subtask_are_accepted(entry: Any, subtask: Subtask) -> None:
    assert parsed(entry).subtasks == (subtask,)


def test_dependencies_under_all_their_names_are_combined() -> None:
    read = parsed(ONE, {"title": "b", "deps": "t1"}, {"title": "c", "dependencies": [1], "after": ["b"]})
    assert [subtask.depends_on for subtask in read.subtasks] == [(), ("t1",), ("t1", "t2")]


@pytest.mark.parametrize(
    "value",
    [
        *({"plan": WHOLE}, {"plan": {**WHOLE, "summary": ""}, "summary": "how"}, [WHOLE], json.dumps(WHOLE)),
        *({"summary": "how", other: WHOLE["subtasks"]} for other in ("plan", "tasks", "steps", "Sub-Tasks")),
        {"summary": "how", "phases": [{"task": "a"}, {"task": "b", "depends_on": 1}]},
        {"summary": "how", "subtasks": {"t1": {"title": "a"}, "t2": {"title": "b", "depends_on": "t1"}}},
        {"overview": "how", "subtasks": json.dumps(WHOLE["subtasks"])},
        {"type": "function", "function": {"name": "plan", "arguments": json.dumps(WHOLE)}},
        {"type": "object", "properties": WHOLE},
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_plan_is_found_at_any_depth(value: Any) -> None:
    read = parse(json.dumps(value), 16)
    assert read.summary == "how"
    assert [(subtask.id, subtask.depends_on) for subtask in read.subtasks] == [("t1", ()), ("t2", ("t1",))]


@pytest.mark.parametrize("value", [WHOLE["subtasks"], ["a", "b"]], ids=["objects", "texts"])
def test_a_bare_list_is_a_plan(value: Any) -> None:
    assert [subtask.instructions for subtask in parse(fenced(json.dumps(value)), 16).subtasks] == ["a", "b"]


T1, T2 = WHOLE["subtasks"]


@pytest.mark.parametrize(
    "text",
    [
        f"{json.dumps(T1)}\n{json.dumps(T2)}",
        json.dumps({"t1": T1, "t2": T2}),
        json.dumps({"summary": "how", "t1": T1, "t2": T2}),
        json.dumps({"subtasks": [{"t1": T1}, {"t2": T2}]}),
        json.dumps({"subtasks": [T1, {}, None, T2]}),
        json.dumps(WHOLE).replace('"', '\\"'),
        json.dumps(json.dumps(json.dumps(WHOLE))),
    ],
    ids=["lines", "by-id", "by-id-and-summary", "wrapped", "holes", "escaped", "string-in-string"],
)
def test_a_plan_in_an_unusual_form_is_accepted_where_there_is_no_other(text: str) -> None:
    read = parse(text, 16)
    assert [(subtask.id, subtask.depends_on) for subtask in read.subtasks] == [("t1", ()), ("t2", ("t1",))]


def test_data_beside_a_plan_is_ignored_though_it_resembles_an_unusual_plan() -> None:
    data = {"user": {"name": "a text"}, "post": {"title": "a text"}}
    assert parse(f"The model: {json.dumps(data)}\n{json.dumps(WHOLE)}", 16).summary == "how"


EXAMPLE = '{"summary": "...", "subtasks": [{"id": "t1", "title": "...", "instructions": "..."}, ...]}'


@pytest.mark.parametrize(
    "before",
    [
        *('It is like {"a": 1}.', "Ids in [0, 9), {name}s, [1].", f"The form is {EXAMPLE}"),
        f"`{EXAMPLE[:-7]}]}}`",
        *(json.dumps(plan.schema(16)), '{"id": "t1", "title": "…"} is one.', '["a"]', json.dumps(WHOLE)),
    ],
)  # fmt: skip
def test_json_in_the_prose_before_the_plan_is_not_the_plan(before: str) -> None:
    read = parse(f"{before}\nThe plan: {json.dumps(WHOLE)}\nThat is {{all}}.", 16)
    assert (read.summary, [subtask.title for subtask in read.subtasks]) == ("how", ["a", "b"])


def test_two_plans_are_rejected() -> None:
    other = json.dumps({"summary": "how", "subtasks": [{"title": "c"}]})
    lists = '{"tasks": ["a"], "steps": ["b"]}'
    for text in (f"{json.dumps(WHOLE)} or {other}", f"[{json.dumps(WHOLE)}, {other}]", lists):
        with pytest.raises(PlanError, match="holds two plans"):
            parse(text, 16)


def test_streamed_subtasks_cannot_be_withdrawn_by_a_second_plan() -> None:
    broken = '{"summary": "s", "subtasks": [{"id": "t9", "instructions": "x"}, {"id" 1}]}'
    with pytest.raises(PlanError, match="holds two plans"):
        parse(f"{broken} Once more: {json.dumps(WHOLE)}", 16)


@pytest.mark.parametrize("after", ["", "\n", "\n```\n"])
def test_a_plan_that_lacks_only_its_last_brace_is_complete(after: str) -> None:
    assert len(parse(json.dumps(WHOLE)[:-1] + after, 16).subtasks) == 2
    assert len(parse(f'{{"plan": {json.dumps(WHOLE)[:-1]}{after}', 16).subtasks) == 2


@given(plans(), st.data(), st.sampled_from([json.dumps, lambda value: json.dumps({"plan": value})]))
def test_a_truncated_answer_is_never_a_plan(
    subtasks: tuple[Subtask, ...], data: st.DataObject, form: Any
) -> None:
    nested = {"title": "a part", "subtasks": [{"id": "x", "instructions": "inner"}]}
    value = json.loads(written(subtasks))
    value["subtasks"].append(nested)
    text = form(value)
    with pytest.raises(PlanError):
        parse(text[: data.draw(st.integers(0, text.rindex("]")))], 16)
    by_id = form({"summary": "s", "subtasks": {entry["id"]: entry for entry in value["subtasks"][:-1]}})
    with pytest.raises(PlanError):
        parse(by_id[: data.draw(st.integers(0, len(by_id) - 1))], 16)


@pytest.mark.parametrize("chained", [False, True])
def test_the_scripted_plan_is_valid(chained: bool) -> None:
    assert len(parse(plan_text(16, chained=chained), 16).subtasks) == 16


def test_the_schema_satisfies_strict_endpoints() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            if value.get("type") == "object":
                assert value["additionalProperties"] is False
                assert set(value["required"]) == set(value["properties"])
            for inner in value.values():
                check(inner)

    check(plan.schema(7))
    assert plan.schema(7)["properties"]["subtasks"]["maxItems"] == 7  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (written((Subtask("a", "A", "Do."),), "x" * 600_000), "600,"),
        ("[" + "{}," * 20_000, "commas and brackets"),
    ],
)
def test_an_answer_that_takes_long_to_read_is_refused_before_it_is_read(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("read", "values"):
        monkeypatch.setattr(reading, name, pytest.fail)
    for read in (lambda: parse(text, 64), lambda: reading.outlines(text)):
        with pytest.raises(PlanError, match=words):
            read()


@pytest.mark.parametrize(
    ("subtasks", "words"),
    [
        ([pb.Subtask(id="a")] * 65, "a plan needs 1 to 64 subtasks; this one has 65"),
        ([pb.Subtask(id="a", depends_on=["b"] * 65)], "names 65 dependencies, and there are 1 subtasks"),
    ],
)
def test_a_clients_plan_that_is_too_large_is_rejected_before_it_is_copied(
    subtasks: list[pb.Subtask], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = pb.InstanceConfig(subtasks=subtasks, max_subtasks=64)
    for name in ("_overlay", "subtask_of"):
        monkeypatch.setattr(config, name, pytest.fail)
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        config.resolve(requested, config.default("a/b", "a/c"))
    assert caught.value.reason == "PLAN_INVALID"


def test_a_long_text_in_the_place_of_dependencies_names_none() -> None:
    with pytest.raises(PlanError, match="not in the plan"):
        parsed({"id": "a", "title": "A"}, {"id": "b", "title": "B", "depends_on": "a, " * 10_000})


def test_too_many_subtasks_are_rejected_before_any_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(plan_entries, "_parse_entry", fail)
    text = json.dumps({"subtasks": [None, *({"id": f"t{number}", "title": "One"} for number in range(17))]})
    with pytest.raises(PlanError, match="a plan needs 1 to 16 subtasks; this one has 17"):
        parse(text, 16)
