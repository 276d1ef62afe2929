"""Which env plays what, and SB3's interface around it."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from sb3_varshare.tasks import MultiTaskVecEnv, TaskSuite, find_tasks, make_multitask_env, split_task
from sb3_varshare.tasks.multi_task_env import MultiTaskEnv


@pytest.mark.parametrize("n_envs", [1, 2, 3, 4, 7])
def test_every_task_is_played_by_its_env(scripted_suite: Callable[..., TaskSuite], n_envs: int) -> None:
    venv = MultiTaskVecEnv(scripted_suite(), n_envs)
    played: list[set[int]] = [set() for _ in range(n_envs)]
    observations = venv.reset()
    for _ in range(12):
        for rank, task_id in enumerate(split_task(observations, 3)[1]):
            played[rank].add(int(task_id))
        observations = venv.step(np.zeros((n_envs, 1), dtype=np.float32))[0]
    assert played == [set(cycle) for cycle in venv.layout]
    assert set.union(*played) == {0, 1, 2}


def test_steps_are_those_of_sb3s_own_classes() -> None:
    ours = make_multitask_env("contextual", n_envs=3, seed=1, horizon=7)

    def make(rank: int) -> Monitor:
        return Monitor(MultiTaskEnv(ours.suite, 1, rank=rank, tasks=ours.layout[rank]))

    theirs = DummyVecEnv([lambda rank=rank: make(rank) for rank in range(3)])  # type: ignore[misc]
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 3, 1)).astype(np.float32)
    n_ended = 0
    for action in actions:
        result, expected = ours.step(action), theirs.step(action)
        for one, other in zip(result[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        for info, other_info in zip(result[3], expected[3], strict=True):
            _same_info(info, other_info)
        n_ended += int(result[2].sum())
    assert n_ended == 3 * (40 // 7)
    assert ours.reset_infos == theirs.reset_infos


def _same_info(info: dict[str, Any], other: dict[str, Any]) -> None:
    assert set(info) == set(other)
    if "episode" in info:
        assert set(info["episode"]) == {"r", "l", "t"}
        assert (info["episode"]["r"], info["episode"]["l"]) == (other["episode"]["r"], other["episode"]["l"])
        np.testing.assert_array_equal(info["terminal_observation"], other["terminal_observation"])
    for key in ("task", "task_id", "is_success", "success_last", "TimeLimit.truncated"):
        assert info[key] == other[key]


def test_results_of_a_step_do_not_change_with_the_next(scripted_suite: Callable[..., TaskSuite]) -> None:
    venv = MultiTaskVecEnv(scripted_suite())
    venv.reset()
    first = venv.step(np.zeros((3, 1), dtype=np.float32))
    kept = [first[0].copy(), first[1].copy(), first[2].copy()]
    last = venv.step(np.zeros((3, 1), dtype=np.float32))
    for one, other in zip(first[:3], kept, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not any("episode" in info for info in first[3])
    assert all(info["episode"]["l"] == 2 and info["TimeLimit.truncated"] for info in last[3])


def test_seeds() -> None:
    venv = make_multitask_env("contextual", n_envs=10, seed=1)
    fresh = venv.reset()
    assert len({tuple(row[:3]) for row in fresh}) == 10
    again = venv.reset()
    assert not np.isclose(again[:, :3], fresh[:, :3]).all(axis=1).any()
    assert venv.seed(1) == [1] * 10
    np.testing.assert_array_equal(venv.reset(), fresh)
    np.testing.assert_array_equal(venv.reset(), again)
    venv.seed(2)
    assert venv.seed_value == 2
    np.testing.assert_array_equal(venv.reset(), make_multitask_env("contextual", n_envs=10, seed=2).reset())
    assert venv.seed()[0] == venv.seed_value != 2


def test_evaluation_has_one_env_per_task_and_other_streams() -> None:
    venv = make_multitask_env("contextual", n_envs=2, seed=1)
    evaluation = venv.evaluation_env()
    assert (evaluation.num_envs, evaluation.suite) == (5, venv.suite)
    train = make_multitask_env("contextual", seed=1).reset()
    assert not np.isclose(evaluation.reset()[:, :3], train[:, :3]).all(axis=1).any()
    assert venv.evaluation_env(3).num_envs == 3


def test_the_env_knows_its_tasks() -> None:
    venv = make_multitask_env("contextual")
    assert venv.n_tasks == 5
    assert venv.task_names[0] == "swing-up"
    assert find_tasks(venv) == venv.suite.describe()


def test_a_task_can_be_called_by_options(scripted_suite: Callable[..., TaskSuite]) -> None:
    venv = MultiTaskVecEnv(scripted_suite(), 2)
    venv.set_options([{"task": "three"}, {"task": "one"}])
    assert split_task(venv.reset(), 3)[1].tolist() == [2, 0]
    assert split_task(venv.reset(), 3)[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"task": "tree"}, "did you mean 'three'"), ([{"task": 9}, {}], "got 9"), ([{}], "each of 2 envs, got 1")],
)
def test_options_are_checked_before_they_reach_an_env(
    scripted_suite: Callable[..., TaskSuite], options: Any, message: str
) -> None:
    venv = MultiTaskVecEnv(scripted_suite(), 2)
    venv.set_options({"task": "three"})
    with pytest.raises(ValueError, match=message):
        venv.set_options(options)
    assert split_task(venv.reset(), 3)[1].tolist() == [2, 2]


def test_copies_without_a_seed_have_one_root() -> None:
    pytest.importorskip("metaworld")
    goals = make_multitask_env("MT1/reach-v3", n_envs=2, n_goals=1, seed=None).reset()[:, 36:39]
    assert np.array_equal(goals[0], goals[1])
    assert MultiTaskEnv("contextual", seed=None).seed_value != MultiTaskEnv("contextual", seed=None).seed_value


def test_plain_sac_learns_on_it_and_is_evaluated() -> None:
    venv = make_multitask_env("contextual", horizon=10)
    model = SAC("MlpPolicy", venv, learning_starts=10, batch_size=8, buffer_size=100, seed=0, device="cpu")
    model.learn(20)
    returns, lengths = evaluate_policy(model, venv.evaluation_env(), n_eval_episodes=5, return_episode_rewards=True)
    assert lengths == [10] * 5
    assert all(value < 0 for value in returns)


def test_weights_share_out_what_is_collected(scripted_suite: Callable[..., TaskSuite]) -> None:
    # Episodes of two steps: ten steps of four envs are twenty episodes.
    venv = MultiTaskVecEnv(scripted_suite(), 4, task_weights={"two": 2})
    assert venv.layout == ((0,), (1,), (2,), (1,))
    venv = MultiTaskVecEnv(scripted_suite(), 1, task_weights=[3, 1, 1])
    observations, played = venv.reset(), []
    for _ in range(20):
        played.append(int(split_task(observations, 3)[1][0]))
        observations = venv.step(np.zeros((1, 1), dtype=np.float32))[0]
    assert played[::2] == [0, 1, 0, 2, 0] * 2
    assert venv.evaluation_env().layout == ((0,), (1,), (2,))


def test_attributes_and_methods(scripted_suite: Callable[..., TaskSuite]) -> None:
    venv = MultiTaskVecEnv(scripted_suite(), render_mode="rgb_array")
    venv.reset()
    assert venv.get_attr("current_task") == [0, 1, 2]
    assert venv.get_attr("current_task", indices=[2, 0]) == [2, 0]
    assert venv.has_attr("suite") and not venv.has_attr("nothing")
    venv.set_attr("nothing", 5, indices=1)
    assert venv.get_attr("nothing", indices=1) == [5]
    assert venv.env_method("set_tasks", ["three"], indices=0) == [None]
    assert split_task(venv.reset(), 3)[1].tolist() == [2, 1, 2]
    assert venv.get_images() == ["drawn in rgb_array"] * 3
    assert [env.current_task for env in venv.envs] == [2, 1, 2]


def test_envs_count_as_monitored(scripted_suite: Callable[..., TaskSuite]) -> None:
    venv = MultiTaskVecEnv(scripted_suite())
    assert venv.env_is_wrapped(Monitor) == [True] * 3
    assert VecFrameStack(venv, 2).env_is_wrapped(Monitor, indices=[1]) == [True]
    assert venv.env_is_wrapped(gym.wrappers.ClipAction) == [False] * 3


def test_actions_of_another_shape_are_refused(scripted_suite: Callable[..., TaskSuite]) -> None:
    venv = MultiTaskVecEnv(scripted_suite())
    venv.reset()
    with pytest.raises(ValueError, match=r"shape \(3, 1\), got \(1,\)"):
        venv.step(np.zeros(1, dtype=np.float32))


def test_without_workers_there_is_nothing_to_restart() -> None:
    venv = make_multitask_env("contextual")
    assert (venv.n_workers, venv.worker_pids, venv.worker_restarts) == (0, (), 0)
    assert set(venv.worker_restarts_per_task().values()) == {0}
