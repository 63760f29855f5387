"""What the files of a request must keep to, and what the service says of them."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import config, create
from orchestrator.core.instance import InputFile
from orchestrator.errors import InvalidArgumentError
from orchestrator.v1.instance_pb2 import File, InstanceConfig, Subtask
from orchestrator.v1.orchestrator_pb2 import CreateInstanceRequest

BASE = config.default("a/big", "a/small")
MIB = 1024 * 1024


def new(files: Iterable[File], **request: Any) -> create.NewInstance:
    wanted = CreateInstanceRequest(prompt="x", files=files, **request)
    return create.new_instance(wanted, base=BASE, fallback_id="a")


def refused(files: Iterable[File], **request: Any) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        new(files, **request)
    return caught.value


def test_what_is_said_of_a_file_is_computed_and_not_taken_from_the_client() -> None:
    content = "π = 3\n"
    sent = File(
        path="src/pi.py", content=content, language="cobol", size_bytes=1, sha256="0", source="result"
    )
    [file] = new([sent]).files
    assert file == InputFile("src/pi.py", content, "python", 7, sha256(content.encode()).hexdigest())


def test_files_stay_in_the_order_in_which_they_come_and_may_be_empty() -> None:
    files = new([File(path="b"), File(path="a/z.py"), File(path="a/b.py")]).files
    assert [file.path for file in files] == ["b", "a/z.py", "a/b.py"]
    assert files[0].sha256 == sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("../a", "'..'"),
        ("a/../b", "'..'"),
        ("./a", "'.'"),
        ("a//b", "''"),
        ("a/", "''"),
        ("a\x00b", "control"),
        ("a\nb", "control"),
        ("a\x7f", "control"),
        ("é" * 128, "256 bytes"),
        ("a/" * 512 + "b", "1025 bytes"),
    ],
)
def test_a_path_that_cannot_be_is_refused_by_name(path: str, fault: str) -> None:
    error = refused([File(path="fine"), File(path="x/y"), File(path=path)])
    assert (error.reason, error.field) == ("FILES_INVALID", "files[2].path")
    assert fault in str(error)
    assert repr(path[:100])[1:-1] in str(error)


def test_paths_at_their_limits_are_taken() -> None:
    longest = "/".join(["é" * 127 + "x"] * 4)
    assert len(longest.encode()) == 1023
    assert [file.path for file in new([File(path=longest), File(path="x/é")]).files] == [longest, "x/é"]


def test_a_path_is_there_once() -> None:
    error = refused([File(path="a"), File(path="b"), File(path="a")])
    assert error.field == "files[2].path"
    assert "'a'" in str(error)
    assert "twice" in str(error)


@pytest.mark.parametrize("others", [[], ["a-b", "a.b/c"]])
def test_a_path_is_a_file_or_a_folder(others: list[str]) -> None:
    paths = ["x", "a/b/c", *others, "a"]
    error = refused([File(path=path) for path in paths])
    assert error.field == f"files[{len(paths) - 1}].path"
    assert "'a'" in str(error)
    assert "'a/b/c'" in str(error)
    assert new([File(path=path) for path in ("a-b", "a.b/c", "ab", "a/b")]).files


@given(st.lists(st.lists(st.sampled_from("ab-."), min_size=1, max_size=4).map("/".join), unique=True))
def test_files_are_taken_exactly_where_none_is_the_folder_of_another(paths: list[str]) -> None:
    paths = [path for path in paths if "." not in path.split("/")]
    clash = any(other.startswith(f"{path}/") for path in paths for other in paths)
    files = [File(path=path) for path in paths]
    assert (refused(files).reason == "FILES_INVALID") if clash else (len(new(files).files) == len(paths))


def test_a_thousand_files_are_taken_and_no_more() -> None:
    files = [File(path=f"f{number}") for number in range(1001)]
    assert len(new(files[:1000]).files) == 1000
    error = refused(files)
    assert (error.reason, error.field) == ("FILES_INVALID", "files")
    assert "1,001" in str(error)
    assert "1,000" in str(error)


def test_a_file_has_at_most_1_mib_and_is_named_where_it_has_more() -> None:
    assert new([File(path="full.txt", content="é" * (MIB // 2))]).files
    error = refused([File(path="small"), File(path="big.txt", content="é" * (MIB // 2) + "x")])
    assert (error.reason, error.field) == ("FILES_INVALID", "files[1].content")
    for part in ("big.txt", "1,048,577", "1,048,576"):
        assert part in str(error)


def test_files_have_at_most_8_mib_together_and_the_largest_are_named_where_they_have_more() -> None:
    files = [File(path=f"f{number}", content="x" * MIB) for number in range(8)]
    assert len(new(files).files) == 8
    files[7].content = "x" * 1000
    error = refused([*files, *(File(path=f"g{number}", content="x" * MIB) for number in range(1))])
    assert (error.reason, error.field) == ("FILES_INVALID", "files")
    for part in ("8,389,608", "8,388,608", "f0 (1,048,576 bytes)"):
        assert part in str(error)
    assert "f7" not in str(error)


def test_what_is_no_text_is_refused() -> None:
    error = refused([File(path="a.bin", content="x\0y")])
    assert (error.reason, error.field) == ("FILES_INVALID", "files[0].content")
    assert "'a.bin'" in str(error)


def digest(files: Iterable[File], **request: Any) -> bytes:
    return new(files, request_id="once", **request).request_digest


def test_the_same_files_are_the_same_request_and_others_are_another() -> None:
    one, two = File(path="a", content="1"), File(path="b", content="2")
    said = File(path="a", content="1", sha256="?", size_bytes=9, language="c", source="t1")
    assert digest([one, two]) == digest([two, one]) == digest([said, two])
    others = [
        digest([]),
        digest([one]),
        digest([one, two], continues="before"),
        digest([File(path="a", content="2"), File(path="b", content="1")]),
        digest([File(path="a"), File(path="b", content="12")]),
        digest([File(path="ab", content="1"), two]),
    ]
    assert len({digest([one, two]), *others}) == len(others) + 1


def own_plan(*paths: str) -> InstanceConfig:
    return InstanceConfig(subtasks=[Subtask(id="t1", instructions="do", files=paths)])


def test_a_plan_that_the_client_brings_names_files_that_it_brings() -> None:
    files = [File(path="src/app.py"), File(path="src/db.py")]
    assert list(new(files, config=own_plan("src/app.py")).config.subtasks[0].files) == ["src/app.py"]
    error = refused(files, config=own_plan("src/app.py", "src/ap.py"))
    assert (error.reason, error.field) == ("PLAN_INVALID", "config.subtasks")
    assert "'src/ap.py'" in str(error)
    assert "'src/app.py'" in str(error)
    assert refused([], config=own_plan("src/app.py")).reason == "PLAN_INVALID"
    assert refused(files, config=own_plan("src/app.py", "src/app.py")).reason == "PLAN_INVALID"


def test_the_id_of_what_a_request_continues_is_checked() -> None:
    error = refused([], continues="not an id")
    assert (error.reason, error.field) == ("ID_INVALID", "continues")


def test_the_largest_files_that_a_message_names_are_few() -> None:
    files = [File(path=f"f{number}", content="x" * MIB) for number in range(9)]
    assert str(refused(files)).count("bytes)") == 5
