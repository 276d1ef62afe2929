"""
What leaves the trainer, against the agent: equality of actions, bytes, and time of one action.

Takes an agent from a file, or trains one on the contextual suite. Every task is exported in every form, run, and
compared with ``predict_task`` on the same observations: those of the task's environment under random actions where it
can be made, standard normal ones where not.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch as th
import tyro

from sb3_varshare import VarShareSAC, compose_task, export_policy, export_task, load_policy, make_multitask_env
from sb3_varshare.deployment.actor_parts import task_facts
from sb3_varshare.tasks.encoding import split_task

Run = Callable[[np.ndarray], Any]
FORMS = ("folder of all tasks", "composed network", ".pt2 of a task", ".onnx of a task")


@dataclass(frozen=True)
class Args:
    """
    What to compare.

    :param model: file of an agent; without it one is trained
    :param adapter: of the agent that is trained
    :param steps: of its training, transitions of each task
    :param observations: of each task
    :param seed: of the agent and the observations
    """

    model: Path | None = None
    adapter: str = "varshare"
    steps: int = 3_000
    observations: int = 1_000
    seed: int = 0


def make_agent(args: Args) -> VarShareSAC:
    """
    :param args: what to compare
    :return: an agent that was trained
    """
    if args.model is not None:
        return VarShareSAC.load(args.model, device="cpu")
    env = make_multitask_env("contextual", seed=args.seed)
    options: dict[str, Any] = {"preset": "small", "adapter": args.adapter, "seed": args.seed, "device": "cpu"}
    return VarShareSAC("MultiTaskPolicy", env, **options).learn(args.steps * env.n_tasks)


def observe(model: VarShareSAC, n_rows: int, seed: int) -> tuple[dict[str, np.ndarray], str]:
    """
    :param model: the agent
    :param n_rows: observations of each task
    :param seed: of the environments and the random actions
    :return: task -> (n_rows, D_t), and where they are from
    """
    sizes = {task: task_facts(model, index).observation_size for index, task in enumerate(model.task_names)}
    try:
        env = make_multitask_env(model.full_names, seed=seed)
    except (ValueError, ImportError):
        rng = np.random.default_rng(seed)
        return {t: rng.normal(size=(n_rows, size)).astype(np.float32) for t, size in sizes.items()}, "standard normal"
    env.action_space.seed(seed)
    seen = [np.asarray(env.reset())]
    for _ in range(n_rows - 1):
        seen.append(np.asarray(env.step(np.array([env.action_space.sample() for _ in range(env.num_envs)]))[0]))
    env.close()
    rows, task_ids = split_task(np.concatenate(seen), env.n_tasks)
    return {t: rows[task_ids == i][:n_rows, :size] for i, (t, size) in enumerate(sizes.items())}, "of the environments"


def forms(model: VarShareSAC, task: str, folder: Path) -> tuple[dict[str, Run], dict[str, int]]:
    """
    :param model: the agent
    :param task: one of its tasks
    :param folder: where the files go; holds the exported policy
    :return: how the task is run in each of :data:`FORMS`, and the bytes of its own files
    """
    policy, composed = load_policy(folder / "policy"), compose_task(model, task)
    files = {suffix: export_task(model, task, folder / f"task{suffix}") for suffix in (".pt2", ".onnx")}
    module = th.export.load(files[".pt2"]).module()
    session = onnxruntime.InferenceSession(str(files[".onnx"]), providers=["CPUExecutionProvider"])
    runs: tuple[Run, ...] = (
        lambda rows: policy.predict(rows, task)[0],
        lambda rows: composed(th.from_numpy(rows)).numpy(),
        lambda rows: module(th.from_numpy(rows)).numpy(),
        lambda rows: session.run(["action"], {"observation": rows})[0],
    )
    own = {**files, "task": policy.tasks[task].path}
    return dict(zip(FORMS, runs, strict=True)), {name: path.stat().st_size for name, path in own.items()}


def microseconds(run: Run, row: np.ndarray) -> float:
    """
    :param run: gives actions
    :param row: (1, D)
    :return: median time of one action
    """
    times = []
    for _ in range(200):
        start = time.perf_counter()
        run(row)
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times))


def table(model: VarShareSAC, args: Args, folder: Path) -> str:
    """
    :param model: the agent
    :param args: what to compare
    :param folder: where the files go
    :return: Markdown
    """
    observations, source = observe(model, args.observations, args.seed)
    model.save(folder / "model.zip")
    export_policy(model, folder / "policy")
    errors, times, sizes = dict.fromkeys(FORMS, 0.0), dict.fromkeys(FORMS, 0.0), {}
    for index, (task, rows) in enumerate(observations.items()):
        expected = model.predict_task(rows, task)[0]
        low, high = (np.array(bound) for bound in task_facts(model, index).bounds)
        runs, sizes[task] = forms(model, task, folder)
        for form, run in runs.items():
            errors[form] = max(errors[form], float((abs(run(rows) - expected) / (high - low)).max()))
            times[form] = times[form] or microseconds(run, rows[:1])
    first = next(iter(observations))
    live = microseconds(lambda row: model.predict_task(row, first), observations[first][:1])
    total = sum(path.stat().st_size for path in (folder / "policy").rglob("*") if path.is_file())
    largest = {name: max(size[name] for size in sizes.values()) for name in ("task", ".pt2", ".onnx")}
    base = (folder / "policy" / "base.safetensors").stat().st_size
    in_bytes = {
        FORMS[0]: f"{total:,} (base {base:,}, a task at most {largest['task']:,})",
        FORMS[1]: "",
        FORMS[2]: f"{largest['.pt2']:,}",
        FORMS[3]: f"{largest['.onnx']:,}",
    }
    zipped = f"{(folder / 'model.zip').stat().st_size:,}"
    n_rows = len(observations[first])
    lines = [
        f"{model.n_tasks} tasks, adapter {model.adapter}, {n_rows:,} observations of each ({source})\n",
        "| | largest error, share of the action's range | bytes | one action, µs |\n|---|---|---|---|",
        f"| the agent, `model.zip` | 0 | {zipped} | {live:.0f} |",
        *(f"| {form} | {errors[form]:.1e} | {in_bytes[form]} | {times[form]:.0f} |" for form in FORMS),
    ]
    return "\n".join(lines)


def main(args: Args) -> None:
    """Train or load, export, compare, print."""
    th.set_num_threads(1)
    model = make_agent(args)
    with tempfile.TemporaryDirectory() as folder:
        print(table(model, args, Path(folder)))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
