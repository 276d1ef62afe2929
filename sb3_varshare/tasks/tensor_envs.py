"""Envs on a device by the name of their suite."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch as th

from sb3_varshare.tasks.registry import Tasks, make_suite
from sb3_varshare.tasks.tensor_vec_env import TensorVecEnv


class TensorSource(NamedTuple):
    """
    :param module: imported when one of its tasks is asked for
    :param name: of its :class:`TensorVecEnv`
    """

    module: str
    name: str


# Source of tasks -> its envs on a device. A further one is a module and a line here.
TENSOR_SOURCES = {"contextual": TensorSource("sb3_varshare.tasks.suites.contextual_tensor", "ContextualTensorEnv")}


def make_tensor_env(
    tasks: Tasks,
    n_envs: int | None = None,
    seed: int | None = None,
    device: th.device | str = "auto",
    **suite_options: Any,
) -> TensorVecEnv:
    """
    Training envs that live on a device, for a suite that has such a form.

    :param tasks: whatever :func:`sb3_varshare.tasks.make_suite` takes
    :param n_envs: rows; one per task by default
    :param seed: root of all randomness; without one it is 0, or the ``seed`` of the agent that takes the env
    :param device: where they live; ``"auto"`` is the GPU where there is one
    :param suite_options: e.g. ``horizon``
    :return: vectorised envs
    :raises ValueError: the suite has no such form, or there are fewer rows than tasks
    """
    suite = make_suite(tasks, **suite_options)
    sources = {task.source for task in suite.tasks}
    if len(sources) != 1 or not sources <= set(TENSOR_SOURCES):
        raise ValueError(
            f"Expected tasks of one of the sources that have envs on a device ({', '.join(TENSOR_SOURCES)}), got "
            f"{', '.join(sorted(sources))}; use make_multitask_env, or a TensorVecEnv of your own."
        )
    source = TENSOR_SOURCES[sources.pop()]
    env_class: type[TensorVecEnv] = getattr(importlib.import_module(source.module), source.name)
    if device == "auto":
        device = "cuda" if th.cuda.is_available() else "cpu"
    return env_class(suite, n_envs, seed, device=device)
