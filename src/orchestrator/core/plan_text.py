"""How a plan is read from what a planner writes, as a whole and while it is being written."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple

from orchestrator.core import plan_entries as entries
from orchestrator.core.instance import Subtask
from orchestrator.core.lenient_json import JsonFaultError, read, values
from orchestrator.core.plan import Plan, PlanError, check, validate

_MAX_DEPTH: Final = 4
"""How deep in other objects, lists and strings a plan may lie."""


class Outline(NamedTuple):
    """What a text holds where a plan may be, before its subtasks are read."""

    summary: str
    entries: Sequence[object]


def parse(text: str, max_subtasks: int) -> Plan:
    """Read and validate the plan in a planner's answer; raise PlanError that says what is wrong with it.

    Read is whatever can be meant in one way only: see `lenient_json` and `plan_entries`. An answer that is
    cut, or that holds two plans, is none.
    """
    if (simple := _simple(text)) is not None:
        return Plan(simple.summary, validate(entries.subtasks_of(simple.entries), max_subtasks))
    plans: list[Plan] = []
    fault: PlanError | None = None
    for outline in outlines(text):
        try:
            subtasks = validate(entries.subtasks_of(outline.entries), max_subtasks)
            plans.append(Plan(outline.summary, subtasks))
        except PlanError as error:
            fault = error
    if not plans and fault:
        raise fault
    if any(each != plans[0] for each in plans) or not _begins_as_told(text, plans[0]):
        raise PlanError("the answer holds two plans: write one JSON object")
    return plans[0]


def _begins_as_told(text: str, plan: Plan) -> bool:
    """Whether a plan is the one that was read while the text was being written."""
    reader = PlanReader(len(plan.subtasks))
    reader.add(text)
    told = reader.read()
    return tuple(told) == plan.subtasks[: len(told)]


def _simple(text: str) -> Outline | None:
    """What an answer says that is one JSON object and nothing else."""
    text = text.strip()
    if not text.startswith("{"):
        return None
    try:
        value, end = read(text)
    except JsonFaultError:
        return None
    if end < len(text) or not isinstance(value.get("subtasks"), list):
        return None
    return Outline(entries.text_of(value.get("summary")), value["subtasks"])


def outlines(text: str) -> Sequence[Outline]:
    """Every plan that a text holds, at least one; raise PlanError that says why there is none."""
    found: list[Outline] = []
    others: list[Any] = []
    fault: JsonFaultError | None = None
    for value in values(text):
        if isinstance(value, JsonFaultError):
            fault = fault or value
            if value.is_cut and not (whole := _but_for_a_brace(text)):
                raise PlanError(f"the answer is not a plan: {value}")
            found += whole if value.is_cut else ()
            continue
        here = list(_outlines(value, _MAX_DEPTH))
        found += here
        others += () if here else (value,)
    if found:
        return found
    if fault:
        raise PlanError(f"the answer is not a plan: {fault}")
    if last_resort := _where_nothing_else_is(others):
        return [last_resort]
    if inner := _unescaped(text):
        return outlines(inner)
    raise PlanError(_what_it_is_instead(text, others))


def _where_nothing_else_is(others: Sequence[Any]) -> Outline | None:
    """The plan in JSON that would not be taken for one beside a plan: it may be any data."""
    match others:
        case [_, _, *_] if all(map(entries.looks_like_a_subtask, others)):
            return Outline("", others)  # one object after the other
        case [[_, *_] as texts] if all(isinstance(each, str) for each in texts):
            return Outline("", texts)
        case [dict(value)]:
            summary = entries.text_of(value.get("summary"))
            by_id = {name: each for name, each in value.items() if entries.looks_like_a_subtask(each)}
            if len(by_id) > 1 and len(by_id) >= len(value) - 1:
                return Outline(summary, [{"id": name, **each} for name, each in by_id.items()])
    return None


def _unescaped(text: str) -> str:
    """What a text says that is written as if it stood in a JSON string; empty: it is not."""
    text = text.strip()
    try:
        value = json.loads(text if text.startswith('"') else f'"{text}"', strict=False)
    except (ValueError, RecursionError):
        return ""
    return value if isinstance(value, str) and '\\"' in text else ""


def _but_for_a_brace(text: str) -> Sequence[Outline]:
    """The plan of a text that ends where its list of subtasks does: but for closing braces, all is there."""
    text = text.rstrip().removesuffix("```").rstrip()
    if text.endswith("]"):
        for closing in ("}", "}}"):
            *_, last = values(text + closing)
            if not isinstance(last, JsonFaultError):
                return [outline for outline in _outlines(last, _MAX_DEPTH) if outline.summary]
    return ()


def _outlines(value: object, depth: int) -> Iterator[Outline]:
    """The plans that a JSON value is or holds."""
    if depth and isinstance(value, str):
        yield from _outlines(_decoded(value), depth - 1)
    elif depth and isinstance(value, list):
        inner = [outline for each in value for outline in _outlines(each, depth - 1)]
        yield from inner
        if not inner and any(map(entries.looks_like_a_subtask, value)):
            yield Outline("", value)
    elif depth and isinstance(value, dict):
        fields = entries.fields_of(value)
        summaries = (entries.text_of(fields.get(name)) for name in entries.SUMMARIES)
        summary = next(filter(None, summaries), "")
        for outline in _outlines_of(fields, depth):
            yield outline if outline.summary else outline._replace(summary=summary)


def _outlines_of(fields: Mapping[str, Any], depth: int) -> Sequence[Outline]:
    named = {name: found for name in entries.LISTS if (found := _list(fields.get(name), depth)) is not None}
    if "subtasks" in named:
        return [Outline("", named["subtasks"])]
    if named:
        return [Outline("", found) for found in named.values()]
    return [outline for member in fields.values() for outline in _outlines(member, depth - 1)]


def _list(value: object, depth: int) -> Sequence[object] | None:
    """What a member that is called a list of subtasks lists, be it in a string or by id; None: nothing."""
    if isinstance(value, str):
        value = _decoded(value)
    if isinstance(value, list):
        inner = [outline for each in value for outline in _outlines(each, depth - 1)]
        return value if len(value) != 1 or not inner else None
    if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
        inner = list(_outlines(value, depth - 1))
        return None if inner else [{"id": key, **each} for key, each in value.items()]
    return None


def _decoded(text: str) -> object:
    """What a string holds, if it holds JSON and nothing else."""
    text = text.strip()
    if text.startswith(("{", "[")):
        try:
            value, end = read(text)
        except JsonFaultError:
            return None
        if end == len(text):
            return value
    return None


def _what_it_is_instead(text: str, others: Sequence[Any]) -> str:
    if not text.strip():
        return "the answer is empty: write the plan"
    for value in others:
        if isinstance(value, dict) and "subtasks" in value:
            return f'the answer\'s "subtasks" is no list of subtasks: {json.dumps(value["subtasks"])[:80]}'
        if isinstance(value, dict):
            keys = ", ".join(map(repr, value))[:200] or "none"
            return f'the answer has no "subtasks" list; the keys of its JSON object: {keys}'
        if isinstance(value, list):
            return f'the answer has no "subtasks" list, but this one: {json.dumps(value)[:80]}'
    return "the answer is not a plan: it holds no JSON object"


_LIST: Final = re.compile(r'(?<!\\)"subtasks"\s*:\s*\[')
_BETWEEN: Final = re.compile(r"[\s,]*")
_DECODER: Final = json.JSONDecoder()


class PlanReader:
    """Reads a plan while it is being written, and gives each subtask as soon as it is whole.

    It gives only the beginning of what `parse` makes of the whole text; where something has to be repaired or
    guessed it gives nothing more and leaves it to that. A subtask that depends on later ones is held back
    until they are known, and with it all that follow. The summary must come before the subtasks: a worker
    cannot begin without it.
    """

    def __init__(self, max_subtasks: int) -> None:
        self.summary = ""
        self.told: list[Subtask] = []
        """All subtasks that it has given so far."""
        self._max_subtasks = max_subtasks
        self._text = ""
        self._pieces: list[str] = []
        self._place = 0
        """Where in the text the next subtask begins; 0: the list has not begun."""
        self._known: set[str] = set()
        self._held: list[Subtask] = []
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
            if self._place:
                self._hold_what_is_whole()
        except (PlanError, ValueError, RecursionError):
            self._gave_up = True
        return self._release()

    def _begin(self) -> int:
        """Find the list and read what comes before it; raise ValueError where that is no plan's beginning."""
        found = _LIST.search(self._text)
        if not found:
            return 0
        head = json.loads(self._text[self._text.index("{") : found.end()] + "]}")
        if head["subtasks"] != [] or not isinstance(head.get("summary"), str):
            raise ValueError("the summary does not come first")
        self.summary = entries.text_of(head["summary"])
        return found.end()

    def _hold_what_is_whole(self) -> None:
        while True:
            between = _BETWEEN.match(self._text, self._place)
            start = between.end() if between else self._place
            if self._text[start : start + 1] != "{":
                return
            try:
                entry, end = _DECODER.raw_decode(self._text, start)
            except json.JSONDecodeError:
                return  # not whole yet, or never
            subtask = entries.subtask_of(entry, len(self._known) + 1)
            check(subtask, self._known)
            if len(self._known) == self._max_subtasks:
                raise PlanError("there are too many")
            self._known.add(subtask.id)
            self._held.append(subtask)
            self._place = end

    def _release(self) -> Sequence[Subtask]:
        """Those whose dependencies are known by the ids that they are called by."""
        released = list(takewhile(lambda each: self._known.issuperset(each.depends_on), self._held))
        del self._held[: len(released)]
        self.told += released
        return released
