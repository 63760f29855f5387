"""Streams on their way to those who listen, or do not."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ModelError
from orchestrator.models.streaming import MOST_UNREAD_BYTES, Events, Stream

BAD = ModelError("OUTPUT_INVALID", "bad", retryable=True)


class Door:
    """A Listener who comes and goes."""

    def __init__(self) -> None:
        self.is_listening = False
        self.told: list[str] = []
        self._catch_up: Callable[[], None] = lambda: None

    def tell(self, piece: str) -> None:
        self.told.append(piece)

    def on_arrival(self, catch_up: Callable[[], None]) -> None:
        self._catch_up = catch_up

    def arrive(self) -> None:
        self.is_listening = True
        self._catch_up()

    def leave(self) -> None:
        self.is_listening = False


class Reader:
    """Makes text of events, counts how many, and knows a bad one."""

    def __init__(self) -> None:
        self.events = 0
        self.door = Door()
        self.stream = Stream(self.read, self.door)

    def read(self, data: bytes) -> str:
        self.events += 1
        if data == b"bad":
            raise BAD
        return data.decode()


def event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def test_nothing_is_read_before_somebody_listens_who_then_has_all_of_it_at_once() -> None:
    it = Reader()
    it.stream.add(event("a") + b"data: b")
    it.stream.add(b"\n\n" + event("c") + b"da")
    assert (it.events, it.door.told) == (0, [])
    it.door.arrive()
    assert (it.events, it.door.told) == (3, ["abc"])
    it.stream.add(b"ta: d\n\n")
    assert it.door.told == ["abc", "d"]


def test_what_comes_after_the_last_has_left_is_put_aside_for_the_next() -> None:
    it = Reader()
    it.door.arrive()
    it.stream.add(event("a"))
    it.door.leave()
    it.stream.add(event("b"))
    it.stream.add(event("c"))
    assert it.door.told == ["a"]
    it.door.arrive()
    assert it.door.told == ["a", "bc"]


def test_no_more_than_the_bound_is_put_aside() -> None:
    it = Reader()
    it.stream.add(event("x" * (MOST_UNREAD_BYTES - 100)))
    assert it.events == 0
    it.stream.add(event("y" * 100))
    assert it.events == 2
    it.stream.add(event("z"))
    assert it.events == 2


def test_what_is_left_is_read_at_the_end() -> None:
    it = Reader()
    it.stream.add(event("a") + b"data: b\n")
    it.stream.finish()
    assert "".join(it.door.told) == "ab"


def test_the_last_event_is_noticed_though_nobody_listens_and_nothing_counts_after_it() -> None:
    it = Reader()
    it.stream.add(event("a"))
    it.stream.add(event("[DONE]") + event("b"))
    assert it.stream.has_ended
    it.stream.finish()
    assert it.door.told == ["a"]


@given(st.lists(st.integers(1, 9)))
def test_the_last_event_is_noticed_however_it_comes(cuts: list[int]) -> None:
    it = Reader()
    sent = event("a") + event("[DONE]")
    for cut in cuts:
        it.stream.add(sent[:cut])
        sent = sent[cut:]
    it.stream.add(sent)
    assert it.stream.has_ended


def test_whoever_arrives_is_told_what_comes_before_a_fault_and_the_call_has_the_fault() -> None:
    it = Reader()
    it.stream.add(event("a") + event("bad") + event("b"))
    it.door.arrive()
    assert it.door.told == ["a"]
    it.door.leave()
    for _ in range(2):
        with pytest.raises(ModelError, match="bad"):
            it.stream.add(event("c"))
    with pytest.raises(ModelError, match="bad"):
        it.stream.finish()
    assert (it.events, it.door.told) == (2, ["a"])


@given(st.binary(), st.lists(st.integers(1, 9)))
def test_events_are_the_same_however_they_come(sent: bytes, cuts: list[int]) -> None:
    sent = sent.replace(b"\x00", b"\n\n").replace(b"\x01", b"data: ").replace(b"\x02", b"\r\n")
    whole, pieces = Events(), Events()
    expected = [*whole.feed(sent), *whole.rest()]
    found: list[bytes] = []
    for cut in cuts:
        found += pieces.feed(sent[:cut])
        sent = sent[cut:]
    assert [*found, *pieces.feed(sent), *pieces.rest()] == expected
