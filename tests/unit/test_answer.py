"""A result in a terminal: prose is laid out, code is left as it can be copied."""

import pytest
from rich.console import Console

from orchestrator.cli.answer import Answer

CODE = "func main() {\n\tfmt.Println(`a line that is wider than the terminal`)\n\n\tx := 1  \n}"


def drawn(markdown: str, width: int = 30) -> list[str]:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        Answer(markdown).print_on(console)
    return capture.get().strip("\n").splitlines()


def fenced(fence: str = "```", info: str = "go title=main.go") -> str:
    return f"{fence}{info}\n{CODE}\n{fence}"


def indented(text: str, by: str) -> str:
    return "\n".join(by + line if line else line for line in text.split("\n"))


@pytest.mark.parametrize(
    "markdown",
    [
        fenced(),
        f"Before.\n\n{fenced()}\n\nAfter.",
        f"1. Do this:\n\n{indented(fenced(), '   ')}\n\n2. Then that.",
        f"- a\n  - b\n\n{indented(fenced(), '    ')}",
        "\n".join(f"> {line}" for line in f"ParsedAnswer:\n\n{fenced()}\n\nSo.".split("\n")),
    ],
    ids=["alone", "between prose", "in a list", "in a list of a list", "in a quote"],
)
def test_code_is_copied_as_it_is_with_its_fences(markdown: str) -> None:
    assert fenced() in "\n".join(drawn(markdown))


def test_code_that_contains_fences_keeps_them() -> None:
    assert drawn("~~~~md\n```\nx\n```\n~~~~") == ["~~~~md", "```", "x", "```", "~~~~"]


def test_indented_code_gets_fences() -> None:
    assert drawn("    make run\n    make up") == ["```", "make run", "make up", "```"]


def test_a_shell_session_keeps_its_blank_lines_and_its_spaces() -> None:
    assert drawn("```\n  a\n\n\n  b\n```") == ["```", "  a", "", "", "  b", "```"]


def test_prose_around_code_is_laid_out() -> None:
    lines = drawn(f"1. Do this, which is told at some length:\n\n{indented(fenced(), '   ')}\n\n10. On\n")
    assert lines[0].rstrip() == " 1 Do this, which is told at"
    assert lines[1].rstrip() == "   some length:"
    assert lines[2] == "```go title=main.go"
    assert lines[-1].rstrip() == " 2 On"


def test_a_list_item_that_begins_with_code_keeps_its_marker() -> None:
    assert [line.rstrip() for line in drawn("- ```\n  x\n  ```\n- y")] == [" •", "```", "x", "```", " • y"]


def test_code_is_coloured_in_a_terminal_with_colours() -> None:
    console = Console(width=30, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        Answer("```python\ndef f(): return 1\n```").print_on(console)
    assert "\x1b[" in capture.get()
