"""The catalogue of workers: what may be in it, and which of its workers a subtask is for."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

from orchestrator.core import limits
from orchestrator.errors import SettingsError
from orchestrator.v1 import instance_pb2 as pb

_SAMPLING: Final = ("temperature", "top_p")
_FILE: Final = "orchestrator.toml"
_KEYS: Final = ("name", "use", "model", "instructions", *_SAMPLING)


def find(workers: Iterable[pb.Worker], name: str) -> pb.Worker | None:
    """Return the worker of that name; None: the small model works, as it would without a catalogue."""
    return next((worker for worker in workers if worker.name == name), None) if name else None


def encode(workers: Iterable[pb.Worker]) -> tuple[str, bytes]:
    """Return the digest that names a catalogue, and what the log keeps of it: a serialised pb.Catalogue."""
    data = pb.Catalogue(workers=workers).SerializeToString(deterministic=True)
    return hashlib.sha256(data).hexdigest(), data


def decode(data: bytes) -> tuple[pb.Worker, ...]:
    """Read what `encode` wrote."""
    return tuple(pb.Catalogue.FromString(data).workers)


def sampling(worker: pb.Worker | None) -> Mapping[str, float]:
    """Return the sampling parameters that a worker sets."""
    if worker is None:
        return {}
    return {field.name: value for field, value in worker.ListFields() if field.name in _SAMPLING}


def name_faults(workers: Sequence[pb.Worker]) -> Iterator[tuple[str, str]]:
    """Yield the path of each invalid name, as in `workers[0].name`, and what is wrong with it."""
    names: set[str] = set()
    for number, worker in enumerate(workers):
        path = f"workers[{number}].name"
        if not worker.name or not worker.name.isprintable() or worker.name != worker.name.strip():
            yield path, f"is {worker.name!r}: it must be a name in one line, as in coder"
        if worker.name in names:
            yield path, f"is {worker.name!r}, and so is another's: names must be unique"
        names.add(worker.name)


def read(tables: Sequence[object]) -> Sequence[pb.Worker]:
    """Read the `[[workers]]` of the settings; raise SettingsError that names the first fault."""
    workers = [_parse_worker(table, f"workers[{number}]") for number, table in enumerate(tables)]
    catalogue = pb.InstanceConfig(workers=workers)
    for path, fault in chain(limits.faults(catalogue), name_faults(workers)):
        raise SettingsError(f"{path} in {_FILE} {fault}")
    return workers


def _parse_worker(table: object, path: str) -> pb.Worker:
    if not isinstance(table, Mapping):
        raise SettingsError(f"{path} in {_FILE} is {table!r}: it must be a table, as in [[workers]]")
    for key, value in table.items():
        if key not in _KEYS:
            raise SettingsError(f"{path} in {_FILE} has an unknown {key!r}; known are {', '.join(_KEYS)}")
        is_right = type(value) in (int, float) if key in _SAMPLING else isinstance(value, str)
        if not is_right:
            kind = "number" if key in _SAMPLING else "text"
            raise SettingsError(f"{path}.{key} in {_FILE} is {value!r}: it must be a {kind}")
    return pb.Worker(**table)
