"""Limits of tokens, read from what endpoints really say when they refuse one."""

import json
import re

import pytest
from support.refusals import CAPS, NO_ROOM, OTHERS, RATES, TOO_LONG, WINDOWS, WITHOUT_NUMBERS

from orchestrator.models.http import token_limits
from orchestrator.models.http.error_body import words
from orchestrator.models.http.token_limits import LEAST, Refusal, TokenLimits, is_too_long, refusal


def rejection_text(message: str) -> str:
    return words(json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode())


def read(message: str, sent: int = 8192) -> Refusal:
    found = refusal(rejection_text(message), sent, 8192)
    assert found is not None
    return found


@pytest.mark.parametrize(("message", "cap"), CAPS)
def test_a_cap_is_parsed_from_every_known_wording(message: str, cap: int) -> None:
    assert read(message)._replace(is_guess=False) == Refusal(cap, is_cap=True)


def test_a_cap_is_parsed_from_a_validation_error_with_a_separate_parameter_name() -> None:
    fault = {
        "loc": ["body", "max_tokens"],
        "msg": "Input should be less than or equal to 4096",
        "input": 8192,
    }
    body = json.dumps({"detail": [fault]}).encode()
    assert refusal(words(body), 8192, 8192) == Refusal(4096, is_cap=True)


@pytest.mark.parametrize(("message", "window", "prompt"), WINDOWS)
def test_where_prompt_and_limit_exceed_a_window_the_limit_becomes_the_rest(
    message: str, window: int, prompt: int
) -> None:
    assert read(message) == Refusal(window - prompt, window=window, prompt=prompt)


@pytest.mark.parametrize("message", WITHOUT_NUMBERS)
def test_a_limit_that_cannot_be_parsed_is_halved(message: str) -> None:
    assert read(message).limit == 4096


@pytest.mark.parametrize("message", NO_ROOM)
def test_a_window_without_room_for_an_answer_makes_the_prompt_too_long(message: str) -> None:
    assert refusal(rejection_text(message), 8192, 8192) is None
    assert is_too_long(rejection_text(message))


def test_a_limit_is_lowered_to_the_minimum_and_no_further() -> None:
    message = "Please reduce the length of the messages or completion."
    limits = [8192]
    while found := refusal(rejection_text(message), limits[-1], 8192):
        limits.append(found.limit)
    assert limits == [8192, 4096, 2048, 1024, LEAST]
    assert refusal(rejection_text(message), 100, 400) is None


@pytest.mark.parametrize(("sent", "limit"), [(500, 250), (250, 125)])
def test_where_few_tokens_are_wanted_the_minimum_is_lower(sent: int, limit: int) -> None:
    found = refusal(rejection_text("Please reduce the length of the messages or completion."), sent, 500)
    assert found == Refusal(limit)


def test_no_limit_becomes_zero() -> None:
    assert refusal(rejection_text("Please reduce the length of the messages or completion."), 1, 1) is None
    assert refusal(
        rejection_text("Please reduce the length of the messages or completion."), 3, 3
    ) == Refusal(1)


def test_a_cap_that_is_not_named_is_searched_by_halving() -> None:
    assert refusal(rejection_text("max_tokens is too large"), 500, 8192) == Refusal(
        250, is_cap=True, is_guess=True
    )
    assert refusal(rejection_text("max_tokens is too large"), 16, 8192) is None


@pytest.mark.parametrize("message", TOO_LONG)
def test_a_prompt_that_is_too_long_is_recognised_in_every_dialect(message: str) -> None:
    assert is_too_long(rejection_text(message))
    assert refusal(rejection_text(message), 8192, 8192) is None


@pytest.mark.parametrize("message", [*OTHERS, *RATES])
def test_errors_about_other_things_do_not_lower_a_limit(message: str) -> None:
    assert refusal(rejection_text(message), 8192, 8192) is None
    assert not is_too_long(rejection_text(message))


def test_the_tokens_that_an_account_can_afford_are_requested_and_not_remembered() -> None:
    found = read(
        "more credits, or fewer max_tokens. You requested up to 8192 tokens, but can only afford 6513."
    )
    assert found.limit == 6513
    assert TokenLimits().learn(found, 100) == TokenLimits()


def test_messages_in_strings_or_lists_are_parsed_too() -> None:
    inner = json.dumps({"error": {"message": "max_tokens: 8192 > 4096, which is the maximum"}})
    body = [{"error": {"message": "Provider returned error", "code": 400, "metadata": {"raw": inner}}}]
    assert refusal(words(json.dumps(body).encode()), 8192, 8192) == Refusal(4096, is_cap=True)


def test_text_of_the_model_is_not_parsed() -> None:
    text = "max_tokens is too large: prompt is too long"
    body = json.dumps({"error": {"code": "json_validate_failed", "failed_generation": text}}).encode()
    assert refusal(words(body), 8192, 8192) is None
    assert not is_too_long(words(body))


WINDOW = (
    "This model's context length is 8192 tokens and your request has {} input tokens: max_tokens is too large"
)


def learnt(message: str, characters: int) -> TokenLimits:
    return TokenLimits().learn(read(message), characters)


def test_a_cap_applies_to_every_prompt() -> None:
    known = learnt("max_tokens: 8192 > 4096, which is the maximum", 100)
    assert [known.fit(8192, 1), known.fit(8192, 10**6), known.fit(1000, 1)] == [4096, 4096, 1000]


def test_the_room_left_by_a_long_prompt_is_no_cap_for_a_short_one() -> None:
    known = learnt(WINDOW.format(6000), 24_000)
    assert known.fit(8192, 24_000) == 2192
    assert known.fit(8192, 400) > 7900
    assert known.fit(8192, 12_000) in range(5000, 5193)


def test_the_room_left_by_a_short_prompt_bounds_a_longer_one() -> None:
    known = learnt(WINDOW.format(300), 40)
    assert known.fit(8192, 40) == 7892
    assert known.fit(8192, 16_040) == 3892
    assert known.fit(8192, 10**6) == 8192  # the endpoint knows better


def test_the_longest_prompt_sets_the_estimate() -> None:
    known = learnt(WINDOW.format(6000), 24_000)
    assert known.learn(read(WINDOW.format(300)), 40) == known


@pytest.mark.parametrize("pattern", [token_limits._WINDOW, token_limits._TOO_LONG])
def test_a_long_word_is_not_searched_repeatedly(pattern: re.Pattern[str]) -> None:
    assert r"\w*" not in pattern.pattern
