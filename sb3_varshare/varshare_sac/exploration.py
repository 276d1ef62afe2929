"""Acting with one draw of the weights per episode (Thompson sampling)."""

from __future__ import annotations

import numpy as np
import torch as th

from sb3_varshare.tasks.encoding import split_task
from sb3_varshare.varshare_sac.policies import MultiTaskPolicy


class PosteriorExplorer:
    """
    Holds a residual for every environment and draws it anew when an episode starts.

    :param policy: whose actor acts; its adapter must have a posterior
    """

    def __init__(self, policy: MultiTaskPolicy) -> None:
        self.policy = policy
        self._residuals: list[th.Tensor] | None = None

    @th.no_grad()
    def act(self, observations: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
        """
        :param observations: (N, D + one-hot)
        :param episode_starts: (N,) whether the environment has just been reset
        :return: (N, A) in [-1, 1], drawn from the policy of each environment's weights
        """
        policy = self.policy
        rows, task_ids = split_task(th.as_tensor(observations, device=policy.device).float(), policy.one_hot_size)
        self._draw(task_ids, np.flatnonzero(episode_starts))
        assert self._residuals is not None
        grid = rows.new_zeros(policy.n_tasks, len(rows), rows.shape[-1])
        index = th.arange(len(rows), device=rows.device)
        grid[task_ids, index] = rows
        features = policy.actor_input(grid)[task_ids, index][:, None]
        output = policy.actor.with_residuals(features, self._residuals)
        actions: np.ndarray = policy.squash(output, policy.action_mask[task_ids], False)[:, 0].cpu().numpy()
        return actions

    def _draw(self, task_ids: th.Tensor, started: np.ndarray) -> None:
        if self._residuals is None or len(self._residuals[0]) != len(task_ids):
            self._residuals = self.policy.actor.draw(task_ids)
        elif len(started):
            index = th.as_tensor(started, device=task_ids.device)
            for held, drawn in zip(self._residuals, self.policy.actor.draw(task_ids[index]), strict=True):
                held[index] = drawn
