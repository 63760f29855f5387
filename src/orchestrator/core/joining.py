"""Join the parts of an answer that was cut off at the token limit, so that no seam shows.

A model that is asked to go on does not always go on exactly where it stopped. It may announce the rest,
open the code block anew, repeat the last lines or the line that was cut, or begin its whole answer again. A
`Joint` takes that out while the part is streamed: it holds back the part's first characters until they are
understood.

Removing too much would lose text that was paid for, keeping too much only shows a seam. So a repetition has
to be long and distinct enough to be no coincidence. Where that does not tell, the text does: of two ways to
join, the one is right whose characters on both sides of the joint stand side by side elsewhere too.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

NOTHING_MISSING: Final = "[complete]"
"""What a model is asked to answer with where its text was whole already."""

_NOTHING_MISSING: Final = re.compile(
    rf"[\s*_`\"'(]*{re.escape(NOTHING_MISSING)}[\s*_`\"').!]*", re.IGNORECASE
)
_MAX_OVERLAP: Final = 8192
"""Characters in which an overlap is looked for."""
_MIN_HEAD: Final = 160
"""Characters of a part that are enough to tell how it begins, unless they repeat what there is."""
_MIN_OVERLAP: Final = 8
_MAX_OVERLAPS: Final = 8
"""How many different overlaps of one part are compared: text of one character has thousands."""
_LONG: Final = 32
"""An overlap that long counts unless the text repeats itself anyway."""
_MIN_DISTINCT: Final = 5
_MIN_LINE: Final = 4
"""Different characters of the beginning of a line that was cut and is written again."""
_MAX_LIKENESS: Final = 24
_MIN_LIKENESS: Final = 3
"""How much more a short overlap's joint must be like the text than one that keeps everything."""
_MIN_CODE: Final = 6
"""Characters behind a fence that show that it closes nothing: a line of the open block begins with them."""
_MIN_BEGINNING: Final = 64
"""Characters with which an answer that begins again is recognised."""

_FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^\n]*)$", re.MULTILINE)
_OPENING: Final = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)\n")
_ANNOUNCEMENT: Final = re.compile(
    r"\s*(?:[*_>(\[]+|(?=[A-Z]))"
    r"(?i:(?:sure|certainly|of course|okay|ok|absolutely|understood|got it)\b[,.!:]*\s*)?"
    r"(?i:here\b|continu(?:ing|ed|ation)\b|resuming\b|picking up\b|going on\b|i.ll\b|i will\b"
    r"|let me\b|let.s\b)"
    r"[^\n]{0,140}(?:(?<=[:\u2026)\]*_])|(?<=\.\.\.)|(?=\n[ \t]*\n|\n {0,3}[`~]{3}))\n(?:[ \t]*\n)?"
)
_REST: Final = re.compile(
    r"continu|\brest\b|\bremain|left off|stopped|cut off|resum|picking up|where (?:i|it|we) was",
    re.IGNORECASE,
)


class Joint:
    """The place where a part is joined to the text before it. Feed it the part in pieces of any size."""

    def __init__(self, text: str) -> None:
        """Join to `text`; an empty one takes any part as it is."""
        self.replaces = False
        """Whether the part takes the place of the text: the model began its answer anew, in other words."""
        self._text = text
        self._window = text[-_MAX_OVERLAP:]
        self._head = ""
        """The part so far, as long as it is held back."""
        self._followed = 0
        """Of a part that begins the answer again: the characters that are as they were."""
        self._fence = _open_fence(text)
        self._is_passing = not text

    def feed(self, piece: str) -> str:
        """Take the next piece of the part; return what it adds to the text, which may be nothing yet."""
        if self._is_passing:
            return piece
        self._head += piece
        return self._follow(piece) if self._followed else self._settle(is_whole=False)

    def finish(self) -> str:
        """Return what the whole part adds behind what `feed` has returned."""
        if self._is_passing:
            return ""
        if self._followed or _NOTHING_MISSING.fullmatch(self._head):
            return self._pass("")
        return self._settle(is_whole=True)

    def _pass(self, added: str) -> str:
        self._is_passing = True
        self._head = ""
        return added

    def _settle(self, *, is_whole: bool) -> str:
        rest = self._without_preamble(is_whole=is_whole)
        if rest is None or (len(rest) < _MIN_HEAD and not is_whole):
            return ""
        if self._begins_again(rest):
            self._head = rest
            return self._follow(rest)
        if not is_whole and len(rest) < len(self._window) and rest in self._window:
            return ""  # it may become an overlap
        return self._pass(rest[self._overlap(rest) :])

    def _without_preamble(self, *, is_whole: bool) -> str | None:
        """Leave out an announcement of the rest, and the line that opens a code block which is open anyway.

        None: the part is too short to tell.
        """
        part = self._head
        is_short = len(part) < _MIN_HEAD and not is_whole
        if is_short and "\n" not in part.strip("\n"):
            return None
        found = _ANNOUNCEMENT.match(part)
        if found and _REST.search(found[0]):
            part = part[found.end() :]
        if self._fence and (opening := _OPENING.match(part.lstrip("\n"))):
            mark, info = opening[1], opening[2].strip()
            # A fence that names a language cannot close a block, and none can stand in the middle of a line.
            is_amid_line = not (self._text.endswith("\n") or part.startswith("\n"))
            behind = part.lstrip("\n")[opening.end() :]
            if mark[0] == self._fence[0] and (info or is_amid_line or self._is_in_block(behind)):
                part = behind
        return part

    def _is_in_block(self, rest: str) -> bool:
        """Return whether a part goes on with a line as the open block has one."""
        head = rest[:_MIN_CODE]
        block = self._text[self._text.rfind(self._fence) :]
        is_indented = head.startswith("    ")
        return is_indented or (len(head) == _MIN_CODE and head[0] != "\n" and f"\n{head}" in block)

    def _begins_again(self, rest: str) -> bool:
        """Return whether a part begins like the text, and nothing else in the text does."""
        known = self._text[:_MIN_BEGINNING]
        return len(known) == _MIN_BEGINNING and rest.startswith(known) and self._text.find(known, 1) < 0

    def _follow(self, piece: str) -> str:
        """Compare the next piece of an answer that begins again with what there is."""
        left = self._text[self._followed : self._followed + len(piece)]
        if not piece.startswith(left):
            self.replaces = True
            return self._pass(self._head)
        self._followed += len(left)
        return self._pass(piece[len(left) :]) if self._followed == len(self._text) else ""

    def _overlap(self, rest: str) -> int:
        """Return how many characters at the beginning of a part repeat the end of the text."""
        plain = self._likeness(rest)
        for length in self._common_lengths(rest):
            if self._is_surely_repeated(length):
                return length
            if self._can_be_repeated(length) and self._is_more_like(
                length, self._likeness(rest[length:]), plain
            ):
                return length
        return 0

    def _common_lengths(self, rest: str) -> Sequence[int]:
        """Return with how many characters a part can begin as the text ends, the most first."""
        window, probe = self._window, rest[:_MIN_OVERLAP]
        lengths: list[int] = []
        at = window.find(probe) if len(probe) == _MIN_OVERLAP else -1
        while at >= 0 and len(lengths) < _MAX_OVERLAPS:
            if rest.startswith(window[at:]):
                lengths.append(len(window) - at)
            at = window.find(probe, at + 1)
        return lengths + [length for length in range(len(probe), 0, -1) if window.endswith(probe[:length])]

    def _likeness(self, rest: str) -> "_Likeness":
        """Look for what stands on both sides of the joint elsewhere in the text."""
        window, before, behind = self._window, 0, 0
        if rest:
            while before < _MAX_LIKENESS and window[-before - 1 :] + rest[0] in window:
                before += 1
            while behind < min(_MAX_LIKENESS, len(rest)) and window[-1] + rest[: behind + 1] in window:
                behind += 1
        return _Likeness(before, behind)

    def _is_more_like(self, length: int, likeness: "_Likeness", plain: "_Likeness") -> bool:
        """Return whether the text goes on without so many characters rather than with them, as in `plain`."""
        if length < _MIN_OVERLAP:
            return sum(likeness) >= sum(plain) + _MIN_LIKENESS
        is_distinct = len(set(self._window[-length:])) >= _MIN_DISTINCT
        worth = length // _MIN_OVERLAP if is_distinct and min(plain) < _MIN_OVERLAP else 0
        return min(likeness) + worth > min(plain) + 1

    def _is_surely_repeated(self, length: int) -> bool:
        """Return whether the last characters of the text would not be written twice in a row by chance."""
        window, tail = self._window, self._window[-length:]
        distinct = len(set(tail.strip()))
        is_alone = window.find(tail) + length == len(window)
        begins_line = window[-length - 1 : -length] == "\n"
        if distinct >= _MIN_DISTINCT and length >= _MIN_OVERLAP and (is_alone or length >= _LONG):
            return is_alone or not self._repeats_itself(tail)
        if begins_line and tail.endswith("\n"):
            return distinct > 1 and tail + tail not in window
        return begins_line and distinct >= _MIN_LINE and not self._repeats_itself(tail)

    def _can_be_repeated(self, length: int) -> bool:
        """Return whether a model can go on there: at the beginning of a word or a line, or far before."""
        before, tail = self._window[-length - 1 : -length], self._window[-length:]
        return length >= _MIN_OVERLAP or (before in ("\n", " ") and any(map(str.isalpha, tail)))

    def _repeats_itself(self, tail: str) -> bool:
        """Return whether the text's own end has the same characters right before: as rows of zeros do."""
        end = len(self._window)
        return self._window.find(tail, max(0, end - 2 * len(tail)), end - 1) >= 0


class _Likeness(NamedTuple):
    """How many characters on a side of a joint stand elsewhere too beside the first one of the other side."""

    before: int
    behind: int


def _open_fence(text: str) -> str:
    """Return the fence of the code block in which a text ends; empty: it ends in none."""
    fence = ""
    for found in _FENCE.finditer(text):
        mark, info = found[1], found[2].strip()
        if not fence:
            is_whole = found.end() < len(text)  # else the line that opens it is still being written
            fence = mark if is_whole and (mark[0] == "~" or "`" not in info) else ""
        elif mark[0] == fence[0] and len(mark) >= len(fence) and not info:
            fence = ""
    return fence


def join(text: str, part: str) -> tuple[str, bool]:
    """Return what a whole part adds to a text, and whether that takes the text's place."""
    joint = Joint(text)
    added = joint.feed(part) + joint.finish()
    return added, joint.replaces
