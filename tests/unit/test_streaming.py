"""Server-Sent SseDecoder, however they come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models.http import streaming
from orchestrator.models.http.streaming import Event, SseDecoder


def data(events: object) -> list[bytes]:
    return [event.data for event in events]  # type: ignore[attr-defined]


def read(sent: bytes) -> list[bytes]:
    events = SseDecoder()
    return data([*events.feed(sent), *events.flush()])


def test_an_event_is_emitted_at_its_blank_line() -> None:
    events = SseDecoder()
    assert data(events.feed(b"data: a\n\ndata: b\n")) == [b"a"]
    assert data(events.feed(b"data: c\r\n\r\nda")) == [b"b\nc"]
    assert data(events.feed(b"ta: d\n")) == []
    assert data(events.flush()) == [b"d"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("field", [b"data: ", b"data:", b"\xef\xbb\xbfdata: "])
def test_lines_end_in_any_usual_way_and_the_space_after_a_colon_is_optional(end: bytes, field: bytes) -> None:
    assert read(field + b"a" + end + end + field + b"b" + end + end) == [b"a", b"b"]


def test_a_carriage_return_and_a_later_line_feed_end_one_line() -> None:
    events = SseDecoder()
    assert data(events.feed(b"data: a\r")) == []
    assert data(events.feed(b"\ndata: b\r")) == []
    assert data(events.feed(b"\n\r")) == [b"a\nb"]
    assert data(events.feed(b"\n")) == []


def test_complete_json_ends_an_event_at_the_next_one_without_a_blank_line() -> None:
    assert read(b'data: {"a": 1}\ndata: {"b": 2}\ndata: [DONE]\n') == [b'{"a": 1}', b'{"b": 2}']
    assert read(b'data: {"a":\ndata: 1}\n\n') == [b'{"a":\n1}']


@pytest.mark.parametrize("end", [b'data: {"a": 1}', b'data: {"a": 1}\n', b'data: {"a": 1}\n\ndata: {"b'])
def test_the_last_event_is_emitted_if_its_json_is_complete(end: bytes) -> None:
    assert read(end) == [b'{"a": 1}']


@pytest.mark.parametrize(
    "last", [b"[DONE]", b'"[DONE]"', b"[done]", b"[DONE]\n", b"[DONE]\n\ndata: more\n\n"]
)
def test_nothing_is_emitted_after_the_last_event(last: bytes) -> None:
    events = SseDecoder()
    assert data([*events.feed(b"data: a\n\ndata: " + last), *events.flush()]) == [b"a"]
    assert events.has_ended


def test_an_event_has_the_type_that_it_names_and_no_other() -> None:
    sent = b"event: error\ndata: a\n\ndata: b\n\nerror: c\n\n"
    assert list(SseDecoder().feed(sent)) == [Event(b"a", b"error"), Event(b"b"), Event(b"c", b"error")]


@given(st.lists(st.integers(1, 9)))
def test_the_last_event_is_recognised_in_any_chunking(cuts: list[int]) -> None:
    events = SseDecoder()
    found: list[Event] = []
    sent = b"data: a\n\ndata: [DONE]\n\n"
    for cut in cuts:
        found += events.feed(sent[:cut])
        sent = sent[cut:]
    assert data([*found, *events.feed(sent)]) == [b"a"]
    assert events.has_ended


@given(st.binary(), st.lists(st.integers(1, 9)))
def test_events_are_the_same_in_any_chunking(sent: bytes, cuts: list[int]) -> None:
    for byte, stands_for in enumerate(
        (b"\n\n", b"data: ", b"\r\n", b"[DONE]", b"\r", b'{"a":1}', b"\xef\xbb\xbf")
    ):
        sent = sent.replace(bytes([byte]), stands_for)
    whole, pieces = SseDecoder(), SseDecoder()
    expected = [*whole.feed(sent), *whole.flush()]
    found: list[Event] = []
    for cut in cuts:
        found += pieces.feed(sent[:cut])
        sent = sent[cut:]
    assert [*found, *pieces.feed(sent), *pieces.flush()] == expected
    assert pieces.has_ended == whole.has_ended


def test_a_long_event_is_tried_as_json_at_few_of_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0
    is_object = streaming._is_object

    def counting(data: bytes) -> bool:
        nonlocal read
        read += len(data)
        return is_object(data)

    monkeypatch.setattr(streaming, "_is_object", counting)
    assert SseDecoder().feed(b'data: {"a": [\n' + b"data: {}\n" * 10_000) == []
    assert read < 100_000
