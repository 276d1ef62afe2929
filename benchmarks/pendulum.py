"""
With one task and no residual the agent is single-task BRC: its curve on Pendulum-v1 beside SB3's SAC.

SAC has rl_zoo3's tuned settings for Pendulum-v1 (learning rate 1e-3, the rest SB3's defaults). Both take one gradient
step per environment step, with the same batch size, and are evaluated on the same episodes.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch as th
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_varshare import VarShareSAC
from sb3_varshare.evaluation.task_evaluation import mean_interval

EVALUATION_SEED = 10_000


@dataclass
class Args:
    """What to run."""

    seeds: int = 3
    """seeds of each agent"""
    steps: int = 8_000
    """environment and gradient steps"""
    eval_freq: int = 1_000
    """steps between evaluations"""
    n_episodes: int = 10
    """episodes per evaluation"""
    processes: int = 2
    """runs at a time"""
    output: Path = field(default_factory=lambda: Path("runs/pendulum"))
    """folder of the CSV"""


def make_agent(agent: str, seed: int) -> BaseAlgorithm:
    """
    :param agent: ``"brc"`` (VarShareSAC, one task, no residual) or ``"sac"``
    :param seed: of everything
    """
    if agent == "sac":
        return SAC("MlpPolicy", "Pendulum-v1", learning_rate=1e-3, seed=seed, device="cpu")
    sizes: dict[str, Any] = {"actor_width": 64, "critic_width": 64}
    return VarShareSAC(
        "MlpPolicy",
        "Pendulum-v1",
        adapter="none",
        learning_rate=1e-3,
        learning_starts=100,
        seed=seed,
        device="cpu",
        **sizes,
    )


def run(agent: str, seed: int, args: Args) -> list[dict[str, Any]]:
    """
    Train one agent, evaluating it on the way.

    :param agent: see :func:`make_agent`
    :param seed: of everything
    :param args: budget
    """
    th.set_num_threads(1)
    model, rows = make_agent(agent, seed), []
    for step in range(args.eval_freq, args.steps + 1, args.eval_freq):
        model.learn(args.eval_freq, reset_num_timesteps=step == args.eval_freq)
        env = Monitor(gym.make("Pendulum-v1"))
        env.reset(seed=EVALUATION_SEED)
        value, _ = evaluate_policy(model, env, args.n_episodes)
        rows.append({"agent": agent, "seed": seed, "step": step, "updates": model._n_updates, "mean_return": value})  # type: ignore[attr-defined]
    return rows


def main(args: Args) -> None:
    """
    Run, save and print.

    :param args: what to run
    """
    units = list(itertools.product(("brc", "sac"), range(args.seeds)))
    with ProcessPoolExecutor(args.processes) as pool:
        futures = [pool.submit(run, agent, seed, args) for agent, seed in units]
        rows = pd.DataFrame([row for future in futures for row in future.result()])
    args.output.mkdir(parents=True, exist_ok=True)
    rows.to_csv(args.output / "curves.csv", index=False)
    table = Table(title=f"Pendulum-v1, mean return and 95 % interval over {args.seeds} seeds")
    for name in ("step", "VarShareSAC, no residual", "SB3 SAC"):
        table.add_column(name)
    for step, group in rows.groupby("step"):
        estimates = [mean_interval(group[group["agent"] == a]["mean_return"].tolist(), 0.95) for a in ("brc", "sac")]
        table.add_row(str(step), *(f"{e.mean:.0f} ({e.low:.0f} to {e.high:.0f})" for e in estimates))
    Console(width=120).print(table)
    print("gradient steps at the end:", np.unique(rows[rows["step"] == args.steps]["updates"]).tolist())


if __name__ == "__main__":
    main(tyro.cli(Args))
