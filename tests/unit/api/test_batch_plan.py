from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_task_orchestra.errors import DependencyCycleError
from api.batch_plan import in_order


def circle(waits_for: list[list[int]], labels: list[str]) -> str:
    with pytest.raises(DependencyCycleError) as refused:
        in_order(waits_for, labels)
    return refused.value.message


def test_dependencies_come_first_and_the_rest_stays_as_given() -> None:
    assert in_order([[2], [], [3], [], [0, 1]], list("abcde")) == [1, 3, 2, 0, 4]
    assert in_order([[], [], []], list("abc")) == [0, 1, 2]
    assert in_order([], []) == []


@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_any_graph_without_a_circle_gets_an_order(size: int, chance: random.Random) -> None:
    places = chance.sample(range(size), size)
    waits_for: list[list[int]] = [[] for _ in range(size)]
    for later, place in enumerate(places):
        waits_for[place] = chance.sample(places[:later], chance.randint(0, min(later, 4)))
    order = in_order(waits_for, [str(number) for number in range(size)])
    assert sorted(order) == list(range(size))
    rank = {place: number for number, place in enumerate(order)}
    assert all(rank[other] < rank[place] for place, upstream in enumerate(waits_for) for other in upstream)


def test_a_circle_is_named_in_order_and_nothing_else_is() -> None:
    # d waits for c, c for b, b for a, a for c; e waits for d but nobody waits for e.
    message = circle([[2], [0], [1], [2], [3]], list("abcde"))
    assert "a → c → b → a" in message
    assert not {"d →", "e →"} & set(message)
    assert "d" not in message.partition(": ")[2].partition(" (")[0]


def test_a_task_that_waits_for_itself_is_a_circle() -> None:
    assert "a → a" in circle([[0]], ["a"])


def test_a_long_circle_stays_readable() -> None:
    size = 500
    message = circle([[(number + 1) % size] for number in range(size)], [f"{number:03}" * 30 for number in range(size)])
    assert len(message) < 6000
    assert "450 more" in message
