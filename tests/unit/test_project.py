"""Which files of a folder an instance is given."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.cli.exit_codes import UsageError
from orchestrator.cli.project import collect


def tree(root: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def test_a_folder_is_read_as_far_as_its_gitignore_files_allow(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            ".gitignore": "build/\n*.log\n!keep.log\n/only-here\n",
            "app.py": "print('ä')\n",
            "keep.log": "kept",
            "drop.log": "dropped",
            "only-here": "dropped",
            "build/out.txt": "dropped",
            "lib/only-here": "kept",
            "lib/.gitignore": "*.tmp\n!drop.log\n",
            "lib/a.tmp": "dropped",
            "lib/drop.log": "kept",
            ".git/config": "dropped",
        },
    )
    collected = collect(root, [])
    assert sorted(collected.files) == [
        ".gitignore",
        "app.py",
        "keep.log",
        "lib/.gitignore",
        "lib/drop.log",
        "lib/only-here",
    ]
    assert collected.files["app.py"] == "print('ä')\n"
    assert collected.skipped == []


def test_what_is_no_text_or_too_large_is_passed_over_in_a_folder_and_named(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {"a.png": b"\x89PNG\0", "latin.txt": b"caf\xe9", "big.txt": "x" * (1024 * 1024 + 1), "ok.txt": "ok"},
    )
    collected = collect(root, [])
    assert list(collected.files) == ["ok.txt"]
    assert collected.skipped == [
        "skipped 2 binary files: a.png, latin.txt",
        "skipped 1 too large file: big.txt",
    ]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    tree(tmp_path, {"outside/secret.txt": "no", "project/app.py": "yes"})
    (tmp_path / "project/secret.txt").symlink_to(tmp_path / "outside/secret.txt")
    (tmp_path / "project/folder").symlink_to(tmp_path / "outside")
    (tmp_path / "project/alias.py").symlink_to("app.py")
    assert sorted(collect(tmp_path / "project", []).files) == ["alias.py", "app.py"]


def test_single_files_have_the_path_they_are_given_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, {"work/src/a.py": "a", "work/b.py": "b", "elsewhere/c.py": "c"})
    monkeypatch.chdir(tmp_path / "work")
    paths = [Path("src/a.py"), Path("./b.py"), Path("../elsewhere/c.py"), (tmp_path / "work/src/a.py")]
    assert collect(None, paths).files == {"src/a.py": "a", "b.py": "b", "c.py": "c"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\0", "is no UTF-8 text"),
        (b"\xff", "is no UTF-8 text"),
        (b"x" * (1024 * 1024 + 1), "has 1.0 MiB: a file may have 1.0 MiB"),
        (None, "No such file"),
    ],
)
def test_a_named_file_that_cannot_be_given_is_refused(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=problem):
        collect(None, [path])


def test_too_many_files_and_too_much_of_them_name_the_largest(tmp_path: Path) -> None:
    big = tree(tmp_path / "big", {f"{number}.txt": "x" * (1000 * 1024 + number) for number in range(9)})
    with pytest.raises(
        UsageError, match=r"8\.8 MiB together and may have 8\.0 MiB.*8\.txt \(1000\.0 KiB\), 7"
    ):
        collect(big, [])
    many = tree(tmp_path / "many", {f"{number}.txt": "" for number in range(1001)})
    with pytest.raises(UsageError, match="there are 1001 files and may be 1000"):
        collect(many, [])


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        collect(tmp_path / "none", [])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    tree(tmp_path, {"a.txt": "a"})
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert collect(tmp_path, []).skipped == ["skipped 1 unreadable file: a.txt"]
