"""What a refusal's words change in how a model is asked."""

import pytest

from orchestrator.core.prompts import Message, Prompt
from orchestrator.models.http.structured import Dialect

SENT = {
    "model": "m",
    "messages": [{"role": "system", "content": "You work."}, {"role": "user", "content": "Hi"}],
    "max_tokens": 500,
    "stream": True,
}
PLANNING = {**SENT, "response_format": {"type": "json_schema"}}


@pytest.mark.parametrize(
    "words",
    [
        "system role not supported",
        "system role is not supported",
        "developer instruction is not enabled for models/gemma-3-27b-it",
        "conversation roles must alternate user/assistant/user/assistant/...",
        "system messages are not supported by this model",
        "this model does not support system messages",
        "system prompts aren't allowed: this model doesn't accept a system prompt",
        "unsupported role: system",
        "invalid role: system",
        "only user and assistant roles are supported!",
        "'system' is not one of ['user', 'assistant'] - 'messages.0.role'",
        "messages.0.role\ninput should be 'user' or 'assistant'",
        "role 'system' is not supported",
    ],
)
@pytest.mark.parametrize("is_rejection", [True, False])
def test_for_a_model_without_a_system_role_the_system_text_moves_to_the_user_message(
    words: str, is_rejection: bool
) -> None:
    changed = Dialect().after_rejection(words, SENT, is_rejection=is_rejection)
    assert changed == Dialect(has_system_role=False)
    messages = (
        Message("system", "You work."),
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
    )
    assert changed.adapt(Prompt("work", messages)).messages == (
        Message("user", "You work.\n\na"),
        Message("assistant", "b"),
        Message("user", "c"),
    )
    without = {**SENT, "messages": SENT["messages"][1:]}  # type: ignore[index]
    assert changed.after_rejection(words, without, is_rejection=is_rejection) is None


@pytest.mark.parametrize(
    "words",
    [
        "invalid value: 'system'. supported values are: 'user' and 'assistant'.",
        "unsupported value: 'messages[0].role' does not support 'system' with this model.",
        "first message must use the 'user' role",
        "the first message must be from user",
        "no system prompt allowed",
        "systeminstruction is not supported",
        "roles other than user and assistant are not supported",
        "extra inputs are not permitted: system",
    ],
)
def test_a_rejection_that_may_be_about_the_system_role_is_tried_without_it(words: str) -> None:
    assert Dialect().after_rejection(words, SENT) == Dialect(has_system_role=False)
    assert Dialect().after_rejection(words, SENT, is_rejection=False) is None


@pytest.mark.parametrize(
    "words",
    [
        "json mode is not enabled for this model",
        "guided_json is not supported",
        "constrained decoding unavailable",
        "function calling with a response mime type: 'application/json' is unsupported",
        "outlines: could not build fsm",
    ],
)
def test_a_rejection_that_may_be_about_the_format_moves_to_the_next_rung(words: str) -> None:
    assert Dialect().after_rejection(words, PLANNING) == Dialect(json_modes=("json_object", "prompt"))


@pytest.mark.parametrize(
    "words",
    [
        "failed to parse grammar",
        "gbnf parse error",
        "unable to compile regex from schema",
        "llguidance error: unsupported",
        "failed to initialize samplers: failed to parse grammar",
        "failed to compile grammar for this schema",
        "unsupported schema: minitems",
        "json_schema is not supported",
        "json schema conversion failed",
    ],
)
@pytest.mark.parametrize("is_rejection", [True, False])
def test_a_format_that_fails_is_replaced_by_the_next_rung(words: str, is_rejection: bool) -> None:
    changed = Dialect().after_rejection(words, PLANNING, is_rejection=is_rejection)
    assert changed == Dialect(json_modes=("json_object", "prompt"))
    assert Dialect().after_rejection(words, SENT, is_rejection=is_rejection) is None


@pytest.mark.parametrize(
    "words",
    [
        "the stream was closed",
        "max_completion_tokens",
        "the system is not available",
        "busy: try the schedule",
    ],
)
def test_an_error_other_than_a_rejection_changes_nothing_unless_its_meaning_is_certain(words: str) -> None:
    assert Dialect().after_rejection(words, PLANNING, is_rejection=False) is None
