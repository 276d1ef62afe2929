"""Scores from the rows of a grid's table, and their estimates with intervals by rliable."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from declaration import REFERENCE
from rliable import library, metrics  # type: ignore[import-untyped]

REPETITIONS = 2_000
SEED = 0


class Interval(NamedTuple):
    """
    An estimate with its 95 % interval, which is not a number where there is one seed only.

    :param value: point estimate
    :param low: lower end
    :param high: upper end
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def with_scores(rows: pd.DataFrame) -> pd.DataFrame:
    """
    Add ``contender``, the agent and, where they vary, its steps; ``score`` and ``base_score``, 0 for the random policy
    and 1 for single-task SAC on the clean task at its end, both means over seeds. A diverged run has the score 0.

    :param rows: of one grid
    :return: the rows without those of the reference
    :raises ValueError: the reference is missing, or the rows have several protocols or base points
    """
    for column in ("grid", "protocol", "base"):
        if rows[column].nunique() != 1:
            raise ValueError(f"Expected rows of one {column}, got {sorted(rows[column].unique())}; collect them anew.")
    is_reference = rows["suite"] == REFERENCE
    ends = rows[is_reference & (rows["step"] == rows["steps"]) & (rows["status"] == "finished")]
    means = ends.pivot_table("mean_return", "task", "agent")
    missing = {"random", "single"} - set(means.columns)
    if missing:
        raise ValueError(f"Expected finished units of {sorted(missing)} on the suite {REFERENCE!r}: run them first.")
    rows = rows[~is_reference].copy()
    low, high = rows["reference"].map(means["random"]), rows["reference"].map(means["single"])
    for column, source in (("score", "mean_return"), ("base_score", "base_return")):
        rows[column] = (rows[source] - low) / (high - low)
    rows.loc[rows["status"] == "diverged", "score"] = 0.0
    varied = rows["steps"].nunique() > 1
    rows["contender"] = rows["agent"] + (", " + rows["steps"].astype(str) + " steps" if varied else "")
    return rows


def score_matrix(rows: pd.DataFrame) -> np.ndarray:
    """
    :param rows: of one contender on one suite, from :func:`with_scores`
    :return: (seeds, tasks) scores, means where the rows are of several steps
    """
    matrix: np.ndarray = rows.pivot_table("score", "seed", "task").to_numpy(dtype=float)
    return matrix


def iqm(matrix: np.ndarray, repetitions: int = REPETITIONS) -> Interval:
    """
    Interquartile mean over seeds and tasks, with a bootstrap over seeds, stratified by task.

    :param matrix: (seeds, tasks)
    :param repetitions: of the bootstrap
    """
    return _interval(matrix, metrics.aggregate_iqm, repetitions)


def mean(matrix: np.ndarray) -> Interval:
    """
    Mean over seeds and tasks, with the bootstrap of :func:`iqm`: for one task, of which the IQM would drop half.

    :param matrix: (seeds, tasks)
    """
    return _interval(matrix, metrics.aggregate_mean)


def mean_difference(matrix: np.ndarray, base: np.ndarray) -> Interval:
    """
    Difference of two means, with a bootstrap of both: where one task of many tells contenders apart, IQM leaves it out.

    :param matrix: (seeds, tasks)
    :param base: (seeds, tasks) what is subtracted
    """
    return _interval([matrix, base], lambda one, other: metrics.aggregate_mean(one) - metrics.aggregate_mean(other))


def _interval(
    scores: np.ndarray | list[np.ndarray], function: Callable[..., float], repetitions: int = REPETITIONS
) -> Interval:
    matrices = [scores] if isinstance(scores, np.ndarray) else scores
    if min(len(matrix) for matrix in matrices) < 2:
        return Interval(float(function(*matrices)), np.nan, np.nan)
    # rliable 1.2 draws from numpy's global generator, whatever random state it is given. With one state before each
    # estimate, none depends on which others are made.
    state = np.random.get_state()
    np.random.seed(SEED)
    try:
        points, intervals = library.get_interval_estimates(
            {"": scores}, lambda *matrices: np.array([function(*matrices)]), reps=repetitions
        )
    finally:
        np.random.set_state(state)
    low, high = np.ravel(intervals[""])
    return Interval(float(points[""][0]), float(low), float(high))
