"""Meta-World as it is upstream, with goals of our own: distinct, reproducible, held out."""

import pickle
from typing import Any

import numpy as np
import pytest

from sb3_varshare.tasks import MultiTaskEnv, make_suite
from sb3_varshare.tasks.seeding import Purpose, task_stream

pytest.importorskip("metaworld")

NO_ACTION = np.zeros(4, dtype=np.float32)


def reach(purpose: Purpose = "train", seed: int = 0, rank: int = 0, **options: Any) -> Any:
    spec = make_suite("MT1/reach-v3", **options).tasks[0]
    return spec.make(task_stream(seed, purpose, spec.full_name, rank))


def goals(env: Any, n_resets: int) -> list[tuple[float, ...]]:
    return [tuple(env.reset()[0][-3:].tolist()) for _ in range(n_resets)]


def test_fifty_resets_play_fifty_goals_and_the_next_fifty_the_same() -> None:
    env = reach()
    first, second = goals(env, 50), goals(env, 50)
    assert len(set(first)) == 50
    assert set(first) == set(second)
    assert first != second


def test_copies_share_their_goals_but_not_the_order() -> None:
    one, other = (goals(reach(rank=rank, n_goals=4), 12) for rank in (0, 1))
    assert set(one) == set(other)
    assert one != other


def test_seeds_and_purposes_have_goals_of_their_own() -> None:
    settings: list[dict[str, Any]] = [{}, {"seed": 1}, {"purpose": "evaluation"}]
    sets = [set(goals(reach(n_goals=4, **setting), 4)) for setting in settings]
    assert len(set.union(*sets)) == 12


def test_evaluation_can_have_the_goals_of_training() -> None:
    train, evaluation = (
        goals(reach(purpose, n_goals=1, held_out_goals=False), 1) for purpose in ("train", "evaluation")
    )
    assert train == evaluation


def test_equal_seeds_give_equal_episodes_and_leave_numpys_generator_alone() -> None:
    np.random.seed(5)
    before = np.random.get_state()
    envs = [MultiTaskEnv("MT3", seed=2) for _ in range(2)]
    for _ in range(4):
        one, other = (env.reset()[0] for env in envs)
        np.testing.assert_array_equal(one, other)
        one, other = (env.step(NO_ACTION)[0] for env in envs)
        np.testing.assert_array_equal(one, other)
    after = np.random.get_state()
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_a_goal_does_not_depend_on_what_was_played_before() -> None:
    env = MultiTaskEnv("MT3", seed=2)
    fresh = env.reset(seed=3)[0]
    for _ in range(2):
        env.reset()
        env.step(np.ones(4, dtype=np.float32))
    np.testing.assert_array_equal(fresh, env.reset(seed=3)[0])


@pytest.mark.parametrize(
    ("name", "reward_version"),
    [("reach-v3", "v1"), ("reach-v3", "v2"), ("pick-place-v3", "v2"), ("drawer-close-v3", "v2")],
)
def test_observations_and_rewards_are_those_of_metaworld(name: str, reward_version: str) -> None:
    from metaworld import Task
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    spec = make_suite([f"metaworld/{name}"], reward_version=reward_version).tasks[0]
    env: Any = spec.make(task_stream(0, "train", spec.full_name, 0))
    observation, _ = env.reset()
    reference = ALL_V3_ENVIRONMENTS[name](reward_function_version=reward_version)
    data = {"rand_vec": env._simulator._goal, "env_cls": type(reference), "partially_observable": False}
    reference.set_task(Task(name, pickle.dumps(data)))
    np.testing.assert_allclose(observation, reference.reset()[0], rtol=0, atol=1e-6)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32):
        observation, reward, *_ = env.step(action)
        expected, expected_reward, *_ = reference.step(action)
        np.testing.assert_allclose(observation, expected, rtol=0, atol=1e-6)
        assert reward == pytest.approx(expected_reward, abs=1e-9)


def test_a_goal_the_task_refuses_is_drawn_again_by_our_generator() -> None:
    """Push wants object and goal 0.15 m apart, which about one draw in eight is not."""
    spec = make_suite("MT1/push-v3", n_goals=60).tasks[0]
    env: Any = spec.make(task_stream(0, "train", spec.full_name, 0))
    redrawn = 0
    for _ in range(60):
        generator = env._goals.next_goal()
        low, high = (getattr(env._simulator._random_reset_space, side) for side in ("low", "high"))
        first = np.random.Generator(type(generator.bit_generator)(generator.bit_generator.seed_seq)).uniform(low, high)
        env._simulator.start_goal(generator)
        env._simulator.reset()
        played = env._simulator._goal
        assert np.linalg.norm(played[:2] - played[3:5]) >= 0.15
        refused = np.linalg.norm(first[:2] - first[3:5]) < 0.15
        assert refused != np.array_equal(first, played)
        redrawn += refused
    assert redrawn > 0


def test_five_hundred_steps_truncate_and_never_terminate() -> None:
    env = MultiTaskEnv("MT1/reach-v3")
    env.reset()
    for _ in range(2):
        ends = [env.step(NO_ACTION)[2:4] for _ in range(500)]
        assert ends == [(False, False)] * 499 + [(False, True)]
        env.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_version": "v3"}, r"one of \('v1', 'v2'\), got 'v3'"),
        ({"horizon": 501}, "from 1 to 500 steps, got 501"),
        ({"n_goals": 0}, "at least 1, got 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_suite("MT3", **options)


def test_reward_versions_differ_and_are_written_down() -> None:
    rewards = []
    for reward_version in ("v1", "v2"):
        env = MultiTaskEnv("MT1/reach-v3", reward_version=reward_version)
        assert env.suite.protocol["metaworld"]["reward_version"] == reward_version
        assert env.suite.protocol["metaworld"]["versions"]["metaworld"].startswith("3.")
        env.reset()
        rewards.append(env.step(NO_ACTION)[1])
    assert rewards[0] != pytest.approx(rewards[1], abs=0.1)


def test_the_ml_suites_hold_tasks_out_and_hide_the_goal() -> None:
    train, test = (make_suite(f"ML10-{part}") for part in ("train", "test"))
    assert (train.n_tasks, test.n_tasks) == (10, 5)
    assert not set(train.task_names) & set(test.task_names)
    assert [make_suite(f"ML45-{part}").n_tasks for part in ("train", "test")] == [45, 5]
    assert train.protocol["metaworld"]["goal_observable"] is False
    assert train.protocol["name"] == "mt-rand with goal_observable=False"
    assert make_suite("ML10-train", goal_observable=True).protocol == make_suite("MT10").protocol


def test_a_hidden_goal_is_zeros_and_changes_nothing_else() -> None:
    hidden, shown = (reach(goal_observable=observable) for observable in (False, True))
    action = np.full(4, 0.5, dtype=np.float32)
    pairs = [(hidden.reset()[0], shown.reset()[0]), (hidden.step(action)[0], shown.step(action)[0])]
    for one, other in pairs:
        np.testing.assert_array_equal(one[:36], other[:36])
        assert not one[36:].any() and other[36:].any()
    assert hidden.step(action)[1] == shown.step(action)[1]
