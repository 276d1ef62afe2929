"""
Compare trained agents by their run folders: interquartile mean (IQM) over seeds and tasks at every evaluation, with
rliable's stratified bootstrap intervals.

    python examples/compare_runs.py logs/varshare_sac logs/sac --runs "Contextual-v0_*"

Each argument is a folder of one agent, and each folder in it whose name fits ``--runs`` is a run with another seed, as
``python -m sb3_varshare.zoo train`` leaves them. A run needs ``evaluations.csv`` and ``protocol.json``. All runs must
have the same tasks, protocol and evaluation steps. Needs ``pip install "sb3_varshare[zoo]" rliable``.

Prints the IQM of the last evaluation and saves a figure of all. Source: Agarwal et al. 2021, arXiv 2108.13264.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import pandas as pd
import tyro
from rliable import library, metrics  # type: ignore[import-untyped]
from rliable.plot_utils import plot_sample_efficiency_curve  # type: ignore[import-untyped]

from sb3_varshare.tasks import check_same_protocol

matplotlib.use("Agg")

COLUMNS = {"success": "is_success", "return": "episode_return"}


@dataclass(frozen=True)
class Args:
    """
    What to compare.

    :param agents: a folder for each agent, which holds its run folders
    :param runs: which folders in it are its runs
    :param score: of an episode; success is the share of episodes with a success at any step
    :param output: file of the figure; an existing one is not overwritten
    :param repetitions: of the bootstrap
    """

    agents: tyro.conf.Positional[tuple[Path, ...]]
    runs: str = "*"
    score: Literal["success", "return"] = "success"
    output: Path = Path("comparison.png")
    repetitions: int = 2_000


def read_run(folder: Path, column: str) -> pd.DataFrame:
    """
    :param folder: of one run
    :param column: of its table of episodes
    :return: (steps, T) mean over the episodes of each task
    :raises ValueError: a task does not report the score
    """
    episodes = pd.read_csv(folder / "evaluations.csv")
    # Where the shared base was evaluated too, its episodes stand in the same table.
    episodes = episodes[episodes["weights"] == "mean"]
    if episodes[column].isna().any():
        raise ValueError(f"Not every task of {folder} reports success; compare by --score return.")
    table: pd.DataFrame = episodes.astype({column: float}).pivot_table(column, "step", "task")
    return table


def read_agents(args: Args) -> tuple[list[int], dict[str, np.ndarray]]:
    """
    :param args: what to compare
    :return: steps of the evaluations, and name of each agent -> (runs, T, steps) scores
    :raises ValueError: there are too few runs, or they cannot be compared
    """
    runs = {
        str(agent): sorted(path.parent for path in agent.glob(f"{args.runs}/evaluations.csv")) for agent in args.agents
    }
    if not runs:
        raise ValueError("Expected the folder of at least one agent, got none.")
    for agent, folders in runs.items():
        if len(folders) < 2:
            raise ValueError(
                f"Expected at least 2 runs {args.runs!r} with evaluations.csv in {agent}, got {len(folders)}."
            )
    tables = {folder: read_run(folder, COLUMNS[args.score]) for folders in runs.values() for folder in folders}
    (first, expected), *others = tables.items()
    protocol = json.loads((first / "protocol.json").read_text(encoding="utf-8"))
    for folder, table in others:
        check_same_protocol(protocol, json.loads((folder / "protocol.json").read_text(encoding="utf-8")))
        if not (table.index.equals(expected.index) and table.columns.equals(expected.columns)):
            raise ValueError(
                f"Expected the tasks and evaluation steps of {first} in {folder} too: {list(expected.columns)} at "
                f"{list(expected.index)}, got {list(table.columns)} at {list(table.index)}; leave it out by --runs."
            )
    scores = {agent: np.stack([tables[folder].to_numpy().T for folder in folders]) for agent, folders in runs.items()}
    return expected.index.tolist(), scores


def iqm_by_step(scores: np.ndarray) -> np.ndarray:
    """
    :param scores: (runs, T, steps)
    :return: (steps,) interquartile mean over runs and tasks
    """
    return np.array([metrics.aggregate_iqm(scores[..., step]) for step in range(scores.shape[-1])])


def main(args: Args) -> None:
    """
    :param args: what to compare
    """
    if args.output.exists():
        raise SystemExit(f"error: {args.output} exists; name another file by --output.")
    try:
        steps, scores = read_agents(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    # rliable 1.2 draws from numpy's global generator.
    np.random.seed(0)
    points, intervals = library.get_interval_estimates(scores, iqm_by_step, reps=args.repetitions)
    for agent, matrix in scores.items():
        low, high = intervals[agent][:, -1]
        print(
            f"{agent}: IQM of the {args.score} {points[agent][-1]:.3f}, 95 % interval {low:.3f} to {high:.3f} "
            f"({matrix.shape[0]} runs, {matrix.shape[1]} tasks, step {steps[-1]:,})"
        )
    labels = {"xlabel": "environment steps of all tasks", "ylabel": f"IQM of the {args.score}", "legend": True}
    axes = plot_sample_efficiency_curve(steps, points, intervals, algorithms=list(scores), **labels)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    axes.figure.savefig(args.output, bbox_inches="tight")
    print(f"Written to {args.output}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
