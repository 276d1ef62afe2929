"""Figures of the grids: learning curves, and the interval of every level of every factor."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from scores import iqm, mean, score_matrix

# Before pyplot: no display is needed. The salt and the missing date make equal figures equal files.
matplotlib.use("Agg")
matplotlib.rcParams["svg.hashsalt"] = "grids"

import matplotlib.pyplot as plt  # noqa: E402

CURVE_REPETITIONS = 300


def draw_curves(rows: pd.DataFrame, contenders: list[str], path: Path) -> None:
    """
    IQM of scores by steps with its interval, a line per contender.

    :param rows: of one suite, from :func:`scores.with_scores`
    :param contenders: in order
    :param path: of the figure
    """
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for contender in contenders:
        own = rows[rows["contender"] == contender]
        n_seeds = own["seed"].nunique()
        # A diverged run has a row at the end only.
        seeds = own.groupby("step")["seed"].nunique()
        steps = seeds.index[seeds == n_seeds].to_numpy()
        estimates = [iqm(score_matrix(own[own["step"] == step]), CURVE_REPETITIONS) for step in steps]
        (line,) = axes.plot(steps, [estimate.value for estimate in estimates], label=contender)
        lows, highs = [estimate.low for estimate in estimates], [estimate.high for estimate in estimates]
        axes.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="environment steps per task", ylabel="score (IQM over tasks and seeds)", ylim=(-0.5, 1.2))
    axes.set_title(f"suite {rows['suite'].iloc[0]}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def draw_intervals(rows: pd.DataFrame, contenders: list[str], path: Path) -> None:
    """
    Mean of the scores at the end with its interval, a line per contender: settings move one task of six, which the IQM
    leaves out.

    :param rows: of one suite, from :func:`scores.with_scores`
    :param contenders: in order; the first one's estimate is drawn through all
    :param path: of the figure
    """
    ends = rows[rows["step"] == rows["steps"]]
    estimates = [mean(score_matrix(ends[ends["contender"] == contender])) for contender in contenders]
    figure, axes = plt.subplots(figsize=(7, 1 + 0.25 * len(contenders)), layout="constrained")
    axes.axvline(estimates[0].value, color="grey", linewidth=0.8)
    for place, estimate in enumerate(estimates):
        axes.plot([estimate.low, estimate.high], [place, place], color="C0")
        axes.plot(estimate.value, place, "o", color="C0")
    axes.set_yticks(range(len(contenders)), contenders)
    axes.invert_yaxis()
    axes.set(xlabel="score (mean over tasks and seeds)", title=f"suite {rows['suite'].iloc[0]}")
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
