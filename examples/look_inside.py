"""
What a trained agent looks like inside: which tasks changed what, which belong together, and how sure the critics are.

Trains on the five pendulums of the contextual suite, two of which are the same task and two of which need opposite
actions, and asks the agent, who is told neither, by its residuals. Writes all tables and figures into a folder, and
those of each look during training. Takes about three minutes on two CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch as th
import tyro
from rich.console import Console
from rich.table import Table

from sb3_varshare import (
    InspectionCallback,
    VarShareSAC,
    make_multitask_env,
    residual_table,
    save_figures,
    task_distance,
    value_uncertainty,
)
from sb3_varshare.inspection import action_distance, nearest_tasks, replay_observations

TWINS = ("swing-up", "swing-up-twin")
CONFLICTING = ("forward", "reversed")
# Twice the speed that the suite allows: no pendulum was ever seen like that.
IMPOSSIBLE_SPEED = 16.0  # rad / s


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param steps: transitions of each task
    :param looks: how often to look inside during training, the end included
    :param seed: of everything
    :param threads: of torch
    :param output: folder of the agent, the tables and the figures
    """

    steps: int = 5_000
    looks: int = 2
    seed: int = 0
    threads: int = 1
    output: Path = Path("runs/look_inside")


def make_table(model: VarShareSAC) -> Table:
    """KL in nats: a row per task, a column per layer of actor and critic."""
    residuals = residual_table(model)
    kl = residuals.pivot_table("kl", "task", ["network", "layer"], sort=False)
    table = Table("task", *(f"{network}\n{layer}" for network, layer in kl.columns), title="KL (nats)")
    for task, row in kl.iterrows():
        table.add_row(str(task), *(f"{value:.0f}" for value in row))
    return table


def distances_of(model: VarShareSAC) -> dict[str, pd.DataFrame]:
    """Three views of which tasks belong together: by the actor's and the critic's residuals, and by the actions."""
    return {
        "actor's residuals": task_distance(model, "actor"),
        "critic's residuals": task_distance(model, "critic"),
        "actions": action_distance(model, replay_observations(model)),
    }


def make_pairs_table(distances: dict[str, pd.DataFrame]) -> Table:
    """How far apart the pairs are that are known, in units of the mean distance of all pairs."""
    table = Table(
        "by", "identical pair", "nearest to each other", "conflicting pair", title="Which tasks belong together"
    )
    for name, matrix in distances.items():
        mean = matrix.to_numpy()[np.triu_indices(len(matrix), 1)].mean()
        if mean == 0:
            table.add_row(name, "-", "no task differs from another", "-")
            continue
        nearest = nearest_tasks(matrix)
        answer = "yes" if (nearest[TWINS[0]], nearest[TWINS[1]]) == TWINS[::-1] else "no"
        table.add_row(name, f"{matrix.loc[TWINS] / mean:.2f}", answer, f"{matrix.loc[CONFLICTING] / mean:.2f}")
    return table


def make_doubt_table(model: VarShareSAC) -> Table:
    """Value and its three doubts in units of the return, on states of the replay and on impossible ones."""
    columns = ("task", "states", "value", "aleatoric", "epistemic", "disagreement")
    table = Table(*columns, title="How sure the critics are, in units of the return, means over states")
    states = replay_observations(model).reshape(model.n_tasks, -1, model.policy.observation_size)
    for task, seen in zip(model.task_names, states, strict=True):
        impossible = seen.copy()
        impossible[:, 2] = np.copysign(IMPOSSIBLE_SPEED, impossible[:, 2])
        for name, observations in (("seen", seen), ("impossible", impossible)):
            doubts = value_uncertainty(model, observations, task=task).in_returns()
            table.add_row(task, name, *(f"{numbers.mean():.1f}" for numbers in doubts[:4]))
    return table


def main(args: Args) -> dict[str, pd.DataFrame]:
    """Train, look inside, save."""
    th.set_num_threads(args.threads)
    env = make_multitask_env("contextual", seed=args.seed)
    model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=args.seed)
    steps = args.steps * env.n_tasks
    model.learn(steps, callback=InspectionCallback(steps // args.looks, args.output / "training"), progress_bar=True)
    env.close()
    model.save(args.output / "agent.zip")

    distances = distances_of(model)
    console = Console(width=160)
    for table in (make_table(model), make_pairs_table(distances), make_doubt_table(model)):
        console.print(table)
    files = save_figures(model, args.output)
    print(f"{len(files)} tables and figures in {args.output}; the agent too, for python -m sb3_varshare.inspection")
    return distances


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
