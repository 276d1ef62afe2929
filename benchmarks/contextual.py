"""
The contextual suite over several seeds: VarShare, one blind shared network, and SAC on each task alone.

Every run gets the same number of environment steps and of gradient steps per task. Scores are normalised between the
random policy (0) and what single-task SAC reaches on average over its seeds (1). Runs go to as many processes as asked;
finished runs are kept in the CSV and not repeated.
"""

from __future__ import annotations

import csv
import itertools
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch as th
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3 import SAC

from sb3_varshare import VarShareSAC, evaluate_tasks, make_multitask_env
from sb3_varshare.evaluation.task_evaluation import mean_interval
from sb3_varshare.varshare_sac.diagnostics import residual_statistics

SAC_LEARNING_RATE = 1e-3  # rl_zoo3's tuned value for Pendulum-v1
COLUMNS = ("agent", "seed", "task", "steps", "mean_return", "base_return", "kl_actor", "kl_critic", "seconds")


@dataclass
class Args:
    """What to run."""

    seeds: int = 5
    """seeds of each agent"""
    steps: int = 6_000
    """environment steps per task"""
    agents: tuple[str, ...] = ("varshare", "none", "sac")
    """adapters of VarShareSAC, and "sac" for single-task SAC"""
    ent_coef: str = "auto_0.01"
    """first entropy coefficient of VarShareSAC"""
    tau: float = 0.02
    """share of VarShareSAC's critics that moves into the target at each update"""
    n_episodes: int = 10
    """evaluation episodes per task"""
    processes: int = 2
    """runs at a time"""
    output: Path = field(default_factory=lambda: Path("runs/contextual"))
    """folder of the CSV"""


def random_rows(seed: int, n_episodes: int) -> list[dict[str, Any]]:
    """
    Return of uniformly random actions.

    :param seed: of the environments and actions
    :param n_episodes: per task
    """
    env = make_multitask_env("contextual", seed=seed)
    env.action_space.seed(seed)
    totals = np.zeros(env.n_tasks)
    for _ in range(n_episodes):
        env.reset()
        dones = np.zeros(env.n_tasks, dtype=bool)
        while not dones.any():
            _, rewards, dones, _ = env.step(np.array([env.action_space.sample() for _ in range(env.n_tasks)]))
            totals += rewards
    returns = zip(env.task_names, totals / n_episodes, strict=True)
    return [{"agent": "random", "seed": seed, "task": task, "mean_return": value} for task, value in returns]


def multi_task_rows(agent: str, seed: int, args: Args) -> list[dict[str, Any]]:
    """
    Train one multi-task agent and evaluate it.

    :param agent: its adapter
    :param seed: of everything
    :param args: budget
    """
    env = make_multitask_env("contextual", seed=seed)
    options: dict[str, Any] = {"preset": "small", "adapter": agent, "ent_coef": args.ent_coef, "tau": args.tau}
    model = VarShareSAC("MultiTaskPolicy", env, **options, seed=seed, device="cpu")
    started = time.perf_counter()
    model.learn(args.steps * env.n_tasks)
    seconds = time.perf_counter() - started
    returns = evaluate_tasks(model, env, args.n_episodes).returns()
    base = evaluate_tasks(model, env, args.n_episodes, base=True).returns() if agent != "independent" else {}
    networks = {"kl_actor": model.policy.actor, "kl_critic": model.policy.critic.net}
    kls = {name: residual_statistics(network).get("kl") for name, network in networks.items()}
    rows = []
    for index, task in enumerate(env.task_names):
        row = {"agent": agent, "seed": seed, "task": task, "steps": args.steps, "seconds": seconds}
        row |= {name: float(kl[index]) for name, kl in kls.items() if kl is not None}
        row |= {"mean_return": returns[task].mean, "base_return": base[task].mean if base else None}
        rows.append(row)
    return rows


def single_task_rows(seed: int, args: Args) -> list[dict[str, Any]]:
    """
    Train SB3's SAC on each task alone and evaluate it.

    :param seed: of everything
    :param args: budget
    """
    rows = []
    for task in make_multitask_env("contextual").task_names:
        env = make_multitask_env([f"contextual/{task}"], seed=seed)
        model = SAC("MlpPolicy", env, learning_rate=SAC_LEARNING_RATE, seed=seed, device="cpu")
        started = time.perf_counter()
        model.learn(args.steps)
        seconds = time.perf_counter() - started
        value = evaluate_tasks(model, env, args.n_episodes).returns()[task].mean
        rows.append(
            {"agent": "sac", "seed": seed, "task": task, "steps": args.steps, "mean_return": value, "seconds": seconds}
        )
    return rows


def run(agent: str, seed: int, args: Args) -> list[dict[str, Any]]:
    """
    One unit of work.

    :param agent: ``"random"``, ``"sac"`` or an adapter
    :param seed: of everything
    :param args: budget
    """
    th.set_num_threads(1)
    if agent == "random":
        return random_rows(seed, args.n_episodes)
    return single_task_rows(seed, args) if agent == "sac" else multi_task_rows(agent, seed, args)


def collect(args: Args) -> pd.DataFrame:
    """
    Run what the CSV does not hold yet.

    :param args: what to run
    :return: a row per agent, seed and task
    """
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "returns.csv"
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    finished = {(row.agent, row.seed) for row in pd.read_csv(path).itertuples()}
    wanted = [unit for unit in itertools.product(("random", *args.agents), range(args.seeds)) if unit not in finished]
    with ProcessPoolExecutor(args.processes) as pool:
        futures = [pool.submit(run, agent, seed, args) for agent, seed in wanted]
        for future in as_completed(futures):
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS).writerows(future.result())
    return pd.read_csv(path)


def normalised(rows: pd.DataFrame, column: str) -> pd.Series:
    """
    Scores between the random policy (0) and the mean of single-task SAC (1).

    :param rows: as :func:`collect` returns them
    :param column: of returns
    :raises ValueError: there is no SAC to measure by
    """
    means = rows.pivot_table("mean_return", "task", "agent")
    if "sac" not in means:
        raise ValueError("Expected 'sac' among the agents, whose mean is the score 1; the returns are in the CSV.")
    low, high = rows["task"].map(means["random"]), rows["task"].map(means["sac"])
    return (rows[column] - low) / (high - low)


def report(rows: pd.DataFrame) -> Table:
    """
    A row per agent and task: return, normalised score with its interval over seeds, base alone, KL.

    :param rows: as :func:`collect` returns them
    """
    rows = rows.assign(score=normalised(rows, "mean_return"), base_score=normalised(rows, "base_return"))
    table = Table(title="contextual suite")
    for name in ("agent", "task", "return", "score", "95 % over seeds", "worst seed", "base", "KL actor", "KL critic"):
        table.add_column(name)
    for (agent, task), group in rows.groupby(["agent", "task"], sort=False):
        score = mean_interval(group["score"].tolist(), 0.95)
        cells = [f"{group['mean_return'].mean():.0f}", f"{score.mean:.2f}", f"{score.low:.2f} to {score.high:.2f}"]
        rest = [group["score"].min(), group["base_score"].mean()]
        cells += ["" if np.isnan(value) else f"{value:.2f}" for value in rest]
        cells += ["" if group[name].isna().all() else f"{group[name].mean():.0f}" for name in ("kl_actor", "kl_critic")]
        table.add_row(str(agent), str(task), *cells)
    return table


def main(args: Args) -> None:
    """
    Run and print.

    :param args: what to run
    """
    rows = collect(args)
    Console(width=140).print(report(rows))
    for agent, own in rows.groupby("agent", sort=False):
        value = mean_interval(own.groupby("seed")["mean_return"].mean().tolist(), 0.95)
        print(f"{agent}: mean return over tasks {value.mean:.0f} ({value.low:.0f} to {value.high:.0f})")
    seconds = rows.drop_duplicates(["agent", "seed"]).groupby("agent")["seconds"].mean().dropna()
    print("seconds of training per run:", {name: round(value) for name, value in seconds.items()})


if __name__ == "__main__":
    main(tyro.cli(Args))
