"""How an agent fills its replay: actions, transitions, and the statistics that each step adds to."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import MaybeCallback, RolloutReturn
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.replay import RewardScale, TaskReplayBuffer
from sb3_varshare.replay.task_replay_buffer import to_tensors
from sb3_varshare.tasks.encoding import check_one_hot, split_task
from sb3_varshare.types import Transitions
from sb3_varshare.varshare_sac.exploration import PosteriorExplorer
from sb3_varshare.varshare_sac.observation_norm import ObservationNorm
from sb3_varshare.varshare_sac.peers import Peers
from sb3_varshare.varshare_sac.policies import MultiTaskPolicy
from sb3_varshare.varshare_sac.task_stats import TaskStats
from sb3_varshare.varshare_sac.tensor_collection import TensorCollector, has_tensor_face


class MultiTaskCollection(SAC, ABC):
    """
    SAC's collection for many tasks, with two ways in: numpy arrays from any ``VecEnv``, tensors from one on a device.
    Both end in :meth:`store` and :meth:`count`.
    """

    policy: MultiTaskPolicy  # type: ignore[assignment]
    replay_buffer: TaskReplayBuffer
    reward_scale: RewardScale
    exploration: str
    mask_actions: bool
    n_tasks: int
    task_names: list[str]
    action_sizes: list[int]
    one_hot_size: int
    _explorer: PosteriorExplorer | None
    _collector: TensorCollector | None
    # Where several processes train one agent: the others, and what this one has seen. See sb3_varshare.distributed.
    _peers: Peers | None = None
    _own_observation_norm: ObservationNorm | None = None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:
            # Until the reset is complete there is nothing to go on from.
            self._last_obs = None
            self._forget_open_episodes()
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        first = th.as_tensor(self._last_obs).cpu().numpy()
        check_one_hot(first, self.one_hot_size)
        self._refuse_non_finite(split_task(first, self.one_hot_size)[1], first_observation=first)
        return result

    def _forget_open_episodes(self) -> None:
        """What is open when the environments start anew will never end."""
        self.replay_buffer.forget_open_episodes()
        self.reward_scale.forget_open_episodes()
        self.task_stats = TaskStats(self.task_names, self._stats_window_size)
        self._collector = None

    def is_warm(self) -> bool:
        """Whether the warm-up is over: enough transitions, and every task has a reward scale."""
        return self.num_timesteps > self.learning_starts and not self.reward_scale.missing_tasks()

    def is_ready(self) -> bool:
        """
        Whether gradient steps can be taken. With other processes, learns of their data, and all have the same answer.
        """
        if self._peers is None:
            return self.is_warm() and not self.replay_buffer.empty_tasks()
        if self._own_observation_norm is not None:
            assert isinstance(self.policy.observation_norm, ObservationNorm)
            self._peers.merge_observations(self._own_observation_norm, self.policy.observation_norm)
        counts = self.replay_buffer.transition_counts().to(self.device)
        return self._peers.exchange(self.reward_scale, counts, not self.replay_buffer.empty_tasks())

    def data_counts(self) -> tuple[th.Tensor, int]:
        """
        :return: transitions of each task that gradient steps are drawn from, (T,), and the number of processes whose
            replays hold them
        """
        if self._peers is None:
            return self.replay_buffer.transition_counts().to(self.device), 1
        return self._peers.counts, self._peers.n_processes

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        warm = self.is_warm()
        if warm and self.exploration == "posterior":
            assert isinstance(self._last_obs, np.ndarray) and self._last_episode_starts is not None
            scaled = self.explorer.act(self._last_obs, self._last_episode_starts).cpu().numpy()
            if action_noise is not None:
                scaled = np.clip(scaled + action_noise(), -1, 1)
            return self.policy.unscale_action(scaled), scaled
        return super()._sample_action(0 if warm else self.num_timesteps + 1, action_noise, n_envs)

    def sample_tensor_action(self, rows_per_task: int | None) -> th.Tensor:
        """
        Actions for the last observations where these are on the device: random ones in the warm-up, else the policy's.

        :param rows_per_task: the most environments that play one task, None where it is not known
        :return: (N, A) in [-1, 1], zero where the task has no such dimension
        """
        last: Any = self._last_obs
        if not self.is_warm():
            task_ids = split_task(last, self.one_hot_size)[1]
            mask = self.policy.action_mask[task_ids, 0]
            return (2 * th.rand_like(mask) - 1) * mask
        if self.exploration == "posterior":
            assert self._last_episode_starts is not None
            return self.explorer.act(last, self._last_episode_starts)
        return self.policy.act(last, rows_per_task=rows_per_task)

    @property
    def explorer(self) -> PosteriorExplorer:
        """Acts with drawn weights; made at its first use."""
        if self._explorer is None:
            self._explorer = PosteriorExplorer(self.policy)
        return self._explorer

    def collect_rollouts(self, env: VecEnv, *args: Any, **kwargs: Any) -> RolloutReturn:
        """
        Collect transitions, on the device where the environments live on one.

        Where it is left early, by an error, an interrupt or a callback that stops the training, the environments may be
        a step ahead of what was stored: the next training starts them anew.

        :param env: the training environments
        :param args: as in SB3
        :param kwargs: as in SB3
        :return: what was collected
        """
        is_complete = False
        try:
            if has_tensor_face(env):
                if self._collector is None or self._collector.env is not env:
                    self._collector = TensorCollector(self, env)
                result = self._collector.collect(*args, **kwargs)
            else:
                result = super().collect_rollouts(env, *args, **kwargs)
            is_complete = result.continue_training
        finally:
            if not is_complete:
                self._last_obs = None
        return result

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        assert isinstance(self._last_obs, np.ndarray) and isinstance(new_obs, np.ndarray)
        next_obs = new_obs.copy()
        for env in np.flatnonzero(dones):
            next_obs[env] = infos[env].get("terminal_observation", next_obs[env])
        task_ids = split_task(self._last_obs, self.one_hot_size)[1]
        self._refuse_non_finite(task_ids, reward=reward, observation=next_obs, reset_observation=new_obs)
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos], dtype=bool) & dones
        # A dimension that the task does not have is 0 wherever an action is stored.
        used = np.arange(buffer_action.shape[1]) < np.array(self.policy_action_sizes)[task_ids, None]
        lost = np.array(["worker_restarted" in info for info in infos])
        # What a lost environment's last action led to nobody saw: a row that is not finite is not stored.
        seen_reward = np.where(lost, np.nan, reward)
        columns = (self._last_obs, next_obs, buffer_action * used, seen_reward, dones & ~truncated, truncated)
        self.store(to_tensors(self.replay_buffer.device, *columns))
        self.count(task_ids, reward, dones & ~truncated, truncated & ~lost, infos)
        self.reward_scale.forget_open_episodes(lost)
        self._last_obs = new_obs
        self._last_episode_starts = dones

    def store(self, step: Transitions) -> None:
        """
        Put one step of all environments into the replay and into the statistics of observations.

        :param step: on any device; the device is not waited for
        """
        self.replay_buffer.add_tensors(step)
        norm = self._own_observation_norm or self.policy.observation_norm
        norm.update(*split_task(step.observations, self.one_hot_size))

    def count(
        self,
        task_ids: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        infos: Sequence[dict[str, Any]] | Mapping[int, dict[str, Any]],
    ) -> None:
        """
        Take one step of all environments into the statistics that live outside the device.

        :param task_ids: (N,)
        :param rewards: (N,) raw
        :param terminated: (N,)
        :param truncated: (N,)
        :param infos: of every environment whose episode ended, by its position
        """
        cut = self.reward_scale.update(task_ids, rewards, terminated, truncated)
        if cut and self.verbose:
            names = sorted({self.task_names[task] for task in cut})
            print(f"No end of an episode of {names} for long: their reward scale uses partial returns.")
        self.task_stats.update(task_ids, terminated | truncated, infos)

    @property
    def policy_action_sizes(self) -> list[int]:
        """(T,) action dimensions that the policy uses for each task; all of them without masks."""
        return self.action_sizes if self.mask_actions else [int(np.prod(self.action_space.shape))] * self.n_tasks  # type: ignore[arg-type]

    def _refuse_non_finite(self, task_ids: np.ndarray, **arrays: np.ndarray) -> None:
        for name, values in arrays.items():
            finite = np.isfinite(values.reshape(len(values), -1)).all(1)
            if not finite.all():
                env = int(np.flatnonzero(~finite)[0])
                # What follows in the environments does not follow on what was stored: they start anew.
                self._last_obs = None
                raise ValueError(
                    f"The environment gave a {name.replace('_', ' ')} that is not finite: task "
                    f"{self.task_names[int(task_ids[env])]!r}, environment {env}, step {self.num_timesteps}. "
                    "The transition was not stored and the networks are untouched; mend the environment and go on."
                )
