"""The best trial of a study against the default, on seeds that the study has not seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from scipy import stats

from sb3_varshare.evaluation import EpisodeResult
from sb3_varshare.evaluation.task_evaluation import Estimate, mean_interval
from sb3_varshare.tuning.files import write_whole
from sb3_varshare.tuning.search_space import to_arguments, trial_arguments
from sb3_varshare.tuning.training import Trainer
from sb3_varshare.zoo.manager import is_failure

BEST, DEFAULT_ARM = "best", "default"
COLUMNS = ["arm", "seed", *EpisodeResult._fields]
RESAMPLES = 2_000


def compare(trainer: Trainer, params: dict[str, Any], seeds: Sequence[int], output: Path) -> pd.DataFrame:
    """
    Train both arms with every seed. A run that is in the folder already is not repeated.

    :param trainer: of the study's settings
    :param params: of the best trial
    :param seeds: that are not the study's
    :param output: folder with a file for each run, and ``comparison.csv``
    :return: a row for each arm, seed, task and episode of the last evaluations
    :raises ValueError: a seed is one of the study's, the folder holds a comparison of something else, or a run failed
    """
    seen = sorted(set(seeds) & set(trainer.settings.seeds))
    if seen or not seeds:
        raise ValueError(
            f"Expected seeds that the study has not used, got {list(seeds)}; it has used {trainer.settings.seeds}."
        )
    _claim(output, {"declaration": trainer.declaration, "params": params})
    arms = {BEST: to_arguments(trial_arguments(params), trainer.n_tasks), DEFAULT_ARM: {}}
    for seed in seeds:
        for arm, arguments in arms.items():
            path = output / f"{arm}_seed{seed}.json"
            if not path.exists():
                print(f"Training {arm} with seed {seed}.")
                episodes = _train(trainer, arm, arguments, seed)
                write_whole(path, json.dumps([[arm, seed, *episode] for episode in episodes]))
    rows = [
        row
        for seed in seeds
        for arm in arms
        for row in json.loads((output / f"{arm}_seed{seed}.json").read_text(encoding="utf-8"))
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_whole(output / "comparison.csv", table.to_csv(index=False))
    return table


def _train(trainer: Trainer, arm: str, arguments: dict[str, Any], seed: int) -> list[EpisodeResult]:
    try:
        return trainer.train(arguments, seed).episodes
    except Exception as error:
        if not is_failure(error):
            raise
        raise ValueError(
            f"The run of {arm!r} with seed {seed} failed ({type(error).__name__}: {error}), and without it there is no "
            "mean to compare. What is finished is kept."
        ) from error


def _claim(output: Path, what: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    path = output / "comparison.json"
    if not path.exists():
        write_whole(path, json.dumps(what, indent=2))
    elif json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(what)):
        raise ValueError(f"The folder {output} holds the runs of another trial or study; name another one.")


def iqm_interval(scores: np.ndarray, level: float = 0.95) -> Estimate:
    """
    Interquartile mean over all runs and tasks, with its stratified bootstrap interval: runs are drawn anew within each
    task. Source: Agarwal et al. 2021, arXiv 2108.13264, as in rliable.

    :param scores: (runs, T)
    :param level: coverage
    :return: mean and interval
    """
    value = float(stats.trim_mean(scores, 0.25, axis=None))
    if len(scores) < 2:
        return Estimate(value, value, value)
    runs = np.random.default_rng(0).integers(len(scores), size=(RESAMPLES, *scores.shape))
    drawn = np.take_along_axis(scores[None], runs, axis=1).reshape(RESAMPLES, -1)
    low, high = np.quantile(stats.trim_mean(drawn, 0.25, axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def comparison_table(episodes: pd.DataFrame, level: float = 0.95) -> Table:
    """
    :param episodes: of :func:`compare`
    :param level: coverage of the intervals
    :return: a row for each arm and one for the difference, by success where all tasks report it and by return
    """
    seeds = episodes["seed"].nunique()
    title = f"Best trial and default, {seeds} fresh seeds; mean over seeds and IQM over seeds and tasks, {level:.0%}"
    table = Table(title=title)
    for column in ("", "score", "mean", "interval", "IQM", "interval"):
        table.add_column(column, justify="left" if column in ("", "score") else "right")
    for column, name in (("is_success", "success"), ("episode_return", "return")):
        if episodes[column].isna().any():
            continue
        scores = {arm: score_matrix(episodes, arm, column) for arm in (BEST, DEFAULT_ARM)}
        digits = 3 if name == "success" else 1
        for arm, matrix in scores.items():
            mean = mean_interval(matrix.mean(axis=1).tolist(), level)
            table.add_row(
                arm, name, *interval_cells(mean, digits), *interval_cells(iqm_interval(matrix, level), digits)
            )
        # The same seeds in both arms.
        difference = (scores[BEST] - scores[DEFAULT_ARM]).mean(axis=1)
        table.add_row("difference", name, *interval_cells(mean_interval(difference.tolist(), level), digits), "", "")
        table.add_section()
    return table


def score_matrix(episodes: pd.DataFrame, arm: str, column: str) -> np.ndarray:
    """
    :param episodes: a row for each arm, seed, task and episode
    :param arm: which one
    :param column: of the score
    :return: (seeds, T) means over episodes
    """
    rows = episodes[episodes["arm"] == arm].astype({column: float})
    return rows.pivot_table(index="seed", columns="task", values=column, aggfunc="mean").to_numpy()


def interval_cells(estimate: Estimate, digits: int) -> tuple[str, str]:
    """
    :param estimate: of a score
    :param digits: behind the point
    :return: mean and interval for a table; no interval of one seed, or of equal values
    """
    if estimate.low == estimate.high:
        return f"{estimate.mean:.{digits}f}", ""
    return f"{estimate.mean:.{digits}f}", f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"
