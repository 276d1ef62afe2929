"""What a trial is worth: success first, then return."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_varshare.evaluation import EpisodeResult, TaskEvaluation
from sb3_varshare.tuning.objective import objective_value

RETURNS = st.floats(-1e5, 1e5)


def evaluation(returns: list[float], successes: list[bool | None]) -> TaskEvaluation:
    """One episode of each task."""
    names = [f"task {i}" for i in range(len(returns))]
    episodes = [
        EpisodeResult(name, 0, value, 10, success, success)
        for name, value, success in zip(names, returns, successes, strict=True)
    ]
    return TaskEvaluation(names, episodes, {})


def test_values_by_hand() -> None:
    # A return of 1,000 is squashed to 3/4; two episodes: 1/2 + 3/4 / 4.
    assert objective_value(evaluation([1000.0, 1000.0], [True, False])) == pytest.approx(0.5 + 0.1875)
    assert objective_value(evaluation([0.0], [False])) == pytest.approx(0.25)
    # Without success the mean return itself; a task that reports none is left out of the rate.
    assert objective_value(evaluation([-3.0, 5.0], [None, None])) == 1.0
    assert objective_value(evaluation([0.0, 0.0], [True, None])) == pytest.approx(1 + 1 / 8)


@given(low=RETURNS, high=RETURNS, better=st.integers(1, 4))
def test_one_more_success_is_worth_more_than_any_return(low: float, high: float, better: int) -> None:
    worse_flags = [i < better - 1 for i in range(4)]
    better_flags = [i < better for i in range(4)]
    assert objective_value(evaluation([low] * 4, better_flags)) > objective_value(evaluation([high] * 4, worse_flags))


def test_with_equal_success_the_return_decides() -> None:
    returns = [-1e5, -1e5 + 1, -3.0, 0.0, 2.0, 1e5 - 1, 1e5]
    values = [objective_value(evaluation([value] * 3, [True, True, False])) for value in returns]
    assert all(first < second for first, second in itertools.pairwise(values))
