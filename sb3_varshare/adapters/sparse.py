"""What pruning leaves of a residual: some weights of it, and where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch as th
from torch import nn

from sb3_varshare.adapters.base import Adapter, LayerShape, task_matmul
from sb3_varshare.adapters.kl import KLShares, KLWeights, pull_values


def composed(theta: th.Tensor, positions: th.Tensor, values: th.Tensor, n_tasks: int) -> th.Tensor:
    """
    Weights of which each task has its own in few places.

    :param theta: (*K, 1, I, O) what all share
    :param positions: (n,) in the flattened result, each at most once
    :param values: (n,) what is added there
    :param n_tasks: T
    :return: (*K, T, I, O)
    """
    weight = theta.expand(*theta.shape[:-3], n_tasks, -1, -1).clone(memory_format=th.contiguous_format)
    return weight.view(-1).index_add_(0, positions, values).view_as(weight)


class Sparse(Adapter):
    """
    ``W_t = theta + mu_t`` where all but n weights of all ``mu`` together are zero, for good.

    No noise is left; the penalty of what was kept is the means' share of the KL. Learning goes on in the kept values
    and in the base. Re-centring would fill the zeros, and does nothing.

    Eight bytes a kept weight. With 2 % kept of five trained agents, in bytes a weight: this list 8.0, a bitmask 10.2,
    compressed rows of 16-bit columns 8.7 to 12.2, gaps of 8 bits 5.1, which would be summed up before every use.

    :param shape: sizes of the layer
    :param sigma_prior: standard deviation of the prior, absolute
    :param positions: (n,) ascending, of the kept weights in the flattened (*K, T, I, O) residual
    :param values: (n,) their means
    """

    sigma_prior: float

    def __init__(self, shape: LayerShape, sigma_prior: float, positions: th.Tensor, values: th.Tensor) -> None:
        super().__init__(shape)
        self.sigma_prior = sigma_prior
        self.size = (*shape.members, shape.n_tasks, shape.in_features, shape.out_features)
        index_type = th.int32 if th.Size(self.size).numel() <= th.iinfo(th.int32).max else th.int64
        self.register_buffer("positions", positions.to(index_type))
        self.positions: th.Tensor
        self.values = nn.Parameter(values)

    def matrix_ids(self) -> th.Tensor:
        """(n,) which of the K * T residuals each kept weight belongs to, members first."""
        return self.positions // (self.shape.in_features * self.shape.out_features)

    def kept_per_task(self) -> th.Tensor:
        """(*K, T) number of kept weights."""
        lead = self.size[:-2]
        return th.bincount(self.matrix_ids(), minlength=th.Size(lead).numel()).reshape(lead)

    def averaged_tensors(self, theta: th.Tensor) -> tuple[th.Tensor, ...]:
        return theta, self.values

    def fixed_tensors(self) -> tuple[th.Tensor, ...]:
        return (self.positions,)

    @staticmethod
    def averaged_product(x: th.Tensor, tensors: tuple[th.Tensor, ...], bias: th.Tensor) -> th.Tensor:
        theta, values, positions = tensors
        return task_matmul(x, composed(theta, positions, values, x.shape[-3]), bias)

    def product(
        self,
        x: th.Tensor,
        theta: th.Tensor,
        bias: th.Tensor,
        sample: bool = False,
        kl_weights: KLWeights | None = None,
    ) -> th.Tensor:
        task_ids = self.matrix_ids() % self.shape.n_tasks
        values = pull_values(self.values, task_ids, kl_weights, self.sigma_prior)
        return task_matmul(x, composed(theta, self.positions, values, self.shape.n_tasks), bias)

    def merged_weight(self, theta: th.Tensor) -> th.Tensor:
        return composed(theta, self.positions, self.values, self.shape.n_tasks)

    def kl_shares(self) -> KLShares:
        mean = self.squared_residual() / (2 * self.sigma_prior**2)
        return KLShares(mean, th.zeros_like(mean))

    def means(self) -> Iterator[nn.Parameter]:
        yield self.values

    def mean_residual(self) -> th.Tensor:
        """Dense, for looking inside; nothing that acts or learns makes it."""
        zeros = self.values.new_zeros(*self.size[:-3], 1, *self.size[-2:])
        return composed(zeros, self.positions, self.values, self.shape.n_tasks)

    def squared_residual(self) -> th.Tensor:
        lead = self.size[:-2]
        sums = self.values.new_zeros(th.Size(lead).numel())
        return sums.index_add(0, self.matrix_ids(), self.values.square()).reshape(lead)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A position beyond the layer would end in an error at the first use, on a GPU in one that cannot be caught."""
        positions = state_dict.get(f"{prefix}positions")
        if positions is not None and positions.numel():
            limit = th.Size(self.size).numel()
            ascending = bool((positions.diff() > 0).all())
            if not (ascending and int(positions[0]) >= 0 and int(positions[-1]) < limit):
                raise ValueError(
                    f"{prefix}positions must ascend between 0 and {limit - 1}, the weights of the layer's residuals."
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
