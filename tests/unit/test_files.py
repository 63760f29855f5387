"""The files in a result: what may be a path, which blocks are files, and where each comes from."""

import re
from collections.abc import Callable, Mapping
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.files import File, find_files, path_fault, result_files
from orchestrator.core.instance import InputFile, Instance, Subtask

PATHS = (
    "a.py",
    "src/a.py",
    "a b/c d.txt",
    "Makefile",
    ".gitignore",
    "ä/ö.md",
    "x" * 255,
    "a/" * 511 + "aa",
    "...",
    "ab:c",
)
NO_PATHS = {
    "": "empty",
    "/a": "absolute",
    "C:/a": "absolute",
    "c:a": "absolute",
    "a//b": "segment ''",
    "a/": "segment ''",
    "./a": "segment '.'",
    "a/./b": "segment '.'",
    "../a": "segment '..'",
    "a/../b": "segment '..'",
    "a/..": "segment '..'",
    "a\\b": "backslash",
    "a\x00b": "control character",
    "a\nb": "control character",
    "a\x7f": "control character",
    "a\x85": "control character",
    "\ud800": "Unicode",
    "x" * 256: "255",
    "ä" * 128: "256 bytes",
    "a/" * 512 + "a": "1024",
}


@pytest.mark.parametrize("path", PATHS)
def test_a_path_may_be(path: str) -> None:
    assert path_fault(path) is None


@pytest.mark.parametrize(("path", "fault"), NO_PATHS.items())
def test_a_path_may_not_be(path: str, fault: str) -> None:
    assert fault in (path_fault(path) or "")


def _found(text: str) -> Mapping[str, str]:
    return {path: file.content for path, file in find_files(text).items()}


@pytest.mark.parametrize(
    "info",
    [
        "python path=src/a.py",
        'python path="src/a.py"',
        "python path='src/a.py'",
        "python title=src/a.py",
        'python title="src/a.py" linenos',
        "python file=src/a.py",
        'python {1,3} filename="src/a.py"',
        "path=src/a.py",
        "python Path = src/a.py",
        "{.python path=src/a.py}",
        "python {path=src/a.py}",
        "python,file=src/a.py,ignore",
        "python title=Example path=src/a.py",
        "python path=./src/a.py",
        "python src/a.py",
        "python 'src/a.py'",
        "python:src/a.py",
        "src/a.py",
    ],
)
@pytest.mark.parametrize("fence", ["```", "~~~", "`````"])
def test_an_info_string_names_a_file(info: str, fence: str) -> None:
    assert _found(f"Text.\n{fence}{info}\nx\n{fence}\n") == {"src/a.py": "x\n"}


@pytest.mark.parametrize(
    "line",
    [
        "src/a.py",
        "src/a.py:",
        "**src/a.py**",
        "**src/a.py:**",
        "**src/a.py**:",
        "__src/a.py__",
        "*src/a.py*",
        "`src/a.py`",
        "`src/a.py`:",
        "**`src/a.py`**",
        "**`src/a.py`:**",
        "# src/a.py",
        "### src/a.py",
        "### `src/a.py`",
        "### **`src/a.py`**:",
        "## src/a.py ##",
        "src/a.py\n===",
        "src/a.py\n---",
        "### 1. `src/a.py`",
        "2) src/a.py",
        "1. **src/a.py**",
        "- `src/a.py`",
        "> src/a.py",
        "File: src/a.py",
        "File: `src/a.py`",
        "**File: src/a.py**",
        "**File:** `src/a.py`",
        "**File**: `src/a.py`",
        "### File 2: `src/a.py`",
        "New file: src/a.py",
        "Filename: src/a.py",
        "File path: `src/a.py`",
        "File `src/a.py`",
        "📄 `src/a.py`",
        "### 🗂️ src/a.py",
        "[src/a.py](src/a.py)",
        "src/a\\.py",
        "./src/a.py",
        '"src/a.py"',
    ],
)
@pytest.mark.parametrize("between", ["\n", "\n\n", "\n  \n\n"])
def test_the_line_above_names_a_file(line: str, between: str) -> None:
    assert _found(f"Text.\n\n{line}{between}```python\nx\n```\n") == {"src/a.py": "x\n"}


@pytest.mark.parametrize(
    "name",
    [
        "Makefile", "Dockerfile", "Dockerfile.dev", "LICENSE", "README", ".gitignore", ".env.local",
        "go.mod", "__init__.py", "package.json", "src/__main__.py", "a.b.c.ts", "app/[id]/page.tsx",
        "(group)/+page.svelte", "routes/$slug.tsx", "@types/x.d.ts", "deep/er/Makefile", "x/notes.abc",
        "CMakeLists.txt", "ä.py", "main.c++", "x-y_z.yaml",
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{}", "**{}**", "`{}`", "### `{}`", "## {}"])
def test_a_usual_name_alone_in_a_line_is_a_files(name: str, form: str) -> None:
    assert _found(f"{form.format(name)}\n\n```\nx\n```\n") == {name: "x\n"}


@pytest.mark.parametrize(
    "line",
    [
        "Text.", "See src/a.py", "Then run `python a.py`:", "`python a.py`", "`python src/a.py`",
        "### Running a.py", "Example:", "Node.js", "### Vue.js", "v1.2", "1.2.3", "example.com",
        "https://example.com/a.py", "`os.path`", "`console.log`", "e.g.", "**Output**", "### Input/Output",
        "and/or", "a.py and b.py", "`a.py`, `b.py`", "*.py", "`app.run()`", "../a.py", "/etc/a.conf",
        "src\\a.py", "| a.py |", "File: output", "## INSTALL", "x" * 3000 + ".py", "ASP.NET",
        "### File handling", "$ a.py --now", "``", "``` `a.py`", "<a.py>",
    ],
)  # fmt: skip
def test_a_line_that_holds_more_than_a_name_names_none(line: str) -> None:
    assert _found(f"{line}\n```python\nx\n```\n") == {}


@pytest.mark.parametrize(
    "info",
    [
        "python", "", "dockerfile", "Dockerfile", "makefile", "c++", "objective-c", "python 3.11",
        "js {1,3-5}", "asp.net", "Node.js", 'bash title="Terminal"', "12:20:src/a.py",
        "python path=../a.py", "python path=/a.py", "python path=a\\b.py", "python path=",
        "python title=''", "diff path=a.py", "patch a.py", "cpp std=c++20", "python id=a.py",
        "x" * 3000 + " a.py",
    ],
)  # fmt: skip
def test_an_info_string_without_a_path_names_none(info: str) -> None:
    assert _found(f"~~~{info}\nx\n~~~\n") == {}


def test_a_path_that_cannot_be_one_is_not_replaced_by_the_line_above() -> None:
    assert _found("`a.py`\n```python path=../a.py\nx\n```\n") == {}


def test_a_block_of_changes_is_a_file_only_where_it_is_named_as_one() -> None:
    assert _found("a.py\n```diff\n-x\n```\n\nfix.patch\n```diff\n-x\n```\n") == {"fix.patch": "-x\n"}


def test_the_line_above_may_say_in_which_folder_a_file_is() -> None:
    assert _found("### `backend/go.mod`\n```go.mod\nx\n```\n### `b.py`\n```python src/a.py\ny\n```\n") == {
        "backend/go.mod": "x\n",
        "src/a.py": "y\n",
    }


def test_the_later_of_two_files_with_one_path_counts() -> None:
    assert _found("```py a.py\n1\n```\n```py b.py\n2\n```\n\n./a.py\n```\n3\n```\n") == {
        "a.py": "3\n",
        "b.py": "2\n",
    }


def test_a_fence_within_a_longer_one_begins_no_file() -> None:
    assert _found("````markdown path=README.md\n```python a.py\nx\n```\n````\n") == {
        "README.md": "```python a.py\nx\n```\n"
    }


def test_a_markdown_file_may_hold_blocks_with_fences_as_long_as_its_own() -> None:
    text = "### README.md\n\n```markdown\n# A\n```sh\nls\n```\n```\n\n### a.py\n\n```python\nx\n```\n"
    assert _found(text) == {"README.md": "# A\n```sh\nls\n```\n", "a.py": "x\n"}


def test_neither_indented_code_nor_an_empty_text_holds_files() -> None:
    assert _found("a.py\n\n    ```python a.py\n    x\n    ```\n") == {}
    assert _found("") == {}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("```Python path=a.py", "python"),
        ("```ts:a.tsx", "ts"),
        ("```{.rust file=a.py}", "rust"),
        ("```c++ a.cc", "c++"),
        ("```rust,file=a.py", "rust"),
        ("```python{1,3} a.py", "python"),
        ("```path=a.py", "python"),
        ("```a.py", "python"),
        ("`a.py`\n```", "python"),
        ("Makefile\n```", "makefile"),
        ("x/a.unknown\n```", ""),
    ],
)
def test_a_files_language_is_the_blocks_or_what_its_name_says(text: str, language: str) -> None:
    assert [file.language for file in find_files(f"{text}\nx\n").values()] == [language]


def test_a_file_knows_its_size_and_its_checksum() -> None:
    file = File("a", "ä\n")
    assert (file.size_bytes, file.sha256) == (3, sha256("ä\n".encode()).hexdigest())


_segments = st.text(st.sampled_from("abcXYZ019_-äß日"), min_size=1, max_size=6)
_endings = st.sampled_from([".py", ".ts", ".json", ".md", ".yaml", ".html", ".d.ts", ".c"])
_plain_paths = st.builds(
    lambda folders, name, ending: "/".join((*folders, name + ending)),
    st.lists(_segments, max_size=3),
    _segments,
    _endings,
)
_spaced_paths = st.builds(lambda first, path: f"{first} {path}", _segments, _plain_paths)
_contents = st.lists(
    st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(
        ["```", "~~~", "````py", "    ~~~~", "\t```", "> ```", "- x", "", "a.py", "# h", "```md path=q.py"]
    )
).map(lambda lines: "".join(f"{line}\n" for line in lines))


def _fence(content: str, character: str = "`") -> str:
    return character * max(3, *(len(run) + 1 for run in re.findall(f"{re.escape(character)}+", content)), 0)


def _block(info: str, content: str, character: str = "`", above: str = "") -> str:
    fence = _fence(content, character)
    return f"{above}{fence}{info}\n{content}{fence}\n"


FORMS: Mapping[str, Callable[[str, str], str]] = {
    "path=": lambda path, content: _block(f"python path={path}", content),
    'title="…"': lambda path, content: _block(f'python title="{path}"', content, "~"),
    "file='…'": lambda path, content: _block(f"file='{path}'", content),
    "language and name": lambda path, content: _block(f"python {path}", content),
    "language:name": lambda path, content: _block(f"python:{path}", content),
    "plain": lambda path, content: _block("", content, above=f"{path}\n"),
    "bold": lambda path, content: _block("python", content, "~", above=f"**{path}**\n\n"),
    "code": lambda path, content: _block("", content, above=f"`{path}`:\n"),
    "heading": lambda path, content: _block("python", content, above=f"### `{path}`\n\n"),
    "item": lambda path, content: _item(_block("python", content, above=f"**{path}**\n\n"), "12. "),
    "quote": lambda path, content: _item(_block("python", content, above=f"{path}\n"), "> "),
}


def _item(text: str, marker: str) -> str:
    rest = marker if marker == "> " else " " * len(marker)
    lines = text.split("\n")[:-1]
    return "".join(f"{marker if number == 0 else rest}{line}\n" for number, line in enumerate(lines))


_files = st.tuples(st.sampled_from(sorted(FORMS)), _plain_paths, _contents) | st.tuples(
    st.sampled_from(['title="…"', "file='…'"]), _spaced_paths, _contents
)


@given(st.lists(_files, max_size=5), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_files_written_in_any_usual_form_are_found_as_they_are(
    files: list[tuple[str, str, str]], line_end: str, is_apart: bool
) -> None:
    parts = [FORMS[form](path, content) for form, path, content in files]
    text = "".join(f"Some text.\n\n{part}\n" if is_apart else f"\n{part}" for part in parts)
    assert _found(text.replace("\n", line_end)) == {path: content for _, path, content in files}


@given(st.text() | st.text(st.sampled_from("`~>-#*:1.) \t\r\na/.py={}\"'")))
def test_whatever_a_text_holds_its_files_have_valid_paths(text: str) -> None:
    for path, file in find_files(text).items():
        assert path_fault(path) is None
        assert file.path == path


def _instance(result: str, **outputs: str) -> Instance:
    subtasks = {name: Subtask(name, name, "", output=output) for name, output in outputs.items()}
    return Instance(final_result=result, subtasks=subtasks)


def test_a_results_file_comes_from_the_subtask_that_wrote_it_so() -> None:
    instance = _instance(
        "```py a.py\n1\n```\n```py b.py\n2\n```\n```py c.py\n3\n```\n",
        t1="```py a.py\n1\n```\n```py b.py\nother\n```\n",
        t2="`a.py`\n```\n1\n```\n",
    )
    found = [(file.path, file.source) for file in result_files(instance)]
    assert found == [("a.py", "t1"), ("b.py", "result"), ("c.py", "result")]


def test_a_merge_is_no_files_source() -> None:
    instance = _instance("```py a.py\n1\n```\n", **{"merge-1": "```py a.py\n1\n```\n"})
    merge = instance.subtasks["merge-1"]._replace(merges=True)
    instance.subtasks = {"merge-1": merge, "t1": merge._replace(id="t1", merges=False)}
    assert [file.source for file in result_files(instance)] == ["t1"]


def test_an_instance_without_files_has_none() -> None:
    assert result_files(_instance("Some text.")) == []


def _given(path: str, content: str) -> InputFile:
    return InputFile(path, content, "", len(content), "")


def test_a_results_files_take_the_places_of_those_it_was_given() -> None:
    result = "```py b.py\nnew\n```\n```py c.py\nsame\n```\n```py d.py\nadded\n```\n"
    instance = _instance(result, t1="b.py\n```\nnew\n```")
    instance.files = (_given("c.py", "same\n"), _given("b.py", "old\n"), _given("a.py", "untouched"))
    found = [(file.path, file.content, file.source) for file in result_files(instance)]
    assert found == [
        ("a.py", "untouched", "input"),
        ("b.py", "new\n", "t1"),
        ("c.py", "same\n", "input"),
        ("d.py", "added\n", "result"),
    ]


def test_a_file_that_is_the_folder_of_another_is_left_out() -> None:
    instance = _instance("```py a.py/x/b.py\n1\n```\n```py a.py\n2\n```\n```py a.pyx\n3\n```\n")
    assert [file.path for file in result_files(instance)] == ["a.py/x/b.py", "a.pyx"]
