"""A plan: its JSON schema, its validation, and how it is read from a planner's text."""

import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

from orchestrator.core.state import Subtask

ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")
"""What an instance's or a subtask's id must match in full."""

MAX_INSTRUCTIONS_BYTES: Final = 64 * 1024
MAX_TITLE_CHARACTERS: Final = 200
MAX_WORKER_CHARACTERS: Final = 100


class PlanError(ValueError):
    """A plan cannot be used; the message tells its author what to mend."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the planner hands to the workers."""

    summary: str
    subtasks: tuple[Subtask, ...]


def schema(max_subtasks: int) -> Mapping[str, object]:
    """The JSON schema of a plan with at most so many subtasks."""
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
    if not 1 <= len(subtasks) <= max_subtasks:
        raise PlanError(f"a plan needs 1 to {max_subtasks} subtasks; this one has {len(subtasks)}")
    known: set[str] = set()
    for subtask in subtasks:
        _check(subtask, known)
        known.add(subtask.id)
    for subtask in subtasks:
        if unknown := [name for name in subtask.depends_on if name not in known]:
            raise PlanError(f"subtask {subtask.id!r} depends on {unknown[0]!r}, which is not in the plan")
    try:
        TopologicalSorter({task.id: task.depends_on for task in subtasks if task.depends_on}).prepare()
    except CycleError as error:
        cycle = " → ".join(error.args[1])
        raise PlanError(f"the subtasks depend on each other in a cycle: {cycle}") from None
    return subtasks


def _check(subtask: Subtask, known: Container[str]) -> None:
    """Raise PlanError where a subtask by itself, or after those that are known, cannot be used."""
    if not ID.fullmatch(subtask.id):
        raise PlanError(f"subtask id {subtask.id[:120]!r} does not match ^{ID.pattern}$")
    if subtask.id in known:
        raise PlanError(f"subtask id {subtask.id!r} is there twice: ids must be unique")
    if not subtask.instructions.strip():
        raise PlanError(f"subtask {subtask.id!r} has no instructions")
    if len(subtask.instructions.encode()) > MAX_INSTRUCTIONS_BYTES:
        raise PlanError(f"subtask {subtask.id!r} has instructions of over 64 KiB: shorten them")
    if len(subtask.title) > MAX_TITLE_CHARACTERS:
        raise PlanError(f"subtask {subtask.id!r} has a title of over {MAX_TITLE_CHARACTERS} characters")
    if len(subtask.worker) > MAX_WORKER_CHARACTERS:
        raise PlanError(f"subtask {subtask.id!r} has a worker of over {MAX_WORKER_CHARACTERS} characters")
    if len(set(subtask.depends_on)) < len(subtask.depends_on):
        raise PlanError(f"subtask {subtask.id!r} names a dependency twice")


def parse(text: str, max_subtasks: int) -> Plan:
    """Read and validate the plan in a planner's answer; raise PlanError.

    Survives a fence or prose around the JSON. A missing title is taken from the id, missing ids are
    counted (`t1`, `t2`, …), missing lists are empty.
    """
    value = json_object(text)
    entries = value.get("subtasks")
    if not isinstance(entries, list):
        raise PlanError('the answer has no "subtasks" list')
    subtasks = validate((_subtask(entry, number) for number, entry in enumerate(entries, 1)), max_subtasks)
    return Plan(summary=_text(value.get("summary")), subtasks=subtasks)


def json_object(text: str) -> dict[str, Any]:
    """The first JSON object in a text; raise PlanError where there is none."""
    decoder = json.JSONDecoder()
    problem = "it holds no JSON object"
    start = text.find("{")
    while start >= 0:
        try:
            value, _ = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            problem = f"its JSON breaks at character {error.pos}: {error.msg}"
        except ValueError as error:
            problem = f"its JSON cannot be read: {error}"
            break
        except RecursionError:
            problem = "its JSON is nested too deeply"
            break
        else:
            if isinstance(value, dict):
                return value
        start = text.find("{", start + 1) if text.count("{", 0, start + 1) < _MAX_CANDIDATES else -1
    raise PlanError(f"the answer is not a plan: {problem}")


_MAX_CANDIDATES: Final = 16
"""How many opening braces are tried, so that a long text of braces costs little."""


def _subtask(entry: object, number: int) -> Subtask:
    if not isinstance(entry, dict):
        raise PlanError(f"subtask {number} is not a JSON object")
    subtask_id = _text(entry.get("id")) or f"t{number}"
    depends_on = entry.get("depends_on") or []
    if not isinstance(depends_on, list):
        raise PlanError(f'subtask {subtask_id!r} has a "depends_on" that is not a list')
    title = " ".join(_text(entry.get("title")).split())[:MAX_TITLE_CHARACTERS]
    return Subtask(
        id=subtask_id,
        title=title or subtask_id,
        instructions=_text(entry.get("instructions")) or title,
        depends_on=tuple(dict.fromkeys(_text(name) for name in depends_on)),
        worker=_text(entry.get("worker")),
    )


def well_formed(text: str) -> str:
    """The text with what has no UTF-8 replaced: JSON can hold half of an emoji, the log cannot."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _text(value: object) -> str:
    if value is None:
        return ""
    text = value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return well_formed(text)


_LIST: Final = re.compile(r'(?<!\\)"subtasks"\s*:\s*\[')
_BETWEEN: Final = re.compile(r"[\s,]*")


class PlanReader:
    """Reads a plan while it is being written, and gives each subtask as soon as it is whole.

    It gives only what `parse` would make of the whole text; where it is not sure, it gives nothing more and
    leaves it to that. The summary must come before the subtasks: a worker cannot begin without it.
    """

    def __init__(self, max_subtasks: int) -> None:
        self.summary = ""
        self._max_subtasks = max_subtasks
        self._text = ""
        self._pieces: list[str] = []
        self._place = 0
        """Where in the text the next subtask begins; 0: the list has not begun."""
        self._known: set[str] = set()
        self._may_be_whole = False
        """Whether something can have come to its end since the last time."""
        self._gave_up = False

    def add(self, piece: str) -> None:
        """Take in what was written next."""
        self._pieces.append(piece)
        self._may_be_whole = self._may_be_whole or "}" in piece or "[" in piece

    def read(self) -> Sequence[Subtask]:
        """The subtasks that are whole by what was added since the last time."""
        if self._gave_up or not self._may_be_whole:
            return ()
        self._may_be_whole = False
        self._text += "".join(self._pieces)
        self._pieces.clear()
        try:
            if not self._place:
                self._place = self._begin()
            return self._whole() if self._place else ()
        except (PlanError, ValueError, RecursionError):
            self._gave_up = True
            return ()

    def _begin(self) -> int:
        """Find the list and read what comes before it; raise ValueError where that is no plan's beginning."""
        found = _LIST.search(self._text)
        if not found:
            return 0
        head = json.loads(self._text[self._text.index("{") : found.end()] + "]}")
        if head["subtasks"] != [] or not isinstance(head.get("summary"), str):
            raise ValueError("the summary does not come first")
        self.summary = _text(head["summary"])
        return found.end()

    def _whole(self) -> Sequence[Subtask]:
        decoder = json.JSONDecoder()
        subtasks: list[Subtask] = []
        while True:
            between = _BETWEEN.match(self._text, self._place)
            start = between.end() if between else self._place
            if self._text[start : start + 1] != "{":
                return subtasks
            try:
                entry, end = decoder.raw_decode(self._text, start)
            except json.JSONDecodeError:
                return subtasks  # not whole yet, or never
            subtask = _subtask(entry, len(self._known) + 1)
            _check(subtask, self._known)
            if len(self._known) == self._max_subtasks:
                raise PlanError("there are too many")
            self._known.add(subtask.id)
            self._place = end
            subtasks.append(subtask)
