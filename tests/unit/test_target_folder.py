"""Writing the files of a result into a folder, and what keeps them from being written."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from orchestrator.cli.exit_codes import UsageError
from orchestrator.cli.target_folder import changes, diff, write

OLD = b"one\ntwo\n"
NEW = b"one\n2\n"


def given(content: bytes) -> dict[str, str]:
    return {"a.txt": hashlib.sha256(content).hexdigest()}


def test_new_files_are_written_with_their_folders(tmp_path: Path) -> None:
    found = changes(tmp_path / "out", {"src/a.py": b"a", "b.py": b"b"}, {})
    assert [change.kind for change in write(tmp_path / "out", found, force=False)] == ["new", "new"]
    assert (tmp_path / "out/src/a.py").read_bytes() == b"a"
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["a.py", "b.py", "src"]


def test_a_file_that_is_as_it_was_given_is_written_over_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(OLD)
    path.chmod(0o750)
    (change,) = write(tmp_path, changes(tmp_path, {"a.txt": NEW}, given(OLD)), force=False)
    assert change.kind == "changed"
    assert path.read_bytes() == NEW
    assert path.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("digests", [{}, given(b"something else")])
def test_a_file_that_changed_meanwhile_keeps_all_from_being_written_without_force(
    tmp_path: Path, digests: dict[str, str]
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(OLD)
    found = changes(tmp_path, {"a.txt": NEW, "b.txt": b"b"}, digests)
    with pytest.raises(UsageError, match=r"1 file in .* changed meanwhile, so nothing was written: a\.txt"):
        write(tmp_path, found, force=False)
    assert path.read_bytes() == OLD
    assert not (tmp_path / "b.txt").exists()
    write(tmp_path, found, force=True)
    assert (path.read_bytes(), (tmp_path / "b.txt").read_bytes()) == (NEW, b"b")


def test_a_file_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(NEW)
    found = changes(tmp_path, {"a.txt": NEW}, {})
    assert write(tmp_path, found, force=False) == []
    assert list(diff(found)) == []


def test_nothing_is_written_through_a_link_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/link").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match="outside of"):
        changes(tmp_path / "out", {"link/a.txt": b"a"}, {})
    (tmp_path / "out/file").symlink_to(tmp_path / "outside/a.txt")
    with pytest.raises(UsageError, match="outside of"):
        changes(tmp_path / "out", {"file": b"a"}, {})
    (tmp_path / "out/inner").symlink_to("a.txt")
    write(tmp_path / "out", changes(tmp_path / "out", {"inner": b"a"}, {}), force=False)
    assert (tmp_path / "out/a.txt").read_bytes() == b"a"


@pytest.mark.parametrize(
    ("old", "new"),
    [(OLD, NEW), (None, NEW), (OLD, b"one\ntwo"), (b"one\rtwo\x0cthree\n", b"one\rtwo\x0c3\n")],
)
def test_the_diff_is_one_that_git_applies(tmp_path: Path, old: bytes | None, new: bytes) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_bytes(old)
    patch = "".join(diff(changes(tmp_path, {"a.txt": new}, given(old or b""))))
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=patch.encode(), check=True)
    assert path.read_bytes() == new
