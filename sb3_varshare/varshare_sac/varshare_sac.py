"""Soft actor-critic for many tasks: categorical critics, per-task residuals on shared weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule

from sb3_varshare import losses
from sb3_varshare.adapters import KLWeights
from sb3_varshare.presets import accepts_preset
from sb3_varshare.replay import RewardScale, TaskReplayBuffer
from sb3_varshare.types import TaskBatch
from sb3_varshare.varshare_sac import arguments
from sb3_varshare.varshare_sac.entropy import initial_ent_coef, per_task, target_entropies
from sb3_varshare.varshare_sac.memory import checked_memory
from sb3_varshare.varshare_sac.multi_task_algorithm import MultiTaskAlgorithm
from sb3_varshare.varshare_sac.policies import MultiTaskPolicy

# BRC's first moment decay for the entropy coefficient.
ENT_COEF_BETAS = (0.5, 0.999)


class VarShareSAC(MultiTaskAlgorithm):
    """
    One agent for many tasks: SAC with BRC's categorical critics and, on every linear layer, shared weights plus a
    Gaussian residual per task that a KL term keeps near zero.

    Per gradient step ``J = (1/T) sum_t [data_t + (beta M_t + beta_sigma S_t) / n_t]``, critic and actor each with
    its own residuals; ``M_t`` and ``S_t`` are the shares of the means and of the spreads in the KL.

    Source: critic and network Nauman et al. 2025 (arXiv 2505.23150), SAC Haarnoja et al. 2018 (arXiv 1812.05905)

    :param policy: ``"MultiTaskPolicy"``
    :param env: a multi-task ``VecEnv`` (see :func:`~sb3_varshare.make_multitask_env`), any ``VecEnv`` whose flat
        observations end in a task one-hot (with ``n_tasks``), or a plain single-task environment
    :param learning_rate: of actor and critics, a number or a schedule of the remaining progress
    :param buffer_size: transitions of all tasks together that the replay holds
    :param learning_starts: transitions of all tasks together that are collected at random first; the warm-up goes on
        until every task has finished an episode
    :param batch_size: rows of all tasks together, a multiple of the number of tasks; by default the multiple nearest to
        1,024 (256 for one task)
    :param tau: share of the critics that moves into the target at each update
    :param gamma: discount
    :param train_freq: steps of all environments between updates
    :param gradient_steps: gradient steps per update; -1 for as many as transitions were collected
    :param action_noise: noise added to the actions of the policy
    :param replay_buffer_class: a subclass of :class:`~sb3_varshare.replay.TaskReplayBuffer`
    :param replay_buffer_kwargs: its further arguments
    :param n_steps: length of the reward sums in the critic's target
    :param ent_coef: entropy coefficient: ``"auto"``, ``"auto_<first value>"``, a number, or a number per task
    :param ent_coef_learning_rate: of the entropy coefficient
    :param share_ent_coef: learn one entropy coefficient for all tasks instead of one for each
    :param target_entropy: ``"auto"`` for minus half of the task's action dimensions, a number, or one per task; nats
    :param target_update_interval: gradient steps between updates of the target
    :param n_tasks: number of tasks, only for environments that do not know theirs
    :param adapter: the residual: ``"varshare"``, ``"low_rank"``, ``"deterministic"`` (L2), ``"none"``,
        ``"independent"``, or ``"embedding"``, short for ``"none"`` with ``task_input="embedding"``
    :param beta: weight of the KL, a number or a schedule of the remaining progress; with 1 for both weights the
        objective is the ELBO
    :param beta_sigma: weight of the share of the KL that holds the spreads at the prior; by default that of the means,
        ``beta``
    :param beta_warmup: share of the training over which beta rises linearly from 0
    :param kl_scale: ``"data"`` divides the KL by the task's transitions in the replay, ``"constant"`` by those that a
        full replay holds
    :param sigma_prior: standard deviation of the prior
    :param prior_scale: ``"relative"`` to the spread of each layer's initial weights, or ``"absolute"``
    :param sigma_structure: ``"full"``, ``"tied"`` (rank 1, two thirds of the time) or ``"fixed"``
    :param estimator: ``"flipout"``, ``"local_reparameterization"``, ``"shared_noise"`` or ``"mean"``
    :param rank: of the ``"low_rank"`` adapter
    :param recenter_every: gradient steps between re-centrings; 0 for never
    :param task_input: what the networks are told about the task besides: ``None``, ``"one_hot"`` or ``"embedding"``
    :param actor_residuals: whether the actor has residuals
    :param critic_residuals: whether the critics have residuals
    :param exploration: ``"mean"`` acts with mean weights, ``"posterior"`` with one draw per environment and episode
    :param actor_width: hidden features of the actor
    :param actor_depth: residual blocks of the actor
    :param critic_width: hidden features of each critic
    :param critic_depth: residual blocks of each critic
    :param n_critics: number of critics
    :param n_atoms: atoms of the return distribution
    :param v_min: lowest atom, in units of the scaled return
    :param v_max: highest atom
    :param initial_return_std: spread of the return distribution at the start; ``None`` for BRC's random head
    :param normalize_observations: normalise every task's observations by their running statistics
    :param mask_actions: leave out the dimensions that a task does not have; ``False`` is BRC's behaviour
    :param mu_lr_multiplier: of the learning rate of the residuals' means
    :param rho_lr_multiplier: of the learning rate of the residuals' spreads
    :param weight_decay: of everything but the residuals
    :param replay_device: where the replay lives; by default where the networks do
    :param compile: compile the networks with ``torch.compile``, at their first use, which takes a minute
    :param preset: ``"brc"``, ``"small"`` or ``"medium"``: other defaults, see :mod:`sb3_varshare.presets`
    :param stats_window_size: episodes in the logged means
    :param tensorboard_log: folder of TensorBoard logs
    :param policy_kwargs: ``optimizer_class`` and ``optimizer_kwargs``
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: of all random generators
    :param device: where the networks live
    :param _init_setup_model: build the networks now
    :raises ValueError: an argument, the environment's spaces, or their combination is not possible
    :raises MemoryError: the agent would not fit on the device
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MultiTaskPolicy": MultiTaskPolicy,
        "MlpPolicy": MultiTaskPolicy,
    }

    @accepts_preset(arguments.count_tasks)
    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1_000,
        batch_size: int | None = None,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[TaskReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        n_steps: int = 1,
        ent_coef: str | float | Sequence[float] = "auto_0.1",
        ent_coef_learning_rate: float = 3e-4,
        share_ent_coef: bool = False,
        target_entropy: str | float | Sequence[float] = "auto",
        target_update_interval: int = 1,
        n_tasks: int | None = None,
        adapter: str = "varshare",
        beta: float | Schedule = 0.1,
        beta_sigma: float | None = None,
        beta_warmup: float = 0.0,
        kl_scale: str = "data",
        sigma_prior: float = 0.2,
        prior_scale: str = "relative",
        sigma_structure: str = "tied",
        estimator: str = "local_reparameterization",
        rank: int = 8,
        recenter_every: int = 1,
        task_input: str | None = None,
        actor_residuals: bool = True,
        critic_residuals: bool = True,
        exploration: str = "mean",
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
        mask_actions: bool = True,
        mu_lr_multiplier: float = 1.0,
        rho_lr_multiplier: float = 1.0,
        weight_decay: float = 1e-4,
        replay_device: th.device | str | None = None,
        compile: bool = False,
        preset: str | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        env = arguments.checked_env(env, verbose)
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,  # type: ignore[arg-type]
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            n_steps=n_steps,
            ent_coef=ent_coef,  # type: ignore[arg-type]
            target_entropy=target_entropy,  # type: ignore[arg-type]
            target_update_interval=target_update_interval,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            # SB3 writes into the dictionary that it is given.
            policy_kwargs=dict(policy_kwargs or {}),
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.ent_coef_learning_rate, self.share_ent_coef = ent_coef_learning_rate, share_ent_coef
        self.adapter, self.rank = adapter, rank
        self.beta, self.beta_sigma, self.beta_warmup, self.kl_scale = beta, beta_sigma, beta_warmup, kl_scale
        self.sigma_prior, self.prior_scale, self.sigma_structure = sigma_prior, prior_scale, sigma_structure
        self.estimator, self.recenter_every, self.task_input = estimator, recenter_every, task_input
        self.actor_residuals, self.critic_residuals = actor_residuals, critic_residuals
        self.exploration, self.preset = exploration, preset
        self.actor_width, self.actor_depth = actor_width, actor_depth
        self.critic_width, self.critic_depth = critic_width, critic_depth
        self.n_critics, self.n_atoms, self.v_min, self.v_max = n_critics, n_atoms, v_min, v_max
        self.initial_return_std, self.weight_decay = initial_return_std, weight_decay
        self.normalize_observations, self.mask_actions = normalize_observations, mask_actions
        self.mu_lr_multiplier, self.rho_lr_multiplier = mu_lr_multiplier, rho_lr_multiplier
        self.replay_device = None if replay_device is None else str(replay_device)
        self.compile = compile
        self._describe_tasks(n_tasks)
        if _init_setup_model:
            self._setup_model()

    # Set-up

    def _setup_model(self) -> None:
        arguments.check_choices(self)
        self.batch_size = arguments.checked_batch_size(self.batch_size, self.n_tasks)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.replay_buffer_class = self.replay_buffer_class or TaskReplayBuffer
        self.replay_buffer = self.replay_buffer_class(**self._replay_arguments())  # type: ignore[assignment]
        self.memory_need = checked_memory(self)
        self.policy = self._make_policy().to(self.device)
        if self.compile:
            self.policy.compile_networks()
        self.reward_scale = RewardScale(self.n_tasks, self.gamma, self.v_max).to(self.device)
        self._setup_entropy()
        self._convert_train_freq()
        self._create_aliases()
        self._explorer = None
        self._forget_open_episodes()

    def _replay_arguments(self) -> dict[str, Any]:
        return {
            "buffer_size": self.buffer_size,
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "device": self.replay_device or self.device,
            "n_envs": self.n_envs,
            "n_tasks": self.n_tasks,
            "one_hot_size": self.one_hot_size,
            "gamma": self.gamma,
            "n_steps": self.n_steps,
            **self.replay_buffer_kwargs,
        }

    def _make_policy(self) -> MultiTaskPolicy:
        kwargs = arguments.policy_arguments(self)
        return self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **kwargs)  # type: ignore

    def _setup_entropy(self) -> None:
        self.target_entropy_tensor = target_entropies(self.target_entropy, self.policy_action_sizes, self.device)
        start, learned = initial_ent_coef(self.ent_coef)
        self.log_ent_coef, self.ent_coef_optimizer = None, None
        if learned:
            size = 1 if self.share_ent_coef else self.n_tasks
            value = per_task("ent_coef", start, size, self.device)
            self.log_ent_coef = value.log().requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam(
                [self.log_ent_coef], lr=self.ent_coef_learning_rate, betas=ENT_COEF_BETAS
            )
        else:
            self.ent_coef_tensor = per_task("ent_coef", start, self.n_tasks, self.device)

    # Training

    def train(self, gradient_steps: int, batch_size: int) -> None:  # type: ignore[override]
        """
        Take gradient steps: sample, critics, target, actor, entropy coefficient, re-centre.

        The device is waited for once, at the end.

        :param gradient_steps: how many
        :param batch_size: rows of all tasks together
        """
        if not self.is_ready():
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        metrics = []
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size)
            batch = TaskBatch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))
            ent_coef, kl_weights = self._ent_coef(), self._kl_weights(batch_size)
            critic_loss = self._critic_step(batch, self._critic_target(batch, ent_coef), kl_weights)
            self._n_updates += 1
            if self._n_updates % self.target_update_interval == 0:
                self._update_target()
            actor_loss, log_prob = self._actor_step(batch, ent_coef, kl_weights)
            ent_coef_loss = self._entropy_step(log_prob)
            if self.recenter_every and not self.policy.base_frozen and self._n_updates % self.recenter_every == 0:
                self.policy.actor.recenter()
                self.policy.critic.net.recenter()
            metrics.append(th.stack([critic_loss.mean(), actor_loss.mean(), ent_coef_loss.mean()]))
        self._record_losses(metrics)

    def _ent_coef(self) -> th.Tensor:
        """Entropy coefficient of each task, (T,), without gradient."""
        if self.log_ent_coef is None:
            return self.ent_coef_tensor
        return self.log_ent_coef.detach().exp().expand(self.n_tasks)

    def _kl_weights(self, batch_size: int) -> KLWeights:
        """``beta / (T n_t)`` and ``beta_sigma / (T n_t)`` of each task."""
        beta = FloatSchedule(self.beta)(self._current_progress_remaining)
        if self.beta_warmup:
            beta *= min(1.0, (1 - self._current_progress_remaining) / self.beta_warmup)
        counts, n_processes = self.data_counts()
        if self.kl_scale == "constant":
            counts = th.full_like(counts, n_processes * self.replay_buffer.buffer_size)
        weights = losses.kl_weights(counts, n_processes * batch_size // self.n_tasks)
        return KLWeights(beta * weights, (beta if self.beta_sigma is None else self.beta_sigma) * weights)

    @th.no_grad()
    def _critic_target(self, batch: TaskBatch, ent_coef: th.Tensor) -> th.Tensor:
        """Return distribution that the critics shall predict, (T, B, M)."""
        next_actions, next_log_prob = self.policy.action_log_prob(batch.next_observations)
        next_observations = self.policy.observation_norm(batch.next_observations)
        return losses.target_distribution(
            batch.rewards / self.reward_scale(ent_coef, self.target_entropy_tensor)[:, None],
            batch.discounts,
            self.policy.critic_target.probabilities(next_observations, next_actions),
            next_log_prob,
            ent_coef,
            self.policy.critic.support,
        )

    def _critic_step(self, batch: TaskBatch, target: th.Tensor, kl_weights: KLWeights) -> th.Tensor:
        critic, observations = self.policy.critic, self.policy.observation_norm(batch.observations)
        loss = losses.critic_loss(critic(observations, batch.actions, sample=True, kl_weights=kl_weights), target)
        self._minimise(critic, loss)
        return loss.detach()

    def _actor_step(self, batch: TaskBatch, ent_coef: th.Tensor, kl_weights: KLWeights) -> tuple[th.Tensor, th.Tensor]:
        kl_weights = kl_weights.scaled(ent_coef)
        actions, log_prob = self.policy.action_log_prob(batch.observations, sample=True, kl_weights=kl_weights)
        loss = losses.actor_loss(log_prob, self.policy.q_values(batch.observations, actions), ent_coef)
        self._minimise(self.policy.actor, loss)
        return loss.detach(), log_prob.detach()

    def _entropy_step(self, log_prob: th.Tensor) -> th.Tensor:
        if self.log_ent_coef is None or self.ent_coef_optimizer is None:
            return th.zeros(1, device=self.device)
        loss = losses.entropy_loss(self.log_ent_coef, log_prob, self.target_entropy_tensor)
        self.ent_coef_optimizer.zero_grad()
        loss.mean().backward()
        self.ent_coef_optimizer.step()
        return loss.detach()

    @staticmethod
    def _minimise(module: Any, loss: th.Tensor) -> None:
        """Step on the mean over tasks; gradients, those of the KLs too, flow into this module's parameters alone."""
        parameters = [p for group in module.optimizer.param_groups for p in group["params"]]
        if parameters:
            module.optimizer.zero_grad()
            loss.mean().backward(inputs=parameters)
            module.optimizer.step()

    @th.no_grad()
    def _update_target(self) -> None:
        target, source = (critic.averaged_tensors() for critic in (self.policy.critic_target, self.policy.critic))
        th._foreach_lerp_(target, source, self.tau)

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", learning_rate)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["lr_multiplier"]

    def _record_losses(self, metrics: list[th.Tensor]) -> None:
        names = ("critic_loss", "actor_loss", "ent_coef_loss")
        values = dict(zip(names, th.stack(metrics).mean(0).tolist(), strict=True))
        for name, value in values.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if not np.isfinite(list(values.values())).all():
            raise FloatingPointError(f"Training diverged before gradient step {self._n_updates}: losses are {values}.")

    def dump_logs(self) -> None:
        """Write log data, the entropy coefficient and reward scale of each task included."""
        ent_coef = self._ent_coef()
        per_task = {"ent_coef": ent_coef, "reward_scale": self.reward_scale(ent_coef, self.target_entropy_tensor)}
        self.logger.record("train/ent_coef", float(ent_coef.mean()))
        for name, values in per_task.items():
            for task, value in zip(self.task_names, values.tolist(), strict=True):
                self.logger.record(f"{name}/{task}", value, exclude="stdout")
        super().dump_logs()
