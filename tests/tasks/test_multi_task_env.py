"""One env that plays any task: turns, padding, ends, success, seeds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from sb3_varshare.tasks.multi_task_env import MultiTaskEnv
from sb3_varshare.tasks.suite import TaskSpec, TaskSuite

NO_ACTION = np.zeros(1, dtype=np.float32)


def inner(env: MultiTaskEnv) -> Any:
    return env._env


def test_tasks_take_turns_and_can_be_called(scripted_suite: Callable[..., TaskSuite]) -> None:
    env = MultiTaskEnv(scripted_suite())
    played = [env.reset(options=options)[1]["task"] for options in (None, {"task": "one"}, {"task": 2}, None, {}, None)]
    assert played == ["one", "one", "three", "two", "three", "one"]
    assert env.current_task == 0
    env.set_tasks(["three", 1])
    assert [env.reset()[1]["task_id"] for _ in range(3)] == [2, 1, 2]
    with pytest.raises(ValueError, match="at least one"):
        env.set_tasks([])
    with pytest.raises(ValueError, match="did you mean 'three'"):
        env.reset(options={"task": "tree"})


def test_mixed_sizes_are_padded_by_hand(
    scripted_suite: Callable[..., TaskSuite], scripted_task: Callable[..., TaskSpec]
) -> None:
    suite = scripted_suite(scripted_task("wide", size=4, low=(-1.0, 1.0, 3.0)), scripted_task("narrow", low=(0.0,)))
    env = MultiTaskEnv(suite)
    assert env.observation_space.shape == (4 + 2,)
    assert env.action_space.shape == (3,)
    observation, _ = env.reset(options={"task": "narrow"})
    draw = np.float32(inner(env).draw)
    assert observation.dtype == np.float32
    assert observation.tolist() == [0, draw, 0, 0, 0, 1]
    # Bounds 0 to 3: -1/3 is a third of the way, 1. The padded entries do not arrive.
    env.step(np.array([-1 / 3, 5.0, -7.0], dtype=np.float32))
    assert inner(env).actions[0].tolist() == pytest.approx([1.0])
    env.reset(options={"task": "wide"})
    for action in ([-1, -1, -1], [1, 1, 1], [0, 0, 0], [2, -2, 0]):
        env.step(np.array(action, dtype=np.float32))
    # Bounds -1 to 3, 1 to 3, and 3 to 3.
    assert [action.tolist() for action in inner(env).actions] == [[-1, 1, 3], [3, 3, 3], [1, 2, 3], [3, 1, 3]]


def test_an_action_of_the_wrong_shape_is_refused(scripted_suite: Callable[..., TaskSuite]) -> None:
    env = MultiTaskEnv(scripted_suite())
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(1,\), got \(2,\)"):
        env.step(np.zeros(2, dtype=np.float32))


@pytest.mark.parametrize("given", [3, 1])
def test_an_observation_of_another_length_than_declared_is_refused(
    scripted_suite: Callable[..., TaskSuite], scripted_task: Callable[..., TaskSpec], given: int
) -> None:
    def make(stream: np.random.SeedSequence) -> gym.Env:
        env = scripted_task("one").make(stream)
        return gym.wrappers.TransformObservation(env, lambda seen: np.resize(seen, given), env.observation_space)

    spec = dataclasses.replace(scripted_task("one"), make=make)
    with pytest.raises(ValueError, match=rf"'scripted/one' must give observations of shape \(2,\).*got \({given},\)"):
        MultiTaskEnv(scripted_suite(spec, scripted_task("two"))).reset()


def test_an_action_keeps_to_the_bounds_of_a_space_of_either_type() -> None:
    for dtype in (np.float32, np.float64):
        env = gym.make("Pendulum-v1")
        env.action_space = gym.spaces.Box(-0.1, 0.7, (1,), dtype=dtype)
        seen = []
        wrapped = gym.wrappers.TransformAction(env, lambda action, seen=seen: seen.append(action) or action, None)  # type: ignore[func-returns-value,misc]
        multi = MultiTaskEnv({"one": lambda wrapped=wrapped: wrapped})  # type: ignore[misc]
        multi.reset()
        for action in (-1.0, 0.3, 1.0):
            multi.step(np.array([action], dtype=np.float32))
        assert all(wrapped.action_space.contains(action) for action in seen)
        assert np.concatenate(seen).tolist() == pytest.approx([-0.1, 0.42, 0.7])


@pytest.mark.parametrize(
    ("terminated", "truncated", "horizon", "expected"),
    [
        (False, False, None, (False, False)),
        (False, False, 2, (False, False)),
        (False, False, 1, (False, True)),
        (False, True, None, (False, True)),
        (False, True, 1, (False, True)),
        (True, False, None, (True, False)),
        (True, False, 1, (True, False)),
        (True, True, 1, (True, False)),
    ],
)
def test_ends(
    scripted_suite: Callable[..., TaskSuite],
    scripted_task: Callable[..., TaskSpec],
    terminated: bool,
    truncated: bool,
    horizon: int | None,
    expected: tuple[bool, bool],
) -> None:
    task = scripted_task("one", script=[(terminated, truncated)], horizon=horizon)
    env = MultiTaskEnv(scripted_suite(task))
    env.reset()
    assert env.step(NO_ACTION)[2:4] == expected


def test_the_time_limit_counts_anew_each_episode(scripted_suite: Callable[..., TaskSuite]) -> None:
    env = MultiTaskEnv(scripted_suite())
    for _ in range(2):
        env.reset()
        assert [env.step(NO_ACTION)[3] for _ in range(2)] == [False, True]


@pytest.mark.parametrize("key", ["success", "is_success"])
def test_success_is_at_any_step_of_the_episode(
    scripted_suite: Callable[..., TaskSuite], scripted_task: Callable[..., TaskSpec], key: str
) -> None:
    script = [(False, False, {key: value, "near_object": 0.3}) for value in (0.0, 1.0, 0.0, np.False_)]
    env = MultiTaskEnv(scripted_suite(scripted_task("one", script=script)))
    for _ in range(2):
        _, info = env.reset()
        assert info == {"task": "one", "task_id": 0}
        infos = [env.step(NO_ACTION)[4] for _ in range(4)]
        assert [info["is_success"] for info in infos] == [False, True, True, True]
        assert [info["success_last"] for info in infos] == [False, True, False, False]
        assert all(set(info) == {"task", "task_id", "is_success", "success_last"} for info in infos)
        assert all(type(info["is_success"]) is bool for info in infos)


def test_success_reported_once_stays_known(
    scripted_suite: Callable[..., TaskSuite], scripted_task: Callable[..., TaskSpec]
) -> None:
    env = MultiTaskEnv(scripted_suite(scripted_task("one", script=[(), (False, False, {"success": True}), ()])))
    env.reset()
    assert [env.step(NO_ACTION)[4].get("is_success") for _ in range(3)] == [None, True, True]


def test_a_task_that_reports_no_success_has_no_such_keys(
    scripted_suite: Callable[..., TaskSuite], scripted_task: Callable[..., TaskSpec]
) -> None:
    env = MultiTaskEnv(
        scripted_suite(scripted_task("one", script=[(False, False, {"TimeLimit.truncated": False, "x": 1})]))
    )
    env.reset()
    assert env.step(NO_ACTION)[4] == {"task": "one", "task_id": 0, "TimeLimit.truncated": False}


def starts(suite: TaskSuite, **kwargs: Any) -> list[float]:
    """The draws at the starts of six episodes, two of each task."""
    env = MultiTaskEnv(suite, **kwargs)
    return [float(env.reset()[0][1]) for _ in range(6)]


def test_equal_seeds_give_equal_episodes_and_nothing_else_does(scripted_suite: Callable[..., TaskSuite]) -> None:
    suite = scripted_suite()
    settings: list[dict[str, Any]] = [{}, {"seed": 1}, {"rank": 1}, {"purpose": "evaluation"}]
    draws = [starts(suite, **setting) for setting in settings]
    assert draws == [starts(suite, **setting) for setting in settings]
    flat = [draw for episode_draws in draws for draw in episode_draws]
    assert len(set(flat)) == len(flat)


def test_a_stream_depends_on_the_name_of_its_task_not_on_its_place(
    scripted_suite: Callable[..., TaskSuite], scripted_task: Callable[..., TaskSpec]
) -> None:
    names = ["three", "one", "two"]
    forwards, backwards = (starts(scripted_suite(*map(scripted_task, order))) for order in (names, names[::-1]))
    assert forwards[:3] == backwards[2::-1]


def test_a_seed_at_reset_roots_all_streams_anew(scripted_suite: Callable[..., TaskSuite]) -> None:
    suite = scripted_suite()
    env = MultiTaskEnv(suite, seed=9)
    used = [env.reset() for _ in range(4)]
    old = inner(env)
    first = env.reset(seed=4)[0]
    rest = [env.reset()[0] for _ in range(5)]
    assert [float(observation[1]) for observation in (first, *rest)] == starts(suite, seed=4)
    assert env.reset(seed=9)[0].tolist() == used[0][0].tolist()
    # This env cannot be given a stream, so it was closed and built again.
    assert old.n_closed == 1


def test_render_and_close(scripted_suite: Callable[..., TaskSuite]) -> None:
    env = MultiTaskEnv(scripted_suite(), render_mode="rgb_array")
    with pytest.raises(RuntimeError, match="call reset"):
        env.render()
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(NO_ACTION)
    env.reset()
    assert env.render() == "drawn in rgb_array"
    task_env = inner(env)
    env.close()
    assert task_env.n_closed == 1
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(NO_ACTION)


def test_a_spec_with_wrong_sizes_is_refused(
    scripted_suite: Callable[..., TaskSuite], scripted_task: Callable[..., TaskSpec]
) -> None:
    wrong = TaskSpec("one", "scripted", scripted_task("one", size=3).make, None, 2, 1)
    with pytest.raises(ValueError, match=r"declares observation and action sizes \(2, 1\), but its env has \(3, 1\)"):
        MultiTaskEnv(scripted_suite(wrong)).reset()


def test_sb3s_checker_is_content() -> None:
    check_env(MultiTaskEnv("contextual"))
