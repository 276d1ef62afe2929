"""Copies of the multi-task env behind SB3's vectorised interface, in this process."""

from typing import Any

import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_varshare.tasks.multi_task_env import MultiTaskEnv
from sb3_varshare.tasks.registry import Tasks, make_suite
from sb3_varshare.tasks.seeding import Purpose
from sb3_varshare.tasks.suite import TaskSuite


def task_layout(n_envs: int, n_tasks: int) -> tuple[tuple[int, ...], ...]:
    """
    Which tasks each env plays. With fewer envs than tasks an env takes several in turn, else each keeps to one.

    :param n_envs: N
    :param n_tasks: T
    :return: (N,) tuples of task ids; every task is in at least one
    :raises ValueError: if there is no env
    """
    if n_envs < 1:
        raise ValueError(f"n_envs must be at least 1, got {n_envs}.")
    return tuple(tuple(range(rank, n_tasks, n_envs)) or (rank % n_tasks,) for rank in range(n_envs))


class MultiTaskVecEnv(DummyVecEnv):
    """
    N monitored copies of a :class:`MultiTaskEnv`; the task of a row is always in its observation.

    :param suite: a built suite
    :param n_envs: N; one per task by default
    :param seed: root of all random streams
    :param purpose: ``train`` or ``evaluation``
    :param render_mode: of the tasks' envs
    """

    def __init__(
        self,
        suite: TaskSuite,
        n_envs: int | None = None,
        seed: int = 0,
        purpose: Purpose = "train",
        render_mode: str | None = None,
    ) -> None:
        self.suite = suite
        self.n_tasks = suite.n_tasks
        self.task_names = suite.task_names
        self.seed_value = seed
        self.purpose = purpose
        self.layout = task_layout(suite.n_tasks if n_envs is None else n_envs, suite.n_tasks)

        def make(rank: int) -> Monitor[Any, Any]:
            return Monitor(MultiTaskEnv(suite, seed, purpose, rank, self.layout[rank], render_mode))

        super().__init__([lambda rank=rank: make(rank) for rank in range(len(self.layout))])  # type: ignore[misc]

    def seed(self, seed: int | None = None) -> list[int | None]:
        """
        Root all random streams anew at the next reset. Envs differ by their rank, so all get the same seed.

        :param seed: root; None draws one
        :return: (N,) the root
        """
        self.seed_value = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._seeds = [self.seed_value] * self.num_envs
        return self._seeds

    def step_wait(self) -> VecEnvStepReturn:
        """
        As in the base class, which copies every info deeply; ours are new dictionaries at each step.

        :return: observations (N, D + T), rewards (N,), dones (N,), infos
        """
        for rank, env in enumerate(self.envs):
            observation, self.buf_rews[rank], terminated, truncated, info = env.step(self.actions[rank])
            done = terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            if done:
                info["terminal_observation"] = observation
                observation, self.reset_infos[rank] = env.reset()
            self.buf_dones[rank] = done
            self.buf_infos[rank] = info
            self._save_obs(rank, observation)
        return self.buf_obs[None].copy(), self.buf_rews.copy(), self.buf_dones.copy(), list(self.buf_infos)  # type: ignore[index]

    def evaluation_env(self, n_envs: int | None = None) -> "MultiTaskVecEnv":
        """
        :param n_envs: one per task by default
        :return: new envs of the same suite and root, on streams that training never sees
        """
        return MultiTaskVecEnv(self.suite, n_envs, self.seed_value, "evaluation", self.render_mode)


def make_multitask_env(
    tasks: Tasks, n_envs: int | None = None, seed: int = 0, render_mode: str | None = None, **suite_options: Any
) -> MultiTaskVecEnv:
    """
    Training envs for a suite of tasks.

    :param tasks: whatever :func:`sb3_varshare.tasks.make_suite` takes
    :param n_envs: one per task by default
    :param seed: root of all random streams
    :param render_mode: of the tasks' envs
    :param suite_options: e.g. ``reward_version``, ``horizon``, ``n_goals`` for Meta-World
    :return: vectorised envs
    """
    return MultiTaskVecEnv(make_suite(tasks, **suite_options), n_envs, seed, render_mode=render_mode)
