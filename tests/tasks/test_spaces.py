"""Actions within a task's own bounds, whatever the type of its space."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_varshare.tasks.spaces import to_bounds

ENDS = np.array([[-1.0], [1.0]], dtype=np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.1), (-0.4, 0.7), (-2.0, 2.0), (1 / 3, 1.1)])
def test_actions_stay_within_the_space(low: float, high: float, dtype: Any) -> None:
    space = gym.spaces.Box(low, high, (1,), dtype=dtype)
    plain = space.low.tolist(), space.high.tolist()  # as they are kept with a model
    for bounds in ((space.low, space.high), plain):
        actions = to_bounds(ENDS, *bounds)
        assert all(space.contains(action) for action in actions)
        np.testing.assert_allclose(actions, [[low], [high]], rtol=1e-6)


def test_bounds_of_one_leave_an_action_as_it_is() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (100, 3)).astype(np.float32)
    mapped = to_bounds(actions, [-1.0, -1.0], [1.0, 1.0])
    assert mapped.dtype == np.float32
    np.testing.assert_array_equal(mapped, actions[:, :2])


def test_the_actions_of_a_quadruped_are_its_own() -> None:
    low, high = pytest.importorskip("sb3_varshare.tasks.suites.dm_control").QUADRUPED_BOUNDS
    space = gym.spaces.Box(np.array(low), np.array(high), dtype=np.float64)
    for sign in (-1, 1):
        assert space.contains(to_bounds(np.full(12, sign, dtype=np.float32), low, high))
