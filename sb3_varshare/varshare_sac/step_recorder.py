"""Keeps on the device what the statistics need of the last steps, and hands it over in one transfer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_varshare.types import TensorStep


class StepRecord(NamedTuple):
    """
    What the statistics need of one step, on the CPU: (N,) each.

    :param task_ids: which task
    :param rewards: raw
    :param terminated: the task ended the episode
    :param truncated: a time limit did
    :param finite: reward and observations are
    :param episode_returns: so far
    :param episode_lengths: so far
    :param is_success: 1 or 0, NaN where the tasks know no success
    """

    task_ids: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    finite: np.ndarray
    episode_returns: np.ndarray
    episode_lengths: np.ndarray
    is_success: np.ndarray

    def infos(self, seconds: float) -> dict[int, dict[str, Any]]:
        """
        What SB3's ``Monitor`` says of every environment whose episode ended, by its position.

        :param seconds: since the collection began
        """
        infos: dict[int, dict[str, Any]] = {}
        for env in np.flatnonzero(self.terminated | self.truncated).tolist():
            episode = {"r": float(self.episode_returns[env]), "l": int(self.episode_lengths[env]), "t": seconds}
            infos[env] = {"episode": episode}
            if not np.isnan(self.is_success[env]):
                infos[env]["is_success"] = bool(self.is_success[env])
        return infos


class StepRecorder:
    """
    Keeps what the statistics need of the last steps on the device, and hands it over in one transfer.

    :param n_steps: how many it can keep
    """

    def __init__(self, n_steps: int) -> None:
        self.n_steps, self._filled = n_steps, 0
        self._columns: th.Tensor | None = None

    @property
    def is_full(self) -> bool:
        """Whether the next step would have no place."""
        return self._filled == self.n_steps

    def write(self, task_ids: th.Tensor, step: TensorStep) -> None:
        """
        :param task_ids: (N,) of the episode that the step belongs to
        :param step: of all environments
        """
        observed = step.final_observations.isfinite().all(1) & step.observations.isfinite().all(1)
        # In the order of StepRecord.
        columns = [
            task_ids,
            step.rewards,
            step.terminated,
            step.truncated,
            observed & step.rewards.isfinite(),
            step.episode_returns,
            step.episode_lengths,
            th.full_like(step.rewards, th.nan) if step.is_success is None else step.is_success,
        ]
        row = th.stack([column.float() for column in columns])
        if self._columns is None:
            self._columns = row.new_empty(self.n_steps, *row.shape)
        self._columns[self._filled] = row
        self._filled += 1

    def read(self) -> Iterator[StepRecord]:
        """The steps since the last reading, in order."""
        if self._columns is None or self._filled == 0:
            return
        steps = self._columns[: self._filled].cpu().numpy()
        self._filled = 0
        for columns in steps:
            task_ids, rewards, terminated, truncated, finite, returns, lengths, success = columns
            yield StepRecord(
                task_ids.astype(np.int64),
                rewards,
                terminated.astype(bool),
                truncated.astype(bool),
                finite.astype(bool),
                returns,
                lengths,
                success,
            )
