"""Fenced blocks: as CommonMark has them, and as they are meant where it would tear one apart."""

import sys
from collections.abc import Callable
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from orchestrator.core import markdown
from orchestrator.core.markdown import Block, blocks

_COMMONMARK = MarkdownIt("commonmark").disable(["html_block", "reference"])
_LINES = (
    "```", "````", "~~~", "~~~~~", "```py a.py", "~~~ `x", "```a`b", "   ```", "    ```", "\t```",
    "  ~~~~ ", "``", "a", "    code", "\tcode", "  b", "", "   ", "# h", "---", "===", "> q", ">", "> ```",
    ">~~~", "> > ```", ">     x",
)  # fmt: skip

lines = st.lists(st.sampled_from(_LINES), max_size=12)


def _contents(text: str) -> list[str]:
    return [block.content for block in blocks(text)]


@given(lines)
def test_blocks_are_those_of_commonmark(chosen: list[str]) -> None:
    text = "".join(f"{line}\n" for line in chosen)
    expected = [(t.info.strip(), t.content) for t in _COMMONMARK.parse(text) if t.type == "fence"]
    assert [(block.info, block.content) for block in blocks(text)] == expected


@given(st.text(st.sampled_from("`~>-1.) \t\r\na#=")) | st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert all(not block.content or block.content.endswith("\n") for block in blocks(text))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("1. Do:\n\n   ```py\n   def f():\n       x\n\n   ```\n", "def f():\n    x\n\n"),
        ("10. Do:\n    ```py\n    x\n    ```\n", "x\n"),
        ("- a\n  - b\n\n        code\n    ```\n    x\n    ```\n", "x\n"),
        ("1.\tDo:\n\n\t```go\n\tif x {\n\t\ty\n\t}\n\t```\n", "if x {\n\ty\n}\n"),
        ("- ```\n  x\n  ```\n", "x\n"),
        ("- > ```\n  > x\n  > ```\n", "x\n"),
        ("> - ```\n>   x\n>   ```\n", "x\n"),
    ],
)
def test_a_block_in_an_item_of_a_list_loses_the_items_indentation(text: str, content: str) -> None:
    assert _contents(text) == [content]


def test_code_that_is_indented_less_than_its_item_does_not_end_it() -> None:
    assert _contents("1. Do:\n\n   ```py\ndef f():\n    x\n   ```\n\n```\ny\n```\n") == [
        "def f():\n    x\n",
        "y\n",
    ]


def test_a_block_in_a_quote_ends_with_the_quote() -> None:
    assert _contents("> ```\n> x\n```\ny\n```\n") == ["x\n", "y\n"]


def test_a_block_without_a_closing_fence_goes_on_to_the_end() -> None:
    assert _contents("```\nx\n\ny") == ["x\n\ny\n"]


def test_lines_end_as_the_opening_fence_says() -> None:
    assert _contents("```\r\nx\r\n\r\n```\r\n") == ["x\n\n"]
    assert _contents("```\nx\r\n\n```\n") == ["x\r\n\n"]


@pytest.mark.parametrize(
    ("text", "heading"),
    [
        ("# A\ntext\n```\n```", "text"),
        ("# A\n\n  \n```\n```", "# A"),
        ("A\n===\n```\n```", "A"),
        ("A\n---\n\n```\n```", "A"),
        ("A\n\n---\n```\n```", "---"),
        ("- **A**\n  ```\n  ```", "**A**"),
        ("> A\n\n```\n```", "A"),
        ("```\n```", ""),
    ],
)
def test_the_nearest_line_above_is_the_heading(text: str, heading: str) -> None:
    assert [block.heading for block in blocks(text)] == [heading]


def test_the_line_above_is_none_of_another_blocks() -> None:
    assert list(blocks("A\n```\nx\n```\n\n```\ny\n```\n")) == [Block("", "A", "x\n"), Block("", "", "y\n")]


_README = "```md\n# A\n```sh\nls\n```\nend\n```\n\n```py\nx\n```\n"


def test_a_block_of_markdown_may_hold_blocks_with_fences_as_long_as_its_own() -> None:
    assert _contents(_README) == ["# A\n```sh\nls\n", "\n```py\nx\n"]  # as CommonMark has it
    nested = [block.content for block in blocks(_README, lambda info, _: info == "md")]
    assert nested == ["# A\n```sh\nls\n```\nend\n", "x\n"]


def test_a_block_of_markdown_that_nesting_would_leave_open_ends_as_in_commonmark() -> None:
    text = "```md\n# A\n```sh\nls\n```\n\n```py\nx\n```\n"
    found = [(block.info, block.content) for block in blocks(text, lambda info, _: info == "md")]
    assert found == [("md", "# A\n```sh\nls\n"), ("py", "x\n")]


def _steps(call: Callable[[], object]) -> int:
    """Count the lines of code that a call runs in the module."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal count
        if frame.f_code.co_filename != markdown.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        call()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize(
    "unit",
    [
        "```md\n", "```md\n```sh\n```\n", "- ", "> ", "- a\n  ", "\n", "- > \n", "~~~\n", "```md x\n~~~\n",
        ">```\n", "- ```md\n", " ", "\t", "`", "1. ", "===\n", "````md\n```\n", "> > ```md\n> ",
    ],
)  # fmt: skip
def test_a_text_twice_as_long_takes_twice_the_steps(unit: str) -> None:
    def read(count: int) -> int:
        return _steps(lambda: list(blocks(unit * count, lambda info, _: info.startswith("md"))))

    assert read(800) < 2.2 * read(400)
