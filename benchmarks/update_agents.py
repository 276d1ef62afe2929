"""The agents that ``update_step.py`` compares, and transitions for them that no simulator had to make."""

from __future__ import annotations

import bisect
import functools
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_varshare import VarShareSAC
from sb3_varshare.replay import TaskReplayBuffer
from sb3_varshare.types import Transitions

OBSERVATION, ACTION = 39, 4  # Meta-World's
LARGEST_WIDTH = 2048
ROWS_AT_ONCE = 20_000


class Size(NamedTuple):
    """
    Sizes of an update.

    :param n_tasks: T
    :param width: hidden features of critics and actor
    :param rows: of all tasks together
    """

    n_tasks: int
    width: int
    rows: int

    def __str__(self) -> str:
        return f"T = {self.n_tasks}, width {self.width}, {self.rows:,} rows"


class Variant(NamedTuple):
    """
    A residual.

    :param adapter: as ``VarShareSAC`` takes it
    :param sigma_structure: of a stochastic adapter
    :param estimator: of a stochastic adapter
    """

    adapter: str
    sigma_structure: str = "full"
    estimator: str = "local_reparameterization"

    def __str__(self) -> str:
        if self.adapter != "varshare":
            return self.adapter
        return f"varshare {self.sigma_structure} {self.estimator.replace('local_reparameterization', 'local repar.')}"


class Still(gym.Env):
    """
    Only its spaces are needed.

    :param n_tasks: length of the one-hot
    """

    def __init__(self, n_tasks: int) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATION + n_tasks,), np.float32)
        self.action_space = spaces.Box(-1, 1, (ACTION,), np.float32)


def make_envs(n_tasks: int) -> DummyVecEnv:
    """
    One environment for each task.

    :param n_tasks: T
    """
    return DummyVecEnv([lambda: Still(n_tasks)] * n_tasks)


@functools.cache
def make_replay(n_tasks: int, buffer_size: int, device: th.device) -> TaskReplayBuffer:
    """
    A full replay of random transitions, which all agents of as many tasks share.

    :param n_tasks: T
    :param buffer_size: transitions of all tasks together
    :param device: where they live
    """
    env = Still(n_tasks)
    replay = TaskReplayBuffer(
        buffer_size,
        env.observation_space,
        env.action_space,
        device,
        n_envs=n_tasks,
        n_tasks=n_tasks,
        one_hot_size=n_tasks,
    )
    while replay.size() < n_tasks * replay.buffer_size:
        one_hot = th.eye(n_tasks, device=device).repeat(-(-ROWS_AT_ONCE // n_tasks), 1)
        n = len(one_hot)
        observations, next_observations = (
            th.cat([th.randn(n, OBSERVATION, device=device), one_hot], 1) for _ in range(2)
        )
        actions, rewards = 2 * th.rand(n, ACTION, device=device) - 1, 0.01 * th.randn(n, device=device)
        ended = th.zeros(n, dtype=th.bool, device=device)
        replay.add_tensors(Transitions(observations, actions, rewards, next_observations, ended, ended))
    return replay


def make_agent(
    size: Size, variant: Variant, replay: TaskReplayBuffer, critic_depth: int, actor_depth: int, recenter_every: int
) -> VarShareSAC:
    """
    An agent after its warm-up.

    :param size: of networks and batch
    :param variant: its residual
    :param replay: of the same tasks, which agents may share
    :param critic_depth: residual blocks
    :param actor_depth: residual blocks
    :param recenter_every: gradient steps
    :raises MemoryError: it would not fit
    """
    model = VarShareSAC(
        "MultiTaskPolicy",
        make_envs(size.n_tasks),
        n_tasks=size.n_tasks,
        batch_size=size.rows,
        buffer_size=size.n_tasks,
        learning_starts=0,
        **variant._asdict(),
        recenter_every=recenter_every,
        actor_width=size.width,
        critic_width=size.width,
        actor_depth=actor_depth,
        critic_depth=critic_depth,
        seed=0,
        device=replay.device,
    )
    model.replay_buffer = replay
    model.num_timesteps = replay.size()
    model.reward_scale.return_max.fill_(1)
    model.reward_scale.return_min.fill_(-1)
    model.set_logger(Logger(None, []))
    return model


def make_sb3(
    algorithm: type[OffPolicyAlgorithm], n_tasks: int, width: int, buffer_size: int, device: th.device
) -> OffPolicyAlgorithm:
    """
    SAC or TQC with two hidden layers on the same observations, one-hot included, with a full replay.

    :param algorithm: which
    :param n_tasks: T
    :param width: of the hidden layers
    :param buffer_size: transitions of all tasks together
    :param device: of the networks
    """
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [width, width]}, "buffer_size": buffer_size}
    model = algorithm("MlpPolicy", make_envs(n_tasks), seed=0, device=device, **kwargs)
    replay: Any = model.replay_buffer
    generator = np.random.default_rng(0)
    for array in (replay.observations, replay.next_observations, replay.rewards):
        array[...] = generator.standard_normal(array.shape, dtype=np.float32)
    replay.actions[...] = generator.uniform(-1, 1, replay.actions.shape)
    replay.full = True
    model.set_logger(Logger(None, []))
    return model


def count_parameters(agent: Any) -> int:
    """
    Numbers that are trained in actor and critics.

    :param agent: or its policy
    """
    return sum(parameter.numel() for module in (agent.actor, agent.critic) for parameter in module.parameters())


def width_of_equal_size(algorithm: type[OffPolicyAlgorithm], n_tasks: int, parameters: int) -> int:
    """
    The width of two hidden layers whose parameters come nearest to a number.

    :param algorithm: which
    :param n_tasks: T
    :param parameters: of actor and critics together
    """
    env = Still(n_tasks)

    def count(width: int) -> int:
        policy_class: Any = algorithm.policy_aliases["MlpPolicy"]
        spaces_and_rate = (env.observation_space, env.action_space, lambda _: 0.0)
        return count_parameters(policy_class(*spaces_and_rate, net_arch=[width, width]))

    widths = range(1, LARGEST_WIDTH)
    above = bisect.bisect_left(widths, parameters, key=count)
    return min(widths[max(0, above - 1) : above + 1], key=lambda width: abs(count(width) - parameters))
