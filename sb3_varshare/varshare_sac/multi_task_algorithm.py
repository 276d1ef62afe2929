"""What any multi-task agent on SB3's SAC needs besides its losses and its collection: tasks, logs, files."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.save_util import save_to_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import check_for_correct_spaces

from sb3_varshare.replay import TaskReplayBuffer
from sb3_varshare.tasks.encoding import append_task
from sb3_varshare.tasks.spaces import ActionBounds, to_bounds
from sb3_varshare.tasks.suite import TaskDescription, find_tasks, nearest
from sb3_varshare.varshare_sac import saving
from sb3_varshare.varshare_sac.arguments import (
    check_not_normalized,
    check_own_sizes,
    describe_tasks,
    own_observation_sizes,
)
from sb3_varshare.varshare_sac.collection import MultiTaskCollection
from sb3_varshare.varshare_sac.diagnostics import residual_statistics
from sb3_varshare.varshare_sac.policies import MultiTaskPolicy

SelfAlgorithm = TypeVar("SelfAlgorithm", bound="MultiTaskAlgorithm")


class MultiTaskAlgorithm(MultiTaskCollection):
    """
    Base of :class:`~sb3_varshare.VarShareSAC`: everything but the networks' set-up and the gradient step.

    Attributes that describe the tasks, all plain data and saved with the model: ``n_tasks``, ``task_names``,
    ``full_names``, ``action_sizes``, ``action_bounds``, ``observation_sizes`` (empty where nobody knows them),
    ``protocol``, ``one_hot_size``. The protocol is that of the last training. ``base_frozen``, saved too,
    tells whether what the tasks share is left as it is, see :func:`sb3_varshare.growth.specialise`.
    """

    base_frozen: bool = False
    full_names: list[str]
    action_bounds: list[ActionBounds] | None
    observation_sizes: list[int]
    # Of the networks that sb3_varshare.prune pruned, the weights that are left in each linear layer.
    kept_weights: dict[str, list[int]] | None = None

    def _describe_tasks(self, n_tasks: int | None) -> None:
        if self.env is None:
            return
        check_not_normalized(self.env)
        description, self.one_hot_size = describe_tasks(self.env, n_tasks)
        self._adopt(description)

    def _adopt(self, description: TaskDescription) -> None:
        self.n_tasks = len(description.names)
        self.task_names = list(description.names)
        self.full_names = list(description.full_names)
        self.action_sizes = list(description.action_sizes)
        self.action_bounds = None if description.action_bounds is None else list(description.action_bounds)
        self.observation_sizes = own_observation_sizes(description, self.observation_space)
        self.protocol = description.protocol

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed all generators of the process, and the environments unless they were made with a seed of their own.

        :param seed: ``None`` seeds nothing
        """
        env = self.env
        if env is not None and getattr(env.unwrapped, "has_own_seed", False):
            # SB3 seeds whatever environment the agent has.
            self.env = None
        super().set_random_seed(seed)
        self.env = env

    def task_id(self, task: str | int) -> int:
        """
        :param task: a name, with or without its source, or an index
        :return: the index
        :raises ValueError: there is no such task
        """
        for names in (self.task_names, self.full_names):
            if task in names:
                return names.index(task)
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
        :return: the action (A_t,) or (N, A_t) as the task's own environment takes it, of its length and within its
            bounds, and None (SB3's recurrent state)
        :raises ValueError: the task is unknown, the observation too long, or the bounds are not known
        """
        task_id, size = self.task_id(task), self.policy.observation_size
        rows = np.atleast_2d(np.asarray(observation, dtype=np.float32))
        if rows.shape[-1] > size:
            raise ValueError(f"Expected an observation of at most {size} numbers without a one-hot, got {rows.shape}.")
        encoded = np.stack(
            [append_task(row, task_id, self.one_hot_size, size) if self.one_hot_size else row for row in rows]
        )
        actions, state = self.predict(encoded if np.ndim(observation) > 1 else encoded[0], deterministic=deterministic)
        return self._as_own_action(actions, task_id), state

    def _as_own_action(self, actions: np.ndarray, task_id: int) -> np.ndarray:
        if self.action_bounds is None:
            # No suite stands between the agent and the environment: these are the environment's actions.
            return actions
        if not self.action_bounds:
            raise ValueError(
                "The model's file is of a version that did not keep the bounds of the tasks' actions: load it with "
                "env=, a multi-task env of the same tasks, and save it again, or use predict()."
            )
        return to_bounds(actions, *self.action_bounds[task_id])

    # Logs

    def dump_logs(self) -> None:
        """Write log data: SB3's, and per task what :mod:`docs/logging` lists."""
        self.task_stats.record(self.logger)
        restarts = 0 if self.env is None else getattr(self.env.unwrapped, "worker_restarts", 0)
        if restarts:
            self.logger.record("rollout/worker_restarts", restarts)
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
        found = None if self.env is None else find_tasks(self.env)
        if found is not None:
            # The environment may be another than the file's.
            self._adopt(found)
        super().learn(
            total_timesteps,
            callback,
            4 * self.n_envs if log_interval is None else log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
        )
        if self._collector is not None:
            self._collector.flush()
        return self

    # Files

    def _excluded_save_params(self) -> list[str]:
        runtime = ["lr_schedule", "target_entropy_tensor", "task_stats", "_explorer", "_collector", "memory_need"]
        return [*super()._excluded_save_params(), *runtime, "_peers", "_own_observation_norm"]

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
        :raises ValueError: it holds no replay, or transitions of other tasks or spaces
        """
        expected, device = self.replay_buffer, self.replay_buffer.device
        try:
            super().load_replay_buffer(path, truncate_last_traj)
            found = self.replay_buffer
        except AssertionError as error:
            raise ValueError(f"{path} holds no replay buffer.") from error
        finally:
            self.replay_buffer = expected
        for name in ("n_tasks", "one_hot_size", "observation_space", "action_space", "n_steps", "gamma"):
            ours, theirs = getattr(expected, name), getattr(found, name, None)
            if ours != theirs:
                raise ValueError(f"The replay in the file has {name} {theirs}, the agent has {ours}.")
        found.device = device
        # What the environments of the file had begun does not go on in those of the agent.
        found.forget_open_episodes()
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
        noise = data.get("action_noise")
        if isinstance(noise, VectorizedActionNoise) and noise.n_envs != data["n_envs"]:
            # SB3 makes one for each environment anew, but not of one that is made already.
            data["action_noise"] = noise.base_noise
        cls._complete(data, env)
        policy = data.pop("policy_class")
        model = cls(policy, env, device=device, _init_setup_model=False)  # type: ignore[arg-type]
        unknown = set(kwargs) - set(model.__dict__)
        if unknown:
            raise TypeError(f"{cls.__name__} has no arguments {sorted(unknown)}.")
        model.__dict__.update(data)
        model._setup_model()
        saving.restore(model, path, device, print_system_info, replaced)
        return model

    @staticmethod
    def _complete(data: dict[str, Any], env: Any) -> None:
        """What files of older versions lack: from the environment or, as an empty list, not known."""
        found = None if env is None else find_tasks(env)
        data.setdefault("full_names", list(found.full_names) if found else [])
        sizes = own_observation_sizes(found, data["observation_space"]) if found else []
        data.setdefault("observation_sizes", sizes)
        bounds = found.action_bounds if found else () if data["protocol"] else None
        data.setdefault("action_bounds", None if bounds is None else list(bounds))

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
        if found is not None:
            known = {"actions": data["action_sizes"], "observations": data.get("observation_sizes", [])}
            sizes = own_observation_sizes(found, wrapped.observation_space)
            check_own_sizes(data["task_names"], known, {"actions": found.action_sizes, "observations": sizes})
        return wrapped

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Go on with another environment of the same spaces, tasks and number.

        :param env: the environment
        :param force_reset: reset it before training goes on
        :raises ValueError: its spaces or tasks differ
        """
        super().set_env(self._check_env(env, self.__dict__), force_reset)
