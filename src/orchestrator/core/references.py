"""The files of workers that a synthesis names instead of writing them again.

The synthesiser is offered a reference to each file that the outputs hold. In place of a file it writes the
reference alone in a line, or says in such a line that the file is dropped. What it writes is expanded before
any client sees it, live text included: a reference becomes the whole file in a named code block, or within a
sentence the file's name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from orchestrator.core import files, merging
from orchestrator.core.continuation import Part
from orchestrator.core.files import File
from orchestrator.core.instance import COMPLETED, Instance, Subtask

_MAX_INVALID: Final = 2
"""After so many unusable answers nothing is offered any more: the answer is asked for in full."""
_MAX_NAMED: Final = 50
"""So many files are named in a message."""
_MAX_SHOWN: Final = 200
"""So many characters of a reference that is none are part of a message."""
_MAX_HELD: Final = 4000
"""So many characters of a line are held back that may be references; a path has at most 1,024 bytes."""

_TAG: Final = re.compile(r"<(keep|drop)-file>([^<>\n]*)(?:</(?:keep|drop)-file>|(?=[\s`*]*$))")
_CLOSED_TAG: Final = re.compile(r"<(?:keep|drop)-file>[^<>\n]*</(?:keep|drop)-file>")
_OPENINGS: Final = ("<keep-file", "<drop-file")
_STARTS: Final = (*_OPENINGS, "</keep-file", "</drop-file")
_DECORATION: Final = " \t\r>*_`#+.,:;()-0123456789"
"""What a line may hold beside references: marks of Markdown and of lists, and punctuation."""
_ALONE: Final = re.compile(rf"(?:[{re.escape(_DECORATION)}]|{_CLOSED_TAG.pattern})*")
_TAG_ALONE: Final = re.compile(
    rf"[{re.escape(_DECORATION)}]*(?:<(keep|drop)-file>|</(?:keep|drop)-file>)[{re.escape(_DECORATION)}]*"
)
"""A line that opens a tag and holds no reference, or closes one."""
_FENCE: Final = re.compile(r"[\s>]*(`{3,}|~{3,})([^`]*)$")
_FENCE_BEGINNING: Final = re.compile(r"[\s>]*(?:`{1,2}$|```|~{1,2}$|~~~)")


def tag(reference: str) -> str:
    """Return how a synthesis refers to a file."""
    return f"<keep-file>{reference}</keep-file>"


class References(NamedTuple):
    """The files that a synthesis is offered, and those that it can refer to."""

    offered: Mapping[str, File]
    """By reference, as in `t1:src/app.py`: what the prompt lists."""
    known: Mapping[str, File]
    """Those, and all others of completed subtasks: a prompt before merges has listed them."""

    def find(self, reference: str) -> File | None:
        """Return the file of a reference; its path is enough where that tells which it is."""
        if file := self.known.get(reference):
            return file
        path = reference.removeprefix("./")
        found = [file for file in self.offered.values() if file.path == path]
        return found[0] if len(found) == 1 else None


class Synthesis(NamedTuple):
    """The final result, and what the model wrote of it."""

    text: str
    written: str = ""
    """What is expanded to `text`; empty: `text` itself."""
    added: str = ""
    """What `text` ends with that the model neither wrote nor referred to: files that it passed over."""


class SynthesisError(ValueError):
    """What a synthesis says of files cannot be right; the message tells the model what to mend."""


def references(instance: Instance) -> References | None:
    """Return what the synthesis of an instance can refer to; None: nothing, no worker wrote a file.

    An input file that a worker has only repeated is in the result anyway.
    """
    if instance.synthesis.invalid >= _MAX_INVALID:
        return None
    merged = _by_reference(merging.sources(instance))
    known = _by_reference(
        subtask for subtask in instance.subtasks.values() if subtask.work.state == COMPLETED
    )
    paths = {file.path for file in merged.values()}
    passed_over = {name: file for name, file in known.items() if file.path not in paths}
    given = {file.path: file.content for file in instance.files}
    offered = {
        name: file for name, file in {**merged, **passed_over}.items() if given.get(file.path) != file.content
    }
    return References(offered, known) if offered else None


def _by_reference(subtasks: Iterable[Subtask]) -> Mapping[str, File]:
    return _find(tuple((subtask.id, subtask.output) for subtask in subtasks))


@lru_cache(maxsize=8)
def _find(outputs: tuple[tuple[str, str], ...]) -> Mapping[str, File]:
    """Search outputs for files once for a synthesis, which asks for them at every step."""
    return {
        f"{name}:{file.path}": file
        for name, output in outputs
        for file in files.find_files(output).values()
        if files.can_be_written(file) and not set("<>") & set(file.path)
    }


def read(found: References, text: str, *, may_add: bool) -> Synthesis:
    """Expand a synthesis; raise SynthesisError where it refers to no file, or passes one over.

    A model that makes no use of references is not asked again, and with `may_add` no model is: the files that
    it passed over are added.
    """
    expander = Expander(found)
    expanded = expander.feed(text) + expander.finish()
    if expander.unknown:
        raise SynthesisError(
            f"there is no file {_named(expander.unknown)}; there are: {_named([*found.offered])}. "
            "Refer to these, each as it is listed"
        )
    there = files.find_files(expanded)
    contents = {file.content for file in there.values()}
    missing = [
        name
        for name, file in found.offered.items()
        if file.path not in there and file.path not in expander.dropped and file.content not in contents
    ]
    if missing and expander.is_used and not may_add:
        raise SynthesisError(
            f"the answer neither holds nor drops {_named(missing)}: for each, write its reference alone in a "
            "line, or the whole file where you change it, or <drop-file>…</drop-file> in place of <keep-file>"
        )
    latest = {found.offered[name].path: found.offered[name] for name in missing}
    added = "".join(f"\n\n### `{file.path}`\n\n{files.write_block(file)}" for file in latest.values())
    if not latest.keys() <= files.find_files(expanded + added).keys():
        added = f"\n{expander.fence}{added}"  # they would be in a block that is open
    result = (expanded + added).strip()
    written = text.strip()
    return Synthesis(result, "" if written == result else written, added)


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMED])
    return f"{shown} and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else shown


def shown(found: References | None, text: str) -> str:
    """Return what clients see of a synthesis that is not finished: a beginning of what they will see."""
    return Expander(found).feed(text) if found else text


def with_shown(instance: Instance, part: Part) -> Part:
    """Return the next part of a synthesis with what clients see more of the answer."""
    found = references(instance)
    if found is None:
        return part
    expander = Expander(found)
    if not part.replaces:
        expander.feed(instance.synthesis.text)
    return part._replace(shown=expander.feed(part.text))


class Expander:
    """Expands a synthesis as it is written.

    Feed it the text in pieces of any size. It holds back what may become a reference, and the line that opens
    a code block, should that hold nothing but one.
    """

    def __init__(self, found: References) -> None:
        self.dropped: set[str] = set()
        """The paths of the files that the text drops."""
        self.unknown: list[str] = []
        """What it refers to that is no file."""
        self.is_used = False
        """Whether it has a reference."""
        self.fence = ""
        """The fence of the code block that is open; empty: none is."""
        self._references = found
        self._placed: set[File] = set()
        self._line = ""
        """What of the line so far is held back."""
        self._is_amid = False
        """Whether the line's beginning has been given."""
        self._is_broken = False
        """Whether the rest of the line is left out: it has a reference that is none."""
        self._last = ""
        """The last character of the line that has been given."""
        self._tag = ""
        """The kind of the tag that a line has opened: until it is closed each line is a reference."""
        self._opening = ""
        """The line that opened it, as long as it is held back."""
        self._only: File | None = None
        """What alone has been referred to in that block."""

    def feed(self, piece: str) -> str:
        """Take the next piece; return what there is more to see."""
        *ended, last = piece.split("\n")
        out = []
        for line in ended:
            whole, self._line = self._line + line, ""
            out.append(self._end_line(whole, "\n"))
        self._line += last
        out.append(self._begin_line())
        return "".join(out)

    def finish(self) -> str:
        """Return what is left to see: the text has ended."""
        line, self._line = self._line, ""
        return (self._end_line(line, "") if line else "") + self._release()

    def _begin_line(self) -> str:
        """Return what can be seen of a line that has not ended, and that no continuation of it takes back."""
        line, before = self._line, ""
        if not self._is_amid:
            is_short = len(line) <= _MAX_HELD
            is_held = self._tag or _may_be_alone(line) or _FENCE_BEGINNING.match(line)
            if not line or (is_short and is_held):
                return ""
            before = self._release()
            self._is_amid = True
        text, self._line = self._expand(line, is_whole=False)
        self._last = text[-1:] or self._last
        return before + text

    def _end_line(self, line: str, end: str) -> str:
        if self._is_amid:
            text, _ = self._expand(line, is_whole=True)
            self._is_amid, self._is_broken, self._last = False, False, ""
            return text + end
        if not (self._opening or self._tag or "<" in line or "`" in line or "~" in line):
            return line + end
        if self._tag:
            return self._end_tagged_line(line, end)
        if found := _TAG_ALONE.fullmatch(line):
            self._tag = found[1] or ""
            return ""
        placed = self._place_alone(line)
        if self._opening:
            if self._only is None and placed and len(placed) == 1:
                self._only = placed[0]
                return ""
            if self._only and self._closes(line):
                file, self._opening, self._only, self.fence = self._only, "", None, ""
                return files.write_block(file) + end
        before = self._release()
        if placed is not None:
            return before + "\n".join(map(files.write_block, placed)) + (end if placed else "")
        if self.fence:
            if self._closes(line):
                self.fence = ""
        elif (opening := _FENCE.match(line.rstrip())) and "-file" not in line:
            self.fence = opening[1]
            self._opening = line + end
            return before
        return before + self._expand(line, is_whole=True)[0] + end

    def _end_tagged_line(self, line: str, end: str) -> str:
        """Expand a line behind one that opens a tag: it is a reference, or the end of the tag, or both."""
        kind, self._tag = self._tag, ""
        reference, is_closed, _ = line.strip(" \t\r`*-").partition("</")
        text = self._end_line(f"<{kind}-file>{reference}</{kind}-file>", end) if reference.strip() else ""
        self._tag = "" if is_closed else kind
        return text

    def _closes(self, line: str) -> bool:
        marks = line.strip(" \t\r>")
        return len(marks) >= len(self.fence) and not marks.strip(self.fence[0])

    def _release(self) -> str:
        """Return what was held back of a code block that holds more than a reference."""
        held = self._opening + (self._only.content if self._only else "")
        self._opening, self._only = "", None
        return held

    def _place_alone(self, line: str) -> list[File] | None:
        """Return the files that a line stands for; None: it holds more than references."""
        if "-file>" not in line or _TAG.sub("", line).strip(_DECORATION):
            return None
        placed = []
        for each in _TAG.finditer(line):
            file = self._resolve(each)
            if file and each[1] == "keep" and file not in self._placed:
                self._placed.add(file)
                placed.append(file)
        return placed

    def _resolve(self, found: re.Match[str]) -> File | None:
        """Return the file that is referred to, and note what is said of it."""
        self.is_used = True
        reference = found[2].strip()
        file = self._references.find(reference)
        if file is None:
            self.unknown.append(reference[:_MAX_SHOWN] or "without a name")
        elif found[1] == "drop":
            self.dropped.add(file.path)
        return file

    def _expand(self, text: str, *, is_whole: bool) -> tuple[str, str]:
        """Expand the references within a line; return what can be seen and, unless it is whole, what is held.

        A file that is referred to at the end of a line follows that line.
        """
        if self._is_broken:
            return "", ""
        trailing = _trailing(text, is_whole=is_whole)
        end = len(text) if is_whole else trailing
        out: list[str] = []
        following: list[File] = []
        given = position = 0
        while 0 <= (at := text.find("<", position)) < end:
            position = at + 1
            if not text.startswith(_STARTS, at):
                continue
            out.append(text[given:at])
            found = _TAG.match(text, at)
            if not found:
                self.is_used = True
                self.unknown.append(text[at : at + _MAX_SHOWN])
                given = end
                self._is_broken = not is_whole
                break
            given = position = found.end()
            file = self._resolve(found)
            if file is None:
                continue
            is_quoted = (text[at - 1] if at else self._last) == "`"
            out.append(file.path if is_quoted else f"`{file.path}`")
            if at >= trailing and found[1] == "keep" and file not in self._placed:
                self._placed.add(file)
                following.append(file)
        seen = "".join([*out, text[given:end]])
        return "\n".join([seen, *map(files.write_block, following)]), "" if self._is_broken else text[end:]


def _trailing(text: str, *, is_whole: bool) -> int:
    """Return where the tags begin that a line ends with, but for punctuation; its length: it ends with none.

    Of a line that goes on, what may become a tag is one.
    """
    end = len(text) if is_whole else _unfinished(text)
    tags = [*_TAG.finditer(text, 0, end)]
    while tags and not text[tags[-1].end() : end].strip(_DECORATION):
        end = tags.pop().start()
    return end if len(text) - end <= _MAX_HELD else len(text)


def _unfinished(text: str) -> int:
    """Return where the tag begins of which a text ends with a part; its length: it ends with no such part."""
    start = max(map(text.rfind, _OPENINGS))
    if start >= 0 and not _CLOSED_TAG.match(text, start):
        return start
    last = text.rfind("<")
    is_tag = last >= 0 and _may_be_tag(text[last:]) and not _CLOSED_TAG.match(text, last)
    return last if is_tag else len(text)


def _may_be_alone(line: str) -> bool:
    """Return whether a line that has not ended may come to hold nothing but references."""
    found = _ALONE.match(line)
    rest = line[found.end() :] if found else line
    return not rest or _may_be_tag(rest)


def _may_be_tag(text: str) -> bool:
    """Return whether a text may become a tag, or begins with one that is not closed."""
    return any(text.startswith(start) or start.startswith(text) for start in _STARTS)
