"""
From a trained agent to a small one: prune it as far as its return allows, learn on with what is left, save and load.

Trains on the contextual suite, or takes a model that is there. Prints what is left of every layer, the sizes that were
tried, and the returns in the end. Takes five minutes on two CPU cores, most of it training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch as th
import tyro

from sb3_varshare import VarShareSAC, evaluate_tasks, make_multitask_env, prune
from sb3_varshare.compression import PruneReport


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param steps: transitions of each task to train for
    :param max_loss: share of the return above a random policy's that may be lost
    :param score: what weights are ranked by
    :param more_steps: transitions of each task to learn on for with the weights that are left; a model that was loaded
        does not, since its file has no replay
    :param episodes: of each task in an evaluation
    :param seed: of everything
    :param threads: of torch; networks as small as these are slower with more
    :param model: a trained model of the contextual suite to prune instead of a new one
    :param save_path: where the pruned agent goes
    """

    steps: int = 6_000
    max_loss: float = 0.01
    score: Literal["magnitude", "signal_to_noise"] = "magnitude"
    more_steps: int = 500
    episodes: int = 10
    seed: int = 0
    threads: int = 1
    model: Path | None = None
    save_path: Path = Path("runs/prune/pruned.zip")


def main(args: Args) -> PruneReport:
    """Train, prune, save, load, learn on."""
    th.set_num_threads(args.threads)
    env = make_multitask_env("contextual", seed=args.seed)
    if args.model is None:
        model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=args.seed)
        model.learn(args.steps * env.n_tasks, progress_bar=True)
    else:
        model = VarShareSAC.load(args.model, env=env)

    # Every size is played on the same episodes; the base alone is the smallest of them.
    report = prune(model, max_loss=args.max_loss, score=args.score, n_episodes=args.episodes)
    print(report)
    print("tried:", ", ".join(f"{fraction:.2%} lost {loss:.1%}" for fraction, loss in report.candidates))

    if args.model is None and args.more_steps:
        model.learn(args.more_steps * env.n_tasks, reset_num_timesteps=False)

    # The file holds positions and values of what was kept, and no more.
    model.save(args.save_path)
    print(f"{args.save_path}: {args.save_path.stat().st_size:,} bytes")
    print(evaluate_tasks(VarShareSAC.load(args.save_path), env, args.episodes))
    return report


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
