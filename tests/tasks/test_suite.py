"""Names, ids and sizes of tasks, and how an agent finds them."""

import dataclasses
import pickle
from collections.abc import Callable

import gymnasium as gym
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

from sb3_varshare.tasks.multi_task_env import MultiTaskEnv
from sb3_varshare.tasks.registry import make_suite
from sb3_varshare.tasks.suite import TaskSpec, TaskSuite, find_tasks
from sb3_varshare.tasks.vec_env import MultiTaskVecEnv


@pytest.fixture
def mixed_suite(scripted_task: Callable[..., TaskSpec]) -> TaskSuite:
    wide = scripted_task("reach", size=5, low=(-1.0, -2.0, 0.0))
    other = scripted_task("push", size=3)
    return TaskSuite("mixed", (wide, other, TaskSpec("push", "elsewhere", other.make, 7, 3, 1)), {"version": 1})


def test_sizes_are_those_of_the_largest_task(mixed_suite: TaskSuite) -> None:
    suite = mixed_suite
    assert (suite.n_tasks, suite.observation_size, suite.action_size) == (3, 5, 3)
    assert suite.action_sizes == (3, 1, 1)


def test_room_can_be_kept_for_larger_tasks(mixed_suite: TaskSuite) -> None:
    for padded_sizes, sizes in (((9, 4), (9, 4)), ((1, 4), (5, 4)), ((0, 0), (5, 3))):
        suite = dataclasses.replace(mixed_suite, padded_sizes=padded_sizes)
        assert (suite.observation_size, suite.action_size) == sizes
        env = MultiTaskEnv(suite)
        assert (env.observation_space.shape, env.action_space.shape) == ((sizes[0] + 3,), (sizes[1],))
        assert suite.select(["reach"]).observation_size == sizes[0]


def test_names_are_short_where_unique_and_full_where_not(mixed_suite: TaskSuite) -> None:
    assert mixed_suite.task_names == ("reach", "scripted/push", "elsewhere/push")


@pytest.mark.parametrize(
    ("task", "task_id"), [("reach", 0), ("scripted/reach", 0), ("scripted/push", 1), ("elsewhere/push", 2), (2, 2)]
)
def test_task_id(mixed_suite: TaskSuite, task: str | int, task_id: int) -> None:
    assert mixed_suite.task_id(task) == task_id


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("raech", "got 'raech'; did you mean 'reach'"),
        ("push", "did you mean 'elsewhere/push' or 'scripted/push'"),
        ("zzzzzz", "known are elsewhere/push, reach, scripted/push\\."),
        (3, "task ids 0 to 2, got 3"),
        (-1, "task ids 0 to 2, got -1"),
    ],
)
def test_unknown_task(mixed_suite: TaskSuite, task: str | int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixed_suite.task_id(task)


def test_select_keeps_the_given_order(mixed_suite: TaskSuite) -> None:
    chosen = mixed_suite.select(["elsewhere/push", 0])
    assert chosen.task_names == ("push", "reach")
    assert chosen.protocol == {"version": 1}


def test_a_suite_needs_tasks_and_each_once(
    scripted_suite: Callable[..., TaskSuite], scripted_task: Callable[..., TaskSpec]
) -> None:
    with pytest.raises(ValueError, match="no tasks"):
        TaskSuite("empty", ())
    with pytest.raises(ValueError, match=r"\['scripted/one'\] more than once"):
        scripted_suite(scripted_task("one"), scripted_task("one"))


def test_find_tasks_through_every_kind_of_env(scripted_suite: Callable[..., TaskSuite]) -> None:
    suite = scripted_suite()
    description = suite.describe()
    env = MultiTaskEnv(suite)
    assert find_tasks(env) == description
    assert find_tasks(gym.Wrapper(env)) == description
    assert find_tasks(DummyVecEnv([lambda: gym.Wrapper(MultiTaskEnv(suite))])) == description
    assert find_tasks(VecFrameStack(MultiTaskVecEnv(suite), 2)) == description


def test_find_tasks_in_a_plain_env_is_none() -> None:
    assert find_tasks(gym.make("Pendulum-v1")) is None
    assert find_tasks(DummyVecEnv([lambda: gym.make("Pendulum-v1")])) is None


def test_find_tasks_leaves_a_subprocess_without_tasks_alive() -> None:
    venv = SubprocVecEnv([lambda: gym.make("Pendulum-v1")], start_method="fork")
    assert find_tasks(venv) is None
    assert venv.reset().shape == (1, 3)
    venv.close()


def test_find_tasks_refuses_copies_of_different_suites(
    scripted_suite: Callable[..., TaskSuite], scripted_task: Callable[..., TaskSpec]
) -> None:
    suites = [scripted_suite(), scripted_suite(scripted_task("four"))]
    with pytest.raises(ValueError, match="same suite"):
        find_tasks(DummyVecEnv([lambda suite=suite: MultiTaskEnv(suite) for suite in suites]))


def test_a_suite_and_its_description_can_be_pickled() -> None:
    suite = make_suite("contextual")
    description = pickle.loads(pickle.dumps(suite.describe()))
    assert description == pickle.loads(pickle.dumps(suite)).describe() == suite.describe()
