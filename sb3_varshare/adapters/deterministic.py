"""The L2 control: a residual without noise."""

from __future__ import annotations

from collections.abc import Iterator

import torch as th
from torch import nn

from sb3_varshare.adapters.base import Adapter, LayerShape, prior_std, task_matmul, task_mean
from sb3_varshare.adapters.kl import KLShares, KLWeights, mean_kl, pull_mean


class Deterministic(Adapter):
    """
    ``W_t = theta + mu_t`` with the penalty ``|mu_t|^2 / (2 sigma_prior^2)``: exactly VarShare's mean term.

    :param shape: sizes of the layer
    :param weight_rms: root mean square of the layer's initial weights, the unit of a relative prior
    :param sigma_prior: scale of the penalty, as for VarShare
    :param prior_scale: ``"relative"`` to ``weight_rms`` or ``"absolute"``
    """

    sigma_prior: float

    def __init__(
        self, shape: LayerShape, weight_rms: float, sigma_prior: float = 0.2, prior_scale: str = "relative"
    ) -> None:
        super().__init__(shape)
        self.sigma_prior = prior_std(sigma_prior, prior_scale, weight_rms)
        self.mu = nn.Parameter(th.zeros(*shape.members, shape.n_tasks, shape.in_features, shape.out_features))

    def averaged_tensors(self, theta: th.Tensor) -> tuple[th.Tensor, ...]:
        return (theta + self.mu,)

    def product(
        self,
        x: th.Tensor,
        theta: th.Tensor,
        bias: th.Tensor,
        sample: bool = False,
        kl_weights: KLWeights | None = None,
    ) -> th.Tensor:
        return task_matmul(x, theta + pull_mean(self.mu, kl_weights, self.sigma_prior), bias)

    def kl_shares(self) -> KLShares:
        mean = mean_kl(self.mu, self.sigma_prior)
        return KLShares(mean, th.zeros_like(mean))

    @th.no_grad()
    def recenter(self, theta: th.Tensor, weights: th.Tensor | None = None) -> None:
        delta = task_mean(self.mu, weights)
        theta.add_(delta)
        self.mu.sub_(delta)

    def means(self) -> Iterator[nn.Parameter]:
        yield self.mu

    def mean_residual(self) -> th.Tensor:
        return self.mu
