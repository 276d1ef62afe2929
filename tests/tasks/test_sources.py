"""Laws that hold for the tasks of every source: the checkers are content, and seeds decide everything."""

import importlib.util
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium.utils import env_checker
from stable_baselines3.common.env_checker import check_env

from sb3_varshare.tasks import MultiTaskEnv

PACKAGES = {"metaworld": "metaworld", "dm_control": "shimmy", "gymnasium": "mujoco"}
# A part of each source that is cheap to build, with two tasks that look alike.
PARTS = {
    "contextual": ["contextual/swing-up", "contextual/swing-up-twin"],
    "metaworld": ["metaworld/reach-v3", "metaworld/push-v3"],
    "dm_control": ["dm_control/reacher-easy", "dm_control/reacher-hard"],
    "gymnasium": ["gymnasium/HalfCheetah/run", "gymnasium/HalfCheetah/run-slow"],
    "mixed": ["metaworld/reach-v3", "dm_control/cartpole-balance", "gymnasium/Pendulum-v1"],
}
WHOLE = ("MT10", "ML10-test", "DMC-easy", "DMC-humanoids", "DMC-dogs", "HalfCheetah", "HopperGravity", "Walker2dMass")

pytestmark = pytest.mark.filterwarnings("ignore:.in1d. is deprecated:DeprecationWarning")


def require(tasks: Any) -> None:
    sources = {task.partition("/")[0] for task in tasks}
    missing = [PACKAGES[source] for source in sources & set(PACKAGES) if not importlib.util.find_spec(PACKAGES[source])]
    if missing:
        pytest.skip(f"needs {missing}")


def trajectory(env: MultiTaskEnv, task: int, n_steps: int = 20, seed: int | None = None) -> np.ndarray:
    """Observations without the one-hot, and rewards, of one episode's first steps."""
    actions = np.random.default_rng(7).uniform(-1, 1, (n_steps, *env.action_space.shape)).astype(np.float32)
    rows = [np.append(env.reset(seed=seed, options={"task": task})[0], 0.0)]
    for action in actions:
        observation, reward, *_ = env.step(action)
        rows.append(np.append(observation, np.float32(reward)))
    found = np.array(rows)
    return np.delete(found, slice(env.suite.observation_size, env.suite.observation_size + env.suite.n_tasks), axis=1)


@pytest.mark.parametrize("source", PARTS)
def test_equal_seeds_give_bit_equal_trajectories_and_nothing_else_does(source: str) -> None:
    require(PARTS[source])
    settings: list[dict[str, Any]] = [{}, {"seed": 1}, {"rank": 1}, {"purpose": "evaluation"}]
    envs = [MultiTaskEnv(PARTS[source], **setting) for setting in settings]
    first, *others = (trajectory(env, 0) for env in envs)
    again = MultiTaskEnv(PARTS[source])
    np.testing.assert_array_equal(first, trajectory(again, 0))
    assert not any(np.array_equal(first, other) for other in (*others, trajectory(envs[0], 1)))
    # The next episode is another one, and a seed at reset starts all over, also in an env that has been used.
    assert not np.array_equal(first, trajectory(envs[0], 0))
    np.testing.assert_array_equal(first, trajectory(envs[1], 0, seed=0))
    for env in (*envs, again):
        env.close()


@pytest.mark.parametrize("source", PARTS)
def test_the_checkers_are_content(source: str) -> None:
    require(PARTS[source])
    check(MultiTaskEnv(PARTS[source]))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("suite", WHOLE)
def test_the_checkers_are_content_with_whole_suites(suite: str) -> None:
    require(["metaworld/", "dm_control/", "gymnasium/"])
    check(MultiTaskEnv(suite))


def check(env: MultiTaskEnv) -> None:
    check_env(env)
    with warnings.catch_warnings():
        # That an observation has no bounds is true, and meant.
        warnings.filterwarnings("ignore", message=".*Box observation space (minimum|maximum) value is.*infinity")
        env_checker.check_env(env, skip_render_check=True)
    env.close()
