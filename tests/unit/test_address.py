"""An endpoint's address, as people set it."""

import pytest

from orchestrator.errors import SettingsError
from orchestrator.models.http.address import Address

ENDINGS = ("chat/completions", "completions", "responses")
URL = "chat/completions"


@pytest.mark.parametrize(
    ("text", "called"),
    [
        ("https://h/v1", "https://h/v1/chat/completions"),
        ("https://h/v1/", "https://h/v1/chat/completions"),
        ("  https://h/v1\n", "https://h/v1/chat/completions"),
        ("HTTPS://H/V1", "https://h/V1/chat/completions"),
        ("http://h:8000", "http://h:8000/chat/completions"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1/chat/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
        ("https://h/v1/chat/completions/", "https://h/v1/chat/completions"),
        ("https://h/v1/completions", "https://h/v1/chat/completions"),
        ("https://h/v1/responses", "https://h/v1/chat/completions"),
        ("https://h/models", "https://h/models/chat/completions"),
        ("https://h/v1?a=b&c", "https://h/v1/chat/completions?a=b&c"),
        (
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
        ),
        ("https://user:pw@h/v1", "https://h/v1/chat/completions"),
        ("https://h/@cf/v1", "https://h/@cf/v1/chat/completions"),
    ],
)
def test_an_address_is_called_below_its_path_and_before_its_query(text: str, called: str) -> None:
    assert Address.parse(text, endings=ENDINGS).url(URL) == called


@pytest.mark.parametrize(
    ("text", "authorization"),
    [
        ("http://user:pass@h", "Basic dXNlcjpwYXNz"),
        ("http://user:p%40%2Fs%23@h", "Basic dXNlcjpwQC9zIw=="),
        ("http://token@h", "Basic dG9rZW46"),
        ("http://h", ""),
    ],
)
def test_a_login_becomes_basic_auth(text: str, authorization: str) -> None:
    assert Address.parse(text).authorization == authorization


@pytest.mark.parametrize(
    "text", ["https://user:hunter2xyz@h/v1?key=hunter2xyz&api-version=3", "https://hunter2xyz@h/v1"]
)
def test_an_address_is_shown_without_its_secrets(text: str) -> None:
    address = Address.parse(text)
    assert "hunter2xyz" not in repr(address) + address.shown(URL) + address.base
    assert "hunter2xyz" in address.secrets
    if "?" in text:
        assert address.shown(URL) == "https://h/v1/chat/completions?key=***&api-version=3"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("localhost:1234/v1", "begin with http:// or https://: did you mean http://localhost:1234/v1?"),
        ("127.0.0.1:8000", "did you mean http://127.0.0.1:8000?"),
        ("api.example.com/v1", "did you mean https://api.example.com/v1?"),
        ("//api.example.com/v1", "did you mean https://api.example.com/v1?"),
        ("box", "did you mean http://box?"),
        ("ftp://h/v1", "must begin with http:// or https://"),
        ("http:/h/v1", "must begin with http:// or https://"),
        ("htps://h/v1", "must begin with http:// or https://"),
        ("http://", "must begin with http:// or https://"),
        ('"http://h/v1"', "leave out the quotes"),
        ("http://h/ v1", "leave out the white space"),
        ("http://h/v1\nhttp://i", "leave out the white space"),
        ("http://h/v1\x00", "leave out the white space"),
        ("http://h/v1#top", "leave out what begins with #"),
        ("http://h:99999/v1", "as in https://host:443/v1"),
        ("http://a:b:c", "as in https://host:443/v1"),
        ("http://[::1/v1", "as in https://host:443/v1"),
        ("http://h:0/v1", "nothing listens on port 0"),
    ],
)
def test_an_invalid_address_is_rejected_with_the_mend(text: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Address.parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "http://user:hunter#2@h/v1",
        "http://user:12/hunter@h/v1",
        "http://user:hunter/2@h/v1",
        "http://user:12?hunter@h/v1",
        "http://user:hunter 2@h/v1",
        "user:hunter@h/v1",
        "'http://user:hunter@h/v1'",
        "http://user:hunter@h:99999/v1",
        "h/v1?key=hunter",
        "h/v1#hunter",
    ],
)
def test_a_rejected_address_is_shown_without_possible_secrets(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Address.parse(text)
    assert "hunter" not in str(caught.value)
    assert "h" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "suggested"),
    [
        ("http://localhost:1234", "http://localhost:1234/v1"),
        ("http://h/api", "http://h/api/v1"),
        ("http://h/v1", ""),
        ("http://h/openai/v1", ""),
        ("http://h/v1beta/openai", ""),
        ("https://r.openai.azure.com/openai/deployments/d", ""),
    ],
)
def test_only_an_address_without_a_version_may_lack_one(text: str, suggested: str) -> None:
    assert Address.parse(text).with_version == suggested
