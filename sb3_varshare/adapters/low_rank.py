"""A variational residual of low rank, for wide networks and many tasks."""

from __future__ import annotations

from collections.abc import Iterator

import torch as th
from torch import nn

from sb3_varshare.adapters.base import Adapter, LayerShape, prior_std, task_matmul, task_mean
from sb3_varshare.adapters.estimators import get_estimator
from sb3_varshare.adapters.gaussian import GaussianWeight
from sb3_varshare.adapters.kl import KLShares, KLWeights


class LowRank(Adapter):
    """
    ``phi_t = U_t V``: ``U_t`` (I, r) Gaussian per task, ``V`` (r, O) deterministic and shared by all tasks.

    The noise is exact on ``x U``. The columns of ``V`` start with unit expected norm, so that one
    ``sigma_prior`` means the same noise in a weight as it does for full residuals. The target network averages
    ``theta``, ``mu_U`` and ``V`` each on its own, which is not the average of their product: an approximation
    that spares a (T, I, O) tensor.

    :param shape: sizes of the layer
    :param weight_rms: root mean square of the layer's initial weights, the unit of a relative prior
    :param rank: r, at most min(I, O) is used
    :param sigma_prior: standard deviation of the prior over ``U V``'s weights
    :param prior_scale: ``"relative"`` to ``weight_rms`` or ``"absolute"``
    :param sigma_structure: ``"full"``, ``"tied"`` or ``"fixed"``, of ``U``
    :param estimator: how the noise of ``x U`` is drawn
    :raises ValueError: the rank is not positive
    """

    is_stochastic = True

    def __init__(
        self,
        shape: LayerShape,
        weight_rms: float,
        rank: int = 8,
        sigma_prior: float = 0.2,
        prior_scale: str = "relative",
        sigma_structure: str = "full",
        estimator: str = "local_reparameterization",
    ) -> None:
        super().__init__(shape)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}.")
        rank = min(rank, shape.in_features, shape.out_features)
        self.estimator = get_estimator(estimator)
        self.sigma_prior = prior_std(sigma_prior, prior_scale, weight_rms)
        self.factor = GaussianWeight(shape._replace(out_features=rank), self.sigma_prior, sigma_structure)
        self.v = nn.Parameter(th.randn(*shape.members, 1, rank, shape.out_features) / rank**0.5)

    def averaged_tensors(self, theta: th.Tensor) -> tuple[th.Tensor, ...]:
        return theta, self.factor.mu, self.v

    @staticmethod
    def averaged_product(x: th.Tensor, tensors: tuple[th.Tensor, ...], bias: th.Tensor) -> th.Tensor:
        theta, mu, v = tensors
        return task_matmul(x, theta, bias) + task_matmul(task_matmul(x, mu), v)

    def product(
        self,
        x: th.Tensor,
        theta: th.Tensor,
        bias: th.Tensor,
        sample: bool = False,
        kl_weights: KLWeights | None = None,
    ) -> th.Tensor:
        projected = task_matmul(x, self.factor.pulled_mean(kl_weights))
        if sample:
            projected = self.estimator(projected, x, self.factor, kl_weights)
        return task_matmul(x, theta, bias) + task_matmul(projected, self.v)

    def merged_weight(self, theta: th.Tensor) -> th.Tensor:
        return theta + self.mean_residual()

    def draw(self, task_ids: th.Tensor) -> th.Tensor:
        return th.matmul(self.factor.draw(task_ids), self.v)

    def kl_shares(self) -> KLShares:
        return self.factor.kl_shares()

    @th.no_grad()
    def recenter(self, theta: th.Tensor, weights: th.Tensor | None = None) -> None:
        delta = task_mean(self.factor.mu, weights)
        theta.add_(th.matmul(delta, self.v))
        self.factor.mu.sub_(delta)

    def means(self) -> Iterator[nn.Parameter]:
        yield self.factor.mu

    def spreads(self) -> Iterator[nn.Parameter]:
        yield from self.factor.spreads()

    def mean_residual(self) -> th.Tensor:
        return th.matmul(self.factor.mu, self.v)

    def residual_sigma(self) -> th.Tensor:
        return th.matmul(self.factor.sigma().square(), self.v.square()).sqrt()

    def relative_sigma(self) -> th.Tensor:
        return self.factor.relative_sigma()
