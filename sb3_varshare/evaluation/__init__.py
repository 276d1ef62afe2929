"""Evaluation of every task with the same number of episodes, and films of it."""

from typing import TYPE_CHECKING, Any

from sb3_varshare.evaluation.eval_callback import EvalTasksCallback
from sb3_varshare.evaluation.evaluate import evaluate_tasks
from sb3_varshare.evaluation.task_evaluation import EpisodeResult, Estimate, TaskEvaluation

if TYPE_CHECKING:
    from sb3_varshare.evaluation.video import record_videos

__all__ = ["EpisodeResult", "Estimate", "EvalTasksCallback", "TaskEvaluation", "evaluate_tasks", "record_videos"]


def __getattr__(name: str) -> Any:
    # Not imported above: a module that is also a command must not be loaded before it runs.
    if name == "record_videos":
        from sb3_varshare.evaluation.video import record_videos

        return record_videos
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
