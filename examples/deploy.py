"""
From a trained agent to files that act without it: a folder with one file per task, one task as ONNX and as ``.pt2``.

Trains on two pendulums under different gravity, or loads an agent that an earlier run of this script saved. Then
exports it in every form, and plays the same episodes with the agent, with the folder, and with the single files in a
process of their own that knows nothing of this package. Takes two minutes on two cores; needs the extra ``onnx``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import torch as th
import tyro
from rich.console import Console
from rich.table import Table

from sb3_varshare import VarShareSAC, export_policy, export_task, load_policy, make_multitask_env

GRAVITY = {"earth": 9.81, "moon": 1.62}
RUN_EXPORTED = Path(__file__).parent / "run_exported.py"


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param model: an agent that this script saved; without it one is trained
    :param steps: of the training, transitions of each task
    :param episodes: of each task in each form
    :param seed: of everything
    :param threads: of torch; networks as small as these are slower with more
    :param output: where the files go
    """

    model: Path | None = None
    steps: int = 6_000
    episodes: int = 3
    seed: int = 0
    threads: int = 1
    output: Path = Path("runs/deploy")


def make_agent(args: Args) -> VarShareSAC:
    """
    :param args: what to run
    :return: the agent
    """
    if args.model is not None:
        return VarShareSAC.load(args.model)
    tasks = {task: partial(gymnasium.make, "Pendulum-v1", g=gravity) for task, gravity in GRAVITY.items()}
    env = make_multitask_env(tasks, seed=args.seed)
    model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=args.seed, verbose=1)
    model.learn(args.steps * env.n_tasks, progress_bar=True)
    model.save(args.output / "agent.zip")
    return model


def play(act: Callable[[np.ndarray], np.ndarray], task: str, n_episodes: int) -> list[float]:
    """
    :param act: from an observation to an action
    :param task: a key of :data:`GRAVITY`
    :param n_episodes: with seeds 0, 1, 2, ..., as ``run_exported.py`` plays them
    :return: of each episode its return
    """
    env = gymnasium.make("Pendulum-v1", g=GRAVITY[task])
    returns = []
    for seed in range(n_episodes):
        observation, _ = env.reset(seed=seed)
        total, is_over = 0.0, False
        while not is_over:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total, is_over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    return returns


def play_elsewhere(file: Path, task: str, n_episodes: int) -> list[float]:
    """
    :param file: of the task
    :param task: a key of :data:`GRAVITY`
    :param n_episodes: of the task
    :return: of each episode its return, from another process
    """
    options = ["--gravity", str(GRAVITY[task]), "--episodes", str(n_episodes)]
    command = [sys.executable, str(RUN_EXPORTED), str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["task"] == task
    return list(said["returns"])


def main(args: Args) -> dict[str, dict[str, list[float]]]:
    """Train or load, export, play; per task and form the returns."""
    th.set_num_threads(args.threads)
    model = make_agent(args)

    # All tasks: what they share once, and a small file for each. Send or delete these one by one.
    folder = export_policy(model, args.output / "policy", overwrite=True)
    policy = load_policy(folder)

    table = Table("task", "form", "bytes", "mean return")
    found: dict[str, dict[str, list[float]]] = {}
    for task in GRAVITY:
        # One task: a file that knows nothing of the others, and needs nothing of this package.
        onnx = export_task(model, task, args.output / f"{task}.onnx")
        pt2 = export_task(policy, task, args.output / f"{task}.pt2")
        own_file = policy.tasks[task].path
        forms = {
            "agent": lambda row, task=task: model.predict_task(row, task)[0],
            "folder": lambda row, task=task: policy.predict(row, task)[0],
        }
        found[task] = {form: play(act, task, args.episodes) for form, act in forms.items()}
        found[task] |= {file.suffix: play_elsewhere(file, task, args.episodes) for file in (onnx, pt2)}
        sizes = {"folder": own_file, ".onnx": onnx, ".pt2": pt2}
        for form, returns in found[task].items():
            size = f"{sizes[form].stat().st_size:,}" if form in sizes else ""
            table.add_row(task, form, size, f"{np.mean(returns):.2f}")
    Console().print(table)
    print(f"What the tasks share: {(folder / 'base.safetensors').stat().st_size:,} bytes")
    return found


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
