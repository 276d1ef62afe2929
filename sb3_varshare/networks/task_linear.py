"""Layers that are conditioned on the task by their weights."""

from __future__ import annotations

import difflib
import inspect
import math
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_varshare.adapters import ADAPTERS, Adapter, KLWeights, LayerShape
from sb3_varshare.adapters.base import task_matmul


def make_adapter(name: str, shape: LayerShape, weight_rms: float, kwargs: dict[str, Any] | None = None) -> Adapter:
    """
    :param name: a key of :data:`~sb3_varshare.adapters.ADAPTERS`
    :param shape: sizes of the layer
    :param weight_rms: root mean square of the layer's initial weights
    :param kwargs: the adapter's own arguments
    :raises ValueError: the adapter is unknown
    :raises TypeError: the adapter has no such argument
    """
    if name not in ADAPTERS:
        near = difflib.get_close_matches(str(name), ADAPTERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"adapter must be one of {sorted(ADAPTERS)}, got {name!r}.{hint}")
    known = set(inspect.signature(ADAPTERS[name]).parameters) - {"shape", "weight_rms"}
    unknown = set(kwargs or {}) - known
    if unknown:
        raise TypeError(f"adapter {name!r} takes the arguments {sorted(known)}, got also {sorted(unknown)}.")
    return ADAPTERS[name](shape, weight_rms, **(kwargs or {}))  # type: ignore[call-arg]


class TaskLinear(nn.Module):
    """
    A linear layer with a shared base and, per task, whatever the adapter adds to it.

    :param in_features: inputs I
    :param out_features: outputs O
    :param n_tasks: tasks T
    :param adapter: name of the residual
    :param adapter_kwargs: arguments of the residual
    :param n_members: ensemble members K, an axis in front of all others; ``None`` for none
    :param gain: of the orthogonal initial weight
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n_tasks: int,
        adapter: str = "varshare",
        adapter_kwargs: dict[str, Any] | None = None,
        n_members: int | None = None,
        gain: float = math.sqrt(2),
    ) -> None:
        super().__init__()
        self.shape = LayerShape(n_tasks, in_features, out_features, n_members)
        self.weight_rms = gain / math.sqrt(max(in_features, out_features))
        self.adapter = make_adapter(adapter, self.shape, self.weight_rms, adapter_kwargs)
        base_tasks = n_tasks if self.adapter.per_task_base else 1
        self.theta = nn.Parameter(th.empty(*self.shape.members, base_tasks, in_features, out_features))
        self.bias = nn.Parameter(th.zeros(*self.shape.members, base_tasks, 1, out_features))
        for matrix in self.theta.detach().flatten(0, -3):
            nn.init.orthogonal_(matrix, gain)

    def forward(self, x: th.Tensor, sample: bool = False, kl_weights: KLWeights | None = None) -> th.Tensor:
        """
        :param x: (T, B, I) or (*K, T, B, I)
        :param sample: draw the residual instead of taking its mean
        :param kl_weights: the backward pass also adds the gradient of the weighted KL
        :return: (*K, T, B, O)
        """
        rows = x.expand(*self.shape.members, *x.shape[-3:])
        return self.adapter.product(rows, self.theta, self.bias, sample, kl_weights)

    def base(self, x: th.Tensor) -> th.Tensor:
        """
        Output of the shared base alone, phi = 0.

        :param x: (T, B, I) or (*K, T, B, I)
        :return: (*K, T, B, O)
        :raises TypeError: the adapter shares nothing
        """
        if self.adapter.per_task_base:
            raise TypeError("independent networks have no shared base: use adapter='none' for one network.")
        return task_matmul(x, self.theta, self.bias)

    def with_residual(self, x: th.Tensor, residual: th.Tensor) -> th.Tensor:
        """
        Output with given residuals, each for a batch of rows of its own.

        :param x: (N, B, I) or (*K, N, B, I): the residuals stand on the task axis
        :param residual: (*K, N, I, O)
        :return: (*K, N, B, O)
        """
        return th.matmul(x, self.theta + residual) + self.bias

    def merged_weight(self, task_id: int | None = None) -> th.Tensor:
        """
        Base and mean residual composed.

        :param task_id: one task, or ``None`` for all
        :return: (*K, I, O), or (*K, T, I, O) for all tasks
        """
        weight = self.adapter.merged_weight(self.theta)
        return weight if task_id is None else weight[..., task_id, :, :]

    def averaged_tensors(self) -> tuple[th.Tensor, ...]:
        """What the target network averages: the mean weight's tensors, then the bias."""
        return (*self.adapter.averaged_tensors(self.theta), self.bias)

    def recenter(self, weights: th.Tensor | None = None) -> None:
        """
        Move the tasks' mean residual into the base; no output changes.

        :param weights: (T,) weight of each task in the mean; ``None`` for the plain mean
        """
        self.adapter.recenter(self.theta.detach(), weights)


class AveragedLinear(nn.Module):
    """
    The mean weight of a :class:`TaskLinear`, held on its own so that it can follow as a Polyak average.

    The average is taken over composed weights: no copy of the spread, one product, and re-centring, which leaves
    the composed weight unchanged, never touches it.

    :param source: the layer to follow
    """

    def __init__(self, source: TaskLinear) -> None:
        super().__init__()
        self._product = type(source.adapter).averaged_product
        tensors = (tensor.detach().clone() for tensor in source.averaged_tensors())
        self.tensors = nn.ParameterList(nn.Parameter(tensor, requires_grad=False) for tensor in tensors)
        fixed = source.adapter.fixed_tensors()
        self._fixed = [f"fixed_{number}" for number in range(len(fixed))]
        for name, tensor in zip(self._fixed, fixed, strict=True):
            # Not a copy: who counts memory, and torch.save, find them once.
            self.register_buffer(name, tensor)

    def averaged_tensors(self) -> tuple[th.Tensor, ...]:
        """As :meth:`TaskLinear.averaged_tensors`."""
        return tuple(self.tensors)

    def forward(self, x: th.Tensor, sample: bool = False, kl_weights: KLWeights | None = None) -> th.Tensor:
        """As the source's mean output; there is nothing to sample and no KL."""
        *tensors, bias = self.tensors
        return self._product(x, (*tensors, *(getattr(self, name) for name in self._fixed)), bias)


class TaskLayerNorm(nn.Module):
    """
    LayerNorm whose gain and offset may have a task and an ensemble axis.

    :param features: size of the normalised axis
    :param n_tasks: tasks T, or 1 for a gain and offset that all tasks share
    :param n_members: ensemble members K, or ``None``
    """

    eps = 1e-6  # flax's, which BRC uses; PyTorch's default is 1e-5

    def __init__(self, features: int, n_tasks: int = 1, n_members: int | None = None) -> None:
        super().__init__()
        members = () if n_members is None else (n_members,)
        self.weight = nn.Parameter(th.ones(*members, n_tasks, 1, features))
        self.bias = nn.Parameter(th.zeros(*members, n_tasks, 1, features))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (*K, T, B, features)
        :return: the same shape
        """
        return th.addcmul(self.bias, F.layer_norm(x, x.shape[-1:], eps=self.eps), self.weight)
