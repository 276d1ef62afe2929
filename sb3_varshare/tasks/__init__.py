"""Which tasks there are, and environments that know theirs. Importing this imports no torch and no simulator."""

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from sb3_varshare.tasks.encoding import append_task, check_one_hot, split_task
    from sb3_varshare.tasks.multi_task_env import MultiTaskEnv
    from sb3_varshare.tasks.protocol import PROTOCOLS, Protocol, check_same_protocol, describe_protocol
    from sb3_varshare.tasks.registry import make_suite, register_source
    from sb3_varshare.tasks.suite import TaskDescription, TaskSource, TaskSpec, TaskSuite, find_tasks
    from sb3_varshare.tasks.suites.gymnasium import gymnasium_task
    from sb3_varshare.tasks.tensor_envs import make_tensor_env
    from sb3_varshare.tasks.tensor_vec_env import RowStep, TensorVecEnv
    from sb3_varshare.tasks.vec_env import MultiTaskVecEnv, make_multitask_env
    from sb3_varshare.tasks.worker_options import WorkerError, WorkerOptions

__all__ = [
    "PROTOCOLS",
    "MultiTaskEnv",
    "MultiTaskVecEnv",
    "Protocol",
    "RowStep",
    "TaskDescription",
    "TaskSource",
    "TaskSpec",
    "TaskSuite",
    "TensorVecEnv",
    "WorkerError",
    "WorkerOptions",
    "append_task",
    "check_one_hot",
    "check_same_protocol",
    "describe_protocol",
    "find_tasks",
    "gymnasium_task",
    "make_multitask_env",
    "make_suite",
    "make_tensor_env",
    "register_source",
    "split_task",
]

_HOMES = {
    "PROTOCOLS": ".protocol",
    "MultiTaskEnv": ".multi_task_env",
    "MultiTaskVecEnv": ".vec_env",
    "Protocol": ".protocol",
    "RowStep": ".tensor_vec_env",
    "TaskDescription": ".suite",
    "TaskSource": ".suite",
    "TaskSpec": ".suite",
    "TaskSuite": ".suite",
    "TensorVecEnv": ".tensor_vec_env",
    "WorkerError": ".worker_options",
    "WorkerOptions": ".worker_options",
    "append_task": ".encoding",
    "check_one_hot": ".encoding",
    "check_same_protocol": ".protocol",
    "describe_protocol": ".protocol",
    "find_tasks": ".suite",
    "gymnasium_task": ".suites.gymnasium",
    "make_multitask_env": ".vec_env",
    "make_suite": ".registry",
    "make_tensor_env": ".tensor_envs",
    "register_source": ".registry",
    "split_task": ".encoding",
}

_SUITES = (
    *("MT3", "MT10", "MT25", "MT50"),
    *(f"{name}-{part}" for name in ("ML10", "ML25", "ML45") for part in ("train", "test")),
    *("DMC-easy", "DMC-dogs", "DMC-humanoids", "DMC-full"),
    *("HopperGravity", "Walker2dMass"),
)
# `MultiTask-v0` takes any `suite=`, e.g. "MT1/reach-v3" or a list of task names.
_GYMNASIUM_IDS: dict[str, dict[str, Any]] = {
    **{f"{suite}-v0": {"suite": suite} for suite in _SUITES},
    # HalfCheetah-v0 would read as a version of Gymnasium's own.
    "HalfCheetahTasks-v0": {"suite": "HalfCheetah"},
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
