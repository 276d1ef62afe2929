"""Running statistics of observations, task by task, against numpy."""

import numpy as np
import pytest
import torch as th

from sb3_varshare.varshare_sac.observation_norm import NoObservationNorm, ObservationNorm


def test_statistics_equal_those_of_all_rows_of_the_task() -> None:
    rng = np.random.default_rng(0)
    norm = ObservationNorm(n_tasks=3, observation_size=2)
    seen: dict[int, list[np.ndarray]] = {0: [], 1: [], 2: []}
    for _ in range(40):
        tasks = rng.integers(0, 2, size=5)  # task 2 is never played
        rows = (rng.normal(size=(5, 2)) * (1 + 9 * tasks[:, None]) + 100 * tasks[:, None]).astype(np.float32)
        norm.update(rows, tasks)
        for task, row in zip(tasks, rows, strict=True):
            seen[int(task)].append(row)
    for task in (0, 1):
        rows = np.array(seen[task], dtype=np.float64)
        np.testing.assert_allclose(norm.mean[task], rows.mean(0), rtol=1e-4)
        np.testing.assert_allclose(norm.variance[task], rows.var(0), rtol=1e-3)
        assert norm.count[task].item() == len(rows)
    assert norm.mean[2].tolist() == [0, 0] and norm.variance[2].tolist() == [1, 1]


def test_each_task_is_normalised_by_its_own() -> None:
    norm = ObservationNorm(2, 1)
    norm.update(np.array([[1.0], [3.0], [10.0], [30.0]]), np.array([0, 0, 1, 1]))
    # Means 2 and 20, standard deviations 1 and 10.
    x = th.tensor([[[3.0], [0.0]], [[30.0], [0.0]]])
    th.testing.assert_close(norm(x), th.tensor([[[1.0], [-2.0]], [[1.0], [-2.0]]]))


def test_what_is_far_out_is_clipped() -> None:
    norm = ObservationNorm(1, 1)
    norm.update(np.array([[-1.0], [1.0]]), np.array([0, 0]))
    assert norm(th.tensor([[[1e6], [-1e6]]])).flatten().tolist() == [10.0, -10.0]


def test_a_constant_entry_is_zero() -> None:
    norm = ObservationNorm(1, 2)
    norm.update(np.array([[5.0, 1.0], [5.0, 2.0]], dtype=np.float32), np.array([0, 0]))
    assert norm(th.tensor([[[5.0, 1.5]]])).flatten().tolist() == [0.0, 0.0]


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_many_small_updates_stay_accurate(offset: float) -> None:
    rng = np.random.default_rng(1)
    rows = (offset + rng.normal(size=(5_000, 1))).astype(np.float32)
    norm = ObservationNorm(1, 1)
    for row in rows:
        norm.update(row[None], np.zeros(1, dtype=int))
    np.testing.assert_allclose(norm.mean[0], rows.mean(0, dtype=np.float64), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(norm.variance[0], rows.var(0, dtype=np.float64), rtol=0.02)


def test_none_leaves_observations_alone() -> None:
    norm, x = NoObservationNorm(), th.full((1, 2, 3), 1e6)
    norm.update(x[0].numpy(), np.zeros(2, dtype=int))
    assert norm(x) is x


def test_rows_that_are_not_finite_are_left_out() -> None:
    norm, expected = ObservationNorm(2, 2), ObservationNorm(2, 2)
    rows = th.tensor([[1.0, 2.0], [th.nan, 1.0], [3.0, 5.0], [th.inf, 0.0]])
    norm.update(rows, th.tensor([0, 0, 0, 1]))
    expected.update(rows[[0, 2]], th.tensor([0, 0]))
    for name, buffer in expected.named_buffers():
        th.testing.assert_close(getattr(norm, name), buffer)
