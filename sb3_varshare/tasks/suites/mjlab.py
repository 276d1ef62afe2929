"""
Tasks of mjlab, MuJoCo Warp's manager-based environments, behind the tensor face.

mjlab needs a newer MuJoCo than Meta-World pins: install it into an environment of its own, see ``docs/tensor_envs.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch as th

from sb3_varshare.tasks.protocol import SUCCESS, VERSIONS
from sb3_varshare.tasks.seeding import Purpose
from sb3_varshare.tasks.suite import TaskSpec, TaskSuite
from sb3_varshare.tasks.tensor_vec_env import RowStep, TensorVecEnv

MINIMUM_VERSION = "1.6"


def _no_plain_env(stream: np.random.SeedSequence) -> Any:
    raise TypeError("Tasks of mjlab exist as rows on a device only; use MjlabEnv.")


class MjlabEnv(TensorVecEnv):
    """
    A simulation per task, with the rows of that task in it.

    mjlab asks the device which rows to reset, so that a step waits for it; its generators are those of the process.
    Its tasks report no success.

    :param tasks: names in mjlab's registry, e.g. ``Mjlab-Cartpole-Balance``
    :param n_envs: N, all tasks together; one row per task by default
    :param seed: root of all randomness; see :class:`~sb3_varshare.tasks.TensorVecEnv`
    :param purpose: ``train`` or ``evaluation``
    :param device: where the simulations live; mjlab is made for a GPU
    :param action_scale: what an action of 1 is to mjlab, whose actions have no bounds
    :param observation_group: which of mjlab's groups of observations is shown
    :raises ImportError: mjlab is not installed
    :raises ValueError: mjlab knows no such task, or there are fewer rows than tasks
    """

    def __init__(
        self,
        tasks: Sequence[str],
        n_envs: int | None = None,
        seed: int | None = None,
        purpose: Purpose = "train",
        device: th.device | str = "cuda",
        action_scale: float = 1.0,
        observation_group: str = "actor",
    ) -> None:
        n_rows = len(tasks) if n_envs is None else n_envs
        self.action_scale, self.observation_group = action_scale, observation_group
        # Row i plays task i % T.
        counts = [len(range(task, n_rows, len(tasks))) for task in range(len(tasks))]
        self._simulations = [_simulation(*pair, str(device)) for pair in zip(tasks, counts, strict=True)]
        specs = [
            TaskSpec(name, "mjlab", _no_plain_env, None, *self._sizes(simulation))
            for name, simulation in zip(tasks, self._simulations, strict=True)
        ]
        versions = {name: version(name) for name in ("mjlab", "mujoco-warp")}
        options = {"action_scale": action_scale, "observation_group": observation_group}
        protocol = {"success": SUCCESS, "mjlab": {VERSIONS: versions, **options}}
        super().__init__(TaskSuite("mjlab", tuple(specs), protocol), n_envs, seed, purpose, device)
        self._rows = [th.arange(task, n_rows, len(tasks), device=self.device) for task in range(len(tasks))]

    def _sizes(self, simulation: Any) -> tuple[int, int]:
        observations = simulation.single_observation_space.spaces[self.observation_group]
        return int(np.prod(observations.shape)), int(np.prod(simulation.single_action_space.shape))

    def seed_rows(self, seed: int) -> None:
        """
        :param seed: of mjlab's generators, which are those of the process
        """
        self._simulations[0].seed(seed)

    def reset_rows(self, mask: th.Tensor) -> None:
        """
        :param mask: (N,) bool
        """
        for simulation, rows in zip(self._simulations, self._rows, strict=True):
            chosen = mask[rows].nonzero()[:, 0]
            if len(chosen):
                simulation.reset(env_ids=chosen)

    def step_rows(self, actions: th.Tensor) -> RowStep:
        """
        :param actions: (N, A) in [-1, 1]
        :return: rewards, terminations, time limits of mjlab
        """
        rewards = th.zeros(self.num_envs, device=self.device)
        ended, late = (th.zeros(self.num_envs, dtype=th.bool, device=self.device) for _ in range(2))
        for simulation, rows, task in zip(self._simulations, self._rows, self.suite.tasks, strict=True):
            own = actions[rows, : task.action_size] * self.action_scale
            _, rewards[rows], ended[rows], late[rows], _ = simulation.step(own)
        return RowStep(rewards, ended, truncated=late)

    def observe_rows(self) -> th.Tensor:
        """
        :return: (N, D) the observation group, padded with zeros
        """
        observations = th.zeros(self.num_envs, self.suite.observation_size, device=self.device)
        for simulation, rows, task in zip(self._simulations, self._rows, self.suite.tasks, strict=True):
            observations[rows, : task.observation_size] = simulation.obs_buf[self.observation_group]
        return observations

    def evaluation_env(self, n_envs: int | None = None) -> MjlabEnv:
        """
        :param n_envs: one row per task by default
        :return: new simulations of the same tasks; their randomness is that of the process, seeded at their first reset
        """
        names = [task.name for task in self.suite.tasks]
        options = (self.action_scale, self.observation_group)
        return MjlabEnv(names, n_envs, self.seed_value, "evaluation", self.device, *options)

    def close(self) -> None:
        """Close the simulations."""
        for simulation in self._simulations:
            simulation.close()


def _simulation(task: str, n_rows: int, device: str) -> Any:
    try:
        import mjlab.tasks  # noqa: F401 - registers its tasks
        from mjlab.envs import ManagerBasedRlEnv
        from mjlab.tasks.registry import list_tasks, load_env_cfg
    except ImportError as error:
        raise ImportError(
            f'This needs mjlab >= {MINIMUM_VERSION}; run pip install "sb3_varshare[mjlab]" in an environment without '
            "Meta-World, which pins an older MuJoCo."
        ) from error
    if task not in list_tasks():
        raise ValueError(f"mjlab knows no task {task!r}; known are {', '.join(list_tasks())}.")
    if n_rows == 0:
        raise ValueError(f"Every task needs a row, {task!r} has none; give n_envs at least the number of tasks.")
    config = load_env_cfg(task)
    config.scene.num_envs = n_rows
    # The last observation of an episode must be seen before the next one begins.
    config.auto_reset = False
    return ManagerBasedRlEnv(config, device=device)
