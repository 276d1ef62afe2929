"""Tiny tasks whose return tells what the actor does, and agents with residuals in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_varshare import MultiTaskVecEnv, VarShareSAC, make_multitask_env, prune

TINY: dict[str, Any] = {
    "batch_size": 32,
    "buffer_size": 4_000,
    "learning_starts": 16,
    "actor_width": 8,
    "critic_width": 8,
    "critic_depth": 1,
    "beta": 0.0,
    "seed": 0,
    "device": "cpu",
}


class TargetEnv(gym.Env):
    """Hit a number with each of four actions: reward ``-(action - target)^2``."""

    def __init__(self, target: float) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2,), dtype=np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), dtype=np.float32)
        self.target = target

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        reward = -float(((action - self.target) ** 2).mean())
        return np.full(2, self.time / 4, dtype=np.float32), reward, False, self.time >= 4, {}


def make_target_env(targets: dict[str, float] | None = None) -> MultiTaskVecEnv:
    """Target tasks by name; by default two in open conflict, and a twin of one of them."""
    targets = targets or {"plus": 0.7, "minus": -0.7, "minus-twin": -0.7}
    return make_multitask_env({name: lambda t=t: TargetEnv(t) for name, t in targets.items()}, seed=0)


def make_agent(env: Any = None, steps: int = 60, **kwargs: Any) -> VarShareSAC:
    """An agent whose actor and critic have residuals in every weight, from some gradient steps and by hand."""
    env = make_target_env() if env is None else env
    options = {**TINY, "batch_size": 16 * env.n_tasks, **kwargs}
    model = VarShareSAC("MultiTaskPolicy", env, **options)
    model.learn(steps)
    with th.no_grad():
        for network in (model.policy.actor, model.policy.critic.net):
            for mu in network.means():
                mu.add_(0.3 * th.randn_like(mu))
    return model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two workers share two cores."""
    th.set_num_threads(1)


@pytest.fixture
def target_env() -> Callable[..., MultiTaskVecEnv]:
    """Makes environments of target tasks."""
    return make_target_env


@pytest.fixture
def agent() -> Callable[..., VarShareSAC]:
    """Makes an agent with residuals; keyword arguments are its constructor's."""
    return make_agent


@pytest.fixture(scope="module")
def pruned_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a pruned agent; not to be changed."""
    model = make_agent()
    prune(model, keep_fraction=0.1)
    path = tmp_path_factory.mktemp("pruned") / "agent.zip"
    model.save(path)
    return path
