"""What any multi-task agent on SB3's SAC needs besides its losses: tasks, collection, logs, files."""

from __future__ import annotations

import io
import pathlib
from abc import ABC
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.save_util import save_to_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import check_for_correct_spaces

from sb3_varshare.replay import RewardScale, TaskReplayBuffer
from sb3_varshare.tasks.encoding import append_task, check_one_hot, split_task
from sb3_varshare.tasks.suite import find_tasks, nearest
from sb3_varshare.varshare_sac import saving
from sb3_varshare.varshare_sac.arguments import check_not_normalized, describe_tasks
from sb3_varshare.varshare_sac.diagnostics import residual_statistics
from sb3_varshare.varshare_sac.exploration import PosteriorExplorer
from sb3_varshare.varshare_sac.policies import MultiTaskPolicy
from sb3_varshare.varshare_sac.task_stats import TaskStats

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="MultiTaskAlgorithm")


class MultiTaskAlgorithm(SAC, ABC):
    """
    Base of :class:`~sb3_varshare.VarShareSAC`: everything but the networks' set-up and the gradient step.

    Attributes that describe the tasks, all plain data and saved with the model: ``n_tasks``, ``task_names``,
    ``action_sizes``, ``protocol``, ``one_hot_size``.
    """

    policy: MultiTaskPolicy  # type: ignore[assignment]
    replay_buffer: TaskReplayBuffer
    reward_scale: RewardScale
    exploration: str
    mask_actions: bool
    _explorer: PosteriorExplorer | None

    def _describe_tasks(self, n_tasks: int | None) -> None:
        if self.env is None:
            return
        check_not_normalized(self.env)
        description, self.one_hot_size = describe_tasks(self.env, n_tasks)
        self.n_tasks = len(description.names)
        self.task_names = list(description.names)
        self.action_sizes = list(description.action_sizes)
        self.protocol = description.protocol

    def task_id(self, task: str | int) -> int:
        """
        :param task: a name, with or without its source, or an index
        :return: the index
        :raises ValueError: there is no such task
        """
        if isinstance(task, str) and task not in self.task_names and task.rpartition("/")[2] in self.task_names:
            task = task.rpartition("/")[2]
        if task in self.task_names:
            return self.task_names.index(task)
        if isinstance(task, int | np.integer) and 0 <= task < self.n_tasks:
            return int(task)
        raise ValueError(f"Unknown task {task!r}; {nearest(str(task), self.task_names)}")

    def predict_task(
        self, observation: np.ndarray, task: str | int, deterministic: bool = True
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Action of one task from its own observation: no one-hot to build by hand.

        :param observation: (D,) or (N, D), or shorter where the task has a smaller observation
        :param task: a name or an index
        :param deterministic: the mean of the policy instead of a draw from it
        :return: the action (A,) or (N, A) in the model's action space, and None (SB3's recurrent state)
        :raises ValueError: the task is unknown or the observation too long
        """
        task_id, size = self.task_id(task), self.policy.observation_size
        rows = np.atleast_2d(np.asarray(observation, dtype=np.float32))
        if rows.shape[-1] > size:
            raise ValueError(f"Expected an observation of at most {size} numbers without a one-hot, got {rows.shape}.")
        encoded = np.stack(
            [append_task(row, task_id, self.one_hot_size, size) if self.one_hot_size else row for row in rows]
        )
        return self.predict(encoded if np.ndim(observation) > 1 else encoded[0], deterministic=deterministic)

    # Collection

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if reset_num_timesteps or self._last_obs is None:
            self._forget_open_episodes()
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        assert isinstance(self._last_obs, np.ndarray)
        check_one_hot(self._last_obs, self.one_hot_size)
        self._refuse_non_finite(split_task(self._last_obs, self.one_hot_size)[1], first_observation=self._last_obs)
        return result

    def _forget_open_episodes(self) -> None:
        """What is open when the environments start anew will never end."""
        self.replay_buffer.forget_open_episodes()
        self.reward_scale.forget_open_episodes()
        self.task_stats = TaskStats(self.task_names, self._stats_window_size)

    def is_warm(self) -> bool:
        """Whether the warm-up is over: enough transitions, and every task has a reward scale."""
        return self.num_timesteps > self.learning_starts and not self.reward_scale.missing_tasks()

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        warm = self.is_warm()
        if warm and self.exploration == "posterior":
            assert isinstance(self._last_obs, np.ndarray) and self._last_episode_starts is not None
            scaled = self.explorer.act(self._last_obs, self._last_episode_starts)
            if action_noise is not None:
                scaled = np.clip(scaled + action_noise(), -1, 1)
            return self.policy.unscale_action(scaled), scaled
        return super()._sample_action(0 if warm else self.num_timesteps + 1, action_noise, n_envs)

    @property
    def explorer(self) -> PosteriorExplorer:
        """Acts with drawn weights; made at its first use."""
        if self._explorer is None:
            self._explorer = PosteriorExplorer(self.policy)
        return self._explorer

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
        observations, task_ids = split_task(self._last_obs, self.one_hot_size)
        self._refuse_non_finite(task_ids, reward=reward, observation=next_obs, reset_observation=new_obs)
        truncated = np.array([info.get("TimeLimit.truncated", False) for info in infos]) & dones
        # A dimension that the task does not have is 0 wherever an action is stored.
        used = np.arange(buffer_action.shape[1]) < np.array(self.policy_action_sizes)[task_ids, None]
        replay_buffer.add(self._last_obs, next_obs, buffer_action * used, reward, dones, infos)
        self.policy.observation_norm.update(observations, task_ids)
        cut = self.reward_scale.update(task_ids, reward, dones & ~truncated, truncated)
        if cut and self.verbose:
            names = sorted({self.task_names[task] for task in cut})
            print(f"No end of an episode of {names} for long: their reward scale uses partial returns.")
        self.task_stats.update(task_ids, dones, infos)
        self._last_obs = new_obs
        self._last_episode_starts = dones

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

    # Logs

    def dump_logs(self) -> None:
        """Write log data: SB3's, and per task what :mod:`docs/logging` lists."""
        self.task_stats.record(self.logger)
        for name, network in (("actor", self.policy.actor), ("critic", self.policy.critic.net)):
            statistics = residual_statistics(network)
            for key, values in statistics.items():
                self.logger.record(f"train/{name}_{key}", float(values.mean()))
                for task, value in zip(self.task_names, values.tolist(), strict=True):
                    self.logger.record(f"{name}_{key}/{task}", value, exclude="stdout")
        super().dump_logs()

    def learn(
        self: SelfAlgorithm,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = None,
        tb_log_name: str = "VarShareSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfAlgorithm:
        """
        Train.

        :param total_timesteps: transitions of all tasks together
        :param callback: called at every step of the environments
        :param log_interval: episodes between logs; by default four for every environment
        :param tb_log_name: name of the run for TensorBoard
        :param reset_num_timesteps: count from zero; otherwise ``total_timesteps`` are added to what was done
        :param progress_bar: show a progress bar with tqdm and rich
        :return: the agent
        """
        return super().learn(
            total_timesteps,
            callback,
            4 * self.n_envs if log_interval is None else log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
        )

    # Files

    def _excluded_save_params(self) -> list[str]:
        runtime = ["lr_schedule", "target_entropy_tensor", "task_stats", "_explorer", "memory_need"]
        return [*super()._excluded_save_params(), *runtime]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "reward_scale"], variables

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the agent without its replay buffer; a file that is replaced stays whole until the new one is.

        :param path: where to; ``.zip`` is added where the name has no suffix
        :param exclude: attributes to leave out besides the usual
        :param include: attributes to keep that are usually left out
        """
        names, variables = self._get_torch_save_params()
        left_out = {*(exclude or ()), *self._excluded_save_params()} - set(include or ())
        left_out |= {name.split(".")[0] for name in (*names, *variables)}
        data = {name: saving.encode(value) for name, value in self.__dict__.items() if name not in left_out}
        if self.policy_class is MultiTaskPolicy:
            data["policy_class"] = "MultiTaskPolicy"
        if self.replay_buffer_class is TaskReplayBuffer:
            data["replay_buffer_class"] = None
        tensors = {name: getattr(self, name) for name in variables}

        def write(target: io.BufferedIOBase) -> None:
            save_to_zip_file(target, data=data, params=self.get_parameters(), pytorch_variables=tensors)

        if isinstance(path, str | pathlib.Path):
            path = pathlib.Path(path)
            saving.write_atomically(path if path.suffix else path.with_suffix(".zip"), write)
        else:
            write(path)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a replay buffer. It is a pickle, which can run any code: load only what you trust.

        :param path: the file
        :param truncate_last_traj: without effect, as in SB3 for all buffers but that of HER
        :raises ValueError: it holds transitions of other tasks or spaces
        """
        expected, device = self.replay_buffer, self.replay_buffer.device
        super().load_replay_buffer(path, truncate_last_traj)
        found, self.replay_buffer = self.replay_buffer, expected
        for name in ("n_tasks", "one_hot_size", "observation_space", "action_space", "n_steps", "gamma"):
            ours, theirs = getattr(expected, name), getattr(found, name, None)
            if ours != theirs:
                raise ValueError(f"The replay in the file has {name} {theirs}, the agent has {ours}.")
        found.device = device
        self.replay_buffer = found

    @classmethod
    def load(
        cls: type[SelfAlgorithm],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        trusted: bool = False,
        **kwargs: Any,
    ) -> SelfAlgorithm:
        """
        Load an agent; no code from the file runs unless it is trusted.

        :param path: the model file
        :param env: environment to go on with; its spaces and tasks must be those of the model
        :param device: where the networks shall live
        :param custom_objects: attributes to use instead of those in the file
        :param print_system_info: print the system that the file was saved on and this one
        :param force_reset: reset the environment before training goes on
        :param trusted: allow pickled attributes, which can run any code
        :param kwargs: constructor arguments to change
        :return: a new agent
        :raises ValueError: the file is damaged or not trusted, or the environment's spaces or tasks differ
        """
        replaced = {**(custom_objects or {}), **kwargs}
        data = {**saving.read_data(path, trusted, replaced), **replaced}
        if isinstance(path, str | pathlib.Path):
            path = saving.resolve_path(path)
        if env is not None:
            env = cls._check_env(env, data)
            data["n_envs"] = env.num_envs  # type: ignore[union-attr]
            if force_reset:
                data["_last_obs"] = None
        policy = data.pop("policy_class")
        model = cls(policy, env, device=device, _init_setup_model=False)  # type: ignore[arg-type]
        unknown = set(kwargs) - set(model.__dict__)
        if unknown:
            raise TypeError(f"{cls.__name__} has no arguments {sorted(unknown)}.")
        model.__dict__.update(data)
        model._setup_model()
        saving.restore(model, path, device, print_system_info, replaced)
        return model

    @classmethod
    def _check_env(cls, env: GymEnv, data: dict[str, Any]) -> Any:
        wrapped: Any = cls._wrap_env(env, data["verbose"])
        check_not_normalized(wrapped)
        found = find_tasks(wrapped)
        if found is not None and list(found.names) != data["task_names"]:
            raise ValueError(
                f"The model knows the tasks {data['task_names']}, the environment has {list(found.names)}, in order."
            )
        check_for_correct_spaces(wrapped, data["observation_space"], data["action_space"])
        return wrapped

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Go on with another environment of the same spaces, tasks and number.

        :param env: the environment
        :param force_reset: reset it before training goes on
        :raises ValueError: its spaces or tasks differ
        """
        super().set_env(self._check_env(env, self.__dict__), force_reset)
