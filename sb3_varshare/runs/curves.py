"""Learning curves of a grid's finished runs."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pandas as pd
import seaborn as sns  # type: ignore[import-untyped]
from matplotlib.figure import Figure

from sb3_varshare.varshare_sac.saving import write_atomically

LABELS = {"is_success": "success", "episode_return": "return"}


def draw_curves(rows: pd.DataFrame, path: Path) -> None:
    """
    A line for each arm, a panel for each suite: success, or return where a suite has none, over steps of each task.
    Means over tasks and seeds, with the 95 % interval of a bootstrap over seeds.

    :param rows: a row for each suite, arm, seed, evaluation, task and episode
    :param path: of the figure, a PNG
    """
    suites = list(dict.fromkeys(rows["suite"]))
    figure = Figure(figsize=(5 * len(suites), 3.5), layout="constrained")
    panels = figure.subplots(1, len(suites), squeeze=False)[0]
    for suite, axes in zip(suites, panels, strict=True):
        own = rows[rows["suite"] == suite]
        column = "episode_return" if own["is_success"].isna().any() else "is_success"
        own = own.astype({column: float}).assign(steps=own["step"] / own["task"].nunique())
        runs = own.groupby(["arm", "seed", "steps"], sort=False, as_index=False)[column].mean()
        sns.lineplot(runs, x="steps", y=column, hue="arm", errorbar=("ci", 95), seed=0, ax=axes)
        axes.set(title=suite, xlabel="environment steps per task", ylabel=f"{LABELS[column]}, mean over tasks")
    image = BytesIO()
    figure.savefig(image, format="png")
    write_atomically(path, lambda file: file.write(image.getvalue()))
