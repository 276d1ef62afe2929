"""
The ways to draw the noise of ``x @ W`` with ``W = mean + sigma * eps``.

Each takes the rows and the Gaussian weight and returns what is added to the mean product. All have the same
mean (zero) and the same variance ``(x^2)(sigma^2)`` in every output; they differ in how rows correlate, and
so in the variance of the gradients. The random tensors are new on every call: one kept in a buffer would give
wrong gradients when a layer runs twice before the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch as th

from sb3_varshare.adapters.base import task_matmul
from sb3_varshare.adapters.gaussian import GaussianWeight

# Keeps the gradient of the square root finite for a row of zeros.
TINY_VARIANCE = 1e-12

Estimator = Callable[[th.Tensor, GaussianWeight], th.Tensor]


def _signs(size: tuple[int, ...], like: th.Tensor) -> th.Tensor:
    return like.new_empty(size).bernoulli_(0.5).mul_(2).sub_(1)


def flipout(x: th.Tensor, weight: GaussianWeight) -> th.Tensor:
    """
    ``((x * r)(sigma * eps)) * s`` with signs r, s per row; eps is shared by the tasks, the signs decorrelate them.

    Source: Wen et al. 2018 (arXiv 1803.04386)

    :param x: (T, B, I) or (*K, T, B, I)
    :param weight: the Gaussian weight, (*K, T, I, O)
    :return: (*K, T, B, O)
    """
    shape = weight.shape
    eps = th.randn(*shape.members, 1, shape.in_features, shape.out_features, device=x.device, dtype=x.dtype)
    rows = (*shape.members, *x.shape[-3:-1])
    flipped = x * _signs((*rows, shape.in_features), x)
    return task_matmul(flipped, weight.sigma() * eps) * _signs((*rows, shape.out_features), x)


def local_reparameterization(x: th.Tensor, weight: GaussianWeight) -> th.Tensor:
    """
    ``sqrt((x^2)(sigma^2)) * zeta`` with zeta per row and output: least variance, no weight-sized noise.

    Source: Kingma et al. 2015 (arXiv 1506.02557)

    :param x: (T, B, I) or (*K, T, B, I)
    :param weight: the Gaussian weight, (*K, T, I, O)
    :return: (*K, T, B, O)
    """
    shape = weight.shape
    std = (weight.sigma.output_variance(x) + TINY_VARIANCE).sqrt()
    zeta = th.randn(*shape.members, *x.shape[-3:-1], shape.out_features, device=x.device, dtype=x.dtype)
    return std * zeta


def shared_noise(x: th.Tensor, weight: GaussianWeight) -> th.Tensor:
    """
    ``x (sigma * eps)`` with one eps per task for the whole batch: the naive baseline.

    :param x: (T, B, I) or (*K, T, B, I)
    :param weight: the Gaussian weight, (*K, T, I, O)
    :return: (*K, T, B, O)
    """
    return task_matmul(x, weight.sigma() * th.randn_like(weight.mu))


def mean(x: th.Tensor, weight: GaussianWeight) -> th.Tensor:
    """No noise: zero, as a scalar tensor."""
    return x.new_zeros(())


ESTIMATORS: dict[str, Estimator] = {
    "flipout": flipout,
    "local_reparameterization": local_reparameterization,
    "shared_noise": shared_noise,
    "mean": mean,
}


def get_estimator(name: str) -> Estimator:
    """
    :param name: a key of :data:`ESTIMATORS`
    :raises ValueError: the name is unknown
    """
    if name not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {sorted(ESTIMATORS)}, got {name!r}.")
    return ESTIMATORS[name]
