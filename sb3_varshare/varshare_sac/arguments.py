"""Checks of the agent's arguments, and which of them the policy and the adapter take."""

from __future__ import annotations

import inspect
from typing import Any

import torch as th

from sb3_varshare.adapters import ADAPTERS
from sb3_varshare.presets import default_batch_size

CHOICES: dict[str, tuple[str | None, ...]] = {
    "adapter": (*ADAPTERS, "embedding"),
    "kl_scale": ("data", "constant"),
    "exploration": ("mean", "posterior"),
    "task_input": (None, "one_hot", "embedding"),
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
)


def check_choices(model: Any) -> None:
    """
    :param model: the agent
    :raises ValueError: an argument is not one of its choices, or two do not go together
    """
    for name, choices in CHOICES.items():
        if getattr(model, name) not in choices:
            raise ValueError(f"{name} must be one of {choices}, got {getattr(model, name)!r}.")
    has_posterior = model.actor_residuals and model.adapter in ADAPTERS and ADAPTERS[model.adapter].is_stochastic
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
