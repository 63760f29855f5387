from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.turns import Turns


class Caller:
    """Something that wants so many turns, and takes what it is given."""

    def __init__(self, turns: Turns, name: str, wants: int, order: list[str]) -> None:
        self.turns, self.name, self.wants, self.order = turns, name, wants, order

    def ask(self) -> None:
        while self.wants and self.turns.take(self.name, self.ask):
            self.wants -= 1
            self.order.append(self.name)


def test_instances_that_wait_are_let_in_by_turns() -> None:
    turns, order = Turns(1), list[str]()
    assert turns.take("x", lambda: None)
    for name, wants in (("a", 4), ("b", 2), ("c", 1)):
        Caller(turns, name, wants, order).ask()
    for _ in range(7):
        turns.give_back()
    assert "".join(order) == "abcabaa"


@given(limit=st.integers(1, 5), wants=st.lists(st.integers(0, 5), max_size=6))
def test_no_more_are_in_at_once_than_the_limit_and_all_get_in(limit: int, wants: list[int]) -> None:
    turns, order = Turns(limit), list[str]()
    for name, want in enumerate(wants):
        Caller(turns, str(name), want, order).ask()
    assert len(order) == min(limit, sum(wants))
    for given_back in range(1, sum(wants) + 1):
        turns.give_back()
        assert len(order) == min(limit + given_back, sum(wants))
    for number in range(limit):
        assert turns.take("last", lambda: None), number
    assert not turns.take("one more", lambda: None)


def test_one_who_no_longer_wants_a_turn_keeps_nobody_out() -> None:
    turns, order = Turns(1), list[str]()
    assert turns.take("x", lambda: None)
    gone = Caller(turns, "gone", 1, order)
    gone.ask()
    gone.wants = 0
    Caller(turns, "a", 1, order).ask()
    turns.give_back()
    assert order == ["a"]


def test_once_closed_no_turn_is_granted() -> None:
    turns, order = Turns(1), list[str]()
    assert turns.take("x", lambda: None)
    Caller(turns, "a", 1, order).ask()
    turns.close()
    turns.give_back()
    assert order == []
    assert not turns.take("b", lambda: None)
