"""Tiny tasks that an agent solves within seconds, and agents small enough to build in every test."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_varshare import MultiTaskVecEnv, VarShareSAC, make_multitask_env

TINY: dict[str, Any] = {
    "batch_size": 32,
    "buffer_size": 4_000,
    "learning_starts": 16,
    "actor_width": 8,
    "critic_width": 8,
    "critic_depth": 1,
    "seed": 0,
    "device": "cpu",
}


class TargetEnv(gym.Env):
    """
    Hit a number: reward ``-(action - target)^2``, the same observation whatever the target.

    Ends by truncation after ``n_steps``, or by termination; tells a success when the last action was close.
    """

    def __init__(
        self,
        target: float = 0.0,
        observation_size: int = 2,
        action_size: int = 1,
        n_steps: int = 4,
        terminates: bool = False,
        reports_success: bool = False,
        scale: float = 1.0,
    ) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (observation_size,), dtype=np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (action_size,), dtype=np.float32)
        self.target, self.n_steps, self.terminates, self.scale = target, n_steps, terminates, scale
        self.reports_success = reports_success

    def _observe(self) -> np.ndarray:
        assert self.observation_space.shape is not None
        return np.full(self.observation_space.shape, self.time / self.n_steps, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        reward = -float(((action - self.target) ** 2).mean()) * self.scale
        over = self.time >= self.n_steps
        info = {"is_success": abs(float(action[0]) - self.target) < 0.2} if self.reports_success else {}
        return self._observe(), reward, over and self.terminates, over and not self.terminates, info


def make_target_env(
    targets: dict[str, float] | None = None, n_envs: int | None = None, **kwargs: Any
) -> MultiTaskVecEnv:
    """Target tasks by name; by default a pair in open conflict."""
    targets = targets or {"plus": 0.7, "minus": -0.7}
    return make_multitask_env({name: lambda t=t: TargetEnv(t, **kwargs) for name, t in targets.items()}, n_envs)


def make_tiny_agent(env: Any = None, **kwargs: Any) -> VarShareSAC:
    """A VarShareSAC that takes milliseconds."""
    return VarShareSAC("MultiTaskPolicy", make_target_env() if env is None else env, **{**TINY, **kwargs})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two workers share two cores."""
    th.set_num_threads(1)


@pytest.fixture
def target_env() -> Callable[..., MultiTaskVecEnv]:
    """Makes environments of target tasks."""
    return make_target_env


@pytest.fixture
def single_target_env() -> type[TargetEnv]:
    """The task on its own."""
    return TargetEnv


@pytest.fixture
def tiny_agent() -> Callable[..., VarShareSAC]:
    """Makes a tiny agent; keyword arguments are its constructor's."""
    return make_tiny_agent
