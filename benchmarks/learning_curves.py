"""
Success of each task over steps and wall-clock, from the ``evaluations.csv`` of finished or running trainings.

Give the folders that ``make train`` wrote; prints a Markdown table for each, and saves one figure of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import tyro


@dataclass
class Args:
    """What to show."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """folders with an ``evaluations.csv`` each; the folder's name is the label"""
    every: int = 1
    """show each n-th evaluation in the tables, and always the last"""
    window: int = 3
    """evaluations in the running mean of the figure"""
    figure: Path = field(default_factory=lambda: Path("runs/learning_curves.png"))
    """where the figure goes"""


def success_curve(folder: Path) -> pd.DataFrame:
    """
    :param folder: of a training
    :return: a row per evaluation: steps of each task, minutes of training, success of each task, their mean
    """
    rows = pd.read_csv(folder / "evaluations.csv").query("weights == 'mean'")
    per_task = rows.pivot_table("is_success", ["step", "seconds"], "task", aggfunc="mean", sort=False)
    curve = per_task.assign(mean=per_task.mean(axis=1)).reset_index()
    curve["steps per task"] = curve.pop("step") // per_task.shape[1]
    curve["minutes"] = curve.pop("seconds") / 60
    return curve[["steps per task", "minutes", *per_task.columns, "mean"]]


def markdown(curve: pd.DataFrame, every: int) -> str:
    """
    :param curve: as :func:`success_curve` gives it
    :param every: which rows to show
    """
    shown = curve[(curve.index % every == 0) | (curve.index == len(curve) - 1)]
    lines = [f"| {' | '.join(curve.columns)} |", f"|{'---|' * len(curve.columns)}"]
    for row in shown.itertuples(index=False):
        steps, minutes, *rates = row
        lines.append(f"| {steps:,} | {minutes:.1f} | {' | '.join(f'{rate:.2f}' for rate in rates)} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    """Print the tables, save the figure."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    for folder in args.folders:
        curve = success_curve(folder)
        print(f"\n{folder.name}\n\n{markdown(curve, args.every)}")
        smooth = curve["mean"].rolling(args.window, min_periods=1).mean()
        for axis, column in zip(axes, ("steps per task", "minutes"), strict=True):
            axis.plot(curve[column], smooth, label=folder.name)
            axis.set_xlabel(column)
    axes[0].set_ylabel(f"mean success, mean of {args.window} evaluations")
    axes[0].legend()
    args.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.figure, dpi=120)
    print(f"\nFigure: {args.figure}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
