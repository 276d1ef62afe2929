"""
Closed-form KL divergences from the residual's posterior to its prior, in nats.

Everything is written in the ratio ``u = sigma / sigma_prior - 1``, in which float32 stays accurate around
the starting point ``sigma = sigma_prior``, where the KL is zero and its two terms cancel.

The ``pull_*`` functions return what they are given. Their backward pass adds the gradient of a weighted KL, one pass
over the gradient that is there already: a KL in the loss costs a graph, a forward pass and a second gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch as th
import torch.nn.functional as F


class KLWeights(NamedTuple):
    """
    What multiplies the two shares of each task's KL in the objective.

    :param mean: (T,) w, of the means' share, ``|mu_t|^2 / (2 sigma_prior^2)``
    :param spread: (T,) v, of the spreads' share
    """

    mean: th.Tensor
    spread: th.Tensor

    def scaled(self, factor: th.Tensor) -> KLWeights:
        """
        :param factor: (T,)
        :return: both weights times it
        """
        return KLWeights(factor * self.mean, factor * self.spread)


class KLShares(NamedTuple):
    """
    What a KL is made of, in nats; both shares are never negative.

    :param mean: of the means, ``|mu|^2 / (2 sigma_prior^2)``
    :param spread: of the spreads
    """

    mean: th.Tensor
    spread: th.Tensor


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


class _PullMean(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mu: th.Tensor, weights: th.Tensor, sigma_prior: float) -> th.Tensor:
        ctx.save_for_backward(mu, weights)
        ctx.sigma_prior = sigma_prior
        return mu.view_as(mu)

    @staticmethod
    def backward(ctx: Any, *grads: th.Tensor) -> tuple[th.Tensor, None, None]:
        mu, weights = ctx.saved_tensors
        return th.addcmul(grads[0], mu, weights / ctx.sigma_prior**2), None, None


class _PullSpread(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sigma: th.Tensor, weights: th.Tensor, sigma_prior: float) -> th.Tensor:
        ctx.save_for_backward(sigma, weights)
        ctx.sigma_prior = sigma_prior
        return sigma.view_as(sigma)

    @staticmethod
    def backward(ctx: Any, *grads: th.Tensor) -> tuple[th.Tensor, None, None]:
        sigma, weights = ctx.saved_tensors
        weights = weights[:, None, None]
        grad = th.addcmul(grads[0], sigma, weights / ctx.sigma_prior**2)
        return grad.addcdiv_(weights, sigma, value=-1), None, None


class _PullTiedSpread(th.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, a: th.Tensor, b: th.Tensor, weights: th.Tensor, sigma_prior: float
    ) -> tuple[th.Tensor, th.Tensor]:
        ctx.save_for_backward(a, b, weights)
        ctx.sigma_prior = sigma_prior
        return a.view_as(a), b.view_as(b)

    @staticmethod
    def backward(ctx: Any, *grads: th.Tensor) -> tuple[th.Tensor, th.Tensor, None, None]:
        a, b, weights = ctx.saved_tensors
        weights = weights[:, None]
        pull = weights / ctx.sigma_prior**2
        # d KL / d a = a sum(b^2) / sigma_prior^2 - O / a
        grad_a = th.addcmul(grads[0], a, pull * (b * b).sum(-1, keepdim=True))
        grad_b = th.addcmul(grads[1], b, pull * (a * a).sum(-1, keepdim=True))
        grad_a.addcdiv_(weights, a, value=-b.shape[-1])
        grad_b.addcdiv_(weights, b, value=-a.shape[-1])
        return grad_a, grad_b, None, None


def pull_mean(mu: th.Tensor, weights: KLWeights | None, sigma_prior: float) -> th.Tensor:
    """
    The means, with the gradient of ``sum_t w_t |mu_t|^2 / (2 sigma_prior^2)`` added on the way back.

    :param mu: (*K, T, I, O)
    :param weights: of the KL; ``None`` adds nothing
    :param sigma_prior: standard deviation of the prior
    :return: ``mu``
    """
    if weights is None:
        return mu
    pulled: th.Tensor = _PullMean.apply(mu, weights.mean[:, None, None], sigma_prior)
    return pulled


def pull_values(values: th.Tensor, task_ids: th.Tensor, weights: KLWeights | None, sigma_prior: float) -> th.Tensor:
    """
    As :func:`pull_mean` of means that stand in a row, whatever their task.

    :param values: (n,)
    :param task_ids: (n,) task of each
    :param weights: of the KL; ``None`` adds nothing
    :param sigma_prior: standard deviation of the prior
    :return: ``values``
    """
    if weights is None:
        return values
    pulled: th.Tensor = _PullMean.apply(values, weights.mean[task_ids], sigma_prior)
    return pulled


def pull_spread(sigma: th.Tensor, weights: KLWeights | None, sigma_prior: float) -> th.Tensor:
    """
    The standard deviations, with the gradient of the spread's weighted KL added on the way back.

    :param sigma: (*K, T, I, O)
    :param weights: of the KL; ``None`` adds nothing
    :param sigma_prior: standard deviation of the prior
    :return: ``sigma``
    """
    if weights is None:
        return sigma
    pulled: th.Tensor = _PullSpread.apply(sigma, weights.spread, sigma_prior)
    return pulled


def pull_tied_spread(
    a: th.Tensor, b: th.Tensor, weights: KLWeights | None, sigma_prior: float
) -> tuple[th.Tensor, th.Tensor]:
    """
    The factors of ``sigma[i, o] = a[i] * b[o]``, with the gradient of their weighted KL added on the way back.

    :param a: (*K, T, I)
    :param b: (*K, T, O)
    :param weights: of the KL; ``None`` adds nothing
    :param sigma_prior: standard deviation of the prior
    :return: ``a`` and ``b``
    """
    if weights is None:
        return a, b
    pulled: tuple[th.Tensor, th.Tensor] = _PullTiedSpread.apply(a, b, weights.spread, sigma_prior)
    return pulled
