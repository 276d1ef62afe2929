"""
Which measure finds the tasks that belong together? The contextual suite over several seeds, looked into as it trains.

Counts, for each measure, network and point of training, in how many seeds the identical pair are each other's nearest,
and whether the conflicting pair are farther apart than two tasks are on average, or each other's farthest. Agents are
saved and not trained again.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch as th
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback

from sb3_varshare import VarShareSAC, make_multitask_env, task_distance
from sb3_varshare.inspection import action_distance, task_similarity

TWINS = ("swing-up", "swing-up-twin")
CONFLICTING = ("forward", "reversed")
PROBE_SEED, PROBE_STEPS, PROBE_EVERY = 2_026, 350, 7


@dataclass
class Args:
    """What to run."""

    seeds: int = 5
    """how many agents"""
    steps: int = 5_000
    """environment steps per task"""
    points: int = 5
    """how often an agent is looked into, evenly spaced, the end included"""
    processes: int = 2
    """agents trained at a time"""
    output: Path = field(default_factory=lambda: Path("runs/inspection"))
    """folder of the agents and the table"""


class Save(BaseCallback):
    """
    Saves the agent at evenly spaced steps, between updates.

    :param folder: of the files ``<steps per task>.zip``
    :param every: steps per task
    """

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__()
        self.folder, self.every = folder, every

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._save()

    def _on_training_end(self) -> None:
        self._save()

    def _save(self) -> None:
        steps, rest = divmod(self.num_timesteps, self.training_env.num_envs)
        if steps and not rest and steps % self.every == 0:
            self.model.save(self.folder / f"{steps}.zip")


def train(seed: int, args: Args) -> Path:
    """
    :param seed: of everything
    :param args: budget
    :return: the folder of the agent's files
    """
    th.set_num_threads(1)
    folder = args.output / f"seed{seed}"
    if not (folder / f"{args.steps}.zip").exists():
        env = make_multitask_env("contextual", seed=seed)
        model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=seed, device="cpu")
        model.learn(args.steps * env.n_tasks, callback=Save(folder, args.steps // args.points))
    return folder


def probe() -> np.ndarray:
    """Observations of uniformly random play of every task, (250, 5), the same for all agents."""
    env = make_multitask_env("contextual", seed=PROBE_SEED)
    random = np.random.default_rng(PROBE_SEED)
    seen = [env.reset()]
    for _ in range(PROBE_STEPS):
        seen.append(env.step(random.uniform(-1, 1, (env.num_envs, 1)).astype(np.float32))[0])
    observations: np.ndarray = np.concatenate(seen[:PROBE_STEPS:PROBE_EVERY])
    return observations[:, : -env.n_tasks]


def measures(model: VarShareSAC, observations: np.ndarray) -> dict[tuple[str, str], pd.DataFrame]:
    """
    :param model: a trained agent
    :param observations: of :func:`probe`
    :return: (network, measure) -> distances
    """
    found = {}
    for network in ("actor", "critic"):
        found[network, "1 - cosine"] = 1 - task_similarity(model, network)
        found[network, "units of the prior"] = task_distance(model, network, "prior")
        found[network, "noise, all weights"] = task_distance(model, network, "noise", threshold=0.0)
        found[network, "noise, above 1"] = task_distance(model, network, "noise")
        found[network, "noise, above 2"] = task_distance(model, network, "noise", threshold=2.0)
    found["actor", "actions"] = action_distance(model, observations)
    return found


def judge(distances: pd.DataFrame) -> dict[str, float]:
    """
    :param distances: (T, T)
    :return: whether the identical pair are nearest and the conflicting pair farthest, both ways and without a tie;
        distances of both pairs over the mean of all pairs
    """
    names = list(distances.columns)
    values = distances.to_numpy(copy=True)
    mean = values[np.triu_indices(len(values), 1)].mean()
    np.fill_diagonal(values, np.nan)

    def first(pair: tuple[str, str], sign: int) -> bool:
        at, other = names.index(pair[0]), names.index(pair[1])
        rest = np.delete(sign * values[at], [at, other])
        return bool(sign * values[at, other] < rest.min())

    twins, conflict = (distances.loc[pair] / mean if mean else np.nan for pair in (TWINS, CONFLICTING))
    return {
        "nearest": all(first(pair, 1) for pair in (TWINS, TWINS[::-1])),
        "farthest": all(first(pair, -1) for pair in (CONFLICTING, CONFLICTING[::-1])),
        "twins": twins,
        "conflict": conflict,
    }


def collect(args: Args) -> pd.DataFrame:
    """
    Train what is missing and look into all.

    :param args: what to run
    :return: a row per seed, point of training, network and measure
    """
    with ProcessPoolExecutor(args.processes) as pool:
        folders = list(pool.map(train, range(args.seeds), [args] * args.seeds))
    every, observations, rows = args.steps // args.points, probe(), []
    for seed, folder in enumerate(folders):
        for steps in range(every, args.steps + 1, every):
            model = VarShareSAC.load(folder / f"{steps}.zip", device="cpu")
            for (network, measure), distances in measures(model, observations).items():
                place = {"seed": seed, "steps": steps, "network": network, "measure": measure}
                rows.append({**place, **judge(distances)})
    return pd.DataFrame(rows)


def report(rows: pd.DataFrame) -> Table:
    """
    A row per network and measure, a column per point of training: seeds with the identical pair nearest; at the end
    also the conflicting pair, and the distances of both pairs.

    :param rows: as :func:`collect` returns them
    """
    points, seeds = sorted(rows["steps"].unique()), rows["seed"].nunique()
    heads = [f"nearest at {steps:,}" for steps in points]
    table = Table("network", "measure", *heads, "farthest", "identical / mean", "conflicting / mean")
    for (network, measure), group in rows.groupby(["network", "measure"], sort=False):
        counts = group.groupby("steps")["nearest"].sum()
        end = group[group["steps"] == points[-1]]
        cells = [f"{counts[steps]:.0f} of {seeds}" for steps in points]
        cells += [
            f"{end['farthest'].sum():.0f} of {seeds}",
            f"{end['twins'].mean():.2f}",
            f"{end['conflict'].mean():.2f}",
        ]
        table.add_row(str(network), str(measure), *cells)
    return table


def main(args: Args) -> None:
    """
    Run, print, and write ``measures.csv``.

    :param args: what to run
    """
    rows = collect(args)
    rows.to_csv(args.output / "measures.csv", index=False)
    Console(width=180).print(report(rows))


if __name__ == "__main__":
    main(tyro.cli(Args))
