"""A plan read while it is being written."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import plan_text
from orchestrator.core.instance import Subtask
from orchestrator.core.plan import PlanError
from orchestrator.core.plan_text import PlanReader, parse

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
    emitted = [
        subtask for start in range(0, len(text), size) for subtask in feed(reader, text[start : start + size])
    ]
    return emitted, reader


@given(PLANS, st.integers(1, 40), st.sampled_from([None, 2]), st.booleans())
def test_it_emits_every_subtask_of_the_whole_text(
    value: object, size: int, indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    emitted, reader = read(text, size)
    whole = parse(text, 16)
    assert tuple(emitted) == whole.subtasks
    assert reader.summary == whole.summary


NEEDS = st.sampled_from(
    ["t0", "t1, t2", "", [""], ["none"], None, ["t0"], ["t3"], "title", 1, [{"id": "t1"}], []]
)
ENTRIES = (
    st.fixed_dictionaries(
        {
            "id": st.sampled_from([*("t0", "t1", "t2", "t3", "none"), 1, "1", "a b", "a-b", None]),
            "title": PROSE,
        },
        optional={
            "instructions": PROSE,
            "task": PROSE,
            "depends_on": NEEDS,
            "deps": NEEDS,
            "worker": st.sampled_from(["coder", "none", None, {"name": "x"}]),
        },
    )
    | PROSE
)
MEANT: Sequence[Callable[[Any], Any]] = (
    lambda value: value,
    lambda value: {"plan": value},
    lambda value: value["subtasks"],
    lambda value: [value],
    lambda value: {"summary": value["summary"], "tasks": value["subtasks"]},
    lambda value: {"subtasks": value["subtasks"], "summary": "last"},
    lambda value: {**value, "subtasks": json.dumps(value["subtasks"])},
    json.dumps,
)
WRITTEN: Sequence[Callable[[str], str]] = (
    lambda text: text,
    lambda text: text.replace("}", ",}"),
    lambda text: text.replace("]", ",]"),
    lambda text: text.replace(", ", ", // as said {\n"),
    lambda text: text.replace(", ", ' /* "subtasks": [ */, '),
    lambda text: text.replace(r"\n", "\n"),
    lambda text: text.replace('"', "'"),
    lambda text: text.replace('\\"', '"'),
    lambda text: text.replace("}, {", "} {"),
    lambda text: text[:-1],
    lambda text: f'As in {{"a": 1}}:\n```json\n{text}\n```',
    lambda text: f"{text} or {text.replace('do', 'make')}",
    lambda text: f"{text[:-2]}, oops]}} Once more: {text.replace('do', 'make')}",
)


def assert_prefix(text: str, size: int) -> None:
    """Assert that the emitted subtasks are a prefix of the whole plan, if that is a plan."""
    emitted, reader = read(text, size)
    try:
        whole = parse(text, 16)
    except PlanError:
        return
    assert tuple(emitted) == whole.subtasks[: len(emitted)]
    assert not emitted or reader.summary == whole.summary


@given(
    PLANS, st.lists(ENTRIES, max_size=3), st.sampled_from(MEANT), st.sampled_from(WRITTEN), st.integers(1, 40)
)
@settings(max_examples=500)
def test_it_emits_nothing_that_the_whole_plan_lacks_in_any_notation(
    value: Any, more: Any, meant: Callable[[Any], Any], form: Callable[[str], str], size: int
) -> None:
    value["subtasks"] += more
    assert_prefix(form(json.dumps(meant(value), ensure_ascii=False)), size)


@given(PLANS, st.text(st.sampled_from('{}[]",:\\ subtasks'), max_size=20), st.data(), st.integers(1, 40))
def test_it_emits_nothing_that_the_whole_plan_lacks_after_any_insertion_or_deletion(
    value: object, put_in: str, data: st.DataObject, size: int
) -> None:
    text = json.dumps(value)
    assert_prefix(put_in + text, size)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 3, len(text))))
    assert_prefix(text[:start] + put_in[:3] + text[end:], size)


def test_each_subtask_is_emitted_as_soon_as_it_is_complete() -> None:
    reader = PlanReader(16)
    assert not feed(reader, '{"summary": "how", "subtasks": [{"id": "a", "instructions": "do {a}"')
    assert reader.summary == "how"
    (first,) = feed(reader, '}, {"id": "b"')
    assert (first.id, first.instructions) == ("a", "do {a}")
    (second,) = feed(reader, ', "instructions": "x", "depends_on": ["a"]} ')
    assert second.depends_on == ("a",)
    assert not feed(reader, "]}")


def test_a_subtask_with_later_dependencies_is_withheld_until_they_are_parsed() -> None:
    reader = PlanReader(16)
    assert not feed(
        reader, '{"summary": "", "subtasks": [{"id": "a", "instructions": "x", "depends_on": ["c"]},'
    )
    assert not feed(reader, '{"id": "b", "instructions": "x"},')
    assert [emitted.id for emitted in feed(reader, '{"id": "c", "instructions": "x"},')] == ["a", "b", "c"]
    assert not feed(reader, '{"id": "d", "instructions": "x", "depends_on": ["nobody"]}]}')


@pytest.mark.parametrize(
    "text",
    [
        '{"subtasks": [{"id": "a", "instructions": "x"}], "summary": "too late"}',
        '{"summary": 3, "subtasks": [{"id": "a", "instructions": "x"}]}',
        '{"plan": {"summary": "s", "subtasks": [{"id": "a", "instructions": "x"}]}}',
        '{"summary": "s", "subtasks": [{"id": "a b", "instructions": "x"}]}',
        '{"summary": "s", "subtasks": [{"instructions": "x"}]}',
        '{"summary": "s", "subtasks": [{"id": "a", "instructions": "x", "depends_on": ["none"]}]}',
        '{"summary": "s", "subtasks": [{"id": "a", "instructions": "x\ny"}]}',
        '{"summary": "s", "subtasks": ["a", {"id": "b", "instructions": "x"}]}',
        '{"summary": "s", "subtasks": [{"id": "a"}]}',
        '{"summary": "s", "subtasks": ["a"]}',
    ],
)
def test_it_emits_nothing_from_ambiguous_text(text: str) -> None:
    assert read(text, 5)[0] == []


def test_it_emits_nothing_beyond_the_allowed_number() -> None:
    parts = ", ".join(f'{{"id": "t{number}", "instructions": "x"}}' for number in range(5))
    reader = PlanReader(3)
    emitted = [
        subtask.id for piece in f'{{"summary": "", "subtasks": [{parts}' for subtask in feed(reader, piece)
    ]
    assert emitted == ["t0", "t1", "t2"]


def test_a_plan_full_of_braces_is_scanned_once_in_any_chunking(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0

    class Counting(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            nonlocal decoded
            decoded += 1
            return super().raw_decode(s, idx)

    monkeypatch.setattr(plan_text, "_DECODER", Counting())
    braces = "}" * 5000
    subtask = {"id": "t1", "title": "", "instructions": braces, "depends_on": [], "worker": ""}
    emitted, _ = read(json.dumps({"summary": "How.", "subtasks": [subtask]}), 4)
    assert [each.instructions for each in emitted] == [braces]
    assert decoded == 1


def test_a_text_without_a_list_is_scanned_once_in_any_chunking(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = 0
    pattern = plan_text._LIST

    class Counting:
        def search(self, text: str, start: int) -> object:
            nonlocal searched
            searched += len(text) - start
            return pattern.search(text, start)

    monkeypatch.setattr(plan_text, "_LIST", Counting())
    text = '{"summary": "' + "}" * 5000
    assert read(text, 4)[0] == []
    assert searched < 10 * len(text)


def test_a_key_split_over_chunks_starts_the_list() -> None:
    subtask = '{"id": "t1", "title": "One", "instructions": "Do.", "depends_on": [], "worker": ""}'
    text = '{"summary": "] } \\"subtasks\\"", "subtasks" : [' + subtask + "]}"
    for size in range(1, 20):
        assert [each.id for each in read(text, size)[0]] == ["t1"]


@pytest.mark.parametrize("before", ['{"x": [', '{"summary": "', '{"summary": "", "subtasks": [{"id": ["'])
@pytest.mark.parametrize("size", [16, 16 * 1024])
def test_no_more_is_kept_than_can_be_read_at_once(before: str, size: int) -> None:
    reader = PlanReader(64)
    text = before + "{}," * 100_000
    for start in range(0, len(text), size):
        reader.add(text[start : start + size])
        reader.read()
        assert len(reader._text) <= 64 * 1024


def test_an_endless_subtask_is_not_buffered_forever() -> None:
    _, reader = read('{"summary": "", "subtasks": [{"id": "' + "}" * (3 << 20), 1 << 16)
    kept = [value for value in vars(reader).values() if isinstance(value, str)]
    assert sum(map(len, kept)) == 0
    reader.add("}")
    assert reader.read() == ()
