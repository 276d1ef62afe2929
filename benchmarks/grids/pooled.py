"""A grid together with its repetition on fresh seeds: what both have, over all seeds, paired by seed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from declaration import GRIDS, Pool
from scores import mean, score_matrix

# Of a task's score: nearly what single-task SAC reaches.
SOLVED = 0.8


def pooled_rows(pool: Pool, rows: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """
    :param pool: which grids
    :param rows: grid -> rows, from :func:`scores.with_scores`
    :return: those of the agents, suites and steps that the repetition has
    """
    fresh = GRIDS[pool.repetition]
    both = pd.concat([rows[pool.grid], rows[pool.repetition]])
    wanted = both["agent"].isin([arm.name for arm in fresh.arms]) & both["suite"].isin(fresh.suites)
    return both[wanted & both["steps"].isin(fresh.steps)]


def pooled_table(pool: Pool, rows: pd.DataFrame) -> pd.DataFrame:
    """
    A row per agent: the mean at the end and of all evaluations, what they are above those of each control with the same
    seeds, and, of a single task, the median of the steps at which a run first had it solved.

    :param pool: with its controls
    :param rows: of :func:`pooled_rows`, of one task or of all
    """
    table = []
    for agent in (arm.name for arm in GRIDS[pool.repetition].arms):
        cells = {"": agent}
        for label, chosen in (("end", rows[rows["step"] == rows["steps"]]), ("all evaluations", rows)):
            own = _matrix(chosen, agent)
            cells[label] = str(mean(own))
            for control in pool.controls:
                paired = "" if control == agent else str(mean(own - _matrix(chosen, control)))
                cells[f"{label}, minus {control}"] = paired
        if rows["task"].nunique() == 1:
            curves = rows[rows["agent"] == agent].pivot(index="seed", columns="step", values="score")
            first = [curve.index[curve >= SOLVED].min() for _, curve in curves.iterrows()]
            solved = [step for step in first if not np.isnan(step)]
            # Who never solved it needed more than all steps.
            median = np.median([np.inf if np.isnan(step) else step for step in first])
            span = f" ({min(solved):,.0f} to {max(solved):,.0f})" if solved else ""
            cells[f"first at {SOLVED:g}, median (range)"] = (
                f"{median:,.0f}" if np.isfinite(median) else "never"
            ) + span
        cells["seeds"] = str(rows[rows["agent"] == agent]["seed"].nunique())
        table.append(cells)
    return pd.DataFrame(table)


def _matrix(rows: pd.DataFrame, agent: str) -> np.ndarray:
    return score_matrix(rows[rows["agent"] == agent])
