"""The pendulum family: physics, twins, and the pair in open conflict."""

import gymnasium as gym
import numpy as np
import pytest

from sb3_varshare.tasks import MultiTaskEnv, make_suite
from sb3_varshare.tasks.suites.contextual import CONTEXTS, MAX_TORQUE, ContextualPendulum


def pendulum(task: str, seed: int = 0) -> ContextualPendulum:
    return ContextualPendulum(CONTEXTS[task], np.random.SeedSequence(seed))


def trajectory(task: str, sign: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Observations (201, 5) and rewards (200,) under one fixed sequence of torques."""
    env = pendulum(task)
    torques = np.random.default_rng(1).uniform(-2.5, 2.5, (200, 1)) * sign
    observations, rewards = [env.reset()[0]], []
    for torque in torques:
        observation, reward, *_ = env.step(torque)
        observations.append(observation)
        rewards.append(reward)
    return np.array(observations), np.array(rewards)


def test_swing_up_has_the_physics_of_gymnasiums_pendulum() -> None:
    env, reference = pendulum("swing-up"), gym.make("Pendulum-v1").unwrapped
    env.reset()
    reference.reset()
    reference.state = np.array([env._angle, env._speed])
    for torque in np.random.default_rng(1).uniform(-2.5, 2.5, (200, 1)):
        observation, reward, *_ = env.step(torque)
        expected, expected_reward, *_ = reference.step(torque)
        np.testing.assert_allclose(observation[:3], expected, rtol=0, atol=1e-6)
        assert reward == pytest.approx(expected_reward, abs=1e-6)


def test_twins_are_identical() -> None:
    for one, other in zip(trajectory("swing-up"), trajectory("swing-up-twin"), strict=True):
        np.testing.assert_array_equal(one, other)


def test_reversed_is_forward_under_the_opposite_action() -> None:
    for one, other in zip(trajectory("forward"), trajectory("reversed", sign=-1.0), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.allclose(trajectory("forward")[0], trajectory("reversed")[0], atol=0.1)


def test_only_the_direction_is_hidden() -> None:
    seen = {task: (*pendulum(task).reset()[0][3:].tolist(),) for task in CONTEXTS}
    assert seen["forward"] == seen["reversed"] == pytest.approx((0.8, 1.2))
    assert len({seen["swing-up"], seen["forward"], seen["light"]}) == 3


def test_only_light_can_be_lifted_without_a_swing() -> None:
    def lifts(task: str) -> bool:
        env = pendulum(task)
        env.reset()
        env._angle, env._speed = np.pi / 2, 0.0
        env.step(np.array([-MAX_TORQUE]))
        return env._speed < 0

    assert {task for task in CONTEXTS if CONTEXTS[task].direction > 0 and lifts(task)} == {"light"}


def test_success_takes_fifty_upright_steps_in_a_row() -> None:
    env = pendulum("light")
    env.reset()
    reported = []
    for step in range(110):
        env._angle, env._speed = (1.0 if step == 20 else 0.2), 0.0
        reported.append(env.step(np.array([0.0]))[4]["is_success"])
    assert reported == [False] * 70 + [True] * 40


def test_the_episode_has_two_hundred_steps() -> None:
    env = MultiTaskEnv(make_suite("contextual"))
    env.reset()
    ends = [env.step(np.zeros(1, dtype=np.float32))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]


def test_render_draws_the_rod() -> None:
    env = pendulum("swing-up")
    env.reset()
    env._angle = 0.0
    frame = env.render()
    assert frame.shape == (128, 128, 3)
    # Straight up from the centre: dark at half the rod's length, white at the same distance below.
    assert frame[42, 64, 0] < 100 < frame[86, 64, 0]
