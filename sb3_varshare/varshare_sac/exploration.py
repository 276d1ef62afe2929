"""Acting with one draw of the weights per episode (Thompson sampling)."""

from __future__ import annotations

import numpy as np
import torch as th

from sb3_varshare.tasks.encoding import split_task
from sb3_varshare.varshare_sac.policies import MultiTaskPolicy


class PosteriorExplorer:
    """
    Holds a draw for every environment and renews it when an episode starts.

    What is held is the draw's deviation from the mean weights: learning may move these within an episode, and
    re-centring may move them between base and residual.

    :param policy: whose actor acts; its adapter must have a posterior
    """

    def __init__(self, policy: MultiTaskPolicy) -> None:
        self.policy = policy
        self._deviations: list[th.Tensor] | None = None

    @th.no_grad()
    def act(self, observations: np.ndarray | th.Tensor, episode_starts: np.ndarray | th.Tensor) -> th.Tensor:
        """
        Waits for the device to know which draws to renew.

        :param observations: (N, D + one-hot)
        :param episode_starts: (N,) whether the environment has just been reset
        :return: (N, A) in [-1, 1], drawn from the policy of each environment's weights
        """
        policy = self.policy
        rows, task_ids = split_task(th.as_tensor(observations, device=policy.device).float(), policy.one_hot_size)
        means = [layer.merged_weight()[task_ids] - layer.theta for layer in policy.actor.linears()]
        deviations = self._hold(task_ids, means, th.as_tensor(episode_starts).nonzero()[:, 0])
        grid = rows.new_zeros(policy.n_tasks, len(rows), rows.shape[-1])
        index = th.arange(len(rows), device=rows.device)
        grid[task_ids, index] = rows
        features = policy.actor_input(grid)[task_ids, index][:, None]
        residuals = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        output = policy.actor.with_residuals(features, residuals)
        return policy.squash(output, policy.action_mask[task_ids], False)[:, 0]

    def _hold(self, task_ids: th.Tensor, means: list[th.Tensor], started: th.Tensor) -> list[th.Tensor]:
        if self._deviations is None or len(self._deviations[0]) != len(task_ids):
            drawn = self.policy.actor.draw(task_ids)
            self._deviations = [draw - mean for draw, mean in zip(drawn, means, strict=True)]
        elif len(started):
            index = started.to(task_ids.device)
            drawn = self.policy.actor.draw(task_ids[index])
            for held, draw, mean in zip(self._deviations, drawn, means, strict=True):
                held[index] = draw - mean[index]
        return self._deviations
