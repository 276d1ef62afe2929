"""
Train on environments that live on a device: a few hundred pendulums as rows of tensors.

``python examples/tensor_envs.py --n-envs 500 --steps 300000`` uses the GPU where there is one.
"""

import time
from dataclasses import dataclass

import tyro
from rich.console import Console

from sb3_varshare import VarShareSAC, evaluate_tasks, make_tensor_env


@dataclass(frozen=True)
class Args:
    """
    :param n_envs: rows, all tasks together
    :param steps: transitions of all rows together
    :param gradient_steps: per step of all rows
    :param episodes: of each task at the end
    :param seed: of everything
    :param device: of the rows and of the agent
    """

    n_envs: int = 300
    steps: int = 300_000
    gradient_steps: int = 4
    episodes: int = 10
    seed: int = 0
    device: str = "auto"


def main(args: Args) -> None:
    """Train, evaluate, print."""
    env = make_tensor_env("contextual", args.n_envs, args.seed, args.device)
    model = VarShareSAC(
        "MultiTaskPolicy",
        env,
        preset="small",
        gradient_steps=args.gradient_steps,
        seed=args.seed,
        device=env.device,
    )
    start = time.perf_counter()
    model.learn(args.steps)
    seconds = time.perf_counter() - start
    done = f"{model.num_timesteps:,} transitions and {model._n_updates:,} gradient steps"
    print(f"{done} in {seconds:.0f} s on {env.device}")
    Console().print(evaluate_tasks(model, env, args.episodes).table())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
