"""A plan: its JSON schema, and what makes it valid."""

import re
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Final

from orchestrator.core import limits
from orchestrator.core.instance import Subtask
from orchestrator.v1 import instance_pb2 as pb

_INSTRUCTIONS: Final = limits.of(pb.Subtask, "instructions")

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


def schema(max_subtasks: int) -> Mapping[str, object]:
    """Return the JSON schema of a plan with at most so many subtasks."""
    text = {"type": "string"}
    subtask = {
        "id": text,
        "title": text,
        "instructions": text,
        "depends_on": {"type": "array", "items": text},
        "worker": text,
    }
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


def validate(subtasks: Iterable[Subtask], max_subtasks: int) -> tuple[Subtask, ...]:
    """Return the subtasks as they are, or raise PlanError.

    Ids are unique and well formed, instructions are there and bounded, dependencies are known and without a
    cycle, and there are 1 to `max_subtasks` of them.
    """
    subtasks = tuple(subtasks)
    check_size(subtasks, max_subtasks)
    known: set[str] = set()
    for subtask in subtasks:
        check(subtask, known)
        known.add(subtask.id)
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
    """Raise PlanError where there are too many subtasks, or more dependencies than those can have.

    None of their texts is looked at.
    """
    check_count(len(subtasks), max_subtasks)
    for subtask in subtasks:
        if len(subtask.depends_on) >= len(subtasks) + _MAX_UNKNOWN_DEPENDENCIES:
            raise PlanError(
                f"subtask {subtask.id[:120]!r} names {len(subtask.depends_on)} dependencies, "
                f"and there are {len(subtasks)} subtasks"
            )


def check(subtask: Subtask, known: Container[str]) -> None:
    """Raise PlanError where a subtask by itself, or after those that are known, cannot be used."""
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


def well_formed(text: str) -> str:
    """Return the text with what has no UTF-8 replaced: JSON can hold half of an emoji, the log cannot.

    Two halves that follow each other are the whole.
    """
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
