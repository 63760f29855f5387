"""What of a model's text is its answer: thoughts that stand in front of it are no part of it.

Some models think aloud between tags before they answer, and some serving templates write the opening tag
themselves, so that only the closing one is in the text. **Such a tag counts where nothing has opened it,
where it stands in no code and no quotes, and where no sentence goes on around it:** all before it were
thoughts. In JSON that is not whole yet it stands in a string. An answer that talks about the tag is left as
it is. Thoughts that were opened end at the first closing tag that stands in no quotes.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Final, Literal

from orchestrator.core.plan import well_formed

_NAMES: Final = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")
_CHANNEL: Final = "<|channel|>analysis<|message|>"
_FINAL: Final = "<|channel|>final<|message|>"
_CLOSINGS: Final[Mapping[str, str]] = {
    **{f"<{name}>": f"</{name}>" for name in _NAMES},
    "[think]": "[/think]",
    "◁think▷": "◁/think▷",
    _CHANNEL: _FINAL,
    f"<|start|>assistant{_CHANNEL}": _FINAL,
}
"""By what thoughts end that begin so, in lower case."""

_LONGEST: Final = max(map(len, _CLOSINGS.values()))

LARGEST_PIECE: Final = 16 * 1024
"""How many characters are best added at once: some 2 ms, whatever they are."""
_MAX_READ: Final = 1024 * 1024
"""How many characters are read again, in all of an answer, to tell what its tags mean: some 10 ms."""
_FENCE_COST: Final = 64
"""As how many characters a mark of three back-ticks or tildes counts."""
_TAG_COST: Final = 512
"""As how many characters one tag counts, and as what part of one a character that is only copied."""
_COPY_COST: Final = 1 / 16

# gpt-oss where a server takes its special tokens out: only a capital letter tells this from an answer, so
# that it was one if the end never comes.
_UNTAGGED: Final = "analysis"
_BARE_CLOSING: Final = "assistantfinal"

_OPENING: Final = re.compile(f"(?i:{'|'.join(map(re.escape, _CLOSINGS))})|{_UNTAGGED}(?=[A-Z])")
_TAG_START: Final = re.compile("[<\\[◁]")
"""With what each of the closing tags begins."""
# What follows the first character is looked at first: a text of nothing but beginnings costs little.
_CLOSING: Final = re.compile(
    rf"{_TAG_START.pattern}(?=[/|])(?:"
    + "|".join(f"(?<={re.escape(it[0])}){re.escape(it[1:])}" for it in sorted({*_CLOSINGS.values()}))
    + ")",
    re.IGNORECASE,
)

_CONTINUES_AFTER: Final = ",-|=/"
"""Signs after which a sentence, or a cell of a table, goes on."""
_CONTINUES_BEFORE: Final = ".,;:!?)]}|/="
"""Signs before which it does."""
_FENCE: Final = re.compile(r"([`~])\1{2,}([^\n]*)")
"""A fence of code, where no more than three spaces stand before it in its line."""
_CODE_INDENT: Final = 4
_JSON_SIGN: Final = re.compile(r'\\.?|["{}\[\]]', re.DOTALL)
_QUOTES: Final = "\"'`|*_"

Stage = Literal["opening", "thinking", "concluding", "answering"]


class AnswerText:
    """Takes what a model writes, piece by piece, and gives the answer in it, in whole characters.

    What comes out does not depend on how the text is cut into pieces, but for `has_restarted`.
    """

    def __init__(self, *, is_buffered: bool = False, is_json: bool = False) -> None:
        """`is_held`: give nothing until it is known to be no thought. `is_json`: JSON was asked for.

        JSON is held too unless the text begins with it, for it may be a draft in thoughts.
        """
        self.has_restarted = False
        """Whether what was given before the last piece were thoughts: the answer begins with that piece."""
        self.has_thoughts = False
        self.has_unopened_thoughts = False
        """Whether thoughts ended that nothing had opened."""
        self.blank_run = 0
        """How many characters of white space the text ends in so far."""
        self._buffers_until_answer = is_buffered
        self._is_json = is_json
        self._json: _JsonScanner | None = None
        """What follows the JSON that the answer begins with; None: it begins with something else."""
        self._may_read = _MAX_READ
        """How many characters may still be read again. Once it is negative, tags have no meaning: an endpoint
        could fill an answer with them."""
        self._characters = 0
        """In `_answer`."""
        self._stage: Stage = "opening"
        self._closing = ""
        self._pending = ""
        """What is not known yet to be answer or thought."""
        self._half = ""
        """Half of a character that is written as two."""
        self._bare: list[str] = []
        """Thoughts that may turn out to be the answer."""
        self._answer: list[str] = []

    @property
    def text(self) -> str:
        """The answer as far as it is known, be it given or held."""
        return "".join(self._answer)

    def add(self, piece: str) -> str:
        """Take in what the model has written next; give what that adds to the answer."""
        written = piece.rstrip()
        self.blank_run = len(piece) - len(written) + (0 if written else self.blank_run)
        piece = self._half + piece
        self._half = piece[-1:] if "\ud800" <= piece[-1:] <= "\udbff" else ""
        return self._process(well_formed(piece[: len(piece) - len(self._half)]), is_end=False)

    def end(self) -> str:
        """Give the rest of the answer: no more will be written."""
        half, self._half = self._half, ""
        rest = self._process(well_formed(half), is_end=True)
        return self.text if self._buffers_until_answer else rest

    def _process(self, piece: str, *, is_end: bool) -> str:
        self.has_restarted = False
        self._pending += piece
        added: list[str] = []
        while self._step(added, is_end=is_end):
            pass
        self._answer += added
        self._characters += sum(map(len, added))
        return "" if self._buffers_until_answer else "".join(added)

    def _step(self, added: list[str], *, is_end: bool) -> bool:
        """Go on by one stage; whether there may be more to do."""
        match self._stage:
            case "opening":
                return self._open(is_end=is_end)
            case "thinking":
                return self._think(added, is_end=is_end)
            case "concluding":
                self._pending = self._pending.lstrip()
                if self._pending:
                    self._stage = "opening"
                return bool(self._pending)
            case "answering":
                return self._answer_on(added, is_end=is_end)

    def _open(self, *, is_end: bool) -> bool:
        head = self._pending.lstrip()
        if self._can_afford_tag() and (opening := _OPENING.match(head)):
            self._may_read -= self._cost_of_tag()
            self._stage = "thinking"
            self._closing = _CLOSINGS.get(opening[0].lower(), _BARE_CLOSING)
            self._bare = [self._pending[: len(self._pending) - len(head) + opening.end()]]
            self._pending = head[opening.end() :]
            return True
        if not is_end and _may_open(head):
            return False
        if self._is_json and not self.has_thoughts:
            self._json = _JsonScanner() if head[:1] in ("{", "[") else None
            self._buffers_until_answer |= head[:1] not in ("{", "[", "`")
        self._stage = "answering"
        return True

    def _think(self, added: list[str], *, is_end: bool) -> bool:
        found = re.search(re.escape(self._closing), self._pending, re.IGNORECASE)
        if found:
            before, after = self._pending[: found.start()], self._pending[found.end() :]
            if not after and not is_end:
                return False
            self._may_read -= self._cost_of_tag()
            if self._can_afford_tag() and _is_quoted(before, after):
                self._bare.append(self._pending[: found.end()])
                self._pending = after
            else:
                self._conclude(after)
            return True
        if self._closing != _BARE_CLOSING:
            self._pending = self._pending[-_LONGEST:]
            self.has_thoughts = True
        elif is_end:
            added += [*self._bare, self._pending]
        else:
            self._bare.append(self._pending[:-_LONGEST])
            self._pending = self._pending[-_LONGEST:]
        return False

    def _answer_on(self, added: list[str], *, is_end: bool) -> bool:
        has_meaning = self._can_afford_tag()
        found = _CLOSING.search(self._pending) if has_meaning else None
        if not found:
            certain = len(self._pending) if is_end or not has_meaning else _safe_length(self._pending)
            self._accept(certain, added)
            return False
        tag = found[0]
        self._accept(found.start(), added)
        after = self._pending[len(tag) :]
        if not is_end and not after.strip():
            return False
        if self._ends_thoughts(added, tag, after):
            self.has_unopened_thoughts = True
            self.has_restarted |= not self._buffers_until_answer and any(self._answer)
            self._answer.clear()
            self._characters = 0
            added.clear()
            self._conclude(after)
        else:
            self._accept(len(tag), added)
        return True

    def _accept(self, characters: int, added: list[str]) -> None:
        """Take so many characters of what is pending for a part of the answer."""
        text = self._pending[:characters]
        self._pending = self._pending[characters:]
        added.append(text)
        if self._json:
            self._json.add(text)

    def _ends_thoughts(self, added: Sequence[str], tag: str, after: str) -> bool:
        """Return whether a closing tag behind what was added ends thoughts that nothing has opened."""
        self._may_read -= self._cost_of_tag()
        last = next((text for text in chain(reversed(added), reversed(self._answer)) if text), "")
        if _is_quoted(last, after):
            return False
        if self._json and not (after.strip() and self._json.has_ended):
            return False
        self._may_read -= self._characters + sum(map(len, added))
        if not self._can_afford_tag():
            return False
        before = "".join([*self._answer, *added])
        openings = [opening for opening, closing in _CLOSINGS.items() if closing == tag.lower()]
        lower = before.lower()
        fences = before.count("```") + before.count("~~~")
        cost = len(before) + fences * _FENCE_COST
        self._may_read -= cost * (1 + sum(map(lower.count, openings)))
        return self._can_afford_tag() and _closes(before, openings, after)

    def _can_afford_tag(self) -> bool:
        return self._may_read >= 0

    def _cost_of_tag(self) -> int:
        return _TAG_COST + int(len(self._pending) * _COPY_COST)

    def _conclude(self, after: str) -> None:
        self.has_thoughts = True
        self._stage = "concluding"
        self._buffers_until_answer = False
        self._json = None
        self._pending = after


class _JsonScanner:
    """Finds the end of the JSON that a text begins with; looks at each character once."""

    def __init__(self) -> None:
        self.has_ended = False
        """Whether what follows is outside of it."""
        self._depth = 0
        """How many brackets are open."""
        self._is_in_string = False
        self._is_escaped = False
        """Whether the text so far ends in a backslash that escapes what follows."""

    def add(self, text: str) -> None:
        """Take in what follows."""
        if self.has_ended or not text:
            return
        start = int(self._is_escaped)
        self._is_escaped = False
        for sign in _JSON_SIGN.finditer(text, start):
            match sign[0]:
                case '"':
                    self._is_in_string = not self._is_in_string
                case "\\":
                    self._is_escaped = True
                case "{" | "[" if not self._is_in_string:
                    self._depth += 1
                case "}" | "]" if not self._is_in_string:
                    self._depth -= 1
                    if self._depth <= 0:
                        self.has_ended = True
                        return


def _may_open(head: str) -> bool:
    """Return whether the beginning of a text may still become that of thoughts."""
    lower = head.lower()
    return any(opening.startswith(lower) for opening in _CLOSINGS) or _UNTAGGED.startswith(head)


def _safe_length(text: str) -> int:
    """Return how many characters of a text cannot belong to a closing tag that has not come in full."""
    tail = text[-_LONGEST:]
    for sign in _TAG_START.finditer(tail):
        head = tail[sign.start() :]
        if any(closing.startswith(head.lower()) for closing in _CLOSINGS.values()):
            return len(text) - len(head)
    return len(text)


def _closes(before: str, openings: Iterable[str], after: str) -> bool:
    """Return whether the closing tag of these ends thoughts that nothing has opened; see above."""
    if _is_mid_sentence(before, after) or _is_in_code(before):
        return False
    return not any(_opens(opening, before.lower()) for opening in openings)


def _opens(opening: str, text: str) -> bool:
    """Return whether a text opens thoughts that are still open, and does not only mention the tag."""
    for found in re.finditer(re.escape(opening), text):
        before, after = text[: found.start()], text[found.end() :]
        is_amid = "\n" in after and _is_mid_sentence(before, after)
        if not (is_amid or _is_quoted(before, after) or _is_in_code(before)):
            return True
    return False


def _is_in_code(before: str) -> bool:
    """Return whether what follows a text stands in code, as Markdown marks it."""
    fence = ""
    for found in _FENCE.finditer(before):
        indent = before[before.rfind("\n", 0, found.start()) + 1 : found.start()]
        if indent.strip(" ") or len(indent) >= _CODE_INDENT:
            continue
        marks = before[found.start() : found.start(2)]
        if not fence:
            fence = marks
        elif marks.startswith(fence) and not found[2].strip():
            fence = ""
    line = _last_line(before)
    is_indented = not line.strip() and (line.startswith("\t") or len(line) >= _CODE_INDENT)
    return bool(fence) or is_indented or line.replace("```", "").count("`") % 2 == 1


def _last_line(text: str) -> str:
    return text[text.rfind("\n") + 1 :]


def _is_mid_sentence(before: str, after: str) -> bool:
    """Return whether a sentence, or a row of a table, goes on around something between two texts."""
    line = _last_line(before)
    last, follows = line.rstrip()[-1:], after.lstrip(" \t")[:1]
    is_amid = line.endswith((" ", "\t")) and bool(last) and (last.isalnum() or last in _CONTINUES_AFTER)
    goes_on = bool(follows) and (
        follows in _CONTINUES_BEFORE or (follows.isalpha() and not follows.isupper())
    )
    return is_amid and goes_on


def _is_quoted(before: str, after: str) -> bool:
    """Return whether something is only mentioned: it stands in quotes, brackets or Markdown's emphasis."""
    return _is_quote(before[-1:], ("Ps", "Pi", "Pf")) and _is_quote(after[:1], ("Pe", "Pi", "Pf"))


def _is_quote(sign: str, categories: tuple[str, ...]) -> bool:
    return bool(sign) and (sign in _QUOTES or unicodedata.category(sign) in categories)
