"""How sure the critics are of a value, and what their doubt is about."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_varshare.categorical import expectation, variance
from sb3_varshare.varshare_sac import VarShareSAC


class ValueUncertainty(NamedTuple):
    """
    The value of N states, and three doubts about it, all standard deviations.

    By the law of total variance ``aleatoric ** 2 + disagreement ** 2`` is the variance of the critics' mean return
    distribution, what the actor and the target read.

    :param value: (N,) expected return, mean over the critics
    :param aleatoric: (N,) of the return itself: the root of the critics' mean variance
    :param epistemic: (N,) of the value, over weights drawn from the posterior of the critics' residuals; NaN where
        there is no posterior, which is not the same as no doubt
    :param disagreement: (N,) of the critics' values among each other
    :param reward_scale: what one unit of these numbers is in units of the return; 1 where they are returns already
    """

    value: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray
    disagreement: np.ndarray
    reward_scale: float

    def in_returns(self) -> ValueUncertainty:
        """
        The same in units of the discounted sum of raw rewards, entropy bonus included: all times ``reward_scale``.

        :raises ValueError: the task has no reward scale yet
        """
        if not math.isfinite(self.reward_scale):
            raise ValueError("The task has no reward scale: no episode of it has ended in training. Train it first.")
        scale = self.reward_scale
        value, aleatoric = scale * self.value, scale * self.aleatoric
        return ValueUncertainty(value, aleatoric, scale * self.epistemic, scale * self.disagreement, 1.0)


@th.no_grad()
def value_uncertainty(
    model: VarShareSAC,
    observations: np.ndarray,
    actions: np.ndarray | None = None,
    task: str | int = 0,
    n_samples: int = 64,
    seed: int = 0,
) -> ValueUncertainty:
    """
    What the critics expect in states of one task, and how sure they are.

    The critics predict a distribution of the return, and their weights have a posterior: the spread of the first is
    what the return varies by however long one trains (``aleatoric``), the spread of its mean over draws of the second
    is what the data have not settled (``epistemic``). Only residuals have a posterior; what the shared weights do not
    know shows in the ``disagreement`` of the critics. All are in the critic's normalised units;
    :meth:`ValueUncertainty.in_returns` gives them in those of the return. The agent's random generators are left alone.

    :param model: the agent
    :param observations: (N, D) of the task, without a one-hot
    :param actions: (N, A) or (N, A_t) in the bounds of the agent's action space, as ``predict`` gives them; by default
        the mean action of the policy
    :param task: a name or an index
    :param n_samples: draws from the posterior, at least 2
    :param seed: of the draws
    :return: a number per state and kind
    :raises ValueError: the task is unknown, a shape is wrong, or there are too few samples
    """
    task_id = model.task_id(task)
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2 for a spread, got {n_samples}.")
    critic = model.policy.critic
    rows = _rows(model, observations, model.policy.observation_size)
    features = _features(model, rows, actions, task_id)
    probabilities = critic.net(features)[:, task_id].softmax(-1)
    values = expectation(probabilities, critic.support)
    noise = _posterior_values(model, features[task_id : task_id + 1], task_id, n_samples, seed)
    scale = model.reward_scale(model._ent_coef(), model.target_entropy_tensor)[task_id]
    return ValueUncertainty(
        values.mean(0).cpu().numpy(),
        variance(probabilities, critic.support).mean(0).sqrt().cpu().numpy(),
        np.full(len(rows), np.nan) if noise is None else noise.std(0).cpu().numpy(),
        values.std(0, correction=0).cpu().numpy(),
        float(scale),
    )


def _features(model: VarShareSAC, rows: th.Tensor, actions: np.ndarray | None, task_id: int) -> th.Tensor:
    """What the critics read, (T, N, features): every task gets the same rows."""
    policy = model.policy
    grid = rows.expand(model.n_tasks, -1, -1)
    if actions is None:
        chosen = policy.squash(policy.actor(policy.actor_input(grid)), policy.action_mask, True)[task_id]
    else:
        chosen = _scaled_actions(model, actions, len(rows), task_id)
    both = th.cat([policy.observation_norm(grid), chosen.expand(model.n_tasks, -1, -1)], -1)
    return policy.critic.task_input.append(both)


def _posterior_values(
    model: VarShareSAC, features: th.Tensor, task_id: int, n_samples: int, seed: int
) -> th.Tensor | None:
    """
    :param features: (1, N, features)
    :return: (samples, N) mean over the critics of their expected return, each with one draw for all states; ``None``
        without a posterior
    """
    critic, device = model.policy.critic, features.device
    if not all(layer.adapter.is_stochastic for layer in critic.net.linears()):
        return None
    task_ids = th.tensor([task_id], device=device)
    values = []
    with th.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        th.manual_seed(seed)
        for _ in range(n_samples):
            logits = critic.net.with_residuals(features, critic.net.draw(task_ids))
            values.append(expectation(logits.softmax(-1), critic.support).mean(0)[0])
    return th.stack(values)


def _rows(model: VarShareSAC, observations: np.ndarray, size: int) -> th.Tensor:
    if np.ndim(observations) != 2 or not len(observations) or np.shape(observations)[1] != size:
        raise ValueError(f"Expected observations (N, {size}) without a one-hot, got {np.shape(observations)}.")
    return th.as_tensor(np.asarray(observations), dtype=th.float32, device=model.device)


def _scaled_actions(model: VarShareSAC, actions: np.ndarray, n_rows: int, task_id: int) -> th.Tensor:
    """Actions in [-1, 1] with zeros where the task has no such dimension, (N, A)."""
    size, own = model.policy.action_size, model.action_sizes[task_id]
    if np.ndim(actions) != 2 or np.shape(actions)[0] != n_rows or np.shape(actions)[1] not in (own, size):
        wanted = f"({n_rows}, {own})" if own == size else f"({n_rows}, {own}) or ({n_rows}, {size})"
        raise ValueError(f"Expected actions {wanted}, got {np.shape(actions)}.")
    padded = np.zeros((n_rows, size), dtype=np.float32)
    padded[:, : np.shape(actions)[1]] = actions
    scaled = th.as_tensor(model.policy.scale_action(padded), dtype=th.float32, device=model.device)
    return scaled * model.policy.action_mask[task_id]
