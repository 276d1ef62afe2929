"""What is wrong with a grid's training data is never part of its evaluation; few data are one in ten."""

import math

import numpy as np
import pytest
from corruptions import Corruption, CorruptReward, PieceFilter, make_corrupted
from learners import BASE, build_agent
from suites import FORWARD, REVERSED, REWARD_FACTOR, REWARD_NOISE, SUITES, GridSuite, GridTask
from unit import distances, probe

from sb3_varshare import evaluate_tasks
from sb3_varshare.tasks.seeding import task_stream
from sb3_varshare.tasks.suites.contextual import MAX_TORQUE, ContextualPendulum


def clean_rewards(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """The pendulum's reward from what is seen before a step: (N, D + T) and (N, 1) in [-1, 1]."""
    angle, speed = np.arctan2(observations[:, 1], observations[:, 0]), observations[:, 2]
    return -(angle**2 + 0.1 * speed**2 + 0.001 * (MAX_TORQUE * actions[:, 0]) ** 2)


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_evaluation_pays_the_clean_reward_of_every_task(suite: GridSuite) -> None:
    env, rng = suite.clean_env(seed=0, n_copies=2), np.random.default_rng(0)
    observations = np.asarray(env.reset())
    for _ in range(50):
        actions = rng.uniform(-1, 1, (env.num_envs, 1)).astype(np.float32)
        after, rewards, _, _ = env.step(actions)
        np.testing.assert_allclose(rewards, clean_rewards(observations, actions), rtol=1e-3, atol=1e-3)
        observations = np.asarray(after)


def test_training_pays_the_corrupted_reward() -> None:
    suite = SUITES["all"]
    env, rng = suite.training_env(seed=0), np.random.default_rng(0)
    observations, paid, clean = np.asarray(env.reset()), [], []
    for _ in range(400):
        actions = rng.uniform(-1, 1, (env.num_envs, 1)).astype(np.float32)
        clean.append(clean_rewards(observations, actions))
        after, rewards, _, _ = env.step(actions)
        observations = np.asarray(after)
        paid.append(rewards)
    names, difference = [task.name for task in suite.tasks], np.array(paid) - np.array(clean)
    for name in ("forward", "twin", "reversed", "few"):
        np.testing.assert_allclose(difference[:, names.index(name)], 0, atol=1e-2)
    noise = difference[:, names.index("noisy")]
    # Four standard errors of 400 draws.
    assert abs(noise.mean()) < 4 * REWARD_NOISE / 20
    assert abs(noise.std() / REWARD_NOISE - 1) < 4 / math.sqrt(2 * 400)
    scaled = names.index("scaled")
    np.testing.assert_allclose(
        np.array(paid)[:, scaled], REWARD_FACTOR * np.array(clean)[:, scaled], rtol=1e-3, atol=0.2
    )


def test_states_are_those_of_the_clean_environment() -> None:
    stream = task_stream(3, "train", "grids/noisy", 0)
    corrupted, clean = make_corrupted(FORWARD, Corruption(5.0, 2.0), stream), ContextualPendulum(FORWARD, stream)
    np.testing.assert_array_equal(corrupted.reset()[0], clean.reset()[0])
    action = np.array([1.0], dtype=np.float32)
    np.testing.assert_array_equal(corrupted.step(action)[0], clean.step(action)[0])


def test_a_corruption_refuses_to_be_evaluated_on() -> None:
    for_evaluation = task_stream(0, "evaluation", "grids/noisy", 0)
    with pytest.raises(ValueError, match="clean_env"):
        make_corrupted(FORWARD, Corruption(noise_std=1.0), for_evaluation)
    for_training = task_stream(0, "train", "grids/noisy", 0)
    env = CorruptReward(ContextualPendulum(FORWARD, for_training), Corruption(noise_std=1.0), for_training)
    with pytest.raises(ValueError, match="clean_env"):
        env.reseed(for_evaluation)


def test_the_twin_that_evaluation_makes_of_training_envs_is_refused() -> None:
    suite = SUITES["noisy"]
    env = suite.training_env(seed=0)
    model = build_agent("sac", {**BASE, "actor_width": 4, "critic_width": 4}, suite, env, 0)
    with pytest.raises(ValueError, match="clean_env"):
        evaluate_tasks(model, env, 1)


@pytest.mark.parametrize("learner", ["varshare_sac", "sac"])
def test_the_replay_gets_one_step_in_ten_of_the_task_with_few_data(learner: str) -> None:
    suite = SUITES["few"]
    env = suite.training_env(seed=0)
    # Three episodes, all of them random: nothing is trained.
    settings = {**BASE, "learning_starts": 10_000, "buffer_size": 1_000, "actor_width": 4, "critic_width": 4}
    model = build_agent(learner, settings, suite, env, 0)
    model.learn(600 * env.n_tasks)
    if learner == "sac":
        buffer = model.replay_buffer
        counts = buffer.observations[: buffer.pos, 0, -env.n_tasks :].sum(0)
    else:
        counts = model.replay_buffer.sizes
    assert counts.tolist() == [600, 600, 60]


def test_the_kept_pieces_go_through_all_parts_of_an_episode() -> None:
    pieces = PieceFilter([1, 10], horizon=200)
    kept = np.array([pieces.keep() for _ in range(2_000)]).reshape(10, 200, 2)
    assert kept[..., 0].all()
    # Of the k-th episode the steps from 20 k on, twenty of them.
    expected = np.arange(200) // 20 == np.arange(10)[:, None]
    np.testing.assert_array_equal(kept[..., 1], expected)


def test_a_pair_is_one_or_the_other() -> None:
    for suite in SUITES.values():
        contexts = {task.name: task.context for task in suite.tasks}
        if suite.identical is not None:
            assert len({contexts[name] for name in suite.identical}) == 1
        if suite.conflicting is not None:
            assert {contexts[name] for name in suite.conflicting} == {FORWARD, REVERSED}


def test_the_reference_of_a_task_is_its_clean_self() -> None:
    references = {task.name: task.context for task in SUITES["reference"].tasks}
    for suite in SUITES.values():
        assert all(references[task.reference] == task.context for task in suite.tasks)
    assert SUITES["reference"].tasks == (GridTask("forward", FORWARD), GridTask("reversed", REVERSED))


class OneActionEach:
    """Acts with 0.5 in the first task and with -0.25 in the others."""

    def predict(self, observations: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, None]:
        return np.where(observations[:, 5:6] == 1, 0.5, -0.25), None


def test_the_distance_of_a_pair_is_that_of_its_mean_actions() -> None:
    found = distances(OneActionEach(), SUITES["all"])
    assert found == {
        "distance_identical": {"forward": 0.75, "twin": 0.75},
        "distance_conflicting": {"forward": 0.75, "reversed": 0.75},
    }
    assert probe().shape == (256, 5)
