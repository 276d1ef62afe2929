"""Evaluation of every task with the same number of episodes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.evaluation.task_evaluation import EpisodeResult, TaskEvaluation
from sb3_varshare.tasks.encoding import split_task
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
    :raises ValueError: the environment does not know its tasks and the model does not either
    """
    venv = evaluation_env(env)
    names, one_hot_size, protocol = _tasks_of(model, venv)
    try:
        with model.policy.base_only() if base else nullcontext():
            episodes = _play(model, venv, names, one_hot_size, n_episodes, deterministic)
    finally:
        if venv is not env:
            venv.close()
    return TaskEvaluation(names, episodes, protocol, level)


def _tasks_of(model: Any, venv: VecEnv) -> tuple[list[str], int, dict[str, Any]]:
    if isinstance(model, VarShareSAC):
        return list(model.task_names), model.one_hot_size, model.protocol
    suite = getattr(venv, "suite", None)
    if suite is None:
        raise ValueError(f"Neither {type(model).__name__} nor the environment knows the tasks: use make_multitask_env.")
    return list(suite.task_names), suite.n_tasks, suite.protocol


def _play(
    model: Any, venv: VecEnv, names: list[str], one_hot_size: int, n_episodes: int, deterministic: bool
) -> list[EpisodeResult]:
    """An episode counts for its task until the task has enough; each environment's first ones are taken in order."""
    results: list[EpisodeResult] = []
    played = [0] * len(names)
    returns, lengths = np.zeros(venv.num_envs), np.zeros(venv.num_envs, dtype=int)
    observations: Any = venv.reset()
    while min(played) < n_episodes:
        actions, _ = model.predict(observations, deterministic=deterministic)
        tasks = split_task(observations, one_hot_size)[1]
        observations, rewards, dones, infos = venv.step(actions)
        returns += rewards
        lengths += 1
        for env in np.flatnonzero(dones):
            task = int(tasks[env])
            if played[task] < n_episodes:
                results.append(_result(names[task], played[task], returns[env], lengths[env], infos[env]))
                played[task] += 1
            returns[env], lengths[env] = 0.0, 0
    return results


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
