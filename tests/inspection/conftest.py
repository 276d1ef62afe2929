"""Agents small enough to build in every test, whose residuals are set by hand."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_varshare import VarShareSAC, make_multitask_env

NAMES = ("plus", "again", "minus")


class TargetEnv(gym.Env):
    """Hit a number within four steps, from an observation that tells the time."""

    def __init__(self, target: float, action_size: int = 1) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), dtype=np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (action_size,), dtype=np.float32)
        self.target = target

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        reward = -float((action[0] - self.target) ** 2)
        return np.full(2, self.time / 4, dtype=np.float32), reward, False, self.time == 4, {}


def make_agent(
    names: tuple[str, ...] = NAMES, action_sizes: tuple[int, ...] | None = None, **kwargs: Any
) -> VarShareSAC:
    """An agent of milliseconds, by default of three tasks of which the last is in conflict with the others."""
    sizes = action_sizes or (1,) * len(names)
    tasks = {
        name: lambda name=name, size=size: TargetEnv(-0.7 if name == "minus" else 0.7, size)
        for name, size in zip(names, sizes, strict=True)
    }
    tiny = {"actor_width": 4, "critic_width": 4, "critic_depth": 1, "batch_size": 8 * len(names), "buffer_size": 3_000}
    options = {**tiny, "learning_starts": 12, "n_atoms": 11, **kwargs}
    return VarShareSAC("MultiTaskPolicy", make_multitask_env(tasks), seed=0, device="cpu", **options)


@th.no_grad()
def scatter(model: VarShareSAC, scale: float = 0.1) -> VarShareSAC:
    """Give every task mean residuals and, where there are any, spreads of its own."""
    generator = th.Generator().manual_seed(1)
    for network in (model.policy.actor, model.policy.critic.net):
        for mu in network.means():
            mu.normal_(0, scale, generator=generator)
        for rho in network.spreads():
            rho.add_(0.3 * th.randn(rho.shape, generator=generator))
    return model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two workers share two cores."""
    th.set_num_threads(1)


@pytest.fixture
def agent() -> Callable[..., VarShareSAC]:
    """Makes a tiny agent; keyword arguments are its constructor's."""
    return make_agent


@pytest.fixture
def scattered() -> Callable[..., VarShareSAC]:
    """Makes a tiny agent with residuals of its own for every task."""
    return lambda *args, **kwargs: scatter(make_agent(*args, **kwargs))
