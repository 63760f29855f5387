"""Files that a synthesis names instead of writing them again: expanded, and none of them lost."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.core import files, references
from orchestrator.core.continuation import Part
from orchestrator.core.files import File, find_files, write_block
from orchestrator.core.instance import COMPLETED, InputFile, Instance, Subtask, Work
from orchestrator.core.references import Expander, References, SynthesisError

A = File("src/a.py", "print('a')\n", "python")
B = File("b.md", "# B\n\n```sh\nls\n```\n", "markdown")
C = File("two words.txt", "", "text")
OFFERED = {"t1:src/a.py": A, "t1:b.md": B, "t2:two words.txt": C}
FOUND = References(OFFERED, OFFERED)
BLOCK_A = "```python path=src/a.py\nprint('a')\n```"
KEEP_A, KEEP_B = "<keep-file>t1:src/a.py</keep-file>", "<keep-file>t1:b.md</keep-file>"
DROP_B, DROP_C = "<drop-file>t1:b.md</drop-file>", "<drop-file>t2:two words.txt</drop-file>"


def expanded(text: str) -> str:
    expander = Expander(FOUND)
    return expander.feed(text) + expander.finish()


_paths = st.text(st.sampled_from("ab/ _.-'\"`#&ä,{};="), min_size=1, max_size=12).map(
    lambda name: f"{name}.py"
)
_contents = st.lists(st.sampled_from(["", "x", "```", "~~~~", "````py", "\ty", "a.py", "> q"])).map(
    lambda lines: "".join(f"{line}\n" for line in lines)
)


@given(_paths, _contents, st.sampled_from(["python", "", "c++"]))
def test_a_file_is_found_in_the_block_that_it_is_written_as(path: str, content: str, language: str) -> None:
    file = File(path, content, language or "python")
    if files.path_fault(path) is None and not path.startswith("./") and files.can_be_written(file):
        assert find_files(write_block(file)) == {path: file}


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        (KEEP_A, BLOCK_A),
        (f"# Done\n\n{KEEP_A}\n\nThat is all.\n", f"# Done\n\n{BLOCK_A}\n\nThat is all.\n"),
        (f"- {KEEP_A}\n", f"{BLOCK_A}\n"),
        (f"1. **{KEEP_A}**\r\n", f"{BLOCK_A}\n"),
        (f"`{KEEP_A}`\n", f"{BLOCK_A}\n"),
        (f"> {KEEP_A}\n", f"{BLOCK_A}\n"),
        ("<keep-file>t1:src/a.py\n", f"{BLOCK_A}\n"),
        ("<keep-file> src/a.py </keep-file>\n", f"{BLOCK_A}\n"),
        ("<keep-file>./src/a.py</drop-file>\n", f"{BLOCK_A}\n"),
        (f"```python path=src/a.py\n{KEEP_A}\n```\nx", f"{BLOCK_A}\nx"),
        (f"```\n{KEEP_A}\n```", BLOCK_A),
        (f"```\n{KEEP_A}\nmore\n```\n", "```\nprint('a')\nmore\n```\n"),
        (f"```\nx\n```\n{KEEP_A}\n```\ny\n```\n", f"```\nx\n```\n{BLOCK_A}\n```\ny\n```\n"),
        ("<keep-file>\nt1:src/a.py\n</keep-file>\nx", f"{BLOCK_A}\nx"),
        ("<keep-file>\n- `t1:src/a.py`\n\n  b.md</keep-file>\nx", f"{BLOCK_A}\n{write_block(B)}\nx"),
        ("<keep-file>t1:src/a.py\n</keep-file>\nx", f"{BLOCK_A}\nx"),
        ("<drop-file>\nb.md\n</drop-file>\nx", "x"),
        (f"{DROP_B}\n\nx", "\nx"),
        (f"See {KEEP_A} for more.\n", "See `src/a.py` for more.\n"),
        (f"See `{KEEP_A}` for more.\n", "See `src/a.py` for more.\n"),
        (f"The module: {KEEP_A}.\n", f"The module: `src/a.py`.\n{BLOCK_A}\n"),
        (f"I left out {DROP_B} because.\n", "I left out `b.md` because.\n"),
        (f"{KEEP_A} {DROP_B}\n", f"{BLOCK_A}\n"),
        ("a < b, <keep, </keep and <keeper>", "a < b, <keep, </keep and <keeper>"),
        ("```\nnothing but an open block", "```\nnothing but an open block"),
        ("```", "```"),
        ("- \n1. \n`` ` ``\n", "- \n1. \n`` ` ``\n"),
    ],
)
def test_references_are_expanded(written: str, seen: str) -> None:
    assert expanded(written) == seen


def test_a_file_is_placed_once() -> None:
    assert expanded(f"{KEEP_A}\n{KEEP_A}\n").count(BLOCK_A) == 1


_PIECES = (
    KEEP_A, KEEP_B, DROP_B, DROP_C, "<keep-file>none</keep-file>",
    "<keep-file>", "</keep-file>", "<keep-", "-file>", "<", "t1:src/a.py",
    "```", "```py\n", "````", "~~~\n", "\n", "\n\n", " ", "- ", "**", "`", "x", "text ", "1. ", "\r\n", "> ",
)  # fmt: skip
_texts = st.lists(st.sampled_from(_PIECES), max_size=14).map("".join)


@example(f"x {KEEP_A}{KEEP_B}", [1])
@given(_texts, st.lists(st.integers(1, 9)))
def test_what_is_seen_does_not_depend_on_the_pieces_that_come(text: str, sizes: list[int]) -> None:
    expander, seen, at = Expander(FOUND), "", 0
    for size in [*sizes, len(text)]:
        before = seen
        seen += expander.feed(text[at : at + size])
        at += size
        assert seen == references.shown(FOUND, text[:at]), "as if all had come at once"
        assert seen.startswith(before)
    assert seen + expander.finish() == expanded(text)


@given(_texts)
def test_no_reference_is_ever_seen(text: str) -> None:
    for end in range(len(text) + 1):
        assert not re.search(r"</?(keep|drop)-file", references.shown(FOUND, text[:end]))
    assert not re.search(r"</?(keep|drop)-file", expanded(text))


@given(st.text(st.characters(exclude_characters="<")) | st.text(st.sampled_from("`~ \n>-*#1.x")))
def test_a_text_without_references_stays_as_it_is(text: str) -> None:
    assert expanded(text) == text


ALL = f"{KEEP_A}\n{KEEP_B}\n{DROP_C}\n"


def test_a_synthesis_is_recorded_as_it_is_seen_and_as_it_was_written() -> None:
    found = references.read(FOUND, f"\n# Done\n\n{ALL}", may_add=False)
    assert (found.written, found.added) == (f"# Done\n\n{ALL}".strip(), "")
    assert find_files(found.text) == {"src/a.py": A, "b.md": B}


def test_a_synthesis_in_full_is_recorded_once() -> None:
    text = "".join(f"{write_block(file)}\n\n" for file in (A._replace(content="changed\n"), B, C)).strip()
    assert references.read(FOUND, text, may_add=False) == (text, "", "")


def test_an_unknown_reference_is_told_with_those_that_there_are() -> None:
    with pytest.raises(
        SynthesisError, match=r"t9:x\.py; there are: t1:src/a\.py, t1:b\.md, t2:two words\.txt"
    ):
        references.read(FOUND, f"{ALL}<keep-file>t9:x.py</keep-file>", may_add=True)
    with pytest.raises(SynthesisError, match="no file"):
        references.read(FOUND, f"{ALL}<keep-file or so", may_add=True)


def test_a_file_that_is_neither_kept_nor_written_nor_dropped_is_told() -> None:
    with pytest.raises(SynthesisError, match=r"neither holds nor drops t1:b\.md, t2:two words\.txt"):
        references.read(FOUND, KEEP_A, may_add=False)


def test_a_file_that_is_passed_over_again_is_added() -> None:
    found = references.read(FOUND, f"# Done\n\n{KEEP_A}\n{DROP_C}\n", may_add=True)
    assert find_files(found.text) == {"src/a.py": A, "b.md": B}
    assert found.text.endswith(found.added)
    assert write_block(B) in found.added


def test_a_model_that_refers_to_nothing_is_not_asked_again() -> None:
    found = references.read(FOUND, f"# Done\n\n{write_block(A)}", may_add=False)
    assert {"src/a.py", "b.md", "two words.txt"} == set(find_files(found.text))


def test_files_are_added_behind_a_block_that_is_open() -> None:
    found = references.read(FOUND, f"{KEEP_A}\n{DROP_C}\n\n~~~text\nopen", may_add=True)
    assert find_files(found.text) == {"src/a.py": A, "b.md": B}
    assert "open\n~~~\n\n### `b.md`\n\n" in found.text


def test_a_file_under_another_name_is_not_missing() -> None:
    moved = write_block(A._replace(path="lib/a.py"))
    assert references.read(FOUND, f"{moved}\n{KEEP_B}\n{DROP_C}\n", may_add=False).added == ""


def _instance(**outputs: str) -> Instance:
    work = Work(state=COMPLETED)
    subtasks = {name: Subtask(name, name, "", output=output, work=work) for name, output in outputs.items()}
    return Instance(subtasks=subtasks)


def test_each_file_of_the_outputs_is_offered_with_its_subtask() -> None:
    instance = _instance(t1=write_block(A), t2=f"{write_block(B)}\n\n{write_block(A)}", t3="None.")
    found = references.references(instance)
    assert found
    assert found.offered == {"t1:src/a.py": A, "t2:b.md": B, "t2:src/a.py": A}
    assert references.references(_instance(t1="None.")) is None


def test_files_that_a_merge_lost_are_offered_too() -> None:
    instance = _instance(t1=write_block(A), t2=write_block(B), merge=write_block(A._replace(content="x\n")))
    merge = instance.subtasks["merge"]._replace(merges=True, depends_on=("t1", "t2"))
    instance.subtasks = {**instance.subtasks, "merge": merge}
    found = references.references(instance)
    assert found
    assert list(found.offered) == ["merge:src/a.py", "t2:b.md"]
    assert set(found.known) == {"merge:src/a.py", "t1:src/a.py", "t2:b.md"}


def test_an_input_file_that_a_worker_repeats_is_not_offered() -> None:
    instance = _instance(t1=f"{write_block(A)}\n\n{write_block(B)}")
    instance.files = (InputFile(A.path, A.content, "", 0, ""), InputFile(B.path, "old\n", "", 0, ""))
    found = references.references(instance)
    assert found
    assert (list(found.offered), list(found.known)) == (["t1:b.md"], ["t1:src/a.py", "t1:b.md"])


def test_after_two_unusable_answers_nothing_is_offered() -> None:
    instance = _instance(t1=write_block(A))
    instance.synthesis = Work(invalid=2)
    assert references.references(instance) is None


@given(_texts, st.integers(0, 200), st.integers(0, 200))
def test_the_parts_of_a_synthesis_are_seen_as_one_text(text: str, first: int, second: int) -> None:
    instance = _instance(t1=f"{write_block(A)}\n\n{write_block(B)}", t2=write_block(C))
    parts = text[: min(first, second)], text[min(first, second) : max(first, second)]
    seen = ""
    for part in parts:
        seen += references.with_shown(instance, Part(part)).shown or ""
        instance.synthesis = instance.synthesis._replace(text=instance.synthesis.text + part)
    assert seen == references.shown(references.references(instance), "".join(parts))
    anew = references.with_shown(instance, Part(KEEP_A + "\n", replaces=True))
    assert anew.shown == BLOCK_A + "\n"


def test_a_part_of_a_synthesis_without_references_is_seen_as_it_is() -> None:
    part = Part(KEEP_A)
    assert references.with_shown(_instance(t1="None."), part) is part
