"""Plots of a study as files, drawn by Optuna with matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

# In this order of preference the two axes of the contour.
AXES = ("beta", "sigma_prior")
LEAST_TRIALS = 2


def plot_study(study: optuna.Study, output: Path, suffix: str = "png") -> list[Path]:
    """
    Draw history, importance, a slice of every parameter, and the contour over the first two.

    :param study: with at least two completed trials
    :param output: folder of the files
    :param suffix: png, svg or pdf
    :return: the files
    :raises ValueError: there are too few completed trials
    """
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(complete) < LEAST_TRIALS:
        raise ValueError(f"Plots need at least {LEAST_TRIALS} completed trials, got {len(complete)}.")
    import matplotlib

    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as draw

    names = sorted(complete[0].params, key=lambda name: AXES.index(name) if name in AXES else len(AXES))
    plots: dict[str, Callable[[], Any]] = {
        "history": lambda: draw.plot_optimization_history(study),
        "slice": lambda: draw.plot_slice(study, params=names),
    }
    # What was the same in all trials has no importance, and no contour.
    varied = [name for name in names if len({trial.params[name] for trial in complete}) > 1]
    if varied:
        # Optuna's own choice needs scikit-learn.
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        plots["importance"] = lambda: draw.plot_param_importances(study, evaluator=evaluator, params=varied)
    if len(varied) > 1:
        plots["contour"] = lambda: draw.plot_contour(study, params=varied[:2])
    output.mkdir(parents=True, exist_ok=True)
    return [_save(plot, output / f"{name}.{suffix}") for name, plot in plots.items()]


def _save(plot: Callable[[], Any], path: Path) -> Path:
    from matplotlib import pyplot

    with warnings.catch_warnings():
        # They call themselves experimental, and have remarks on their own layout.
        warnings.simplefilter("ignore")
        plot()
        figure = pyplot.gcf()
        for axes in figure.axes:
            _label_sparsely(axes)
        figure.set_size_inches(max(7, 3.5 * len(figure.axes)), 5)
        figure.savefig(path, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _label_sparsely(axes: Any) -> None:
    """Of less than two decades matplotlib labels every tick, one over the other."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
