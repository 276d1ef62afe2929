"""
The losses of the agent: pure functions of tensors, one value per task.

The objective per gradient step is ``(1/T) sum_t [data_t + beta_t KL_t / n_t]``. The data terms are the mean over tasks
of what the functions here return; the KLs have no graph: the layers add their weighted gradients on the way back, see
:mod:`sb3_varshare.adapters.kl`.
"""

from __future__ import annotations

import torch as th
import torch.nn.functional as F

from sb3_varshare.categorical import expectation, project


def target_distribution(
    rewards: th.Tensor,
    discounts: th.Tensor,
    next_probabilities: th.Tensor,
    next_log_prob: th.Tensor,
    ent_coef: th.Tensor,
    support: th.Tensor,
) -> th.Tensor:
    """
    Projected distribution of ``r + discount * (z - ent_coef * log pi(a'|s'))``.

    :param rewards: (T, B) scaled
    :param discounts: (T, B)
    :param next_probabilities: (T, B, M) mean over the target critics
    :param next_log_prob: (T, B)
    :param ent_coef: (T,)
    :param support: (M,)
    :return: (T, B, M)
    """
    soft_support = support - (ent_coef[:, None] * next_log_prob)[..., None]
    return project(next_probabilities, rewards[..., None] + discounts[..., None] * soft_support, support)


def critic_loss(logits: th.Tensor, target: th.Tensor) -> th.Tensor:
    """
    Cross-entropy of each critic against the target distribution, in nats.

    :param logits: (K, T, B, M)
    :param target: (T, B, M) no gradient
    :return: (T,) mean over rows, sum over critics
    """
    cross_entropy = -(target * F.log_softmax(logits, -1)).sum(-1)
    return cross_entropy.mean(-1).sum(0)


def q_values(logits: th.Tensor, support: th.Tensor) -> th.Tensor:
    """
    Mean over the critics of their expected return.

    :param logits: (K, T, B, M)
    :param support: (M,)
    :return: (T, B)
    """
    return expectation(F.softmax(logits, -1), support).mean(0)


def actor_loss(log_prob: th.Tensor, q: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """
    ``mean_b [ent_coef_t * log pi - Q]``

    :param log_prob: (T, B)
    :param q: (T, B)
    :param ent_coef: (T,) no gradient
    :return: (T,)
    """
    return (ent_coef[:, None] * log_prob - q).mean(-1)


def entropy_loss(log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: th.Tensor) -> th.Tensor:
    """
    ``ent_coef_t * (entropy_t - target_t)``, with the entropy estimated by ``-mean_b log pi``.

    :param log_ent_coef: (T,), or (1,) for one coefficient that all tasks share
    :param log_prob: (T, B) no gradient
    :param target_entropy: (T,) nats
    :return: (T,)
    """
    return log_ent_coef.exp() * (-log_prob.mean(-1) - target_entropy)


def kl_weights(n_transitions: th.Tensor, at_least: int) -> th.Tensor:
    """
    What multiplies each task's KL in the ELBO per transition and task: ``1 / (T n_t)``.

    :param n_transitions: (T,) transitions in the replay of each task
    :param at_least: lower bound of the count, the rows per task in a batch
    :return: (T,)
    """
    return 1 / (len(n_transitions) * n_transitions.clamp(min=at_least))
