"""
The README's first lines as a program: train, act, evaluate, save and load, on five small pendulums.

Takes one to two minutes on two CPU cores. Needs nothing but the package and its ``examples`` extra.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import torch as th
import tyro

from sb3_varshare import TaskEvaluation, VarShareSAC, evaluate_tasks, make_multitask_env


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param steps: transitions of all tasks together, as everywhere in SB3
    :param episodes: of each task in the evaluation
    :param seed: of everything
    :param threads: of torch; networks as small as these are slower with more
    :param save_path: where the agent goes
    """

    steps: int = 20_000
    episodes: int = 10
    seed: int = 0
    threads: int = 1
    save_path: Path = Path("runs/quickstart/agent.zip")


def main(args: Args) -> TaskEvaluation:
    """Train, evaluate, save, load, and play one task in an environment that knows nothing of the others."""
    th.set_num_threads(args.threads)
    env = make_multitask_env("contextual", seed=args.seed)
    print("Tasks:", ", ".join(env.task_names))

    # Small networks and a larger learning rate; every argument can still be given and then wins over the preset.
    model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=args.seed, verbose=1)
    model.learn(args.steps, progress_bar=True)

    # Every task plays the same number of episodes, in environments and from random streams that training never saw.
    evaluation = evaluate_tasks(model, env, n_episodes=args.episodes)
    print(evaluation)

    model.save(args.save_path)
    model = VarShareSAC.load(args.save_path, env=env)

    # `Contextual-v0` shows the task's one-hot behind the observation; `predict_task` wants the observation alone, and
    # gives the pendulum's own action, a torque in N m. The suite's environment itself takes what `predict` gives.
    single = gymnasium.make("Contextual-v0")
    observation, _ = single.reset(seed=args.seed, options={"task": "light"})
    action, _ = model.predict_task(observation[: -env.n_tasks], task="light")
    print(f"First action on 'light': {action}")
    return evaluation


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
