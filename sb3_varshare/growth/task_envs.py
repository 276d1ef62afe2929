"""The environments of an agent with one task more, with one less, or of a new task alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.growth.task_axes import Keep
from sb3_varshare.tasks.protocol import TASKS
from sb3_varshare.tasks.registry import make_suite
from sb3_varshare.tasks.suite import TaskDescription, TaskSpec, TaskSuite
from sb3_varshare.tasks.vec_env import MultiTaskVecEnv
from sb3_varshare.varshare_sac import VarShareSAC

MakeTask = Callable[[], gym.Env] | TaskSpec
"""What a new task is given as: a callable that builds its env, as for ``make_multitask_env``, or a ready spec."""


def new_task(model: VarShareSAC, name: str | None, make_env: MakeTask) -> TaskSpec:
    """
    The spec of a new task. An env that is given by a callable has the time limit of the agent's other own envs.

    :param model: the agent
    :param name: of the task; by default the spec's
    :param make_env: a callable that builds its env, or its spec
    :raises ValueError: it is neither, or larger than what the agent's networks were made for
    """
    if isinstance(make_env, TaskSpec):
        spec = make_env if name is None else dataclasses.replace(make_env, name=name)
    elif callable(make_env):
        horizon = model.protocol.get("custom", {}).get("horizon")
        options: dict[str, Any] = {"horizon": horizon} if isinstance(horizon, int) else {}
        (spec,) = make_suite({name or "new": make_env}, **options).tasks
    else:
        raise ValueError(
            f"Expected a callable that builds the env of the new task, or a TaskSpec, got {make_env!r}; write "
            "lambda: ... before an env."
        )
    policy = model.policy
    for what, size, most in (
        ("observations", spec.observation_size, policy.observation_size),
        ("actions", spec.action_size, policy.action_size),
    ):
        if size > most:
            raise ValueError(
                f"Task {spec.full_name!r} has {what} of {size} numbers, the agent's networks take at most {most}, the "
                "largest of the tasks that it was made with. Shorten them by a wrapper, or train an agent that has "
                "room: make_multitask_env(dataclasses.replace(suite, padded_sizes=("
                f"{max(spec.observation_size, policy.observation_size)}, "
                f"{max(spec.action_size, policy.action_size)})))."
            )
    return spec


def grown_env(env: VecEnv, spec: TaskSpec) -> MultiTaskVecEnv:
    """
    The envs of a suite with one task more, which gets as many copies as the others have on average.

    :param env: of an agent; it stays as it is
    :param spec: the new task
    """
    inner = _rebuildable(env)
    suite = inner.suite
    merged = make_suite([*suite.tasks, spec]).protocol
    source = spec.source.partition("/")[0]
    protocol = {**suite.protocol, **{name: merged[name] for name in (source,) if name in merged}}
    mean = Fraction(inner.num_envs, inner.n_tasks)
    shares = [*_shares(inner), mean if mean < 1 else Fraction(round(mean))]
    return _rebuilt(inner, dataclasses.replace(suite, tasks=(*suite.tasks, spec), protocol=protocol), shares)


def shrunk_env(env: VecEnv, task_id: int) -> MultiTaskVecEnv:
    """
    The envs of a suite with one task less, of which every other keeps its copies.

    :param env: of an agent; it stays as it is
    :param task_id: of the task that goes
    """
    inner = _rebuildable(env)
    suite = inner.suite
    tasks = tuple(spec for task, spec in enumerate(suite.tasks) if task != task_id)
    sources = {spec.source.partition("/")[0] for spec in tasks}
    gone = {suite.tasks[task_id].source.partition("/")[0]} - sources
    protocol = {name: value for name, value in suite.protocol.items() if name not in gone}
    # The networks stay as wide as the task that goes may have asked for.
    sizes = suite.observation_size, suite.action_size
    shares = [share for task, share in enumerate(_shares(inner)) if task != task_id]
    smaller = dataclasses.replace(suite, tasks=tasks, protocol=protocol)
    if (smaller.observation_size, smaller.action_size) != sizes:
        smaller = dataclasses.replace(smaller, padded_sizes=sizes)
    return _rebuilt(inner, smaller, shares)


def single_task_env(
    model: VarShareSAC, spec: TaskSpec, n_envs: int | None = None, seed: int | None = None
) -> MultiTaskVecEnv:
    """
    Envs of one task alone, padded to the sizes of an agent's networks.

    :param model: the agent
    :param spec: the task
    :param n_envs: copies; by default as many as the agent has of each of its tasks
    :param seed: root of all random streams
    """
    suite = make_suite([spec])
    sizes = model.policy.observation_size, model.policy.action_size
    if (suite.observation_size, suite.action_size) != sizes:
        suite = dataclasses.replace(suite, padded_sizes=sizes)
    n_envs = max(1, round(model.n_envs / model.n_tasks)) if n_envs is None else n_envs
    return MultiTaskVecEnv(suite, n_envs, seed)


def described(model: VarShareSAC, keep: Keep, spec: TaskSpec | None = None) -> TaskDescription:
    """
    The tasks of an agent whose envs do not tell them.

    :param model: the agent that they come from
    :param keep: position in it of each task, None for the new one
    :param spec: the new task
    """
    kept = [task for task in keep if task is not None]
    new = [spec] if spec is not None and None in keep else []
    full_names, bounds, sizes = list(model.full_names), model.action_bounds, model.observation_sizes
    protocol = dict(model.protocol)
    of_tasks = dict(protocol.pop(TASKS, {}))
    if full_names:
        full_names = [*(full_names[task] for task in kept), *(task.full_name for task in new)]
        of_tasks = {name: own for name, own in of_tasks.items() if name in full_names}
        sources = {name.partition("/")[0] for name in full_names}
        known = {name.partition("/")[0] for name in model.full_names}
        protocol = {name: value for name, value in protocol.items() if name in sources or name not in known}
    for task in new:
        protocol = (
            {task.source.partition("/")[0]: task.source_protocol, **protocol} if task.source_protocol else protocol
        )
        of_tasks |= {task.full_name: task.protocol} if task.protocol else {}
    return TaskDescription(
        (*(model.task_names[task] for task in kept), *(task.name for task in new)),
        (*(model.action_sizes[task] for task in kept), *(task.action_size for task in new)),
        {**protocol, TASKS: of_tasks} if of_tasks else protocol,
        tuple(full_names),
        (*(bounds[task] for task in kept), *(task.bounds for task in new)) if bounds else None,
        (*(sizes[task] for task in kept), *(task.observation_size for task in new)) if sizes else (),
        model.policy.observation_size,
    )


def _rebuildable(env: VecEnv) -> Any:
    if type(env) is MultiTaskVecEnv:
        return env
    raise ValueError(
        f"Only environments as make_multitask_env gives them can be built anew with other tasks, got "
        f"{type(env).__name__}: make environments of the same tasks in the same order with the new one behind them, or "
        "without the one that goes, and give them as env=."
    )


def _shares(env: MultiTaskVecEnv) -> list[Fraction]:
    """Of each task, how many of the N copies play it."""
    shares = [Fraction(0)] * env.n_tasks
    for cycle in env.layout:
        for task, count in Counter(cycle).items():
            shares[task] += Fraction(count, len(cycle))
    return shares


def _rebuilt(env: MultiTaskVecEnv, suite: TaskSuite, shares: list[Fraction]) -> MultiTaskVecEnv:
    """As many copies as the shares sum to, where every task had one of its own; else as many as there were."""
    n_envs = round(sum(shares)) if env.num_envs >= env.n_tasks else env.num_envs
    weights = [float(share) for share in shares]
    rebuilt = MultiTaskVecEnv(
        suite, n_envs, env.seed_value, env.purpose, env.render_mode, task_weights=weights, workers=env.workers
    )
    rebuilt.has_own_seed = env.has_own_seed
    return rebuilt
