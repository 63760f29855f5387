"""The wait that an endpoint asks for, in every notation."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from orchestrator.models.http.waits import requested_wait_s

DATE = "Mon, 01 Jan 2024 00:00:00 GMT"
DATE_S = 1_704_067_200


def wait_s(body: Any = "", **headers: str) -> float | None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requested_wait_s(httpx.Headers(named), json.dumps(body).encode())


def wait_in_message_s(message: str) -> float | None:
    return wait_s({"error": {"message": message, "code": 429}})


RETRY_INFO = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota.",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaValue": "10"}]},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2s"},
        ],
    }
}


def test_retry_info_is_parsed_in_a_list_or_a_string_too() -> None:
    assert wait_s(RETRY_INFO) == 2
    assert wait_s([RETRY_INFO]) == 2
    assert wait_s({"error": {"message": json.dumps(RETRY_INFO), "code": 429}}) == 2


@pytest.mark.parametrize(
    ("field", "expected_s"),
    [
        ({"retryDelay": "1.5s"}, 1.5),
        ({"retryDelay": "500ms"}, 0.5),
        ({"retryDelay": "34.074824224s"}, 34.074824224),
        ({"retry_after": 3}, 3),
        ({"retry_after_seconds": "3"}, 3),
        ({"retry_after_ms": 250}, 0.25),
        ({"retry_after_secs": 3}, 3),
        ({"retry_in": "3s"}, 3),
        ({"retryDelay": "soon"}, None),
    ],
)
def test_a_field_with_a_wait_is_parsed(field: dict[str, object], expected_s: float | None) -> None:
    assert wait_s({"error": field}) == expected_s


@pytest.mark.parametrize(
    ("words", "expected_s"),
    [
        ("Please try again in 1.2s. Visit https://platform.openai.com to learn more.", 1.2),
        ("Please try again in 20ms.", 0.02),
        ("Please try again in 1m30.5s.", 90.5),
        ("Please try again in 7m12s", 432),
        ("Please try again in 1h2m3s.", 3723),
        ("Please try again in 2 hours and 5 minutes", 7500),
        ("Please retry after 3 seconds.", 3),
        ("Please retry after 60 seconds. To increase your limits, see 7 pages", 60),
        ("Please retry in 34.5s.", 34.5),
        ("Rate limit: wait 5 minutes", 300),
        ("Retry after 30", 30),
        ("Too fast: back off for 3s", 3),
        ("cool down: 5s", 5),
        ("next request allowed in 4s", 4),
        ("quota will reset after 2h", 7200),
        ("Limit 30000, Used 29937, Requested 385", None),
        ("try again later, see page 12", None),
        ("try again in a while, 3 models are busy", None),
    ],
)
def test_words_that_name_a_wait_are_parsed(words: str, expected_s: float | None) -> None:
    assert wait_in_message_s(words) == (None if expected_s is None else pytest.approx(expected_s))


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1h2m3s", 3723),
        ("12.5", 12.5),
        (str(DATE_S + 9), 9),
        (str((DATE_S + 9) * 1000), 9),
        ("2024-01-01T00:00:09Z", 9),
        ("Mon, 01 Jan 2024 00:00:09 GMT", 9),
        (str(DATE_S - 9), 0),
        ("soon", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("name", ["x-ratelimit-reset-requests", "anthropic-ratelimit-input-tokens-reset"])
def test_the_reset_time_of_a_limit_is_parsed(name: str, value: str, expected_s: float | None) -> None:
    headers = {name: value, "Date": DATE}
    assert wait_s(**headers) == expected_s
    exhausted = {**headers, name.replace("reset", "remaining"): "0"}
    assert wait_s(**exhausted) == expected_s


def test_only_exhausted_limits_cause_a_wait() -> None:
    headers = {"x-ratelimit-reset-requests": "6m0s", "x-ratelimit-reset-tokens": "2s"}
    assert (
        wait_s(**headers, **{"x-ratelimit-remaining-requests": "99", "x-ratelimit-remaining-tokens": "0"})
        == 2
    )
    assert (
        wait_s(**headers, **{"x-ratelimit-remaining-requests": "0", "x-ratelimit-remaining-tokens": "0"})
        == 360
    )
    assert (
        wait_s(**headers, **{"x-ratelimit-remaining-requests": "9", "x-ratelimit-remaining-tokens": "9"})
        is None
    )
    assert wait_s(**headers) == 2


def test_headers_repeated_in_the_body_by_a_gateway_are_parsed() -> None:
    reset_ms = round((time.time() + 60) * 1000)
    headers = {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(reset_ms)}
    body = {"error": {"code": 429, "message": "Rate limit exceeded", "metadata": {"headers": headers}}}
    assert wait_s(body) == pytest.approx(60, abs=5)


def test_the_retry_after_header_takes_precedence_then_the_body_and_then_other_headers() -> None:
    spoken = {"error": {"message": "try again in 3s"}}
    fielded = {"error": {"message": "try again in 3s", "retryDelay": "2s"}}
    reset = {"x-ratelimit-reset-tokens": "4s", "x-ratelimit-remaining-tokens": "0"}
    assert wait_s(fielded, Retry_After="1", **reset) == 1
    assert wait_s(fielded, Retry_After="soon", **reset) == 2
    assert wait_s(spoken, **reset) == 3
    assert wait_s("no", **reset) == 4


def test_an_iso_date_is_measured_by_the_local_clock_where_the_endpoint_sends_none() -> None:
    moment = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    assert wait_s(Retry_After=moment) == pytest.approx(60, abs=5)


@pytest.mark.parametrize(
    ("name", "value", "expected_s"),
    [
        ("X-Ms-Retry-After-Ms", "2000", 2),
        ("X-Retry-After", "3", 3),
        ("X-RateLimit-Retry-After", "3", 3),
        ("X-Rate-Limit-Reset", "4", 4),
        ("X-Rate-Limit-Reset-After", "4", 4),
        ("RateLimit", "limit=10, remaining=0, reset=4", 4),
        ("RateLimit", '"default";r=0;t=4', 4),
        ("RateLimit-Policy", '"default";q=100;w=10', None),
    ],
)
def test_other_headers_that_name_a_wait_are_parsed(name: str, value: str, expected_s: float | None) -> None:
    assert requested_wait_s({name: value}, b"") == expected_s
