"""Everything there is to see of an agent, in one go: tables and figures, and their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.table import Table

from sb3_varshare.inspection.figures import draw_dendrogram, draw_residuals, draw_tasks
from sb3_varshare.inspection.residuals import networks_with_residuals, residual_table
from sb3_varshare.inspection.similarity import (
    MEASURES,
    action_distance,
    default_measure,
    leaf_order,
    replay_observations,
    task_distance,
    task_similarity,
)
from sb3_varshare.varshare_sac import VarShareSAC

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DRAWN_COLUMNS = ("kl", "mu_over_theta", "signal_share", "sigma_over_prior")
DPI = 150


class Report(NamedTuple):
    """
    What there is to see.

    :param tables: name -> table; ``residuals`` is tidy, the others are (T, T)
    :param figures: name -> figure
    """

    tables: dict[str, pd.DataFrame]
    figures: dict[str, Figure]


def inspect_agent(model: VarShareSAC, observations: np.ndarray | None = None, signal_to_noise: float = 1.0) -> Report:
    """
    Tables and figures of an agent: its residuals, and how near its tasks are by residuals and by actions.

    :param model: an agent with residuals
    :param observations: (N, D) on which the tasks' actions are compared; by default from the replay. Without either
        they are not compared
    :param signal_to_noise: as for :func:`residual_table`
    :return: tables and figures
    :raises ValueError: the agent has no residuals
    :raises ImportError: pandas or matplotlib is not installed
    """
    table = residual_table(model, signal_to_noise)
    report = Report({"residuals": table}, {})
    for column in DRAWN_COLUMNS:
        if not table[column].isna().all():
            report.figures[f"residuals_{column}"] = draw_residuals(table, column)
    if model.n_tasks == 1:
        return report
    for network in networks_with_residuals(model):
        distances = task_distance(model, network)
        label = f"distance of the {network}'s residuals\n({MEASURES[default_measure(model, network)]})"
        _add(report, f"distance_{network}", distances, label)
        if model.n_tasks > 2:
            similarity = task_similarity(model, network)
            report.tables[f"similarity_{network}"] = similarity
            label = f"cosine of the {network}'s residuals"
            report.figures[f"similarity_{network}"] = draw_tasks(similarity, label, leaf_order(distances), 1.0)
    if observations is None and not model.replay_buffer.empty_tasks():
        observations = replay_observations(model)
    if observations is not None:
        _add(report, "distance_actions", action_distance(model, observations), "mean difference of actions in [-1, 1]")
    return report


def _add(report: Report, name: str, distances: pd.DataFrame, label: str) -> None:
    report.tables[name] = distances
    report.figures[name] = draw_tasks(distances, label, leaf_order(distances))
    report.figures[name.replace("distance", "tree")] = draw_dendrogram(distances, label)


def save_figures(
    model: VarShareSAC, folder: str | Path, observations: np.ndarray | None = None, signal_to_noise: float = 1.0
) -> list[Path]:
    """
    Write all tables and figures of an agent.

    :param model: an agent with residuals
    :param folder: where to; made where it is missing, files of these names are replaced
    :param observations: as for :func:`inspect_agent`
    :param signal_to_noise: as for :func:`residual_table`
    :return: the files
    :raises ValueError: the agent has no residuals
    :raises ImportError: pandas or matplotlib is not installed
    """
    return save_report(inspect_agent(model, observations, signal_to_noise), folder)


def save_report(report: Report, folder: str | Path) -> list[Path]:
    """
    :param report: what to write
    :param folder: where to
    :return: a CSV file per table and a PNG file per figure
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, table in report.tables.items():
        files.append(folder / f"{name}.csv")
        table.to_csv(files[-1], index=name != "residuals")
    for name, figure in report.figures.items():
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=DPI)
    return files


def print_tables(report: Report) -> Iterator[Table]:
    """
    The report for a terminal.

    :param report: what to show
    :return: a table per network with a row per layer and task, and one per distance between the tasks
    """
    for network, rows in report.tables["residuals"].groupby("network", sort=False):
        yield _residuals_for_print(str(network), rows.drop(columns="network"))
    for name, matrix in report.tables.items():
        if name.startswith("distance"):
            yield _matrix_for_print(name.replace("_", " of "), matrix)


def _residuals_for_print(title: str, rows: pd.DataFrame) -> Table:
    shown = [name for name in rows.columns if not rows[name].isna().all()]
    table = Table(title=title)
    for name in shown:
        table.add_column(name, justify="left" if name in ("layer", "task") else "right")
    last = rows["layer"] != rows["layer"].shift(-1)
    for cells, is_last in zip(rows[shown].itertuples(index=False), last, strict=True):
        table.add_row(*(_cell(value) for value in cells), end_section=bool(is_last))
    return table


def _matrix_for_print(title: str, matrix: pd.DataFrame) -> Table:
    table = Table("", *matrix.columns, title=title)
    for task, cells in matrix.iterrows():
        table.add_row(str(task), *(_cell(value) for value in cells))
    return table


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
