"""What a trial is worth."""

from __future__ import annotations

from sb3_varshare.evaluation import TaskEvaluation

# Of a usual return; the order does not depend on it.
RETURN_SCALE = 1000.0


def objective_value(evaluation: TaskEvaluation) -> float:
    """
    One number that orders evaluations of equally many episodes by mean success over tasks, then by mean return.

    The return adds at most half of what one more success in one episode adds. Where no task reports success, the value
    is the mean return.

    :param evaluation: of every task
    :return: the value, to be maximised
    """
    mean_return, success_rate = evaluation.mean_return, evaluation.mean_success_rate
    if success_rate is None:
        return mean_return
    squashed = (1 + mean_return / (RETURN_SCALE + abs(mean_return))) / 2
    return success_rate + squashed / (2 * len(evaluation.episodes))
