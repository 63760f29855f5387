"""How many tokens a model takes, read from an endpoint's refusals, each of which has words of its own.

There are two kinds. A *cap* bounds the answer whatever the prompt. A *window* bounds prompt and answer
together: the context, or what may be used in a minute. Where a window is exceeded, the answer's limit gives
way first; the prompt is too long only when no room is left that is worth an answer.
"""

import re
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

LEAST: Final = 512
"""Tokens of an answer below which no limit is lowered for the prompt's sake: a short plan or a page of text
fits; with less, most answers would be cut, and paid for all the same."""
_LEAST_SHARE: Final = 4
"""Where few are wanted, the least is one in so many."""
_LEAST_CAP: Final = 16
"""A smaller number is none of a limit, but of something else that was misread."""
_CHARACTERS_PER_TOKEN: Final = 4
_TEMPLATE_TOKENS: Final = 64
"""More than a chat template adds to a prompt, however short."""

PER_TIME: Final = re.compile(
    r"\bper[ _-]?(?:min|hour|day|sec)|/(?:min|hour|day|sec)|\b(?:daily|hourly|monthly)\b|\btp[mdh]\b"
    r"|(?:in the last|within an?) (?:min|hour|day|sec)|\brate[ _-]?limit|\brequest rate\b"
)
"""By which words a refusal is known to be about a rate."""
THINKING_EXHAUSTED: Final = re.compile(
    r"could not finish the message because max_tokens|output limit was reached"
)
"""How a reasoning model's endpoint says that the limit was used up before the first word of the answer."""

_NUMBER: Final = r"[`'\"(\[=:]*\s*(\d[\d,_]{0,15})"
_LIMIT: Final = re.compile(
    r"max(?:imum)?[_ ]?(?:new|completion|output|generated)?[_ ]?tokens"
    r"|max_?token_?(?:s|count)|max_gen_len|num_predict|(?:completion|output) (?:tokens?|length)"
)
"""How the answer's limit is called."""
_ABOUT_OUTPUT: Final = re.compile(rf"{_LIMIT.pattern}|completion|output|prediction|requested(?! tokens)")
_BOUND: Final = re.compile(
    r"(?:less (?:than )?or equal to|<=|≤|at most|no (?:more|greater|larger) than|(?:less|lower|smaller) than"
    r"|not (?:be )?(?:greater|larger|more) than|not exceed|below|up to|>(?!=)|\[\s*\d+\s*,|\d and"
    r"|inclusive\)? (?:to|and)"
    rf"|(?:exceeds?|maximum|max|limit(?:ed)?)\b[^\d\n]{{0,60}}?)\s*{_NUMBER}"
)
"""What a limit may be at most."""
_TOO_MUCH: Final = re.compile(
    r"too (?:large|high|big|many|long)|exceed|above|(?<!must be )greater than|limited|out of range"
)
_TOO_SMALL: Final = re.compile(
    r"(?:must|should) be (?:greater|larger|more) than|at least|minimum|>=|too (?:small|low)"
)
_ALONE: Final = re.compile(r"(?<![\w.:/-])(\d[\d,]{0,15})(?![\w-]|\.\d)")

_SUM: Final = re.compile(r"(\d{1,15})\s*\+\s*\d+\s*>\s*(\d{1,15})")
_WINDOW: Final = re.compile(
    r"(?:(?:context[ _-]?(?:length|window|size|limit)|max\w{0,20}[^\d\n]{0,20} sequence length)[^\d\n]{0,60}?"
    r"|(?:max_model_len|max_seq_len|max_total_tokens|model length|model token limit)[^\d\n]{0,40}?"
    r"|tokens \+ [`'\"]?max_new_tokens[^\d\n]{0,40}?|total number of tokens[^\d\n]{0,60}?|while limit is)"
    rf"\s*{_NUMBER}"
)
_PROMPT: Final = re.compile(
    r"(\d[\d,]{0,15}) (?:[`'\"]?inputs?[`'\"]? tokens|prompt tokens|(?:tokens )?(?:from the|of \w+) input"
    r"|(?:tokens )?in (?:the|your) (?:messages|prompt|functions|tools|input))"
    rf"|input_tokens{_NUMBER}"
)
_PROMPT_LENGTH: Final = re.compile(rf"\bprompt(?:[ _](?:length|tokens|has|is))?\s*{_NUMBER}\b(?! characters)")
_TOTAL: Final = re.compile(
    rf"(?:requested|received|current length is|a total of|tokens)(?: about)?\s*{_NUMBER}"
)
_AFFORDABLE: Final = re.compile(rf"can only afford\s*{_NUMBER}")
_PER_MINUTE: Final = re.compile(rf"limit\s*{_NUMBER}[^\n]{{0,40}}?requested\s*{_NUMBER}")
_WITHOUT_NUMBERS: Final = re.compile(
    r"(?:messages|prompt|input)(?: length)?,? (?:or|and) (?:the )?(?:completion|output)"
)

_CONTEXT: Final = r"context[ _-]?(?:length|window|size|limit)"
_PHRASES: Final = (
    r"(?:prompt|inputs?|messages?|request|entity|string|payload)\b[^\n]{0,60}?\btoo (?:long|large|big)\b",
    r"(?:prompt|inputs?|messages?)\b[^\n]{0,60}?exceed",
    r"(?:prompt|inputs?)\b[^\n]{0,20}?must have less than",
    rf"(?:exceed\w{{0,80}}|reached|configured)[^\n]{{0,80}}{_CONTEXT}",
    rf"{_CONTEXT}[^\n]{{0,60}}(?:exceed|is only)",
    r"(?:maximum|max)[ _](?:context|prompt|input|model)[ _](?:length|size|window|tokens)",
    r"max\w{0,20}[^\n]{0,20} sequence length",
    r"(?:longer|larger|greater|more) than the (?:model'?s? )?(?:maximum |context )",
    r"\b(?:conversation|chat)\b[^\n]{0,20}?\btoo (?:long|large|big)\b|\bshorten (?:the|your)\b",
    r"\b(?:sequence length|token count|tokens)\b[^\n]{0,40}?exceed[^\n]{0,20}\b(?:context|model'?s? max)",
    r"\btokens\b[^\n]{0,40}?(?:more|larger) than[^\n]{0,20}\b(?:context|model'?s? limit)",
    r"\bprompt\b[^\n]{0,40}?\blimit(?: is| of)?:? \d|context overflow|\bn_ctx\b",
    r"context the overflows|exceed_context|model token limit|token limit exceeded|string_above_max_length",
    r"tokens in request more than",
    r"range of input length|too many (?:input )?tokens(?!: max tokens|, please wait)",
    r"reduce (?:the length of )?(?:the|your) (?:prompt|messages?|input)\b",
    r"total number of tokens[^\n]{0,60}exceed|tokens \+ [`'\"]?max_new_tokens",
)
_TOO_LONG: Final = re.compile("|".join(_PHRASES))


class Refusal(NamedTuple):
    """An endpoint's refusal of a limit, and what there is to learn from it."""

    limit: int
    """With how many tokens to ask next."""
    is_cap: bool = False
    """Whether the limit is too large for every prompt."""
    is_guess: bool = False
    """Whether the words do not say plainly what the limit may be."""
    window: int | None = None
    """How many tokens prompt and answer may have together, where it says so."""
    prompt: int | None = None
    """How many the prompt has, where it says so."""


class _Window(NamedTuple):
    tokens: int
    prompt_tokens: int
    prompt_characters: int


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What an endpoint's refusals say of a model's limits."""

    cap: int | None = None
    is_guess: bool = False
    """Whether the cap may have been misread."""
    _window: _Window | None = None

    def fit(self, wanted: int, prompt_characters: int) -> int:
        """Return the limit to ask with: as much of what is wanted as a prompt of that length leaves room for.

        The prompt's tokens are reckoned by the longest prompt of which they are known. Where that leaves no
        room, it may be wrong, and the endpoint is asked.
        """
        limit = min(wanted, self.cap or wanted)
        if self._window is None:
            return limit
        tokens, known_tokens, known_characters = self._window
        share = known_tokens / max(known_characters, 1)
        if prompt_characters > known_characters:
            share = min(share, 1 / _CHARACTERS_PER_TOKEN)
        more = (prompt_characters - known_characters) * share
        template = _TEMPLATE_TOKENS if more < 0 else 0
        room = tokens - known_tokens - round(more) - template
        return min(limit, room) if room >= _min_tokens(wanted) else limit

    def learn(self, refusal: Refusal, prompt_characters: int) -> "TokenLimits":
        """Return what is known after a refusal; nothing that holds for that prompt alone."""
        if refusal.is_cap:
            return replace(self, cap=refusal.limit, is_guess=refusal.is_guess)
        if refusal.window is None:
            return self
        old = self._window
        if old is not None and old.tokens == refusal.window and old.prompt_characters > prompt_characters:
            return self
        prompt = prompt_characters // _CHARACTERS_PER_TOKEN if refusal.prompt is None else refusal.prompt
        return replace(self, _window=_Window(refusal.window, prompt, prompt_characters))


def is_too_long(words: str) -> bool:
    """Return whether an error says that a prompt is too long, not that a rate was exceeded."""
    return _TOO_LONG.search(words) is not None and not PER_TIME.search(words)


def refusal(words: str, sent: int, wanted: int) -> Refusal | None:
    """Read the refusal of a limit out of an error's words, as `error_body.words` gives them.

    `sent` is the limit that was refused, `wanted` what it was before it was ever lowered. None: the words are
    about something else, or the limit cannot be lowered any more.
    """
    if PER_TIME.search(words):
        found = _PER_MINUTE.search(words)
        if found is None or (requested := _int(found[2])) <= (most := _int(found[1])):
            return None
        return _shrink_to_fit(most, requested - sent if requested > sent else None, sent, wanted)
    if not _ABOUT_OUTPUT.search(words) or THINKING_EXHAUSTED.search(words):
        return None
    if found := _AFFORDABLE.search(words):
        # For now, of what is left of the account: it says nothing of the next call.
        return Refusal(_int(found[1])) if _min_tokens(wanted) <= _int(found[1]) < sent else None
    if added := _SUM.search(words):
        return _shrink_to_fit(_int(added[2]), _int(added[1]), sent, wanted)
    if found := _WINDOW.search(words):
        return _shrink_to_fit(_int(found[1]), _prompt_tokens(words, sent), sent, wanted)
    is_about_limit = _LIMIT.search(words) is not None
    if is_about_limit and (cap := _named_cap(words, sent)):
        return Refusal(cap, is_cap=True)
    if is_too_long(words):
        return _shrink_to_fit(None, None, sent, wanted) if _WITHOUT_NUMBERS.search(words) else None
    if is_about_limit and _TOO_MUCH.search(words) and sent >= 2 * _LEAST_CAP:
        return Refusal(_other_number(words, sent) or sent // 2, is_cap=True, is_guess=True)
    return None


def guess(words: str, sent: int) -> Refusal | None:
    """Guess that a rejection which names the limit, and is about nothing else, refuses it as too large."""
    if not _LIMIT.search(words) or _TOO_SMALL.search(words) or is_too_long(words):
        return None
    if THINKING_EXHAUSTED.search(words):
        return None
    if sent < 2 * _LEAST_CAP:
        return None
    return Refusal(_other_number(words, sent) or sent // 2, is_cap=True, is_guess=True)


def _min_tokens(wanted: int) -> int:
    return max(min(LEAST, wanted // _LEAST_SHARE), 1)


def _shrink_to_fit(window: int | None, prompt: int | None, sent: int, wanted: int) -> Refusal | None:
    least = _min_tokens(wanted)
    room = window - prompt if window is not None and prompt is not None else None
    if sent <= least or (room is not None and room < least):
        return None
    if room is None or room >= sent:
        return Refusal(max(sent // 2, least), window=window)
    return Refusal(room, window=window, prompt=prompt)


def _prompt_tokens(words: str, sent: int) -> int | None:
    for line in words.splitlines():
        if found := [_int(match[1] or match[2]) for match in _PROMPT.finditer(line)]:
            # Such a count ends where the prompt is known to be too long: it says little of a shorter limit.
            return None if "at least" in line else sum(found)
    if found_alone := _PROMPT_LENGTH.search(words):
        return _int(found_alone[1])
    total = max((_int(match[1]) for match in _TOTAL.finditer(words)), default=0)
    return total - sent if total > sent else None


def _named_cap(words: str, sent: int) -> int | None:
    named = [_int(match[1]) for match in _BOUND.finditer(words)]
    return max((number for number in named if _LEAST_CAP <= number < sent), default=None)


def _other_number(words: str, sent: int) -> int | None:
    """Return the greatest number in a sentence about the limit that may be what it is to be."""
    lines = filter(_LIMIT.search, words.splitlines())
    numbers = [_int(match[1]) for line in lines for match in _ALONE.finditer(line)]
    return max((number for number in numbers if LEAST <= number < sent), default=None)


def _int(digits: str) -> int:
    return int(digits.replace(",", "").replace("_", "") or 0)
