"""Agents of every adapter, with random weights, on tasks that differ in observations, actions and bounds."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_varshare import VarShareSAC, make_multitask_env

TINY: dict[str, Any] = {
    "batch_size": 33,
    "buffer_size": 300,
    "actor_width": 8,
    "critic_width": 8,
    "critic_depth": 1,
    "seed": 0,
    "device": "cpu",
}
AGENTS: dict[str, dict[str, Any]] = {
    "full": {"sigma_structure": "full"},
    "tied": {"sigma_structure": "tied", "actor_depth": 2},
    "fixed": {"sigma_structure": "fixed", "normalize_observations": True},
    "low_rank": {"adapter": "low_rank", "rank": 2},
    "deterministic": {"adapter": "deterministic", "task_input": "one_hot"},
    "none": {"adapter": "none", "normalize_observations": True},
    "one_hot": {"adapter": "none", "task_input": "one_hot"},
    "embedding": {"adapter": "embedding", "normalize_observations": True},
    "independent": {"adapter": "independent", "normalize_observations": True},
    "shared_actor": {"actor_residuals": False, "actor_depth": 0},
    "unmasked": {"mask_actions": False},
}
SIZES = {"two": (2, 1), "four": (4, 3), "three": (3, 2)}


class Still(gym.Env):
    """Has spaces, and nothing ever happens."""

    def __init__(self, observation_size: int, low: Any, high: Any, dtype: Any = np.float32) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (observation_size,), dtype=np.float32)
        self.action_space = gym.spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, dtype=np.float32), {}  # type: ignore[arg-type]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.zeros(self.observation_space.shape, dtype=np.float32), 0.0, False, False, {}  # type: ignore[arg-type]


# The bounds of "three" are no numbers of single precision.
TASKS = {
    "two": partial(Still, 2, [-2.0], [2.0]),
    "four": partial(Still, 4, [-1.0, 0.0, -3.0], [1.0, 0.5, 7.0]),
    "three": partial(Still, 3, [-0.1, 0.3], [0.1, 0.7], np.float64),
}


@th.no_grad()
def scramble(model: VarShareSAC, seed: int = 0) -> VarShareSAC:
    """Give every tensor of the actor, and whatever else acts, values that no start has."""
    generator = th.Generator().manual_seed(seed)
    policy = model.policy
    for parameter in (*policy.actor.parameters(), *policy.critic.task_input.parameters()):
        parameter.add_(0.3 * th.randn(parameter.shape, generator=generator))
    for name, buffer in policy.observation_norm.named_buffers():
        offset = 0.2 if name == "variance" else -0.5
        # Padding too: a wrapper may put something there.
        buffer.copy_(th.rand(buffer.shape, generator=generator) + offset)
    return model


def make_agent(kind: str = "tied", env: Any = None, **kwargs: Any) -> VarShareSAC:
    """An agent of :data:`AGENTS`, scrambled."""
    env = make_multitask_env(TASKS) if env is None else env
    return scramble(VarShareSAC("MultiTaskPolicy", env, **{**TINY, **AGENTS[kind], **kwargs}))


def rows_of(size: int, n_rows: int = 50) -> np.ndarray:
    """(n_rows, size) observations, some of them far from what is usual."""
    rows = np.random.default_rng(size).standard_normal((n_rows, size)) * np.geomspace(0.1, 30, n_rows)[:, None]
    return rows.astype(np.float32)


def assert_close(actual: Any, expected: np.ndarray, model: VarShareSAC, task: str) -> None:
    """Equal actions up to rounding, as a share of the distance between the task's bounds."""
    assert model.action_bounds is not None
    low, high = (np.array(bound) for bound in model.action_bounds[model.task_id(task)])
    actual = np.asarray(actual)
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    np.testing.assert_allclose((actual - low) / (high - low), (expected - low) / (high - low), rtol=0, atol=2e-5)
    assert (actual >= low).all() and (actual <= high).all()
