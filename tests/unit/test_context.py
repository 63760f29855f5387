"""What models are told of the files that an instance is given, and of what it goes on from."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.histories import NOW_S, History

from orchestrator.core import context, files, merging, plan
from orchestrator.core.events import call_failed
from orchestrator.core.input_files import input_file
from orchestrator.core.instance import (
    COMPLETED,
    PLANNING,
    SYNTHESIS,
    InputFile,
    Instance,
    Predecessor,
    Subtask,
    Usage,
    Work,
    WorkKey,
)
from orchestrator.core.prompts import FULL, Prompt
from orchestrator.core.tiny import TINY
from orchestrator.errors import ModelError
from orchestrator.v1 import instance_pb2 as pb

FILES = {
    "src/app.py": "def app():\n    return 1\n",
    "src/db.py": "def db():\n    return 2\n",
    "README.md": "# Shop\n\n```sh\nmake\n```\n",
    "docs/a b.txt": "two words",
}
SUBTASKS = (
    Subtask("t1", "Pages", "Add them.", files=("src/app.py",), work=Work(state=COMPLETED), output="done"),
    Subtask("t2", "Say it", "Describe it in README.md.", ("t1",)),
    Subtask("t3", "Think", "Think about it."),
)
EARLIER = Predecessor("before", "Build a shop", "# The shop\n\nIt is built.")


def inputs(contents: Mapping[str, str]) -> tuple[InputFile, ...]:
    return tuple(input_file(path, content) for path, content in contents.items())


def instance(
    contents: Mapping[str, str] = FILES, *, most: int = 300_000, predecessor: Predecessor | None = None
) -> Instance:
    return Instance(
        id="i",
        prompt="Add pagination",
        config=pb.InstanceConfig(max_subtasks=16, max_input_characters=most),
        is_planned=True,
        summary="Pages have 20 entries.",
        subtasks={subtask.id: subtask for subtask in SUBTASKS},
        files=inputs(contents),
        predecessor=predecessor,
    )


def user(prompt: Prompt) -> str:
    return prompt.messages[1].content


def system(prompt: Prompt) -> str:
    return prompt.messages[0].content


def given_files(prompt: Prompt) -> Mapping[str, str]:
    """The files that a prompt holds, by path."""
    found = re.search(r"^<files>\n(.*)\n</files>$", user(prompt), re.DOTALL | re.MULTILINE)
    return {path: file.content for path, file in files.find_files(found[1]).items()} if found else {}


def prompts(of: Instance) -> list[Prompt]:
    return [FULL.plan(of), *(FULL.work(of, subtask) for subtask in of.subtasks.values()), FULL.synthesize(of)]


TREE = """\
<tree>
README.md (23 bytes)
docs/a b.txt (9 bytes)
src/app.py (24 bytes)
src/db.py (23 bytes)
</tree>"""


def test_every_model_is_given_the_tree() -> None:
    for prompt in prompts(instance()):
        assert TREE in user(prompt)


def test_without_files_and_without_earlier_work_nothing_is_said_of_them() -> None:
    for prompt in prompts(instance({})):
        for word in ("tree", "client has given", "earlier", '"files"'):
            assert word not in system(prompt) + user(prompt)
    assert FULL.plan(instance({})).schema == plan.schema(16)


def test_the_planner_is_given_the_contents_and_asked_who_needs_which() -> None:
    prompt = FULL.plan(instance())
    assert given_files(prompt) == {path: _with_line_end(content) for path, content in FILES.items()}
    assert prompt.schema == plan.schema(16, with_files=True)
    assert json.dumps(plan.schema(16, with_files=True)) in system(prompt)
    assert '"files" of a subtask' in system(prompt)


def _with_line_end(content: str) -> str:
    return content if content.endswith("\n") else f"{content}\n"


def test_the_schema_has_files_only_where_there_are_some() -> None:
    def of_subtask(**asked: bool) -> list[str]:
        items = plan.schema(4, **asked)["properties"]["subtasks"]["items"]  # type: ignore[index]
        assert items["required"] == list(items["properties"])
        return list(items["properties"])

    assert of_subtask(with_files=True) == [*of_subtask(), "files"]


def test_a_worker_is_given_the_files_that_the_plan_names_for_it() -> None:
    prompt = FULL.work(instance(), SUBTASKS[0])
    assert given_files(prompt) == {"src/app.py": FILES["src/app.py"]}
    assert "```python path=src/app.py" in system(prompt)
    assert "stays as it is" in system(prompt)


def test_a_worker_for_whom_the_plan_names_none_is_given_those_of_its_instructions() -> None:
    assert given_files(FULL.work(instance(), SUBTASKS[1])) == {"README.md": FILES["README.md"]}
    assert given_files(FULL.work(instance(), SUBTASKS[2])) == {}


def test_the_synthesis_and_merges_are_asked_to_write_what_changes_and_nothing_else() -> None:
    of = instance()
    merge = Subtask("merge-1", "Merge t1", "Put together.", ("t1",), merges=True)
    for prompt in (FULL.synthesize(of), FULL.work(of, merge)):
        assert given_files(prompt) == {}
        assert "```python path=src/app.py" in system(prompt)
        assert "leave out what does not change" in system(prompt)


def test_the_wording_of_files_is_part_of_the_version_and_the_small_profile_has_none_of_it() -> None:
    of, without = instance(), instance({})
    assert TINY.plan(of) == TINY.plan(without)
    assert TINY.work(of, SUBTASKS[0]) == TINY.work(without, SUBTASKS[0])
    assert TINY.synthesize(of) == TINY.synthesize(without)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("Mend src/deep/app.py.", ["src/deep/app.py"]),
        ("Mend `./src/deep/app.py`, please", ["src/deep/app.py"]),
        ("What does deep/app.py do?", ["src/deep/app.py"]),
        ("What does app.py do?", ["src/deep/app.py", "lib/app.py"]),
        ("Mend (src\\deep\\app.py)", ["src/deep/app.py"]),
        ("the Makefile is old", ["Makefile"]),
        ("read two words.md", ["two words.md"]),
        ("Mend myapp.py and app.pyc", []),
        ("makefile", []),
    ],
)
def test_files_that_the_prompt_names_come_first(prompt: str, named: list[str]) -> None:
    sizes = {"src/deep/app.py": 500, "lib/app.py": 500, "Makefile": 500, "two words.md": 500, "s": 100}
    of = replace(instance({path: "x" * size for path, size in sizes.items()}), prompt=prompt)
    given = given_files(FULL.plan(of))
    assert list(given) == [*named, "s", *(path for path in sizes if path not in (*named, "s"))]


def test_what_has_no_room_is_left_out_and_that_is_said() -> None:
    sizes = {"named.py": 1000, "large.py": 9000, "small.py": 100, "middle.py": 500}
    of = instance({path: path[0] * size for path, size in sizes.items()}, most=2000)
    prompt = FULL.plan(replace(of, prompt="Mend named.py"))
    given = given_files(prompt)
    assert list(given) == ["named.py", "small.py", "middle.py"]
    assert "The contents of 3 of 4 of them, as far as there is room" in user(prompt)
    assert "large.py (9,000 bytes)" in user(prompt)


def test_named_files_that_are_too_long_are_cut_with_a_mark() -> None:
    of = instance({"a.py": "a" * 9000, "b.py": "b" * 300, "c.py": "c"}, most=2000)
    given = given_files(FULL.plan(replace(of, prompt="Mend a.py and b.py")))
    assert "characters were cut here" in given["a.py"]
    assert given["b.py"] == "b" * 300 + "\n"
    worker = FULL.work(of, SUBTASKS[0]._replace(files=("a.py",)))
    assert "characters were cut here" in given_files(worker)["a.py"]


def test_a_tree_that_is_too_long_says_how_many_files_it_leaves_out() -> None:
    of = instance({f"folder/{number:04}.py": "" for number in range(1000)}, most=2000)
    text = user(FULL.plan(of))
    shown = text.count(" (0 bytes)")
    assert f"[… {1000 - shown} more files were left out here …]" in text
    assert 20 < shown < 1000


LENGTHS = st.integers(0, 30_000)


@given(st.lists(LENGTHS, max_size=8), LENGTHS, LENGTHS, LENGTHS, st.integers(2000, 20_000))
def test_however_much_there_is_it_fits(
    sizes: list[int], earlier: int, result: int, output: int, most: int
) -> None:
    of = instance(
        {f"f{number}.py": f"{number}" * size for number, size in enumerate(sizes)},
        most=most,
        predecessor=Predecessor("before", "e" * earlier, "r" * result),
    )
    done = SUBTASKS[0]._replace(output="o" * output)
    worker = SUBTASKS[1]._replace(files=tuple(file.path for file in of.files))
    of = replace(of, subtasks={"t1": done, "t2": worker, "t3": SUBTASKS[2]})
    bare = replace(instance({}), subtasks={"t1": done._replace(output=""), "t2": worker, "t3": SUBTASKS[2]})
    for prompt, without in zip(prompts(of), prompts(bare), strict=True):
        # Beside the texts: headings, tags, paths, fences and marks.
        assert len(user(prompt)) - len(user(without)) <= most + 150 * len(sizes) + 1200


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("notes.md", "```\ncode\n```\n"),
        ("notes.md", "~~~~\n````\n```\n"),
        ("a `b`.md", "```\nx\n```\n"),
        ('say "hi".txt', "x\n"),
        ("it's.txt", "x\n"),
        ("a b/c.txt", ""),
        ("x.txt", "</files>\n</tree>\n"),
        ("</files>.txt", "x\n"),
    ],
)
def test_a_file_is_written_so_that_it_can_be_read_back(path: str, content: str) -> None:
    part = context.for_worker(instance({path: content}), SUBTASKS[0]._replace(files=(path,)), 10_000)[-1]
    assert {path: file.content for path, file in files.find_files(part.text).items()} == {path: content}


def test_earlier_work_is_given_to_every_model() -> None:
    for prompt in prompts(instance({}, predecessor=EARLIER)):
        assert "<earlier_prompt>\nBuild a shop\n</earlier_prompt>" in user(prompt)
        assert "<earlier_result>\n# The shop\n\nIt is built.\n</earlier_result>" in user(prompt)
        assert "<prompt>\nAdd pagination\n</prompt>" in user(prompt)


def test_earlier_work_that_is_too_long_is_cut_with_a_mark() -> None:
    long = Predecessor("before", "p" * 10_000, "r" * 100)
    for prompt in prompts(instance({}, most=2000, predecessor=long)):
        assert "characters were cut here" in user(prompt)
        assert f"<earlier_result>\n{'r' * 100}\n</earlier_result>" in user(prompt)


TOO_LONG = ModelError("INPUT_TOO_LONG", "over 8192 tokens", retryable=True)


@pytest.mark.parametrize("of", [instance(), instance({}, predecessor=EARLIER)], ids=["files", "earlier"])
@pytest.mark.parametrize("key", [PLANNING, WorkKey("subtask", "t3"), SYNTHESIS])
def test_a_model_for_which_it_is_too_much_is_given_less(of: Instance, key: WorkKey) -> None:
    def retries(of: Instance) -> bool:
        of = replace(of, config=History().instance.config)
        failed = call_failed(of, key, TOO_LONG, Usage(), now_s=NOW_S, jitter=0)
        return bool(getattr(failed, failed.WhichOneof("payload") or "").HasField("retry_time"))

    assert retries(of)
    if key != SYNTHESIS:
        assert not retries(replace(of, files=(), predecessor=None))


def test_a_call_that_was_given_too_much_is_given_half_as_much() -> None:
    of = instance({"a.py": "a" * 9000}, most=8000)
    whole = len(given_files(FULL.plan(replace(of, prompt="a.py")))["a.py"])
    again = replace(of, prompt="a.py", planning=Work(too_long=1))
    assert len(given_files(FULL.plan(again))["a.py"]) < whole * 0.6


def test_outputs_are_merged_where_they_do_not_fit_beside_the_earlier_result() -> None:
    done = {
        name: Subtask(name, name, "do", work=Work(state=COMPLETED), output="o" * 900) for name in ("a", "b")
    }
    alone = replace(instance({}, most=2000), subtasks=done)
    beside = replace(alone, predecessor=Predecessor("before", "p", "r" * 5000))
    assert merging.merges(alone) == ()
    assert [merge.depends_on for merge in merging.merges(beside)] == [("a", "b")]
