"""
One agent, several processes: each collects with environments of its own, and gradients are averaged.

Start it with ``torchrun --nproc-per-node 2 examples/torchrun_train.py``, on CPUs or with a GPU for each process. Takes
two minutes on two CPU cores. Needs the ``examples`` extra.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch as th
import torch.distributed as dist
import tyro

from sb3_varshare import VarShareSAC, evaluate_tasks, make_multitask_env
from sb3_varshare.distributed import distribute, process_group, rank_seed


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param suite: the tasks
    :param steps: transitions of all tasks together that each process collects
    :param episodes: of each task in the evaluation at the end
    :param seed: of everything
    :param timeout: s that a process waits for the others
    :param save_path: where the agent goes
    """

    suite: str = "contextual"
    steps: int = 10_000
    episodes: int = 10
    seed: int = 0
    timeout: float = 600.0
    save_path: Path = Path("runs/torchrun/agent.zip")


def main(args: Args) -> None:
    """Train together; then the first process saves and evaluates."""
    th.set_num_threads(1)
    with process_group(args.timeout) as rank:
        # A seed for each process: the environments without one of their own get the agent's.
        env = make_multitask_env(args.suite)
        model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=rank_seed(args.seed), verbose=1)
        distribute(model).learn(args.steps, progress_bar=rank == 0)
        if rank == 0:
            print(f"{dist.get_world_size()} processes took {model._n_updates:,} gradient steps together.")
            model.save(args.save_path)
            print(evaluate_tasks(model, env, n_episodes=args.episodes))
        env.close()


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
