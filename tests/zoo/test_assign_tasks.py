"""Which env plays which task, on which stream."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_varshare.evaluation.evaluation_env import rewind
from sb3_varshare.tasks import MultiTaskEnv, MultiTaskVecEnv, make_suite, split_task
from sb3_varshare.zoo import AssignTasks

N_TASKS = 5
HORIZON = 6


def make_env(purpose: str = "train") -> gym.Env:
    return Monitor(gym.make("Contextual-v0", horizon=HORIZON, purpose=purpose))


def assigned(n_envs: int, purpose: str = "train", seed: int = 7) -> AssignTasks:
    venv = DummyVecEnv([partial(make_env, purpose)] * n_envs)
    # As SB3's make_vec_env: the envs are seeded before they are wrapped.
    venv.seed(seed)
    return AssignTasks(venv)


def play(venv: Any, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations (steps + 1, N, D + T) and rewards (steps, N) under fixed actions."""
    rng = np.random.default_rng(0)
    observations, rewards = [venv.reset()], []
    for _ in range(steps):
        observation, reward, _, _ = venv.step(rng.uniform(-1, 1, (venv.num_envs, 1)).astype(np.float32))
        observations.append(observation)
        rewards.append(reward)
    return np.stack(observations), np.stack(rewards)


@pytest.mark.parametrize("n_envs", [1, 2, 3, 5, 7, 10])
def test_training_plays_what_the_packages_own_envs_play(n_envs: int) -> None:
    ours, theirs = assigned(n_envs), MultiTaskVecEnv(make_suite("contextual", horizon=HORIZON), n_envs, seed=7)
    assert ours.layout == theirs.layout
    for venv in (ours, theirs):
        venv.seed(11)
    # Enough for every env to play all of its tasks twice.
    for left, right in zip(play(ours, 2 * N_TASKS * HORIZON), play(theirs, 2 * N_TASKS * HORIZON), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("n_envs", [1, 2, 5, 10])
def test_every_task_is_visited(n_envs: int) -> None:
    observations, _ = play(assigned(n_envs), 10 * HORIZON)
    tasks = split_task(observations[:-1], N_TASKS)[1]
    counts = np.bincount(tasks.ravel(), minlength=N_TASKS)
    # Two episodes of every task for each env, and a fifth of them all where they go round.
    assert counts.tolist() == [2 * n_envs * HORIZON] * N_TASKS


def first_episodes(n_envs: int, repeat: bool = False) -> dict[int, np.ndarray]:
    """Task -> observations of the first episode of its first env."""
    venv = assigned(n_envs, "evaluation")
    if repeat:
        play(venv, 4)
        rewind(venv)
    observations = venv.reset()
    found: dict[int, list[np.ndarray]] = {}
    for step in range(N_TASKS * HORIZON):
        tasks = split_task(observations, N_TASKS)[1]
        for env, task in enumerate(tasks.tolist()):
            rows = found.setdefault(task, [])
            if len(rows) == step % HORIZON and env < N_TASKS:
                rows.append(observations[env])
        observations = venv.step(np.zeros((n_envs, 1), dtype=np.float32))[0]
    return {task: np.stack(rows[:HORIZON]) for task, rows in found.items()}


@pytest.mark.parametrize("n_envs", [1, 2, 3, 4, 10])
def test_evaluation_does_not_depend_on_the_number_of_envs(n_envs: int) -> None:
    expected, found = first_episodes(N_TASKS), first_episodes(n_envs)
    assert sorted(found) == list(range(N_TASKS))
    for task, observations in expected.items():
        np.testing.assert_array_equal(found[task], observations)


def test_evaluation_begins_anew_and_differs_from_training() -> None:
    expected, again = first_episodes(2), first_episodes(2, repeat=True)
    for task, observations in expected.items():
        np.testing.assert_array_equal(again[task], observations)
    assert not np.array_equal(assigned(5).reset(), assigned(5, "evaluation").reset())


def test_copies_of_a_task_play_different_episodes() -> None:
    for purpose in ("train", "evaluation"):
        rows = assigned(10, purpose).reset()
        assert not np.array_equal(rows[:5], rows[5:])
        np.testing.assert_array_equal(split_task(rows[:5], N_TASKS)[1], split_task(rows[5:], N_TASKS)[1])


def test_another_rank_is_on_streams_of_its_own() -> None:
    env = MultiTaskEnv("contextual", seed=7)
    first = env.reset()[0]
    env.set_tasks([0], rank=2)
    expected = MultiTaskEnv("contextual", seed=7, rank=2).reset()[0]
    np.testing.assert_array_equal(env.reset()[0], expected)
    assert not np.array_equal(first, expected)


def test_own_envs_are_left_as_they_are() -> None:
    inner = MultiTaskVecEnv(make_suite("contextual"), 2, seed=3)
    venv = AssignTasks(inner)
    assert venv.layout == inner.layout
    assert venv.seed(8) == [8, 8]


def test_envs_without_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="needs envs that know their tasks"):
        AssignTasks(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
