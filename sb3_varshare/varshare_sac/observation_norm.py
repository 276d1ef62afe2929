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
    def update(self, observations: np.ndarray | th.Tensor, task_ids: np.ndarray | th.Tensor) -> None:
        """
        Take observations into the statistics (Chan et al. 1979, parallel variance); rows that are not finite are left
        out. On the device no shape depends on the data, so that it is not waited for.

        :param observations: (N, D)
        :param task_ids: (N,)
        """
        rows = th.as_tensor(observations, device=self.mean.device, dtype=self.mean.dtype)
        tasks = th.as_tensor(task_ids, device=self.mean.device)
        finite = rows.isfinite().all(1, keepdim=True)
        one_hot = ((tasks[:, None] == th.arange(len(self.count), device=tasks.device)) & finite).to(rows.dtype)
        n_rows = one_hot.sum(0)[:, None]
        deviations = th.where(finite, rows - self.mean[tasks], 0.0)
        shift = one_hot.mT @ deviations / n_rows.clamp(min=1)
        squares = one_hot.mT @ (deviations - shift[tasks]).square()
        n_old, n_new = self.count, self.count + n_rows
        squares = self.variance * n_old + squares + shift.square() * n_old * n_rows / n_new.clamp(min=1)
        self.variance.copy_(th.where(n_rows > 0, squares / n_new.clamp(min=1), self.variance))
        self.mean += shift * n_rows / n_new.clamp(min=1)
        self.count += n_rows


class NoObservationNorm(nn.Module):
    """Observations as they are."""

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations

    def update(self, observations: np.ndarray | th.Tensor, task_ids: np.ndarray | th.Tensor) -> None:
        """Nothing to learn."""
