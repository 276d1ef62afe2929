"""BroNet with a per-task residual on every linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_varshare.adapters import ADAPTERS
from sb3_varshare.networks.task_linear import TaskLayerNorm, TaskLinear
from sb3_varshare.networks.task_network import Apply, TaskNetwork


class BroBlock(nn.Module):
    """
    ``x + LN(Linear(ReLU(LN(Linear(x)))))``; nothing after the addition.

    :param width: features in and out
    :param make_linear: builds a task-conditioned linear layer from its sizes
    :param make_norm: builds a LayerNorm from its size
    """

    def __init__(
        self, width: int, make_linear: Callable[[int, int], TaskLinear], make_norm: Callable[[int], TaskLayerNorm]
    ) -> None:
        super().__init__()
        self.linear_in, self.norm_in = make_linear(width, width), make_norm(width)
        self.linear_out, self.norm_out = make_linear(width, width), make_norm(width)

    def run(self, x: th.Tensor, apply: Apply) -> th.Tensor:
        """
        :param x: (*K, T, B, width)
        :param apply: how a linear layer is applied
        :return: the same shape
        """
        hidden = F.relu(self.norm_in(apply(self.linear_in, x)))
        return cast(th.Tensor, x + self.norm_out(apply(self.linear_out, hidden)))


class BroNet(TaskNetwork):
    """
    The network of BRC, ``Linear, LN, ReLU, blocks, Linear``, task-conditioned by its weights alone.

    Source: Nauman et al. 2025, "Bigger, Regularized, Categorical" (arXiv 2505.23150)

    :param in_features: inputs
    :param out_features: outputs; ``None`` ends the network after the last block
    :param width: hidden features
    :param depth: number of residual blocks
    :param n_tasks: tasks T
    :param adapter: name of the residual, a key of :data:`~sb3_varshare.adapters.ADAPTERS`
    :param adapter_kwargs: arguments of the residual
    :param n_members: ensemble members K, an axis in front of all others; ``None`` for none
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None,
        width: int,
        depth: int,
        n_tasks: int,
        adapter: str = "varshare",
        adapter_kwargs: dict[str, Any] | None = None,
        n_members: int | None = None,
    ) -> None:
        super().__init__()
        self.n_tasks, self.n_members = n_tasks, n_members

        def make_linear(inputs: int, outputs: int) -> TaskLinear:
            return TaskLinear(inputs, outputs, n_tasks, adapter, adapter_kwargs, n_members)

        def make_norm(features: int) -> TaskLayerNorm:
            return TaskLayerNorm(features, n_tasks if ADAPTERS[adapter].per_task_base else 1, n_members)

        self.linear_in, self.norm_in = make_linear(in_features, width), make_norm(width)
        self.blocks = nn.ModuleList(BroBlock(width, make_linear, make_norm) for _ in range(depth))
        self.linear_out = None if out_features is None else make_linear(width, out_features)

    def run(self, x: th.Tensor, apply: Apply) -> th.Tensor:
        hidden = F.relu(self.norm_in(apply(self.linear_in, x)))
        for block in self.blocks:
            hidden = cast(BroBlock, block).run(hidden, apply)
        return hidden if self.linear_out is None else apply(self.linear_out, hidden)

    @th.no_grad()
    def scale_output(self, factor: float, bias: th.Tensor) -> None:
        """
        Shrink the output layer's initial weights and set its bias.

        :param factor: multiplies the weights
        :param bias: (out_features,)
        """
        assert self.linear_out is not None, "a network without an output layer has nothing to scale"
        self.linear_out.theta.mul_(factor)
        self.linear_out.bias.copy_(bias.expand_as(self.linear_out.bias))
