"""The reward scale of each task, from the range of its Monte-Carlo returns."""

from __future__ import annotations

import numpy as np
import torch as th
from torch import nn

# An episode that goes on for longer is cut here for the statistics, so that tasks without an end get a scale too.
LONGEST_EPISODE = 2_000
SMALLEST_SCALE = 1e-8


def discounted_returns(rewards: np.ndarray, gamma: float, bootstrap: np.ndarray) -> np.ndarray:
    """
    ``G_t = r_t + gamma * G_{t+1}`` for every step of episodes of equal length.

    :param rewards: (E, length) of the episodes, in order
    :param gamma: discount
    :param bootstrap: (E,) the return after the last step
    :return: (E, length)
    """
    returns = np.empty(rewards.shape)
    running = bootstrap
    for step in range(rewards.shape[1] - 1, -1, -1):
        running = rewards[:, step] + gamma * running
        returns[:, step] = running
    return returns


class RewardScale(nn.Module):
    """
    Divides rewards so that returns fill the support of the critic, task by task.

    Tracks the running maximum and minimum of the discounted Monte-Carlo returns; a truncated episode is taken to go
    on for ever with its mean reward. Rewards are stored raw and scaled when they are sampled.

    Source: the code of BRC (arXiv 2505.23150), not its paper, whose critic bootstrap runs away

    :param n_tasks: tasks T
    :param gamma: discount
    :param v_max: upper end of the critic's support
    """

    def __init__(self, n_tasks: int, gamma: float, v_max: float) -> None:
        super().__init__()
        self.gamma, self.v_max = gamma, v_max
        self.register_buffer("return_max", th.full((n_tasks,), -th.inf))
        self.register_buffer("return_min", th.full((n_tasks,), th.inf))
        self.return_max: th.Tensor
        self.return_min: th.Tensor
        # Rewards of each environment's open episode, (N, longest so far), and their number, (N,).
        self._rewards = np.zeros((0, 0))
        self._lengths = np.zeros(0, dtype=np.int64)
        self._missing: set[int] | None = None

    def forward(self, ent_coef: th.Tensor, target_entropy: th.Tensor) -> th.Tensor:
        """
        ``(max(G_max, |G_min|) + ent_coef * |target_entropy| / (2 (1 - gamma))) / v_max``

        :param ent_coef: (T,)
        :param target_entropy: (T,) nats
        :return: (T,) what rewards are divided by; infinite for a task without a finished episode
        """
        largest = th.maximum(self.return_max, self.return_min.abs())
        soft = largest + ent_coef * target_entropy.abs() / (2 * (1 - self.gamma))
        # Without entropy and reward the range is zero: a reward of zero then stays zero.
        return (soft / self.v_max).clamp(min=SMALLEST_SCALE)

    def update(
        self, task_ids: np.ndarray, rewards: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> list[int]:
        """
        Take in one step of all environments.

        :param task_ids: (N,)
        :param rewards: (N,) raw
        :param terminated: (N,)
        :param truncated: (N,)
        :return: tasks whose unfinished episode was cut because it was too long
        """
        if len(self._lengths) != len(task_ids):
            self._rewards = np.zeros((len(task_ids), 0))
            self._lengths = np.zeros(len(task_ids), dtype=np.int64)
        if self._lengths.max() >= self._rewards.shape[1]:
            room = max(64, self._rewards.shape[1])
            self._rewards = np.pad(self._rewards, ((0, 0), (0, room)))
        self._rewards[np.arange(len(task_ids)), self._lengths] = rewards
        self._lengths += 1
        ended = terminated | truncated
        finished = ended | (self._lengths >= LONGEST_EPISODE)
        if finished.any():
            for length in np.unique(self._lengths[finished]):
                rows = np.flatnonzero(finished & (self._lengths == length))
                self._finish(task_ids[rows], self._rewards[rows, :length], (terminated & ~truncated)[rows])
            self._lengths[finished] = 0
        cut: list[int] = task_ids[finished & ~ended].tolist()
        return cut

    def _finish(self, task_ids: np.ndarray, rewards: np.ndarray, terminated: np.ndarray) -> None:
        """Episodes of equal length: (E,), (E, length), (E,)."""
        bootstrap = np.where(terminated, 0.0, rewards.mean(1) / (1 - self.gamma))
        returns = discounted_returns(rewards, self.gamma, bootstrap)
        highest, lowest = np.full(len(self.return_max), -np.inf), np.full(len(self.return_min), np.inf)
        np.maximum.at(highest, task_ids, returns.max(1))
        np.minimum.at(lowest, task_ids, returns.min(1))
        missing = self._missing
        self.widen(th.from_numpy(highest).to(self.return_max), th.from_numpy(lowest).to(self.return_min))
        if missing is not None:
            self._missing = missing - set(task_ids.tolist())

    def widen(self, highest: th.Tensor, lowest: th.Tensor) -> None:
        """
        Take in ranges of returns.

        :param highest: (T,) minus infinity where there is none
        :param lowest: (T,) infinity where there is none
        """
        # The comparison runs where the numbers live: reading them would wait for the device.
        self.return_max.copy_(th.maximum(self.return_max, highest))
        self.return_min.copy_(th.minimum(self.return_min, lowest))
        if self._missing:
            self._missing = None

    def missing_tasks(self) -> set[int]:
        """Tasks that have no scale yet, since no episode of theirs has ended."""
        if self._missing is None:
            self._missing = set(th.nonzero(self.return_max < self.return_min).flatten().tolist())
        return self._missing

    def forget_open_episodes(self, envs: np.ndarray | slice = slice(None)) -> None:
        """
        Drop unfinished episodes; to be called when environments are reset from outside.

        :param envs: (N,) bool, which ones; all by default
        """
        self._lengths[envs] = 0

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._missing = None
