"""Markdown of a model rendered for a terminal: prose is laid out, code stays as it can be copied."""

from collections.abc import Iterable, Iterator
from typing import ClassVar, Final, TypeAlias, cast

from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.containers import Renderables
from rich.markdown import BlockQuote, CodeBlock, Heading, ListElement, Markdown, MarkdownElement
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text

from orchestrator.cli.text import strip_controls

_NEW_LINE: Final = Segment("\n")
_CODE_THEME: Final = "ansi_dark"

_Line: TypeAlias = tuple[list[Segment], bool]
"""The segments of a line, and whether it is code, which gets no prefix."""


class Answer:
    """Markdown of a model, rendered without control characters."""

    def __init__(self, text: str) -> None:
        # Links are written out: a hidden target is a trap.
        self._markdown = _Markdown(strip_controls(text), hyperlinks=False)

    def print_on(self, console: Console) -> None:
        """Print it; a line of code that is wider than the console is broken by the terminal alone."""
        console.print(self, crop=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return self._segments(console, options)

    def _segments(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._markdown, options):
            # Markdown decodes entities such as &#x202e; on its own.
            yield segment if segment.control else Segment(strip_controls(segment.text), segment.style)


class _Block(MarkdownElement):
    """A block that may hold code."""

    def lines(self, console: Console, options: ConsoleOptions) -> Iterator[_Line]:
        raise NotImplementedError

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line, _ in self.lines(console, options):
            yield from line
            yield _NEW_LINE


def _lines(
    elements: Renderables, console: Console, options: ConsoleOptions, style: Style | None = None
) -> Iterator[_Line]:
    for element in cast("Iterable[RenderableType]", elements):
        if isinstance(element, _Block):
            yield from element.lines(console, options)
        else:
            for line in console.render_lines(element, options, style=style):
                yield line, False


def _prefixed(first: Segment, others: Segment, lines: Iterable[_Line]) -> Iterator[_Line]:
    """Prefix each line but code with a segment; the first line has its own."""
    is_first = True
    for line, is_code in lines:
        if not is_code:
            yield [first if is_first else others, *line], False
        else:
            if is_first and first is not others:
                yield [first], False
            yield line, True
        is_first = False


class _Code(_Block, CodeBlock):
    """Code between its fences at the left edge, unchanged, so that it can be copied."""

    fence: str
    info: str

    @classmethod
    def create(cls, markdown: Markdown, token: Token) -> "_Code":  # noqa: ARG003  Rich's signature
        block = cls(token.info.split(" ")[0] or "text", _CODE_THEME)
        block.fence = token.markup or "```"
        block.info = token.info.strip()
        return block

    def lines(self, console: Console, options: ConsoleOptions) -> Iterator[_Line]:  # noqa: ARG002  a block's
        # Pygments expands tabs unless they have no size.
        syntax = Syntax("", self.lexer_name, theme=_CODE_THEME, background_color="default", tab_size=0)
        code = syntax.highlight(str(self.text))
        code.rstrip()
        for text in (Text(self.fence + self.info, "dim"), *code.split("\n"), Text(self.fence, "dim")):
            yield list(text.render(console)), True


class _Quote(_Block, BlockQuote):
    def lines(self, console: Console, options: ConsoleOptions) -> Iterator[_Line]:
        bar = Segment("▌ ", self.style)
        inner_options = options.update(width=options.max_width - 4)
        yield from _prefixed(bar, bar, _lines(self.elements, console, inner_options, self.style))


class _List(_Block, ListElement):
    def lines(self, console: Console, options: ConsoleOptions) -> Iterator[_Line]:
        is_ordered = self.list_type == "ordered_list_open"
        start = self.list_start or 0
        width = len(str(start + len(self.items))) + 1
        style = console.get_style("markdown.item.number" if is_ordered else "markdown.item.bullet")
        for number, item in enumerate(self.items, start):
            marker = Segment(f"{number:>{width}} " if is_ordered else " • ", style)
            inner_options = options.update(width=options.max_width - len(marker.text))
            lines = _lines(item.elements, console, inner_options, item.style)
            yield from _prefixed(marker, Segment(" " * len(marker.text)), lines)


class _Heading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.justify = "left"  # Rich centres
        yield self.text


class _Markdown(Markdown):
    elements: ClassVar = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "blockquote_open": _Quote,
        "bullet_list_open": _List,
        "ordered_list_open": _List,
    }
