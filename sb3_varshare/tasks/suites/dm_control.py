"""
The DeepMind Control Suite, through Shimmy.

Observations are the task's own quantities in the alphabetical order of their names, each flattened; success is not
reported, and the reward of a step is between 0 and 1 everywhere but in the LQR tasks.
"""

import os
import sys
import warnings
from functools import partial
from importlib.metadata import version
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from sb3_varshare.tasks.spaces import ActionBounds
from sb3_varshare.tasks.suite import TaskSource, TaskSpec

with warnings.catch_warnings():
    # dm_control tries GLFW first, which complains where there is no display.
    warnings.simplefilter("ignore")
    from dm_control import suite
    from shimmy.dm_control_compatibility import DmControlCompatibilityV0

HORIZON = 1_000  # simulator steps, as in dm_control, whose own limit is taken off

# Task -> length of the observation and of the action; building the tasks to ask them takes minutes.
SIZES = {
    "acrobot-swingup": (6, 1),
    "acrobot-swingup_sparse": (6, 1),
    "ball_in_cup-catch": (8, 2),
    "cartpole-balance": (5, 1),
    "cartpole-balance_sparse": (5, 1),
    "cartpole-swingup": (5, 1),
    "cartpole-swingup_sparse": (5, 1),
    "cartpole-three_poles": (11, 1),
    "cartpole-two_poles": (8, 1),
    "cheetah-run": (17, 6),
    "dog-fetch": (232, 38),
    "dog-run": (223, 38),
    "dog-stand": (223, 38),
    "dog-trot": (223, 38),
    "dog-walk": (223, 38),
    "finger-spin": (9, 2),
    "finger-turn_easy": (12, 2),
    "finger-turn_hard": (12, 2),
    "fish-swim": (24, 5),
    "fish-upright": (21, 5),
    "hopper-hop": (15, 4),
    "hopper-stand": (15, 4),
    "humanoid-run": (67, 21),
    "humanoid-run_pure_state": (55, 21),
    "humanoid-stand": (67, 21),
    "humanoid-walk": (67, 21),
    "humanoid_CMU-run": (137, 56),
    "humanoid_CMU-stand": (137, 56),
    "humanoid_CMU-walk": (137, 56),
    "lqr-lqr_2_1": (4, 1),
    "lqr-lqr_6_2": (12, 2),
    "manipulator-bring_ball": (44, 5),
    "manipulator-bring_peg": (44, 5),
    "manipulator-insert_ball": (44, 5),
    "manipulator-insert_peg": (44, 5),
    "pendulum-swingup": (3, 1),
    "point_mass-easy": (4, 2),
    "point_mass-hard": (4, 2),
    "quadruped-escape": (101, 12),
    "quadruped-fetch": (90, 12),
    "quadruped-run": (78, 12),
    "quadruped-walk": (78, 12),
    "reacher-easy": (6, 2),
    "reacher-hard": (6, 2),
    "stacker-stack_2": (49, 5),
    "stacker-stack_4": (63, 5),
    "swimmer-swimmer15": (61, 14),
    "swimmer-swimmer6": (25, 5),
    "walker-run": (24, 6),
    "walker-stand": (24, 6),
    "walker-walk": (24, 6),
}
# Every other domain has actions from -1 to 1; a leg of the quadruped has yaw, lift and extension.
QUADRUPED_BOUNDS: ActionBounds = ((-1.0, -1.0, -0.8) * 4, (1.0, 1.1, 0.8) * 4)

# The split of SimBa (Lee et al. 2024, "SimBa: Simplicity Bias for Scaling Up Parameters in Deep RL"): 21 easy and
# medium tasks, and 7 hard ones, which are also the tasks of BRC (Nauman et al. 2025).
EASY = (
    "acrobot-swingup",
    "ball_in_cup-catch",
    "cartpole-balance",
    "cartpole-balance_sparse",
    "cartpole-swingup",
    "cartpole-swingup_sparse",
    "cheetah-run",
    "finger-spin",
    "finger-turn_easy",
    "finger-turn_hard",
    "fish-swim",
    "hopper-hop",
    "hopper-stand",
    "pendulum-swingup",
    "quadruped-run",
    "quadruped-walk",
    "reacher-easy",
    "reacher-hard",
    "walker-run",
    "walker-stand",
    "walker-walk",
)
DOGS = ("dog-stand", "dog-walk", "dog-trot", "dog-run")
HUMANOIDS = ("humanoid-stand", "humanoid-walk", "humanoid-run")
SUITES = {"DMC-easy": EASY, "DMC-dogs": DOGS, "DMC-humanoids": HUMANOIDS, "DMC-full": (*EASY, *DOGS, *HUMANOIDS)}


class DmControlTask(gym.Wrapper):
    """
    One task of the suite. Ends by termination only (discount 0); the time limit is that of the :class:`TaskSpec`.

    :param stream: of all its randomness
    :param name: ``domain-task``, e.g. ``walker-walk``
    :param action_repeat: simulator steps for each action; their rewards are added
    """

    def __init__(self, stream: np.random.SeedSequence, *, name: str, action_repeat: int) -> None:
        domain, _, task = name.partition("-")
        env = suite.load(domain, task, task_kwargs={"random": _random_state(stream), "time_limit": float("inf")})
        camera = {"camera_id": 0} if env.physics.model.ncam else {}
        super().__init__(gym.wrappers.FlattenObservation(DmControlCompatibilityV0(env, render_kwargs=camera)))
        low, high = (np.array(side) for side in _bounds(name))
        self.action_space = gym.spaces.Box(low, high, dtype=np.float64)
        self._action_repeat = action_repeat

    def reseed(self, stream: np.random.SeedSequence) -> None:
        """
        :param stream: of the episodes from here on
        """
        self.unwrapped.np_random = _random_state(stream)  # type: ignore[assignment]

    def step(self, action: npt.NDArray[Any]) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self._action_repeat):
            observation, reward, terminated, truncated, _ = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, {}

    def render(self) -> Any:
        """
        :return: (240, 320, 3) from the task's first camera
        :raises RuntimeError: if there is neither a display nor a choice of how to draw without one
        """
        has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform != "linux"
        if not (has_display or os.environ.get("MUJOCO_GL")):
            raise RuntimeError(
                "Rendering dm_control without a display needs OpenGL off the screen: "
                "set MUJOCO_GL=egl or MUJOCO_GL=osmesa in the environment before Python starts."
            )
        return self.env.render()


def _random_state(stream: np.random.SeedSequence) -> np.random.RandomState:
    return np.random.RandomState(np.random.MT19937(stream))


def _bounds(name: str) -> ActionBounds:
    """The LQR tasks, whose forces have no bounds, get -1 and 1 like the rest."""
    if name.startswith("quadruped-"):
        return QUADRUPED_BOUNDS
    n_actions = SIZES[name][1]
    return (-1.0,) * n_actions, (1.0,) * n_actions


def load(horizon: int = HORIZON, action_repeat: int = 1) -> TaskSource:
    """
    :param horizon: time limit in simulator steps, whatever the action repeat
    :param action_repeat: simulator steps for each step of the agent; their rewards are added
    :return: the source ``dm_control``, with suites DMC-easy, DMC-dogs, DMC-humanoids and DMC-full
    :raises ValueError: if an option is out of range, or the horizon not a multiple of the action repeat
    """
    if action_repeat < 1:
        raise ValueError(f"action_repeat must be at least 1, got {action_repeat}.")
    if horizon < 1 or horizon % action_repeat:
        raise ValueError(
            f"horizon must be a positive multiple of action_repeat ({action_repeat}), since it counts simulator steps, "
            f"got {horizon}."
        )
    tasks = {
        name: TaskSpec(
            name,
            "dm_control",
            partial(DmControlTask, name=name, action_repeat=action_repeat),
            horizon // action_repeat,
            *sizes,
            _bounds(name),
        )
        for name, sizes in SIZES.items()
    }
    protocol = {
        "horizon": horizon,
        "action_repeat": action_repeat,
        "summary": f"horizon {horizon}, action repeat {action_repeat}",
        "versions": {package: version(package) for package in ("dm_control", "mujoco")},
    }
    return TaskSource("dm_control", tasks, SUITES, protocol)
