"""The fenced code blocks of a Markdown text, as CommonMark has them, in one pass over its lines.

Two things are read as they are meant where CommonMark would tear a block apart: in an item of a list, code
that is not indented as the item does not end it, and a Markdown file may hold blocks whose fences are as long
as its own.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

_QUOTE: Final = -1
"""The container that a block quote is; an item of a list is the column at which its text begins."""
_MAX_DEPTH: Final = 32
"""Containers within containers; markers beyond are text, so that no line costs more than its length."""
_CODE_INDENT: Final = 4
"""What is indented so far is code or text, and never a fence or a marker."""
_LEAST_FENCE: Final = 3
_STEP_CHARACTERS: Final = 64 * 1024
_WHITE_SPACE: Final = (" ", "\t")
_FENCE: Final = re.compile(r"(`{3,})([^`]*)$|(~{3,})(.*)$")
_ITEM: Final = re.compile(r"(?:[-+*]|\d{1,9}[.)])(?=\s|$)")
_STARTS: Final = frozenset(" \t>-+*0123456789`~")
"""The characters that a fence, a container's marker or its indentation begins with."""


class Block(NamedTuple):
    """A fenced code block."""

    info: str
    """What stands behind the opening fence, without white space around it."""
    heading: str
    """The nearest line above that is not blank, without white space around it; empty after another block."""
    content: str
    """The lines between the fences, each with its end; empty: there are none."""


class _Fence(NamedTuple):
    character: str
    length: int
    indent: int
    info: str


def blocks(text: str, nests: Callable[[str, str], bool] = lambda _info, _heading: False) -> Iterator[Block]:
    """Yield the fenced code blocks that are in no other one, in order; the last may be unfinished.

    `nests(info, heading)` says whether a block holds Markdown: then a fence within it, as long as its own and
    with a language, opens a block of that Markdown, which the next fence closes. Where that leaves the block
    without an end, it ends as in CommonMark. Lines end with LF or CRLF; where the opening fence's does with
    CRLF, that is the text's way, and the content's lines end with LF.
    """
    lines = _lines(text)
    containers: list[int] = []
    heading, is_adjacent, may_nest, number = "", False, True, 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if containers or line[:1] in _STARTS:
            line = _enter(line, containers)
        fence = _fence(line)
        if fence is None:
            line = line.strip()
            is_underline = is_adjacent and line and not line.strip(line[0]) and line[0] in "=-"
            if line and not is_underline:
                heading = line
            is_adjacent = bool(line)
            continue
        is_nesting = may_nest and nests(fence.info, heading)
        end, is_closed = _end(lines, number, fence, containers, is_nesting=is_nesting)
        if is_nesting and not is_closed:
            may_nest = False  # or the text would be read to its end for each such block
            end, _ = _end(lines, number, fence, containers, is_nesting=False)
        yield Block(fence.info, heading, _content(lines[number - 1 : end], fence, containers))
        # A block in a quote ends where the quote does, and the line there is none of the block's.
        number = end + (end < len(lines) and _inside(lines[end], containers) is not None)
        heading, is_adjacent = "", False


def _lines(text: str) -> Sequence[str]:
    """Split a text into its lines, in steps after which other threads have their turn."""
    lines: list[str] = []
    start = 0
    while start < len(text):
        end = text.find("\n", start + _STEP_CHARACTERS) + 1 or len(text)
        lines += text[start:end].split("\n")
        if not lines[-1]:
            lines.pop()
        start = end
    return lines


def _enter(line: str, containers: list[int]) -> str:
    """Close the containers that the line is not in, open those that it begins; return what is within them."""
    kept = 0
    for container in containers:
        if container == _QUOTE:
            inner = _unquote(line)
            if inner is None:
                break
            line = inner
        elif line and not line.isspace():
            if _indent(line) < container:
                break
            line = _dedent(line, container)
        kept += 1
    del containers[kept:]
    while len(containers) < _MAX_DEPTH and (indent := _indent(line)) < _CODE_INDENT:
        inner = _unquote(line)
        if inner is not None:
            containers.append(_QUOTE)
            line = inner
            continue
        text = line.lstrip(" \t")
        marker = _ITEM.match(text)
        if not marker:
            break
        rest = text[marker.end() :]
        column = indent + marker.end()
        padding = _indent(rest, column)
        if padding > _CODE_INDENT or not rest.strip():
            padding = 1
        containers.append(column + padding)
        line = _dedent(rest, padding, column)
    return line


def _fence(line: str) -> _Fence | None:
    text = line.lstrip(" \t")
    if text[:1] not in ("`", "~"):
        return None
    indent = _indent(line)
    found = _FENCE.match(text.rstrip()) if indent < _CODE_INDENT else None
    if not found:
        return None
    marks = found[1] or found[3]
    return _Fence(marks[0], len(marks), indent, (found[2] or found[4] or "").strip())


def _end(
    lines: Sequence[str], start: int, fence: _Fence, containers: Sequence[int], *, is_nesting: bool
) -> tuple[int, bool]:
    """Return the line at which the block ends whose content begins at `start`, and whether it is closed."""
    mark = fence.character * _LEAST_FENCE
    is_within = False
    for number in range(start, len(lines)):
        line = lines[number]
        if containers:
            inner = _inside(line, containers)
            if inner is None:
                return number, True
            line = inner
        if mark not in line:
            continue
        inner_fence = _fence(line)
        if not inner_fence or inner_fence.character != fence.character or inner_fence.length < fence.length:
            continue
        if not inner_fence.info:
            if not is_within:
                return number, True
            is_within = False
        elif is_nesting:
            is_within = True
    return len(lines), False


def _inside(line: str, containers: Sequence[int]) -> str | None:
    """Return what a line of a block holds within the block's containers; None: a quote ends before it."""
    for container in containers:
        if container == _QUOTE:
            inner = _unquote(line)
            if inner is None:
                return None
            line = inner
        else:
            line = _dedent(line, container)
    return line


def _content(lines: Sequence[str], fence: _Fence, containers: Sequence[int]) -> str:
    """Return the content of a block, given its opening line and the lines up to its end."""
    content = lines[1:]
    for container in containers:
        if container == _QUOTE:
            content = [_unquote(line) or "" for line in content]
        elif all(not line.strip() or _indent(line) >= container for line in content):
            content = [_dedent(line, container) for line in content]
    if fence.indent:
        content = [_dedent(line, fence.indent) for line in content]
    if lines[0].endswith("\r"):
        content = [line.removesuffix("\r") for line in content]
    return "\n".join((*content, "")) if content else ""


def _unquote(line: str) -> str | None:
    text = line.lstrip(" ")
    if not text.startswith(">") or len(line) - len(text) >= _CODE_INDENT:
        return None
    return _dedent(text[1:], 1)


def _indent(line: str, column: int = 0) -> int:
    """Count the columns of white space at the beginning of a text that stands in the given column."""
    end = column
    for character in line:
        if character not in _WHITE_SPACE:
            break
        end += _width(character, end)
    return end - column


def _dedent(line: str, columns: int, column: int = 0) -> str:
    """Remove at most so many columns of white space from the beginning of a text in the given column."""
    index, end = 0, column
    while end - column < columns and line[index : index + 1] in _WHITE_SPACE:
        end += _width(line[index], end)
        index += 1
    return " " * max(0, end - column - columns) + line[index:]


def _width(character: str, column: int) -> int:
    """Return how far a space or a tab, which goes on to the next multiple of four, reaches."""
    return 1 if character == " " else 4 - column % 4
