"""Tasks whose returns and successes are known, and models that act without learning."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_varshare import MultiTaskVecEnv, VarShareSAC, make_multitask_env


class CountingEnv(gym.Env):
    """
    Episode k lasts ``lengths[k % n]`` steps with a reward of ``rewards[k % n]`` in each; success in some of them.

    ``log`` is shared by all copies: it counts resets.
    """

    def __init__(
        self,
        lengths: Sequence[int] = (3,),
        rewards: Sequence[float] = (1.0,),
        successes: Sequence[bool] | None = None,
        log: list[str] | None = None,
    ) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), dtype=np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), dtype=np.float32)
        self.lengths, self.rewards, self.successes, self.log = lengths, rewards, successes, log
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        if self.log is not None:
            self.log.append("reset")
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        over = self.time >= self.lengths[self.episode % len(self.lengths)]
        info: dict[str, Any] = {}
        if self.successes is not None:
            # Only in the first step: success at any step counts.
            info["is_success"] = self.time == 1 and self.successes[self.episode % len(self.successes)]
        reward = self.rewards[self.episode % len(self.rewards)]
        return np.full(2, 0.5, dtype=np.float32), float(reward), over, False, info


def make_counting_envs(tasks: dict[str, dict[str, Any]], n_envs: int | None = None) -> MultiTaskVecEnv:
    """Environments of counting tasks by name."""
    return make_multitask_env({name: lambda kw=kw: CountingEnv(**kw) for name, kw in tasks.items()}, n_envs)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two workers share two cores."""
    th.set_num_threads(1)


@pytest.fixture
def counting_envs() -> Callable[..., MultiTaskVecEnv]:
    """Makes environments from ``{name: keyword arguments of CountingEnv}``."""
    return make_counting_envs


@pytest.fixture
def agent() -> Callable[..., VarShareSAC]:
    """Makes a tiny agent for an environment."""

    def make(env: Any, **kwargs: Any) -> VarShareSAC:
        tiny = {"actor_width": 4, "critic_width": 4, "batch_size": 30, "buffer_size": 1_000, "learning_starts": 10}
        return VarShareSAC("MultiTaskPolicy", env, seed=0, device="cpu", **{**tiny, **kwargs})

    return make
