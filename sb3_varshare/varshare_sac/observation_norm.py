"""Running mean and variance of observations, of each task on its own."""

from __future__ import annotations

import numpy as np
import torch as th
from torch import nn

CLIP = 10.0
EPSILON = 1e-8


class ObservationNorm(nn.Module):
    """
    Normalises every task's observations with that task's statistics.

    :param n_tasks: tasks T
    :param observation_size: D
    """

    def __init__(self, n_tasks: int, observation_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(n_tasks, observation_size))
        self.register_buffer("variance", th.ones(n_tasks, observation_size))
        self.register_buffer("count", th.zeros(n_tasks, 1))
        self.mean: th.Tensor
        self.variance: th.Tensor
        self.count: th.Tensor

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: (T, B, D)
        :return: (T, B, D) clipped to [-10, 10]
        """
        scaled = (observations - self.mean[:, None]) / (self.variance[:, None] + EPSILON).sqrt()
        return scaled.clamp(-CLIP, CLIP)

    @th.no_grad()
    def update(self, observations: np.ndarray, task_ids: np.ndarray) -> None:
        """
        Take observations into the statistics (Chan et al. 1979, parallel variance).

        :param observations: (N, D)
        :param task_ids: (N,)
        """
        for task in np.unique(task_ids).tolist():
            rows = th.as_tensor(observations[task_ids == task], device=self.mean.device)
            n_rows, n_old = len(rows), self.count[task]
            n_new = n_old + n_rows
            shift = rows.mean(0) - self.mean[task]
            squares = self.variance[task] * n_old + rows.var(0, unbiased=False) * n_rows
            self.variance[task] = (squares + shift.square() * n_old * n_rows / n_new) / n_new
            self.mean[task] += shift * n_rows / n_new
            self.count[task] = n_new


class NoObservationNorm(nn.Module):
    """Observations as they are."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations

    def update(self, observations: np.ndarray, task_ids: np.ndarray) -> None:
        """Nothing to learn."""
