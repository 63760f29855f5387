"""The files of a result on their way into a folder: what would change, and writing it.

A file is written over only if it is still as the instance was given it. Nothing is ever written outside of
the folder, nor through a link that leads out of it.
"""

import difflib
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from orchestrator.cli.exit_codes import UsageError
from orchestrator.cli.text import pluralize

Kind = Literal["new", "changed", "same", "conflict"]
_MAX_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class Change:
    """One file of a result beside what the folder has in its place."""

    path: str
    content: bytes
    old: bytes | None
    """What is there; None: nothing."""
    kind: Kind


def changes(folder: Path, contents: Mapping[str, bytes], given: Mapping[str, str]) -> Sequence[Change]:
    """Compare the files of a result, by path, with a folder's.

    `given` are the SHA-256 digests of the files that the instance was given, in hexadecimal digits: of a file
    that is something else by now, it is a conflict. Raise UsageError for a path that leads out of the folder.
    """
    found = []
    for path, content in contents.items():
        place = _place(folder, path)
        try:
            old = place.read_bytes() if place.exists() else None
        except OSError as error:
            raise UsageError(f"{place} cannot be read: {error.strerror}") from None
        found.append(Change(path, content, old, _kind(content, old, given.get(path))))
    return found


def write(folder: Path, found: Sequence[Change], *, force: bool) -> Sequence[Change]:
    """Write what is new or changed; return that. Raise UsageError on a conflict, with nothing written."""
    conflicts = [change.path for change in found if change.kind == "conflict"]
    if conflicts and not force:
        more = f" and {len(conflicts) - _MAX_NAMED} more" if len(conflicts) > _MAX_NAMED else ""
        raise UsageError(
            f"{pluralize(len(conflicts), 'file')} in {folder} changed meanwhile, so nothing was written: "
            f"{', '.join(conflicts[:_MAX_NAMED])}{more}; look with --diff, and write over with --force"
        )
    written = [change for change in found if change.kind != "same"]
    for change in written:
        try:
            _write(_place(folder, change.path), change.content)
        except OSError as error:
            raise UsageError(f"{folder / change.path} cannot be written: {error.strerror}") from None
    return written


def diff(found: Sequence[Change]) -> Iterator[str]:
    """Yield the lines of a unified diff of what would be written, as `git apply` takes it."""
    for change in found:
        if change.kind == "same":
            continue
        old = _lines(change.old or b"")
        before = "/dev/null" if change.old is None else f"a/{change.path}"
        for line in difflib.unified_diff(old, _lines(change.content), before, f"b/{change.path}"):
            yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _kind(content: bytes, old: bytes | None, given: str | None) -> Kind:
    if old is None:
        return "new"
    if old == content:
        return "same"
    return "changed" if hashlib.sha256(old).hexdigest() == given else "conflict"


def _place(folder: Path, path: str) -> Path:
    """Return where a file belongs; raise UsageError where a link leads out of the folder."""
    place = folder / path
    if not place.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{path} would be written outside of {folder}: a link leads there")
    return place


def _write(place: Path, content: bytes) -> None:
    """Write a file so that it is never there in half, with the permissions of the one that it replaces."""
    place = place.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    mode = place.stat().st_mode & 0o777 if place.exists() else 0o666 & ~_umask()
    descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name[:100]}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).chmod(mode)
        Path(name).replace(place)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _lines(content: bytes) -> list[str]:
    return list(io.StringIO(content.decode(errors="replace"), newline="\n"))
