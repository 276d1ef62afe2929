"""
What an agent on a large suite takes: memory counted and measured, and the time of an update.

Trains until ``--gradient-steps`` are done after the warm-up, checks that losses are finite and that parameters moved,
and prints one row. Run it once per suite: peak memory belongs to the process.
"""

from __future__ import annotations

import json
import resource
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

GIB = 2**30


@dataclass
class Args:
    """What to measure."""

    suite: str = "MT10"
    """suite of tasks"""
    gradient_steps: int = 200
    """gradient steps after the warm-up"""
    adapter: str = "varshare"
    """residual"""
    sigma_structure: str = "full"
    """structure of sigma"""
    width: int = 256
    """hidden features of actor and critics"""
    device: str = "cpu"
    """where the networks live"""
    json: bool = False
    """print one JSON object instead of a table"""


class StopAfterUpdates(BaseCallback):
    """
    Ends the training after a number of gradient steps and times them.

    :param n_updates: gradient steps
    """

    def __init__(self, n_updates: int) -> None:
        super().__init__()
        self.n_updates, self.started, self.seconds = n_updates, 0.0, 0.0

    def _on_step(self) -> bool:
        done = self.model._n_updates
        if done == 0:
            self.started = time.perf_counter()
        self.seconds = time.perf_counter() - self.started
        return bool(done < self.n_updates)


def peak_memory(device: str) -> int:
    """Peak bytes of the device's allocator, or of this process on the CPU."""
    if device.startswith("cuda"):
        return int(th.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(args: Args) -> dict[str, Any]:
    """
    Train and measure.

    :param args: what to measure
    """
    env = make_multitask_env(args.suite, seed=0)
    env.reset()
    before = peak_memory(args.device)
    sizes = {"actor_width": args.width, "critic_width": args.width}
    model = VarShareSAC(
        "MultiTaskPolicy",
        env,
        adapter=args.adapter,
        sigma_structure=args.sigma_structure,
        seed=0,
        verbose=1,
        device=args.device,
        **sizes,
    )
    start = th.cat([p.detach().flatten().cpu() for p in model.policy.parameters() if p.requires_grad])
    callback = StopAfterUpdates(args.gradient_steps)
    model.learn(10**9, callback=callback)
    end = th.cat([p.detach().flatten().cpu() for p in model.policy.parameters() if p.requires_grad])
    losses = {name: value for name, value in model.logger.name_to_value.items() if name.endswith("_loss")}
    assert model._n_updates >= args.gradient_steps
    assert np.isfinite(list(losses.values())).all() and bool(th.isfinite(end).all())
    peak = peak_memory(args.device)
    env.close()
    return {
        **vars(args),
        "n_tasks": model.n_tasks,
        "batch_size": model.batch_size,
        "parameters": len(end),
        "counted_gib": model.memory_need.total / GIB,
        "environments_gib": before / GIB,
        "measured_gib": (peak - before) / GIB,
        "seconds_per_step_and_update": callback.seconds / args.gradient_steps,
        "moved": float((end != start).float().mean()),
        "losses": losses,
    }


def main(args: Args) -> None:
    """
    Measure and print.

    :param args: what to measure
    """
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    table = Table(title=f"{args.suite}, {args.adapter}, width {args.width}, {args.device}")
    for name in ("figure", "value"):
        table.add_column(name)
    for name, value in result.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
