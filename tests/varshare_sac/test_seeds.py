"""Whose seed counts: that of the environments where they were made with one, else the agent's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan

from sb3_varshare import VarShareSAC, evaluate_tasks, make_multitask_env, make_tensor_env

TinyAgent = Callable[..., VarShareSAC]


def on_arrays(seed: int | None = None) -> Any:
    return make_multitask_env("contextual", seed=seed, horizon=5)


def on_tensors(seed: int | None = None) -> Any:
    return make_tensor_env("contextual", seed=seed, device="cpu", horizon=5)


def agent_on(tiny_agent: TinyAgent, env: Any, seed: int | None) -> VarShareSAC:
    return tiny_agent(env, seed=seed, batch_size=50)


BOTH_FACES = pytest.mark.parametrize("make", [on_arrays, on_tensors])


@BOTH_FACES
def test_an_environment_with_a_seed_keeps_it(tiny_agent: TinyAgent, make: Callable[..., Any], tmp_path: Path) -> None:
    env = make(5)
    model = agent_on(tiny_agent, VecCheckNan(env), 3).learn(10)
    assert env.seed_value == 5
    model.save(tmp_path / "model")
    for seed in (5, 6):
        other = make(seed)
        loaded = VarShareSAC.load(tmp_path / "model", env=other, device="cpu")
        assert other.seed_value == seed and loaded.seed == 3 and loaded.get_env() is other
        np.testing.assert_array_equal(other.reset(), make(seed).reset())
        found = evaluate_tasks(loaded, other, n_episodes=1).episodes
        assert found == evaluate_tasks(loaded, make(seed), n_episodes=1).episodes


@BOTH_FACES
def test_training_goes_on_with_other_episodes(tiny_agent: TinyAgent, make: Callable[..., Any], tmp_path: Path) -> None:
    env = make(5)
    first = env.reset()
    agent_on(tiny_agent, env, 3).learn(10).save(tmp_path / "model")
    loaded = VarShareSAC.load(tmp_path / "model", env=env, device="cpu").learn(5, reset_num_timesteps=False)
    rows = loaded.replay_buffer._rows
    assert rows is not None and not np.array_equal(rows[:, 0, :5], first[:, :5])


@BOTH_FACES
def test_an_environment_without_a_seed_takes_the_agents(
    tiny_agent: TinyAgent, make: Callable[..., Any], tmp_path: Path
) -> None:
    for seed, root in ((3, 3), (4, 4), (None, 0)):
        env = make()
        model = agent_on(tiny_agent, env, seed)
        assert env.seed_value == root
        np.testing.assert_array_equal(env.reset(), make(root).reset())
        model.save(tmp_path / "model")
        again = make()
        VarShareSAC.load(tmp_path / "model", env=again, device="cpu")
        assert again.seed_value == root, "the goals of training are those of evaluation after loading"


@BOTH_FACES
def test_equal_seeds_give_equal_agents(tiny_agent: TinyAgent, make: Callable[..., Any]) -> None:
    returns = [
        evaluate_tasks(agent_on(tiny_agent, make(root), seed).learn(100), make(9), n_episodes=1).mean_return
        for root, seed in ((None, 3), (None, 3), (7, 3), (7, 3), (7, 4))
    ]
    assert returns[0] == returns[1] and returns[2] == returns[3]
    assert len(set(returns)) == 3


def test_the_process_is_seeded_all_the_same(tiny_agent: TinyAgent) -> None:
    draws = []
    for seed in (3, 3, 4):
        agent_on(tiny_agent, on_arrays(5), None).set_random_seed(seed)
        draws.append((float(th.rand(())), float(np.random.rand())))
    assert draws[0] == draws[1] and draws[0][0] != draws[2][0] and draws[0][1] != draws[2][1]


def test_environments_of_another_kind_are_seeded_as_by_sb3(tiny_agent: TinyAgent) -> None:
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1"), lambda: gym.make("Pendulum-v1")])
    tiny_agent(env, seed=3)
    assert env._seeds == [3, 4]
