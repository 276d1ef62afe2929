"""What training may do to a task and evaluation never does: noise and scale of the reward, and few data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_varshare.replay import TaskReplayBuffer
from sb3_varshare.tasks.seeding import Purpose
from sb3_varshare.tasks.suites.contextual import Context, ContextualPendulum
from sb3_varshare.types import Transitions


class Corruption(NamedTuple):
    """
    :param noise_std: standard deviation of the Gaussian noise on every reward
    :param factor: what the reward is multiplied with, before the noise
    """

    noise_std: float = 0.0
    factor: float = 1.0


CLEAN = Corruption()


class CorruptReward(gym.Wrapper):
    """
    Pays ``factor * reward + noise_std * N(0, 1)``, and refuses to be built or reseeded for evaluation.

    :param env: the clean environment, with ``reseed(stream)``
    :param corruption: of the reward
    :param stream: of the environment, for training; the noise draws from a child of it
    :raises ValueError: the stream is for evaluation
    """

    def __init__(self, env: gym.Env, corruption: Corruption, stream: np.random.SeedSequence) -> None:
        super().__init__(env)
        self.corruption = corruption
        self._seed_noise(stream)

    def reseed(self, stream: np.random.SeedSequence) -> None:
        """
        :param stream: of initial states and noise from here on
        :raises ValueError: the stream is for evaluation
        """
        self._seed_noise(stream)
        self.env.get_wrapper_attr("reseed")(stream)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = self.corruption.factor * float(reward) + self.corruption.noise_std * self._noise.standard_normal()
        return observation, reward, terminated, truncated, info

    def _seed_noise(self, stream: np.random.SeedSequence) -> None:
        # The first word of a task stream's key is its purpose.
        purpose = get_args(Purpose)[stream.spawn_key[0]]
        if purpose != "train":
            raise ValueError(
                f"Expected a stream for training, got one for {purpose}: evaluate on the environment of clean_env()."
            )
        child = np.random.SeedSequence(stream.entropy, spawn_key=(*stream.spawn_key, 1))
        self._noise = np.random.Generator(np.random.PCG64(child))


def make_corrupted(context: Context, corruption: Corruption, stream: np.random.SeedSequence) -> gym.Env:
    """
    :param context: of the pendulum
    :param corruption: of its reward
    :param stream: for training
    :return: the pendulum with the corrupted reward
    """
    return CorruptReward(ContextualPendulum(context, stream), corruption, stream)


class PieceFilter:
    """
    Keeps a piece of every episode, for each environment by itself: of the k-th episode the k-th of ``keep_every`` equal
    pieces, and so on in turn. After every episode exactly one step in ``keep_every`` was kept, and from all parts.

    Pieces, since a tenth of the single steps, spread over all episodes, would cover the states nearly as well as all of
    them; not whole episodes, since a run has too few of them for a tenth.

    :param keep_every: (N,) of each environment; 1 keeps everything
    :param horizon: length of all episodes, a multiple of these
    """

    def __init__(self, keep_every: Sequence[int], horizon: int) -> None:
        assert all(horizon % every == 0 for every in keep_every), f"{horizon} is no multiple of {keep_every}"
        self.keep_every, self.horizon = np.array(keep_every), horizon
        self.steps = np.zeros(len(keep_every), dtype=np.int64)

    def keep(self) -> np.ndarray:
        """Take in one step of all environments: (N,) bool, whether it is kept."""
        episode, step = np.divmod(self.steps, self.horizon)
        self.steps += 1
        kept: np.ndarray = step * self.keep_every // self.horizon == episode % self.keep_every
        return kept


class FewTaskReplayBuffer(TaskReplayBuffer):
    """
    The package's replay with few steps of some environments; one-step returns only.

    :param args: as the package's
    :param keep_every: (N,) of each environment, see :class:`PieceFilter`
    :param horizon: length of all episodes
    :param kwargs: as the package's
    """

    def __init__(self, *args: Any, keep_every: Sequence[int], horizon: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.n_steps == 1, "sums over several steps need every step"
        self.filter = PieceFilter(keep_every, horizon)

    def add_tensors(self, step: Transitions) -> None:
        """
        Store one step of all environments, without those that are not kept.

        :param step: on any device
        """
        kept = th.from_numpy(self.filter.keep())
        super().add_tensors(Transitions(*(tensor[kept.to(tensor.device)] for tensor in step)))


class FewReplayBuffer(ReplayBuffer):
    """
    SB3's replay with few steps of some environments, as one column of rows of all of them.

    :param buffer_size: transitions of all environments together
    :param observation_space: as SB3's
    :param action_space: as SB3's
    :param n_envs: N
    :param keep_every: (N,) of each environment, see :class:`PieceFilter`
    :param horizon: length of all episodes
    :param kwargs: as SB3's
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        n_envs: int = 1,
        *,
        keep_every: Sequence[int],
        horizon: int,
        **kwargs: Any,
    ) -> None:
        assert len(keep_every) == n_envs, f"expected {n_envs} numbers, got {len(keep_every)}"
        super().__init__(buffer_size, observation_space, action_space, n_envs=1, **kwargs)
        self.filter = PieceFilter(keep_every, horizon)

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of all environments, (N, ...) each, without those that are not kept."""
        for i in np.flatnonzero(self.filter.keep()):
            row = slice(i, i + 1)
            super().add(obs[row], next_obs[row], action[row], reward[row], done[row], infos[row])
