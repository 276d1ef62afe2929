"""What every network of task-conditioned layers can do, whatever its shape."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch as th
from torch import nn

from sb3_varshare.adapters import KLWeights
from sb3_varshare.networks.task_linear import AveragedLinear, TaskLayerNorm, TaskLinear

Apply = Callable[[TaskLinear, th.Tensor], th.Tensor]
SelfNetwork = TypeVar("SelfNetwork", bound="TaskNetwork")


class TaskNetwork(nn.Module, ABC):
    """A network whose only knowledge of the task sits in the weights of its :class:`TaskLinear` layers."""

    @abstractmethod
    def run(self, x: th.Tensor, apply: Apply) -> th.Tensor:
        """
        The network with its linear layers applied in a given way.

        :param x: (T, B, in_features)
        :param apply: how a linear layer is applied to its input
        :return: (*K, T, B, out_features)
        """

    def forward(self, x: th.Tensor, sample: bool = False, kl_weights: KLWeights | None = None) -> th.Tensor:
        """
        :param x: (T, B, in_features)
        :param sample: draw the residuals instead of taking their mean
        :param kl_weights: the backward pass also adds the gradient of the weighted KL, as if it were part
            of the loss; for one forward pass of those that a loss is made of, and with ``sample=True``
        :return: (*K, T, B, out_features)
        """
        return self.run(x, lambda layer, inputs: cast(th.Tensor, layer(inputs, sample, kl_weights)))

    def base(self, x: th.Tensor) -> th.Tensor:
        """
        The shared base alone, phi = 0.

        :param x: (T, B, in_features)
        :return: (*K, T, B, out_features)
        :raises TypeError: the adapter shares nothing
        """
        return self.run(x, lambda layer, inputs: layer.base(inputs))

    def with_residuals(self, x: th.Tensor, residuals: list[th.Tensor]) -> th.Tensor:
        """
        Output with given residuals, each for a batch of rows of its own; rows of one task may come with several draws.

        :param x: (N, B, in_features)
        :param residuals: of each linear layer, (*K, N, I, O), as :meth:`draw` gives them
        :return: (*K, N, B, out_features)
        """
        remaining = iter(residuals)
        return self.run(x, lambda layer, inputs: layer.with_residual(inputs, next(remaining)))

    def draw(self, task_ids: th.Tensor) -> list[th.Tensor]:
        """
        One residual per row and linear layer from the posterior of the row's task.

        :param task_ids: (N,)
        :return: per linear layer (*K, N, I, O)
        :raises TypeError: the adapter has no posterior
        """
        return [layer.adapter.draw(task_ids) for layer in self.linears()]

    def linears(self) -> Iterator[TaskLinear]:
        """The task-conditioned linear layers, in the order in which they are applied."""
        return (layer for _, layer in self.named_linears())

    def named_linears(self) -> Iterator[tuple[str, TaskLinear]]:
        """The same with their names as modules, such as ``blocks.0.linear_in``."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, TaskLinear))

    def kl_divergence(self) -> th.Tensor:
        """
        KL from posterior to prior, summed over members, layers and weights.

        :return: (T,) nats
        """
        layers = th.stack([layer.adapter.kl_divergence() for layer in self.linears()])
        return layers.flatten(0, -2).sum(0)

    def recenter(self, weights: th.Tensor | None = None) -> None:
        """
        Move the tasks' mean residual of every layer into the base: predictions stay, the KLs' sum does not rise.

        :param weights: (T,) weight of each task in the mean; ``None`` for the plain mean
        """
        for layer in self.linears():
            layer.recenter(weights)

    def task_parameters(self) -> Iterator[nn.Parameter]:
        """The tensors that belong to one task each (their task axis is T)."""
        shared = {id(parameter) for parameter in self.shared_parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in shared)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The tensors that all tasks share; none with ``adapter="independent"``."""
        if any(layer.adapter.per_task_base for layer in self.linears()):
            return iter(())
        residuals = {id(parameter) for parameter in (*self.means(), *self.spreads())}
        return (parameter for parameter in self.parameters() if id(parameter) not in residuals)

    def means(self) -> Iterator[nn.Parameter]:
        """Per-task means of the residuals."""
        return (parameter for layer in self.linears() for parameter in layer.adapter.means())

    def spreads(self) -> Iterator[nn.Parameter]:
        """Per-task parameters of the residuals' standard deviations."""
        return (parameter for layer in self.linears() for parameter in layer.adapter.spreads())

    def averaged_copy(self: SelfNetwork) -> SelfNetwork:
        """A frozen network of mean weights, into which :meth:`averaged_tensors` can be averaged."""
        replaced: dict[int, Any] = {id(layer): AveragedLinear(layer) for layer in self.linears()}
        # A memo entry is taken as the copy of its key: the layers are replaced, all else is copied.
        return copy.deepcopy(self, replaced).requires_grad_(False)

    def averaged_tensors(self) -> list[th.Tensor]:
        """The tensors of the mean network, in the same order for a network and its averaged copy."""
        tensors: list[th.Tensor] = []
        for module in self.modules():
            if isinstance(module, TaskLinear | AveragedLinear):
                tensors.extend(module.averaged_tensors())
            elif isinstance(module, TaskLayerNorm):
                tensors.extend(module.parameters())
        return tensors
