"""Evaluation of every task with the same number of episodes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.evaluation.task_evaluation import EpisodeResult, TaskEvaluation
from sb3_varshare.tasks.encoding import split_task
from sb3_varshare.tasks.suite import TaskDescription, find_tasks
from sb3_varshare.tasks.vec_env import MultiTaskVecEnv
from sb3_varshare.varshare_sac import VarShareSAC


def evaluation_env(env: Any) -> VecEnv:
    """
    Environments to evaluate on: for a multi-task env a new set on streams that training never sees, one per task.

    :param env: the training environment; one of another kind is returned as it is
    """
    inner = env.unwrapped if isinstance(env, VecEnv) else env
    return inner.evaluation_env() if isinstance(inner, MultiTaskVecEnv) and inner.purpose == "train" else env


def evaluate_tasks(
    model: Any,
    env: Any,
    n_episodes: int = 10,
    deterministic: bool = True,
    base: bool = False,
    level: float = 0.95,
) -> TaskEvaluation:
    """
    Play every task.

    Training environments are not touched: their evaluation twins are built, used and closed.

    :param model: a :class:`~sb3_varshare.VarShareSAC` or, where ``env`` knows its tasks, any SB3 model
    :param env: a multi-task ``VecEnv``, or any whose observations end in the one-hot that the model was trained with
    :param n_episodes: of each task
    :param deterministic: act with the mean of the policy
    :param base: act with the shared base alone, phi = 0
    :param level: coverage of the intervals
    :return: episodes, means and intervals per task
    :raises ValueError: nobody knows the tasks, the model knows others, or there is no base to evaluate
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, got {n_episodes}.")
    if base and not getattr(model.policy, "has_base", False):
        raise ValueError("base=True needs a shared base, which neither independent networks nor agents of SB3 have.")
    venv = evaluation_env(env)
    try:
        tasks, one_hot_size = _tasks_of(model, venv)
        names = list(tasks.names)
        with model.policy.base_only() if base else nullcontext():
            episodes = _play(model, venv, names, one_hot_size, n_episodes, deterministic)
    finally:
        if venv is not env:
            venv.close()
    return TaskEvaluation(names, episodes, tasks.protocol, level)


def _tasks_of(model: Any, venv: VecEnv) -> tuple[TaskDescription, int]:
    found = find_tasks(venv)
    if not isinstance(model, VarShareSAC):
        if found is None:
            raise ValueError(
                f"Neither {type(model).__name__} nor the environment knows the tasks: use make_multitask_env."
            )
        return found, len(found.names)
    if found is None:
        return TaskDescription(tuple(model.task_names), tuple(model.action_sizes), model.protocol), model.one_hot_size
    if list(found.names) != model.task_names:
        raise ValueError(
            f"The model knows the tasks {model.task_names}, the environment has {list(found.names)}, in order."
        )
    return found, model.one_hot_size


def _play(
    model: Any, venv: VecEnv, names: list[str], one_hot_size: int, n_episodes: int, deterministic: bool
) -> list[EpisodeResult]:
    """
    The first episodes of every task count, in the order in which they begin.

    In the order in which they end, short episodes would count more where several environments play one task.
    """
    results: list[EpisodeResult] = []
    begun = [0] * len(names)
    counted: list[int | None] = [None] * venv.num_envs
    starts = np.ones(venv.num_envs, dtype=bool)
    returns, lengths = np.zeros(venv.num_envs), np.zeros(venv.num_envs, dtype=int)
    observations: Any = venv.reset()
    while len(results) < n_episodes * len(names):
        tasks = split_task(observations, one_hot_size)[1]
        for env in np.flatnonzero(starts):
            task = int(tasks[env])
            counted[env] = begun[task] if begun[task] < n_episodes else None
            begun[task] += 1
            returns[env], lengths[env] = 0.0, 0
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, rewards, starts, infos = venv.step(actions)
        returns += rewards
        lengths += 1
        for env in np.flatnonzero(starts):
            number = counted[env]
            if number is not None:
                results.append(_result(names[int(tasks[env])], number, returns[env], lengths[env], infos[env]))
    return sorted(results, key=lambda result: (names.index(result.task), result.episode))


def _result(task: str, episode: int, episode_return: float, length: int, info: dict[str, Any]) -> EpisodeResult:
    success = info.get("is_success")
    last = info.get("success_last")
    return EpisodeResult(
        task,
        episode,
        float(episode_return),
        int(length),
        None if success is None else bool(success),
        None if last is None else bool(last),
    )
