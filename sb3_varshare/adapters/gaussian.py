"""A Gaussian weight per task: its mean, its standard deviation in three structures, its KL and its draws."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_varshare.adapters.base import LayerShape
from sb3_varshare.adapters.kl import (
    KLShares,
    KLWeights,
    mean_kl,
    pull_mean,
    pull_spread,
    pull_tied_spread,
    spread_kl,
    tied_spread_kl,
)
from sb3_varshare.adapters.row_noise import UnitNoise, add_fixed_noise, add_full_noise, add_tied_noise


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
    def forward(self, kl_weights: KLWeights | None = None) -> th.Tensor:
        """
        Standard deviations.

        :param kl_weights: the backward pass also adds the gradient of the weighted KL
        :return: (*K, T, I, O)
        """

    @abstractmethod
    def add_row_noise(
        self, mean: th.Tensor, x: th.Tensor, noise: UnitNoise, kl_weights: KLWeights | None = None
    ) -> th.Tensor:
        """
        ``mean + sqrt((x^2)(sigma^2)) * zeta``

        :param mean: (*K, T, B, O)
        :param x: (*K, T, B, I)
        :param noise: zeta, (*K, T, B, O)
        :param kl_weights: as for :meth:`forward`
        :return: (*K, T, B, O)
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

    def forward(self, kl_weights: KLWeights | None = None) -> th.Tensor:
        return pull_spread(F.softplus(self.rho), kl_weights, self.sigma_prior)

    def add_row_noise(
        self, mean: th.Tensor, x: th.Tensor, noise: UnitNoise, kl_weights: KLWeights | None = None
    ) -> th.Tensor:
        return add_full_noise(mean, x, self(kl_weights), noise)

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

    def factors(self, kl_weights: KLWeights | None = None) -> tuple[th.Tensor, th.Tensor]:
        """
        :param kl_weights: as for :meth:`forward`
        :return: ``a`` (*K, T, I) and ``b`` (*K, T, O)
        """
        return pull_tied_spread(F.softplus(self.rho_in), F.softplus(self.rho_out), kl_weights, self.sigma_prior)

    def forward(self, kl_weights: KLWeights | None = None) -> th.Tensor:
        a, b = self.factors(kl_weights)
        return a[..., :, None] * b[..., None, :]

    def add_row_noise(
        self, mean: th.Tensor, x: th.Tensor, noise: UnitNoise, kl_weights: KLWeights | None = None
    ) -> th.Tensor:
        return add_tied_noise(mean, x, *self.factors(kl_weights), noise)

    def kl_divergence(self) -> th.Tensor:
        return tied_spread_kl(*self.factors(), self.sigma_prior)


class FixedSigma(Sigma):
    """Sigma stays at ``sigma_prior``: the control that tells whether learning the variance matters."""

    def __init__(self, shape: LayerShape, sigma_prior: float) -> None:
        super().__init__(shape, sigma_prior)
        self.register_buffer("sigma", th.tensor(sigma_prior), persistent=False)
        self.sigma: th.Tensor

    def forward(self, kl_weights: KLWeights | None = None) -> th.Tensor:
        return self.sigma.expand(*self.shape.members, self.shape.n_tasks, *self.shape[1:3])

    def add_row_noise(
        self, mean: th.Tensor, x: th.Tensor, noise: UnitNoise, kl_weights: KLWeights | None = None
    ) -> th.Tensor:
        return add_fixed_noise(mean, x, self.sigma, noise)

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

    def pulled_mean(self, kl_weights: KLWeights | None) -> th.Tensor:
        """
        :param kl_weights: the backward pass also adds the mean's share of the gradient of the weighted KL
        :return: ``mu``, (*K, T, I, O)
        """
        return pull_mean(self.mu, kl_weights, self.sigma_prior)

    def kl_shares(self) -> KLShares:
        """The two shares of the KL to the prior, each (*K, T) nats, summed over the weights."""
        return KLShares(mean_kl(self.mu, self.sigma_prior), self.sigma.kl_divergence())

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
