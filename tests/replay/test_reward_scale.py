"""The reward scale of each task, by hand."""

import numpy as np
import pytest
import torch as th

from sb3_varshare.replay import RewardScale
from sb3_varshare.replay.reward_scale import LONGEST_EPISODE, discounted_returns

FALSE = np.zeros(1, dtype=bool)
TRUE = np.ones(1, dtype=bool)


def play(scale: RewardScale, task: int, rewards: list[float], end: str | None, env: int = 0) -> None:
    """One episode of one env; ``end`` is terminated, truncated, both, or None for an episode that goes on."""
    for step, reward in enumerate(rewards):
        last = step == len(rewards) - 1
        update_one(
            scale, env, task, reward, last and end in ("terminated", "both"), last and end in ("truncated", "both")
        )


def update_one(
    scale: RewardScale, env: int, task: int, reward: float, terminated: bool = False, truncated: bool = False
) -> list[int]:
    """A step of one of several envs: the ones before it play nothing that counts."""
    n = env + 1
    flags = np.zeros((2, n), dtype=bool)
    flags[:, env] = terminated, truncated
    rewards = np.zeros(n)
    rewards[env] = reward
    # The others play the same task with a reward of zero and never end.
    return scale.update(np.full(n, task), rewards, flags[0], flags[1])


def denominator(scale: RewardScale, ent_coef: float = 0.0, target_entropy: float = 0.0) -> list[float]:
    n_tasks = len(scale.return_max)
    values: list[float] = scale(th.full((n_tasks,), ent_coef), th.full((n_tasks,), target_entropy)).tolist()
    return values


def test_discounted_returns_by_hand() -> None:
    rewards, bootstrap = np.array([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]]), np.array([4.0, 0.0])
    expected = [[1 + 1 + 0.75 + 0.5, 2 + 1.5 + 1, 5.0], [1.0, 0.0, 0.0]]
    np.testing.assert_allclose(discounted_returns(rewards, 0.5, bootstrap), expected)


def test_a_terminated_episode_ends_at_zero() -> None:
    scale = RewardScale(1, gamma=0.5, v_max=10.0)
    play(scale, 0, [1.0, 2.0, 3.0], "terminated")
    # Returns 1 + 1 + 0.75, 2 + 1.5, 3
    assert scale.return_max.tolist() == [3.5] and scale.return_min.tolist() == [2.75]
    assert denominator(scale) == pytest.approx([0.35])


@pytest.mark.parametrize("end", ["truncated", "both"])
def test_a_truncated_episode_goes_on_with_its_mean_reward(end: str) -> None:
    scale = RewardScale(1, gamma=0.5, v_max=10.0)
    play(scale, 0, [1.0, 2.0, 3.0], end)
    # Mean 2, bootstrap 2 / (1 - 0.5) = 4: returns 5, 4.5, 3.25
    assert scale.return_max.tolist() == [5.0] and scale.return_min.tolist() == [3.25]
    assert denominator(scale) == pytest.approx([0.5])


def test_of_negative_returns_the_size_counts() -> None:
    scale = RewardScale(1, gamma=0.5, v_max=10.0)
    play(scale, 0, [-1.0, -2.0, -3.0], "terminated")
    assert scale.return_max.tolist() == [-2.75] and scale.return_min.tolist() == [-3.5]
    assert denominator(scale) == pytest.approx([0.35])


def test_the_entropy_share_by_hand() -> None:
    # (3.5 + 25 * 0.2 * 4) / 10: the formula of BRC for gamma 0.99 and target entropy -|A| / 2 with |A| = 4.
    scale = RewardScale(1, gamma=0.99, v_max=10.0)
    play(scale, 0, [3.5], "terminated")
    assert denominator(scale, ent_coef=0.2, target_entropy=-2.0) == pytest.approx([(3.5 + 25 * 0.2 * 4) / 10], rel=1e-5)


def test_each_task_has_its_own_coefficient_and_target() -> None:
    scale = RewardScale(2, gamma=0.5, v_max=1.0)
    play(scale, 0, [1.0], "terminated")
    play(scale, 1, [1.0], "terminated")
    values = scale(th.tensor([0.1, 1.0]), th.tensor([-1.0, -3.0]))
    th.testing.assert_close(values, th.tensor([1 + 0.1 * 1.0, 1 + 1.0 * 3.0]))


def test_rewards_that_are_all_zero_are_safe() -> None:
    scale = RewardScale(1, gamma=0.99, v_max=10.0)
    play(scale, 0, [0.0, 0.0], "truncated")
    assert denominator(scale, ent_coef=0.1, target_entropy=-0.5) == pytest.approx([0.25])


@pytest.mark.parametrize(("ent_coef", "target_entropy"), [(0.0, -0.5), (0.1, 0.0), (0.1, 3.0)])
def test_a_scale_is_never_zero_or_negative(ent_coef: float, target_entropy: float) -> None:
    scale = RewardScale(1, gamma=0.99, v_max=10.0)
    play(scale, 0, [0.0, 0.0], "terminated")
    value = scale(th.tensor([ent_coef]), th.tensor([target_entropy]))
    assert value.item() > 0
    assert th.equal(th.zeros(1) / value, th.zeros(1))


def test_the_range_never_shrinks() -> None:
    scale = RewardScale(1, gamma=0.5, v_max=1.0)
    for rewards in ([4.0], [1.0], [-2.0], [-1.0]):
        play(scale, 0, rewards, "terminated")
    assert (scale.return_max.item(), scale.return_min.item()) == (4.0, -2.0)


def test_a_task_without_a_finished_episode_has_no_scale() -> None:
    scale = RewardScale(3, gamma=0.5, v_max=1.0)
    assert scale.missing_tasks() == {0, 1, 2}
    play(scale, 1, [2.0], "terminated")
    play(scale, 2, [2.0, 2.0], None)
    assert scale.missing_tasks() == {0, 2}
    values = scale(th.full((3,), 0.1), th.full((3,), -1.0))
    assert values.isinf().tolist() == [True, False, True]
    assert (th.full((3,), 5.0) / values)[[0, 2]].tolist() == [0.0, 0.0]


def test_tasks_and_envs_are_independent() -> None:
    """Three envs step together: two play task 0, one plays task 1; each finishes at its own time."""
    scale = RewardScale(2, gamma=0.5, v_max=1.0)
    tasks = np.array([0, 1, 0])
    scale.update(tasks, np.array([1.0, 10.0, 100.0]), np.array([False, False, True]), np.zeros(3, dtype=bool))
    assert (scale.return_max[0].item(), scale.return_min[0].item()) == (100.0, 100.0)
    assert scale.missing_tasks() == {1}
    scale.update(tasks, np.array([1.0, 20.0, 8.0]), np.array([True, True, False]), np.zeros(3, dtype=bool))
    # Env 0: 1 + 0.5, 1. Env 1: 10 + 10, 20. Env 2 has only begun.
    assert (scale.return_max[0].item(), scale.return_min[0].item()) == (100.0, 1.0)
    assert (scale.return_max[1].item(), scale.return_min[1].item()) == (20.0, 20.0)


def test_an_env_may_change_its_task_between_episodes() -> None:
    scale = RewardScale(2, gamma=0.5, v_max=1.0)
    play(scale, 0, [1.0, 1.0], "terminated")
    play(scale, 1, [3.0], "terminated")
    assert scale.return_max.tolist() == [1.5, 3.0]


def test_an_episode_without_an_end_is_cut() -> None:
    scale = RewardScale(2, gamma=0.5, v_max=1.0)
    for _ in range(LONGEST_EPISODE - 1):
        assert update_one(scale, 0, 1, 2.0) == []
    assert scale.missing_tasks() == {0, 1}
    assert update_one(scale, 0, 1, 2.0) == [1]
    # A constant reward of 2 for ever: 2 / (1 - 0.5).
    assert scale.return_max[1].item() == pytest.approx(4.0)
    assert scale.missing_tasks() == {0}
    assert update_one(scale, 0, 1, 2.0) == []


def test_an_episode_that_ends_at_its_longest_was_not_cut() -> None:
    scale = RewardScale(1, gamma=0.5, v_max=1.0)
    for _ in range(LONGEST_EPISODE - 1):
        update_one(scale, 0, 0, 2.0)
    assert update_one(scale, 0, 0, 2.0, truncated=True) == []


def test_open_episodes_can_be_forgotten() -> None:
    scale = RewardScale(1, gamma=0.5, v_max=1.0)
    play(scale, 0, [100.0, 100.0], None)
    scale.forget_open_episodes()
    play(scale, 0, [1.0], "terminated")
    assert scale.return_max.tolist() == [1.0]


def test_state_dict_round_trip() -> None:
    scale = RewardScale(2, gamma=0.5, v_max=2.0)
    play(scale, 1, [3.0, -5.0], "terminated")
    copy = RewardScale(2, gamma=0.5, v_max=2.0)
    assert copy.missing_tasks() == {0, 1}
    copy.load_state_dict(scale.state_dict())
    assert copy.missing_tasks() == {0}
    assert th.equal(copy.return_max, scale.return_max) and th.equal(copy.return_min, scale.return_min)
    assert denominator(copy, 0.1, -1.0) == denominator(scale, 0.1, -1.0)


def test_many_envs_at_once_equal_one_by_one() -> None:
    """Against the definition, in plain Python: random ends, tasks that change between episodes."""
    rng, n_envs, gamma = np.random.default_rng(2), 6, 0.9
    scale, tasks = RewardScale(3, gamma, v_max=1.0), rng.integers(3, size=n_envs)
    open_rewards: list[list[float]] = [[] for _ in range(n_envs)]
    highest, lowest = [-np.inf] * 3, [np.inf] * 3
    for _ in range(150):
        rewards = rng.normal(size=n_envs).astype(np.float32)
        terminated, truncated = rng.random((2, n_envs)) < 0.1
        scale.update(tasks, rewards, terminated, truncated)
        for env in range(n_envs):
            open_rewards[env].append(float(rewards[env]))
            if terminated[env] or truncated[env]:
                running = float(np.mean(open_rewards[env])) / (1 - gamma) if truncated[env] else 0.0
                for reward in reversed(open_rewards[env]):
                    running = reward + gamma * running
                    highest[tasks[env]] = max(highest[tasks[env]], running)
                    lowest[tasks[env]] = min(lowest[tasks[env]], running)
                open_rewards[env] = []
        tasks = np.where(terminated | truncated, rng.integers(3, size=n_envs), tasks)
    assert scale.return_max.tolist() == np.array(highest, dtype=np.float32).tolist()
    assert scale.return_min.tolist() == np.array(lowest, dtype=np.float32).tolist()
