"""Finished runs as one table, and what they say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sb3_varshare.evaluation import EpisodeResult
from sb3_varshare.evaluation.task_evaluation import Estimate, mean_interval
from sb3_varshare.runs.store import Store
from sb3_varshare.runs.unit import Result, Unit
from sb3_varshare.tasks.protocol import check_same_protocol, describe_protocol
from sb3_varshare.tuning.comparison import interval_cells, iqm_interval, score_matrix

SCORES = (("is_success", "success", 3), ("episode_return", "return", 1))


def collect(units: Sequence[Unit], store: Store) -> pd.DataFrame:
    """
    :param units: of a grid
    :param store: of its results
    :return: a row for each suite, arm, seed, evaluation, task and episode of the finished runs
    :raises ValueError: none is finished, or those on one suite have different protocols
    """
    results = [(unit, store.result(unit)) for unit in units if store.is_finished(unit)]
    if not results:
        raise ValueError(f"No unit is finished in {store.folder}.")
    first: dict[str, Result] = {}
    for unit, result in results:
        # Versions stand in columns of their own.
        check_same_protocol(first.setdefault(unit.suite, result)["protocol"], result["protocol"], ignore_versions=True)
    return pd.DataFrame([row for unit, result in results for row in _rows(unit, result)])


def _rows(unit: Unit, result: Result) -> Iterable[dict[str, Any]]:
    about = {"protocol": describe_protocol(result["protocol"]), **result["versions"], "unit": result["identity"]}
    for evaluation in result["evaluations"]:
        when = {name: evaluation[name] for name in ("step", "updates", "seconds")}
        for values in evaluation["episodes"]:
            episode = dict(zip(EpisodeResult._fields, values, strict=True))
            yield {"suite": unit.suite, "arm": unit.arm, "seed": unit.seed, **when, **episode, **about}


def report(name: str, units: Sequence[Unit], rows: pd.DataFrame) -> str:
    """
    :param name: of the grid
    :param units: of the grid
    :param rows: of :func:`collect`
    :return: Markdown: a table for each suite, of the last evaluations
    """
    finished = len(rows[["suite", "arm", "seed"]].drop_duplicates())
    commits = ", ".join(sorted(rows["commit"].unique()))
    parts = [
        f"# {name}",
        f"{finished} of {len(units)} runs are finished; commit {commits}. Of the last evaluation of each run: mean "
        "over tasks with Student's 95 % interval over seeds, and interquartile mean (IQM) over seeds and tasks with "
        "the 95 % interval of its stratified bootstrap. The mean of all evaluations of a run says how soon it learned; "
        "minutes are those of training alone.",
    ]
    for suite in dict.fromkeys(unit.suite for unit in units):
        own = rows[rows["suite"] == suite]
        if len(own):
            arms = [arm for arm in dict.fromkeys(unit.arm for unit in units) if arm in set(own["arm"])]
            last = own[own["step"] == own.groupby(["arm", "seed"])["step"].transform("max")]
            parts += [f"## {suite}", _markdown(_table(own, last, arms)), _markdown(_task_table(last, arms))]
            parts.append(f"{own['protocol'].iloc[0]}")
    return "\n\n".join(parts) + "\n"


def _table(own: pd.DataFrame, last: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    lines = []
    for arm in arms:
        of_arm = last[last["arm"] == arm]
        line = {"": arm, "seeds": str(of_arm["seed"].nunique())}
        for column, label, digits in _scores(last):
            matrix = score_matrix(last, arm, column)
            line[label] = _cell(_mean(matrix), digits)
            line[f"{label}, IQM"] = _cell(iqm_interval(matrix), digits)
            line[f"{label}, all evaluations"] = _cell(_mean(score_matrix(own, arm, column)), digits)
            line[f"{label}, all evaluations, minus {arms[0]} by seed"] = _difference(own, arm, arms[0], column, digits)
        line["updates"] = f"{of_arm['updates'].max():,}"
        line["minutes"] = f"{of_arm.groupby('seed')['seconds'].first().mean() / 60:.1f}"
        lines.append(line)
    return pd.DataFrame(lines)


def _task_table(last: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    column, label, digits = _scores(last)[0]
    tasks = list(dict.fromkeys(last["task"]))
    of_tasks = {task: last[last["task"] == task] for task in tasks}
    return pd.DataFrame(
        {
            f"{label} of": arm,
            **{task: _cell(_mean(score_matrix(of_tasks[task], arm, column)), digits) for task in tasks},
        }
        for arm in arms
    )


def _difference(rows: pd.DataFrame, arm: str, first: str, column: str, digits: int) -> str:
    shared = set(rows.loc[rows["arm"] == arm, "seed"]) & set(rows.loc[rows["arm"] == first, "seed"])
    if arm == first or not shared:
        return ""
    rows = rows[rows["seed"].isin(shared)]
    return _cell(_mean(score_matrix(rows, arm, column) - score_matrix(rows, first, column)), digits)


def _scores(rows: pd.DataFrame) -> list[tuple[str, str, int]]:
    return [score for score in SCORES if not rows[score[0]].isna().any()]


def _mean(matrix: np.ndarray) -> Estimate:
    return mean_interval(matrix.mean(axis=1).tolist(), 0.95)


def _cell(estimate: Estimate, digits: int) -> str:
    mean, interval = interval_cells(estimate, digits)
    return f"{mean} ({interval})" if interval else mean


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
