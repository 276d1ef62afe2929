"""Figures: what is drawn is what was given, and every label can be read."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from sb3_varshare.inspection.figures import draw_dendrogram, draw_pruning, draw_residuals, draw_tasks
from sb3_varshare.inspection.residuals import COLUMNS

NAMES = ["swing-up", "swing-up-twin", "forward", "a-name-that-is-much-too-long-for-any-axis-v3"]


def make_table(n_tasks: int = 4, networks: tuple[str, ...] = ("actor", "critic")) -> pd.DataFrame:
    """A row per network, layer and task; the KL counts up."""
    names = NAMES if n_tasks == 4 else [f"button-press-topdown-wall-v{i}" for i in range(n_tasks)]
    layers = ["linear_in", "block 0 linear_in", "block 0 linear_out", "linear_out"]
    keys = [(network, layer, task) for network in networks for layer in layers for task in names]
    table = pd.DataFrame(keys, columns=["network", "layer", "task"])
    return table.assign(kl=np.arange(len(table), dtype=float) ** 2, sigma_over_prior=np.nan)


def make_distances(n_tasks: int = 4) -> pd.DataFrame:
    names = NAMES if n_tasks == 4 else [f"button-press-topdown-wall-v{i}" for i in range(n_tasks)]
    points = np.random.default_rng(0).normal(size=(n_tasks, 2))
    return pd.DataFrame(np.linalg.norm(points[:, None] - points, axis=-1), names, names)


def texts(figure: Figure) -> list[Any]:
    """All visible texts that are not empty, as drawn."""
    FigureCanvasAgg(figure).draw()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    # Ticks beyond the axes' limits exist, and are not drawn.
    hidden = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            margin = 1e-6 * (high - low)
            for tick in axis.get_major_ticks():
                if not low - margin <= tick.get_loc() <= high + margin:
                    hidden |= {tick.label1, tick.label2}
    return [text for text in found if text not in hidden]


def assert_readable(figure: Figure) -> None:
    """No text leaves the figure, and none lies on another; slanted labels of one axis are parallel and are left out."""
    canvas = figure.bbox
    upright = []
    for text in texts(figure):
        box = text.get_window_extent()
        inside = box.x0 >= canvas.x0 and box.x1 <= canvas.x1 and box.y0 >= canvas.y0 and box.y1 <= canvas.y1
        assert inside, f"{text.get_text()!r} leaves the figure"
        if text.get_rotation() in (0, 90):
            upright.append((text.get_text(), box))
    for (one, first), (other, second) in combinations(upright, 2):
        assert not first.overlaps(second), f"{one!r} lies on {other!r}"


@pytest.mark.parametrize("n_tasks", [1, 4, 50])
def test_heat_maps_of_residuals(n_tasks: int) -> None:
    table = make_table(n_tasks)
    figure = draw_residuals(table)
    assert_readable(figure)
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in panels] == ["actor", "critic"]
    for network, ax in zip(("actor", "critic"), panels, strict=True):
        expected = table[table["network"] == network]["kl"].to_numpy().reshape(4, n_tasks).T
        np.testing.assert_array_equal(ax.images[0].get_array(), expected)
    bars = [ax for ax in figure.axes if not ax.images]
    assert [ax.get_ylabel() for ax in bars] == ["KL (nats)", "KL (nats)"]
    shown = {text.get_text() for text in texts(figure)}
    assert {"linear_in", "block 0 linear_out", table["task"].iloc[0]} <= shown
    # Numbers where there is room for them.
    assert ("961" in shown) == (n_tasks == 4)


def test_one_network_is_one_panel() -> None:
    figure = draw_residuals(make_table(networks=("critic",)))
    assert [ax.get_title() for ax in figure.axes if ax.images] == ["critic"]
    assert_readable(figure)


def test_long_names_keep_their_ends() -> None:
    shown = {text.get_text() for text in texts(draw_residuals(make_table()))}
    assert "a-name-that-is-…-for-any-axis-v3" in shown


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_has_room_for_its_name(column: str) -> None:
    table = make_table(1).drop(columns=["kl", "sigma_over_prior"])
    assert_readable(draw_residuals(table.assign(**{column: 0.5}), column))


def test_two_signs_have_two_colours() -> None:
    figure = draw_tasks(pd.DataFrame([[1.0, -0.2], [-0.2, 1.0]], ["a", "b"], ["a", "b"]), "cosine", limit=1.0)
    assert_readable(figure)
    image = next(ax.images[0] for ax in figure.axes if ax.images)
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)
    (red, _, blue, _), (other_red, _, other_blue, _) = image.cmap(image.norm([1.0, -1.0]))
    assert red > blue and other_blue > other_red


@pytest.mark.parametrize("n_tasks", [2, 4, 50])
def test_heat_maps_of_tasks(n_tasks: int) -> None:
    distances = make_distances(n_tasks)
    figure = draw_tasks(distances, "distance (metres)", list(distances.columns[::-1]))
    assert_readable(figure)
    (ax,) = (ax for ax in figure.axes if ax.images)
    np.testing.assert_array_equal(ax.images[0].get_array(), distances.to_numpy()[::-1, ::-1])
    assert [ax.get_ylabel() for ax in figure.axes if not ax.images] == ["distance (metres)"]


@pytest.mark.parametrize("n_tasks", [2, 4, 50])
def test_dendrograms(n_tasks: int) -> None:
    distances = make_distances(n_tasks)
    figure = draw_dendrogram(distances, "distance (metres)")
    assert_readable(figure)
    (ax,) = figure.axes
    assert ax.get_xlabel() == "distance (metres)"
    nearest = distances.to_numpy()[np.triu_indices(n_tasks, 1)].min()
    joints = np.concatenate([line.get_xdata() for line in ax.lines])
    assert joints[joints > 0].min() == pytest.approx(nearest)
    # What is nearest stands side by side.
    one, other = np.unravel_index((distances.to_numpy() + 9 * np.eye(n_tasks)).argmin(), distances.shape)
    order = [text.get_text() for text in ax.get_yticklabels()]
    assert len(order) == n_tasks
    if n_tasks != 4:
        assert abs(order.index(distances.columns[one]) - order.index(distances.columns[other])) == 1


def test_equal_tasks_have_a_dendrogram() -> None:
    assert_readable(draw_dendrogram(make_distances(2) * 0, "distance"))


def test_pruning_curves() -> None:
    curves = {"|mu|": ([0.1, 1.0, 0.5], [-300, -150, -160]), "noise": ([1.0, 0.02], [-150, -155])}
    figure = draw_pruning(curves, reference=-149)
    assert_readable(figure)
    (ax,) = figure.axes
    reference, first, second = ax.lines
    assert list(reference.get_ydata()) == [-149, -149]
    assert (list(first.get_xdata()), list(first.get_ydata())) == ([0.1, 0.5, 1.0], [-300, -160, -150])
    assert list(second.get_xdata()) == [0.02, 1.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["not pruned", "|mu|", "noise"]
    assert ax.get_xlim()[0] > ax.get_xlim()[1]
    assert len(draw_pruning(curves).axes[0].lines) == 2


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"column must be one of .*got 'mu'"):
        draw_residuals(make_table(), "mu")
    with pytest.raises(ValueError, match="sigma_over_prior needs a spread"):
        draw_residuals(make_table(), "sigma_over_prior")
    with pytest.raises(ValueError, match="at least two tasks"):
        draw_dendrogram(make_distances(1), "distance")
    with pytest.raises(ValueError, match="at least one curve"):
        draw_pruning({})
    with pytest.raises(ValueError, match=r"a: expected as many sizes as scores, got \(2,\) and \(1,\)"):
        draw_pruning({"a": ([1, 2], [3])})
    with pytest.raises(ValueError, match="a: sizes must be positive"):
        draw_pruning({"a": ([1, 0], [3, 4])})
