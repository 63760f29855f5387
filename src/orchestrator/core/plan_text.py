"""Parse plans from a planner's answer, whole or while it is streamed."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, NamedTuple

from orchestrator.core import plan_entries as entries
from orchestrator.core.instance import Subtask
from orchestrator.core.lenient_json import JsonFaultError, read, values
from orchestrator.core.plan import Plan, PlanError, check, validate

_MAX_CHARACTERS: Final = 512 * 1024
"""How long an answer with a plan may be: some 130,000 tokens."""
_MAX_SIGNS: Final = 30_000
"""How many commas and opening brackets it may have: each may be a value of JSON, up to 0.4 µs."""
_MAX_STREAMED: Final = 64 * 1024
"""How many characters of a plan are kept while it is streamed: before its list, and of a subtask."""
_MAX_DEPTH: Final = 4
"""How deep in other objects, lists and strings a plan may lie."""


class Outline(NamedTuple):
    """A candidate plan in a text, before its subtasks are parsed."""

    summary: str
    entries: Sequence[object]


def parse(text: str, max_subtasks: int, paths: Collection[str] = ()) -> Plan:
    """Read and validate the plan in a planner's answer; raise PlanError that says what is wrong with it.

    Every form with one interpretation is accepted: see `lenient_json` and `plan_entries`. A truncated answer,
    or one with two plans, is rejected. `paths` are those of the input files that subtasks may name.
    """
    _check_size(text)
    if (outline := _parse_bare_object(text)) is not None:
        return _plan(outline, max_subtasks, paths)
    plans: list[Plan] = []
    fault: PlanError | None = None
    for outline in outlines(text):
        try:
            plans.append(_plan(outline, max_subtasks, paths))
        except PlanError as error:
            fault = error
    if not plans and fault:
        raise fault
    if any(each != plans[0] for each in plans) or not _matches_streamed_subtasks(text, plans[0], paths):
        raise PlanError("the answer holds two plans: write one JSON object")
    return plans[0]


def _check_size(text: str) -> None:
    """Raise PlanError where a text takes too long to read to be looked at."""
    if len(text) > _MAX_CHARACTERS:
        raise PlanError(f"the answer has {len(text):,} characters: a plan may have {_MAX_CHARACTERS:,}")
    if sum(map(text.count, ",[{")) > _MAX_SIGNS:
        raise PlanError(f"the answer has over {_MAX_SIGNS:,} commas and brackets: a plan has fewer")


def _plan(outline: Outline, max_subtasks: int, paths: Collection[str]) -> Plan:
    subtasks = entries.parse_subtasks(outline.entries, max_subtasks, paths)
    return Plan(outline.summary, validate(subtasks, max_subtasks, paths))


def _matches_streamed_subtasks(text: str, plan: Plan, paths: Collection[str]) -> bool:
    """Return whether a plan begins with the subtasks that were emitted while the text was streamed."""
    reader = PlanReader(len(plan.subtasks), paths)
    reader.add(text)
    emitted = reader.read()
    return tuple(emitted) == plan.subtasks[: len(emitted)]


def _parse_bare_object(text: str) -> Outline | None:
    """Parse an answer that is one JSON object and nothing else."""
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
    """Return every plan that a text holds, at least one; raise PlanError that says why there is none."""
    _check_size(text)
    found: list[Outline] = []
    others: list[Any] = []
    fault: JsonFaultError | None = None
    for value in values(text):
        if isinstance(value, JsonFaultError):
            fault = fault or value
            if value.is_cut and not (whole := _complete_with_braces(text)):
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
    if last_resort := _fallback_outline(others):
        return [last_resort]
    if inner := _unescape(text):
        return outlines(inner)
    raise PlanError(_explain_missing_plan(text, others))


def _fallback_outline(others: Sequence[Any]) -> Outline | None:
    """Find a plan in JSON that counts as one only where there is no other: it may be any data."""
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


def _unescape(text: str) -> str:
    """Return what a text says that is written as if it stood in a JSON string; empty: it is not."""
    text = text.strip()
    try:
        value = json.loads(text if text.startswith('"') else f'"{text}"', strict=False)
    except (ValueError, RecursionError):
        return ""
    return value if isinstance(value, str) and '\\"' in text else ""


def _complete_with_braces(text: str) -> Sequence[Outline]:
    """Return the plan of a text that lacks nothing but closing braces."""
    text = text.rstrip().removesuffix("```").rstrip()
    if text.endswith("]"):
        for closing in ("}", "}}"):
            *_, last = values(text + closing)
            if not isinstance(last, JsonFaultError):
                return [outline for outline in _outlines(last, _MAX_DEPTH) if outline.summary]
    return ()


def _outlines(value: object, depth: int) -> Iterator[Outline]:
    """Return the plans that a JSON value is or holds."""
    if depth and isinstance(value, str):
        yield from _outlines(_decode_nested_json(value), depth - 1)
    elif depth and isinstance(value, list):
        inner = [outline for each in value for outline in _outlines(each, depth - 1)]
        yield from inner
        if not inner and any(map(entries.looks_like_a_subtask, value)):
            yield Outline("", value)
    elif depth and isinstance(value, dict):
        fields = entries.normalize_fields(value)
        summaries = (entries.text_of(fields.get(name)) for name in entries.SUMMARY_KEYS)
        summary = next(filter(None, summaries), "")
        for outline in _outlines_of(fields, depth):
            yield outline if outline.summary else outline._replace(summary=summary)


def _outlines_of(fields: Mapping[str, Any], depth: int) -> Sequence[Outline]:
    named = {
        name: found for name in entries.LIST_KEYS if (found := _list(fields.get(name), depth)) is not None
    }
    if "subtasks" in named:
        return [Outline("", named["subtasks"])]
    if named:
        return [Outline("", found) for found in named.values()]
    return [outline for member in fields.values() for outline in _outlines(member, depth - 1)]


def _list(value: object, depth: int) -> Sequence[object] | None:
    """Return the entries of a member with subtasks, be they in a string or by id; None: it has none."""
    if isinstance(value, str):
        value = _decode_nested_json(value)
    if isinstance(value, list):
        inner = [outline for each in value for outline in _outlines(each, depth - 1)]
        return value if len(value) != 1 or not inner else None
    if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
        inner = list(_outlines(value, depth - 1))
        return None if inner else [{"id": key, **each} for key, each in value.items()]
    return None


def _decode_nested_json(text: str) -> object:
    """Decode a string that holds JSON and nothing else."""
    text = text.strip()
    if text.startswith(("{", "[")):
        try:
            value, end = read(text)
        except JsonFaultError:
            return None
        if end == len(text):
            return value
    return None


def _explain_missing_plan(text: str, others: Sequence[Any]) -> str:
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
_LIST_BEGUN: Final = re.compile(r'(?<!\\)"subtasks"\s*(?::\s*)?\Z')
_LIST_KEY: Final = '"subtasks"'
_SIGN: Final = re.compile(r'\\.?|["{}]', re.DOTALL)
_SEPARATORS: Final = re.compile(r"[\s,]*")
_DECODER: Final = json.JSONDecoder()


class PlanReader:
    """Parses a plan incrementally, and emits each subtask as soon as it is complete.

    It emits only a prefix of what `parse` returns for the whole text; at the first repair or guess it stops
    and leaves the rest to `parse`. A subtask that depends on later ones is buffered until they are known,
    together with all that follow. The summary must come before the subtasks: a worker cannot start without
    it.
    """

    def __init__(self, max_subtasks: int, paths: Collection[str] = ()) -> None:
        """`paths` are those of the input files that subtasks may name."""
        self.summary = ""
        self.emitted: list[Subtask] = []
        """All subtasks emitted so far."""
        self._max_subtasks = max_subtasks
        self._paths = paths
        self._text = ""
        """What is not parsed yet of the text but for the pieces."""
        self._pieces: list[str] = []
        self._is_in_list = False
        self._scanned = 0
        """Up to where the text has been looked at: for the list's beginning, then for a subtask's end."""
        self._depth = 0
        """How many braces are open there."""
        self._is_in_string = False
        self._known_ids: set[str] = set()
        self._buffered: list[Subtask] = []
        self._may_have_complete_subtask = False
        """Whether the pieces added since the last `read` may complete a subtask."""
        self._is_stopped = False

    def add(self, piece: str) -> None:
        """Append the next piece of the text."""
        if self._is_stopped:
            return
        self._pieces.append(piece)
        self._may_have_complete_subtask = self._may_have_complete_subtask or "}" in piece or "[" in piece

    def read(self) -> Sequence[Subtask]:
        """Return the subtasks completed by what was added since the last call."""
        if self._is_stopped or not self._may_have_complete_subtask:
            return ()
        self._may_have_complete_subtask = False
        self._text += "".join(self._pieces)
        self._pieces.clear()
        try:
            if not self._is_in_list:
                self._find_list()
            if self._is_in_list:
                self._buffer_complete_subtasks()
            self._is_stopped = len(self._text) > _MAX_STREAMED
        except (PlanError, ValueError, RecursionError):
            self._is_stopped = True
        if self._is_stopped:
            self._text = ""
        return self._emit_resolved()

    def _find_list(self) -> None:
        """Find the list and read what comes before it; raise ValueError where that is no plan's beginning."""
        found = _LIST.search(self._text, self._scanned)
        if not found:
            start = self._text.rfind(_LIST_KEY, self._scanned)
            if start < 0 or not _LIST_BEGUN.match(self._text, start):
                start = len(self._text) - len(_LIST_KEY)
            self._scanned = max(self._scanned, start)
            return
        head = json.loads(self._text[self._text.index("{") : found.end()] + "]}")
        if head["subtasks"] != [] or not isinstance(head.get("summary"), str):
            raise ValueError("the summary does not come first")
        self.summary = entries.text_of(head["summary"])
        self._is_in_list = True
        self._text = self._text[found.end() :]
        self._scanned = 0

    def _buffer_complete_subtasks(self) -> None:
        """Parse what is complete, and take it off the text; raise ValueError where it is no JSON."""
        position = 0
        while True:
            start = position
            if not self._depth:
                between = _SEPARATORS.match(self._text, position)
                start = between.end() if between else position
            if self._text[start : start + 1] != "{" or not self._scan_to_end(start):
                break
            entry, end = _DECODER.raw_decode(self._text, start)
            subtask = entries.parse_subtask(entry, len(self._known_ids) + 1, self._paths)
            check(subtask, self._known_ids, self._paths)
            if len(self._known_ids) == self._max_subtasks:
                raise PlanError("there are too many")
            self._known_ids.add(subtask.id)
            self._buffered.append(subtask)
            position = end
        self._text = self._text[start:]
        self._scanned = max(0, self._scanned - start)

    def _scan_to_end(self, start: int) -> bool:
        """Go on to the end of the object that begins at `start`, and return whether it is there.

        However it comes in pieces, each character is looked at once.
        """
        position = max(start, self._scanned)
        for sign in _SIGN.finditer(self._text, position):
            if sign[0] == "\\":  # what it escapes has not come yet
                self._scanned = sign.start()
                return False
            if sign[0] == '"':
                self._is_in_string = not self._is_in_string
            elif not self._is_in_string and sign[0] in "{}":
                self._depth += 1 if sign[0] == "{" else -1
                if not self._depth:
                    self._scanned = sign.end()
                    return True
        self._scanned = len(self._text)
        return False

    def _emit_resolved(self) -> Sequence[Subtask]:
        """Emit the buffered subtasks up to the first with an unknown dependency."""
        emitted = list(takewhile(lambda each: self._known_ids.issuperset(each.depends_on), self._buffered))
        del self._buffered[: len(emitted)]
        self.emitted += emitted
        return emitted
