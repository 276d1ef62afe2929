"""
Closed-form KL divergences from the residual's posterior to its prior, in nats.

Everything is written in the ratio ``u = sigma / sigma_prior - 1``, in which float32 stays accurate around
the starting point ``sigma = sigma_prior``, where the KL is zero and its two terms cancel.
"""

from __future__ import annotations

from typing import Any

import torch as th
import torch.nn.functional as F


def mean_kl(mu: th.Tensor, sigma_prior: float) -> th.Tensor:
    """
    The mean's share of the KL, ``|mu|^2 / (2 sigma_prior^2)``.

    :param mu: (..., I, O)
    :param sigma_prior: standard deviation of the prior
    :return: (...,) nats, summed over the weights
    """
    return mu.square().sum((-2, -1)) / (2 * sigma_prior**2)


class _SpreadKL(th.autograd.Function):
    """``log(sigma_prior / sigma) + sigma^2 / (2 sigma_prior^2) - 1/2`` with its gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, rho: th.Tensor, sigma_prior: float) -> th.Tensor:
        sigma = F.softplus(rho)
        ctx.save_for_backward(sigma)
        ctx.sigma_prior = sigma_prior
        u = sigma / sigma_prior - 1
        return (0.5 * u * (u + 2) - th.log1p(u)).sum((-2, -1))

    @staticmethod
    def backward(ctx: Any, *grads: th.Tensor) -> tuple[th.Tensor, None]:
        (sigma,) = ctx.saved_tensors
        slope = sigma / ctx.sigma_prior**2 - 1 / sigma
        # d softplus(rho) / d rho = sigmoid(rho) = 1 - exp(-softplus(rho))
        return slope * -th.expm1(-sigma) * grads[0][..., None, None], None


def spread_kl(rho: th.Tensor, sigma_prior: float) -> th.Tensor:
    """
    The spread's share of the KL for one ``sigma = softplus(rho)`` per weight.

    :param rho: (..., I, O)
    :param sigma_prior: standard deviation of the prior
    :return: (...,) nats, summed over the weights
    """
    kl: th.Tensor = _SpreadKL.apply(rho, sigma_prior)
    return kl


def tied_spread_kl(a: th.Tensor, b: th.Tensor, sigma_prior: float) -> th.Tensor:
    """
    The spread's share of the KL for ``sigma[i, o] = a[i] * b[o]``, without a weight-sized tensor.

    :param a: (..., I) positive
    :param b: (..., O) positive
    :param sigma_prior: standard deviation of the prior
    :return: (...,) nats, summed over the I * O weights
    """
    u, v = a / sigma_prior**0.5 - 1, b / sigma_prior**0.5 - 1
    excess_u, excess_v = (u * (u + 2)).sum(-1), (v * (v + 2)).sum(-1)
    per_input = 0.5 * excess_u - th.log1p(u).sum(-1)
    per_output = 0.5 * excess_v - th.log1p(v).sum(-1)
    return b.shape[-1] * per_input + a.shape[-1] * per_output + 0.5 * excess_u * excess_v
