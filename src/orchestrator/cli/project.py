"""Files of this machine, as what an instance is given."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from pathspec import GitIgnoreSpec

from orchestrator.cli.exit_codes import UsageError
from orchestrator.cli.text import pluralize
from orchestrator.core.files import path_fault
from orchestrator.core.input_files import MAX_BYTES, MAX_FILE_BYTES, MAX_FILES

_NEVER: Final = frozenset({".git", ".hg", ".svn"})
_MAX_NAMED: Final = 5


@dataclass(slots=True)
class Collected:
    """The files that were read, and those that were not."""

    files: dict[str, str] = field(default_factory=dict)
    """Contents by path."""
    binary: list[str] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> Sequence[str]:
        """What was passed over, a line for each reason."""
        return [
            f"skipped {pluralize(len(paths), f'{kind} file')}: {_named(paths)}"
            for kind, paths in (
                ("binary", self.binary),
                ("too large", self.too_large),
                ("unreadable", self.unreadable),
            )
            if paths
        ]


def collect(directory: Path | None, paths: Sequence[Path]) -> Collected:
    """Read a project's folder as far as .gitignore allows, and single files by the paths they are given by.

    What is no text, or is too large, is passed over in a folder and refused where it is named. Raise
    UsageError where a file cannot be taken, or where all of them are more than an instance takes.
    """
    collected = Collected()
    if directory is not None:
        if not directory.is_dir():
            raise UsageError(f"--dir {directory}: there is no such folder")
        for path in _walk(directory, directory, ()):
            _add(collected, path, path.relative_to(directory).as_posix())
    for path in paths:
        _add_named(collected, path)
    _check_total(collected)
    return collected


def _walk(folder: Path, root: Path, outer: Sequence[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    """Yield a folder's files in order, without those that a .gitignore in it or above it names."""
    specs = [*outer, *_ignored_by(folder)]
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        is_folder = entry.is_dir() and not entry.is_symlink()
        if entry.name in _NEVER or _is_ignored(entry, specs, is_folder=is_folder):
            continue
        if is_folder:
            yield from _walk(entry, root, specs)
        elif entry.is_file() and entry.resolve().is_relative_to(root.resolve()):
            yield entry


def _ignored_by(folder: Path) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    try:
        lines = (folder / ".gitignore").read_text(errors="replace").splitlines()
    except OSError:
        return
    yield folder, GitIgnoreSpec.from_lines(lines)


def _is_ignored(entry: Path, specs: Sequence[tuple[Path, GitIgnoreSpec]], *, is_folder: bool) -> bool:
    """Return what the innermost .gitignore says that says anything of the entry."""
    for folder, spec in reversed(specs):
        path = entry.relative_to(folder).as_posix() + "/" * is_folder
        if (verdict := spec.check_file(path).include) is not None:
            return verdict
    return False


def _add(collected: Collected, path: Path, name: str) -> None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            collected.too_large.append(name)
            return
        data = path.read_bytes()
    except OSError:
        collected.unreadable.append(name)
        return
    text = _text(data)
    if text is None or path_fault(name):
        collected.binary.append(name)
    else:
        collected.files[name] = text


def _add_named(collected: Collected, path: Path) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--file {path}: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"--file {path} has {_size(len(data))}: a file may have {_size(MAX_FILE_BYTES)}")
    text = _text(data)
    if text is None:
        raise UsageError(f"--file {path} is no UTF-8 text: only texts can be given")
    name = _name_of(path)
    if fault := path_fault(name):
        raise UsageError(f"--file {path} cannot be given under that name: {fault}")
    collected.files[name] = text


def _name_of(path: Path) -> str:
    """Return the name of a file that is given by its path: relative to here, else its last part."""
    normal = os.path.normpath(path)
    if path.is_absolute():
        normal = os.path.relpath(normal)
    return path.name if normal.startswith("..") else PurePosixPath(normal).as_posix()


def _text(data: bytes) -> str | None:
    """Return a text; None: it is none."""
    if b"\0" in data:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _check_total(collected: Collected) -> None:
    sizes = {name: len(text.encode()) for name, text in collected.files.items()}
    total = sum(sizes.values())
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_MAX_NAMED]
    which = ", ".join(f"{name} ({_size(sizes[name])})" for name in largest)
    mend = "name what is not needed in .gitignore, or give a smaller folder or single files with --file"
    if len(sizes) > MAX_FILES:
        raise UsageError(
            f"there are {len(sizes)} files and may be {MAX_FILES}: {mend}; the largest are {which}"
        )
    if total > MAX_BYTES:
        raise UsageError(
            f"the files have {_size(total)} together and may have {_size(MAX_BYTES)}: {mend}; "
            f"the largest are {which}"
        )


def _named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _MAX_NAMED} more" if len(paths) > _MAX_NAMED else ""
    return ", ".join(paths[:_MAX_NAMED]) + more


def _size(size: int) -> str:
    return f"{size / 1024 / 1024:.1f} MiB" if size >= 1024 * 1024 else f"{size / 1024:.1f} KiB"
