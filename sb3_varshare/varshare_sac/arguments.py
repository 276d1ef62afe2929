"""Checks of the agent's arguments, its environment among them, and which the policy and the adapter take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_varshare.adapters import ADAPTERS
from sb3_varshare.presets import default_batch_size
from sb3_varshare.tasks.suite import TaskDescription, find_tasks, nearest
from sb3_varshare.varshare_sac.kept_weights import check_kept_weights

CHOICES: dict[str, tuple[str | None, ...]] = {
    "adapter": (*ADAPTERS, "embedding"),
    "kl_scale": ("data", "constant"),
    "exploration": ("mean", "posterior"),
    "task_input": (None, "one_hot", "embedding"),
}

# Argument -> (what holds for it, in words).
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "gamma": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "tau": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "beta": (lambda value: callable(value) or value >= 0, "a schedule, or a number that is not negative"),
    "beta_sigma": (lambda value: value is None or value >= 0, "a number that is not negative, or None for beta"),
    "beta_warmup": (lambda value: 0 <= value <= 1, "a share of the training, between 0 and 1"),
    "recenter_every": (lambda value: value >= 0, "at least 0"),
    "n_critics": (lambda value: value >= 1, "at least 1"),
    "n_atoms": (lambda value: value >= 2, "at least 2"),
    "v_max": (lambda value: value > 0, "positive"),
    "initial_return_std": (lambda value: value is None or value > 0, "positive, or None for BRC's random head"),
}

PRIOR_ARGUMENTS = ("sigma_prior", "prior_scale")
NOISE_ARGUMENTS = ("sigma_structure", "estimator")
ADAPTER_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "varshare": (*PRIOR_ARGUMENTS, *NOISE_ARGUMENTS),
    "low_rank": (*PRIOR_ARGUMENTS, *NOISE_ARGUMENTS, "rank"),
    "deterministic": PRIOR_ARGUMENTS,
}

POLICY_ARGUMENTS = (
    "n_tasks",
    "one_hot_size",
    "actor_residuals",
    "critic_residuals",
    "actor_width",
    "actor_depth",
    "critic_width",
    "critic_depth",
    "n_critics",
    "n_atoms",
    "v_min",
    "v_max",
    "initial_return_std",
    "normalize_observations",
    "mu_lr_multiplier",
    "rho_lr_multiplier",
    "base_frozen",
)


def checked_env(env: Any, verbose: int) -> Any:
    """
    :param env: an environment of any kind, its id, or ``None``
    :param verbose: 1 says what was made
    :return: the environment
    :raises ValueError: its actions are not continuous, or its observations not flat
    """
    env = maybe_make_env(env, verbose)
    action_space = getattr(env, "action_space", None)
    observation_space = getattr(env, "observation_space", None)
    if action_space is not None and not isinstance(action_space, spaces.Box):
        raise ValueError(
            f"VarShareSAC needs a continuous action space (Box), got {action_space}; discretise elsewhere."
        )
    if isinstance(observation_space, spaces.Space) and (
        not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1
    ):
        raise ValueError(
            f"VarShareSAC needs flat observations (a Box of one axis), got {observation_space}; "
            "wrap the environment in gymnasium.wrappers.FlattenObservation."
        )
    return env


def check_not_normalized(env: Any) -> None:
    """
    :param env: a ``VecEnv``
    :raises ValueError: it is wrapped in ``VecNormalize``
    """
    if unwrap_vec_normalize(env) is not None:
        raise ValueError(
            "VecNormalize has one scale for all tasks and would normalise the task one-hot; "
            "leave it out: rewards are scaled per task, and observations with normalize_observations=True."
        )


def describe_tasks(env: Any, n_tasks: int | None) -> tuple[TaskDescription, int]:
    """
    The tasks of an environment and the length of the one-hot at the end of its observations.

    :param env: a ``VecEnv``
    :param n_tasks: number of tasks, for environments that do not know theirs
    :return: the description, and T or, for a single environment without a one-hot, 0
    :raises ValueError: the numbers of tasks differ, or the observation is too short for a one-hot
    """
    found, action_size = find_tasks(env), int(np.prod(env.action_space.shape))
    if found is not None:
        if n_tasks not in (None, len(found.names)):
            raise ValueError(f"n_tasks is {n_tasks}, but the environment has {len(found.names)} tasks: leave it out.")
        return found, len(found.names)
    if n_tasks is None:
        return TaskDescription(("task",), (action_size,), {}), 0
    size = env.observation_space.shape[0]
    if not 0 < n_tasks < size:
        raise ValueError(
            f"n_tasks must be at least 1 and leave room for an observation before the one-hot, got n_tasks={n_tasks} "
            f"with observations of {size} numbers."
        )
    return TaskDescription(tuple(f"task_{i}" for i in range(n_tasks)), (action_size,) * n_tasks, {}), n_tasks


def own_observation_sizes(description: TaskDescription, space: spaces.Space) -> list[int]:
    """
    :param description: of the tasks
    :param space: of the agent's observations, with the one-hot
    :return: (T,) length of each task's own observation; empty where a wrapper has made another observation of it, or
        nobody knows
    """
    padded = description.observation_size + len(description.names)
    return list(description.observation_sizes) if space.shape == (padded,) else []


def check_own_sizes(names: Sequence[str], known: dict[str, Sequence[int]], found: dict[str, Sequence[int]]) -> None:
    """
    Padding makes the spaces equal, whatever the tasks themselves have.

    :param names: of the tasks
    :param known: ``"actions"`` and ``"observations"``, lengths in each task of a model; empty where it knows none
    :param found: the same of an environment of these tasks
    :raises ValueError: they differ
    """
    for what, sizes in known.items():
        if sizes and found[what] and list(sizes) != list(found[what]):
            raise ValueError(
                f"The model's tasks {list(names)} have {what} of {list(sizes)} numbers, those of the environment of "
                f"{list(found[what])}, in order."
            )


def count_tasks(env: Any, n_tasks: int | None) -> int:
    """
    Number of tasks before the agent exists.

    :param env: a ``VecEnv``, an environment, its id, or ``None``
    :param n_tasks: number of tasks, if it was given
    """
    if n_tasks is not None:
        return n_tasks
    found = find_tasks(maybe_make_env(env, 0))
    return 1 if found is None else len(found.names)


def check_choices(model: Any) -> None:
    """
    :param model: the agent
    :raises ValueError: an argument is not one of its choices or out of its range, or two do not go together
    """
    for name, choices in CHOICES.items():
        if getattr(model, name) not in choices:
            hint = nearest(str(getattr(model, name)), [str(choice) for choice in choices])
            raise ValueError(f"{name} must be one of {choices}, got {getattr(model, name)!r}; {hint}")
    for name, (holds, words) in RANGES.items():
        if not holds(getattr(model, name)):
            raise ValueError(f"{name} must be {words}, got {getattr(model, name)!r}.")
    if not model.v_min < model.v_max:
        raise ValueError(f"v_min must be below v_max ({model.v_max}), got {model.v_min}.")
    check_kept_weights(model)
    has_posterior = model.actor_residuals and model.adapter in ADAPTERS and ADAPTERS[model.adapter].is_stochastic
    if model.exploration == "posterior" and "actor" in (model.kept_weights or {}):
        raise ValueError("exploration='posterior' needs a posterior, and pruning left the actor none; use 'mean'.")
    if model.exploration == "posterior" and not has_posterior:
        raise ValueError(
            f"exploration='posterior' draws weights from the actor's posterior, which adapter={model.adapter!r} with "
            f"actor_residuals={model.actor_residuals} does not have; use 'varshare' or 'low_rank', or 'mean'."
        )


def checked_batch_size(batch_size: int | None, n_tasks: int) -> int:
    """
    :param batch_size: rows of all tasks together, or ``None`` for the default
    :param n_tasks: tasks T
    :return: rows of all tasks together
    :raises ValueError: it is not a positive multiple of the number of tasks
    """
    if batch_size is None:
        return default_batch_size(n_tasks)
    if batch_size < 1 or batch_size % n_tasks:
        below = max(batch_size // n_tasks, 1) * n_tasks
        raise ValueError(
            f"batch_size must be a multiple of n_tasks ({n_tasks}) so that every task gets the same share, "
            f"got {batch_size}; use {below} or {below + n_tasks}."
        )
    return batch_size


def policy_arguments(model: Any) -> dict[str, Any]:
    """
    Keyword arguments of the policy.

    :param model: the agent
    """
    embedding = model.adapter == "embedding"
    return {
        **{name: getattr(model, name) for name in POLICY_ARGUMENTS},
        "action_sizes": model.policy_action_sizes,
        "kept_weights": model.kept_weights,
        "adapter": "none" if embedding else model.adapter,
        "adapter_kwargs": {name: getattr(model, name) for name in ADAPTER_ARGUMENTS.get(model.adapter, ())},
        "task_input": "embedding" if embedding else model.task_input,
        # SB3 puts its own switch for state-dependent exploration there.
        **{name: value for name, value in model.policy_kwargs.items() if name != "use_sde"},
        "optimizer_kwargs": optimizer_arguments(model),
    }


def optimizer_arguments(model: Any) -> dict[str, Any]:
    """
    Keyword arguments of the optimizer: the agent's own and those in ``policy_kwargs``, which win.

    :param model: the agent
    """
    optimizer_class = model.policy_kwargs.get("optimizer_class", th.optim.AdamW)
    fused = {"fused": True} if "fused" in inspect.signature(optimizer_class).parameters else {}
    return {"weight_decay": model.weight_decay, **fused, **model.policy_kwargs.get("optimizer_kwargs", {})}
