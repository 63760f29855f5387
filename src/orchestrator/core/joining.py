"""Join the parts of an answer that was cut off at the token limit, so that no seam shows.

A model that is asked to go on does not always go on exactly where it stopped. It may announce the rest,
open the code block anew, repeat the last lines or the line that was cut, or begin its whole answer again. A
`Joint` takes that out while the part is streamed: it holds back the part's first characters until they are
understood.

Removing too much would lose text that was paid for, keeping too much only shows a seam. So a repetition has
to be long and distinct enough to be no coincidence, and where the text repeats itself anyway nothing is
removed.
"""

import re
from typing import Final

NOTHING_MISSING: Final = "[complete]"
"""What a model is asked to answer with where its text was whole already."""

_MAX_OVERLAP: Final = 8192
"""Characters in which an overlap is looked for."""
_MIN_HEAD: Final = 160
"""Characters of a part that are enough to tell how it begins, unless they repeat what there is."""
_MIN_OVERLAP: Final = 8
_MIN_LINE: Final = 4
"""Different characters of a line that was cut and is written again."""
_LONG: Final = 32
"""An overlap that long counts even if the same characters stand elsewhere in the text too."""
_MIN_DISTINCT: Final = 5
_MIN_BEGINNING: Final = 64
"""Characters with which an answer that begins again is recognised."""

_FENCE: Final = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([^\n]*)$", re.MULTILINE)
_OPENING: Final = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([^\n`]*)\n")
_ANNOUNCEMENT: Final = re.compile(
    r"\s*[*_>(\[]*(?:(?:sure|certainly|of course|okay|ok|absolutely|understood|got it)\b[,.!:]*\s*)?"
    r"(?:here|continu|resum|picking up|going on|i.ll|i will|let me|let.s)[^\n]{0,140}\n(?:[ \t]*\n)?",
    re.IGNORECASE,
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
        if self._followed or self._head.strip() == NOTHING_MISSING:
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
            if mark[0] == self._fence[0] and (info or is_amid_line):
                part = part.lstrip("\n")[opening.end() :]
        return part

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
        window, probe = self._window, rest[:_MIN_OVERLAP]
        at = window.find(probe) if len(probe) == _MIN_OVERLAP else -1
        while at >= 0:
            if rest.startswith(window[at:]) and self._is_repetition(window[at:]):
                return len(window) - at
            at = window.find(probe, at + 1)
        line = window[window.rfind("\n") + 1 :]
        is_again = len(set(line.strip())) >= _MIN_LINE and rest.startswith(line)
        return len(line) if is_again and not self._repeats_itself(line) else 0

    def _is_repetition(self, tail: str) -> bool:
        """Return whether a part that begins with the end of the text repeats it, and is no coincidence."""
        is_cut_line = self._window.endswith("\n" + tail) and not tail.endswith("\n")
        is_alone = self._window.find(tail) + len(tail) == len(self._window)
        return (
            (len(tail) >= _LONG or is_alone or is_cut_line)
            and len(set(tail)) >= _MIN_DISTINCT
            and not self._repeats_itself(tail)
        )

    def _repeats_itself(self, tail: str) -> bool:
        """Return whether the text's own end has the same characters right before: as rows of zeros do."""
        end = len(self._window)
        return self._window.find(tail, max(0, end - 2 * len(tail)), end - 1) >= 0


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
