"""Which tasks there are, and environments that know theirs. Importing this imports no torch and no simulator."""

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from sb3_varshare.tasks.encoding import append_task, check_one_hot, split_task
    from sb3_varshare.tasks.multi_task_env import MultiTaskEnv
    from sb3_varshare.tasks.registry import make_suite
    from sb3_varshare.tasks.suite import TaskDescription, TaskSpec, TaskSuite, find_tasks
    from sb3_varshare.tasks.vec_env import MultiTaskVecEnv, make_multitask_env

__all__ = [
    "MultiTaskEnv",
    "MultiTaskVecEnv",
    "TaskDescription",
    "TaskSpec",
    "TaskSuite",
    "append_task",
    "check_one_hot",
    "find_tasks",
    "make_multitask_env",
    "make_suite",
    "split_task",
]

_HOMES = {
    "MultiTaskEnv": ".multi_task_env",
    "MultiTaskVecEnv": ".vec_env",
    "TaskDescription": ".suite",
    "TaskSpec": ".suite",
    "TaskSuite": ".suite",
    "append_task": ".encoding",
    "check_one_hot": ".encoding",
    "find_tasks": ".suite",
    "make_multitask_env": ".vec_env",
    "make_suite": ".registry",
    "split_task": ".encoding",
}

# `MultiTask-v0` takes any `suite=`, e.g. "MT1/reach-v3" or a list of task names.
_GYMNASIUM_IDS: dict[str, dict[str, Any]] = {
    "MT3-v0": {"suite": "MT3"},
    "MT10-v0": {"suite": "MT10"},
    "MT25-v0": {"suite": "MT25"},
    "MT50-v0": {"suite": "MT50"},
    "Contextual-v0": {"suite": "contextual"},
    "MultiTask-v0": {},
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


for _id, _kwargs in _GYMNASIUM_IDS.items():
    if _id not in gym.registry:
        # The tasks have their own time limits, and the checker of Gymnasium would build and reset a task of its own.
        gym.register(
            id=_id,
            entry_point="sb3_varshare.tasks.multi_task_env:MultiTaskEnv",
            kwargs=_kwargs,
            disable_env_checker=True,
        )
