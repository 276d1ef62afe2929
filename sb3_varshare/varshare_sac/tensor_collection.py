"""Collection from environments on a device: nothing passes through numpy, and no step waits for the device."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.tasks.encoding import split_task
from sb3_varshare.types import TensorStep, Transitions
from sb3_varshare.varshare_sac.step_recorder import StepRecord, StepRecorder

# Steps whose rewards and ends of episodes wait on the device. Reward scales and logs are late by at most as many.
KEPT_STEPS = 64


def has_tensor_face(env: VecEnv) -> bool:
    """
    Whether an environment can be stepped on tensors. A wrapper sees only what passes through numpy, so that wrapped
    environments are stepped there.

    :param env: the training environments
    """
    return env is env.unwrapped and hasattr(env, "step_tensor")


class ReadOnDemand:
    """
    A tensor that is an array to whoever asks numpy for one, as SB3's callbacks do; only then the device is waited for.

    :param tensor: on any device
    """

    def __init__(self, tensor: th.Tensor) -> None:
        self.tensor = tensor

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.tensor.cpu().numpy(), dtype)


class TensorCollector:
    """
    Steps the environments of an agent and stores what they give.

    During the warm-up the agent asks after every step whether each task has ended an episode, which waits for the
    device; afterwards no step does.

    :param model: the agent
    :param env: its environments
    """

    def __init__(self, model: Any, env: Any) -> None:
        self.model, self.env = model, env
        self.recorder = StepRecorder(KEPT_STEPS)
        self._started = time.perf_counter()
        low, high = (
            th.as_tensor(bound, device=model.device) for bound in (env.action_space.low, env.action_space.high)
        )
        self._low, self._range = low, high - low

    def collect(
        self,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: Any = None,
        action_noise: Any = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """
        :param callback: called at every step of the environments; its ``new_obs`` and ``rewards`` are tensors, its
            ``dones`` a :class:`ReadOnDemand`, its ``infos`` empty
        :param train_freq: how many steps to take
        :param replay_buffer: not used, the agent knows its own
        :param action_noise: must be None
        :param learning_starts: not used, the agent knows when its warm-up ends
        :param log_interval: episodes between logs, written when the statistics are next read
        :return: what was collected; no number of episodes, which only the device knows
        :raises ValueError: there is action noise, training is counted in episodes, or the environments gave a number
            that is not finite
        """
        model, n_envs = self.model, self.env.num_envs
        if action_noise is not None:
            raise ValueError(
                "action_noise draws numpy arrays; leave it out on a tensor env, the policy is random itself."
            )
        if train_freq.unit != TrainFrequencyUnit.STEP:
            raise ValueError("train_freq must count steps on a tensor env, got episodes; use train_freq=<steps>.")
        model.policy.set_training_mode(False)
        callback.on_rollout_start()
        for n_steps in range(1, train_freq.frequency + 1):
            scaled = self.act()
            step = self.step(scaled)
            model.num_timesteps += n_envs
            names = {"new_obs": step.observations, "rewards": step.rewards, "infos": ()}
            callback.update_locals({**names, "dones": ReadOnDemand(step.terminated | step.truncated)})
            if not callback.on_step():
                return RolloutReturn(n_steps * n_envs, 0, continue_training=False)
            self.store(scaled, step)
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
            is_waiting = model.num_timesteps > model.learning_starts and model.reward_scale.missing_tasks()
            if self.recorder.is_full or is_waiting:
                self.flush(log_interval)
        callback.on_rollout_end()
        return RolloutReturn(train_freq.frequency * n_envs, 0, continue_training=True)

    @th.no_grad()
    def act(self) -> th.Tensor:
        """(N, A) in [-1, 1]."""
        model = self.model
        for name in ("_last_obs", "_last_episode_starts"):
            if not isinstance(getattr(model, name), th.Tensor):
                setattr(model, name, th.as_tensor(getattr(model, name), device=model.device))
        actions: th.Tensor = model.sample_tensor_action(getattr(self.env, "rows_per_task", None))
        return actions

    @th.no_grad()
    def step(self, scaled: th.Tensor) -> TensorStep:
        """
        :param scaled: (N, A) in [-1, 1]
        :return: on the agent's device
        """
        actions = self._low + (scaled + 1) / 2 * self._range
        step: TensorStep = self.env.step_tensor(actions)
        moved = {name: t.to(self.model.device) for name, t in step._asdict().items() if t is not None}
        return TensorStep(**moved)

    @th.no_grad()
    def store(self, scaled: th.Tensor, step: TensorStep) -> None:
        """
        :param scaled: (N, A) in [-1, 1]
        :param step: what it led to
        """
        model, last = self.model, self.model._last_obs
        ends = step.terminated, step.truncated
        model.store(Transitions(last, scaled, step.rewards, step.final_observations, *ends))
        self.recorder.write(split_task(last, model.one_hot_size)[1], step)
        model._last_obs, model._last_episode_starts = step.observations, step.terminated | step.truncated

    def flush(self, log_interval: int | None = None) -> None:
        """
        Read the steps that wait on the device into the statistics of the agent.

        :param log_interval: episodes between logs
        :raises ValueError: the environments gave a number that is not finite
        """
        model, before = self.model, self.model._episode_num
        for record in self.recorder.read():
            self._refuse_non_finite(record)
            infos = record.infos(round(time.perf_counter() - self._started, 6))
            ends = record.terminated, record.truncated
            model.count(record.task_ids, record.rewards, *ends, infos)
            model._episode_num += len(infos)
            model.ep_info_buffer.extend([info["episode"] for info in infos.values()])
            model.ep_success_buffer.extend([info["is_success"] for info in infos.values() if "is_success" in info])
        if log_interval is not None and model._episode_num // log_interval > before // log_interval:
            model.dump_logs()

    def _refuse_non_finite(self, record: StepRecord) -> None:
        if record.finite.all():
            return
        env = int(np.flatnonzero(~record.finite)[0])
        # What follows in the environments does not follow on what was stored: they start anew.
        self.model._last_obs = None
        task = self.model.task_names[int(record.task_ids[env])]
        raise ValueError(
            f"The environment gave a reward or an observation that is not finite: task {task!r}, environment {env}, "
            f"within the last {KEPT_STEPS} steps before step {self.model.num_timesteps}. The transition was not stored "
            "and the networks are untouched; mend the environment and go on."
        )
