"""
Where the time of ``learn`` goes: simulators, gradient steps, and everything else.

One agent trains on a suite with one environment per task. Its callables tell a stopwatch where they are; time belongs
to the innermost of them. The warm-up, the start of the environments and the first gradient steps are not counted.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal
from unittest import mock

import torch as th
import tyro
from rich.console import Console
from rich.table import Table
from roofline import machine
from stable_baselines3.common.callbacks import BaseCallback
from update_stages import Stopwatch

from sb3_varshare import VarShareSAC, make_multitask_env

STAGES = ("simulators", "gradient steps", "actions", "replay", "statistics", "logs", "rest")


@dataclass(frozen=True)
class Args:
    """
    What to measure.

    :param suite: one environment for each of its tasks
    :param adapter: of the agent
    :param sigma_structure: of ``varshare``
    :param width: of actor and critics
    :param horizon: steps of an episode; short ones end the warm-up soon, but they make resets weigh more
    :param steps: of all environments, after the warm-up
    :param n_workers: processes of the environments; 0 for none
    :param device: of the agent
    :param threads: of torch; by default what torch takes
    :param json: print one JSON object instead of the table
    """

    suite: str = "MT10"
    adapter: Literal["varshare", "low_rank", "deterministic", "embedding", "none", "independent"] = "varshare"
    sigma_structure: Literal["full", "tied", "fixed"] = "tied"
    width: int = 256
    horizon: int = 100
    steps: int = 300
    n_workers: int = 0
    device: str = "cpu"
    threads: int | None = None
    json: bool = False


class Forget(BaseCallback):
    """
    Forgets what was measured before a number of gradient steps.

    :param stopwatch: that measures
    :param n_updates: gradient steps that do not count
    """

    def __init__(self, stopwatch: Stopwatch, n_updates: int = 5) -> None:
        super().__init__()
        self.stopwatch, self.n_updates, self.first = stopwatch, n_updates, 0

    def _on_step(self) -> bool:
        if not self.first and self.model._n_updates >= self.n_updates:
            self.stopwatch.seconds.clear()
            self.first = self.num_timesteps
        return True


def watched(model: VarShareSAC) -> list[tuple[Any, str, str]]:
    """
    Owner, attribute and stage of every callable that is timed.

    :param model: with its environments
    """
    return [
        (model.env, "step", "simulators"),
        (model, "train", "gradient steps"),
        (model, "_sample_action", "actions"),
        (model, "_store_transition", "replay"),
        (model, "_update_info_buffer", "statistics"),
        (model, "dump_logs", "logs"),
        (model, "collect_rollouts", "rest"),
    ]


def measure(args: Args) -> tuple[dict[str, float], int, int]:
    """
    Train.

    :param args: what to measure
    :return: seconds of each of :data:`STAGES`, the steps of all environments that they took, and the environments
    """
    env = make_multitask_env(args.suite, n_workers=args.n_workers, horizon=args.horizon)
    warm_up = (args.horizon + 1) * env.n_tasks
    kwargs = {"sigma_structure": args.sigma_structure} if args.adapter == "varshare" else {}
    model = VarShareSAC(
        "MultiTaskPolicy",
        env,
        adapter=args.adapter,
        actor_width=args.width,
        critic_width=args.width,
        learning_starts=warm_up,
        device=args.device,
        seed=0,
        **kwargs,
    )
    stopwatch = Stopwatch(model.device)
    forget = Forget(stopwatch)
    with ExitStack() as stack:
        for owner, attribute, name in watched(model):
            timed = stopwatch.timed(getattr(owner, attribute), name)
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        model.learn(warm_up + args.steps * env.n_tasks, callback=forget)
    env.close()
    seconds = dict.fromkeys(STAGES, 0.0)
    for path, value in stopwatch.seconds.items():
        seconds[path[-1]] += value
    return seconds, (model.num_timesteps - forget.first) // env.num_envs, env.num_envs


def main(args: Args) -> None:
    """
    Measure and print.

    :param args: what to measure
    """
    if args.threads:
        th.set_num_threads(args.threads)
    seconds, n_steps, n_envs = measure(args)
    total = sum(seconds.values())
    if args.json:
        settings = {**asdict(args), "counted_steps": n_steps}
        return print(json.dumps({"machine": machine(th.device(args.device)), "settings": settings, "seconds": seconds}))
    table = Table(title=f"{args.suite}, {args.adapter}, width {args.width}, {args.n_workers} workers: learn")
    for name in ("stage", "ms per step of all", "share"):
        table.add_column(name)
    for name, value in seconds.items():
        table.add_row(name, f"{1e3 * value / n_steps:.2f}", f"{value / total:.1%}")
    other = total - seconds["simulators"] - seconds["gradient steps"]
    rate = n_envs * n_steps / total
    table.caption = f"{rate:.0f} transitions/s; neither simulator nor gradient step: {other / total:.1%}"
    Console().print(table)
    return None


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
