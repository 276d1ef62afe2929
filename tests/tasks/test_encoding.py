"""The one-hot behind an observation, for numpy and torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_varshare.tasks.encoding import append_task, check_one_hot, split_task

KINDS = pytest.mark.parametrize("as_kind", [np.asarray, th.as_tensor], ids=["numpy", "torch"])
Kind = Callable[[Any], Any]


def batch() -> np.ndarray:
    """(2, 3, 2 + 4): tasks 3, 0, 1 and 2, 2, 0."""
    rows = [[append_task([10 * i + j, -1.0], task, 4) for j, task in enumerate(ids)] for i, ids in enumerate(TASKS)]
    return np.array(rows)


TASKS = [[3, 0, 1], [2, 2, 0]]


def test_append_task_by_hand() -> None:
    encoded = append_task(np.array([0.5, -2.0]), 1, 3)
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [0.5, -2.0, 0.0, 1.0, 0.0]


def test_append_task_pads_between_observation_and_task() -> None:
    assert append_task([7.0], 0, 2, observation_size=3).tolist() == [7.0, 0.0, 0.0, 1.0, 0.0]


def test_an_observation_does_not_reach_into_the_task() -> None:
    with pytest.raises(ValueError, match="at most 3 numbers, got 4"):
        append_task([1.0, 2.0, 3.0, 4.0], 0, 2, observation_size=3)


@KINDS
def test_split_task_takes_off_what_append_task_put_on(as_kind: Kind) -> None:
    observations, task_ids = split_task(as_kind(batch()), 4)
    assert type(observations) is type(task_ids) is type(as_kind(batch()))
    assert task_ids.tolist() == TASKS
    assert observations.tolist() == [[[0, -1], [1, -1], [2, -1]], [[10, -1], [11, -1], [12, -1]]]


@KINDS
def test_without_tasks_all_is_task_zero(as_kind: Kind) -> None:
    given = as_kind(batch())
    observations, task_ids = split_task(given, 0)
    assert observations is given
    assert task_ids.tolist() == [[0, 0, 0], [0, 0, 0]]
    check_one_hot(given, 0)


@KINDS
def test_permuted_tasks_permute_the_ids(as_kind: Kind) -> None:
    order = [2, 0, 3, 1]
    permuted = batch()
    permuted[..., 2:] = permuted[..., 2:][..., order]
    check_one_hot(as_kind(permuted), 4)
    _, task_ids = split_task(as_kind(permuted), 4)
    assert task_ids.tolist() == [[order.index(task) for task in row] for row in TASKS]


@KINDS
@pytest.mark.parametrize(
    "tail",
    [[0, 0, 0, 0], [1, 1, 0, 0], [0.5, 0.5, 0, 0], [2, 0, -1, 0], [0, 0.999, 0, 0], [np.nan, 1, 0, 0]],
    ids=str,
)
def test_what_is_no_one_hot_is_refused_by_row(as_kind: Kind, tail: list[float]) -> None:
    observations = batch()
    check_one_hot(as_kind(observations), 4)
    observations[1, 0, 2:] = tail
    with pytest.raises(ValueError, match="in row 3"):
        check_one_hot(as_kind(observations), 4)


def test_too_short_an_observation_is_refused() -> None:
    with pytest.raises(ValueError, match="one-hot of 9 tasks at the end, got a last axis of 6"):
        check_one_hot(batch(), 9)
