"""Figures of an agent's inside; each is a matplotlib Figure of its own, which no window and no global state knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.cluster.hierarchy import dendrogram

from sb3_varshare.inspection.extras import load
from sb3_varshare.inspection.residuals import COLUMNS
from sb3_varshare.inspection.similarity import cluster_tasks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Up to this many rows or columns the cells of a heat map show their numbers.
MOST_NUMBERS = 16
# The longest name of Meta-World has 30 letters.
LONG_NAME = 32


def draw_residuals(table: pd.DataFrame, column: str = "kl") -> Figure:
    """
    Heat map of one column of the table, a row per task and a column per layer; each network has a scale of its own.

    :param table: from :func:`residual_table`
    :param column: one of its columns of numbers
    :return: the figure
    :raises ValueError: the table has no such column of numbers, or nothing in it
    :raises ImportError: matplotlib is not installed
    """
    if column not in COLUMNS:
        raise ValueError(f"column must be one of {tuple(COLUMNS)}, got {column!r}.")
    if table[column].isna().all():
        raise ValueError(f"{column} needs a spread, which these residuals do not have; draw another column.")
    panels = {
        str(name): rows.pivot(index="task", columns="layer", values=column).reindex(
            index=rows["task"].unique(), columns=rows["layer"].unique()
        )
        for name, rows in table.groupby("network", sort=False)
    }
    tasks, layers = len(next(iter(panels.values()))), [len(panel.columns) for panel in panels.values()]
    cells = 1.0 if max(tasks, *layers) <= MOST_NUMBERS else 0.5
    size = (2.6 + 1.2 * len(panels) + 0.85 * cells * sum(layers), 1.9 + _height(tasks))
    figure = _figure(size)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=layers)[0]
    for place, (ax, (name, panel)) in enumerate(zip(axes, panels.items(), strict=True)):
        _heat_map(ax, panel, COLUMNS[column])
        ax.set_title(name)
        if place:
            ax.tick_params(labelleft=False)
    return figure


def draw_tasks(
    matrix: pd.DataFrame, label: str, order: Sequence[str] | None = None, limit: float | None = None
) -> Figure:
    """
    Heat map of what holds between tasks.

    :param matrix: (T, T) distances or similarities
    :param label: of the colour bar: what it is, with its unit
    :param order: of the tasks; by default that of the matrix
    :param limit: colours for both signs, from minus this number to plus this number; by default from the least value
        to the greatest
    :return: the figure
    :raises ImportError: matplotlib is not installed
    """
    ordered = matrix if order is None else matrix.loc[list(order), list(order)]
    side = _height(len(ordered), 0.55)
    figure = _figure((3.4 + side, 2.2 + side))
    _heat_map(figure.subplots(), ordered, label, limit)
    return figure


def draw_dendrogram(distances: pd.DataFrame, label: str) -> Figure:
    """
    Which tasks belong together: two branches meet at the average distance of their tasks.

    :param distances: (T, T) of at least two tasks
    :param label: of the axis: the distance, with its unit
    :return: the figure
    :raises ValueError: there are fewer than two tasks
    :raises ImportError: matplotlib is not installed
    """
    tree = dendrogram(cluster_tasks(distances), no_plot=True)
    figure = _figure((6.5, 1.3 + _height(len(distances))))
    ax = figure.subplots()
    # Four corners of each joint of two branches; scipy puts the leaves at 5, 15, 25, ...
    for places, heights in zip(tree["icoord"], tree["dcoord"], strict=True):
        ax.plot(heights, places, color="C0")
    leaves = [_short(distances.columns[leaf]) for leaf in tree["leaves"]]
    ax.set_yticks([5 + 10 * place for place in range(len(leaves))], leaves)
    ax.set_ylim(0, 10 * len(leaves))
    ax.yaxis.tick_right()
    ax.tick_params(axis="y", length=0)
    # Tasks that are all alike have no height either.
    ax.set_xlim(1.05 * np.max(tree["dcoord"]) or 1.0, 0)
    ax.set_xlabel(label)
    ax.spines[["left", "top", "right"]].set_visible(False)
    return figure


def draw_pruning(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    reference: float | None = None,
    size_label: str = "share of the residuals' weights that is kept",
    score_label: str = "return",
) -> Figure:
    """
    What is kept against what it is worth.

    :param curves: label -> (kept, score), two sequences of equal length; what is kept in (0, 1], or a size in any unit
    :param reference: score of the whole agent, a grey line
    :param size_label: of the horizontal axis
    :param score_label: of the vertical axis
    :return: the figure
    :raises ValueError: there is no curve, its two sequences differ in length, or a size is not positive
    :raises ImportError: matplotlib is not installed
    """
    if not curves:
        raise ValueError("Expected at least one curve, got none.")
    figure = _figure((6.5, 4))
    ax = figure.subplots()
    if reference is not None:
        ax.axhline(reference, color="grey", linewidth=1, label="not pruned")
    for label, (kept, scores) in curves.items():
        sizes, values = np.asarray(kept, dtype=float), np.asarray(scores, dtype=float)
        if sizes.shape != values.shape or sizes.ndim != 1:
            raise ValueError(f"{label}: expected as many sizes as scores, got {sizes.shape} and {values.shape}.")
        if not (sizes > 0).all():
            raise ValueError(f"{label}: sizes must be positive, for the axis is logarithmic, got {sizes.min()}.")
        by_size = np.argsort(sizes)
        ax.plot(sizes[by_size], values[by_size], "o-", markersize=4, label=label)
    ticker = load("matplotlib.ticker")
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.invert_xaxis()
    ax.set(xlabel=size_label, ylabel=score_label)
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def _figure(size: tuple[float, float]) -> Figure:
    figure: Figure = load("matplotlib.figure").Figure(figsize=size, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.1, h_pad=0.1)
    return figure


def _height(n_rows: int, row: float = 0.4) -> float:
    """Inches of so many rows of text; many rows are set closer."""
    inches = row * n_rows if n_rows <= MOST_NUMBERS else row * MOST_NUMBERS + 0.16 * (n_rows - MOST_NUMBERS)
    # The labels of colour bars need room, however few the rows are.
    return max(inches, 1.2)


def _heat_map(ax: Axes, cells: pd.DataFrame, label: str, limit: float | None = None) -> None:
    values = cells.to_numpy(dtype=float)
    colours = {"cmap": "viridis"} if limit is None else {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
    image = ax.imshow(values, aspect="auto", **colours)
    ax.figure.colorbar(image, ax=ax, label=label, aspect=max(20, len(values)))
    many = max(values.shape) > MOST_NUMBERS
    font: dict[str, Any] = {"fontsize": 7 if many else 10}
    ax.set_xticks(range(values.shape[1]), [_short(name) for name in cells.columns], rotation=40, ha="right", **font)
    ax.set_yticks(range(values.shape[0]), [_short(name) for name in cells.index], **font)
    if many:
        return
    # Luminance of sRGB: white on dark cells, black on light ones.
    light = np.asarray(image.cmap(image.norm(values)))[..., :3] @ np.array([0.2126, 0.7152, 0.0722]) > 0.5
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if light[row, column] else "white"
        ax.text(column, row, _number(value), ha="center", va="center", color=colour, fontsize=9)


def _number(value: float) -> str:
    """Three digits that matter, without an exponent where there can be none."""
    if np.isnan(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _short(name: str) -> str:
    """Names tell themselves apart at their ends: what is left out is in the middle."""
    half = LONG_NAME // 2
    return name if len(name) <= LONG_NAME else f"{name[: half - 1]}…{name[-half:]}"
