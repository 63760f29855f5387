"""Every API's reasons to stop, sorted."""

import pytest

from orchestrator.core.replies import Finish
from orchestrator.models.http.finish import finish_of, reason_of

NORMAL = [
    "stop",
    "STOP",
    "FINISH_REASON_STOP",
    "end_turn",
    "endTurn",
    "end-turn",
    "eos",
    "eos_token",
    "EOS_TOKEN",
    "eosFound",
    "stop_sequence",
    "STOP_SEQUENCE",
    "stopStringFound",
    "COMPLETE",
    "complete",
    "completed",
    "FINISHED",
    "finished",
    "tool_use",
    "tool_calls",
    "toolCalls",
    "function_call",
    "end_of_text",
]
CUT = [
    "length",
    "LENGTH",
    "max_tokens",
    "MAX_TOKENS",
    "FINISH_REASON_MAX_TOKENS",
    "maxTokens",
    "model_length",
    "max_output_tokens",
    "token_limit",
    "model_context_window_exceeded",
    "context_length",
    "contextLengthReached",
    "maxPredictedTokensReached",
    "max_length",
    "max_len",
    "ERROR_LIMIT",
    "max_tokens_limit_reached",
    "exceeded_max_tokens",
    "output_token_limit",
    "max_seq_len",
    "context_overflow",
    "lengthCapped",
]
FILTERED = [
    "safety_stop",
    "content_filtering",
    "azure_content_filter",
    "content_filter",
    "content-filter",
    "CONTENT_FILTERED",
    "SAFETY",
    "RECITATION",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "refusal",
    "guardrail_intervened",
    "sensitive",
    "ERROR_TOXIC",
    "IMAGE_SAFETY",
    "MODEL_ARMOR",
]
FAILED = [
    "error",
    "ERROR",
    "abort",
    "aborted",
    "cancelled",
    "USER_CANCEL",
    "insufficient_system_resource",
    "network_error",
    "timeout",
    "OTHER",
    "LANGUAGE",
    "pause_turn",
    "MALFORMED_FUNCTION_CALL",
    "malformed_model_output",
    "FINISH_REASON_UNSPECIFIED",
    "load",
    "unload",
    "nonstop",
    "stopped_short",
    "7",
]


@pytest.mark.parametrize(
    ("words", "finish"),
    [(NORMAL, Finish.NORMAL), (CUT, Finish.CUT), (FILTERED, Finish.FILTERED), (FAILED, Finish.FAILED)],
    ids=str,
)
def test_a_finish_reason_means_the_same_in_every_spelling(words: list[str], finish: Finish) -> None:
    assert {word: finish_of(word) for word in words} == dict.fromkeys(words, finish)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("content_filter: PROHIBITED_CONTENT", Finish.FILTERED),
        ("function_call_filter: MALFORMED_FUNCTION_CALL", Finish.FAILED),
    ],
)
def test_text_behind_a_colon_is_a_comment(reason: str, finish: Finish) -> None:
    assert finish_of(reason) is finish


def test_a_tool_call_is_a_normal_end_only_where_tools_are_allowed() -> None:
    assert {finish_of(word, may_call_tool=False) for word in ("tool_use", "tool_calls")} == {Finish.FAILED}
    assert finish_of("stop", may_call_tool=False) is Finish.NORMAL


@pytest.mark.parametrize("value", [None, "", " ", "null", "None", {}, {"type": None}])
def test_a_missing_reason_is_none_and_a_normal_end_once_the_stream_has_ended(value: object) -> None:
    assert reason_of(value) == ""
    assert finish_of("") is Finish.NORMAL


def test_a_reason_may_be_an_object_with_a_type() -> None:
    assert reason_of({"type": "length", "length": 9}) == "length"
