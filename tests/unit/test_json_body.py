"""JSON of any size is read as `json.loads` does, in steps of a bounded size."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models.http import json_body
from orchestrator.models.http.json_body import TooManyValuesError, dumps, loads

TEXTS = st.sampled_from(
    ["", "a", "\\", '"', "\n", "\0", "\x000", "é", "😀", "\ud83d", "\ude00", "{[,", "\\u0041"]
)
LONG_TEXTS = st.lists(TEXTS, max_size=60).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | LONG_TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(LONG_TEXTS, inner, max_size=4),
    max_leaves=8,
)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "SMALL_BYTES", 0)
    monkeypatch.setattr(json_body, "_LONG_STRING", 9)
    monkeypatch.setattr(json_body, "_PIECE", 13)


@pytest.mark.usefixtures("small_steps")
@given(VALUES, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.booleans())
def test_it_says_what_the_standard_library_reads(value: Any, encoding: str, ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).encode(encoding, "surrogatepass")
    assert loads(data) == json.loads(data)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("ascii_only", [True, False])
def test_halves_of_a_pair_are_one_character_only_where_both_are_escapes(ascii_only: bool) -> None:
    for filling in range(40):
        text = json.dumps("a" * filling + "\ud83d\ude00", ensure_ascii=ascii_only)
        data = text.encode("utf-8", "surrogatepass")
        assert loads(data) == json.loads(data)


@pytest.mark.usefixtures("small_steps")
@given(
    st.lists(st.sampled_from(['"', "\\", "\\u", "00e9", "[", "]", ",", "a" * 20, "\n", "1"]), max_size=9).map(
        "".join
    )
)
def test_what_is_no_json_is_refused_as_there(text: str) -> None:
    outcomes = []
    for read in (json.loads, loads):
        try:
            outcomes.append(read(text.encode()))
        except ValueError:
            outcomes.append(ValueError)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("part", ["{},", "[],", '"",', "1,", '{"a":1},'])
def test_more_values_than_any_answer_has_are_refused_before_they_are_read(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "loads", pytest.fail)
    with pytest.raises(TooManyValuesError):
        loads(b"[" + part.encode() * 60_000 + b"1]")


@pytest.mark.usefixtures("small_steps")
@given(st.dictionaries(LONG_TEXTS, VALUES, max_size=4))
def test_it_writes_what_the_standard_library_does(body: dict[str, Any]) -> None:
    assert dumps(body) == json.dumps(body, ensure_ascii=False).encode(errors="replace")


def test_no_call_writes_more_than_a_piece_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"messages": [{"role": "user", "content": 'It is "so" or é.\n' * 100_000}]}
    expected = json.dumps(body, ensure_ascii=False).encode()
    longest, write = 0, json.dumps

    def counted(value: object, **options: Any) -> str:
        nonlocal longest
        text = write(value, **options)
        longest = max(longest, len(text))
        return text

    monkeypatch.setattr(json, "dumps", counted)
    assert dumps(body) == expected
    assert longest <= 2 * 64 * 1024


def test_no_call_reads_more_than_a_piece_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'It is "so".\n' * 500_000
    data = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
    longest, read = 0, json.loads

    def counted(part: str) -> Any:
        nonlocal longest
        longest = max(longest, len(part))
        return read(part)

    monkeypatch.setattr(json, "loads", counted)
    assert loads(data)["choices"][0]["message"]["content"] == text
    assert longest <= 64 * 1024 + 2
