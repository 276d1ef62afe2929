"""Copies of the multi-task env behind SB3's vectorised interface, in this process or in worker processes."""

import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_varshare.tasks.env_group import EnvGroup, EnvPlan, lay_out
from sb3_varshare.tasks.layout import EnvLayout, TaskWeights, task_layout, task_shares
from sb3_varshare.tasks.multi_task_env import MultiTaskEnv
from sb3_varshare.tasks.registry import Tasks, make_suite
from sb3_varshare.tasks.seeding import Purpose, root_seed
from sb3_varshare.tasks.suite import TaskSuite
from sb3_varshare.tasks.worker_options import OnFailure, WorkerOptions
from sb3_varshare.tasks.worker_pool import WorkerPool

Indices = None | int | Iterable[int]


class MultiTaskVecEnv(VecEnv):
    """
    N copies of a :class:`MultiTaskEnv`; the task of a row is always in its observation.

    An ``info`` at the end of an episode holds SB3's ``episode``, as behind a ``Monitor``, ``terminal_observation`` and
    ``TimeLimit.truncated``. With workers the same envs play the same episodes in other processes; see ``docs/workers``.

    :param suite: a built suite
    :param n_envs: N; one per task by default
    :param seed: root of all random streams; without one it is 0, or the ``seed`` of the agent that takes the envs
    :param purpose: ``train`` or ``evaluation``
    :param render_mode: of the tasks' envs
    :param task_weights: see :func:`~sb3_varshare.tasks.layout.task_shares`
    :param workers: how to run worker processes; by default there are none
    :param layout: which env plays what; by default as ``n_envs`` and ``task_weights`` say, each env a copy of its own
    """

    def __init__(
        self,
        suite: TaskSuite,
        n_envs: int | None = None,
        seed: int | None = None,
        purpose: Purpose = "train",
        render_mode: str | None = None,
        task_weights: TaskWeights | None = None,
        workers: WorkerOptions | None = None,
        layout: EnvLayout | None = None,
    ) -> None:
        self.suite = suite
        self.n_tasks = suite.n_tasks
        self.task_names = suite.task_names
        self.has_own_seed = seed is not None
        self.seed_value = 0 if seed is None else root_seed(seed)
        self.purpose = purpose
        self.workers = WorkerOptions() if workers is None else workers
        if layout is None:
            cycles = task_layout(suite.n_tasks if n_envs is None else n_envs, task_shares(task_weights, suite))
            layout = EnvLayout(cycles, tuple(range(len(cycles))))
        self.layout = layout.cycles
        plan = EnvPlan(suite, self.seed_value, purpose, *layout, render_mode, time.time())
        self._sample: MultiTaskEnv = plan.make(0)
        observations, actions = self._sample.observation_space, self._sample.action_space
        assert observations.shape is not None and actions.shape is not None
        shape = (len(self.layout), observations.shape[0], actions.shape[0])
        self._players: EnvGroup | WorkerPool
        if self.workers.count(len(self.layout)):
            self._players = WorkerPool(plan, shape, self.workers)
            self._arrays = self._players.arrays
        else:
            self._arrays, _ = lay_out(*shape)
            self._players = EnvGroup(plan, self._arrays, range(len(self.layout)))
        super().__init__(len(self.layout), observations, actions)
        self.metadata = self._sample.metadata

    @property
    def envs(self) -> list[MultiTaskEnv]:
        """The envs themselves, where they are in this process."""
        if isinstance(self._players, EnvGroup):
            return list(self._players.envs.values())
        raise AttributeError("The envs are in worker processes; use get_attr, set_attr or env_method.")

    @property
    def n_workers(self) -> int:
        """Number of worker processes, 0 without."""
        return self._players.n_workers if isinstance(self._players, WorkerPool) else 0

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that run now."""
        return self._players.pids if isinstance(self._players, WorkerPool) else ()

    @property
    def worker_restarts(self) -> int:
        """How often an env was lost with its worker and built anew, all envs together."""
        return sum(self.worker_restarts_per_task().values())

    def worker_restarts_per_task(self) -> dict[str, int]:
        """
        :return: task name to how often an env that plays it was lost with its worker
        """
        counts = dict.fromkeys(self.task_names, 0)
        if isinstance(self._players, WorkerPool):
            for count, cycle in zip(self._players.restarts.tolist(), self.layout, strict=True):
                for task in set(cycle):
                    counts[self.task_names[task]] += count
        return counts

    def seed(self, seed: int | None = None) -> list[int | None]:
        """
        Root all random streams anew at the next reset. Envs differ by their rank, so all get the same seed.

        :param seed: root; None draws one
        :return: (N,) the root
        """
        self.seed_value = root_seed(seed)
        self._seeds = [self.seed_value] * self.num_envs
        return self._seeds

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """
        :param options: of the next reset, for all envs or one for each; ``{"task": name or id}`` plays that task
        :raises ValueError: if there is no such task, or not one for each env
        """
        if isinstance(options, list) and len(options) != self.num_envs:
            raise ValueError(f"Expected options for each of {self.num_envs} envs, got {len(options)}.")
        for option in options if isinstance(options, list) else [options]:
            if option and "task" in option:
                self.suite.task_id(option["task"])
        super().set_options(options)

    def reset(self) -> np.ndarray:
        """
        Start an episode in every env.

        :return: observations (N, D + T)
        """
        infos = self._players.reset(self._seeds, self._options)
        self.reset_infos = [infos[rank] for rank in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return self._arrays.observations.copy()

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: (N, A) in [-1, 1]
        :raises ValueError: if there is not one action for each env
        :raises RuntimeError: if workers have a step that was not waited for
        """
        if np.shape(actions) != self._arrays.actions.shape:
            raise ValueError(f"Expected actions of shape {self._arrays.actions.shape}, got {np.shape(actions)}.")
        if isinstance(self._players, WorkerPool):
            self._players.step_async(actions)
        else:
            self._arrays.actions[:] = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations (N, D + T), rewards (N,), dones (N,), infos
        """
        infos, reset_infos = self._players.step()
        for rank, reset_info in reset_infos.items():
            infos[rank]["terminal_observation"] = self._arrays.final_observations[rank].copy()
            self.reset_infos[rank] = reset_info
        observations, rewards, dones = self._arrays.observations, self._arrays.rewards, self._arrays.dones
        return observations.copy(), rewards.copy(), dones.copy(), [infos[rank] for rank in range(self.num_envs)]

    def close(self) -> None:
        """Close all envs. With workers no process is left, and the envs cannot be used again."""
        self._players.close()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """
        :param attr_name: name of an attribute
        :param indices: of the envs; all by default
        :return: its value in each env
        """
        if attr_name == "render_mode":
            # SB3's constructors ask for it, and nothing but its use shall start the workers.
            return [self._sample.render_mode for _ in self._get_indices(indices)]
        return self._players.get_attr(list(self._get_indices(indices)), attr_name)

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """
        :param attr_name: name of an attribute
        :param value: of it, in each env
        :param indices: of the envs; all by default
        """
        self._players.set_attr(list(self._get_indices(indices)), attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Indices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: name of a method
        :param method_args: its arguments
        :param indices: of the envs; all by default
        :param method_kwargs: its keyword arguments
        :return: what it returns in each env
        """
        return self._players.env_method(list(self._get_indices(indices)), method_name, method_args, method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Indices = None) -> list[bool]:
        """
        The envs count as wrapped in SB3's ``Monitor``, since episodes are counted in its way.

        :param wrapper_class: a wrapper
        :param indices: of the envs; all by default
        :return: whether each env is wrapped in it
        """
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: (N,) frames; None where the render mode is not ``rgb_array``
        """
        if self.render_mode != "rgb_array":
            warnings.warn(f"Images need render_mode='rgb_array', got {self.render_mode!r}.", stacklevel=2)
            return [None] * self.num_envs
        return self.env_method("render")

    def evaluation_env(self, n_envs: int | None = None) -> "MultiTaskVecEnv":
        """
        :param n_envs: one per task by default
        :return: new envs of the same suite and root, on streams that training never sees, with workers of their own if
            these have some, which start at the first reset and end at ``close()``
        """
        return MultiTaskVecEnv(
            self.suite, n_envs, self.seed_value, "evaluation", self.render_mode, workers=self.workers
        )


def make_multitask_env(
    tasks: Tasks,
    n_envs: int | None = None,
    seed: int | None = None,
    n_workers: int | Literal["auto"] = 0,
    *,
    task_weights: TaskWeights | None = None,
    render_mode: str | None = None,
    worker_timeout: float = 60.0,
    worker_start_timeout: float = 300.0,
    on_worker_failure: OnFailure = "raise",
    start_method: str | None = None,
    **suite_options: Any,
) -> MultiTaskVecEnv:
    """
    Training envs for a suite of tasks.

    :param tasks: whatever :func:`sb3_varshare.tasks.make_suite` takes
    :param n_envs: one per task by default
    :param seed: root of all random streams; without one it is 0, or the ``seed`` of the agent that takes the envs
    :param n_workers: processes that step the envs; 0 steps them in this one, ``"auto"`` takes one per processor core
    :param task_weights: share of each task in what is collected: T numbers, or a mapping from a name to one
    :param render_mode: of the tasks' envs
    :param worker_timeout: s that one step or reset of one env in a worker may take
    :param worker_start_timeout: s until a worker must be ready
    :param on_worker_failure: ``"raise"`` a :class:`~sb3_varshare.tasks.WorkerError`, or ``"restart"`` the worker
    :param start_method: of workers, ``"forkserver"`` or ``"spawn"``, or ``"ray"`` for workers on other machines too
    :param suite_options: e.g. ``reward_version``, ``horizon``, ``n_goals`` for Meta-World
    :return: vectorised envs
    """
    workers = WorkerOptions(n_workers, worker_timeout, worker_start_timeout, on_worker_failure, start_method)
    suite = make_suite(tasks, **suite_options)
    return MultiTaskVecEnv(suite, n_envs, seed, "train", render_mode, task_weights, workers)
