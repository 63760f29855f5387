import pytest

from orchestrator.models.http import scope

ORGANIZATION = "this request would exceed your organization's rate limit of 40,000 input tokens per minute."
NAMED = "rate limit reached for gpt-4o in organization org-x on requests per min (rpm): limit 3."


@pytest.mark.parametrize(
    ("words", "is_shared"),
    [
        ("", False),
        ("too many requests", False),
        (NAMED, False),
        ("rate limit reached for model `big` in organization `org_1`", False),
        ("quota exceeded\ngeneraterequestsperdayperprojectpermodel-freetier", False),
        ("rate limited. upgrade your account for higher limits", False),
        ("slow down: see https://host/account/rate-limits", False),
        (ORGANIZATION, True),
        ("4006: account limited: you have used up your daily free allocation", True),
        ("rate limit exceeded for this key", True),
        ("the project's quota is exceeded", True),
        ("gpt-4o: the limit of all models is reached", True),
    ],
)
def test_a_limit_is_shared_where_the_endpoint_names_its_owner_and_no_model(
    words: str, is_shared: bool
) -> None:
    assert scope.is_shared_limit(words, "gpt-4o") is is_shared


@pytest.mark.parametrize(
    ("status", "words", "is_shared"),
    [
        (500, "internal error", False),
        (529, "overloaded", False),
        (503, "the model is overloaded. please try again later.", False),
        (503, "gpt-4o is loading", False),
        (503, "server busy, please try again. maximum pending requests exceeded", True),
        (502, "", True),
        (504, "upstream request timeout", True),
        (529, "high load on all models", True),
    ],
)
def test_a_fault_is_shared_where_it_is_the_hosts(status: int, words: str, is_shared: bool) -> None:
    assert scope.is_shared_fault(status, words, "gpt-4o") is is_shared
