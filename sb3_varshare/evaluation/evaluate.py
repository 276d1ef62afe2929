"""Evaluation of every task with the same number of episodes."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.evaluation.evaluation_env import evaluation_env, rewind
from sb3_varshare.evaluation.task_evaluation import EpisodeResult, TaskEvaluation
from sb3_varshare.tasks.encoding import split_task
from sb3_varshare.tasks.suite import TaskDescription, find_tasks
from sb3_varshare.varshare_sac import VarShareSAC

IDLE_EPISODES_PER_TASK = 100
MAX_EPISODE_STEPS = 100_000


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

    Training environments are not touched: their evaluation twins are built, used and closed. Multi-task envs play the
    same first episodes of their evaluation streams at each call.

    :param model: a :class:`~sb3_varshare.VarShareSAC` or, where ``env`` knows its tasks, any SB3 model
    :param env: a multi-task ``VecEnv``, or any other than the model's own whose observations end in the one-hot that
        the model was trained with
    :param n_episodes: of each task
    :param deterministic: act with the mean of the policy
    :param base: act with the shared base alone, phi = 0
    :param level: coverage of the intervals
    :return: episodes, means and intervals per task
    :raises ValueError: nobody knows the tasks, the model knows others, there is no base to evaluate, or training
        environments have no twin
    :raises RuntimeError: the environments do not play some task, or an episode does not end
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, got {n_episodes}.")
    if base and not getattr(model.policy, "has_base", False):
        raise ValueError("base=True needs a shared base, which neither independent networks nor agents of SB3 have.")
    venv = evaluation_env(env, model)
    try:
        rewind(venv)
        tasks, one_hot_size = _tasks_of(model, venv)
        names = list(tasks.names)
        with model.policy.base_only() if base else nullcontext():
            episodes = _play(model, venv, names, one_hot_size, n_episodes, deterministic)
    finally:
        if venv is not env:
            venv.close()
    trained = model.protocol if isinstance(model, VarShareSAC) else None
    return TaskEvaluation(names, episodes, tasks.protocol, level, trained)


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

    In the order in which they end, short episodes would count more where several environments play one task. The
    number of an episode that was lost with its worker is given to the next one.

    :raises RuntimeError: the environments do not play some task, or an episode does not end
    """
    results: list[EpisodeResult] = []
    begun = [0] * len(names)
    numbers = [deque(range(n_episodes)) for _ in names]
    counted: list[int | None] = [None] * venv.num_envs
    starts = np.ones(venv.num_envs, dtype=bool)
    returns, lengths = np.zeros(venv.num_envs), np.zeros(venv.num_envs, dtype=int)
    observations: Any = venv.reset()
    idle = 0
    while len(results) < n_episodes * len(names):
        tasks = split_task(observations, one_hot_size)[1]
        for env in np.flatnonzero(starts):
            task = int(tasks[env])
            counted[env] = numbers[task].popleft() if numbers[task] else None
            begun[task] += 1
            returns[env], lengths[env] = 0.0, 0
        # Episodes begun since the last one that counts was under way.
        idle = 0 if any(number is not None for number in counted) else idle + int(starts.sum())
        _refuse_endless(names, begun, n_episodes, idle, lengths, tasks)
        actions, _ = model.predict(observations, deterministic=deterministic)
        observations, rewards, starts, infos = venv.step(actions)
        returns += rewards
        lengths += 1
        for env in np.flatnonzero(starts):
            number, task = counted[env], int(tasks[env])
            if number is not None and "worker_restarted" in infos[env]:
                numbers[task].appendleft(number)
            elif number is not None:
                results.append(_result(names[task], number, returns[env], lengths[env], infos[env]))
    return sorted(results, key=lambda result: (names.index(result.task), result.episode))


def _refuse_endless(
    names: list[str], begun: list[int], n_episodes: int, idle: int, lengths: np.ndarray, tasks: np.ndarray
) -> None:
    """
    An environment not of this package may leave a task out, and any may have an episode without an end.

    Where tasks are drawn at random, one with a tenth of the usual share is overlooked with a probability of exp(-10).
    """
    if idle > IDLE_EPISODES_PER_TASK * len(names):
        missing = {name: count for name, count in zip(names, begun, strict=True) if count < n_episodes}
        raise RuntimeError(
            f"Expected {n_episodes} episodes of every task, but the environments began {idle} episodes in a row of "
            f"tasks that have theirs already, with these to come (episodes begun): {missing}. "
            "Give evaluate_tasks environments that play all tasks of the model."
        )
    if lengths.max() >= MAX_EPISODE_STEPS:
        task = names[int(tasks[lengths.argmax()])]
        raise RuntimeError(
            f"No end of an episode of task {task!r} after {MAX_EPISODE_STEPS:,} steps: give its environment a time "
            "limit, with horizon= or gymnasium.wrappers.TimeLimit."
        )


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
