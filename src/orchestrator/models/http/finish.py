"""Why models stop, in the words of all APIs: the one place where a reason to stop is sorted.

Spelling is not looked at: `MAX_TOKENS`, `max-tokens` and `maxTokens` are one word. What stands behind a colon
is the endpoint's comment, as in Gemini's `content_filter: RECITATION`.
"""

import re
from collections.abc import Mapping
from typing import Final

from orchestrator.core.replies import Finish

_TOOL: Final = ("tool_use", "tool_call", "tool_calls", "function_call", "function_calls")
_NORMAL: Final = (
    *("stop", "stop_sequence", "stop_string", "stop_string_found", "stop_token", "stop_word", "stop_words"),
    *("stop_criteria_met", "end", "end_turn", "end_of_turn", "end_of_text", "end_of_sequence", "end_id"),
    *("eos", "eos_token", "eos_token_id", "eos_found", "eot", "eot_id", "done", "complete", "completed"),
    *("finish", "finished", "natural", "normal"),
)
_CUT: Final = (
    *("length", "limit", "truncated", "token_limit", "token_limit_reached", "token_limit_exceeded"),
    *("max_token", "max_tokens", "max_tokens_reached", "max_tokens_exceeded", "maximum_tokens"),
    *("max_output_tokens", "max_output_length", "max_completion_tokens", "max_new_tokens", "max_gen_tokens"),
    *("max_generation_tokens", "max_predicted_tokens_reached", "max_len", "max_length", "maximum_length"),
    *("length_limit", "length_reached", "length_capped", "output_limit", "output_length", "error_limit"),
    *("model_length", "model_max_length", "max_model_len", "max_context", "max_context_length"),
    *("context_length", "context_length_reached", "context_length_exceeded", "context_limit"),
    *("context_window", "context_window_exceeded", "model_context_window_exceeded"),
)
_FILTERED: Final = (
    *("content_filter", "content_filtered", "content_policy", "content_policy_violation", "content_blocked"),
    *("content_moderation", "filter", "filtered", "blocked", "moderation", "moderated", "policy_violation"),
    *("refusal", "refused", "guardrail", "guardrails", "guardrail_intervened", "guardrail_triggered"),
    *("safety", "safety_filter", "recitation", "blocklist", "prohibited_content", "spii", "model_armor"),
    *("jailbreak", "image_safety", "image_prohibited_content", "image_recitation", "sensitive"),
    *("error_toxic", "toxic", "toxicity"),
)


def _normalized(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower()).removeprefix("finishreason").removeprefix("stopreason")


_FINISHES: Final[Mapping[str, Finish]] = {
    _normalized(word): finish
    for finish, words in (
        (Finish.NORMAL, (*_TOOL, *_NORMAL)),
        (Finish.CUT, _CUT),
        (Finish.FILTERED, _FILTERED),
    )
    for word in words
}
_PATTERNS: Final = (
    (
        Finish.CUT,
        re.compile("max.*(?:token|len)|token.*limit|limit.*token|context.*(?:len|limit|window|overflow)"),
    ),
    (Finish.CUT, re.compile("length.*(?:limit|cap|exceed|reached)|(?:limit|exceed|reached).*length|maxout")),
    (
        Finish.FILTERED,
        re.compile("content.*(?:filter|polic|block)|safety|guardrail|moderat|prohibited|refus"),
    ),
)
"""How words that are not listed are recognised: there are more names of the two than any list holds."""
_MAX_REASON_CHARACTERS: Final = 200
"""Characters of a reason that are read."""
_TOOL_CALLS: Final = frozenset(map(_normalized, _TOOL))


def reason_of(value: object) -> str:
    """Return the reason to stop that an answer or an event gives; empty: it gives none."""
    if isinstance(value, Mapping):
        value = value.get("type")
    reason = "" if value is None else str(value)[:_MAX_REASON_CHARACTERS].strip()
    return "" if reason.lower() in ("null", "none") else reason


def finish_of(reason: str, *, may_call_tool: bool = True) -> Finish:
    """Return what a reason to stop means; none at all is a normal one.

    A model that stops to call a tool has said all only where it may call one.
    """
    if not reason:
        return Finish.NORMAL
    word = _normalized(reason.partition(":")[0])
    if word in _TOOL_CALLS and not may_call_tool:
        return Finish.FAILED
    if word in _FINISHES:
        return _FINISHES[word]
    return next((finish for finish, pattern in _PATTERNS if pattern.search(word)), Finish.FAILED)
