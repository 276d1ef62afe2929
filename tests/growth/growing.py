"""Tiny tasks of several sizes, trained tiny agents, and what an agent says of its tasks."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
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

# Every way to tell tasks apart, and every kind of argument that has an entry for each of them.
AGENTS: list[dict[str, Any]] = [
    {"adapter": "varshare"},
    {"adapter": "varshare", "sigma_structure": "full", "task_input": "one_hot", "normalize_observations": True},
    {"adapter": "varshare", "sigma_structure": "fixed", "critic_residuals": False, "n_steps": 3},
    {"adapter": "low_rank", "rank": 2, "normalize_observations": True},
    {"adapter": "deterministic", "ent_coef": [0.1, 0.2], "target_entropy": [-0.5, -0.25]},
    {"adapter": "embedding", "share_ent_coef": True},
    {"adapter": "none", "ent_coef": 0.1},
    {"adapter": "none", "task_input": "one_hot", "buffer_size": 4_001},
    {"adapter": "independent", "task_input": "one_hot", "policy_kwargs": {"optimizer_class": th.optim.SGD}},
]
ROWS = 64


def agent_name(kwargs: dict[str, Any]) -> str:
    """For the ids of tests."""
    return "-".join(str(value) for value in kwargs.values() if isinstance(value, str | int | float))


class Reach(gym.Env):
    """Reward ``-(action - target)^2``; the observation is noise. An episode has four steps."""

    def __init__(self, target: float = 0.0, observation_size: int = 2, action_size: int = 1) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (observation_size,), dtype=np.float32)
        self.action_space = gym.spaces.Box(-2, 2, (action_size,), dtype=np.float32)
        self.target = target

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, self.observation_space.shape).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        reward = -float(((action - self.target) ** 2).mean())
        return self._observe(), reward, False, self.time >= 4, {"is_success": -reward < 0.1}


def make_reach(target: float = 0.0, **kwargs: Any) -> Callable[[], gym.Env]:
    """What ``add_task`` is given."""
    return lambda: Reach(target, **kwargs)


def make_env(n_envs: int | None = None, **kwargs: Any) -> MultiTaskVecEnv:
    """A pair in conflict."""
    return make_multitask_env({"plus": make_reach(0.7, **kwargs), "minus": make_reach(-0.7, **kwargs)}, n_envs)


def make_agent(env: Any = None, **kwargs: Any) -> VarShareSAC:
    """A VarShareSAC that takes milliseconds."""
    return VarShareSAC("MultiTaskPolicy", make_env() if env is None else env, **{**TINY, **kwargs})


def outputs(model: VarShareSAC, tasks: list[int]) -> dict[str, th.Tensor]:
    """
    What actor, critics and target say of the same rows for each of some tasks.

    As many rows as a matrix library needs to sum them alike whatever stands beside them.
    """
    policy, generator = model.policy, th.Generator().manual_seed(0)
    rows = th.rand(ROWS, policy.observation_size + policy.action_size, generator=generator) * 2 - 1
    grid = rows.expand(model.n_tasks, -1, -1).contiguous()
    observations, actions = grid.split([policy.observation_size, policy.action_size], -1)
    with th.no_grad():
        seen = policy.observation_norm(observations)
        return {
            "actor": policy.actor(policy.actor_input(observations))[tasks],
            "critic": policy.critic(seen, actions)[:, tasks],
            "target": policy.critic_target(seen, actions)[:, tasks],
        }


def assert_equal(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> None:
    """To the last bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert th.equal(value, second[name]), name


def tensors(model: VarShareSAC) -> dict[str, th.Tensor]:
    """All that the agent has learned: parameters, moments, scales, coefficients and replay, by name."""
    found: dict[str, Any] = {f"policy.{name}": tensor for name, tensor in model.policy.state_dict().items()}
    names = {id(parameter): name for name, parameter in model.policy.named_parameters()}
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        for parameter, state in optimizer.state.items():
            found |= {f"{key} of {names[id(parameter)]}": value for key, value in state.items()}
    found |= {f"reward_scale.{name}": tensor for name, tensor in model.reward_scale.state_dict().items()}
    found["ent_coef"] = model._ent_coef()
    if model.ent_coef_optimizer is not None:
        found |= {
            f"{key} of ent_coef": value for key, value in model.ent_coef_optimizer.state[model.log_ent_coef].items()
        }
    replay = model.replay_buffer
    found["written"] = replay.written
    if replay._rows is not None:
        found |= {f"rows of {task}": replay._rows[task, :size] for task, size in enumerate(replay.sizes)}
    return {name: value.detach().clone() for name, value in found.items() if isinstance(value, th.Tensor)}
