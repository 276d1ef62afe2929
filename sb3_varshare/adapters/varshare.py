"""VarShare: a Gaussian residual per task on every weight."""

from __future__ import annotations

from collections.abc import Iterator

import torch as th
from torch import nn

from sb3_varshare.adapters.base import Adapter, LayerShape, prior_std, task_matmul, task_mean
from sb3_varshare.adapters.estimators import get_estimator
from sb3_varshare.adapters.gaussian import GaussianWeight
from sb3_varshare.adapters.kl import KLShares, KLWeights


class VarShare(Adapter):
    """
    ``W_t = theta + phi_t`` with ``phi_t ~ N(mu_t, sigma_t^2)`` and prior ``N(0, sigma_prior^2)``.

    :param shape: sizes of the layer
    :param weight_rms: root mean square of the layer's initial weights, the unit of a relative prior
    :param sigma_prior: standard deviation of the prior
    :param prior_scale: ``"relative"`` to ``weight_rms`` or ``"absolute"``
    :param sigma_structure: ``"full"`` (one sigma per weight), ``"tied"`` (rank 1) or ``"fixed"`` (at the prior)
    :param estimator: how the noise is drawn, a key of :data:`~sb3_varshare.adapters.estimators.ESTIMATORS`
    """

    is_stochastic = True

    def __init__(
        self,
        shape: LayerShape,
        weight_rms: float,
        sigma_prior: float = 0.2,
        prior_scale: str = "relative",
        sigma_structure: str = "full",
        estimator: str = "local_reparameterization",
    ) -> None:
        super().__init__(shape)
        self.estimator = get_estimator(estimator)
        self.sigma_prior = prior_std(sigma_prior, prior_scale, weight_rms)
        self.residual = GaussianWeight(shape, self.sigma_prior, sigma_structure)

    def averaged_tensors(self, theta: th.Tensor) -> tuple[th.Tensor, ...]:
        return (theta + self.residual.mu,)

    def product(
        self,
        x: th.Tensor,
        theta: th.Tensor,
        bias: th.Tensor,
        sample: bool = False,
        kl_weights: KLWeights | None = None,
    ) -> th.Tensor:
        mean = task_matmul(x, theta + self.residual.pulled_mean(kl_weights), bias)
        return self.estimator(mean, x, self.residual, kl_weights) if sample else mean

    def draw(self, task_ids: th.Tensor) -> th.Tensor:
        return self.residual.draw(task_ids)

    def kl_shares(self) -> KLShares:
        return self.residual.kl_shares()

    @th.no_grad()
    def recenter(self, theta: th.Tensor, weights: th.Tensor | None = None) -> None:
        delta = task_mean(self.residual.mu, weights)
        theta.add_(delta)
        self.residual.mu.sub_(delta)

    def means(self) -> Iterator[nn.Parameter]:
        yield self.residual.mu

    def spreads(self) -> Iterator[nn.Parameter]:
        yield from self.residual.spreads()

    def mean_residual(self) -> th.Tensor:
        return self.residual.mu

    def residual_sigma(self) -> th.Tensor:
        return self.residual.sigma()

    def relative_sigma(self) -> th.Tensor:
        return self.residual.relative_sigma()
