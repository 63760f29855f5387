"""Bring the files of a result into a folder, show them as a diff, or list them."""

import io
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

import typer

from orchestrator.cli import target_folder
from orchestrator.cli.exit_codes import UsageError
from orchestrator.cli.target_folder import Change
from orchestrator.cli.text import pluralize, strip_controls
from orchestrator.client import Client
from orchestrator.v1 import instance_pb2

INPUT: Final = "input"
"""The source of a file that the instance was given and has not changed."""
_MAX_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class ResultFiles:
    """The files of a result, with those that the instance was given."""

    contents: Mapping[str, bytes]
    """Those of the result by path, the untouched ones among them."""
    untouched: frozenset[str]
    given: Mapping[str, str]
    """The SHA-256 of each file that was given, by path."""

    def changes(self, folder: Path, *, with_untouched: bool = False) -> Sequence[Change]:
        """Compare with a folder.

        What the instance was given and left alone stays as it is there, unless `with_untouched`.
        """
        wanted = {
            path: content
            for path, content in self.contents.items()
            if with_untouched or path not in self.untouched or not (folder / path).exists()
        }
        return target_folder.changes(folder, wanted, self.given)


async def fetch(client: Client, instance_id: str) -> ResultFiles:
    """Fetch the files of a complete instance."""
    listed = (await client.list_files(instance_id)).files
    archive = await client.get_archive(instance_id) if listed else b""
    instance = (await client.get(instance_id)).instance
    return ResultFiles(
        contents=_unpacked(archive),
        untouched=frozenset(file.path for file in listed if file.source == INPUT),
        given={file.path: file.sha256 for file in instance.files},
    )


def _unpacked(archive: bytes) -> Mapping[str, bytes]:
    if not archive:
        return {}
    with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


def bring(files: ResultFiles, folder: Path, *, force: bool, diff_output: TextIO | None = None) -> None:
    """Write the files into the folder, and say on stderr what was written.

    With `diff_output` the diff is printed there before that, and a terminal asked whether to go on.
    """
    found = files.changes(folder, with_untouched=force)
    if diff_output:
        print_diff(found, diff_output)
        has_changes = any(change.kind != "same" for change in found)
        if has_changes and sys.stdin.isatty() and not typer.confirm(f"Write this to {folder}?", err=True):
            typer.echo("nothing was written", err=True)
            return
    written = target_folder.write(folder, found, force=force)
    if not written:
        typer.echo(f"{folder} has all that the result changes: nothing was written", err=True)
        return
    named = ", ".join(f"{change.path} ({change.kind})" for change in written[:_MAX_NAMED])
    more = f" and {len(written) - _MAX_NAMED} more" if len(written) > _MAX_NAMED else ""
    typer.echo(f"wrote {pluralize(len(written), 'file')} to {folder}: {named}{more}", err=True)


def print_diff(found: Sequence[Change], output: TextIO) -> None:
    """Print a diff of what would be written; a terminal is not steered by it."""
    is_terminal = output.isatty()
    output.writelines(strip_controls(line) if is_terminal else line for line in target_folder.diff(found))
    output.flush()


def changes_of_inputs(files: ResultFiles, instance: instance_pb2.Instance) -> Sequence[Change]:
    """Compare with what the instance was given, which `instance` has in full."""
    given = {file.path: file.content.encode() for file in instance.files}
    return [
        Change(path, content, given.get(path), "same" if given.get(path) == content else "changed")
        for path, content in files.contents.items()
    ]


def save_archive(archive: bytes, file: Path, *, force: bool) -> None:
    """Write a zip; raise UsageError where the file is there already."""
    try:
        with file.open("wb" if force else "xb") as opened:
            opened.write(archive)
    except FileExistsError:
        raise UsageError(f"{file} is there already: write over it with --force") from None
