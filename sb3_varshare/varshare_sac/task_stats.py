"""Returns and successes of the training episodes, task by task."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.logger import Logger


class TaskStats:
    """
    Keeps the last episodes of every task.

    :param task_names: (T,)
    :param window: episodes per task
    """

    def __init__(self, task_names: Sequence[str], window: int) -> None:
        self.task_names = list(task_names)
        self._returns: list[deque[float]] = [deque(maxlen=window) for _ in task_names]
        self._successes: list[deque[float]] = [deque(maxlen=window) for _ in task_names]

    def update(
        self, task_ids: np.ndarray, dones: np.ndarray, infos: Sequence[dict[str, Any]] | Mapping[int, dict[str, Any]]
    ) -> None:
        """
        Take in the episodes that ended in this step.

        :param task_ids: (N,) task of the episode that may have ended
        :param dones: (N,)
        :param infos: of each environment that is done, by its position: Monitor's ``episode`` and, where the
            environment reports it, ``is_success``
        """
        for env in np.flatnonzero(dones).tolist():
            task, info = int(task_ids[env]), infos[env]
            if "episode" in info:
                self._returns[task].append(float(info["episode"]["r"]))
            if "is_success" in info:
                self._successes[task].append(float(info["is_success"]))

    def record(self, logger: Logger) -> None:
        """Write the means per task, for files and TensorBoard; stdout gets the mean over tasks from SB3."""
        for name, returns, successes in zip(self.task_names, self._returns, self._successes, strict=True):
            if returns:
                logger.record(f"return/{name}", float(np.mean(returns)), exclude="stdout")
            if successes:
                logger.record(f"success_rate/{name}", float(np.mean(successes)), exclude="stdout")
