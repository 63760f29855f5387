"""The files of a result: what a file's path may be, and which files a Markdown text holds.

A file is a fenced code block with a name: in its info string, or in the line that it follows.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from orchestrator.core import languages, markdown
from orchestrator.core.instance import Instance
from orchestrator.v1 import instance_pb2 as pb

MAX_PATH_BYTES: Final = 1024
MAX_SEGMENT_BYTES: Final = 255
INPUT: Final = "input"
"""The source of a file that the instance was given and that nothing has changed."""
RESULT: Final = "result"
"""The source of a file that the synthesis wrote."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DRIVE: Final = re.compile(r"[A-Za-z]:")

_MAX_NAMING_CHARACTERS: Final = 2 * MAX_PATH_BYTES
"""An info string or a line that is longer names no file."""
_ATTRIBUTE: Final = re.compile(
    r"""(?:^|[\s{,])(path|file|filename|title)\s?=\s?(?:"([^"]*)"|'([^']*)'|([^\s"'][^\s]*))""", re.IGNORECASE
)
_ATTRIBUTES: Final = ("path", "file", "filename", "title")
"""The first of those that an info string has names the file."""
_LANGUAGE: Final = re.compile(r"\{?\s*\.?([A-Za-z][\w+#./-]*)")
_LANGUAGE_AND_PATH: Final = re.compile(r"([A-Za-z][\w+#-]*):(?!:)(\S+)")
_WORD: Final = re.compile(r"""(?:^|\s)(?:"([^"]+)"|'([^']+)'|(\S+))""")
_EXTENSION: Final = re.compile(r"[^\s./][^/]*\.[A-Za-z][\w+-]{0,15}|\.[\w-]+(?:\.[\w-]+)*\.[A-Za-z]\w{0,15}")
_FILE: Final = r"(?:(?:new|updated|modified|changed)\s)?(?:file(?:\s?(?:name|path))?|path)(?:\s\d{1,4})?"
_LABEL: Final = re.compile(rf"(\*\*|__){_FILE}(?::\1|\1:)\s?|{_FILE}(?::\s?|\s(?=[*_`]))", re.IGNORECASE)
_LINK: Final = re.compile(r"\[([^\]]+)\]\([^()\s]*\)")
_NUMBER: Final = re.compile(r"\d{1,4}[.)]\s+")
_ESCAPED: Final = re.compile(r"\\([!-/:-@\[-`{-~])")
_NOT_IN_A_NAME: Final = re.compile(r"""[*?<>|"`=;]|://""")
_MARKS: Final = ("**", "__", "`", "*", "_", '"', "'")
_PRODUCT: Final = re.compile(
    r"(?:Angular|Backbone|Chart|D3|Ember|Express|Moment|Next|Node|Nuxt|React|Three|Vue)\.js"
)
"""What looks like a name in a heading and is none."""
_BARE_PATH: Final = re.compile(r"""[^\s"'{},;`]+""")
_CHANGES: Final = frozenset({"diff", "patch", "udiff"})


class File(NamedTuple):
    """A text file with its name."""

    path: str
    content: str
    language: str = ""
    """As in `python`; empty: unknown."""
    source: str = ""
    """The id of the subtask that wrote it, RESULT or INPUT."""

    @property
    def size_bytes(self) -> int:
        """The size of its content in UTF-8."""
        return len(self.content.encode())

    @property
    def sha256(self) -> str:
        """The SHA-256 of its content, in hexadecimal digits."""
        return hashlib.sha256(self.content.encode()).hexdigest()


def path_fault(path: str) -> str | None:
    """Say what keeps a text from being a file's path, as in `it has a segment '..'`; None: it can be one."""
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return "it is no valid Unicode: it has half a surrogate pair"
    if not path:
        return "it is empty"
    if size > MAX_PATH_BYTES:
        return f"it has {size} bytes and may have {MAX_PATH_BYTES}"
    if _CONTROL.search(path):
        return "it has a control character"
    if "\\" in path:
        return "it has a backslash: segments are separated by /"
    if path.startswith("/") or _DRIVE.match(path):
        return "it is absolute: it must be relative"
    for segment in path.split("/"):
        if segment in ("", ".", ".."):
            return f"it has a segment {segment!r}"
        if (segment_size := len(segment.encode())) > MAX_SEGMENT_BYTES:
            return f"it has a segment of {segment_size} bytes: there may be {MAX_SEGMENT_BYTES}"
    return None


def write_file(message: pb.File, file: File) -> None:
    """Write what there is to say of a file, but for its content, into its place in a message."""
    message.path = file.path
    message.language = file.language
    message.size_bytes = file.size_bytes
    message.sha256 = file.sha256
    message.source = file.source


def can_be_written(file: File) -> bool:
    """Return whether `write_block` can name a file: its path has not both kinds of quotes."""
    return not ('"' in file.path and "'" in file.path)


def write_block(file: File) -> str:
    """Write a file as the code block that `find_files` finds it in, without a line end behind it."""
    if _BARE_PATH.fullmatch(file.path):
        path = file.path
    else:
        path = f"'{file.path}'" if '"' in file.path else f'"{file.path}"'
    mark = "~" if "`" in file.path else "`"
    longest = max(map(len, re.findall(f"{mark}+", file.content)), default=0)
    fence = mark * max(3, longest + 1)
    return f"{fence}{f'{file.language} path={path}'.strip()}\n{file.content}{fence}"


def input_files(instance: Instance) -> Sequence[File]:
    """Return the files that an instance was given."""
    return [File(file.path, file.content, file.language, INPUT) for file in instance.files]


def result_files(instance: Instance) -> Sequence[File]:
    """Return the input files with those of the result in their places, and its others, sorted by path.

    A file whose path is another one's folder is left out: no tree can hold both.
    """
    files = {file.path: file for file in input_files(instance)}
    found = {
        path: file
        for path, file in find_files(instance.final_result).items()
        if path not in files or files[path].content != file.content
    }
    if found:
        sources = _sources(instance)
        files |= {
            path: file._replace(source=sources.get((path, file.content), RESULT))
            for path, file in found.items()
        }
    folders = _folders(files)
    return [files[path] for path in sorted(files) if path not in folders]


def _folders(paths: Iterable[str]) -> Collection[str]:
    """Return the folders that the files at these paths are in."""
    folders: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return folders


def _sources(instance: Instance) -> Mapping[tuple[str, str], str]:
    """Return the first subtask that wrote each file, by its path and its content."""
    sources: dict[tuple[str, str], str] = {}
    for subtask in instance.subtasks.values():
        if not subtask.merges:
            for path, file in find_files(subtask.output).items():
                sources.setdefault((path, file.content), subtask.id)
    return sources


def find_files(text: str) -> Mapping[str, File]:
    """Return the files that a Markdown text holds, by path: of two with one path the later.

    A fenced code block is a file where it has a name that can be a path: as `path=`, `file=`, `filename=` or
    `title=` of its info string, behind the language in it, or alone in the nearest line above, whether plain,
    in bold, in back-ticks or as a heading. What a name says beside that is no file: a block of changes to one
    (`diff`), a path with `..`.
    """
    found: dict[str, File] = {}
    for block in markdown.blocks(text, _is_markdown):
        path = _path(block.info, block.heading)
        if not path:
            continue
        language = _language(block.info)
        if language in _CHANGES and languages.of(path) != "diff":
            continue
        found[path] = File(path, block.content, language or languages.of(path))
    return found


def _is_markdown(info: str, heading: str) -> bool:
    return languages.of(_path(info, heading)) in ("markdown", "mdx")


def _path(info: str, heading: str) -> str:
    """Return the path that names a block; empty: it has no name, or one that cannot be a path."""
    if len(info) > _MAX_NAMING_CHARACTERS:
        info = ""
    attributes = {found[1].lower(): _attribute(found) for found in _ATTRIBUTE.finditer(info)}
    for key in _ATTRIBUTES:
        path = attributes.get(key)
        if path is not None and (key != "title" or _looks_like_path(path)):
            return _normalized(path)
    named = next(filter(None, map(_normalized, _words_that_name(info))), "")
    above = _normalized(_name_in(heading)) if len(heading) <= _MAX_NAMING_CHARACTERS else ""
    return above if not named or above.endswith(f"/{named}") else named


def _attribute(found: re.Match[str]) -> str:
    quoted = found[2] if found[2] is not None else found[3]
    if quoted is not None:
        return quoted
    value, opening = found[4], found[0][0]
    if opening == ",":
        value = value.partition(",")[0]
    return value.rstrip("},;") if "{" in found.string[: found.start(4)] else value


def _words_that_name(info: str) -> Iterator[str]:
    """Yield the words of an info string that are names of files."""
    for number, found in enumerate(_WORD.finditer(info)):
        word = found[1] or found[2] or found[3]
        if pair := _LANGUAGE_AND_PATH.fullmatch(word):
            if _looks_like_path(pair[2]):
                yield pair[2]
        elif "=" in word or "{" in word:
            continue
        elif _looks_like_path(word) and (number or _is_surely_path(word)):
            yield word


def _language(info: str) -> str:
    """Return the language that an info string begins with, in lower case; empty: with none."""
    word = info.split(maxsplit=1)[0] if info else ""
    pair = _LANGUAGE_AND_PATH.fullmatch(word)
    found = _LANGUAGE.match(pair[1] if pair else info)
    if not found or "=" in info[found.end() : found.end() + 2] or _is_surely_path(found[1]):
        return ""
    return found[1].lower()


def _is_surely_path(word: str) -> bool:
    """Whether a word that stands alone is a path, and not a language, a product or a domain."""
    if _PRODUCT.fullmatch(word) or ":" in word or not _looks_like_path(word):
        return False
    return "/" in word or ("." in word and languages.is_known(word))


def _name_in(line: str) -> str:
    """Return the name that is all that a line holds; empty: it holds something else.

    Marks of a heading, of bold, of code, quotes, a number, a symbol, a colon and `File:` are no part of it.
    """
    text = line.rstrip("\\").strip()
    if text.startswith("#"):
        text = text.lstrip("#").rstrip("#").strip()
    is_label = is_code = False
    for _ in range(8):
        before = text
        text = _NUMBER.sub("", text, count=1) if text[:1].isdigit() else text
        if text[:1] and not text[0].isascii() and not text[0].isalnum():
            text = text[1:].lstrip("\ufe0f\u200d ")
        if label := _LABEL.match(text):
            text, is_label = text[label.end() :], True
        text = text.removesuffix(":").strip()
        if link := _LINK.fullmatch(text):
            text = link[1]
        for mark in _MARKS:
            if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
                is_code = is_code or mark == "`"
                text = text[len(mark) : -len(mark)].strip()
        if text == before:
            break
    if not is_code:
        text = _ESCAPED.sub(r"\1", text)
    if _NOT_IN_A_NAME.search(text):
        return ""
    return text if _can_name(text, is_label=is_label, is_code=is_code) else ""


def _can_name(text: str, *, is_label: bool, is_code: bool) -> bool:
    """Whether the text that is left of a line is a path, given whether it had a label or back-ticks."""
    first, space, _ = text.partition(" ")
    if not _looks_like_path(text):
        return is_label and "/" in text and not space
    if is_label:
        return True
    if space:  # `docs/two words.md`, but not `python app.py`
        return is_code and "/" in first and "." not in first
    return ("/" in text or languages.is_known(text)) and not _PRODUCT.fullmatch(text)


def _looks_like_path(text: str) -> bool:
    """Whether the last segment has an extension or is a usual name."""
    name = text.rpartition("/")[2]
    return bool(_EXTENSION.fullmatch(name)) or languages.is_known(name)


def _normalized(path: str) -> str:
    """Return a path without `./` before it; empty: it cannot be a path."""
    while path.startswith("./"):
        path = path[2:].lstrip("/")
    return "" if path_fault(path) else path
