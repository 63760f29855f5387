"""A plan: its JSON schema, and what makes it valid."""

import re
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from typing import Final

from orchestrator.core import limits
from orchestrator.core.instance import Subtask
from orchestrator.v1 import instance_pb2 as pb

_INSTRUCTIONS: Final = limits.of(pb.Subtask, "instructions")
_FILES: Final = limits.of(pb.Subtask, "files")
_MAX_PATHS_BYTES: Final = 2 * 1024 * 1024
"""How many bytes the paths may have that all subtasks of a plan name."""
_SIMILAR: Final = 3
"""How many paths a message names that may be meant by an unknown one."""

ID: Final = re.compile(limits.of(pb.Subtask, "id").pattern)
"""What an instance's or a subtask's id must match in full."""

_MAX_UNKNOWN_DEPENDENCIES: Final = 64
"""So many dependencies more than there are subtasks are looked at, to say which of them is unknown."""
MAX_TITLE_CHARACTERS: Final = limits.of(pb.Subtask, "title").max_length
MAX_WORKER_CHARACTERS: Final = limits.of(pb.Subtask, "worker").max_length


class PlanError(ValueError):
    """A plan cannot be used; the message states what its author has to mend."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the planner hands to the workers."""

    summary: str
    subtasks: tuple[Subtask, ...]


def schema(max_subtasks: int, *, with_files: bool = False) -> Mapping[str, object]:
    """Return the JSON schema of a plan with at most so many subtasks.

    `with_files`: whether each names the input files that its worker needs.
    """
    text = {"type": "string"}
    subtask = {
        "id": text,
        "title": text,
        "instructions": text,
        "depends_on": {"type": "array", "items": text},
        "worker": text,
    }
    if with_files:
        subtask["files"] = {"type": "array", "items": text}
    return {
        "type": "object",
        "properties": {
            "summary": text,
            "subtasks": {
                "type": "array",
                "minItems": 1,
                "maxItems": max_subtasks,
                "items": {
                    "type": "object",
                    "properties": subtask,
                    "required": list(subtask),
                    "additionalProperties": False,
                },
            },
        },
        "required": ["summary", "subtasks"],
        "additionalProperties": False,
    }


def validate(
    subtasks: Iterable[Subtask], max_subtasks: int, paths: Collection[str] | None = ()
) -> tuple[Subtask, ...]:
    """Return the subtasks as they are, or raise PlanError.

    Ids are unique and well formed, instructions are there and bounded, dependencies are known and without a
    cycle, files are among `paths` (None: that is not known yet), and there are 1 to `max_subtasks` of them.
    """
    subtasks = tuple(subtasks)
    check_size(subtasks, max_subtasks)
    known: set[str] = set()
    for subtask in subtasks:
        check(subtask, known, paths)
        known.add(subtask.id)
    named_bytes = sum(len(path.encode()) for subtask in subtasks for path in subtask.files)
    if named_bytes > _MAX_PATHS_BYTES:
        raise PlanError(
            f"the paths that the subtasks name have {named_bytes:,} bytes and may have {_MAX_PATHS_BYTES:,}: "
            "name fewer files"
        )
    for subtask in subtasks:
        if unknown := [name for name in subtask.depends_on if name not in known]:
            raise PlanError(
                f"subtask {subtask.id!r} depends on {unknown[0][:120]!r}, which is not in the plan: "
                f"its ids are {', '.join(task.id for task in subtasks)}"
            )
    try:
        TopologicalSorter({task.id: task.depends_on for task in subtasks if task.depends_on}).prepare()
    except CycleError as error:
        cycle = " → ".join(error.args[1])
        raise PlanError(f"the subtasks depend on each other in a cycle: {cycle}") from None
    return subtasks


def check_count(subtasks: int, max_subtasks: int) -> None:
    """Raise PlanError unless there are 1 to `max_subtasks` subtasks."""
    if not 1 <= subtasks <= max_subtasks:
        raise PlanError(f"a plan needs 1 to {max_subtasks} subtasks; this one has {subtasks}")


def check_size(subtasks: Collection[Subtask | pb.Subtask], max_subtasks: int) -> None:
    """Raise PlanError where there are too many subtasks, or more dependencies or files than those can have.

    None of their texts is looked at.
    """
    check_count(len(subtasks), max_subtasks)
    for subtask in subtasks:
        if len(subtask.depends_on) >= len(subtasks) + _MAX_UNKNOWN_DEPENDENCIES:
            raise PlanError(
                f"subtask {subtask.id[:120]!r} names {len(subtask.depends_on)} dependencies, "
                f"and there are {len(subtasks)} subtasks"
            )
        if len(subtask.files) > _FILES.max_items:
            raise PlanError(f"subtask {subtask.id[:120]!r} names over {_FILES.max_items} files")


def check(subtask: Subtask, known: Container[str], paths: Collection[str] | None = ()) -> None:
    """Raise PlanError where a subtask by itself, or after those that are known, cannot be used.

    `paths` are those of the input files; None: they are not known yet.
    """
    if not ID.fullmatch(subtask.id):
        raise PlanError(f"subtask id {subtask.id[:120]!r} does not match {ID.pattern}")
    if subtask.id in known:
        raise PlanError(f"subtask id {subtask.id!r} is there twice: ids must be unique")
    if not subtask.instructions or subtask.instructions.isspace():
        raise PlanError(f"subtask {subtask.id!r} has no instructions")
    if limits.is_larger(subtask.instructions, _INSTRUCTIONS.max_bytes):
        size = limits.kibibytes(_INSTRUCTIONS)
        raise PlanError(f"subtask {subtask.id!r} has instructions of over {size}: shorten them")
    if len(subtask.title) > MAX_TITLE_CHARACTERS:
        raise PlanError(f"subtask {subtask.id!r} has a title of over {MAX_TITLE_CHARACTERS} characters")
    if len(subtask.worker) > MAX_WORKER_CHARACTERS:
        raise PlanError(f"subtask {subtask.id!r} has a worker of over {MAX_WORKER_CHARACTERS} characters")
    if len(set(subtask.depends_on)) < len(subtask.depends_on):
        raise PlanError(f"subtask {subtask.id!r} names a dependency twice")
    if subtask.files:
        _check_files(subtask, paths)


def _check_files(subtask: Subtask, paths: Collection[str] | None) -> None:
    if len(set(subtask.files)) < len(subtask.files):
        raise PlanError(f"subtask {subtask.id!r} names a file twice")
    if paths is None:
        return
    unknown = [path for path in subtask.files if path not in paths]
    if unknown:
        raise PlanError(
            f"subtask {subtask.id!r} names the file {unknown[0][:200]!r}, which is none of the input files: "
            f"{_similar(unknown[0], paths)}"
        )


def _similar(path: str, paths: Collection[str]) -> str:
    """Tell which paths may be meant by an unknown one: those of the same name, then of similar ones."""
    if not paths:
        return "there are none; leave its files out"
    by_name: dict[str, list[str]] = {}
    for each in sorted(paths):
        by_name.setdefault(_name(each), []).append(each)
    names = get_close_matches(_name(path), by_name, _SIMILAR)
    found = [each for name in names for each in by_name[name]][:_SIMILAR]
    meant = f"you may mean {' or '.join(map(repr, found))}; " if found else ""
    return f"{meant}name only files that are there, each by its whole path"


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].casefold()


def well_formed(text: str) -> str:
    """Return the text with what has no UTF-8 replaced: JSON can hold half of an emoji, the log cannot.

    Two halves that follow each other are the whole.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
