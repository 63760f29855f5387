"""The subtasks of a planner's JSON, read as they are meant.

The schema's names come first; other usual names are understood, ids are made to fit, and dependencies may be
said in any way that leaves no doubt. What does leave a doubt raises PlanError.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any, Final, NamedTuple

from orchestrator.core.instance import Subtask
from orchestrator.core.lenient_json import JsonFaultError, read
from orchestrator.core.plan import ID, MAX_TITLE_CHARACTERS, PlanError, well_formed

LISTS: Final = (
    *("subtasks", "subtask", "tasks", "tasklist", "steps", "plan", "items", "todo", "todos", "workitems"),
)
"""What the list of subtasks is called, as `plain` gives it; so are the names that follow."""
SUMMARIES: Final = ("summary", "overview", "context", "sharedcontext", "background")
IDS: Final = ("id", "subtaskid", "taskid", "stepid", "key", "number", "index")
TITLES: Final = ("title", "name", "heading", "headline", "subject", "subtasktitle", "tasktitle", "taskname")
INSTRUCTIONS: Final = frozenset(
    {
        *("instructions", "instruction", "description", "prompt", "details", "task", "subtask", "step"),
        *("steps", "action", "objective", "goal", "content", "text", "work", "todo", "assignment"),
    }
)
NEEDS: Final = frozenset(
    {
        *("dependson", "dependencies", "dependency", "deps", "depends", "dependsupon", "requires", "needs"),
        *("prerequisites", "prerequisite", "after", "blockedby"),
    }
)
WORKERS: Final = ("worker", "agent", "role", "assignee", "assignedto", "workertype")
_LISTS_OF_ITS_OWN: Final = frozenset((*LISTS, "children"))
_NUMBERED: Final = ("step", "task", "subtask")
"""What is an id where it is a number, and instructions where it is a text."""

_TEXTS: Final = ("id", "title", "instructions", "worker")
_KEYS: Final = frozenset({*_TEXTS, "depends_on"})
_SCHEMA_KEYS: Final = _KEYS | {"summary", "subtasks"}
_NOTHING: Final = frozenset({"", "none", "null", "nil", "na", "no", "nothing", "false", "nodependencies"})
"""How it is written, in plain names, that there is no dependency, or no worker of one's own."""
_NOTHING_AND_WHY: Final = re.compile(
    r"(?:none|nothing|null|n/a)\s*(?:[(\[:;,.]|[-\u2013\u2014]\s)", re.IGNORECASE
)
"""How such a thing begins where the reason follows."""
_NAMED: Final = re.compile(r"(?:sub-?)?(?:task|step)(?:\s+id)?[\s:#]+", re.IGNORECASE)
"""What may stand in front of an id."""
_DOTS: Final = re.compile(r"\s*(?:\.{3,}|…)\s*")
_SEPARATOR: Final = re.compile(r"[,;|&/+\n、\uff0c]|\band\b")
_NUMBERED_ID: Final = re.compile(r"[A-Za-z]*[\s#.:_-]*0*(\d{1,9})")
_NO_INSTRUCTIONS: Final = frozenset({"content", "text"})
"""What may be called so in any object."""


class _Draft(NamedTuple):
    """A subtask as its entry says it, before ids and dependencies are matched to each other."""

    id: str
    """As it is written; empty: the planner gave none."""
    title: str
    instructions: str
    needs: tuple[str, ...]
    """Dependencies as they are written."""
    worker: str


def subtask_of(entry: object, number: int) -> Subtask:
    """What an entry says by itself: its id and its dependencies as they are written, and perhaps no id."""
    draft = _draft(entry, number)
    return Subtask(draft.id, draft.title or draft.id, draft.instructions, draft.needs, draft.worker)


def subtasks_of(entries: Sequence[object]) -> Sequence[Subtask]:
    """What the entries say together; raise PlanError where one is in doubt.

    Titles and ids that are missing are made up. A dependency that is not found is left for `plan.validate`.
    """
    entries = [_unwrapped(entry) for entry in entries if entry not in (None, {}, "")]
    drafts = [_draft(entry, number) for number, entry in enumerate(entries, 1)]
    ids = _ids(drafts)
    references = _References(drafts, ids)
    return [
        Subtask(
            id=name,
            title=draft.title or name,
            instructions=draft.instructions,
            depends_on=tuple(dict.fromkeys(references.resolve(name, draft.needs))),
            worker=draft.worker,
        )
        for name, draft in zip(ids, drafts, strict=True)
    ]


def _unwrapped(entry: object) -> object:
    """An entry without an object around it whose one key is the id."""
    match entry:
        case dict() if len(entry) == 1:
            [(name, inner)] = entry.items()
            if looks_like_a_subtask(inner) and plain(name) not in INSTRUCTIONS:
                return {"id": name, **inner}
    return entry


def plain(name: str) -> str:
    """A name without what names are told apart by only by accident: `Depends-On` and `dependsOn` are one."""
    return re.sub(r"[\W_]+", "", name).casefold()


def fields_of(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """An object's members by their plain names; of two that are one, the schema's counts, or the first."""
    fields: dict[str, Any] = {}
    for key, member in value.items():
        name = plain(key)
        if name not in fields or key in _SCHEMA_KEYS:
            fields[name] = member
    return fields


def looks_like_a_subtask(value: object) -> bool:
    """Whether it is an object that says what is to be done."""
    return isinstance(value, dict) and not _TELLING.isdisjoint(fields_of(value))


_TELLING: Final = frozenset((*TITLES, *INSTRUCTIONS)) - _NO_INSTRUCTIONS


def text_of(value: object) -> str:
    """A JSON value as a text; empty: there is none."""
    if isinstance(value, str):
        return well_formed(value.strip())
    if value is None:
        return ""
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        return well_formed("\n".join(value).strip())
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return well_formed(json.dumps(value, ensure_ascii=False))


def _draft(entry: object, number: int) -> _Draft:
    if isinstance(entry, str):
        instructions = _said(entry)
        return _Draft("", _title(instructions), instructions, (), "")
    if not isinstance(entry, dict):
        raise PlanError(f"subtask {number} is neither a JSON object nor a text")
    if draft := _as_asked(entry):
        return draft
    fields = dict(fields_of(entry))
    given = next((text for name in IDS if (text := text_of(fields.get(name)))), "")
    for name in _NUMBERED:
        if name in fields and text_of(fields[name]).isdigit():
            value = text_of(fields.pop(name))
            given = given or value
    what = f"subtask {given[:120]!r}" if given else f"subtask {number}"
    if any(_has_objects(value) for name, value in fields.items() if name in _LISTS_OF_ITS_OWN):
        raise PlanError(f"{what} holds subtasks of its own: write one flat list")
    titles = (_said(text_of(fields.get(name))) for name in TITLES)
    title, instructions = _told(next(filter(None, titles), ""), fields)
    return _Draft(
        id=given,
        title=title,
        instructions=instructions,
        needs=tuple(_needs(what, [value for name, value in fields.items() if name in NEEDS])),
        worker=_worker(what, next((fields[name] for name in WORKERS if fields.get(name)), "")),
    )


def _as_asked(entry: Mapping[str, Any]) -> _Draft | None:
    """What an entry says that is as the schema wants it: nearly all are, and this takes half the time."""
    if entry.keys() != _KEYS:
        return None
    needs = entry["depends_on"]
    if type(needs) is not list or any(type(each) is not str for each in (*needs, *map(entry.get, _TEXTS))):
        return None
    name, title, instructions, worker = (well_formed(entry[key].strip()) for key in _TEXTS)
    title = _title(title)
    needs = tuple(map(text_of, needs))
    return _Draft(name, title, _said(instructions) if instructions else title, needs, _worker("", worker))


def _has_objects(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)


def _title(text: str) -> str:
    return " ".join(_said(text).split())[:MAX_TITLE_CHARACTERS]


def _said(text: str) -> str:
    """The text, unless it is the dots that an example has in its place."""
    return "" if _DOTS.fullmatch(text) else text


def _told(title: str, fields: Mapping[str, Any]) -> tuple[str, str]:
    """Title and instructions: the schema's, or all that goes under another name, or the one for the other."""
    if text := text_of(fields.get("instructions")):
        return _title(title), _said(text)
    texts = list(dict.fromkeys(text_of(value) for name, value in fields.items() if name in INSTRUCTIONS))
    texts = list(filter(None, texts))
    said = list(filter(None, map(_said, texts)))
    title = _title(title or (said[0] if len(said) > 1 else ""))
    return title, "\n\n".join(said) if texts else title


def _worker(what: str, value: object) -> str:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        fields = fields_of(value)
        value = next((fields[name] for name in ("name", "id", *WORKERS, "type") if fields.get(name)), value)
    if isinstance(value, list | dict):
        raise PlanError(f'{what} has a "worker" that is not one name: {json.dumps(value)[:120]}')
    text = text_of(value)
    return "" if not text or plain(text) in _NOTHING else text


def _needs(what: str, value: object) -> Iterator[str]:
    """Each dependency that a value names, as it is written."""
    match value:
        case None | False:
            return
        case str() | int() | float() if value is not True:
            yield text_of(value)
        case list():
            for each in value:
                yield from _needs(what, each)
        case dict():
            fields = fields_of(value)
            ways = (fields.get(name) for name in (*IDS, *_NUMBERED, *TITLES))
            named = next((way for way in ways if way not in (None, "")), None)
            if value and not isinstance(named, str | int):
                raise PlanError(f'{what} has a "depends_on" that names no id: {json.dumps(value)[:120]}')
            yield from _needs(what, named)
        case _:
            raise PlanError(f'{what} has a "depends_on" that is not a list of ids: {json.dumps(value)[:120]}')


def _ids(drafts: Sequence[_Draft]) -> Sequence[str]:
    """An id for each subtask: its own where that is one, else one that is like it."""
    given = [draft.id for draft in drafts if draft.id]
    if twice := next((name for number, name in enumerate(given) if name in given[:number]), ""):
        raise PlanError(f"subtask id {twice[:120]!r} is there twice: ids must be unique")
    taken = {name for name in given if ID.fullmatch(name)}
    ids = []
    for number, draft in enumerate(drafts, 1):
        name = draft.id
        if name not in taken:
            like = _like(name) or f"t{number}"
            versions = chain([like], (f"{like}-{version}" for version in count(2)))
            name = next(version for version in versions if version not in taken)
            taken.add(name)
        ids.append(name)
    return ids


def _like(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", letters).strip("-")[:90]


class _References:
    """Which subtask is meant by what a dependency says."""

    def __init__(self, drafts: Sequence[_Draft], ids: Sequence[str]) -> None:
        self._drafts = drafts
        self._ids = ids
        self._exact = {**dict(zip(ids, ids, strict=True)), **self._given()}
        self._loose: dict[str, set[str]] | None = None

    def _given(self) -> Mapping[str, str]:
        return {draft.id: name for draft, name in zip(self._drafts, self._ids, strict=True) if draft.id}

    def resolve(self, subtask_id: str, needs: Iterable[str]) -> Iterator[str]:
        """The ids that are meant; what none is meant by is given as it is."""
        for need in needs:
            yield from self._resolve(subtask_id, need)

    def _resolve(self, subtask_id: str, need: str) -> Iterable[str]:
        if need in self._exact:
            return [self._exact[need]]
        if need.startswith(("[", "{")):
            try:
                value, end = read(need)
            except JsonFaultError:
                end = 0
            if end == len(need):
                return self.resolve(subtask_id, _needs(f"subtask {subtask_id!r}", value))
        parts = [part.strip() for part in _SEPARATOR.split(need) if part.strip()]
        for several in (parts, need.split()):
            if several and all(part in self._exact for part in several):
                return [self._exact[part] for part in several]
        if found := self._find(subtask_id, need):
            return [found]
        if plain(need) in _NOTHING or _NOTHING_AND_WHY.match(need):
            return []
        return [self._find(subtask_id, part) or part for part in parts] if len(parts) > 1 else [need]

    def _find(self, subtask_id: str, need: str) -> str | None:
        """The id of the subtask that is called so, or nearly so, or has that number."""
        if need in self._exact:
            return self._exact[need]
        if self._loose is None:
            self._loose = self._loosely()
        found = self._loose.get(plain(need), set())
        if not found and (named := _NAMED.match(need)):
            found = self._loose.get(plain(need[named.end() :]), set())
        if not found and (number := _NUMBERED_ID.fullmatch(need)):
            found = self._loose.get(f"#{number[1]}", set())
        if len(found) > 1:
            either = ", ".join(sorted(found))
            raise PlanError(f"subtask {subtask_id!r} depends on {need[:120]!r}, which may be any of {either}")
        return next(iter(found), None)

    def _loosely(self) -> dict[str, set[str]]:
        """What a subtask may be called: its id, its title, both, or its number where each id ends in one."""
        loose: dict[str, set[str]] = {}
        written = [draft.id or name for draft, name in zip(self._drafts, self._ids, strict=True)]
        numbers = [number[1] for number in map(_NUMBERED_ID.fullmatch, written) if number]
        for place, (draft, name) in enumerate(zip(self._drafts, self._ids, strict=True)):
            ways = {plain(way) for way in (name, written[place], draft.title, written[place] + draft.title)}
            ways |= {f"#{numbers[place]}"} if len(numbers) == len(written) else set()
            for way in ways - {""}:
                loose.setdefault(way, set()).add(name)
        return loose
