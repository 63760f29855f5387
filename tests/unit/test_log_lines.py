import json
import logging
import os
import sys
from collections.abc import Iterator

import pytest

from orchestrator.auth import tokens
from orchestrator.errors import without_quotation
from orchestrator.telemetry.logs import BackgroundHandler, LineFormatter


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("orchestrator.test", logging.WARNING, __file__, 1, message, (), None)
    made.created = 1_769_860_800.0625
    made.fields = fields
    return made


def test_a_text_line_is_one_line_with_its_fields() -> None:
    line = LineFormatter("text").format(record("gate\nclosed", gate="openai/x", cause='a "b"\nc', count=3))
    assert line == r'2026-01-31T12:00:00.062Z WARNING gate\nclosed gate=openai/x cause="a \"b\"\nc" count=3'


def test_a_json_line_is_one_object_with_its_fields() -> None:
    line = LineFormatter("json").format(record("gate\nclosed", gate="ü", count=3, settings={"a": "b"}))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2026-01-31T12:00:00.062Z",
        "level": "warning",
        "logger": "orchestrator.test",
        "message": "gate\nclosed",
        "gate": "ü",
        "count": 3,
        "settings": {"a": "b"},
    }


def test_a_traceback_is_a_field_of_its_json_line() -> None:
    failed = record("failed")
    try:
        raise ValueError("what went wrong")
    except ValueError:
        failed.exc_info = sys.exc_info()
    entry = json.loads(LineFormatter("json").format(failed))
    assert entry["exception"].endswith("ValueError: what went wrong")


@pytest.mark.parametrize("style", ["text", "json"])
def test_no_line_holds_a_secret(style: str) -> None:
    formatter = LineFormatter(style, ["sk-0123456789", "", "short"])
    line = formatter.format(record("sk-0123456789 short", cause="with sk-0123456789"))
    assert "sk-0123456789" not in line
    assert "short" in line


def test_no_line_holds_a_token() -> None:
    token = tokens.generate()
    line = LineFormatter("json").format(record(f"what came was Bearer {token}", cause=f"'{token}'"))
    assert json.loads(line)["message"] == "what came was Bearer ***"
    assert json.loads(line)["cause"] == "'***'"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_lines_that_nobody_reads_are_dropped_and_counted(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    handler = BackgroundHandler(writer, max_waiting=10)
    handler.setFormatter(LineFormatter("json"))
    for _ in range(40):  # each more than a pipe holds: up to ten are on their way, and ten wait
        handler.emit(record("x" * 200_000))
    written = bytearray()
    while b"log lines were dropped" not in written or not written.endswith(b"\n"):
        written += os.read(reader, 1 << 20)
    handler.close()
    entries = [json.loads(line) for line in written.splitlines()]
    counts = [entry["count"] for entry in entries if "count" in entry]
    assert len(entries) - len(counts) + sum(counts) == 40
    assert sum(counts) >= 19


def test_at_the_end_what_waits_is_written(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    handler = BackgroundHandler(writer)
    handler.setFormatter(LineFormatter("text"))
    for number in range(100):
        handler.emit(record(f"line {number}"))
    handler.close()
    assert os.read(reader, 1 << 20).count(b"\n") == 100


@pytest.mark.parametrize(
    ("reason", "message", "unquoted"),
    [
        (
            "OVERLOADED",
            "x could not answer now, status 503. It said: the prompt",
            "x could not answer now, status 503",
        ),
        ("MODEL_NOT_FOUND", "x has nothing there. It sent a web page: the prompt", "x has nothing there"),
        ("PLAN_INVALID", "subtask 'the prompt' has no instructions", ""),
        ("MODEL_REFUSED", "x refused to answer. the prompt", ""),
        ("TIMEOUT", "x did not answer within 5 s", "x did not answer within 5 s"),
    ],
)
def test_what_an_endpoint_said_can_be_left_out(reason: str, message: str, unquoted: str) -> None:
    assert without_quotation(reason, message) == unquoted
