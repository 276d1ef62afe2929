"""New tasks for a trained agent: added, dropped, learned on the frozen base, and evaluated before any training."""

from sb3_varshare.growth.grow import add_task, drop_task
from sb3_varshare.growth.specialist import specialise
from sb3_varshare.growth.task_envs import single_task_env
from sb3_varshare.growth.transfer import CurvePoint, FewShot, few_shot, learning_curve, zero_shot

__all__ = [
    "CurvePoint",
    "FewShot",
    "add_task",
    "drop_task",
    "few_shot",
    "learning_curve",
    "single_task_env",
    "specialise",
    "zero_shot",
]
