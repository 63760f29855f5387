"""Which input files a plan gives to whom."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.histories import History, changes

from orchestrator.core import lifecycle, plan
from orchestrator.core.fork import fork
from orchestrator.core.input_files import input_file
from orchestrator.core.instance import Instance, Predecessor, Subtask
from orchestrator.core.plan import PlanError
from orchestrator.core.plan_text import PlanReader, parse
from orchestrator.core.state import fold
from orchestrator.errors import InvalidArgumentError
from orchestrator.v1 import instance_pb2 as pb
from orchestrator.v1 import orchestrator_pb2 as api
from orchestrator.v1.event_pb2 import DECISION_APPROVE, Event

PATHS = ("src/app.py", "src/db.py", "lib/app.py", "README.md", "a b.txt")


def entry(files: Any, **more: Any) -> dict[str, Any]:
    whole = {"id": "t1", "title": "One", "instructions": "do", "depends_on": [], "worker": "", "files": files}
    return {**whole, **more}


def text(*entries: dict[str, Any]) -> str:
    return json.dumps({"summary": "how", "subtasks": entries})


def files_of(files: Any, **more: Any) -> tuple[str, ...]:
    return parse(text(entry(files, **more)), 4, PATHS).subtasks[0].files


@pytest.mark.parametrize(
    "files",
    [
        ["src/app.py", "a b.txt"],
        ["./src/app.py", "/a b.txt"],
        ["`src/app.py`", " a b.txt "],
        ["src\\app.py", "a b.txt"],
        ["src/app.py", "a b.txt", "src/app.py"],
        [{"path": "src/app.py"}, {"file": "a b.txt", "why": "it says so"}],
    ],
)
def test_a_path_may_be_written_in_any_way_that_means_one_file(files: Any) -> None:
    assert files_of(files) == ("src/app.py", "a b.txt")
    assert files_of(files, unknown=1) == ("src/app.py", "a b.txt")


@pytest.mark.parametrize("files", [[], None, "", "none", False])
def test_a_subtask_may_need_no_files(files: Any) -> None:
    assert files_of(files) == ()


def test_a_single_path_needs_no_list_and_the_key_may_be_left_out() -> None:
    assert files_of("README.md") == ("README.md",)
    bare = {key: value for key, value in entry([]).items() if key != "files"}
    assert parse(text(bare), 4, PATHS).subtasks[0].files == ()


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("src/ap.py", ["'lib/app.py'", "'src/app.py'"]),
        ("app.py", ["'lib/app.py'", "'src/app.py'"]),
        ("SRC/DB.PY", ["'src/db.py'"]),
        ("readme.md", ["'README.md'"]),
        ("docs/README.md", ["'README.md'"]),
        ("src/", []),
        ("new.rs", []),
    ],
)
def test_an_unknown_path_is_named_with_those_that_may_be_meant(path: str, meant: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        files_of(["README.md", path])
    assert f"subtask 't1' names the file {path!r}" in str(caught.value)
    for each in meant:
        assert each in str(caught.value)
    assert ("you may mean" in str(caught.value)) == bool(meant)


@pytest.mark.parametrize("files", [[1], [["src/app.py"]], [{"lines": 3}], {"a": 1}])
def test_files_that_are_no_paths_are_refused(files: Any) -> None:
    with pytest.raises(PlanError, match="'t1' has \"files\" that are not a list of paths"):
        files_of(files)


@pytest.mark.parametrize("files", [["new.go"], "new.go", [1], {"a": 1}, ["src/app.py"]])
def test_what_a_planner_says_of_files_means_nothing_where_there_are_none(files: Any) -> None:
    [subtask] = parse(text(entry(files)), 4).subtasks
    assert subtask == Subtask("t1", "One", "do")


FILES = st.lists(st.sampled_from([*PATHS, "./src/app.py", "missing.py", 1, None]), max_size=3) | st.none()


@given(st.lists(FILES, min_size=1, max_size=4), st.integers(1, 40))
def test_a_plan_that_is_streamed_names_the_same_files_as_the_whole(lists: list[Any], size: int) -> None:
    written = text(*(entry(files, id=f"t{number}") for number, files in enumerate(lists)))
    reader = PlanReader(16, PATHS)
    told: list[Subtask] = []
    for start in range(0, len(written), size):
        reader.add(written[start : start + size])
        told += reader.read()
    try:
        whole = parse(written, 16, PATHS).subtasks
    except PlanError:
        assert len(told) < len(lists)
    else:
        assert tuple(told) == whole


def test_a_subtask_names_at_most_a_thousand_files() -> None:
    paths = frozenset(f"f{number}" for number in range(1001))
    subtask = Subtask("t1", "One", "do", files=tuple(sorted(paths)))
    plan.validate([subtask._replace(files=subtask.files[:1000])], 1, paths)
    with pytest.raises(PlanError, match="over 1000 files"):
        plan.validate([subtask], 1, paths)


def with_files(**config: object) -> History:
    history = History(**config)
    created = history.events[0]
    for path in PATHS:
        created.instance_created.files.add(path=path, content=f"of {path}", size_bytes=3, sha256="s")
    created.instance_created.predecessor.id = "before"
    created.instance_created.predecessor.final_result = "built"
    history.instance = fold([created])
    return history


def test_all_subtasks_together_name_at_most_2_mib_of_paths() -> None:
    paths = frozenset(f"{number}/".ljust(1024, "p") for number in range(64))
    subtasks = [Subtask(f"t{number}", "One", "do", files=tuple(paths)) for number in range(32)]
    plan.validate(subtasks, 64, paths)
    with pytest.raises(PlanError, match="2,162,688 bytes and may have 2,097,152: name fewer files"):
        plan.validate([*subtasks, Subtask("last", "One", "do", files=tuple(paths))], 64, paths)


SUBTASK = Subtask("t1", "One", "do", files=("src/app.py", "a b.txt"))


def test_what_is_recorded_of_a_plan_holds_its_files() -> None:
    history = with_files().planned(SUBTASK)
    assert history.instance.subtasks["t1"].files == SUBTASK.files
    assert history.refolded() == history.instance


def test_a_result_is_used_again_only_where_its_files_are_the_same() -> None:
    assert SUBTASK.definition != SUBTASK._replace(files=()).definition


def reviewed(history: History, *paths: str) -> Instance:
    edited = pb.Subtask(id="t1", instructions="do", files=paths)
    return history.then(*lifecycle.review(history.instance, DECISION_APPROVE, [edited], "")).instance


def test_an_edited_plan_names_files_that_are_there() -> None:
    history = with_files(review_plan=True).planned(SUBTASK)
    with pytest.raises(InvalidArgumentError, match=r"'src/ap\.py'.*'src/app\.py'") as caught:
        reviewed(history, "src/ap.py")
    assert (caught.value.reason, caught.value.field) == ("PLAN_INVALID", "subtasks")
    assert reviewed(history, "README.md").subtasks["t1"].files == ("README.md",)


def test_a_restart_may_bring_a_plan_that_names_files_that_are_there() -> None:
    history = with_files().terminated()
    own = pb.Subtask(id="t1", instructions="do", files=["README.md"])
    restarted = history.then(*lifecycle.restart(history.instance, changes(subtasks=[own]))).instance
    assert list(restarted.config.subtasks[0].files) == ["README.md"]
    other = pb.Subtask(id="t1", instructions="do", files=["none.md"])
    again = history.terminated().instance
    with pytest.raises(InvalidArgumentError, match=r"'none\.md'"):
        lifecycle.restart(again, changes(subtasks=[other]))


def test_a_restart_keeps_the_files_and_what_it_goes_on_from() -> None:
    history = with_files().planned(SUBTASK).terminated()
    before = history.instance
    restarted = history.then(*lifecycle.restart(before, changes())).instance
    assert restarted.files is before.files
    assert restarted.predecessor == Predecessor("before", "", "built")
    assert history.refolded() == restarted


@pytest.mark.parametrize("stage", [api.STAGE_PLAN, api.STAGE_SUBTASKS, api.STAGE_SYNTHESIS])
def test_a_fork_has_the_files_of_its_source_and_what_that_goes_on_from(stage: api.Stage.ValueType) -> None:
    source = with_files().planned(SUBTASK).done("t1").completed().instance
    instance, events = fork(source, stage, changes(), new_id="fork").begin(1)
    assert instance.files == source.files
    assert instance.predecessor == source.predecessor
    assert stage == api.STAGE_PLAN or instance.subtasks["t1"].files == SUBTASK.files
    assert fold(Event.FromString(event.SerializeToString()) for event in events) == instance


def test_a_fork_may_bring_a_plan_that_names_files_that_are_there() -> None:
    source = with_files().terminated().instance

    def forked(path: str) -> Instance:
        own = pb.Subtask(id="t1", instructions="do", files=[path])
        return fork(source, api.STAGE_PLAN, changes(subtasks=[own]), new_id="b").begin(1)[0]

    assert list(forked("README.md").config.subtasks[0].files) == ["README.md"]
    with pytest.raises(InvalidArgumentError, match=r"'none\.md'"):
        forked("none.md")


def test_the_state_keeps_no_message_that_it_was_folded_from() -> None:
    instance = with_files().instance
    assert instance.files[0] == input_file("src/app.py", "of src/app.py")._replace(
        language="", size_bytes=3, sha256="s"
    )
    assert all(type(value) in (str, int) for file in instance.files for value in file)
