"""Joining the parts of an answer: whatever manner a model goes on in, the joined text is the text."""

from collections.abc import Callable

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from orchestrator.core.joining import NOTHING_MISSING, Joint, join

CODE = '''\
Here is the service.

```python
"""A small store of documents, kept in memory."""

from dataclasses import dataclass, field


@dataclass
class Store:
    documents: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, text: str) -> None:
        if not name:
            raise ValueError("a document needs a name")
        self.documents[name] = text

    def get(self, name: str) -> str:
        return self.documents[name]
```

And its configuration:

~~~toml
[store]
path = "/var/lib/store"
limit = 1000
~~~

| name | meaning |
|------|---------|
| path | where documents are kept |
| limit | how many there may be |

Run it with `python -m store`. That is all there is to it.
'''


def last_lines(text: str, count: int) -> str:
    """The end of a text from the beginning of a line on, the cut line included."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[-count:])


def open_language(text: str) -> str | None:
    """The language of the code block in which a text ends; None: it ends in none."""
    language = None
    for line in text.splitlines():
        if line.startswith(("```", "~~~")):
            language = line[3:] if language is None else None
    return language


def exactly(_text: str, rest: str) -> str:
    return rest


def repeating_characters(text: str, rest: str) -> str:
    return text[-60:] + rest


def repeating_the_line(text: str, rest: str) -> str:
    return last_lines(text, 1) + rest


def repeating_lines(text: str, rest: str) -> str:
    return last_lines(text, 4) + rest


def opening_the_fence_again(text: str, rest: str) -> str:
    language = open_language(text)
    return rest if language is None else f"{'~~~' if language == 'toml' else '```'}{language}\n{rest}"


def opening_the_fence_and_repeating_the_line(text: str, rest: str) -> str:
    return opening_the_fence_again(text, last_lines(text, 1) + rest)


def announcing(_text: str, rest: str) -> str:
    return "Here is the rest of the answer, continued from where it stopped:\n\n" + rest


def announcing_and_opening_the_fence(text: str, rest: str) -> str:
    return announcing(text, opening_the_fence_again(text, rest))


def beginning_again(text: str, rest: str) -> str:
    return text + rest


def announcing_and_beginning_again(text: str, rest: str) -> str:
    return "Sure! Continuing:\n" + text + rest


MANNERS = [
    exactly,
    repeating_characters,
    repeating_the_line,
    repeating_lines,
    opening_the_fence_again,
    opening_the_fence_and_repeating_the_line,
    announcing,
    announcing_and_opening_the_fence,
    beginning_again,
    announcing_and_beginning_again,
]
Manner = Callable[[str, str], str]


@pytest.mark.parametrize("manner", MANNERS)
@example(CODE.index("~~~toml") + len("~~~tom"), 1)
@given(st.integers(90, len(CODE) - 1), st.integers(1, 200))
def test_wherever_it_is_cut_and_however_the_model_goes_on_the_text_is_whole(
    manner: Manner, cut: int, piece: int
) -> None:
    text, rest = CODE[:cut], CODE[cut:]
    if manner in (repeating_the_line, opening_the_fence_and_repeating_the_line):
        line = text[text.rfind("\n") + 1 :]
        assume(len(set(line.strip())) > 3)  # of fewer characters nobody can say whether they were repeated
    if manner is repeating_lines:
        assume(len(set(last_lines(text, 4))) > 4)
    if "fence" in manner.__name__:
        assume(not last_lines(text, 1).startswith(("```", "~~~")))  # a block that is not open yet
    part = manner(text, rest)
    added, replaces = join(text, part)
    assert not replaces
    assert text + added == CODE
    assert fed(text, part, piece) == (added, replaces)


NUMBERED = "".join(f"Line {number} of an answer that takes long to write.\n" for number in range(80))
ALIKE = "# Functions\n\n```python\n" + "".join(
    f"def f{number}(x):\n    if x > {number}:\n        return x * {number}\n    return {number}\n\n\n"
    for number in range(40)
)
RECORDS = "```json\n[\n" + "".join(
    f'  {{\n    "id": {number},\n    "tags": [\n      "a",\n      "b"\n    ]\n  }},\n' for number in range(40)
)


@pytest.mark.parametrize("characters", [0, 20, 60, 200])
@pytest.mark.parametrize("whole", [NUMBERED, ALIKE, RECORDS])
@given(data=st.data())
def test_of_lines_that_are_alike_those_are_removed_that_are_repeated(
    data: st.DataObject, whole: str, characters: int
) -> None:
    cut = data.draw(st.integers(len(whole) // 2, len(whole) - 100))
    repeated = whole[cut - characters : cut]
    if whole is RECORDS:
        assume(
            not repeated or any(map(str.isdigit, repeated))
        )  # which of its records it is of cannot be told
    assert join(whole[:cut], repeated + whole[cut:]) == (whole[cut:], False)


@pytest.mark.parametrize(
    ("text", "part", "added"),
    [
        ("Line 8 is written.\nL", "Line 9 is written.\n", "ine 9 is written.\n"),
        ("Line 8 is written.\nLine", "Line 9 is written.\n", " 9 is written.\n"),
        ("| 22 | 484 | x |\n| 23 |", "| 23 | 529 | x |\n", " 529 | x |\n"),
        ('[\n  "a",\n  "b",\n', '  "b",\n  "c",\n', '  "c",\n'),
        ("```python\nx = first(1)\n", "```\nx = first(2)\n", "x = first(2)\n"),
        ("```python\nif x:\n", "```\n    return x\n", "    return x\n"),
        ("```python\nx = first(1)\n", "```\nThen run it.\n", "```\nThen run it.\n"),
        ("```js\n    }\n  }\n", "  }\n}\n", "  }\n}\n"),
        (
            "a typed client that\n",
            "  resumes streams: of the rest\n- item\n",
            "  resumes streams: of the rest\n- item\n",
        ),
        (
            "It runs until it is\n",
            "continued by the rest of it:\n\nx\n",
            "continued by the rest of it:\n\nx\n",
        ),
        ("x = 1\n", "(continued)\n\ny = 2\n", "y = 2\n"),
    ],
)
def test_what_the_text_itself_shows_decides_how_a_part_is_joined(text: str, part: str, added: str) -> None:
    assert join(text, part) == (added, False)
    assert fed(text, part, 2) == (added, False)


def fed(text: str, part: str, size: int) -> tuple[str, bool]:
    joint = Joint(text)
    pieces = [joint.feed(part[start : start + size]) for start in range(0, len(part), size)]
    return "".join(pieces) + joint.finish(), joint.replaces


@given(st.data())
def test_an_answer_cut_many_times_is_whole(data: st.DataObject) -> None:
    manner = data.draw(st.sampled_from([exactly, repeating_characters, beginning_again]))
    cuts = sorted(data.draw(st.sets(st.integers(90, len(CODE) - 1), min_size=1, max_size=6)))
    text = CODE[: cuts[0]]
    for start, end in zip(cuts, [*cuts[1:], len(CODE)], strict=True):
        added, replaces = join(text, manner(text, CODE[start:end]))
        assert not replaces
        text += added
    assert text == CODE


@given(st.text(), st.text(), st.integers(1, 7))
@example("ab" * 50, "ab" * 50, 3)
@example("0, 0, 0, 0, 0,\n" * 3, "0, 0, 0, 0, 0,\n" * 40, 5)
@example("<ul><li></li></ul></div>\n</div>\n", "</div>\n</div>\n</div>\n", 2)
@example(
    "INSERT INTO users (id, name, email, created_at, updated_at) VALUES (1);\n" * 2,
    "INSERT INTO users (id, name, email, created_at, updated_at) VALUES (2);\n",
    9,
)
def test_a_part_that_repeats_nothing_is_added_as_it_is(text: str, part: str, piece: int) -> None:
    assume(part.strip() != NOTHING_MISSING)
    assume(part[:8] not in text[1:] or text.endswith(part[:8] * 2) or len(set(part[:8])) < 5)
    assume(
        not text.rstrip().endswith(part[:4])
        or "\n" in part[:4]
        or len(set(part)) < 5
        or text.count(part[:8]) > 1
    )
    assume(not text[:64] or not part.startswith(text[:64]) or text.count(text[:64]) > 1)
    assert join(text, part) == (part, False)
    assert fed(text, part, piece) == (part, False)


@given(st.integers(100, len(CODE) - 60), st.integers(1, 40))
def test_an_answer_that_is_begun_anew_in_other_words_takes_the_place_of_the_first(
    cut: int, piece: int
) -> None:
    text = CODE[:cut]
    anew = CODE[:90] + "# another way\n" + CODE[90:]
    assert join(text, anew) == (anew, True)
    assert fed(text, anew, piece) == (anew, True)


@pytest.mark.parametrize(
    "part", [NOTHING_MISSING, f" {NOTHING_MISSING}\n", "**[Complete]**.", "", CODE[-200:], CODE]
)
def test_a_part_that_says_nothing_new_adds_nothing(part: str) -> None:
    assert join(CODE, part) == ("", False)
    assert fed(CODE, part, 3) == ("", False)


def test_a_block_that_was_complete_is_closed_and_not_opened_again() -> None:
    text = "```python\nx = 1\n"
    assert join(text, "```\n\nThat is it.\n") == ("```\n\nThat is it.\n", False)


@given(
    st.text(alphabet="ab`\n ~", max_size=400), st.text(alphabet="ab`\n ~", max_size=400), st.integers(1, 9)
)
def test_the_size_of_the_pieces_changes_nothing(text: str, part: str, piece: int) -> None:
    assert fed(text, part, piece) == join(text, part)


def test_a_part_is_passed_on_as_it_comes_once_its_beginning_is_understood() -> None:
    joint = Joint(CODE)
    held = joint.feed("z" * 200)
    assert held == "z" * 200
    assert joint.feed("more") == "more"
