"""The catalogue of workers: what may be in it, and which of its workers a subtask is for."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from orchestrator.core.plan import MAX_WORKER_CHARACTERS
from orchestrator.errors import SettingsError
from orchestrator.v1 import instance_pb2 as pb

MAX_WORKERS: Final = 32
MAX_MODEL_CHARACTERS: Final = 200
MAX_INSTRUCTIONS_BYTES: Final = 8 * 1024
"""Less than an instance's own may have, for a client's whole catalogue is in its instance's first event."""

_MAX_CHARACTERS: Final = {"name": MAX_WORKER_CHARACTERS, "use": 1000, "model": MAX_MODEL_CHARACTERS}
_RANGES: Final = {"temperature": (0, 2), "top_p": (0, 1)}
_FILE: Final = "orchestrator.toml"
_KEYS: Final = ("name", "use", "model", "instructions", *_RANGES)


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
    return {field.name: value for field, value in worker.ListFields() if field.name in _RANGES}


def faults(workers: Sequence[pb.Worker]) -> Iterator[tuple[str, str]]:
    """Yield the path of each invalid field, as in `workers[0].name`, and what is wrong with it."""
    if len(workers) > MAX_WORKERS:
        yield "workers", f"has {len(workers)} workers: there may be {MAX_WORKERS}"
    names: set[str] = set()
    for number, worker in enumerate(workers):
        path = f"workers[{number}]"
        for name, most in _MAX_CHARACTERS.items():
            if len(getattr(worker, name)) > most:
                yield f"{path}.{name}", f"is over {most} characters: shorten it"
        if not worker.name or not worker.name.isprintable() or worker.name != worker.name.strip():
            yield f"{path}.name", f"is {worker.name!r}: it must be a name in one line, as in coder"
        if worker.name in names:
            yield f"{path}.name", f"is {worker.name!r}, and so is another's: names must be unique"
        names.add(worker.name)
        if len(worker.instructions.encode()) > MAX_INSTRUCTIONS_BYTES:
            yield f"{path}.instructions", f"are over {MAX_INSTRUCTIONS_BYTES // 1024} KiB: shorten them"
        for name, value in sampling(worker).items():
            least, most = _RANGES[name]
            if not least <= value <= most:
                yield f"{path}.{name}", f"is {value:g}: it must be {least} to {most}"


def read(tables: Sequence[object]) -> Sequence[pb.Worker]:
    """Read the `[[workers]]` of the settings; raise SettingsError that names the first fault."""
    workers = [_parse_worker(table, f"workers[{number}]") for number, table in enumerate(tables)]
    for path, fault in faults(workers):
        raise SettingsError(f"{path} in {_FILE} {fault}")
    return workers


def _parse_worker(table: object, path: str) -> pb.Worker:
    if not isinstance(table, Mapping):
        raise SettingsError(f"{path} in {_FILE} is {table!r}: it must be a table, as in [[workers]]")
    for key, value in table.items():
        if key not in _KEYS:
            raise SettingsError(f"{path} in {_FILE} has an unknown {key!r}; known are {', '.join(_KEYS)}")
        is_right = type(value) in (int, float) if key in _RANGES else isinstance(value, str)
        if not is_right:
            kind = "number" if key in _RANGES else "text"
            raise SettingsError(f"{path}.{key} in {_FILE} is {value!r}: it must be a {kind}")
    return pb.Worker(**table)
