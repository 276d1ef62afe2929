"""
The whole way of an agent after its training: look inside, a new task, prune, export, act without the trainer.

Trains on four pendulums of the contextual suite. Then: what each of them changed, and which belong together; the fifth,
reversed one, learned on the frozen base and put into the agent; most of all residuals dropped, as far as the returns
allow; the shared base and a small file per task in a folder; one task as an ONNX file. At the end the files act as the
agent does. Everything is written into one folder. Needs the extras
``onnx`` and ``inspection``; takes about three minutes on a core that is not busy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch as th
import tyro

from sb3_varshare import (
    VarShareSAC,
    add_task,
    evaluate_tasks,
    export_policy,
    export_task,
    few_shot,
    load_policy,
    make_multitask_env,
    prune,
    residual_table,
    save_figures,
)
from sb3_varshare.tasks import make_suite

TRAINED = ("swing-up", "swing-up-twin", "forward", "light")
NEW = "reversed"


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param steps: transitions of each task in the training
    :param new_steps: transitions of the new task on the frozen base
    :param max_loss: share of the return above a random policy's that pruning may cost
    :param episodes: of each task in each evaluation
    :param seed: of everything
    :param threads: of torch; networks as small as these are slower with more
    :param output: folder of figures, models, policy and ONNX file
    """

    steps: int = 6_000
    new_steps: int = 3_000
    max_loss: float = 0.01
    episodes: int = 10
    seed: int = 0
    threads: int = 1
    output: Path = Path("runs/after_training")


def train(args: Args) -> VarShareSAC:
    """An agent of four tasks."""
    env = make_multitask_env([f"contextual/{task}" for task in TRAINED], seed=args.seed)
    model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=args.seed)
    return model.learn(args.steps * len(TRAINED), progress_bar=True)


def look(model: VarShareSAC, args: Args) -> None:
    """What the tasks have of their own, as a table and as figures."""
    table = residual_table(model)
    print(table.pivot_table("kl", "task", "network", aggfunc="sum", sort=False).round(0).to_string())
    print(f"{len(save_figures(model, args.output / 'inside'))} tables and figures in {args.output / 'inside'}")


def take_on(model: VarShareSAC, args: Args) -> None:
    """The new task, learned on the frozen base: nothing that the others do can change."""
    (spec,) = make_suite([f"contextual/{NEW}"]).tasks
    result = few_shot(model, spec, args.new_steps, n_episodes=args.episodes, seed=args.seed)
    print(f"{NEW!r}:", ", ".join(f"{point.mean_return:.0f} after {point.step}" for point in result.curve))
    add_task(model, NEW, spec, from_agent=result.agent)


def deploy(model: VarShareSAC, args: Args) -> float:
    """
    The agent as files.

    :return: largest difference between an action of the agent and one of its files
    """
    policy = load_policy(export_policy(model, args.output / "policy", overwrite=True))
    session = onnxruntime.InferenceSession(export_task(model, NEW, args.output / f"{NEW}.onnx"))
    observations = np.random.default_rng(args.seed).normal(size=(1_000, policy.observation_space.shape[0]))
    observations = observations.astype(np.float32)
    largest = 0.0
    for task in policy.task_names:
        expected = model.predict_task(observations, task)[0]
        largest = max(largest, float(np.abs(policy.predict(observations, task)[0] - expected).max()))
    (actions,) = session.run(None, {session.get_inputs()[0].name: observations})
    return max(largest, float(np.abs(actions - model.predict_task(observations, NEW)[0]).max()))


def main(args: Args) -> float:
    """Train, look, take on, prune, export, compare."""
    th.set_num_threads(args.threads)
    model = train(args)
    look(model, args)
    take_on(model, args)
    # A pruned agent has no room for another task: this is the file to grow from.
    model.save(args.output / "unpruned.zip")
    print(prune(model, max_loss=args.max_loss, n_episodes=args.episodes))
    model.save(args.output / "pruned.zip")
    print(evaluate_tasks(model, model.env, args.episodes))
    difference = deploy(model, args)
    files = sorted((args.output / "policy").rglob("*.*"))
    print("\n".join(f"{file}: {file.stat().st_size:,} bytes" for file in files))
    print(f"The files act as the agent does: actions differ by {difference:.1e} at most.")
    return difference


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
