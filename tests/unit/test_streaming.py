"""Server-Sent Events, however they come."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.models.streaming import Events


def test_an_event_is_given_when_its_blank_line_has_come() -> None:
    events = Events()
    assert list(events.feed(b"data: a\n\ndata: b\n")) == [b"a"]
    assert list(events.feed(b"data: c\r\n\r\nda")) == [b"b\nc"]
    assert list(events.feed(b"ta: d\n")) == []
    assert list(events.rest()) == [b"d"]


def test_nothing_counts_after_the_last_event() -> None:
    events = Events()
    assert list(events.feed(b"data: a\n\ndata: [DONE]\n\ndata: b\n\n")) == [b"a"]
    assert events.have_ended


@given(st.lists(st.integers(1, 9)))
def test_the_last_event_is_noticed_however_it_comes(cuts: list[int]) -> None:
    events = Events()
    found: list[bytes] = []
    sent = b"data: a\n\ndata: [DONE]\n\n"
    for cut in cuts:
        found += events.feed(sent[:cut])
        sent = sent[cut:]
    assert [*found, *events.feed(sent)] == [b"a"]
    assert events.have_ended


@given(st.binary(), st.lists(st.integers(1, 9)))
def test_events_are_the_same_however_they_come(sent: bytes, cuts: list[int]) -> None:
    for byte, stands_for in enumerate((b"\n\n", b"data: ", b"\r\n", b"[DONE]")):
        sent = sent.replace(bytes([byte]), stands_for)
    whole, pieces = Events(), Events()
    expected = [*whole.feed(sent), *whole.rest()]
    found: list[bytes] = []
    for cut in cuts:
        found += pieces.feed(sent[:cut])
        sent = sent[cut:]
    assert [*found, *pieces.feed(sent), *pieces.rest()] == expected
    assert pieces.have_ended == whole.have_ended
