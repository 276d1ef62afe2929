"""
A new task for a trained agent, without training the others again.

Trains on four pendulums of the contextual suite. The fifth, whose torque is reversed, comes later: it is played at once
with what the four share, learned on this base while the base is frozen, and put into the agent. The other four play
exactly as before, and training goes on with all five. Takes about two minutes on a core that is not busy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch as th
import tyro

from sb3_varshare import VarShareSAC, add_task, evaluate_tasks, few_shot, make_multitask_env, zero_shot
from sb3_varshare.tasks import make_suite

TRAINED = ("swing-up", "forward", "light", "swing-up-twin")
NEW = "reversed"


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param steps: transitions of each task in the training
    :param new_steps: transitions of the new task on the frozen base
    :param joint_steps: transitions of each task afterwards, all five together
    :param evaluations: of the new task while it is learned
    :param episodes: of each task in each evaluation
    :param seed: of everything
    :param threads: of torch; networks as small as these are slower with more
    :param save_path: where the agent goes
    """

    steps: int = 6_000
    new_steps: int = 3_000
    joint_steps: int = 500
    evaluations: int = 6
    episodes: int = 5
    seed: int = 0
    threads: int = 1
    save_path: Path = Path("runs/new_task_example/agent.zip")


def returns(model: VarShareSAC, args: Args) -> dict[str, float]:
    """Mean return of every task; print them, too."""
    evaluation = evaluate_tasks(model, model.env, args.episodes)
    found = {task: estimate.mean for task, estimate in evaluation.returns().items()}
    print(", ".join(f"{task} {value:.0f}" for task, value in found.items()))
    return found


def main(args: Args) -> VarShareSAC:
    """Train on four tasks, learn the fifth, put it into the agent, go on with all."""
    th.set_num_threads(args.threads)
    env = make_multitask_env([f"contextual/{task}" for task in TRAINED], seed=args.seed)
    model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=args.seed)
    model.learn(args.steps * len(TRAINED), progress_bar=True)
    print("Trained:", end=" ")
    before = returns(model, args)

    # A ready spec of the suite; a callable that builds an environment of one's own does as well.
    (spec,) = make_suite([f"contextual/{NEW}"]).tasks
    at_once = zero_shot(model, spec, args.episodes, seed=args.seed)
    print(f"{NEW!r} at once, by what the others share: {at_once.mean_return:.0f}")
    result = few_shot(model, spec, args.new_steps, args.evaluations, n_episodes=args.episodes, seed=args.seed)
    print("On the frozen base:", ", ".join(f"{point.mean_return:.0f} after {point.step}" for point in result.curve))

    add_task(model, NEW, spec, from_agent=result.agent)
    print("In the agent:", end=" ")
    after = returns(model, args)
    assert all(after[task] == value for task, value in before.items()), "a new task changes no other"
    model.learn(args.joint_steps * model.n_tasks, reset_num_timesteps=False)
    print("After training all together:", end=" ")
    returns(model, args)
    model.save(args.save_path)
    return model


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
