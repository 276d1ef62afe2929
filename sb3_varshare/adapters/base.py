"""The contract of a per-task weight residual: torch only, no reinforcement learning."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_varshare.adapters.kl import KLShares, KLWeights


class LayerShape(NamedTuple):
    """
    Sizes of a task-conditioned linear layer.

    :param n_tasks: number of tasks T
    :param in_features: inputs I
    :param out_features: outputs O
    :param n_members: ensemble members K, which stand as a further axis in front; ``None`` for no such axis
    """

    n_tasks: int
    in_features: int
    out_features: int
    n_members: int | None = None

    @property
    def members(self) -> tuple[int, ...]:
        """``(K,)``, or ``()`` without an ensemble axis: written (*K) in the shapes below."""
        return () if self.n_members is None else (self.n_members,)


def task_matmul(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """
    Product of every task's rows with that task's weight.

    :param x: (T, B, I) or (*K, T, B, I)
    :param weight: (*K, T, I, O), or (*K, 1, I, O) for one weight that all tasks share
    :param bias: what is added, (*K, T, 1, O) or (*K, 1, 1, O)
    :return: (*K, T, B, O)
    """
    if weight.shape[-3] == 1 and x.shape[-3] > 1 and (bias is None or bias.shape[-3] == 1):
        # A shared weight meets all rows in one product; broadcasting would copy it once per task.
        offset = None if bias is None else bias.squeeze(-3)
        return _add_matmul(x.flatten(-3, -2), weight.squeeze(-3), offset).unflatten(-2, x.shape[-3:-1])
    return _add_matmul(x, weight, bias)


def _add_matmul(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None) -> th.Tensor:
    """``x @ weight + bias`` with broadcast leading axes: the sum is part of the product, not a pass of its own."""
    if bias is None:
        return th.matmul(x, weight)
    lead = weight.shape[:-2] if weight.dim() >= x.dim() else x.shape[:-2]
    if not lead:
        return th.addmm(bias, x, weight)
    flat = (tensor.expand(*lead, -1, -1).reshape(-1, *tensor.shape[-2:]) for tensor in (bias, x, weight))
    return th.baddbmm(*flat).unflatten(0, lead)


class Adapter(nn.Module, ABC):
    """
    What is added, per task, to the shared weight ``theta`` of a linear layer.

    An adapter never holds ``theta``: the layer owns it and passes it in, as (*K, 1, I, O), or as
    (*K, T, I, O) where :attr:`per_task_base` says that nothing is shared.

    :param shape: sizes of the layer
    """

    per_task_base = False
    is_stochastic = False
    # Absolute standard deviation of the residual's prior, where there is one.
    sigma_prior: float | None = None

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        # What an adapter without parameters knows of the layer's device and dtype.
        self.register_buffer("_zero", th.zeros(()), persistent=False)
        self._zero: th.Tensor

    @abstractmethod
    def averaged_tensors(self, theta: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        The tensors that make up the mean weight and whose Polyak average is the target network's.

        :param theta: the layer's base weight
        """

    def fixed_tensors(self) -> tuple[th.Tensor, ...]:
        """What :meth:`averaged_product` needs besides and no average changes."""
        return ()

    @staticmethod
    def averaged_product(x: th.Tensor, tensors: tuple[th.Tensor, ...], bias: th.Tensor) -> th.Tensor:
        """
        Mean output of the layer from :meth:`averaged_tensors` or an average of them.

        :param x: (T, B, I) or (*K, T, B, I)
        :param tensors: as :meth:`averaged_tensors` returns them, then those of :meth:`fixed_tensors`
        :param bias: (*K, T, 1, O) or (*K, 1, 1, O)
        :return: (*K, T, B, O)
        """
        (weight,) = tensors
        return task_matmul(x, weight, bias)

    def product(
        self,
        x: th.Tensor,
        theta: th.Tensor,
        bias: th.Tensor,
        sample: bool = False,
        kl_weights: KLWeights | None = None,
    ) -> th.Tensor:
        """
        Output of the layer.

        :param x: (T, B, I) or (*K, T, B, I)
        :param theta: the layer's base weight
        :param bias: (*K, T, 1, O) or (*K, 1, 1, O)
        :param sample: draw the residual instead of taking its mean
        :param kl_weights: the backward pass also adds the gradient of the weighted KL; only where the
            residual is sampled or has no noise
        :return: (*K, T, B, O)
        """
        return self.averaged_product(x, self.averaged_tensors(theta), bias)

    def merged_weight(self, theta: th.Tensor) -> th.Tensor:
        """
        Base and mean residual composed.

        :param theta: the layer's base weight
        :return: (*K, T, I, O)
        """
        (weight,) = self.averaged_tensors(theta)
        return weight.expand(*self.shape.members, self.shape.n_tasks, -1, -1)

    def draw(self, task_ids: th.Tensor) -> th.Tensor:
        """
        One residual per row, drawn from the posterior of the row's task.

        :param task_ids: (N,) task of each row
        :return: (*K, N, I, O)
        :raises TypeError: the adapter has no posterior to draw from
        """
        raise TypeError(f"{type(self).__name__} has no posterior over its residual: nothing to draw from.")

    def kl_shares(self) -> KLShares:
        """
        The two shares of the KL from posterior to prior, each summed over all weights of the layer.

        :return: each (*K, T) nats; 0 for an adapter without a residual
        """
        none = self._zero.new_zeros(*self.shape.members, self.shape.n_tasks)
        return KLShares(none, none)

    def kl_divergence(self) -> th.Tensor:
        """
        KL from posterior to prior, summed over all weights of the layer.

        :return: (*K, T) nats, never negative; 0 for an adapter without a residual
        """
        shares = self.kl_shares()
        return shares.mean + shares.spread

    def recenter(self, theta: th.Tensor, weights: th.Tensor | None = None) -> None:
        """
        Move the tasks' mean residual into the base, in place; every task's weight stays what it was.

        :param theta: the layer's base weight, changed in place
        :param weights: (T,) weight of each task in the mean; ``None`` for the plain mean
        """

    def means(self) -> Iterator[nn.Parameter]:
        """Per-task means of the residual (``mu``)."""
        yield from ()

    def spreads(self) -> Iterator[nn.Parameter]:
        """Per-task parameters of the residual's standard deviation (``rho``)."""
        yield from ()

    def mean_residual(self) -> th.Tensor | None:
        """Mean of what is added to each weight, (*K, T, I, O); ``None`` without a residual."""
        return None

    def residual_sigma(self) -> th.Tensor | None:
        """Standard deviation of what is added to each weight, (*K, T, I, O); ``None`` without a spread."""
        return None

    def squared_residual(self) -> th.Tensor | None:
        """Squared Frobenius norm of the mean residual, (*K, T); ``None`` without a residual."""
        mean = self.mean_residual()
        return None if mean is None else mean.square().sum((-2, -1))

    def relative_sigma(self) -> th.Tensor | None:
        """Mean of ``sigma / sigma_prior`` over the weights, (*K, T); ``None`` without a spread."""
        return None


def task_mean(values: th.Tensor, weights: th.Tensor | None) -> th.Tensor:
    """
    Mean over the task axis.

    :param values: (*K, T, I, O)
    :param weights: (T,) not negative, with a positive sum; ``None`` for equal weights
    :return: (*K, 1, I, O)
    """
    if weights is None:
        return values.mean(-3, keepdim=True)
    shares = (weights / weights.sum()).to(values)
    return (values * shares[:, None, None]).sum(-3, keepdim=True)


def prior_std(sigma_prior: float, prior_scale: str, weight_rms: float) -> float:
    """
    Absolute standard deviation of the prior of a layer.

    :param sigma_prior: standard deviation, in the unit that ``prior_scale`` names
    :param prior_scale: ``"relative"`` to the spread of the layer's initial weights, or ``"absolute"``
    :param weight_rms: root mean square of the layer's initial weights
    :raises ValueError: ``sigma_prior`` is not positive and finite or the scale is unknown
    """
    if not 0 < sigma_prior < math.inf:
        raise ValueError(f"sigma_prior must be a positive, finite standard deviation, got {sigma_prior}.")
    if prior_scale not in ("relative", "absolute"):
        raise ValueError(f"prior_scale must be 'relative' or 'absolute', got {prior_scale!r}.")
    return sigma_prior * weight_rms if prior_scale == "relative" else sigma_prior
