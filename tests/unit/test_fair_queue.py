from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.identity import InstanceKey, InstanceRef
from orchestrator.engine.fair_queue import FairQueue


def ref(tenant: str, number: int) -> InstanceRef:
    return InstanceRef(InstanceKey(tenant, str(number)), number)


def test_ten_thousand_of_one_tenant_hold_up_anothers_first_by_one() -> None:
    queue = FairQueue[int]()
    for number in range(10_000):
        queue[ref("acme", number)] = number
    queue[ref("initech", 1)] = 1
    taken = [queue.pop_next(), queue.pop_next(), queue.pop_next()]
    assert taken == [(ref("acme", 0), 0), (ref("initech", 1), 1), (ref("acme", 1), 1)]
    assert (len(queue), queue.count("acme"), queue.count("initech")) == (9998, 9998, 0)


def test_one_that_is_there_keeps_its_place() -> None:
    queue = FairQueue[str]()
    for number in (1, 2):
        queue[ref("acme", number)] = "old"
    queue[ref("acme", 1)] = "new"
    assert len(queue) == 2
    assert queue.pop_next() == (ref("acme", 1), "new")


def test_a_tenant_that_may_not_have_its_turn_is_passed_over_and_keeps_it() -> None:
    queue = FairQueue[int]()
    queue[ref("acme", 1)] = 1
    queue[ref("initech", 2)] = 2
    assert queue.pop_next(lambda tenant: tenant != "acme") == (ref("initech", 2), 2)
    assert queue.pop_next(lambda tenant: tenant != "acme") is None
    assert queue.pop_next() == (ref("acme", 1), 1)
    assert queue.pop_next() is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans())))
def test_it_holds_what_a_dictionary_holds(steps: list[tuple[str, int, bool]]) -> None:
    queue, expected = FairQueue[int](), dict[InstanceRef, int]()
    for tenant, number, adds in steps:
        one = ref(tenant, number)
        if adds:
            queue[one] = expected[one] = number
        else:
            queue.discard(one)
            expected.pop(one, None)
        assert set(queue) == set(expected)
        assert len(queue) == len(expected)
        assert (one in queue) == (one in expected)
        assert bool(queue) == bool(expected)
        assert set(queue.tenants) == {each.key.tenant for each in expected}
