"""
The ways to draw the noise of ``x @ W`` with ``W = mean + sigma * eps``.

Each takes the mean product, the rows and the Gaussian weight and returns the noisy product. All add noise of the same
mean (zero) and the same variance ``(x^2)(sigma^2)`` in every output; they differ in how rows correlate, and
so in the variance of the gradients. The random tensors are new on every call: one kept in a buffer would give
wrong gradients when a layer runs twice before the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch as th

from sb3_varshare.adapters.base import task_matmul
from sb3_varshare.adapters.gaussian import GaussianWeight
from sb3_varshare.adapters.kl import KLWeights
from sb3_varshare.adapters.row_noise import random_signs, unit_noise

Estimator = Callable[[th.Tensor, th.Tensor, GaussianWeight, KLWeights | None], th.Tensor]


def flipout(mean: th.Tensor, x: th.Tensor, weight: GaussianWeight, kl_weights: KLWeights | None = None) -> th.Tensor:
    """
    ``mean + ((x * r)(sigma * eps)) * s``, signs r, s per row; eps is shared by the tasks, the signs decorrelate them.

    Source: Wen et al. 2018 (arXiv 1803.04386)

    :param mean: (*K, T, B, O)
    :param x: (*K, T, B, I)
    :param weight: the Gaussian weight, (*K, T, I, O)
    :param kl_weights: the backward pass also adds the gradient of the spread's weighted KL
    :return: (*K, T, B, O)
    """
    shape = weight.shape
    eps = th.randn(*shape.members, 1, shape.in_features, shape.out_features, device=x.device, dtype=x.dtype)
    flipped = x * random_signs(tuple(x.shape), x)
    noise = task_matmul(flipped, weight.sigma(kl_weights) * eps)
    return th.addcmul(mean, noise, random_signs(tuple(noise.shape), x))


def local_reparameterization(
    mean: th.Tensor, x: th.Tensor, weight: GaussianWeight, kl_weights: KLWeights | None = None
) -> th.Tensor:
    """
    ``mean + sqrt((x^2)(sigma^2)) * zeta`` with zeta per row and output: least variance, no weight-sized noise.

    Source: Kingma et al. 2015 (arXiv 1506.02557)

    :param mean: (*K, T, B, O)
    :param x: (*K, T, B, I)
    :param weight: the Gaussian weight, (*K, T, I, O)
    :param kl_weights: as for :func:`flipout`
    :return: (*K, T, B, O)
    """
    return weight.sigma.add_row_noise(mean, x, unit_noise(tuple(mean.shape), x), kl_weights)


def shared_noise(
    mean: th.Tensor, x: th.Tensor, weight: GaussianWeight, kl_weights: KLWeights | None = None
) -> th.Tensor:
    """
    ``mean + x (sigma * eps)`` with one eps per task for the whole batch: the naive baseline.

    :param mean: (*K, T, B, O)
    :param x: (*K, T, B, I)
    :param weight: the Gaussian weight, (*K, T, I, O)
    :param kl_weights: as for :func:`flipout`
    :return: (*K, T, B, O)
    """
    return mean + task_matmul(x, weight.sigma(kl_weights) * th.randn_like(weight.mu))


def no_noise(mean: th.Tensor, x: th.Tensor, weight: GaussianWeight, kl_weights: KLWeights | None = None) -> th.Tensor:
    """The mean. The spread, on which nothing depends, is not pulled."""
    return mean


ESTIMATORS: dict[str, Estimator] = {
    "flipout": flipout,
    "local_reparameterization": local_reparameterization,
    "shared_noise": shared_noise,
    "mean": no_noise,
}


def get_estimator(name: str) -> Estimator:
    """
    :param name: a key of :data:`ESTIMATORS`
    :raises ValueError: the name is unknown
    """
    if name not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {sorted(ESTIMATORS)}, got {name!r}.")
    return ESTIMATORS[name]
