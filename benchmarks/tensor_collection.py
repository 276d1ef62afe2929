"""
Environment steps per second of the contextual pendulums: as Gymnasium envs, and as rows of tensors by either face.

Each way collects with the same agent, by its policy and into its replay, without training. The ways take turns in one
run, so that what else the machine does meets all of them; the ratios are of the medians.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch as th
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnvWrapper

from sb3_varshare import VarShareSAC, make_multitask_env, make_tensor_env

PLAIN, NUMPY, TENSOR = "Gymnasium envs", "rows, numpy face", "rows, tensor face"
# Longer episodes than usual would only make the warm-up longer.
HORIZON = 20


@dataclass(frozen=True)
class Args:
    """
    :param n_envs: numbers of environments
    :param steps: of all environments, per measurement
    :param repeats: measurements of each way
    :param device: of rows and agent
    :param width: of the actor
    :param json: print one JSON object instead of the table
    """

    n_envs: tuple[int, ...] = (10, 100, 1_000)
    steps: int = 100
    repeats: int = 3
    device: str = "cpu"
    width: int = 64
    json: bool = False


class AsArrays(VecEnvWrapper):
    """Changes nothing; a wrapper takes the agent to the numpy face."""

    def reset(self) -> Any:
        """As the envs."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """As the envs."""
        return self.venv.step_wait()


def make_env(way: str, n_envs: int, device: str) -> Any:
    """Environments of one way."""
    if way == PLAIN:
        return make_multitask_env("contextual", n_envs, horizon=HORIZON)
    rows = make_tensor_env("contextual", n_envs, device=device, horizon=HORIZON)
    return AsArrays(rows) if way == NUMPY else rows


def collector(way: str, n_envs: int, args: Args) -> Callable[[], float]:
    """A function that collects and returns environment steps per second; the warm-up is over."""
    env = make_env(way, n_envs, args.device)
    model = VarShareSAC(
        "MultiTaskPolicy",
        env,
        actor_width=args.width,
        critic_width=4,
        learning_starts=0,
        gradient_steps=0,
        buffer_size=max(100_000, 100 * n_envs),
        device=args.device,
        seed=0,
    )
    model.learn((HORIZON + 2) * n_envs)

    def collect() -> float:
        start = time.perf_counter()
        model.learn(args.steps * n_envs, reset_num_timesteps=False)
        if args.device.startswith("cuda"):
            th.cuda.synchronize()
        return args.steps * n_envs / (time.perf_counter() - start)

    return collect


def measure(args: Args) -> dict[int, dict[str, float]]:
    """Number of environments -> way -> median environment steps per second."""
    results = {}
    for n_envs in args.n_envs:
        ways = {way: collector(way, n_envs, args) for way in (PLAIN, NUMPY, TENSOR)}
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(args.repeats):
            for way, collect in ways.items():
                speeds[way].append(collect())
        results[n_envs] = {way: statistics.median(values) for way, values in speeds.items()}
    return results


def make_table(results: dict[int, dict[str, float]], args: Args) -> Table:
    """One row per number of environments."""
    table = Table(title=f"Environment steps per second with an agent that acts and stores, on {args.device}")
    table.add_column("environments", justify="right")
    for header in (PLAIN, NUMPY, TENSOR, "tensor / numpy face", "tensor face / Gymnasium"):
        table.add_column(header, justify="right")
    for n_envs, speeds in results.items():
        ratios = (speeds[TENSOR] / speeds[NUMPY], speeds[TENSOR] / speeds[PLAIN])
        table.add_row(
            str(n_envs), *(f"{speeds[way]:,.0f}" for way in (PLAIN, NUMPY, TENSOR)), *(f"{r:.2f}" for r in ratios)
        )
    return table


def main(args: Args) -> None:
    """Measure and print."""
    th.set_num_threads(1)
    results = measure(args)
    if args.json:
        print(json.dumps(results))
    else:
        Console(width=140).print(make_table(results, args))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
