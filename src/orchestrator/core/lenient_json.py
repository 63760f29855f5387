"""Parse JSON as models write it.

Input with one interpretation is accepted: trailing commas, comments, line breaks and unescaped quotation
marks in strings, other quotation marks, bare keys, Python's literals, escapes that JSON does not know.
Ambiguous, elided or truncated input is rejected, with a message that gives the position.

Input may be hostile, so no pattern reads twice what it has passed, and what is read in vain is bounded.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

_MAX_DEPTH: Final = 64
_MAX_CANDIDATES: Final = 256
"""How many brackets or quotation marks of a text are tried, so that a long text of them costs little."""
_MAX_REPAIRED: Final = 128 * 1024
"""How many characters of a text may be read as JSON with faults; a longer rest has to be JSON as it is."""
_MAX_READ_IN_VAIN: Final = 64 * 1024
"""How many characters may be read of brackets that turn out to be none of JSON."""
_MIN_READ_IN_VAIN: Final = 1024
"""As how many characters each such bracket counts at least."""


class JsonFaultError(ValueError):
    """A text cannot be read as JSON; the message says where it breaks, and what is expected there."""

    def __init__(self, message: str, position: int, *, is_value: bool = True, is_cut: bool = False) -> None:
        super().__init__(message)
        self.position = position
        """Where it breaks, in characters of the text."""
        self.is_value = is_value
        """Whether a key or a string was found: if not, the bracket is as likely one in a sentence."""
        self.is_cut = is_cut
        """Whether the only fault is that the text ends."""


def values(text: str) -> Iterator[Any | JsonFaultError]:
    """Yield each object, list, or string that may hold one, in order; a fault for each that is malformed.

    Nothing follows a malformed one whose end is unknown: it would be a part of that one.
    """
    position = read_in_vain = 0
    may_be_part = _BARE_MEMBERS.match(text) is not None
    for _ in range(_MAX_CANDIDATES):
        found = _OPENING.search(text, position)
        if not found:
            return
        if may_be_part and _KEY_BEFORE.search(text, max(0, found.start() - 100), found.start()):
            yield _fault(text, found.start(), "a key stands before it, but no {")
            return
        try:
            value, end = read(text, found.start())
            if isinstance(value, str) and not value.rstrip().endswith(("}", "]")):
                position = found.end()  # quotation marks of a sentence
                continue
            position = end
            yield value
        except JsonFaultError as fault:
            read_in_vain += max(fault.position - found.start(), _MIN_READ_IN_VAIN)
            if not fault.is_value and read_in_vain <= _MAX_READ_IN_VAIN:
                position = found.end()
                continue
            yield fault
            extent_end = None if fault.is_cut else _extent(text, found.start())
            if extent_end is None:
                return
            position = extent_end
            may_be_part = True


_OPENING: Final = re.compile(r'[{\[]|"(?=(?:\s++|\\[nrt])*+[{\[])')
_KEY_BEFORE: Final = re.compile(r"""["'”`]\s*:\s*\Z""")
_ESCAPED_OPENING: Final = re.compile(r'"(?:[\s{\[]++|\\[nrt])++\\"')
_TOKEN: Final = re.compile(r'"(?:[^"\\]++|\\.)*+("?)|[][{}]', re.DOTALL)


def _extent(text: str, start: int) -> int | None:
    """Find the end of the brackets that open at `start`; None: they are not closed."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        if token[1] == "":
            return None  # a string has no end
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
        if depth <= 0:
            return token.end()
    return None


def read(text: str, start: int = 0) -> tuple[Any, int]:
    """Parse the value that begins at `start`, and return it with its end; raise JsonFaultError."""
    try:
        return _STRICT_DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        if len(text) - start <= _MAX_REPAIRED:
            return _Reader(text).value(start)
        position = error.pos if isinstance(error, json.JSONDecodeError) else start
        is_value = text[start + 1 : start + 100].lstrip()[:1] in ('"', "{", "[")
        raise _fault(text, position, "it is too long to be repaired", is_value=is_value) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from pairs; raise ValueError where a key has two different values."""
    value = dict(pairs)
    if len(value) < len(pairs) and any(value[key] != each for key, each in pairs):
        raise ValueError("a key has two values")
    return value


_STRICT_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object)
_STRING_DECODER: Final = json.JSONDecoder(strict=False)

# A comment that begins with dots stands for what was left out.
_WHITESPACE: Final = re.compile(
    r"(?:[\s\ufeff\u200b]++|(?://|#)(?!\s*(?:\.\.\.|…))[^\n]*|/\*(?!\s*(?:\.\.\.|…)).*?\*/)*+", re.DOTALL
)
_ELLIPSIS: Final = re.compile(r"(?://|#|/\*)?\s*(?:\.\.\.|…)")
_NUMBER: Final = re.compile(r"[-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?+(?![\w.])")
_WORD: Final = re.compile(r"\w[\w-]*")
_LITERALS: Final = {"true": True, "false": False, "null": None, "none": None, "undefined": None}
_QUOTES: Final = {'"""': '"""', '"': '"', "'": "'", "`": "`", "“": "”"}
"""What opens a string, and what closes it."""
_STRINGS: Final = {
    opening: re.compile(
        rf"{opening}((?:[^\\{closing[0]}]++|\\.|(?!{closing}){closing[0]})*+){closing}", re.DOTALL
    )
    for opening, closing in _QUOTES.items()
}
_BARE_MEMBERS: Final = re.compile(r"""\s*+(?:```\w*+\s*+)?+["'“`][^"'”`\n]*+["'”`]\s*+:""")
_KEY: Final = re.compile(
    rf"""(?:"(?:[^"\\\n]++|\\.)*+"|'[^'\\\n]*'|“[^”\\\n]*”|`[^`\\\n]*`|{_WORD.pattern}){_WHITESPACE.pattern}:""",
    re.DOTALL,
)
_ESCAPE: Final = re.compile(r'\\(u[0-9a-fA-F]{4}|["\\/bfnrt])|\\(.)|"', re.DOTALL)


class _Reader:
    """A recursive descent parser of one value; each method takes a start and returns an end offset."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._path: list[str] = []
        """The path to the value being parsed, as in `subtasks`, `[1]`, `title`."""
        self._is_value = False

    def value(self, start: int) -> tuple[Any, int]:
        if len(self._path) > _MAX_DEPTH:
            self._fail(start, "it is nested too deeply")
        match self._text[start : start + 1]:
            case "{":
                return self._members(start + 1)
            case "[":
                return self._elements(start + 1)
        if string := self._string(start):
            return string
        if number := _NUMBER.match(self._text, start):
            digits = number[0]
            try:
                return (int(digits) if digits.lstrip("+-").isdigit() else float(digits)), number.end()
            except ValueError:  # it has thousands of digits
                self._fail(start, "the number is too long")
        word = _WORD.match(self._text, start)
        if word and word[0].lower() in _LITERALS:
            return _LITERALS[word[0].lower()], word.end()
        return self._fail(start, "a value is expected")

    def _members(self, position: int) -> tuple[dict[str, Any], int]:
        members: dict[str, Any] = {}
        position = self._skip_whitespace(position)
        while not self._text.startswith("}", position):
            start = position
            key, position = self._key(position)
            self._path.append(f".{key}" if key.isidentifier() else f"[{key[:40]!r}]")
            value, end = self.value(self._skip_whitespace(position))
            if isinstance(value, str):
                value, end = self._extend_to_member_end(value, self._skip_whitespace(position), end)
            self._path.pop()
            if members.setdefault(key, value) != value:
                self._fail(start, f"the key {key[:40]!r} is there twice, with different values")
            position = self._skip_whitespace(end)
            if self._text.startswith(",", position):
                position = self._skip_whitespace(position + 1)
            elif not self._text.startswith("}", position) and not self._is_next_member(end, position):
                self._fail(position, "a comma or } is expected", after_text=isinstance(value, str))
        return members, position + 1

    def _is_next_member(self, end: int, position: int) -> bool:
        """Return whether nothing but a comma is missing, at the end of a line."""
        between = self._text[end:position]
        return "\n" in between and between.isspace() and _KEY.match(self._text, position) is not None

    def _elements(self, position: int) -> tuple[list[Any], int]:
        elements: list[Any] = []
        position = self._skip_whitespace(position)
        while not self._text.startswith("]", position):
            self._path.append(f"[{len(elements)}]")
            value, end = self.value(position)
            self._path.pop()
            self._is_value = self._is_value or isinstance(value, str)
            elements.append(value)
            position = self._skip_whitespace(end)
            if self._text.startswith(",", position):
                position = self._skip_whitespace(position + 1)
            elif not self._text.startswith("]", position) and not (
                isinstance(value, dict) and self._text.startswith("{", position)
            ):
                self._fail(position, "a comma or ] is expected", after_text=isinstance(value, str))
        return elements, position + 1

    def _key(self, start: int) -> tuple[str, int]:
        string = self._string(start)
        self._is_value = self._is_value or string is not None
        if string is None:
            word = _WORD.match(self._text, start)
            if not word:
                self._fail(start, "a key or } is expected")
            string = word[0], word.end()
        key, end = string
        colon = self._skip_whitespace(end)
        if not self._text.startswith(":", colon):
            self._fail(colon, f"a colon is expected after the key {key[:40]!r}")
        self._is_value = True
        return key, colon + 1

    def _string(self, start: int) -> tuple[str, int] | None:
        """Parse the string that begins at `start`, if there is one."""
        opening = next((each for each in _QUOTES if self._text.startswith(each, start)), None)
        if opening == '"""' and not _STRINGS[opening].match(self._text, start):
            opening = '"'
        if opening is None:
            return None
        found = _STRINGS[opening].match(self._text, start)
        if not found:
            self._is_value = self._is_value or bool(_ESCAPED_OPENING.match(self._text, start))
            self._fail(len(self._text), f"the string that begins at character {start} has no end")
        return _unescape(found[1]), found.end()

    def _extend_to_member_end(self, value: str, start: int, end: int) -> tuple[str, int]:
        """Return a member's text up to where JSON goes on: quotation marks before that are the text's own.

        They are not where one of them could as well begin or end the next member's key.
        """
        quote = self._text[end - 1]
        if quote not in "\"'`" or self._text.startswith('"""', start) or self._is_member_end(end):
            return value, end
        position = end
        for _ in range(_MAX_CANDIDATES):
            before, position = position, self._text.find(quote, position)
            if position < 0 or self._text.startswith(":", self._skip_whitespace(position + 1)):
                return value, end
            may_begin_key = self._text[before:position].strip() == ","
            position += 1
            if self._text[position - 2] != "\\" and self._is_member_end(position):
                if may_begin_key:
                    return value, end
                return _unescape(self._text[start + 1 : position - 1]), position
        return value, end

    def _is_member_end(self, end: int) -> bool:
        """Return whether a member's text ends here: valid JSON follows."""
        position = self._skip_whitespace(end)
        is_in_doubt = self._text[end - 1] in self._text[end:position]
        if position == len(self._text):
            return not is_in_doubt
        if self._text[position] == ",":
            after = self._skip_whitespace(position + 1)
            is_end = self._text.startswith("}", after) or _KEY.match(self._text, after) is not None
        else:
            is_end = self._text[position] in "}]" or self._is_next_member(end, position)
        if is_end and is_in_doubt:
            self._fail(end, "this may be a comment, or the text goes on")
        return is_end

    def _skip_whitespace(self, position: int) -> int:
        """Return the offset after white space and comments."""
        found = _WHITESPACE.match(self._text, position)
        return found.end() if found else position

    def _fail(self, position: int, problem: str, *, after_text: bool = False) -> NoReturn:
        path = "".join(self._path).removeprefix(".")
        if _ELLIPSIS.match(self._text, position):
            problem += "; dots must not stand for what is left out"
        elif after_text and position < len(self._text):
            problem += '; within a string a quotation mark is written \\"'
        raise _fault(self._text, position, problem, path=path, is_value=self._is_value)


def _fault(
    text: str, position: int, problem: str, *, path: str = "", is_value: bool = True
) -> JsonFaultError:
    line = text.count("\n", 0, position) + 1
    column = position - text.rfind("\n", 0, position)
    where = f"character {position} (line {line}, column {column}{f', in {path}' if path else ''})"
    before = " ".join(text[max(0, position - 40) : position].split())
    found = f"comes {text[position : position + 20]!r}" if position < len(text) else "the text ends"
    message = f"its JSON breaks at {where}: after {before!r} {found}; {problem}"
    is_cut = not text[position:].strip("` \r\n\t")
    return JsonFaultError(message, position, is_value=is_value, is_cut=is_cut)


def _unescape(content: str) -> str:
    """Unescape the content of a string; a backslash that escapes nothing stands for itself."""

    def repair_escape(found: re.Match[str]) -> str:
        if found[1]:
            return found[0]
        if found[2] is None:
            return '\\"'
        return found[2] if found[2] in "'`" else f"\\\\{found[2]}"

    text: str = _STRING_DECODER.decode(f'"{_ESCAPE.sub(repair_escape, content)}"')
    return text
