"""JSON as models write it: what has one reading is read, all else is refused where it breaks."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.core import lenient_json
from orchestrator.core.lenient_json import JsonFaultError, read, values

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@example(value={"a": "", "]\x1f": None}, indent=None, ascii_only=True)  # the second key has an escape
@given(json_values, st.sampled_from([None, 1]), st.booleans())
def test_valid_json_is_parsed_as_json(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read(text) == (value, len(text))
    assert lenient_json._Reader(text).value(0) == (value, len(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2,],}', {"a": [1, 2]}),
        ('{"a": 1, // one\n "b": 2}', {"a": 1, "b": 2}),
        ('{"a": /* one */ 1, # and\n "b": 2}', {"a": 1, "b": 2}),
        ('{"a": "http://x//y",}', {"a": "http://x//y"}),
        ('{"a": "x\ny\tz\x01"}', {"a": "x\ny\tz\x01"}),
        ("{'a': True, 'b': None, 'c': False}", {"a": True, "b": None, "c": False}),
        ("{'a': 'it\\'s \"b\"'}", {"a": 'it\'s "b"'}),
        ("{a: 1, b-c: undefined}", {"a": 1, "b-c": None}),
        ('{“a”: “b”, `c`: `d\n"e"`}', {"a": "b", "c": 'd\n"e"'}),
        ('{"a": """x\n"y" z""", "b": ""}', {"a": 'x\n"y" z', "b": ""}),
        (r'{"a": "\d+ \$x \_ \u12 \' \"q\" \\d \
"}', {"a": "\\d+ \\$x \\_ \\u12 ' \"q\" \\d \\\n"}),
        ('{"a": "x"\n "b": [{"c": 1} {"d": 2}]}', {"a": "x", "b": [{"c": 1}, {"d": 2}]}),
        ('{"a": "Print "hello" to it", "b": [],}', {"a": 'Print "hello" to it', "b": []}),
        ('{"a": "say "x", "y" and z", "b": 1}', {"a": 'say "x", "y" and z', "b": 1}),
        ('{"a": "the "last""}', {"a": 'the "last"'}),
        ('{"a": "x "# y" and "// z"",\n"b": 1}', {"a": 'x "# y" and "// z"', "b": 1}),
        ('{"a": "x "# y" z", "b": 1}', {"a": 'x "# y" z', "b": 1}),
        ('{"a": "x", // the "best"\n"b": "y" // the last\n}', {"a": "x", "b": "y"}),
        ("{'a': 'don't', 'b': 1}", {"a": "don't", "b": 1}),
        ('{"a": +1.5e3, "b": -.5, "c": 07}', {"a": 1500.0, "b": -0.5, "c": 7}),
        ('\ufeff{"a"\u200b: 1, "a": 1}', {"a": 1}),
        (r'{"a": "\ud83d\ude00", "b": 1,}', {"a": "😀", "b": 1}),
    ],
)  # fmt: skip
def test_text_with_one_possible_meaning_is_parsed_so(text: str, value: Any) -> None:
    assert list(values(text)) == [value]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": [{"b": "x"}, {"b": "y', r"character 27 \(line 1, column 28, in a\[1\]\.b\).* the text ends"),
        ('{"a": [{"b": "x"}', "the text ends; a comma or ] is expected"),
        ('{"a": 1, "b"', "the text ends; a colon is expected after the key 'b'"),
        ('{"a": [\n  {"b": 1}, ...\n]}', r"line 2, column 13, in a\[1\].*dots must not stand for"),
        ('{"a": [1, // ... more\n]}', "dots must not stand"),
        ('{"a": [1, /* … */ 2]}', "dots must not stand"),
        ('{"a": [{"b": 1}}', "comes '}'; a comma or ] is expected"),
        ('{"a": ["x" "y"]}', "a comma or ] is expected"),
        ('{"a": "x" "b": 1}', "a comma or } is expected"),
        ('{"a": "as in {"b": "c"} here", "d": 1}', "a quotation mark is written"),
        ('{"a": "no end,\n "b": "x", "c": 1}', "in a string|within a string"),
        ('{"a": "x", "y": ", "b": ""}', "a comma or } is expected"),
        ('{"a": "x "# y\n"b": 1}', "a comma or } is expected"),
        ('{"a": "x "# y" z"\n}', "may be a comment, or the text goes on"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice, with different values"),
        ('{"a": 1, "a": 2,}', "the key 'a' is there twice"),
        ('{"a": x}', "comes 'x}'; a value is expected"),
        ('{"a" 1}', "a colon is expected after the key 'a'"),
        ('{"a":' * 100, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "the number is too long"),
    ],
)  # fmt: skip
def test_cut_or_ambiguous_text_is_rejected_at_its_position(text: str, words: str) -> None:
    (fault,) = values(text)
    with pytest.raises(JsonFaultError, match=words.replace("] is", r"\] is").replace("} is", r"\} is")):
        raise fault


def test_a_text_cut_in_a_key_of_punctuation_is_not_repaired_to_a_whole_one() -> None:
    for beginning in ('{"a": "b", "}', '{"a": "b" , "c", "]', """{'a': 'b', '}"""):
        with pytest.raises(JsonFaultError):
            read(beginning)


@given(json_values.filter(lambda value: isinstance(value, dict) and value), st.data())
def test_no_prefix_of_a_text_parses_as_whole(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value)
    if "'" not in text:  # which would have to be escaped
        text = text.replace('"', data.draw(st.sampled_from(['"', "'"])))
    beginning = text[: data.draw(st.integers(1, len(text) - 1))]
    with pytest.raises(JsonFaultError):
        read(beginning)


def test_brackets_in_prose_are_skipped() -> None:
    text = 'Use {name}, {{x}}; in [0, 1) see [here](x). Say "{x}" or "[y]". {"a": 1} {"b", "c"} {"d": 2} {'
    assert [value for value in values(text) if isinstance(value, dict)] == [{"a": 1}, {"d": 2}]


def test_nothing_is_extracted_from_inside_malformed_json() -> None:
    broken = '{"a": [{"b": 1}], oops, "c": {"d": 2}}'
    fault, *after = values(f'{broken} {{"e": 3}}')
    assert isinstance(fault, JsonFaultError)
    assert after == [{"e": 3}]
    assert len(list(values(broken[:-1] + ' {"e": 3}'))) == 1


def test_members_without_their_brace_are_not_values() -> None:
    (fault,) = values('```json\n"a": "x", "b": [{"c": 1}]}')
    with pytest.raises(JsonFaultError, match=r"after .*\"b\":' comes .* a key stands before it, but no {"):
        raise fault
    first, *after = values('["{"a": "]", "b": [{"c": 1}]}')
    assert [isinstance(value, JsonFaultError) for value in (first, *after)] == [True, True]
    assert list(values('This is "the plan": {"a": 1}')) == [{"a": 1}]


def test_a_string_that_contains_json_is_returned_unchanged() -> None:
    inner = '{\n "a": "b"\n}'
    assert list(values(f"Here: {json.dumps(inner)}")) == [inner]
    (fault,) = values(json.dumps(inner)[:-3])
    assert isinstance(fault, JsonFaultError)


@pytest.mark.parametrize(
    "text",
    [
        *("{" * 100_000, "[" * 100_000, "[1 " * 50_000, '{"a":' * 50_000, '{"a" ' * 50_000, "{“" * 50_000),
        *('{"a":"' + '"x' * 50_000, '{"a": ' + "/*" * 50_000, '{"a":"x ' + '"/*' * 30_000),
        *('{"a":"x ' + '"#' * 30_000 + "\nz", '{"a": "x"\n"b"' + " " * 50_000 + "y}"),
        *('{"a" x ' + '" \\' * 50_000, '[x "' + "\\" * 100_001, '{"a": ' + "1" * 100_000 + "x"),
        *("[" * 300 + "1, " * 40_000 + "x", '{"a": "' + '"" ' * 40_000),
    ],
    ids=range(16),
)
@pytest.mark.timeout(20)
def test_a_long_nonsensical_text_is_cheap_to_parse(text: str) -> None:
    assert all(isinstance(value, JsonFaultError) for value in values(text))


@pytest.mark.parametrize(
    "text", ["[" * 300 + "1, " * 40_000 + "x", "[" * 5000, "{x} " * 5000, "[" * 300 + "1, " * 90_000]
)
def test_little_is_read_of_brackets_that_are_no_json(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_in_vain, read = 0, lenient_json.read

    def counting(text: str, start: int) -> tuple[Any, int]:
        nonlocal read_in_vain
        try:
            return read(text, start)
        except JsonFaultError as fault:
            read_in_vain += fault.position - start
            raise

    monkeypatch.setattr(lenient_json, "read", counting)
    list(values(text))
    assert read_in_vain < 2 * 64 * 1024 + len(text)


def test_a_long_text_is_read_if_it_is_json_and_is_not_repaired() -> None:
    long = json.dumps({"a": "x" * 200_000})
    assert list(values(f"Here it is:\n{long}\nDone.")) == [json.loads(long)]
    (fault,) = values(f"{long[:-1]},,}}")
    assert isinstance(fault, JsonFaultError)
    assert "too long to be repaired" in str(fault)
