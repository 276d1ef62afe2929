"""The reward scale of each task, from the range of its Monte-Carlo returns."""

from __future__ import annotations

import numpy as np
import torch as th
from torch import nn

# An episode that goes on for longer is cut here for the statistics, so that tasks without an end get a scale too.
LONGEST_EPISODE = 2_000
SMALLEST_SCALE = 1e-8


def discounted_returns(rewards: list[float], gamma: float, bootstrap: float) -> np.ndarray:
    """
    ``G_t = r_t + gamma * G_{t+1}`` for every step of an episode.

    :param rewards: of the episode, in order
    :param gamma: discount
    :param bootstrap: the return after the last step
    :return: (len(rewards),)
    """
    returns = np.empty(len(rewards))
    running = bootstrap
    for step in range(len(rewards) - 1, -1, -1):
        running = rewards[step] + gamma * running
        returns[step] = running
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
        self._open_episodes: dict[int, list[float]] = {}
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
        cut = []
        for env, task in enumerate(task_ids.tolist()):
            episode = self._open_episodes.setdefault(env, [])
            episode.append(float(rewards[env]))
            too_long = len(episode) >= LONGEST_EPISODE
            if terminated[env] or truncated[env] or too_long:
                self._finish(task, episode, bool(terminated[env]) and not bool(truncated[env]))
                self._open_episodes[env] = []
                if not (terminated[env] or truncated[env]):
                    cut.append(task)
        return cut

    def _finish(self, task: int, rewards: list[float], terminated: bool) -> None:
        bootstrap = 0.0 if terminated else float(np.mean(rewards)) / (1 - self.gamma)
        returns = discounted_returns(rewards, self.gamma, bootstrap)
        self.return_max[task] = max(float(self.return_max[task]), float(returns.max()))
        self.return_min[task] = min(float(self.return_min[task]), float(returns.min()))
        if self._missing is not None:
            self._missing.discard(task)

    def missing_tasks(self) -> set[int]:
        """Tasks that have no scale yet, since no episode of theirs has ended."""
        if self._missing is None:
            self._missing = set(th.nonzero(self.return_max < self.return_min).flatten().tolist())
        return self._missing

    def forget_open_episodes(self) -> None:
        """Drop the unfinished episodes; to be called when the environments are reset from outside."""
        self._open_episodes.clear()

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._missing = None
