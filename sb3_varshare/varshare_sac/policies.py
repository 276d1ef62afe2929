"""The multi-task policy: actor, categorical critics and their target, task-conditioned by their weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_varshare.adapters import KLWeights
from sb3_varshare.categorical import narrow_logits
from sb3_varshare.grouping import rank_within_task
from sb3_varshare.losses import q_values
from sb3_varshare.networks import TASK_INPUTS, BroNet, TaskLinear, TaskNetwork
from sb3_varshare.networks.task_network import Apply
from sb3_varshare.tasks.encoding import split_task
from sb3_varshare.varshare_sac.kept_weights import allocate_kept
from sb3_varshare.varshare_sac.observation_norm import NoObservationNorm, ObservationNorm
from sb3_varshare.varshare_sac.squashed_gaussian import bounded_log_std, sample_action

# How much smaller the critic head's initial weights are with a narrow initial return distribution.
NARROW_HEAD_SCALE = 0.01


class Actor(TaskNetwork):
    """
    BroNet with a head for the mean and one for the logarithm of the standard deviation.

    :param in_features: observation and task input together
    :param action_size: A
    :param width: hidden features
    :param depth: residual blocks
    :param network_kwargs: tasks and adapter, as :class:`~sb3_varshare.networks.BroNet` takes them
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self, in_features: int, action_size: int, width: int, depth: int, network_kwargs: dict[str, Any]
    ) -> None:
        super().__init__()
        self.trunk = BroNet(in_features, None, width, depth, **network_kwargs)
        self.mean = TaskLinear(width, action_size, **network_kwargs)
        self.log_std = TaskLinear(width, action_size, **network_kwargs, gain=1.0)

    def run(self, x: th.Tensor, apply: Apply) -> th.Tensor:
        """
        :return: (T, B, 2A): means before squashing, then bounded log standard deviations
        """
        hidden = self.trunk.run(x, apply)
        return th.cat([apply(self.mean, hidden), bounded_log_std(apply(self.log_std, hidden))], -1)


class Critic(nn.Module):
    """
    K categorical critics in one network, and the task input that they train.

    :param in_features: observation and action together
    :param width: hidden features
    :param depth: residual blocks
    :param n_members: K
    :param support: (M,) atoms
    :param initial_return_std: spread of the initial return distribution; ``None`` for a plain random head
    :param task_input: what is told about the task besides the weights
    :param network_kwargs: tasks and adapter, as :class:`~sb3_varshare.networks.BroNet` takes them
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        in_features: int,
        width: int,
        depth: int,
        n_members: int,
        support: th.Tensor,
        initial_return_std: float | None,
        task_input: str | None,
        network_kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        self.task_input = TASK_INPUTS[task_input](network_kwargs["n_tasks"])
        inputs = in_features + self.task_input.size
        self.net = BroNet(inputs, len(support), width, depth, **network_kwargs, n_members=n_members)
        self.register_buffer("support", support, persistent=False)
        self.support: th.Tensor
        if initial_return_std is not None:
            self.net.scale_output(NARROW_HEAD_SCALE, narrow_logits(support, initial_return_std))

    def forward(
        self,
        observations: th.Tensor,
        actions: th.Tensor,
        sample: bool = False,
        kl_weights: KLWeights | None = None,
    ) -> th.Tensor:
        """
        :param observations: (T, B, D) normalised
        :param actions: (T, B, A)
        :param sample: draw the residuals instead of taking their mean
        :param kl_weights: the backward pass also adds the gradient of the weighted KL
        :return: (K, T, B, M) logits of the return distribution
        """
        features = self.task_input.append(th.cat([observations, actions], -1))
        logits: th.Tensor = self.net(features, sample, kl_weights)
        return logits

    def probabilities(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Mean over the critics of their return distributions, with mean weights.

        :return: (T, B, M)
        """
        return F.softmax(self(observations, actions), -1).mean(0)

    def averaged_tensors(self) -> list[th.Tensor]:
        """What the target follows."""
        return [*self.net.averaged_tensors(), *self.task_input.parameters()]

    def averaged_copy(self) -> Critic:
        """The target critic."""
        memo: dict[int, Any] = {id(self.net): self.net.averaged_copy()}
        return copy.deepcopy(self, memo).requires_grad_(False)


class MultiTaskPolicy(BasePolicy):
    """
    Policy of :class:`~sb3_varshare.VarShareSAC`.

    The task of an observation is read from the one-hot at its end, never from the rank of its environment.

    :param observation_space: flat Box ``[observation | one-hot]``
    :param action_space: Box
    :param lr_schedule: learning rate as a function of the remaining progress
    :param n_tasks: tasks T
    :param one_hot_size: length of the one-hot; 0 for a single task without one
    :param action_sizes: (T,) action dimensions of each task
    :param adapter: residual of the networks
    :param adapter_kwargs: its arguments
    :param task_input: ``None``, ``"one_hot"`` or ``"embedding"``
    :param actor_residuals: whether the actor has residuals
    :param critic_residuals: whether the critics have residuals
    :param actor_width: hidden features of the actor
    :param actor_depth: residual blocks of the actor
    :param critic_width: hidden features of each critic
    :param critic_depth: residual blocks of each critic
    :param n_critics: K
    :param n_atoms: M
    :param v_min: lowest atom
    :param v_max: highest atom
    :param initial_return_std: spread of the initial return distribution; ``None`` for BRC's random head
    :param normalize_observations: normalise each task's observations by their running statistics
    :param mu_lr_multiplier: of the learning rate of the residuals' means
    :param rho_lr_multiplier: of the learning rate of the residuals' spreads
    :param base_frozen: leave whatever the tasks share as it is, and train the residuals and the task embedding alone
    :param optimizer_class: optimizer of actor and critics
    :param optimizer_kwargs: its arguments; weight decay never applies to the residuals
    :param kept_weights: for each network that was pruned, ``"actor"`` or ``"critic"``, the number of weights that are
        left in each linear layer
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        n_tasks: int = 1,
        one_hot_size: int = 0,
        action_sizes: Sequence[int] | None = None,
        adapter: str = "varshare",
        adapter_kwargs: dict[str, Any] | None = None,
        task_input: str | None = None,
        actor_residuals: bool = True,
        critic_residuals: bool = True,
        actor_width: int = 256,
        actor_depth: int = 1,
        critic_width: int = 256,
        critic_depth: int = 2,
        n_critics: int = 2,
        n_atoms: int = 101,
        v_min: float = -10.0,
        v_max: float = 10.0,
        initial_return_std: float | None = 0.5,
        normalize_observations: bool = False,
        mu_lr_multiplier: float = 1.0,
        rho_lr_multiplier: float = 1.0,
        base_frozen: bool = False,
        optimizer_class: type[th.optim.Optimizer] = th.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        kept_weights: dict[str, list[int]] | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        self.n_tasks, self.one_hot_size = n_tasks, one_hot_size
        self.observation_size = int(np.prod(observation_space.shape)) - one_hot_size
        self.action_size = int(np.prod(action_space.shape))
        self.lr_multipliers = {"shared": 1.0, "mu": mu_lr_multiplier, "rho": rho_lr_multiplier}
        self.network_kwargs = {"n_tasks": n_tasks, "adapter": adapter, "adapter_kwargs": adapter_kwargs or {}}
        plain = {"n_tasks": n_tasks, "adapter": "none", "adapter_kwargs": {}}
        kept = kept_weights or {}
        norm = ObservationNorm(n_tasks, self.observation_size) if normalize_observations else NoObservationNorm()
        self.observation_norm: ObservationNorm | NoObservationNorm = norm
        self.critic = Critic(
            self.observation_size + self.action_size,
            critic_width,
            critic_depth,
            n_critics,
            th.linspace(v_min, v_max, n_atoms),
            initial_return_std,
            task_input,
            self.network_kwargs if critic_residuals and "critic" not in kept else plain,
        )
        if "critic" in kept:
            allocate_kept(self.critic.net, "critic", kept["critic"], adapter_kwargs)
        self.critic_target = self.critic.averaged_copy()
        self.actor = Actor(
            self.observation_size + self.critic.task_input.size,
            self.action_size,
            actor_width,
            actor_depth,
            self.network_kwargs if actor_residuals and "actor" not in kept else plain,
        )
        if "actor" in kept:
            allocate_kept(self.actor, "actor", kept["actor"], adapter_kwargs)
        self.register_buffer("action_mask", self._action_mask(action_sizes), persistent=False)
        self.action_mask: th.Tensor
        self._base_only, self.base_frozen = False, base_frozen
        learning_rate = lr_schedule(1)
        self.actor.optimizer = self._make_optimizer(self.actor, self.actor, learning_rate)
        self.critic.optimizer = self._make_optimizer(self.critic, self.critic.net, learning_rate)

    def _action_mask(self, action_sizes: Sequence[int] | None) -> th.Tensor:
        sizes = th.tensor(action_sizes or [self.action_size] * self.n_tasks)
        return (th.arange(self.action_size) < sizes[:, None]).float()[:, None]

    def _make_optimizer(self, module: nn.Module, network: TaskNetwork, learning_rate: float) -> th.optim.Optimizer:
        """
        Weight decay would be a second, hidden prior on the residuals: they are groups of their own without it. A frozen
        base is in no group, so that neither gradients nor weight decay nor momentum can reach it.
        """
        roles = {"mu": list(network.means()), "rho": list(network.spreads())}
        elsewhere = {id(parameter) for parameters in roles.values() for parameter in parameters}
        if self.base_frozen:
            elsewhere |= {id(parameter.requires_grad_(False)) for parameter in network.shared_parameters()}
        roles = {"shared": [p for p in module.parameters() if id(p) not in elsewhere], **roles}
        groups: list[dict[str, Any]] = []
        for role, parameters in roles.items():
            multiplier = self.lr_multipliers[role]
            groups.append({"params": parameters, "lr": learning_rate * multiplier, "lr_multiplier": multiplier})
            if role != "shared":
                groups[-1]["weight_decay"] = 0.0
        # A network without residuals has nothing to train on a frozen base; torch wants a group all the same.
        groups = [group for group in groups if group["params"]] or groups[:1]
        return self.optimizer_class(groups, lr=learning_rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

    def compile_networks(self) -> None:
        """Compile actor, critics and target in place, at their first use: names of parameters and saving stay."""
        for network in (self.actor, self.critic.net, self.critic_target.net):
            network.compile()

    def actor_input(self, observations: th.Tensor) -> th.Tensor:
        """
        What the actor reads; it sees the critics' task embedding without training it.

        :param observations: (T, B, D) raw
        :return: (T, B, D + task input)
        """
        return self.critic.task_input.append(self.observation_norm(observations)).detach()

    def action_log_prob(
        self, observations: th.Tensor, sample: bool = False, kl_weights: KLWeights | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Draw actions.

        :param observations: (T, B, D) raw
        :param sample: draw the actor's residuals instead of taking their mean
        :param kl_weights: the backward pass also adds the gradient of the weighted KL of the actor
        :return: actions (T, B, A) and their log-probabilities (T, B)
        """
        mean, log_std = self.actor(self.actor_input(observations), sample, kl_weights).chunk(2, -1)
        return sample_action(mean, log_std, self.action_mask)

    def q_values(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Expected return by the mean over the critics, with mean weights, in the critic's normalised units.

        :param observations: (T, B, D) raw
        :param actions: (T, B, A) in [-1, 1]
        :return: (T, B)
        """
        return q_values(self.critic(self.observation_norm(observations), actions), self.critic.support)

    @property
    def has_base(self) -> bool:
        """Whether the tasks share anything that could act alone."""
        return not any(layer.adapter.per_task_base for layer in self.actor.linears())

    @contextmanager
    def base_only(self) -> Iterator[None]:
        """Within this context the policy acts with the shared base alone, phi = 0."""
        self._base_only = True
        try:
            yield
        finally:
            self._base_only = False

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        :param observation: (N, D + one-hot), tasks in any order and number
        :param deterministic: the mean of the distribution instead of a draw from it
        :return: (N, A) in [-1, 1]
        """
        assert isinstance(observation, th.Tensor)
        return self.act(observation, deterministic)

    def act(self, observations: th.Tensor, deterministic: bool = False, rows_per_task: int | None = None) -> th.Tensor:
        """
        Actions for rows of any tasks, on the device.

        :param observations: (N, D + one-hot), tasks in any order and number
        :param deterministic: the mean of the distribution instead of a draw from it
        :param rows_per_task: the most rows that one task has; where it is not given, the device is waited for to count
        :return: (N, A) in [-1, 1]
        """
        rows, task_ids = split_task(observations.float(), self.one_hot_size)
        slots = rank_within_task(task_ids, self.n_tasks)
        size = int(slots.max()) + 1 if rows_per_task is None else rows_per_task
        grid = rows.new_zeros(self.n_tasks, size, self.observation_size)
        grid[task_ids, slots] = rows
        features = self.actor_input(grid)
        output = self.actor.base(features) if self._base_only else self.actor(features)
        return self.squash(output, self.action_mask, deterministic)[task_ids, slots]

    def squash(self, output: th.Tensor, mask: th.Tensor, deterministic: bool) -> th.Tensor:
        """
        Actions from the actor's output.

        :param output: (T, B, 2A)
        :param mask: (T, 1, A)
        :param deterministic: the mean instead of a draw
        :return: (T, B, A)
        """
        mean, log_std = output.chunk(2, -1)
        return th.tanh(mean) * mask if deterministic else sample_action(mean, log_std, mask)[0]
