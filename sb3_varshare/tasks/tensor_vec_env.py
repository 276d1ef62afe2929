"""Envs that live on a device as rows of tensors, behind two faces: SB3's in numpy, and one in tensors."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_varshare.tasks.layout import check_n_envs
from sb3_varshare.tasks.seeding import Purpose, root_seed, task_stream
from sb3_varshare.tasks.suite import TaskSuite
from sb3_varshare.types import TensorStep

NO_HORIZON = 2**62


class RowStep(NamedTuple):
    """
    What the simulator says of one step of all rows.

    :param rewards: (N,) raw
    :param terminated: (N,) bool, ended by the task itself
    :param success: (N,) bool, solved at this very step; None where the tasks know no success
    :param truncated: (N,) bool, ended by a time limit of the simulator's own; None where it has none
    """

    rewards: th.Tensor
    terminated: th.Tensor
    success: th.Tensor | None = None
    truncated: th.Tensor | None = None


class TensorVecEnv(VecEnv):
    """
    N rows, each of which plays one task of a suite for good: row i plays task ``i % T``.

    A subclass simulates: :meth:`reset_rows`, :meth:`step_rows`, :meth:`observe_rows`, in tensors of fixed shapes and
    without waiting for the device. Time limits, the reset of rows whose episode ended, the one-hot of the task, success
    at any step, episode statistics and both faces are here.

    The numpy face is SB3's: an info has its entries only where an episode ended. The tensor face, :meth:`reset_tensor`
    and :meth:`step_tensor`, takes and gives tensors on :attr:`device`.

    :param suite: its tasks, with their sizes and horizons
    :param n_envs: N, at least the number of tasks; one row per task by default
    :param seed: root of all randomness; without one it is 0, or the ``seed`` of the agent that takes the env
    :param purpose: ``train`` or ``evaluation``
    :param device: where the rows live
    :raises ValueError: n_envs is no whole number, or there are fewer rows than tasks
    """

    def __init__(
        self,
        suite: TaskSuite,
        n_envs: int | None = None,
        seed: int | None = None,
        purpose: Purpose = "train",
        device: th.device | str = "cpu",
    ) -> None:
        n_tasks, n_rows = suite.n_tasks, suite.n_tasks if n_envs is None else n_envs
        check_n_envs(n_rows)
        if n_rows < n_tasks:
            raise ValueError(
                f"A tensor env keeps one task per row and needs at least as many rows as tasks ({n_tasks}), "
                f"got n_envs={n_envs}; select fewer tasks or use make_multitask_env."
            )
        self.suite, self.n_tasks, self.task_names = suite, n_tasks, suite.task_names
        self.task_description = suite.describe()
        self.device, self.purpose = th.device(device), purpose
        self.has_own_seed, self.seed_value = seed is not None, 0 if seed is None else root_seed(seed)
        self.render_mode: str | None = "rgb_array" if "rgb_array" in self.render_modes else None
        size, limit = suite.observation_size, np.full(suite.observation_size + n_tasks, np.inf, dtype=np.float32)
        super().__init__(
            n_rows,
            spaces.Box(-limit, limit, (size + n_tasks,), dtype=np.float32),
            spaces.Box(-1.0, 1.0, (suite.action_size,), dtype=np.float32),
        )
        self._actions_shape = (n_rows, suite.action_size)
        self.task_ids = th.arange(n_rows, device=self.device) % n_tasks
        self.rows_per_task = -(-n_rows // n_tasks)
        self._one_hot = th.eye(n_tasks, device=self.device)[self.task_ids]
        horizons = [NO_HORIZON if task.horizon is None else task.horizon for task in suite.tasks]
        self._horizons = th.tensor(horizons, device=self.device)[self.task_ids]
        self._every_row = th.ones(n_rows, dtype=th.bool, device=self.device)
        self.generator = th.Generator(self.device)
        self._is_seeded = False
        self._returns = th.zeros(n_rows, device=self.device)
        self._lengths = th.zeros(n_rows, dtype=th.int64, device=self.device)
        self._solved = th.zeros(n_rows, dtype=th.bool, device=self.device)
        self._started = time.perf_counter()

    render_modes: Sequence[str] = ()

    # What a simulator gives

    @abstractmethod
    def reset_rows(self, mask: th.Tensor) -> None:
        """
        Begin new episodes in some rows. All randomness comes from ``self.generator``, and as much of it is drawn
        whatever the mask is, so that nothing waits for the device.

        :param mask: (N,) bool
        """

    @abstractmethod
    def step_rows(self, actions: th.Tensor) -> RowStep:
        """
        Simulate one step of all rows; without any reset.

        :param actions: (N, A) in [-1, 1]; entries that a row's task does not have are to be ignored
        :return: rewards, terminations, successes
        """

    @abstractmethod
    def observe_rows(self) -> th.Tensor:
        """
        :return: (N, D) float32, without the one-hot, zero where a task has fewer entries
        """

    def seed_rows(self, seed: int) -> None:
        """
        Root the randomness anew; a simulator with generators of its own seeds them here.

        :param seed: below 2 ** 32
        """
        self.generator.manual_seed(seed)

    def render_row(self, row: int) -> np.ndarray | None:
        """
        :param row: which
        :return: (height, width, 3) a picture of one row; None where the simulator draws none
        """
        return None

    # The tensor face

    @th.no_grad()
    def reset_tensor(self) -> th.Tensor:
        """
        Begin new episodes in all rows.

        :return: observations (N, D + T)
        """
        if not self._is_seeded:
            stream = task_stream(self.seed_value, self.purpose, self.suite.name, 0)
            self.seed_rows(int(stream.generate_state(1)[0]))
            self._is_seeded = True
        self._begin(self._every_row)
        self.reset_rows(self._every_row)
        return self._encode()

    @th.no_grad()
    def step_tensor(self, actions: th.Tensor) -> TensorStep:
        """
        One step of all rows; rows whose episode ends begin the next.

        :param actions: (N, A) in [-1, 1]
        :return: the step
        :raises ValueError: if there is not one action for each row
        """
        if actions.shape != self._actions_shape:
            raise ValueError(f"Expected actions of shape {self._actions_shape}, got {tuple(actions.shape)}.")
        rows = self.step_rows(actions.to(self.device).clamp(-1, 1))
        self._lengths = self._lengths + 1
        self._returns = self._returns + rows.rewards
        is_late = self._lengths >= self._horizons
        truncated = (is_late if rows.truncated is None else is_late | rows.truncated) & ~rows.terminated
        solved = None
        if rows.success is not None:
            solved = self._solved = self._solved | rows.success
        done, final = rows.terminated | truncated, self._encode()
        returns, lengths = self._returns, self._lengths
        self._begin(done)
        self.reset_rows(done)
        # Where the episode goes on, a simulator with noisy sensors must not show the same state in two ways.
        observations = th.where(done[:, None], self._encode(), final)
        return TensorStep(
            observations, rows.rewards, rows.terminated, truncated, final, returns, lengths, solved, rows.success
        )

    def _begin(self, mask: th.Tensor) -> None:
        """Statistics of new episodes; nothing is changed in place, since the last step may still hold the old ones."""
        self._returns = th.where(mask, 0.0, self._returns)
        self._lengths = th.where(mask, 0, self._lengths)
        self._solved = self._solved & ~mask

    def _encode(self) -> th.Tensor:
        seen, expected = self.observe_rows(), (self.num_envs, self.suite.observation_size)
        if seen.shape != expected:
            raise ValueError(f"observe_rows must give observations of shape {expected}, got {tuple(seen.shape)}.")
        return th.cat([seen, self._one_hot], -1)

    # SB3's face

    def reset(self) -> np.ndarray:
        """
        Begin new episodes in all rows.

        :return: observations (N, D + T)
        """
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self.reset_tensor().cpu().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: (N, A) in [-1, 1]
        """
        self._actions = th.as_tensor(actions, dtype=th.float32, device=self.device)

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: observations (N, D + T), rewards (N,), dones (N,), infos
        """
        step = self.step_tensor(self._actions)
        host = {name: tensor.cpu().numpy() for name, tensor in step._asdict().items() if tensor is not None}
        dones = host["terminated"] | host["truncated"]
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(dones).tolist():
            infos[row] = self._info(row, host)
        return host["observations"], host["rewards"], dones, infos

    def _info(self, row: int, host: dict[str, np.ndarray]) -> dict[str, Any]:
        """The info of an episode that ended, with the entries that ``Monitor`` and the multi-task env give it."""
        task_id = row % self.n_tasks
        info: dict[str, Any] = {
            "task": self.task_names[task_id],
            "task_id": task_id,
            "TimeLimit.truncated": bool(host["truncated"][row]),
            "terminal_observation": host["final_observations"][row],
            "episode": {
                "r": float(host["episode_returns"][row]),
                "l": int(host["episode_lengths"][row]),
                "t": round(time.perf_counter() - self._started, 6),
            },
        }
        info.update({name: bool(host[name][row]) for name in ("is_success", "success_last") if name in host})
        return info

    def seed(self, seed: int | None = None) -> list[int | None]:
        """
        Root all randomness anew at the next reset.

        :param seed: root; None draws one
        :return: (N,) the root
        """
        self.seed_value = root_seed(seed)
        self._is_seeded = False
        self._seeds = [self.seed_value] * self.num_envs
        return self._seeds

    def set_options(self, options: list[dict] | dict | None = None) -> None:
        """
        :param options: must be empty
        :raises ValueError: there are options, which rows on a device do not take
        """
        if any(options if isinstance(options, list) else [options]):
            raise ValueError(f"Rows of a tensor env keep their tasks and take no options at a reset, got {options}.")

    def evaluation_env(self, n_envs: int | None = None) -> TensorVecEnv:
        """
        :param n_envs: one row per task by default
        :return: a new env of the same suite, root and device, on randomness that training never sees
        """
        return type(self)(self.suite, n_envs, self.seed_value, "evaluation", self.device)

    def close(self) -> None:
        """Nothing is held that Python does not free."""

    def get_images(self) -> Sequence[np.ndarray | None]:
        """
        :return: (N,) a picture of every row
        """
        return [self.render_row(row) for row in range(self.num_envs)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: of this env, since rows have none of their own
        :param indices: rows
        :return: its value for each row
        """
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: of this env
        :param value: for all rows
        :param indices: not used
        """
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of this env once.

        :param method_name: its name
        :param method_args: its arguments
        :param indices: rows that get the result
        :param method_kwargs: its keyword arguments
        :return: the result for each row
        """
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """
        :param wrapper_class: True for ``Monitor``, whose statistics every episode has
        :param indices: rows
        :return: for each row
        """
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]
