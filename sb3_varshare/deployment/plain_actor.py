"""One task's actor as a plain network: torch's own layers, and nothing of the method."""

from __future__ import annotations

from typing import cast

import torch as th
from torch import nn

from sb3_varshare.networks.task_linear import TaskLayerNorm


class Normalization(nn.Module):
    """
    Observations by fixed statistics, clipped.

    :param mean: (D,)
    :param std: (D,) positive
    :param clip: largest magnitude afterwards
    """

    def __init__(self, mean: th.Tensor, std: th.Tensor, clip: float) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.mean: th.Tensor
        self.std: th.Tensor
        self.clip = clip

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: (B, D)
        :return: (B, D)
        """
        return ((observations - self.mean) / self.std).clamp(-self.clip, self.clip)


class ResidualBlock(nn.Module):
    """
    ``x + LN(Linear(ReLU(LN(Linear(x)))))``

    :param width: features in and out
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_in, self.norm_in = nn.Linear(width, width), nn.LayerNorm(width, eps=TaskLayerNorm.eps)
        self.linear_out, self.norm_out = nn.Linear(width, width), nn.LayerNorm(width, eps=TaskLayerNorm.eps)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (B, width)
        :return: (B, width)
        """
        hidden = self.norm_out(self.linear_out(th.relu(self.norm_in(self.linear_in(x)))))
        return x + cast(th.Tensor, hidden)


class Trunk(nn.Module):
    """
    ``Linear, LN, ReLU, blocks``

    :param in_features: inputs
    :param width: hidden features
    :param depth: residual blocks
    """

    def __init__(self, in_features: int, width: int, depth: int) -> None:
        super().__init__()
        self.linear_in, self.norm_in = nn.Linear(in_features, width), nn.LayerNorm(width, eps=TaskLayerNorm.eps)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(depth)))

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (B, in_features)
        :return: (B, width)
        """
        return cast(th.Tensor, self.blocks(th.relu(self.norm_in(self.linear_in(x)))))


class ActionMap(nn.Module):
    """
    From [-1, 1] linearly onto bounds.

    :param low: (A,) lowest action, of the type that actions shall have
    :param high: (A,) highest
    """

    def __init__(self, low: th.Tensor, high: th.Tensor) -> None:
        super().__init__()
        tensors = {"low": low, "high": high, "middle": (low + high) / 2, "reach": (high - low) / 2}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.low: th.Tensor
        self.high: th.Tensor
        self.middle: th.Tensor
        self.reach: th.Tensor

    def forward(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: (B, A) in [-1, 1]
        :return: (B, A) within the bounds
        """
        return th.clamp(self.middle + actions.to(self.middle.dtype) * self.reach, self.low, self.high)


class PlainActor(nn.Module):
    """
    A task's own observations in, its own actions out.

    :param normalization: of the observations
    :param trunk: all hidden layers
    :param mean: head of the mean before squashing
    :param log_std: head of the logarithm of the standard deviation, unbounded; ``None`` for an actor that only acts
        deterministically
    :param action_map: from [-1, 1] onto the bounds
    """

    def __init__(
        self,
        normalization: nn.Module,
        trunk: Trunk,
        mean: nn.Linear,
        log_std: nn.Linear | None,
        action_map: ActionMap,
    ) -> None:
        super().__init__()
        self.normalization, self.trunk, self.mean, self.log_std = normalization, trunk, mean, log_std
        self.action_map = action_map

    @property
    def observation_size(self) -> int:
        """Length D of an observation."""
        return self.trunk.linear_in.in_features

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        The mean of the policy.

        :param observations: (B, D) raw, float32
        :return: (B, A) as the task's environment takes them
        """
        hidden = self.trunk(self.normalization(observations))
        return cast(th.Tensor, self.action_map(th.tanh(self.mean(hidden))))

    def heads(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        What both heads put out; only with a head of the standard deviation.

        :param observations: (B, D) raw, float32
        :return: (B, A) means before squashing, (B, A) logarithms of standard deviations, unbounded
        """
        assert self.log_std is not None, "this actor has no standard deviation"
        hidden = self.trunk(self.normalization(observations))
        return self.mean(hidden), self.log_std(hidden)
