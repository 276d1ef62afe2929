"""
The ways to draw the noise of ``x @ W`` with ``W = mean + sigma * eps``.

Each takes the rows and the Gaussian weight and returns what is added to the mean product. All have the same
mean (zero) and the same variance ``(x^2)(sigma^2)`` in every output; they differ in how rows correlate, and
so in the variance of the gradients. The random tensors are new on every call: one kept in a buffer would give
wrong gradients when a layer runs twice before the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch as th

from sb3_varshare.adapters.base import task_matmul
from sb3_varshare.adapters.gaussian import GaussianWeight

Estimator = Callable[[th.Tensor, GaussianWeight, th.Tensor | None], th.Tensor]


def random_signs(size: tuple[int, ...], like: th.Tensor) -> th.Tensor:
    """
    Fair draws from {-1, 1}, eight to a random number: ten times as fast as ``bernoulli_`` on a CPU.

    :param size: of the result
    :param like: gives device and dtype
    """
    n = math.prod(size)
    words = th.empty((n + 7) // 8, dtype=th.int64, device=like.device).random_()
    return words.view(th.int8)[:n].bitwise_and(2).sub_(1).to(like.dtype).view(size)


def unit_noise(size: tuple[int, ...], like: th.Tensor) -> th.Tensor:
    """
    Standard normal noise: exactly independent within a task and member, uncorrelated between tasks.

    Tasks share the sizes and have random signs of their own per row and per output, as Flipout's rows do: T times
    fewer random numbers, which on a CPU cost as much as a tenth of the product.

    :param size: (*K, T, B, O)
    :param like: gives device and dtype
    """
    *members, n_tasks, n_rows, n_outputs = size
    shared = th.randn(*members, 1, n_rows, n_outputs, device=like.device, dtype=like.dtype)
    if n_tasks == 1:
        return shared
    signs = random_signs((*members, n_tasks, n_rows + n_outputs), like)
    return shared * signs[..., :n_rows, None] * signs[..., None, n_rows:]


def flipout(x: th.Tensor, weight: GaussianWeight, kl_weights: th.Tensor | None = None) -> th.Tensor:
    """
    ``((x * r)(sigma * eps)) * s`` with signs r, s per row; eps is shared by the tasks, the signs decorrelate them.

    Source: Wen et al. 2018 (arXiv 1803.04386)

    :param x: (*K, T, B, I)
    :param weight: the Gaussian weight, (*K, T, I, O)
    :param kl_weights: (T,) w: the backward pass also adds the gradient of the spread's ``sum_t w_t KL_t``
    :return: (*K, T, B, O)
    """
    shape = weight.shape
    eps = th.randn(*shape.members, 1, shape.in_features, shape.out_features, device=x.device, dtype=x.dtype)
    flipped = x * random_signs(tuple(x.shape), x)
    noise = task_matmul(flipped, weight.sigma(kl_weights) * eps)
    return noise * random_signs(tuple(noise.shape), x)


def local_reparameterization(x: th.Tensor, weight: GaussianWeight, kl_weights: th.Tensor | None = None) -> th.Tensor:
    """
    ``sqrt((x^2)(sigma^2)) * zeta`` with zeta per row and output: least variance, no weight-sized noise.

    Source: Kingma et al. 2015 (arXiv 1506.02557)

    :param x: (*K, T, B, I)
    :param weight: the Gaussian weight, (*K, T, I, O)
    :param kl_weights: as for :func:`flipout`
    :return: (*K, T, B, O)
    """
    return weight.sigma.row_noise(x, unit_noise((*x.shape[:-1], weight.shape.out_features), x), kl_weights)


def shared_noise(x: th.Tensor, weight: GaussianWeight, kl_weights: th.Tensor | None = None) -> th.Tensor:
    """
    ``x (sigma * eps)`` with one eps per task for the whole batch: the naive baseline.

    :param x: (*K, T, B, I)
    :param weight: the Gaussian weight, (*K, T, I, O)
    :param kl_weights: as for :func:`flipout`
    :return: (*K, T, B, O)
    """
    return task_matmul(x, weight.sigma(kl_weights) * th.randn_like(weight.mu))


def mean(x: th.Tensor, weight: GaussianWeight, kl_weights: th.Tensor | None = None) -> th.Tensor:
    """No noise: zero, as a scalar tensor. The spread, of which nothing depends, is not pulled."""
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
