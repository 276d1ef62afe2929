"""Where to evaluate: the evaluation twin of training environments, at the beginning of its streams."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecCheckNan, VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from sb3_varshare.tasks.multi_task_env import MultiTaskEnv
from sb3_varshare.tasks.vec_env import MultiTaskVecEnv

# Change nothing of what the agent sees or is paid, so that a twin need not have them.
LOOKERS_ON = (VecMonitor, VecCheckNan, Monitor, OrderEnforcing, PassiveEnvChecker)


def evaluation_env(env: Any, model: Any = None) -> VecEnv:
    """
    Environments to evaluate on: for multi-task envs that train a new set on streams that training never sees, one per
    task.

    :param env: a ``VecEnv``; one that is for evaluation, or of another kind, is returned as it is
    :param model: the agent, whose own environments are refused where they have no twin
    :return: the environments
    :raises ValueError: it is no ``VecEnv``, a twin cannot be built or would lack a wrapper, or it is the model's own
    """
    if not isinstance(env, VecEnv):
        raise ValueError(
            f"Expected a VecEnv to evaluate on, got {type(env).__name__}; use make_multitask_env, or wrap it by "
            "DummyVecEnv([lambda: env])."
        )
    purpose = _purpose(env.unwrapped)
    if purpose == "train":
        return _twin(env)
    own = getattr(model, "env", None)
    if purpose is None and own is not None and env.unwrapped is own.unwrapped:
        raise ValueError(
            "These are the agent's own training environments, and they have no evaluation twin; give evaluate_tasks, "
            "or EvalTasksCallback as eval_env, environments for evaluation."
        )
    return env


def rewind(env: VecEnv) -> None:
    """
    Let multi-task envs begin their streams anew at the next reset; those of another kind go on where they are.

    :param env: for evaluation
    """
    root = _root(env.unwrapped)
    if root is not None:
        env.seed(root)


def _purpose(inner: VecEnv) -> str | None:
    """``train``, ``evaluation``, or None for envs not of this package."""
    purpose: str | None = getattr(inner, "purpose", None)
    # Not asked of envs that have said it, since the question would start their workers.
    if purpose is None and inner.has_attr("purpose"):
        purposes = inner.get_attr("purpose")
        purpose = "train" if "train" in purposes else purposes[0]
    return purpose


def _root(inner: VecEnv) -> int | None:
    """The seed of multi-task envs, None for others."""
    root: int | None = getattr(inner, "seed_value", None)
    if root is None and inner.has_attr("seed_value"):
        # SB3's own sets keep a seed until the next reset.
        (pending, *_), (root, *_) = inner._seeds, inner.get_attr("seed_value")
        root = root if pending is None else pending
    return None if root is None else int(root)


def _twin(env: VecEnv) -> VecEnv:
    inner: Any = env.unwrapped
    _refuse_wrappers(env)
    if hasattr(inner, "evaluation_env"):
        twin: VecEnv = inner.evaluation_env()
        return twin
    copies = getattr(inner, "envs", ())
    for copy in copies:
        _refuse_wrappers(copy)
    suites = [copy.unwrapped.suite for copy in copies if isinstance(copy.unwrapped, MultiTaskEnv)]
    if not suites:
        raise ValueError(
            f"The tasks behind {type(inner).__name__} cannot be read, so that no evaluation twin can be built; make "
            "the training environments by make_multitask_env(..., n_workers=...), or give environments for evaluation, "
            "made with purpose='evaluation'."
        )
    return MultiTaskVecEnv(suites[0], seed=_root(inner), purpose="evaluation")


def _refuse_wrappers(env: Any) -> None:
    while isinstance(env, VecEnvWrapper | gym.Wrapper):
        if type(env) not in LOOKERS_ON:
            name = type(env).__name__
            raise ValueError(
                f"The training environments are wrapped in {name}, which an evaluation twin would lack; give "
                f"environments for evaluation in the same wrapper, such as {name}(make_multitask_env(...)"
                ".evaluation_env()), or drop the wrapper."
            )
        env = env.venv if isinstance(env, VecEnvWrapper) else env.env
