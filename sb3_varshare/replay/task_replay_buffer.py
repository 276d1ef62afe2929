"""Replay that lives on the training device: a ring of transitions per task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer

from sb3_varshare.grouping import count_within_task
from sb3_varshare.tasks.encoding import split_task
from sb3_varshare.types import TaskBatch, Transitions


def to_tensors(
    device: th.device,
    observations: np.ndarray,
    next_observations: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
) -> Transitions:
    """
    One step of all environments, moved to a device as one packed array.

    :param device: where to
    :param observations: (N, D + one-hot)
    :param next_observations: (N, D + one-hot)
    :param actions: (N, A)
    :param rewards: (N,)
    :param terminated: (N,) bool
    :param truncated: (N,) bool
    :return: the same as float32 and bool tensors
    """
    columns = [observations, next_observations, actions, rewards[:, None], terminated[:, None], truncated[:, None]]
    packed = th.from_numpy(np.concatenate(columns, axis=1, dtype=np.float32, casting="same_kind")).to(device)
    sizes = [column.shape[1] for column in columns]
    obs, next_obs, action, reward, is_terminated, is_truncated = packed.split(sizes, -1)
    return Transitions(obs, action, reward[:, 0], next_obs, is_terminated[:, 0].bool(), is_truncated[:, 0].bool())


class TaskReplayBuffer(ReplayBuffer):
    """
    One ring per task; every batch holds exactly the same number of rows of each.

    A transition is one packed row ``[observation | next observation | action | reward | discount]`` of a single
    (T, C, W) tensor, so that sampling is one gather on it. The tensor is allocated when the first row is stored. The
    n-step sums are formed when a row is stored, per environment, so the order of environments and tasks in the rings
    does not matter. Storing never waits for the device; a row that is not finite is not stored.

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
        # The rows of all rings, and one more that takes what is not to be stored: no shape depends on the data.
        self._storage: th.Tensor | None = None
        # The steps of each environment whose n-step sums are open, the newest last, and how many of them there are.
        self._window: th.Tensor | None = None
        BaseBuffer.__init__(self, buffer_size // n_tasks, observation_space, action_space, device, n_envs)
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage is not supported: rows hold both observations of a transition.")
        if self.buffer_size < 1:
            raise ValueError(f"buffer_size must be at least n_tasks ({n_tasks}), got {buffer_size}.")
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}.")
        self.n_tasks, self.one_hot_size, self.gamma, self.n_steps = n_tasks, one_hot_size, gamma, n_steps
        self.observation_size = int(np.prod(self.obs_shape)) - one_hot_size
        self.written = th.zeros(n_tasks, dtype=th.int64, device=self.device)
        self._open = th.zeros(0, dtype=th.int64, device=self.device)
        self._every_task_has_rows = False

    @property
    def device(self) -> th.device:
        """Where the rows live; assigning moves them."""
        return self._device

    @device.setter
    def device(self, device: th.device | str) -> None:
        self._device = th.device(device)
        if self._storage is not None:
            self._storage = self._storage.to(self._device)
            self.written, self._open = self.written.to(self._device), self._open.to(self._device)
        elif hasattr(self, "written"):
            self.written, self._open = (
                th.zeros(len(t), dtype=th.int64, device=self._device) for t in (self.written, self._open)
            )
        if self._window is not None:
            self._window = self._window.to(self._device)

    @property
    def _rows(self) -> th.Tensor | None:
        """(T, C, W), None before the first row."""
        return None if self._storage is None else self._storage[:-1].unflatten(0, (self.n_tasks, self.buffer_size))

    @property
    def row_size(self) -> int:
        """Numbers in a stored transition, W."""
        return 2 * self.observation_size + self.action_dim + 2

    @property
    def sizes(self) -> th.Tensor:
        """Transitions of each task, (T,) on the device."""
        return self.written.clamp(max=self.buffer_size)

    def size(self) -> int:
        """Transitions of all tasks."""
        return int(self.sizes.sum())

    def empty_tasks(self) -> list[int]:
        """Tasks without a transition; waits for the device only as long as there are some."""
        if self._every_task_has_rows:
            return []
        empty: list[int] = (self.written == 0).nonzero().flatten().tolist()
        self._every_task_has_rows = not empty
        return empty

    def reset(self) -> None:
        """Forget everything."""
        self.written.zero_()
        self._every_task_has_rows = False
        self.forget_open_episodes()

    def forget_open_episodes(self) -> None:
        """Drop the unfinished n-step sums; to be called when the environments are reset from outside."""
        self._open.zero_()

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
        Store one step of all environments in the form that SB3 gives it.

        :param obs: (N, D + one-hot)
        :param next_obs: (N, D + one-hot) the true next observation, also at the end of an episode
        :param action: (N, A) in [-1, 1]
        :param reward: (N,) raw
        :param done: (N,) the episode ended
        :param infos: ``TimeLimit.truncated`` tells a truncation, which is bootstrapped, from a termination
        """
        done = np.asarray(done, dtype=bool)
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos], dtype=bool) & done
        self.add_tensors(to_tensors(self.device, obs, next_obs, action, reward, done & ~truncated, truncated))

    def add_tensors(self, step: Transitions) -> None:
        """
        Store one step of all environments.

        :param step: on any device
        """
        step = Transitions(*(tensor.to(self.device) for tensor in step))
        observations, task_ids = split_task(step.observations, self.one_hot_size)
        next_observations, _ = split_task(step.next_observations, self.one_hot_size)
        if self.n_steps == 1:
            discounts = self.gamma * (~step.terminated).float()
            rows = [observations, next_observations, step.actions, step.rewards[:, None], discounts[:, None]]
            self._write(th.cat(rows, 1), task_ids, th.ones_like(step.terminated))
            return
        opened = th.cat([observations, step.actions, step.rewards[:, None]], 1)
        window, counts = self._push(opened)
        done = step.terminated | step.truncated
        position = th.arange(self.n_steps, device=self.device)
        # A full window gives up its first step, the end of an episode all that are open.
        complete = (position >= self.n_steps - counts[:, None]) & (done[:, None] | (position == 0))
        self._open = th.where(done, 0, counts.clamp(max=self.n_steps - 1))
        first, action, sums = self._sums(window)
        left = self.gamma ** (self.n_steps - position)
        discounts = th.where(step.terminated[:, None], 0.0, left)
        last = next_observations[:, None].expand(-1, self.n_steps, -1)
        rows = [first, last, action, sums[..., None], discounts[..., None]]
        self._write(
            th.cat(rows, -1).flatten(0, 1),
            task_ids[:, None].expand(-1, self.n_steps).flatten(),
            complete.flatten(),
        )

    def _push(self, opened: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Put a step behind the open ones: (N, n, D + A + 1), and how many are open now, (N,)."""
        if self._window is None or len(self._window) != len(opened):
            self._window = opened.new_zeros(len(opened), self.n_steps, opened.shape[1])
            self._open = self.written.new_zeros(len(opened))
        self._window = th.cat([self._window[:, 1:], opened[:, None]], 1)
        return self._window, self._open + 1

    def _sums(self, window: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Observations (N, n, D) and actions (N, n, A) of the open steps, and the discounted sums from each, (N, n)."""
        observations, actions, rewards = window.split([self.observation_size, self.action_dim, 1], -1)
        running = window.new_zeros(len(window), dtype=th.float64)
        sums = []
        for reward in reversed(rewards[..., 0].double().unbind(1)):
            running = reward + self.gamma * running
            sums.append(running)
        return observations, actions, th.stack(sums[::-1], 1).float()

    def _write(self, rows: th.Tensor, task_ids: th.Tensor, wanted: th.Tensor) -> None:
        """Append the wanted and finite rows (R, W) to the rings of their tasks (R,)."""
        storage = self._allocate()
        wanted = wanted & rows.isfinite().all(1)
        rank, counts = count_within_task(task_ids, self.n_tasks, wanted)
        # Of more rows than a ring has slots the last ones stay.
        wanted = wanted & (rank >= counts[task_ids] - self.buffer_size)
        slots = task_ids * self.buffer_size + (self.written[task_ids] + rank) % self.buffer_size
        storage[th.where(wanted, slots, len(storage) - 1)] = rows
        self.written = self.written + counts

    def _allocate(self) -> th.Tensor:
        if self._storage is None:
            self._storage = th.empty(self.n_tasks * self.buffer_size + 1, self.row_size, device=self.device)
        return self._storage

    def take_rows(self, source: TaskReplayBuffer, tasks: Mapping[int, int]) -> None:
        """
        Let rings hold what those of another buffer hold; of more rows than a ring has slots the newest.

        :param source: the other buffer
        :param tasks: task here -> task there
        :raises ValueError: the rows of the buffers do not mean the same
        """
        if source._rows is None or not tasks:
            return
        for name in ("row_size", "n_steps", "gamma"):
            ours, theirs = getattr(self, name), getattr(source, name)
            if ours != theirs:
                raise ValueError(f"Expected rows of a replay with {name} {ours}, got {theirs}.")
        self._allocate()
        assert self._rows is not None
        for here, there in tasks.items():
            written = int(source.written[there])
            size = min(written, source.buffer_size, self.buffer_size)
            slots = th.arange(written - size, written, device=source.device)
            # Rings of one size keep their order: the next row replaces the oldest in both.
            kept = slots if source.buffer_size == self.buffer_size else slots - slots[:1]
            rows = source._rows[there, slots % source.buffer_size]
            self._rows[here, kept.to(self.device) % self.buffer_size] = rows.to(self.device)
            self.written[here] = kept[-1] + 1 if size else 0
        self._every_task_has_rows = False

    def sample(self, batch_size: int, env: Any = None) -> TaskBatch:  # type: ignore[override]
        """
        Rows of every task, drawn with replacement from what it has stored.

        :param batch_size: rows of all tasks together, a multiple of T
        :param env: not used; SB3 passes its ``VecNormalize`` here, which the agent refuses
        :return: B = ``batch_size / T`` rows of each task
        :raises RuntimeError: a task has no transition yet
        """
        empty = self.empty_tasks()
        if self._storage is None or empty:
            raise RuntimeError(f"tasks {empty} have no transition to sample yet.")
        counts = self.sizes[:, None]
        index = (th.rand(self.n_tasks, batch_size // self.n_tasks, device=self.device) * counts).long()
        index = th.minimum(index, counts - 1)
        index += th.arange(self.n_tasks, device=self.device)[:, None] * self.buffer_size
        rows = self._storage.index_select(0, index.flatten()).unflatten(0, index.shape)
        d, a = self.observation_size, self.action_dim
        obs, next_obs, actions, rewards, discounts = rows.split([d, d, a, 1, 1], -1)
        return TaskBatch(obs, actions, next_obs, rewards.squeeze(-1), discounts.squeeze(-1))

    def transition_counts(self) -> th.Tensor:
        """Transitions of each task as floats on the device, (T,)."""
        return self.sizes.float()

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
        if (self._open >= self.n_steps).any():
            return False, "an n-step window was not emptied"
        return True, ""

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("written", "_open", "_window"):
            state[name] = None if state[name] is None else state[name].cpu()
        # Only what was written, and on the CPU, so that the file loads on machines without the device.
        rows = self._rows
        state["_storage"] = None if rows is None else rows[:, : int(self.sizes.max())].cpu().clone()
        state["_device"] = th.device("cpu")
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        written = self._storage
        if written is not None:
            self._storage = th.empty(self.n_tasks * self.buffer_size + 1, self.row_size)
            rows = self._rows
            assert rows is not None
            rows[:, : written.shape[1]] = written
