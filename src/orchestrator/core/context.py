"""What models are given beside prompt, plan and outputs: input files, and what an instance goes on from.

Each text has a room, in characters; what does not fit into it is cut, and that is said where it was.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from orchestrator.core.instance import InputFile, Instance, Subtask

_WORD: Final = re.compile(r"[^\s\"'`()\[\]{}<>,;:|*]+")
"""What may be a path in running text."""
_FENCE: Final = re.compile(r"^[ \t]*(`{3,}|~{3,})", re.MULTILINE)
_EARLIER: Final = (
    ("The client goes on from earlier work. This was asked for then:", "earlier_prompt"),
    ("And this was the result:", "earlier_result"),
)
"""The headings and tags of what an instance goes on from."""
_LINE_CHARACTERS: Final = 20
"""What a file's line in the tree has besides its path, at most."""


class PromptPart(NamedTuple):
    """One part of a prompt: what we say of it, and what a client or a model wrote, to stand between tags."""

    heading: str
    tag: str
    text: str


def is_there(instance: Instance) -> bool:
    """Return whether an instance has files, or goes on from another one."""
    return bool(instance.files or instance.predecessor)


def for_planner(instance: Instance, characters: int) -> Sequence[PromptPart]:
    """Return the tree, and contents: first of files that the prompt names, then from the smallest on."""
    text = f"{instance.prompt}\n{instance.config.instructions}\n{instance.feedback}"
    return _parts(instance, _named_in(text, instance.files), characters, adds_others=True)


def for_worker(instance: Instance, subtask: Subtask, characters: int) -> Sequence[PromptPart]:
    """Return the tree, and the contents of the files that the plan names for a subtask.

    Where it names none, those that the subtask's instructions name.
    """
    by_path = {file.path: file for file in instance.files}
    needed = [by_path[path] for path in subtask.files if path in by_path]
    named = needed or _named_in(f"{subtask.title}\n{subtask.instructions}", instance.files)
    return _parts(instance, named, characters)


def for_synthesis(instance: Instance, characters: int) -> Sequence[PromptPart]:
    """Return the tree: what is changed of the files is in the outputs."""
    return _parts(instance, (), characters)


def size_for_synthesis(instance: Instance) -> int:
    """Return how many characters `for_synthesis` has, at most, where it has room for all."""
    tree = sum(len(file.path) + _LINE_CHARACTERS for file in instance.files)
    return sum(map(len, _earlier_texts(instance))) + tree


def _parts(
    instance: Instance, needed: Sequence[InputFile], characters: int, *, adds_others: bool = False
) -> Sequence[PromptPart]:
    """Return earlier work, the tree, and the contents of the needed files; then of others that fit.

    Each of the three has a fair share of the room.
    """
    characters = max(0, characters)
    wanted = instance.files if adds_others else needed
    earlier_texts = _earlier_texts(instance)
    lines = _tree_lines(instance.files)
    lengths = [
        sum(map(len, earlier_texts)),
        sum(map(len, lines)) + len(lines),
        sum(len(file.content) for file in wanted),
    ]
    share = fair_limit(lengths, characters)
    parts = _earlier(earlier_texts, share)
    if instance.files:
        parts.append(PromptPart("The client's files, each with its size:", "tree", _cut_lines(lines, share)))
    room = characters - sum(len(part.text) for part in parts)
    limit = fair_limit([len(file.content) for file in needed], room)
    given = {file.path: _fenced(file, limit) for file in needed if limit > 0 or not file.content}
    if adds_others:
        room -= sum(min(limit, len(file.content)) for file in needed)
        given |= _others(instance.files, given, room)
    if given:
        has_all = len(given) == len(wanted)
        which = "them" if has_all else f"{len(given)} of {len(wanted)} of them, as far as there is room"
        heading = f"The contents of {which}; where one is too long, a mark says what is cut:"
        parts.append(PromptPart(heading, "files", "\n\n".join(given.values())))
    return parts


def _earlier_texts(instance: Instance) -> Sequence[str]:
    before = instance.predecessor
    return (before.prompt, before.final_result) if before else ()


def _earlier(texts: Sequence[str], characters: int) -> list[PromptPart]:
    limit = fair_limit(map(len, texts), characters)
    return [
        PromptPart(heading, tag, cut(text, limit))
        for (heading, tag), text in zip(_EARLIER, texts, strict=False)
    ]


def _others(files: Iterable[InputFile], given: Mapping[str, str], room: int) -> Mapping[str, str]:
    """Return the smallest files that are not given yet, for as long as they fit whole."""
    found = {}
    for file in sorted(files, key=lambda file: len(file.content)):
        if file.path in given:
            continue
        room -= len(file.content)
        if room < 0:
            break
        found[file.path] = _fenced(file, len(file.content))
    return found


def _tree_lines(files: Iterable[InputFile]) -> Sequence[str]:
    return [f"{file.path} ({file.size_bytes:,} bytes)" for file in sorted(files)]


def _cut_lines(lines: Sequence[str], characters: int) -> str:
    """Return the first lines, as many as there is room for."""
    kept = bisect_right(list(accumulate(len(line) + 1 for line in lines)), characters)
    left_out = len(lines) - kept
    mark = [f"[… {left_out:,} more files were left out here …]"] if left_out else []
    return "\n".join([*lines[:kept], *mark])


def _fenced(file: InputFile, limit: int) -> str:
    """Return a file in the form in which models are to write files."""
    content = cut(file.content, limit)
    has_fences = "```" in content or "~~~" in content
    longest = max(map(len, _FENCE.findall(content)), default=2) if has_fences else 2
    # The info string of a fence of back-ticks can hold none.
    fence = ("~" if "`" in file.path else "`") * (longest + 1)
    end = "" if content.endswith("\n") or not content else "\n"
    return f"{fence}{file.language} path={_quoted(file.path)}\n{content}{end}{fence}"


def _quoted(path: str) -> str:
    """Return a path as an info string holds it: in quotes where it has spaces."""
    if not re.search(r"[\s\"']", path):
        return path
    return f"'{path}'" if '"' in path else f'"{path}"'


def _named_in(text: str, files: Iterable[InputFile]) -> Sequence[InputFile]:
    """Return the files that a text names: by their path, the end of it, or their name alone."""
    words = {word.strip("./").replace("\\", "/") for word in _WORD.findall(text)}
    return [file for file in files if _is_named(file.path, words, text)]


def _is_named(path: str, words: set[str], text: str) -> bool:
    if not _WORD.fullmatch(path):
        return path in text
    while path not in words:
        _, slash, path = path.partition("/")
        if not slash:
            return False
    return True


def fair_limit(lengths: Iterable[int], total: int) -> int:
    """Return the greatest length to cut texts at so that all fit: short ones leave room to long ones."""
    ascending = sorted(lengths)
    for index, length in enumerate(ascending):
        share = total // (len(ascending) - index)
        if length > share:
            return share
        total -= length
    return ascending[-1] if ascending else 0


def cut(text: str, limit: int) -> str:
    """Return at most so many characters of a text, its beginning and its end, with a mark in between."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    head = limit - tail
    return f"{text[:head]}\n[… {len(text) - limit:,} characters were cut here …]\n{text[len(text) - tail :]}"
