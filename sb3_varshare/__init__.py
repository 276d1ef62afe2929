"""
Multi-task reinforcement learning on Stable-Baselines3: one agent, shared weights, a variational residual per task.

Names are imported at their first use, so that worker processes can import :mod:`sb3_varshare.tasks` without torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sb3_varshare.tasks  # noqa: F401 - registers the Gymnasium environments

if TYPE_CHECKING:
    from sb3_varshare.compression import prune
    from sb3_varshare.deployment import PolicyFileError, compose_task, export_policy, export_task, load_policy
    from sb3_varshare.evaluation import EvalTasksCallback, TaskEvaluation, evaluate_tasks, record_videos
    from sb3_varshare.growth import add_task, drop_task, few_shot, specialise, zero_shot
    from sb3_varshare.inspection import (
        InspectionCallback,
        residual_table,
        save_figures,
        task_distance,
        value_uncertainty,
    )
    from sb3_varshare.tasks import (
        MultiTaskEnv,
        MultiTaskVecEnv,
        TaskSpec,
        TaskSuite,
        make_multitask_env,
        make_tensor_env,
    )
    from sb3_varshare.varshare_sac import MultiTaskPolicy, VarShareSAC

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

_HOMES = {
    "EvalTasksCallback": "evaluation",
    "InspectionCallback": "inspection",
    "MultiTaskEnv": "tasks",
    "MultiTaskPolicy": "varshare_sac",
    "MultiTaskVecEnv": "tasks",
    "PolicyFileError": "deployment",
    "TaskEvaluation": "evaluation",
    "TaskSpec": "tasks",
    "TaskSuite": "tasks",
    "VarShareSAC": "varshare_sac",
    "add_task": "growth",
    "compose_task": "deployment",
    "drop_task": "growth",
    "evaluate_tasks": "evaluation",
    "export_policy": "deployment",
    "export_task": "deployment",
    "few_shot": "growth",
    "load_policy": "deployment",
    "make_multitask_env": "tasks",
    "make_tensor_env": "tasks",
    "prune": "compression",
    "record_videos": "evaluation",
    "residual_table": "inspection",
    "save_figures": "inspection",
    "specialise": "growth",
    "task_distance": "inspection",
    "value_uncertainty": "inspection",
    "zero_shot": "growth",
}

__all__ = [
    "EvalTasksCallback",
    "InspectionCallback",
    "MultiTaskEnv",
    "MultiTaskPolicy",
    "MultiTaskVecEnv",
    "PolicyFileError",
    "TaskEvaluation",
    "TaskSpec",
    "TaskSuite",
    "VarShareSAC",
    "add_task",
    "compose_task",
    "drop_task",
    "evaluate_tasks",
    "export_policy",
    "export_task",
    "few_shot",
    "load_policy",
    "make_multitask_env",
    "make_tensor_env",
    "prune",
    "record_videos",
    "residual_table",
    "save_figures",
    "specialise",
    "task_distance",
    "value_uncertainty",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
