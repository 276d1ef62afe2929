"""A Gaussian weight per task: its mean, its standard deviation in three structures, its KL and its draws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_varshare.adapters.base import LayerShape
from sb3_varshare.adapters.kl import mean_kl, spread_kl, tied_spread_kl


def inverse_softplus(value: float) -> float:
    """The argument at which softplus gives ``value`` > 0."""
    return value + math.log(-math.expm1(-value))


class Sigma(nn.Module, ABC):
    """
    Standard deviation of a Gaussian weight, equal to the prior's at the start.

    :param shape: sizes of the weight
    :param sigma_prior: standard deviation of the prior
    """

    def __init__(self, shape: LayerShape, sigma_prior: float) -> None:
        super().__init__()
        self.shape, self.sigma_prior = shape, sigma_prior

    @abstractmethod
    def forward(self) -> th.Tensor:
        """Standard deviations, (*K, T, I, O) or something that broadcasts to it."""

    @abstractmethod
    def output_variance(self, x: th.Tensor) -> th.Tensor:
        """
        Variance of ``x @ W`` over the weight's distribution, ``(x^2)(sigma^2)``.

        :param x: (T, B, I) or (*K, T, B, I)
        :return: (*K, T, B, O) or something that broadcasts to it
        """

    @abstractmethod
    def kl_divergence(self) -> th.Tensor:
        """The spread's share of the KL to the prior, (*K, T) nats."""


class FullSigma(Sigma):
    """One ``sigma = softplus(rho)`` per weight."""

    def __init__(self, shape: LayerShape, sigma_prior: float) -> None:
        super().__init__(shape, sigma_prior)
        size = (*shape.members, shape.n_tasks, shape.in_features, shape.out_features)
        self.rho = nn.Parameter(th.full(size, inverse_softplus(sigma_prior)))

    def forward(self) -> th.Tensor:
        return F.softplus(self.rho)

    def output_variance(self, x: th.Tensor) -> th.Tensor:
        return th.matmul(x.square(), self().square())

    def kl_divergence(self) -> th.Tensor:
        return spread_kl(self.rho, self.sigma_prior)


class TiedSigma(Sigma):
    """
    ``sigma[i, o] = a[i] * b[o]``: I + O numbers per task instead of I * O.

    Source: the rank-1 case of the k-tied normal, Swiatkowski et al. 2020 (arXiv 2002.02655)
    """

    def __init__(self, shape: LayerShape, sigma_prior: float) -> None:
        super().__init__(shape, sigma_prior)
        start = inverse_softplus(math.sqrt(sigma_prior))
        self.rho_in = nn.Parameter(th.full((*shape.members, shape.n_tasks, shape.in_features), start))
        self.rho_out = nn.Parameter(th.full((*shape.members, shape.n_tasks, shape.out_features), start))

    def forward(self) -> th.Tensor:
        return F.softplus(self.rho_in)[..., :, None] * F.softplus(self.rho_out)[..., None, :]

    def output_variance(self, x: th.Tensor) -> th.Tensor:
        per_row = th.matmul(x.square(), F.softplus(self.rho_in).square()[..., None])
        return per_row * F.softplus(self.rho_out).square()[..., None, :]

    def kl_divergence(self) -> th.Tensor:
        return tied_spread_kl(F.softplus(self.rho_in), F.softplus(self.rho_out), self.sigma_prior)


class FixedSigma(Sigma):
    """Sigma stays at ``sigma_prior``: the control that tells whether learning the variance matters."""

    def __init__(self, shape: LayerShape, sigma_prior: float) -> None:
        super().__init__(shape, sigma_prior)
        self.register_buffer("sigma", th.tensor(sigma_prior), persistent=False)
        self.sigma: th.Tensor

    def forward(self) -> th.Tensor:
        return self.sigma.expand(*self.shape.members, self.shape.n_tasks, *self.shape[1:3])

    def output_variance(self, x: th.Tensor) -> th.Tensor:
        return x.square().sum(-1, keepdim=True) * self.sigma_prior**2

    def kl_divergence(self) -> th.Tensor:
        return self.sigma.new_zeros(*self.shape.members, self.shape.n_tasks)


SIGMA_STRUCTURES: dict[str, type[Sigma]] = {"full": FullSigma, "tied": TiedSigma, "fixed": FixedSigma}


class GaussianWeight(nn.Module):
    """
    Independent Gaussians ``N(mu, sigma^2)`` over a weight per task, with prior ``N(0, sigma_prior^2)``.

    :param shape: sizes of the weight
    :param sigma_prior: standard deviation of the prior, absolute
    :param sigma_structure: ``"full"``, ``"tied"`` or ``"fixed"``
    :raises ValueError: the structure is unknown
    """

    def __init__(self, shape: LayerShape, sigma_prior: float, sigma_structure: str) -> None:
        super().__init__()
        if sigma_structure not in SIGMA_STRUCTURES:
            raise ValueError(f"sigma_structure must be one of {sorted(SIGMA_STRUCTURES)}, got {sigma_structure!r}.")
        self.shape, self.sigma_prior = shape, sigma_prior
        self.mu = nn.Parameter(th.zeros(*shape.members, shape.n_tasks, shape.in_features, shape.out_features))
        self.sigma = SIGMA_STRUCTURES[sigma_structure](shape, sigma_prior)

    def kl_divergence(self) -> th.Tensor:
        """KL to the prior, (*K, T) nats, summed over the weights."""
        return mean_kl(self.mu, self.sigma_prior) + self.sigma.kl_divergence()

    def draw(self, task_ids: th.Tensor) -> th.Tensor:
        """
        One weight per row from the posterior of the row's task.

        :param task_ids: (N,)
        :return: (*K, N, I, O)
        """
        mu, sigma = (tensor.index_select(-3, task_ids) for tensor in (self.mu, self.sigma()))
        return mu + sigma * th.randn_like(mu)

    def spreads(self) -> Iterator[nn.Parameter]:
        """Parameters of the standard deviation."""
        yield from self.sigma.parameters()

    def relative_sigma(self) -> th.Tensor:
        """Mean of ``sigma / sigma_prior`` over the weights, (*K, T)."""
        return self.sigma().mean((-2, -1)) / self.sigma_prior
