"""
Two ways to explore: acting with mean weights, and with one draw of the weights per episode (Thompson sampling).

Trains both with the same seeds on the contextual suite and evaluates both alike, with mean weights. Writes every
evaluation episode into a folder per run, and ``curves.png``. Takes about five minutes for one seed on two CPU cores.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch as th
import tyro
from rich.console import Console
from rich.table import Table

from sb3_varshare import EvalTasksCallback, VarShareSAC, make_multitask_env

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EXPLORATIONS = ("mean", "posterior")
# Exploration -> seed -> transitions of all tasks -> mean return over tasks and episodes
Curves = dict[str, dict[int, dict[int, float]]]


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param steps: transitions of each task
    :param evaluations: how often, besides at the start
    :param episodes: of each task in an evaluation
    :param seeds: a run of each way for each
    :param sigma_prior: how wide the posterior is at the start, relative to the initial weights: what is explored with
    :param threads: of torch
    :param output: folder of the episodes and the figure
    """

    steps: int = 6_000
    evaluations: int = 10
    episodes: int = 5
    seeds: tuple[int, ...] = (0,)
    sigma_prior: float = 0.2
    threads: int = 1
    output: Path = Path("runs/posterior_exploration")


def train(exploration: str, seed: int, args: Args) -> dict[int, float]:
    """
    One run.

    :param exploration: ``"mean"`` or ``"posterior"``
    :param seed: of everything
    :param args: what to run
    :return: its learning curve
    """
    env = make_multitask_env("contextual", seed=seed)
    model = VarShareSAC(
        "MultiTaskPolicy", env, preset="small", exploration=exploration, sigma_prior=args.sigma_prior, seed=seed
    )
    steps = args.steps * env.n_tasks
    folder = args.output / f"{exploration}_seed{seed}"
    table = folder / "evaluations.csv"
    # The callback appends, so that a resumed run goes on in the same table; this run starts anew.
    table.unlink(missing_ok=True)
    callback = EvalTasksCallback(eval_freq=max(1, steps // args.evaluations), n_episodes=args.episodes, log_path=folder)
    model.learn(steps, callback=callback, progress_bar=True)
    env.close()
    return read_curve(table)


def read_curve(table: Path) -> dict[int, float]:
    """
    :param table: as :class:`~sb3_varshare.EvalTasksCallback` writes it, a row per step, task and episode
    :return: transitions of all tasks -> mean return
    """
    returns: dict[int, list[float]] = {}
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            returns.setdefault(int(row["step"]), []).append(float(row["episode_return"]))
    return {step: float(np.mean(values)) for step, values in returns.items()}


def make_table(curves: Curves) -> Table:
    """A row per evaluation, a column per way to explore, means over seeds."""
    table = Table(title="Mean return over tasks, episodes and seeds")
    for column in ("transitions", *EXPLORATIONS):
        table.add_column(column, justify="right")
    for step in next(iter(curves[EXPLORATIONS[0]].values())):
        means = [np.mean([curve[step] for curve in curves[way].values()]) for way in EXPLORATIONS]
        table.add_row(f"{step:,}", *(f"{mean:.1f}" for mean in means))
    return table


def draw_figure(curves: Curves, path: Path) -> None:
    """A thin line per seed, a thick one for their mean."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, (way, by_seed) in enumerate(curves.items()):
        steps = list(next(iter(by_seed.values())))
        lines = np.array([list(curve.values()) for curve in by_seed.values()])
        axes.plot(steps, lines.T, color=f"C{number}", linewidth=0.7, alpha=0.6)
        axes.plot(steps, lines.mean(0), color=f"C{number}", linewidth=2, label=f"acting with the {way}")
    axes.set(xlabel="transitions of all tasks", ylabel="return of the mean weights, mean over tasks")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(args: Args) -> Curves:
    """Train both, print the learning curves side by side, draw them."""
    th.set_num_threads(args.threads)
    curves = {way: {seed: train(way, seed, args) for seed in args.seeds} for way in EXPLORATIONS}
    Console().print(make_table(curves))
    draw_figure(curves, args.output / "curves.png")
    print(f"Saved in {args.output}")
    return curves


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
