"""Gives the envs of a ``VecEnv`` their tasks: what ``vec_env_wrapper`` names in a file of the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn, VecEnvWrapper

from sb3_varshare.tasks.layout import EnvLayout, evaluation_layout, task_layout
from sb3_varshare.tasks.suite import find_tasks


class AssignTasks(VecEnvWrapper):
    """
    Spreads the tasks of a suite over envs that were all made alike.

    With at least as many envs as tasks every env keeps to one task; with fewer an env plays its tasks in turn, one an
    episode. In training, tasks and random streams are those of :class:`~sb3_varshare.MultiTaskVecEnv` with the same
    seed. In evaluation the first episodes of a task are the same for any number of envs up to that of the tasks.

    :param venv: envs that can each play any task of one suite
    :raises ValueError: they do not know any tasks
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        tasks = find_tasks(venv)
        if tasks is None:
            raise ValueError("AssignTasks needs envs that know their tasks, such as MT10-v0; leave it out elsewhere.")
        self.task_names = tasks.names
        inner: Any = venv.unwrapped
        # A MultiTaskVecEnv has assigned its tasks itself, and takes one seed for all.
        self._is_assigned = hasattr(inner, "layout")
        if self._is_assigned:
            self.layout = inner.layout
            return
        is_evaluation = "evaluation" in venv.get_attr("purpose", indices=0)
        lay_out = evaluation_layout if is_evaluation else _training_layout
        layout = lay_out(venv.num_envs, len(tasks.names))
        self.layout = layout.cycles
        for env, (cycle, copy) in enumerate(zip(*layout, strict=True)):
            # It was made without knowing its rank.
            venv.env_method("set_tasks", cycle, copy, indices=env)
        self._share_seed()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """
        Root all random streams anew at the next reset. Envs differ by their rank, so all get the same seed.

        :param seed: root; None draws one
        :return: (N,) the root
        """
        seeds = self.venv.seed(seed)
        return seeds if self._is_assigned else self._share_seed()

    def _share_seed(self) -> Sequence[int | None]:
        # SB3 counts up from the first. What all copies of a task have in common, its set of goals, needs one root.
        inner: Any = self.venv.unwrapped
        inner._seeds = [inner._seeds[0]] * self.num_envs
        seeds: list[int | None] = inner._seeds
        return seeds

    def reset(self) -> VecEnvObs:
        """As the envs do."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """As the envs do."""
        return self.venv.step_wait()


def _training_layout(n_envs: int, n_tasks: int) -> EnvLayout:
    """As that of :class:`~sb3_varshare.MultiTaskVecEnv`: every env is a copy of its own."""
    return EnvLayout(task_layout(n_envs, [Fraction(1, n_tasks)] * n_tasks), tuple(range(n_envs)))
