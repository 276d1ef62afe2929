"""Evaluation of every task with the same number of episodes."""

from sb3_varshare.evaluation.eval_callback import EvalTasksCallback
from sb3_varshare.evaluation.evaluate import evaluate_tasks
from sb3_varshare.evaluation.task_evaluation import EpisodeResult, Estimate, TaskEvaluation

__all__ = ["EpisodeResult", "Estimate", "EvalTasksCallback", "TaskEvaluation", "evaluate_tasks"]
