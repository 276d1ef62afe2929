"""
BRC's agent written in ordinary PyTorch, for ``update_step.py``: what ``adapter="none"`` must not be slower than.

Two critics are two modules of ``nn.Linear`` and ``nn.LayerNorm`` that see the rows of all tasks as one batch. Losses,
replay and optimizers are those of the package.
"""

from __future__ import annotations

import copy
from typing import Any

import torch as th
import torch.nn.functional as F
from torch import nn

from sb3_varshare import VarShareSAC, losses
from sb3_varshare.networks import TaskNetwork
from sb3_varshare.types import TaskBatch
from sb3_varshare.varshare_sac.squashed_gaussian import bounded_log_std, sample_action


class PlainBroNet(nn.Module):
    """
    ``Linear, LN, ReLU, blocks, Linear``.

    :param inputs: features in
    :param outputs: features out
    :param width: hidden features
    :param depth: residual blocks
    """

    def __init__(self, inputs: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()

        def pair(features: int) -> list[nn.Module]:
            return [nn.Linear(features, width), nn.LayerNorm(width, eps=1e-6)]

        self.first = nn.Sequential(*pair(inputs), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(*pair(width), nn.ReLU(inplace=True), *pair(width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (rows, inputs)
        :return: (rows, outputs)
        """
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        logits: th.Tensor = self.head(x)
        return logits

    @th.no_grad()
    def copy_weights(self, weights: list[th.Tensor], biases: list[th.Tensor]) -> None:
        """
        :param weights: (inputs, outputs) of each linear layer, in order
        :param biases: (outputs,)
        """
        linears = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for linear, weight, bias in zip(linears, weights, biases, strict=True):
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias)


class PlainCritic(nn.Module):
    """
    Critics beside each other.

    :param members: one network each
    """

    optimizer: th.optim.Optimizer

    def __init__(self, members: list[PlainBroNet]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param observations: (T, B, D)
        :param actions: (T, B, A)
        :return: (K, T, B, M)
        """
        rows = th.cat([observations, actions], -1).flatten(0, 1)
        return th.stack([member(rows) for member in self.members]).unflatten(1, observations.shape[:2])


class PlainAgent:
    """
    Sizes, hyper-parameters, replay and first weights of an agent with ``adapter="none"``, without its layers.

    :param model: that agent
    """

    def __init__(self, model: VarShareSAC) -> None:
        self.tau, self.target_entropy = model.tau, model.target_entropy_tensor
        self.replay_buffer, self.reward_scale = model.replay_buffer, model.reward_scale
        self.support, self.mask = model.policy.critic.support, model.policy.action_mask
        size, action = model.policy.observation_size, model.policy.action_size
        weights, biases = layers(model.policy.critic.net)
        members = []
        for k in range(model.n_critics):
            members.append(PlainBroNet(size + action, model.n_atoms, model.critic_width, model.critic_depth))
            members[-1].copy_weights([weight[k] for weight in weights], [bias[k] for bias in biases])
        self.critic = PlainCritic(members).to(model.device)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor: Any = PlainBroNet(size, 2 * action, model.actor_width, model.actor_depth).to(model.device)
        *weights, mean, log_std = layers(model.policy.actor)[0]
        *biases, mean_bias, log_std_bias = layers(model.policy.actor)[1]
        self.actor.copy_weights([*weights, th.cat([mean, log_std], -1)], [*biases, th.cat([mean_bias, log_std_bias])])
        for module in (self.actor, self.critic):
            module.optimizer = th.optim.AdamW(
                module.parameters(), lr=model.lr_schedule(1), weight_decay=model.weight_decay, fused=True
            )
        assert model.log_ent_coef is not None and model.ent_coef_optimizer is not None
        self.log_ent_coef = model.log_ent_coef.detach().clone().requires_grad_(True)
        self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], **model.ent_coef_optimizer.defaults)
        self._check_same(model)

    @th.no_grad()
    def _check_same(self, model: VarShareSAC) -> None:
        """The comparison means something only where both compute the same."""
        batch, policy = self.replay_buffer.sample(2 * model.n_tasks), model.policy
        th.testing.assert_close(
            self.critic(batch.observations, batch.actions), policy.critic(batch.observations, batch.actions)
        )
        mean, log_std = self.actor(batch.observations.flatten(0, 1)).chunk(2, -1)
        th.testing.assert_close(
            th.cat([mean, bounded_log_std(log_std)], -1), policy.actor(batch.observations).flatten(0, 1)
        )

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        :param gradient_steps: how many
        :param batch_size: rows of all tasks together
        """
        metrics = []
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size)
            ent_coef = self.log_ent_coef.detach().exp()
            critic_loss = self._critic_step(batch, ent_coef)
            self._update_target()
            actor_loss, log_prob = self._actor_step(batch, ent_coef)
            ent_coef_loss = self._entropy_step(log_prob)
            metrics.append(th.stack([critic_loss, actor_loss, ent_coef_loss]))
        self.losses = th.stack(metrics).mean(0).tolist()

    def _act(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        output = self.actor(observations.flatten(0, 1)).unflatten(0, observations.shape[:2])
        mean, log_std = output.chunk(2, -1)
        return sample_action(mean, bounded_log_std(log_std), self.mask)

    @th.no_grad()
    def _critic_target(self, batch: TaskBatch, ent_coef: th.Tensor) -> th.Tensor:
        next_actions, next_log_prob = self._act(batch.next_observations)
        return losses.target_distribution(
            batch.rewards / self.reward_scale(ent_coef, self.target_entropy)[:, None],
            batch.discounts,
            F.softmax(self.critic_target(batch.next_observations, next_actions), -1).mean(0),
            next_log_prob,
            ent_coef,
            self.support,
        )

    def _critic_step(self, batch: TaskBatch, ent_coef: th.Tensor) -> th.Tensor:
        target = self._critic_target(batch, ent_coef)
        loss = losses.critic_loss(self.critic(batch.observations, batch.actions), target).mean()
        return self._minimise(self.critic, loss)

    def _actor_step(self, batch: TaskBatch, ent_coef: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        actions, log_prob = self._act(batch.observations)
        q_values = losses.q_values(self.critic(batch.observations, actions), self.support)
        loss = losses.actor_loss(log_prob, q_values, ent_coef).mean()
        return self._minimise(self.actor, loss), log_prob.detach()

    def _entropy_step(self, log_prob: th.Tensor) -> th.Tensor:
        loss = losses.entropy_loss(self.log_ent_coef, log_prob, self.target_entropy).mean()
        self.ent_coef_optimizer.zero_grad()
        loss.backward()
        self.ent_coef_optimizer.step()
        return loss.detach()

    @staticmethod
    def _minimise(module: Any, loss: th.Tensor) -> th.Tensor:
        module.optimizer.zero_grad()
        loss.backward(inputs=list(module.parameters()))
        module.optimizer.step()
        return loss.detach()

    @th.no_grad()
    def _update_target(self) -> None:
        target: list[th.Tensor] = list(self.critic_target.parameters())
        th._foreach_lerp_(target, list[th.Tensor](self.critic.parameters()), self.tau)


def layers(network: TaskNetwork) -> tuple[list[th.Tensor], list[th.Tensor]]:
    """
    Weights (*K, I, O) and biases (*K, O) of the linear layers of a network that all tasks share.

    :param network: with ``adapter="none"``
    """
    linears = list(network.linears())
    return [linear.merged_weight(0) for linear in linears], [linear.bias.squeeze((-3, -2)) for linear in linears]
