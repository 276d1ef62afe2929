"""Replay that lives on the training device: a ring of transitions per task."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer

from sb3_varshare.tasks.encoding import split_task
from sb3_varshare.types import TaskBatch


class _Step(NamedTuple):
    observation: np.ndarray
    action: np.ndarray
    task_id: int
    reward: float


class TaskReplayBuffer(ReplayBuffer):
    """
    One ring per task; every batch holds exactly the same number of rows of each.

    A transition is one packed row ``[observation | next observation | action | reward | discount]`` of a single
    (T, C, W) tensor, so that storing is one copy to the device and sampling one gather on it. The tensor is allocated
    at the first :meth:`add`. The n-step sums are formed when a row is stored, per environment, so the order of
    environments and tasks in the rings does not matter.

    :param buffer_size: transitions of all tasks together
    :param observation_space: of the environment, flat, with the task one-hot at its end
    :param action_space: of the environment
    :param device: where the rows live
    :param n_envs: number of environments N
    :param optimize_memory_usage: not supported
    :param n_tasks: tasks T
    :param one_hot_size: length of the one-hot at the end of observations; 0 for a single task without one
    :param gamma: discount, part of the stored rows
    :param n_steps: length of the reward sums
    """

    # What SB3 asks a buffer that it loads from a file.
    handle_timeout_termination = True

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        n_tasks: int = 1,
        one_hot_size: int = 0,
        gamma: float = 0.99,
        n_steps: int = 1,
    ) -> None:
        self._rows: th.Tensor | None = None
        BaseBuffer.__init__(self, buffer_size // n_tasks, observation_space, action_space, device, n_envs)
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage is not supported: rows hold both observations of a transition.")
        if self.buffer_size < 1:
            raise ValueError(f"buffer_size must be at least n_tasks ({n_tasks}), got {buffer_size}.")
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}.")
        self.n_tasks, self.one_hot_size, self.gamma, self.n_steps = n_tasks, one_hot_size, gamma, n_steps
        self.observation_size = int(np.prod(self.obs_shape)) - one_hot_size
        self.written = np.zeros(n_tasks, dtype=np.int64)
        self._windows: list[deque[_Step]] = [deque() for _ in range(n_envs)]

    @property
    def device(self) -> th.device:
        """Where the rows live; assigning moves them."""
        return self._device

    @device.setter
    def device(self, device: th.device | str) -> None:
        self._device = th.device(device)
        if self._rows is not None:
            self._rows = self._rows.to(self._device)

    @property
    def row_size(self) -> int:
        """Numbers in a stored transition, W."""
        return 2 * self.observation_size + self.action_dim + 2

    @property
    def sizes(self) -> np.ndarray:
        """Transitions of each task, (T,)."""
        return np.minimum(self.written, self.buffer_size)

    def size(self) -> int:
        """Transitions of all tasks."""
        return int(self.sizes.sum())

    def reset(self) -> None:
        """Forget everything."""
        self.written[:] = 0
        self.forget_open_episodes()

    def forget_open_episodes(self) -> None:
        """Drop the unfinished n-step sums; to be called when the environments are reset from outside."""
        for window in self._windows:
            window.clear()

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one step of all environments.

        :param obs: (N, D + one-hot)
        :param next_obs: (N, D + one-hot) the true next observation, also at the end of an episode
        :param action: (N, A) in [-1, 1]
        :param reward: (N,) raw
        :param done: (N,) the episode ended
        :param infos: ``TimeLimit.truncated`` tells a truncation, which is bootstrapped, from a termination
        """
        observations, task_ids = split_task(obs, self.one_hot_size)
        next_observations, _ = split_task(next_obs, self.one_hot_size)
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        terminated = np.asarray(done, dtype=bool) & ~truncated
        if self.n_steps == 1:
            discounts = np.where(terminated, 0.0, self.gamma)
            rows = [observations, next_observations, action, reward[:, None], discounts[:, None]]
            self._write(np.concatenate(rows, axis=1, dtype=np.float32, casting="same_kind"), np.asarray(task_ids))
            return
        for env in range(len(observations)):
            step = _Step(observations[env], action[env], int(task_ids[env]), float(reward[env]))
            self._add_step(env, step, next_observations[env], bool(done[env]), bool(terminated[env]))

    def _add_step(self, env: int, step: _Step, next_observation: np.ndarray, done: bool, terminated: bool) -> None:
        window = self._windows[env]
        window.append(step)
        while len(window) == self.n_steps or (done and window):
            reward = sum(self.gamma**k * later.reward for k, later in enumerate(window))
            discount = 0.0 if terminated else self.gamma ** len(window)
            first = window.popleft()
            row = np.concatenate([first.observation, next_observation, first.action, [reward, discount]])
            self._write(row[None].astype(np.float32), np.array([first.task_id]))

    def _write(self, rows: np.ndarray, task_ids: np.ndarray) -> None:
        if self._rows is None:
            self._rows = th.empty(self.n_tasks, self.buffer_size, self.row_size, device=self.device)
        # Rows of the same task in one step take consecutive slots.
        rank = np.tril(task_ids[:, None] == task_ids[None], -1).sum(1)
        slots = (self.written[task_ids] + rank) % self.buffer_size
        index = th.from_numpy(np.stack([task_ids, slots])).to(self.device)
        self._rows[index[0], index[1]] = th.from_numpy(rows).to(self.device)
        np.add.at(self.written, task_ids, 1)

    def sample(self, batch_size: int, env: Any = None) -> TaskBatch:  # type: ignore[override]
        """
        Rows of every task, drawn with replacement from what it has stored.

        :param batch_size: rows of all tasks together, a multiple of T
        :param env: not used; SB3 passes its ``VecNormalize`` here, which the agent refuses
        :return: B = ``batch_size / T`` rows of each task
        :raises RuntimeError: a task has no transition yet
        """
        sizes = self.sizes
        if self._rows is None or (sizes == 0).any():
            raise RuntimeError(f"tasks {np.flatnonzero(sizes == 0).tolist()} have no transition to sample yet.")
        counts = th.from_numpy(sizes).to(self.device, non_blocking=True)[:, None]
        index = (th.rand(self.n_tasks, batch_size // self.n_tasks, device=self.device) * counts).long()
        index = th.minimum(index, counts - 1)
        index += th.arange(self.n_tasks, device=self.device)[:, None] * self.buffer_size
        rows = self._rows.flatten(0, 1).index_select(0, index.flatten()).unflatten(0, index.shape)
        d, a = self.observation_size, self.action_dim
        obs, next_obs, actions, rewards, discounts = rows.split([d, d, a, 1, 1], -1)
        return TaskBatch(obs, actions, next_obs, rewards.squeeze(-1), discounts.squeeze(-1))

    def transition_counts(self) -> th.Tensor:
        """Transitions of each task as floats on the device, (T,)."""
        return th.from_numpy(self.sizes).to(self.device, th.float32, non_blocking=True)

    def check_valid(self) -> tuple[bool, str]:
        """Whether the buffer keeps its own rules, and if not, which one is broken."""
        if self._rows is None:
            return (False, "rows were counted but never stored") if self.written.any() else (True, "")
        filled = [self._rows[task, :size] for task, size in enumerate(self.sizes)]
        if not all(bool(th.isfinite(rows).all()) for rows in filled):
            return False, "a stored row is not finite"
        discounts = th.cat([rows[:, -1] for rows in filled])
        if ((discounts < 0) | (discounts > 1)).any():
            return False, "a stored discount is outside [0, 1]"
        if any(len(window) >= self.n_steps for window in self._windows):
            return False, "an n-step window was not emptied"
        return True, ""

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self._rows is not None:
            # Only what was written, and on the CPU, so that the file loads on machines without the device.
            state["_rows"] = self._rows[:, : int(self.sizes.max())].cpu().clone()
        state["_device"] = th.device("cpu")
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._rows is not None:
            rows = th.empty(self.n_tasks, self.buffer_size, self.row_size)
            rows[:, : self._rows.shape[1]] = self._rows
            self._rows = rows
