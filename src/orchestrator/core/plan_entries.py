"""Parse the subtasks in a planner's JSON.

The schema's keys take precedence; common synonyms are accepted, ids are normalized, and dependencies may be
written in any form that has one interpretation. An ambiguous entry raises PlanError.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any, Final, NamedTuple

from orchestrator.core.instance import Subtask
from orchestrator.core.lenient_json import JsonFaultError, read
from orchestrator.core.plan import ID, MAX_TITLE_CHARACTERS, PlanError, check_count, well_formed

LIST_KEYS: Final = (
    *("subtasks", "subtask", "tasks", "tasklist", "steps", "plan", "items", "todo", "todos", "workitems"),
)
"""Keys of the list of subtasks, normalized by `normalize_name`, as are the keys below."""
SUMMARY_KEYS: Final = ("summary", "overview", "context", "sharedcontext", "background")
ID_KEYS: Final = ("id", "subtaskid", "taskid", "stepid", "key", "number", "index")
TITLE_KEYS: Final = (
    "title",
    "name",
    "heading",
    "headline",
    "subject",
    "subtasktitle",
    "tasktitle",
    "taskname",
)
INSTRUCTION_KEYS: Final = frozenset(
    {
        *("instructions", "instruction", "description", "prompt", "details", "task", "subtask", "step"),
        *("steps", "action", "objective", "goal", "content", "text", "work", "todo", "assignment"),
    }
)
DEPENDENCY_KEYS: Final = frozenset(
    {
        *("dependson", "dependencies", "dependency", "deps", "depends", "dependsupon", "requires", "needs"),
        *("prerequisites", "prerequisite", "after", "blockedby"),
    }
)
WORKER_KEYS: Final = ("worker", "agent", "role", "assignee", "assignedto", "workertype")
FILES_KEYS: Final = ("files", "inputfiles", "filesneeded", "neededfiles", "filepaths", "paths")
_PATH_KEYS: Final = ("path", "file", "filepath", "filename", "name")
_NESTED_LIST_KEYS: Final = frozenset((*LIST_KEYS, "children"))
_NUMBER_OR_TEXT_KEYS: Final = ("step", "task", "subtask")
"""Keys that hold an id where the value is a number, and instructions where it is text."""

_TEXT_KEYS: Final = ("id", "title", "instructions", "worker")
_SUBTASK_KEYS: Final = frozenset({*_TEXT_KEYS, "depends_on"})
_SUBTASK_KEYS_WITH_FILES: Final = _SUBTASK_KEYS | {"files"}
_SCHEMA_KEYS: Final = _SUBTASK_KEYS_WITH_FILES | {"summary", "subtasks"}
_NONE_WORDS: Final = frozenset({"", "none", "null", "nil", "na", "no", "nothing", "false", "nodependencies"})
"""Normalized values that mean no dependency, or no specific worker."""
_NONE_WITH_REASON: Final = re.compile(
    r"(?:none|nothing|null|n/a)\s*(?:[(\[:;,.]|[-\u2013\u2014]\s)", re.IGNORECASE
)
"""Such a value, followed by its reason."""
_ID_PREFIX: Final = re.compile(r"(?:sub-?)?(?:task|step)(?:\s+id)?[\s:#]+", re.IGNORECASE)
"""An optional prefix of an id."""
_ELLIPSIS: Final = re.compile(r"\s*(?:\.{3,}|…)\s*")
_SEPARATOR: Final = re.compile(r"[,;|&/+\n、\uff0c]|\band\b")
_NUMBERED_ID: Final = re.compile(r"[A-Za-z]*[\s#.:_-]*0*(\d{1,9})")
_MAX_NAME_CHARACTERS: Final = 1000
"""How much is read of a key, an id or a title to tell it from others: far more than there is."""
_MAX_DEPENDENCY_CHARACTERS: Final = 16 * 1024
"""How long a text may be that names dependencies; a longer one names none that is known."""
_AMBIGUOUS_KEYS: Final = frozenset({"content", "text"})
"""Instruction keys that are too common to identify a subtask."""


class _ParsedEntry(NamedTuple):
    """The fields of an entry, before ids and dependencies are resolved."""

    id: str
    """As it is written; empty: the planner wrote none."""
    title: str
    instructions: str
    dependencies: tuple[str, ...]
    """Dependencies as they are written."""
    worker: str
    files: tuple[str, ...] = ()


def parse_subtask(entry: object, number: int, paths: Collection[str] = ()) -> Subtask:
    """Parse one entry by itself: id and dependencies stay as they are written, and the id may be empty."""
    parsed = _parse_entry(entry, number, paths)
    return Subtask(
        parsed.id,
        parsed.title or parsed.id,
        parsed.instructions,
        parsed.dependencies,
        parsed.worker,
        files=parsed.files,
    )


def parse_subtasks(
    entries: Sequence[object], max_subtasks: int, paths: Collection[str] = ()
) -> Sequence[Subtask]:
    """Parse all entries and resolve their dependencies; raise PlanError where one is ambiguous.

    `paths` are those of the input files: where there are none, files that an entry names are not read.

    It is raised too where their number is not 1 to `max_subtasks`, before any of them is parsed.

    Missing titles and ids are generated. An unknown dependency is left for `plan.validate`.
    """
    entries = [entry for entry in entries if entry not in (None, {}, "")]
    check_count(len(entries), max_subtasks)
    entries = [_unwrap_entry(entry) for entry in entries]
    parsed_entries = [_parse_entry(entry, number, paths) for number, entry in enumerate(entries, 1)]
    ids = _assign_ids(parsed_entries)
    resolver = _DependencyResolver(parsed_entries, ids)
    return [
        Subtask(
            id=name,
            title=parsed.title or name,
            instructions=parsed.instructions,
            depends_on=tuple(dict.fromkeys(resolver.resolve(name, parsed.dependencies))),
            worker=parsed.worker,
            files=parsed.files,
        )
        for name, parsed in zip(ids, parsed_entries, strict=True)
    ]


def _unwrap_entry(entry: object) -> object:
    """Unwrap an entry from an object whose only key is the id."""
    match entry:
        case dict() if len(entry) == 1:
            [(name, inner)] = entry.items()
            if looks_like_a_subtask(inner) and normalize_name(name) not in INSTRUCTION_KEYS:
                return {"id": name, **inner}
    return entry


def normalize_name(name: str) -> str:
    """Remove case and punctuation from a key: `Depends-On` and `dependsOn` are equal."""
    return re.sub(r"[\W_]+", "", name[:_MAX_NAME_CHARACTERS]).casefold()


def normalize_fields(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Index an object's members by normalized key; of two equal keys the schema's wins, else the first."""
    fields: dict[str, Any] = {}
    for key, member in value.items():
        name = normalize_name(key)
        if name not in fields or key in _SCHEMA_KEYS:
            fields[name] = member
    return fields


def looks_like_a_subtask(value: object) -> bool:
    """Return whether a value is an object with a title or instructions."""
    return isinstance(value, dict) and not _DEFINING_KEYS.isdisjoint(normalize_fields(value))


_DEFINING_KEYS: Final = frozenset((*TITLE_KEYS, *INSTRUCTION_KEYS)) - _AMBIGUOUS_KEYS


def text_of(value: object) -> str:
    """Convert a JSON value to text; null is empty."""
    if isinstance(value, str):
        return well_formed(value.strip())
    if value is None:
        return ""
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        return well_formed("\n".join(value).strip())
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return well_formed(json.dumps(value, ensure_ascii=False))


def _parse_entry(entry: object, number: int, paths: Collection[str]) -> _ParsedEntry:
    if isinstance(entry, str):
        instructions = _without_ellipsis(entry)
        return _ParsedEntry("", _title(instructions), instructions, (), "")
    if not isinstance(entry, dict):
        raise PlanError(f"subtask {number} is neither a JSON object nor a text")
    if parsed := _parse_exact_entry(entry, paths):
        return parsed
    fields = dict(normalize_fields(entry))
    given = next((text for name in ID_KEYS if (text := text_of(fields.get(name)))), "")
    for name in _NUMBER_OR_TEXT_KEYS:
        if name in fields and text_of(fields[name]).isdigit():
            value = text_of(fields.pop(name))
            given = given or value
    label = f"subtask {given[:120]!r}" if given else f"subtask {number}"
    if any(_has_objects(value) for name, value in fields.items() if name in _NESTED_LIST_KEYS):
        raise PlanError(f"{label} holds subtasks of its own: write one flat list")
    titles = (_without_ellipsis(text_of(fields.get(name))) for name in TITLE_KEYS)
    title, instructions = _title_and_instructions(next(filter(None, titles), ""), fields)
    return _ParsedEntry(
        id=given,
        title=title,
        instructions=instructions,
        dependencies=tuple(
            _dependencies(label, [value for name, value in fields.items() if name in DEPENDENCY_KEYS])
        ),
        worker=_worker(label, next((fields[name] for name in WORKER_KEYS if fields.get(name)), "")),
        files=_files(label, next((fields[name] for name in FILES_KEYS if fields.get(name)), ()), paths),
    )


def _parse_exact_entry(entry: Mapping[str, Any], paths: Collection[str]) -> _ParsedEntry | None:
    """Parse an entry that matches the schema exactly: nearly all do, and this takes half the time."""
    if entry.keys() != (_SUBTASK_KEYS_WITH_FILES if paths else _SUBTASK_KEYS):
        return None
    dependencies = entry["depends_on"]
    if type(dependencies) is not list or any(
        type(each) is not str for each in (*dependencies, *map(entry.get, _TEXT_KEYS))
    ):
        return None
    name, title, instructions, worker = (well_formed(entry[key].strip()) for key in _TEXT_KEYS)
    title = _title(title)
    dependencies = tuple(map(text_of, dependencies))
    return _ParsedEntry(
        name,
        title,
        _without_ellipsis(instructions) if instructions else title,
        dependencies,
        _worker("", worker),
        _files(f"subtask {name[:120]!r}", entry["files"], paths) if paths else (),
    )


def _has_objects(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)


def _title(text: str) -> str:
    return " ".join(_without_ellipsis(text).split())[:MAX_TITLE_CHARACTERS]


def _without_ellipsis(text: str) -> str:
    """Return the text, or nothing where it is only the ellipsis of an example."""
    return "" if _ELLIPSIS.fullmatch(text) else text


def _title_and_instructions(title: str, fields: Mapping[str, Any]) -> tuple[str, str]:
    """Return title and instructions, from the schema's keys or synonyms; either may stand for both."""
    if text := text_of(fields.get("instructions")):
        return _title(title), _without_ellipsis(text)
    texts = list(dict.fromkeys(text_of(value) for name, value in fields.items() if name in INSTRUCTION_KEYS))
    texts = list(filter(None, texts))
    instructions = list(filter(None, map(_without_ellipsis, texts)))
    title = _title(title or (instructions[0] if len(instructions) > 1 else ""))
    return title, "\n\n".join(instructions) if texts else title


def _worker(label: str, value: object) -> str:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        fields = normalize_fields(value)
        value = next(
            (fields[name] for name in ("name", "id", *WORKER_KEYS, "type") if fields.get(name)), value
        )
    if isinstance(value, list | dict):
        raise PlanError(f'{label} has a "worker" that is not one name: {json.dumps(value)[:120]}')
    text = text_of(value)
    return "" if not text or normalize_name(text) in _NONE_WORDS else text


def _files(label: str, value: object, paths: Collection[str]) -> tuple[str, ...]:
    """Return the paths that a value names, each once; one that is none of `paths` as it is written."""
    if not paths or not value or (isinstance(value, str) and normalize_name(value) in _NONE_WORDS):
        return ()
    named = []
    for each in value if isinstance(value, list) else [value]:
        path = each
        if isinstance(each, dict):
            fields = normalize_fields(each)
            path = next((fields[name] for name in _PATH_KEYS if fields.get(name)), None)
        if not isinstance(path, str):
            raise PlanError(f'{label} has "files" that are not a list of paths: {json.dumps(value)[:120]}')
        named.append(_path(well_formed(path), paths))
    return tuple(dict.fromkeys(named))


def _path(written: str, paths: Collection[str]) -> str:
    """Return a path as it is in the tree, where only the way of writing it differs."""
    if written in paths:
        return written
    plain = written.strip().strip("`").replace("\\", "/").removeprefix("./").removeprefix("/")
    return plain if plain in paths else written.strip()


def _dependencies(label: str, value: object) -> Iterator[str]:
    """Yield each dependency that a value names, as it is written."""
    match value:
        case None | False:
            return
        case str() | int() | float() if value is not True:
            yield text_of(value)
        case list():
            for each in value:
                yield from _dependencies(label, each)
        case dict():
            fields = normalize_fields(value)
            names = (fields.get(name) for name in (*ID_KEYS, *_NUMBER_OR_TEXT_KEYS, *TITLE_KEYS))
            named = next((alias for alias in names if alias not in (None, "")), None)
            if value and not isinstance(named, str | int):
                raise PlanError(f'{label} has a "depends_on" that names no id: {json.dumps(value)[:120]}')
            yield from _dependencies(label, named)
        case _:
            raise PlanError(
                f'{label} has a "depends_on" that is not a list of ids: {json.dumps(value)[:120]}'
            )


def _assign_ids(parsed_entries: Sequence[_ParsedEntry]) -> Sequence[str]:
    """Assign an id to each subtask: its own where that is valid, else a similar one."""
    given = [parsed.id for parsed in parsed_entries if parsed.id]
    if len(set(given)) < len(given):
        twice = next(name for name, times in Counter(given).items() if times > 1)
        raise PlanError(f"subtask id {twice[:120]!r} is there twice: ids must be unique")
    taken = {name for name in given if ID.fullmatch(name)}
    ids = []
    for number, parsed in enumerate(parsed_entries, 1):
        name = parsed.id
        if name not in taken:
            slug = _slug(name) or f"t{number}"
            versions = chain([slug], (f"{slug}-{version}" for version in count(2)))
            name = next(version for version in versions if version not in taken)
            taken.add(name)
        ids.append(name)
    return ids


def _slug(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", letters).strip("-")[:90]


class _DependencyResolver:
    """Resolves written dependencies to subtask ids."""

    def __init__(self, parsed_entries: Sequence[_ParsedEntry], ids: Sequence[str]) -> None:
        self._parsed_entries = parsed_entries
        self._ids = ids
        self._exact = {**dict(zip(ids, ids, strict=True)), **self._given()}
        self._aliases: dict[str, set[str]] | None = None

    def _given(self) -> Mapping[str, str]:
        return {
            parsed.id: name for parsed, name in zip(self._parsed_entries, self._ids, strict=True) if parsed.id
        }

    def resolve(self, subtask_id: str, dependencies: Iterable[str]) -> Iterator[str]:
        """Yield the ids that the dependencies refer to; an unknown one is left as it is written."""
        for dependency in dependencies:
            yield from self._resolve(subtask_id, dependency)

    def _resolve(self, subtask_id: str, dependency: str) -> Iterable[str]:
        if dependency in self._exact:
            return [self._exact[dependency]]
        if len(dependency) > _MAX_DEPENDENCY_CHARACTERS:
            return [dependency]
        if dependency.startswith(("[", "{")):
            try:
                value, end = read(dependency)
            except JsonFaultError:
                end = 0
            if end == len(dependency):
                return self.resolve(subtask_id, _dependencies(f"subtask {subtask_id!r}", value))
        parts = [part.strip() for part in _SEPARATOR.split(dependency) if part.strip()]
        for several in (parts, dependency.split()):
            if several and all(part in self._exact for part in several):
                return [self._exact[part] for part in several]
        if found := self._find(subtask_id, dependency):
            return [found]
        if normalize_name(dependency) in _NONE_WORDS or _NONE_WITH_REASON.match(dependency):
            return []
        return [self._find(subtask_id, part) or part for part in parts] if len(parts) > 1 else [dependency]

    def _find(self, subtask_id: str, dependency: str) -> str | None:
        """Find the id of the subtask with this id, alias or number."""
        if dependency in self._exact:
            return self._exact[dependency]
        if self._aliases is None:
            self._aliases = self._build_aliases()
        found = self._aliases.get(normalize_name(dependency), set())
        if not found and (named := _ID_PREFIX.match(dependency)):
            found = self._aliases.get(normalize_name(dependency[named.end() :]), set())
        if not found and (number := _NUMBERED_ID.fullmatch(dependency)):
            found = self._aliases.get(f"#{number[1]}", set())
        if len(found) > 1:
            either = ", ".join(sorted(found))
            raise PlanError(
                f"subtask {subtask_id!r} depends on {dependency[:120]!r}, which may be any of {either}"
            )
        return next(iter(found), None)

    def _build_aliases(self) -> dict[str, set[str]]:
        """Index subtasks by their aliases: id, title, both, or the number where each id ends in one."""
        aliases: dict[str, set[str]] = {}
        written = [parsed.id or name for parsed, name in zip(self._parsed_entries, self._ids, strict=True)]
        numbers = [number[1] for number in map(_NUMBERED_ID.fullmatch, written) if number]
        for index, (parsed, name) in enumerate(zip(self._parsed_entries, self._ids, strict=True)):
            names = {
                normalize_name(alias)
                for alias in (name, written[index], parsed.title, written[index] + parsed.title)
            }
            names |= {f"#{numbers[index]}"} if len(numbers) == len(written) else set()
            for alias in names - {""}:
                aliases.setdefault(alias, set()).add(name)
        return aliases
