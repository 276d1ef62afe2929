"""
Meta-World v3, built from its task classes without its wrappers.

Its own construction draws goals from numpy's global generator, with replacement, and ignores ``reset(seed=...)``. Here
goals come from the task's own stream and every one is played before any is played again.
"""

from functools import cache, partial
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML10_V3, ML25_V3, ML45_V3, MT10_V3, MT25_V3, MT50_V3

from sb3_varshare.tasks.seeding import shared_key
from sb3_varshare.tasks.suite import TaskSource, TaskSpec

MAX_HORIZON = 500  # the simulator refuses to go further
REWARD_VERSIONS = ("v1", "v2")
OBSERVATION_SIZE, ACTION_SIZE = 39, 4
SUITES = {
    "MT3": ("reach-v3", "drawer-close-v3", "button-press-topdown-v3"),
    "MT10": tuple(MT10_V3),
    "MT25": tuple(MT25_V3),
    "MT50": tuple(MT50_V3),
    **{
        f"{name}-{part}": tuple(suite[part])
        for name, suite in (("ML10", ML10_V3), ("ML25", ML25_V3), ("ML45", ML45_V3))
        for part in ("train", "test")
    },
}


class GoalCycle:
    """
    A fixed set of goals, all played in shuffled order before the next shuffle.

    Goal k is the first draw of generator k that the task accepts, so that it depends on nothing played before.

    :param n_goals: size of the set
    :param stream: of one env copy; the set of goals is common to all copies of a task, the order is not
    :param held_out: evaluation has other goals than training
    """

    def __init__(self, n_goals: int, stream: np.random.SeedSequence, held_out: bool) -> None:
        self._n_goals = n_goals
        self._entropy = stream.entropy
        self._key = shared_key(stream, held_out)
        self._order = np.random.default_rng(stream)
        self._left: list[int] = []

    def next_goal(self) -> np.random.Generator:
        """
        :return: the generator of the goal to play now
        """
        if not self._left:
            self._left = self._order.permutation(self._n_goals).tolist()
        return np.random.default_rng(np.random.SeedSequence(self._entropy, spawn_key=(*self._key, self._left.pop())))


class _OwnGoals:
    """
    Mixin over a Sawyer env: it asks us, not numpy's global generator, for its random vector.

    A reset runs ``reset_model`` twice, and some tasks ask again within one run, until object and goal are far apart.
    """

    _random_reset_space: gym.spaces.Box
    _goal_generator: np.random.Generator
    _goal: npt.NDArray[np.float64]
    _was_asked = False

    def start_goal(self, generator: np.random.Generator) -> None:
        self._goal_generator = generator
        self._goal = self._draw()

    def reset_model(self) -> npt.NDArray[np.float64]:
        self._was_asked = False
        observation: npt.NDArray[np.float64] = super().reset_model()  # type: ignore[misc]
        return observation

    def _get_state_rand_vec(self) -> npt.NDArray[np.float64]:
        if self._was_asked:
            self._goal = self._draw()
        self._was_asked = True
        # A copy, since tasks keep slices of it and write into them.
        return self._goal.copy()

    def _draw(self) -> npt.NDArray[np.float64]:
        return self._goal_generator.uniform(self._random_reset_space.low, self._random_reset_space.high)


@cache
def _with_own_goals(name: str) -> type[Any]:
    env_class = ALL_V3_ENVIRONMENTS[name]
    return type(env_class.__name__, (_OwnGoals, env_class), {})


class MetaWorldTask(gym.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """
    One Meta-World task. Never terminates; ``info["success"]`` is of this step.

    Observation (39,): hand, gripper and objects (18), the same of the step before (18), and the goal's position (3).

    :param stream: of its goals
    :param name: e.g. ``reach-v3``
    :param reward_version: ``v1`` or ``v2``
    :param n_goals: size of the set of goals
    :param held_out_goals: evaluation has other goals than training
    :param goal_observable: with False the goal's three numbers are 0
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 80}  # noqa: RUF012 - as gymnasium

    def __init__(
        self,
        stream: np.random.SeedSequence,
        *,
        name: str,
        reward_version: str,
        n_goals: int,
        held_out_goals: bool,
        goal_observable: bool = True,
    ) -> None:
        self._simulator = _with_own_goals(name)(reward_function_version=reward_version)
        # What `set_task` does, without a pickled task. The space is cached with goal bounds of zero, to which `step`
        # would clip the goal.
        self._simulator._set_task_called = True
        self._simulator._partially_observable = not goal_observable
        del self._simulator.sawyer_observation_space
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), dtype=np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_SIZE,), dtype=np.float32)
        self._n_goals, self._held_out_goals = n_goals, held_out_goals
        self.reseed(stream)

    def reseed(self, stream: np.random.SeedSequence) -> None:
        """
        :param stream: of the goals from here on
        """
        self._goals = GoalCycle(self._n_goals, stream, self._held_out_goals)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.reseed(np.random.SeedSequence(seed))
        self._simulator.start_goal(self._goals.next_goal())
        observation, info = self._simulator.reset()
        return observation.astype(np.float32), info

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        observation, reward, _, truncated, info = self._simulator.step(action)
        return observation.astype(np.float32), float(reward), False, truncated, info

    def render(self) -> Any:
        self._simulator.render_mode = self.render_mode
        return self._simulator.render()

    def close(self) -> None:
        self._simulator.close()


def load(
    reward_version: str = "v2",
    horizon: int = MAX_HORIZON,
    n_goals: int = 50,
    held_out_goals: bool = True,
    goal_observable: bool = True,
) -> TaskSource:
    """
    :param reward_version: ``v2`` (0 to 10 a step) or ``v1``
    :param horizon: time limit in steps, at most 500
    :param n_goals: goals of each task, common to all its env copies
    :param held_out_goals: evaluation has other goals than training; with False it has the same ones
    :param goal_observable: the goal is in the observation; the ML suites have False as their default
    :return: the source ``metaworld``, with suites MT3, MT10, MT25, MT50 and, for training and for tasks held out,
        ML10, ML25 and ML45
    :raises ValueError: if an option is out of range
    """
    if reward_version not in REWARD_VERSIONS:
        # Meta-World itself takes any other text for v1, without a word.
        raise ValueError(f"reward_version must be one of {REWARD_VERSIONS}, got {reward_version!r}.")
    if not 1 <= horizon <= MAX_HORIZON:
        raise ValueError(f"horizon must be from 1 to {MAX_HORIZON} steps, got {horizon}.")
    if n_goals < 1:
        raise ValueError(f"n_goals must be at least 1, got {n_goals}.")
    options: dict[str, Any] = {
        "reward_version": reward_version,
        "n_goals": n_goals,
        "held_out_goals": held_out_goals,
        "goal_observable": goal_observable,
    }
    tasks = {
        name: TaskSpec(
            name, "metaworld", partial(MetaWorldTask, name=name, **options), horizon, OBSERVATION_SIZE, ACTION_SIZE
        )
        for name in ALL_V3_ENVIRONMENTS
    }
    protocol = {
        **options,
        "horizon": horizon,
        "order_of_goals": "all in shuffled order, then again",
        "terminate_on_success": False,
        "summary": _summary(horizon=horizon, **options),
        "versions": {package: version(package) for package in ("metaworld", "mujoco")},
    }
    return TaskSource("metaworld", tasks, SUITES, protocol)


def _summary(reward_version: str, horizon: int, n_goals: int, held_out_goals: bool, goal_observable: bool) -> str:
    goals = f"{n_goals} goal{'s' if n_goals > 1 else ''}"
    hidden = "" if goal_observable else " hidden"
    others = ", others in evaluation" if held_out_goals else ", the same in evaluation"
    return f"{goals}{hidden}{others}, horizon {horizon}, reward {reward_version}"
