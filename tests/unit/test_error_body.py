"""What an endpoint says of an error is looked through as far as it matters."""

import json

import pytest

from orchestrator.models.http import error_body


def test_each_word_is_there_once_with_its_key_on_a_line_of_its_own() -> None:
    body = json.dumps({"error": {"message": "No", "detail": json.dumps({"message": "NO"})}}).encode()
    assert error_body.words(body) == "message\nno"


@pytest.mark.parametrize("error", [["x" * 100_000] * 3, [str(number) for number in range(30_000)]])
def test_only_the_beginning_of_a_long_error_is_looked_through(
    error: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0
    fields = error_body.fields

    def counting(body: bytes) -> object:
        nonlocal taken
        for field in fields(body):
            taken += 1
            yield field

    monkeypatch.setattr(error_body, "fields", counting)
    assert len(error_body.words(json.dumps({"error": error}).encode())) == 4096
    assert taken < 3000
