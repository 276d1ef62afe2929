"""A Gaussian squashed by tanh, with action dimensions that a task does not have masked out."""

from __future__ import annotations

import math

import torch as th
import torch.nn.functional as F

LOG_STD_MIN, LOG_STD_MAX = -10.0, 2.0


def bounded_log_std(x: th.Tensor) -> th.Tensor:
    """
    Smoothly bounded logarithm of the standard deviation, as BRC has it.

    :param x: any shape
    :return: the same shape, in [-10, 2]
    """
    return LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (1 + th.tanh(x))


def sample_action(mean: th.Tensor, log_std: th.Tensor, mask: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Draw an action by reparameterization.

    :param mean: (T, B, A) before squashing
    :param log_std: (T, B, A)
    :param mask: (T, 1, A) 1 where the task has the dimension, 0 where it has not
    :return: actions (T, B, A) in [-1, 1], zero where masked, and their log-probability (T, B) over the rest
    """
    noise = th.randn_like(mean)
    raw = mean + log_std.exp() * noise
    # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), which does not overflow
    log_slope = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi) - log_slope
    return th.tanh(raw) * mask, (log_prob * mask).sum(-1)
