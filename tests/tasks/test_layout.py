"""Which env plays which task, and which worker plays which envs."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_varshare.tasks import TaskSuite
from sb3_varshare.tasks.layout import balance, evaluation_layout, task_layout, task_shares


def equal(n_tasks: int) -> list[Fraction]:
    return [Fraction(1, n_tasks)] * n_tasks


def shares_of(weights: list[float]) -> list[Fraction]:
    return [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]


@pytest.mark.parametrize(
    ("n_envs", "cycles", "copies"),
    [
        (1, ((0, 1, 2),), (0,)),
        (2, ((0, 2), (1,)), (0, 0)),
        (3, ((0,), (1,), (2,)), (0, 0, 0)),
        (5, ((0,), (1,), (2,), (0,), (1,)), (0, 0, 0, 1, 1)),
    ],
)
def test_in_evaluation_no_task_is_divided(
    n_envs: int, cycles: tuple[tuple[int, ...], ...], copies: tuple[int, ...]
) -> None:
    assert evaluation_layout(n_envs, 3) == (cycles, copies)
    with pytest.raises(ValueError, match="n_envs must be"):
        evaluation_layout(0, 3)


@pytest.mark.parametrize(
    ("n_envs", "n_tasks", "layout"),
    [
        (3, 3, ((0,), (1,), (2,))),
        (1, 3, ((0, 1, 2),)),
        (2, 4, ((0, 2), (1, 3))),
        # Five tasks on two envs: each plays two and a half of them, the fourth (id 4) at half the rate in both.
        (2, 5, ((0, 2, 4, 0, 2), (1, 3, 4, 1, 3))),
        (5, 3, ((0,), (1,), (2,), (0,), (1,))),
        (6, 3, ((0,), (1,), (2,), (0,), (1,), (2,))),
        (2, 1, ((0,), (0,))),
    ],
)
def test_equal_tasks(n_envs: int, n_tasks: int, layout: tuple[tuple[int, ...], ...]) -> None:
    found = task_layout(n_envs, equal(n_tasks))
    assert [Counter(cycle) for cycle in found] == [Counter(cycle) for cycle in layout]
    if n_tasks % n_envs == 0 or n_envs >= n_tasks:
        assert found == layout


@pytest.mark.parametrize("n_envs", [0, -1, 7.5, "10"])
def test_what_is_no_number_of_envs_is_refused(n_envs: Any) -> None:
    with pytest.raises(ValueError, match=f"whole number of at least 1, got {n_envs!r}"):
        task_layout(n_envs, equal(3))


@pytest.mark.parametrize(
    ("n_envs", "weights", "counts"),
    [
        (10, [8, 2], [8, 2]),
        (4, [98, 1, 1], [2, 1, 1]),  # every task keeps one
        (7, [3, 2, 1], [4, 2, 1]),  # quotas 3.5, 2.33, 1.17: the last env goes to the largest remainder
        (10, [1, 1, 1], [4, 3, 3]),
        (3, [5, 1, 1], [1, 1, 1]),
    ],
)
def test_envs_by_weight(n_envs: int, weights: list[float], counts: list[int]) -> None:
    layout = task_layout(n_envs, shares_of(weights))
    assert all(len(cycle) == 1 for cycle in layout)
    assert [sum(cycle == (task,) for cycle in layout) for task in range(len(weights))] == counts


def test_one_env_plays_its_tasks_smoothly() -> None:
    # The example of nginx's documentation: weights 5, 1, 1 give a a b a c a a, not a a a a a b c.
    assert task_layout(1, shares_of([5, 1, 1])) == ((0, 0, 1, 0, 2, 0, 0),)


def test_a_heavy_task_is_in_several_envs() -> None:
    layout = task_layout(2, shares_of([8, 1, 1]))
    # 1.6 of two envs: all of one, and 0.6 of the other beside two times 0.2.
    assert sorted(Counter(cycle) for cycle in layout if set(cycle) == {0}) == [Counter({0: 1})]
    (other,) = (Counter(cycle) for cycle in layout if set(cycle) != {0})
    assert other == Counter({0: 3, 1: 1, 2: 1})


@given(st.integers(1, 12), st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_shares_are_kept_and_no_task_is_forgotten(n_envs: int, weights: list[float]) -> None:
    shares = shares_of(weights)
    layout = task_layout(n_envs, shares)
    assert len(layout) == n_envs
    played = [sum(Fraction(cycle.count(task), len(cycle)) for cycle in layout) / n_envs for task in range(len(weights))]
    assert all(share > 0 for share in played)
    if n_envs < len(weights):
        # Exact but for cycles that would be longer than a thousand episodes.
        assert all(abs(got - wanted) <= Fraction(1, 500) for got, wanted in zip(played, shares, strict=True))
        assert sum(len(set(cycle)) for cycle in layout) <= len(weights) + n_envs - 1
    else:
        assert all(
            abs(n_envs * (got - wanted)) < 1 or n_envs * got == 1 or n_envs * wanted > n_envs * got
            for got, wanted in zip(played, shares, strict=True)
        )


@given(st.integers(1, 6), st.lists(st.floats(0.1, 1.0), min_size=7, max_size=12))
def test_odd_weights_are_rounded_to_cycles_of_a_thousand_episodes(n_envs: int, weights: list[float]) -> None:
    shares = shares_of(weights)
    layout = task_layout(n_envs, shares)
    assert all(len(cycle) <= 1000 for cycle in layout)
    for task, wanted in enumerate(shares):
        played = sum(Fraction(cycle.count(task), len(cycle)) for cycle in layout)
        # An episode more or less in each env that plays it, and one for each neighbour that would have less than one.
        assert abs(played - n_envs * wanted) <= Fraction(len(weights), 1000)


def test_weights_are_numbers_or_names(scripted_suite: Callable[..., TaskSuite]) -> None:
    suite = scripted_suite()
    assert task_shares(None, suite) == (Fraction(1, 3),) * 3
    assert task_shares([2, 1, 1], suite) == (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4))
    assert task_shares({"two": 4, "scripted/three": 3}, suite) == (Fraction(1, 8), Fraction(1, 2), Fraction(3, 8))
    assert sum(task_shares([0.1, 1e-9, 1 / 3], suite)) == 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 2], "one number for each of 3 tasks, got 2"),
        ([1, 0, 1], "positive and finite"),
        ([1, float("nan"), 1], "positive and finite"),
        ({"four": 1.0}, "Expected a task of suite 'scripted', got 'four'"),
    ],
)
def test_bad_weights(scripted_suite: Callable[..., TaskSuite], weights: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_shares(weights, scripted_suite())  # type: ignore[arg-type]


def test_balance_is_that_of_the_costs() -> None:
    assert balance([1.0] * 5, 2) == ((0, 2, 4), (1, 3))
    assert balance([5.0, 1.0, 1.0, 1.0, 1.0, 1.0], 2) == ((0,), (1, 2, 3, 4, 5))
    assert balance([0.0, 0.0, 0.0], 3) == ((0,), (1,), (2,))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.integers(1, 8))
def test_balance_is_near_the_best(costs: list[float], n_workers: int) -> None:
    n_workers = min(n_workers, len(costs))
    groups = balance(costs, n_workers)
    assert sorted(rank for group in groups for rank in group) == list(range(len(costs)))
    assert all(groups)
    worst = max(sum(costs[rank] for rank in group) for group in groups)
    # Graham's bound for the longest-first rule.
    best_possible = max(*costs, sum(costs) / n_workers) if len(costs) > 1 else costs[0]
    assert worst <= (2 - 1 / n_workers) * best_possible + 1e-9
