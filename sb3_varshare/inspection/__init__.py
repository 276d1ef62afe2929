"""Looking inside: what each task changed and where, which tasks belong together, how sure the critics are."""

from sb3_varshare.inspection.inspection_callback import InspectionCallback
from sb3_varshare.inspection.report import inspect_agent, save_figures
from sb3_varshare.inspection.residuals import residual_table
from sb3_varshare.inspection.similarity import (
    action_distance,
    nearest_tasks,
    replay_observations,
    task_distance,
    task_similarity,
)
from sb3_varshare.inspection.uncertainty import ValueUncertainty, value_uncertainty

__all__ = [
    "InspectionCallback",
    "ValueUncertainty",
    "action_distance",
    "inspect_agent",
    "nearest_tasks",
    "replay_observations",
    "residual_table",
    "save_figures",
    "task_distance",
    "task_similarity",
    "value_uncertainty",
]
