"""Every task plays the same number of episodes, and the numbers are exact."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_varshare import VarShareSAC, evaluate_tasks, make_multitask_env
from sb3_varshare.evaluation import evaluate

Agent = Callable[..., VarShareSAC]
Envs = Callable[..., Any]

TASKS: dict[str, dict[str, Any]] = {
    "short": {"lengths": (1, 2), "rewards": (5.0, 7.0), "successes": (True, False)},
    "long": {"lengths": (9,), "rewards": (0.5,), "successes": (False,)},
    "mixed": {"lengths": (3, 4, 5), "rewards": (1.0, -1.0, 2.0), "successes": (True, True, False)},
}


@pytest.mark.parametrize("n_envs", [1, 3])
def test_returns_lengths_and_successes_are_exact(agent: Agent, counting_envs: Envs, n_envs: int) -> None:
    """With an env of its own, or taking turns, each task plays its script from the start."""
    train = counting_envs(TASKS)
    found = evaluate_tasks(agent(train), train.evaluation_env(n_envs), n_episodes=3)
    assert [e.task for e in found.episodes] == ["short"] * 3 + ["long"] * 3 + ["mixed"] * 3
    assert [e.episode for e in found.episodes] == [0, 1, 2] * 3
    by_task = {task: [(e.episode_return, e.length, e.is_success) for e in found.of_task(task)] for task in TASKS}
    assert by_task == {
        "short": [(5.0, 1, True), (14.0, 2, False), (5.0, 1, True)],
        "long": [(4.5, 9, False)] * 3,
        "mixed": [(3.0, 3, True), (-4.0, 4, True), (10.0, 5, False)],
    }
    assert found.of_task("mixed")[0].success_last is False
    assert found.mean_success_rate == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)


def test_several_envs_of_a_task_do_not_favour_short_episodes(agent: Agent, counting_envs: Envs) -> None:
    """Two envs of one task, whose episodes last 1 step in one of them and 9 in the other."""
    tasks = {"a": {"lengths": (1,), "rewards": (1.0,)}, "b": {"lengths": (1,), "rewards": (1.0,)}}
    train = counting_envs(tasks)
    env = train.evaluation_env(4)
    env.reset()
    slow = env.envs[2].unwrapped._task_env(0).unwrapped  # the second copy of task a
    slow.lengths = (9,)
    found = evaluate_tasks(agent(train), env, n_episodes=2)
    assert sorted(e.length for e in found.of_task("a")) == [1, 9]


@pytest.mark.parametrize("n_envs", [2, 4, 7])
def test_another_number_of_envs_than_tasks(agent: Agent, counting_envs: Envs, n_envs: int) -> None:
    train = counting_envs(TASKS)
    found = evaluate_tasks(agent(train), train.evaluation_env(n_envs), n_episodes=4)
    assert {task: len(found.of_task(task)) for task in TASKS} == {"short": 4, "long": 4, "mixed": 4}
    assert all([e.episode for e in found.of_task(task)] == [0, 1, 2, 3] for task in TASKS)


def test_the_training_environment_is_not_touched(agent: Agent, counting_envs: Envs) -> None:
    log: list[str] = []
    env = counting_envs({"a": {"log": log}, "b": {}})
    model = agent(env)
    model.learn(20)
    inner = env.envs[0].unwrapped._task_env(0).unwrapped
    before = (inner.episode, inner.time, model._last_obs.copy(), model.num_timesteps)
    evaluate_tasks(model, env, n_episodes=2)
    assert (inner.episode, inner.time, model.num_timesteps) == (before[0], before[1], before[3])
    np.testing.assert_array_equal(model._last_obs, before[2])
    model.learn(20, reset_num_timesteps=False)


def test_evaluations_are_the_same_each_time(agent: Agent) -> None:
    env = make_multitask_env("contextual", seed=3, horizon=20)
    model = agent(env)
    first, second = (evaluate_tasks(model, env, n_episodes=2) for _ in range(2))
    assert first.episodes == second.episodes
    other = evaluate_tasks(model, make_multitask_env("contextual", seed=4, horizon=20), n_episodes=2)
    assert other.episodes != first.episodes


def test_the_base_alone_can_be_evaluated(agent: Agent, counting_envs: Envs, monkeypatch: pytest.MonkeyPatch) -> None:
    env = counting_envs({"a": {}, "b": {}})
    model = agent(env)
    asked: list[bool] = []
    original = model.predict
    monkeypatch.setattr(model, "predict", lambda *a, **k: (asked.append(model.policy._base_only), original(*a, **k))[1])
    evaluate_tasks(model, env, n_episodes=1, base=True)
    assert asked and all(asked) and not model.policy._base_only
    asked.clear()
    evaluate_tasks(model, env, n_episodes=1)
    assert asked and not any(asked)


def test_a_model_of_sb3_can_be_evaluated(counting_envs: Envs) -> None:
    env = counting_envs(TASKS)
    model = SAC("MlpPolicy", env, buffer_size=10, device="cpu", policy_kwargs={"net_arch": [4]})
    found = evaluate_tasks(model, env, n_episodes=2)
    assert {task: estimate.mean for task, estimate in found.returns().items()} == {
        "short": 9.5,
        "long": 4.5,
        "mixed": -0.5,
    }
    with pytest.raises(ValueError, match="needs a shared base"):
        evaluate_tasks(model, env, base=True)


def test_independent_networks_have_no_base(agent: Agent, counting_envs: Envs) -> None:
    env = counting_envs({"a": {}, "b": {}})
    with pytest.raises(ValueError, match="needs a shared base"):
        evaluate_tasks(agent(env, adapter="independent"), env, base=True)


def test_a_foreign_environment_is_named_by_the_model(agent: Agent, counting_envs: Envs) -> None:
    def make() -> Any:
        return DummyVecEnv([lambda: counting_envs({"x": {"lengths": (2,)}}).envs[0].unwrapped._task_env(0)])

    found = evaluate_tasks(agent(make()), make(), n_episodes=3)
    assert found.task_names == ["task"] and [e.episode_return for e in found.episodes] == [2.0, 2.0, 2.0]


def test_other_tasks_than_the_models_are_refused(agent: Agent, counting_envs: Envs) -> None:
    model = agent(counting_envs({"a": {}, "b": {}}))
    with pytest.raises(ValueError, match=r"knows the tasks \['a', 'b'\], the environment has \['b', 'a'\]"):
        evaluate_tasks(model, counting_envs({"b": {}, "a": {}}))


def test_nobody_knows_the_tasks(counting_envs: Envs) -> None:
    def make() -> Any:
        return DummyVecEnv([lambda: counting_envs({"x": {}}).envs[0].unwrapped._task_env(0)])

    model = SAC("MlpPolicy", make(), buffer_size=10, device="cpu", policy_kwargs={"net_arch": [4]})
    with pytest.raises(ValueError, match="Neither SAC nor the environment knows the tasks"):
        evaluate_tasks(model, VecMonitor(make()))


def test_the_protocol_is_the_environments(agent: Agent, counting_envs: Envs) -> None:
    model = agent(make_multitask_env("contextual", horizon=20))
    found = evaluate_tasks(model, make_multitask_env("contextual", horizon=10), n_episodes=1)
    assert found.protocol != model.protocol and {e.length for e in found.episodes} == {10}
    assert "Trained under another protocol: contextual.horizon: 20 against 10" in " ".join(str(found).split())
    assert "another" not in str(evaluate_tasks(model, make_multitask_env("contextual", horizon=20), n_episodes=1))


class ForeignEnv(gym.Env):
    """Knows the one-hot of two tasks, of which it plays those it is told to, one after the other."""

    observation_space = gym.spaces.Box(-1, 1, (4,), dtype=np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), dtype=np.float32)

    def __init__(self, tasks: Sequence[int], length: int) -> None:
        self.tasks, self.length, self.episode = tasks, length, -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        return self.observe(), 1.0, self.time == self.length, False, {}

    def observe(self) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[2 + self.tasks[self.episode % len(self.tasks)]]


def test_a_foreign_env_that_leaves_a_task_out_is_found_out(agent: Agent) -> None:
    envs: Any = [lambda: ForeignEnv([0], 1), lambda: ForeignEnv([0], 3)]
    model = agent(DummyVecEnv(envs), n_tasks=2)
    with pytest.raises(RuntimeError, match=r"to come \(episodes begun\): \{'task_1': 0\}.*play all tasks"):
        evaluate_tasks(model, DummyVecEnv(envs), n_episodes=2)


def test_a_rare_or_a_slow_task_is_waited_for(agent: Agent) -> None:
    model = agent(DummyVecEnv([lambda: ForeignEnv([0, 1], 1)]), n_tasks=2)
    rare: Any = DummyVecEnv([lambda: ForeignEnv([0] * 60 + [1], 1)])
    assert len(evaluate_tasks(model, rare, n_episodes=2).of_task("task_1")) == 2
    # 400 episodes of the one during one of the other are not too many.
    envs: Any = [lambda: ForeignEnv([0], 1), lambda: ForeignEnv([1], 400)]
    found = evaluate_tasks(model, DummyVecEnv(envs), n_episodes=2)
    assert [episode.length for episode in found.episodes] == [1, 1, 400, 400]


def test_an_episode_without_an_end_is_an_error(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MAX_EPISODE_STEPS", 50)
    envs: Any = [lambda: ForeignEnv([0, 1], 0)]
    model = agent(DummyVecEnv(envs), n_tasks=2)
    with pytest.raises(RuntimeError, match=r"No end of an episode of task 'task_0' after 50 steps: give .* horizon="):
        evaluate_tasks(model, DummyVecEnv(envs), n_episodes=1)


def test_at_least_one_episode(agent: Agent, counting_envs: Envs) -> None:
    env = counting_envs({"a": {}})
    with pytest.raises(ValueError, match="n_episodes must be at least 1, got 0"):
        evaluate_tasks(agent(env), env, n_episodes=0)
