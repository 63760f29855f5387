"""Thoughts in front of an answer, distinguished from answers about thoughts."""

import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models.http import thoughts
from orchestrator.models.http.thoughts import AnswerText

CHANNEL = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"


def feed(pieces: list[str], *, is_buffered: bool = False, is_json: bool = False) -> tuple[str, AnswerText]:
    """Feed pieces; return the text that a reader has at the end, and the answer."""
    answer, text = AnswerText(is_buffered=is_buffered, is_json=is_json), ""
    for step in [*(partial(answer.add, piece) for piece in pieces), answer.end]:
        given = step()
        text = given if answer.has_restarted else text + given
    return text, answer


def answer_in(text: str, *, is_json: bool = False) -> str:
    answer = AnswerText(is_json=is_json)
    answer.add(text)
    answer.end()
    return answer.text


@pytest.mark.parametrize(
    "text",
    [
        "<think>hm</think>\n\nFour",
        " <THINK>hm</THINK>Four",
        "<thinking>hm</thinking>Four",
        "<thought>hm</thought>\nFour",
        "<reasoning>hm</reasoning>\nFour",
        "[THINK]hm[/THINK]Four",
        "<think>They end in `</think>`.</think>Four",
        "<seed:think>hm</seed:think>Four",
        "<think>one</think>\n<think>two</think>\nFour",
        f"{CHANNEL}hm<|end|><|start|>assistant{FINAL}Four",
        f"<|start|>assistant{CHANNEL}hm<|end|><|start|>assistant{FINAL}Four",
        f"{FINAL}Four",
        "analysisWe need a number.assistantfinalFour",
    ],
)
def test_thoughts_between_tags_are_not_part_of_the_answer(text: str) -> None:
    assert answer_in(text) == "Four"


@pytest.mark.parametrize(
    "text",
    [
        "Okay, two and two.\n</think>\n\nFour",
        "Okay, two and two</think>Four",
        "okay, two and two. </think> Four",
        "okay, two and two </think> Four",
        "\n</think>\n\nFour",
        "So it is 4 (or `4`).</think>\nFour",
        "So it is {4}</think>Four",
        "Maybe:\n```json\n{}\n```\n</think>\nFour",
        'Is the tag `</think>`? Or "</think>"?\n</think>\n\nFour',
        "Hm.\n</thinking>\nFour",
        "They want `<think>` taken out.\n</think>\nFour",
        "I should not write <think> myself.\n</think>\nFour",
        "In code:\n```html\n<think>\n```\nSo it is.\n</think>\nFour",
        "A fence is ``` in Markdown.\n</think>\nFour",
        "Hm.\n[/THINK]Four",
        "<think>a</think> b\n</think>\nFour",
    ],
)
def test_thoughts_without_an_opening_tag_are_not_part_of_the_answer(text: str) -> None:
    assert answer_in(text) == "Four"
    assert feed([text])[1].has_unopened_thoughts


@pytest.mark.parametrize(
    "text",
    [
        "The tag `</think>` ends them.",
        "Thoughts end in </think> and then comes the answer.",
        "Thoughts end in </think>, as ever.",
        "Between <think> and </think>\nare thoughts.",
        'Split it:\n\n```python\ntext.split("</think>")[-1]\n```\n',
        "```\n</think>\n```\nis how they end.",
        "~~~\n</think>\n~~~\nis how they end.",
        "````md\n```\n</think>\n```\n</think>\n````\nis how they end.",
        "They end so:\n\n    </think>\n\nand then it begins.",
        "It is called '</think>'.",
        "The end (</think>) is there.",
        "The end „</think>“ is there.",
        "The end »</think>« is there.",
        "- **</think>** ends them.",
        "| </think> | the end |",
        "- </think> ends them",
        "a <think>b</think> c",
        "analysis of what we need",
        "analysisOfNeeds = 4",
        "analysis",
        "<",
        "<thinker>hm</thinker>",
        " leading space",
    ],
)
def test_an_answer_about_thoughts_is_left_unchanged(text: str) -> None:
    assert answer_in(text) == text


@pytest.mark.parametrize("text", ["<think>never ends", "<think>hm</think>\n", "hm\n</think>\n\n"])
def test_thoughts_alone_are_not_an_answer(text: str) -> None:
    text, answer = feed([text])
    assert (text, answer.has_thoughts) == ("", True)


@pytest.mark.parametrize("draft", ['{"a": 1}', "[1]", '{"a": "</think>"}'])
def test_json_at_the_beginning_may_be_a_draft_in_thoughts(draft: str) -> None:
    assert answer_in(f'{draft}, or better not.\n</think>\n{{"b": 2}}', is_json=True) == '{"b": 2}'
    assert answer_in(f"{draft}\n</think>\n", is_json=True).startswith(draft)


def test_json_is_withheld_where_thoughts_are_expected() -> None:
    text, answer = feed(['{"a": 1} ', 'is a draft</think>{"b"', ": 2}"], is_buffered=True, is_json=True)
    assert (text, answer.text) == ('{"b": 2}', '{"b": 2}')


def test_json_may_contain_the_tags() -> None:
    text = '{"summary": "drop\n</think>\nand what is before"}'
    assert answer_in(text, is_json=True) == text


def test_text_is_emitted_at_once_except_for_a_possible_tag() -> None:
    answer = AnswerText()
    assert [answer.add(piece) for piece in ("One ", "two <", "/thi", "s> three")] == [
        "One ",
        "two ",
        "",
        "</this> three",
    ]


def test_emitted_thoughts_are_replaced_when_they_end() -> None:
    answer = AnswerText()
    given = [(answer.add(piece), answer.has_restarted) for piece in ("Hm. ", "So.\n</th", "ink>\n\nFo", "ur")]
    assert given == [("Hm. ", False), ("So.\n", False), ("Fo", True), ("ur", False)]
    assert answer.text == "Four"


def test_withheld_text_is_emitted_when_thoughts_end() -> None:
    answer = AnswerText(is_buffered=True)
    assert [answer.add(piece) for piece in ("Hm. ", "So.\n</think>\n\nFo", "ur")] == ["", "Fo", "ur"]
    assert not answer.has_restarted


def test_withheld_text_is_emitted_at_the_end_where_there_were_no_thoughts() -> None:
    answer = AnswerText(is_buffered=True)
    assert (answer.add("Fo"), answer.add("ur"), answer.end()) == ("", "", "Four")


@pytest.mark.parametrize("text", ['{"a": 1}', '```json\n{"a": 1}\n```'])
def test_leading_json_is_emitted_at_once(text: str) -> None:
    assert AnswerText(is_json=True).add(text) == text


def test_json_after_other_text_is_withheld_as_a_possible_thought() -> None:
    answer = AnswerText(is_json=True)
    assert answer.add('Perhaps {"a": 1}?\n') == ""
    assert answer.add('</think>\n{"a": 2}') == '{"a": 2}'


def test_split_characters_are_joined_and_incomplete_ones_replaced() -> None:
    answer = AnswerText()
    given = [answer.add(piece) for piece in ("x\ud83d", "\ude00y", "\ude00", "z\ud83d")]
    assert [*given, answer.end()] == ["x", "😀y", "\ufffd", "z", "\ufffd"]


WORDS = [
    *(
        "<think>",
        "</think>",
        "</thinking>",
        "[THINK]",
        "[/THINK]",
        CHANNEL,
        FINAL,
        "analysis",
        "assistantfinal",
    ),
    *(
        "</",
        "<",
        " ",
        "\n",
        "`",
        "```",
        "\n```\n",
        '"',
        "{",
        "}",
        ".",
        ",",
        "a",
        "B",
        "é",
        "İ",
        "\ud83d",
        "\ude00",
    ),
]


@given(
    st.lists(st.sampled_from(WORDS), max_size=14).map("".join),
    st.lists(st.integers(1, 9), max_size=30),
    st.booleans(),
    st.booleans(),
)
def test_the_answer_is_the_same_in_any_chunking(
    text: str, cuts: list[int], is_buffered: bool, is_json: bool
) -> None:
    pieces, rest = [], text
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    given, answer = feed([*pieces, rest], is_buffered=is_buffered, is_json=is_json)
    assert given == answer.text == answer_in(text, is_json=is_json)


@pytest.mark.parametrize("is_json", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "```\n" + "</think>\n" * 20_000,
        "a </think> b " * 20_000,
        "`</think>` " * 20_000,
        "`<think>` " * 20_000 + "</think> b " * 20_000,
        '{"a": "' + "</think>" * 20_000,
        "{}" + "</think> b " * 20_000,
        "```\n" * 20_000 + "</think>\n" * 20_000,
    ],
)
@pytest.mark.parametrize("size", [1000, 10**6])
def test_an_answer_full_of_tags_is_rescanned_for_few_of_them(
    monkeypatch: pytest.MonkeyPatch, text: str, size: int, *, is_json: bool
) -> None:
    looked_at = 0

    def counting(function: Callable[..., bool]) -> Callable[..., bool]:
        def count(before: str, *others: object) -> bool:
            nonlocal looked_at
            looked_at += len(before)
            return function(before, *others)

        return count

    monkeypatch.setattr(thoughts, "_is_in_code", counting(thoughts._is_in_code))
    feed([text[start : start + size] for start in range(0, len(text), size)], is_json=is_json)
    assert looked_at <= 1024 * 1024


class Counting:
    """A pattern that counts how many characters it is given to look at."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self.characters = 0

    def search(self, text: str) -> re.Match[str] | None:
        self.characters += len(text)
        return self._pattern.search(text)

    def finditer(self, text: str, start: int = 0) -> Iterator[re.Match[str]]:
        self.characters += len(text) - start
        return self._pattern.finditer(text, start)


@pytest.mark.parametrize("size", [16, 16 * 1024])
@pytest.mark.parametrize("part", ["<", "</", "[/think", "<|channel|>final<|message", "word "])
def test_beginnings_of_tags_are_looked_at_a_few_times_however_they_come(
    monkeypatch: pytest.MonkeyPatch, part: str, size: int
) -> None:
    counted = Counting(thoughts._CLOSING)
    monkeypatch.setattr(thoughts, "_CLOSING", counted)
    text = part * (100_000 // len(part))
    assert feed([text[start : start + size] for start in range(0, len(text), size)])[0] == text
    assert counted.characters < 3 * len(text)


@pytest.mark.parametrize("size", [16, 10**6])
@pytest.mark.parametrize("text", ["[" * 90_000, '["a"' + ", {}" * 20_000, '{"a": "' + "</think> [" * 9000])
def test_json_is_scanned_once_whatever_tags_are_in_it(
    monkeypatch: pytest.MonkeyPatch, text: str, size: int
) -> None:
    counted = Counting(thoughts._JSON_SIGN)
    monkeypatch.setattr(thoughts, "_JSON_SIGN", counted)
    text += "</think> x"
    assert feed([text[at : at + size] for at in range(0, len(text), size)], is_json=True)[0] == text
    assert counted.characters <= len(text)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_brackets_in_strings_are_none(size: int) -> None:
    text = '[{"a": "]\\"]", "b": "\\\\"}] is a draft.\n</think>\n{"b": 2}'
    assert feed([text[at : at + size] for at in range(0, len(text), size)], is_json=True)[0] == '{"b": 2}'


def test_long_thoughts_end_at_their_closing_tag() -> None:
    assert answer_in("I wonder. " * 50_000 + "\n</think>\nYes.") == "Yes."
