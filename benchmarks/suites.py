"""
Every suite: its tasks, the sizes of observation and action, its horizon, and how fast it runs in one process.

``--train`` also gives each suite an agent: it trains until ``--gradient-steps`` are done after the warm-up, with short
episodes so that the warm-up ends soon, and it is checked that losses are finite and that parameters moved.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback

from sb3_varshare import VarShareSAC, make_multitask_env
from sb3_varshare.tasks import describe_protocol
from sb3_varshare.tasks.registry import SOURCES

# A suite of two simulators.
MIXED = ["metaworld/reach-v3", "metaworld/drawer-close-v3", "dm_control/cartpole-balance", "dm_control/walker-walk"]
SUITES = (*(suite for entry in SOURCES.values() for suite in entry.suites), "mixed")


@dataclass(frozen=True)
class Args:
    """
    What to measure.

    :param suites: names; ``mixed`` is two tasks of Meta-World and two of dm_control
    :param seconds: of stepping each suite, resets included; every task takes at least one step
    :param train: train an agent on each
    :param gradient_steps: after the warm-up
    :param train_horizon: time limit in steps while training
    :param width: hidden features of actor and critics
    :param threads: of torch
    :param json: print a JSON object per suite instead of a table
    """

    suites: tuple[str, ...] = SUITES
    seconds: float = 10.0
    train: bool = False
    gradient_steps: int = 200
    train_horizon: int = 20
    width: int = 32
    threads: int = 1
    json: bool = False


class StopAfterUpdates(BaseCallback):
    """
    Ends the training after a number of gradient steps.

    :param n_updates: gradient steps
    """

    def __init__(self, n_updates: int) -> None:
        super().__init__()
        self.n_updates = n_updates

    def _on_step(self) -> bool:
        return bool(self.model._n_updates < self.n_updates)


def tasks_of(suite: str) -> str | list[str]:
    """
    :param suite: as in :class:`Args`
    """
    return MIXED if suite == "mixed" else suite


def measure_speed(suite: str, seconds: float) -> dict[str, Any]:
    """
    Step random actions, one environment per task.

    :param suite: as in :class:`Args`
    :param seconds: how long
    """
    begun = time.perf_counter()
    env = make_multitask_env(tasks_of(suite), seed=0)
    env.reset()
    built = time.perf_counter() - begun
    actions = np.random.default_rng(0).uniform(-1, 1, (64, env.num_envs, *env.action_space.shape)).astype(np.float32)
    n_steps, start = 0, time.perf_counter()
    while n_steps == 0 or time.perf_counter() - start < seconds:
        env.step(actions[n_steps % len(actions)])
        n_steps += 1
    elapsed = time.perf_counter() - start
    horizons = sorted({task.horizon for task in env.suite.tasks if task.horizon is not None})
    found = {
        "suite": suite,
        "tasks": env.n_tasks,
        "observations": sorted({task.observation_size for task in env.suite.tasks}),
        "actions": sorted(set(env.suite.action_sizes)),
        "horizons": horizons,
        "seconds_to_start": built,
        "steps_per_second": n_steps * env.num_envs / elapsed,
        "protocol": describe_protocol(env.suite.protocol),
    }
    env.close()
    return found


def check_training(suite: str, args: Args) -> dict[str, Any]:
    """
    Train, and check that losses are finite and parameters moved.

    :param suite: as in :class:`Args`
    :param args: how
    """
    env = make_multitask_env(tasks_of(suite), seed=0, horizon=args.train_horizon)
    batch_size = 16 * env.n_tasks
    widths = {"actor_width": args.width, "critic_width": args.width}
    model = VarShareSAC(
        "MultiTaskPolicy",
        env,
        seed=0,
        device="cpu",
        verbose=0,
        batch_size=batch_size,
        buffer_size=1_000 * env.n_tasks,
        # The warm-up ends when every task has finished an episode.
        learning_starts=0,
        **widths,
    )
    start = th.cat([p.detach().flatten() for p in model.policy.parameters() if p.requires_grad])
    model.learn(10**9, callback=StopAfterUpdates(args.gradient_steps))
    end = th.cat([p.detach().flatten() for p in model.policy.parameters() if p.requires_grad])
    losses = {name: value for name, value in model.logger.name_to_value.items() if name.endswith("_loss")}
    assert model._n_updates >= args.gradient_steps
    assert losses and np.isfinite(list(losses.values())).all() and bool(end.isfinite().all())
    moved = float((end != start).float().mean())
    assert moved > 0.5, f"only {moved:.0%} of the parameters changed"
    env.close()
    return {"gradient_steps": model._n_updates, "moved": moved, "losses": losses}


def make_table(results: list[dict[str, Any]]) -> Table:
    """
    A row per suite.

    :param results: of :func:`measure_speed`, with those of :func:`check_training` where there are any
    """
    table = Table(title="Suites, one process")
    table.add_column("suite")
    names = ("tasks", "observations", "actions", "horizons", "start s", "steps/s")
    trained = ("gradient steps", "moved") if any("moved" in result for result in results) else ()
    for name in (*names, *trained):
        table.add_column(name, justify="right")
    for result in results:
        cells = [str(result["tasks"])]
        cells += [span(result[name]) for name in ("observations", "actions", "horizons")]
        cells += [f"{result['seconds_to_start']:.1f}", f"{result['steps_per_second']:,.0f}"]
        if "moved" in result:
            cells += [f"{result['gradient_steps']:,}", f"{result['moved']:.0%}"]
        table.add_row(result["suite"], *cells)
    return table


def span(values: list[int]) -> str:
    """
    :param values: sorted
    """
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}" if values else ""


def main(args: Args) -> list[dict[str, Any]]:
    """Measure all and print."""
    th.set_num_threads(args.threads)
    results = []
    for suite in args.suites:
        result = measure_speed(suite, args.seconds)
        if args.train:
            result |= check_training(suite, args)
        results.append(result)
        if args.json:
            print(json.dumps(result), flush=True)
    if not args.json:
        table, console = make_table(results), Console()
        # A line that is too long for the terminal wraps; rich would cut the numbers.
        console.width = max(console.width, console.measure(table, options=console.options.update(width=1_000)).maximum)
        console.print(table)
    return results


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
