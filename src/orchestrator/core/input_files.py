"""The files that a client brings: what they must keep to, and what is recorded of them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

from orchestrator.core import languages, limits
from orchestrator.core.files import path_fault
from orchestrator.core.instance import InputFile
from orchestrator.errors import InvalidArgumentError
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1.orchestrator_pb2 import CreateInstanceRequest

MAX_FILES: Final = limits.of(CreateInstanceRequest, "files").max_items
MAX_FILE_BYTES: Final = limits.of(pb.File, "content").max_bytes
MAX_BYTES: Final = 8 * 1024 * 1024
"""Of all files of a request together."""
_NAMED: Final = 5
"""How many of the largest files a message names."""


def read(files: Sequence[pb.File]) -> tuple[InputFile, ...]:
    """Return the files of a request, with what the service itself says of them.

    Raise InvalidArgumentError (FILES_INVALID) that names the first file at fault or, of too much, the largest
    ones. 8 MiB take some 15 ms.
    """
    if len(files) > MAX_FILES:
        raise _invalid(f"there are {len(files):,} files and may be {MAX_FILES:,}: leave some out", "files")
    found = tuple(map(_read, files))
    for number, fault in _faults(found):
        raise _invalid(f"the file {found[number].path[:200]!r}: {fault}", f"files[{number}].path")
    for number, file in enumerate(found):
        if file.size_bytes > MAX_FILE_BYTES:
            raise _invalid(
                f"the file {file.path!r} has {file.size_bytes:,} bytes and may have {MAX_FILE_BYTES:,}: "
                f"leave it out, or shorten it; {_largest(found)}",
                f"files[{number}].content",
            )
        if "\0" in file.content:
            problem = f"the file {file.path!r} holds a NUL: only text can be given"
            raise _invalid(problem, f"files[{number}].content")
    total = sum(file.size_bytes for file in found)
    if total > MAX_BYTES:
        raise _invalid(
            f"the files have {total:,} bytes together and may have {MAX_BYTES:,}: leave some out; "
            f"{_largest(found)}",
            "files",
        )
    return found


def input_file(path: str, content: str) -> InputFile:
    """Return a file with what is to be said of it."""
    data = content.encode()
    return InputFile(path, content, languages.of(path), len(data), hashlib.sha256(data).hexdigest())


def digest(files: Iterable[InputFile]) -> bytes:
    """Return the SHA-256 of paths and contents, independent of the order of the files."""
    whole = hashlib.sha256()
    for file in sorted(files):
        whole.update(f"{file.path}\0{file.sha256}\0".encode())
    return whole.digest()


def _read(file: pb.File) -> InputFile:
    return input_file(file.path, file.content)


def _faults(files: Sequence[InputFile]) -> Iterator[tuple[int, str]]:
    """Yield the number of each file whose path cannot be, alone or beside the others, and why."""
    numbers: dict[str, int] = {}
    for number, file in enumerate(files):
        if fault := path_fault(file.path):
            yield number, fault
        elif file.path in numbers:
            yield number, "it is there twice: paths must be unique"
        numbers[file.path] = number
    # What lies in a folder follows right behind it.
    for path, following in pairwise(sorted(f"{path}/" for path in numbers)):
        if following.startswith(path):
            beside = f"it is also the folder of {following[:-1][:200]!r}: a path is one or the other"
            yield numbers[path[:-1]], beside


def _largest(files: Iterable[InputFile]) -> str:
    named = sorted(files, key=lambda file: -file.size_bytes)[:_NAMED]
    return "the largest: " + ", ".join(f"{file.path} ({file.size_bytes:,} bytes)" for file in named)


def _invalid(message: str, field: str) -> InvalidArgumentError:
    return InvalidArgumentError("FILES_INVALID", message, field=field)
