"""
A new task for a trained agent: what the shared part of it is worth at once, and how fast it learns the task.

A family of the contextual suite's pendulums: five to train on, and two that are held out. ``between`` lies among the
trained ones in mass, length and strength, of which the strength is not observed; ``reversed`` needs the opposite
actions of all of them. Every arm plays both with what its tasks share (zero-shot), then learns each of them alone, with
the base frozen and with all of it trained; ``scratch`` is a new agent of the same size.

Trained agents and finished results are kept in ``--output`` and not made again. Two arms may have one agent: that of an
embedding takes a random vector or the mean of the others for a new task. An agent of five tasks takes a minute and a
half on a core that is not busy, a curve of 3,000 steps half a minute: all of it with five seeds 45 minutes on two.
"""

from __future__ import annotations

import csv
import itertools
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch as th
import tyro

from sb3_varshare import TaskSpec, VarShareSAC, evaluate_tasks, make_multitask_env
from sb3_varshare.evaluation.task_evaluation import mean_interval
from sb3_varshare.growth import few_shot, learning_curve, zero_shot
from sb3_varshare.tasks.suites.contextual import TORQUES, Context, ContextualPendulum

TRAINED = {
    "short": Context(mass=0.6, length=0.8),
    "long": Context(mass=0.6, length=1.2),
    "light": Context(mass=0.4),
    "heavy": Context(mass=0.8),
    "strong": Context(mass=0.6, direction=1.5),
}
HELD_OUT = {
    "between": Context(mass=0.5, length=1.1, direction=1.25),
    "reversed": Context(mass=0.6, direction=-1.0),
}
KEY = ("arm", "seed", "task", "training", "steps", "budget")
COLUMNS = (*KEY, "step", "mean_return", "success_rate", "seconds")
LEVEL = 0.95


class Arm(NamedTuple):
    """
    A way to have a new task.

    :param base: name of the trained agent that it starts from, None for a new one
    :param options: of that agent
    :param embedding: of the new task
    """

    base: str | None
    options: dict[str, Any]
    embedding: str = "random"


ARMS = {
    "varshare": Arm("varshare", {}),
    "no re-centring": Arm("plain", {"recenter_every": 0}),
    "L2": Arm("deterministic", {"adapter": "deterministic"}),
    "embedding, random": Arm("embedding", {"adapter": "embedding"}),
    "embedding, mean": Arm("embedding", {"adapter": "embedding"}, "mean"),
    "scratch": Arm(None, {}),
}


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param seeds: of each arm
    :param steps: of each task in the training of an agent
    :param budget: steps of a new task
    :param evaluations: of a curve
    :param n_episodes: of an evaluation
    :param arms: names of ARMS
    :param processes: runs at a time
    :param output: folder of agents, results.csv and tables.md
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 6_000
    budget: int = 3_000
    evaluations: int = 6
    n_episodes: int = 10
    arms: tuple[str, ...] = tuple(ARMS)
    processes: int = 2
    output: Path = Path("runs/new_task")


class Unit(NamedTuple):
    """
    One run.

    :param arm: name of ARMS
    :param seed: of everything
    :param task: that is new, or ``trained`` for those that the agent knows
    :param training: ``frozen``, ``all`` or ``none``
    """

    arm: str
    seed: int
    task: str
    training: str


def make_spec(name: str) -> TaskSpec:
    """
    A pendulum of the family.

    :param name: of TRAINED or HELD_OUT
    """
    return TaskSpec(name, "pendulums", partial(ContextualPendulum, (TRAINED | HELD_OUT)[name]), 200, 5, 1, TORQUES)


def train(args: Args, arm: Arm, seed: int) -> Path:
    """
    The agent that an arm starts from, trained unless it lies there.

    :param args: how long
    :param arm: with a base
    :param seed: of everything
    :return: its file
    """
    th.set_num_threads(1)
    path = args.output / "agents" / f"{arm.base}-{args.steps}-{seed}.zip"
    if not path.exists():
        env = make_multitask_env([make_spec(name) for name in TRAINED], seed=seed)
        model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=seed, device="cpu", **arm.options)
        model.learn(args.steps * env.n_tasks)
        model.save(path)
    return path


def run(args: Args, unit: Unit) -> list[dict[str, Any]]:
    """
    The rows of one run.

    :param args: budgets
    :param unit: which run
    """
    th.set_num_threads(1)
    arm, started = ARMS[unit.arm], time.perf_counter()
    counts = {"evaluations": args.evaluations, "n_episodes": args.n_episodes}
    if arm.base is None:
        env = make_multitask_env([make_spec(unit.task)], seed=unit.seed)
        options: dict[str, Any] = {"preset": "small", "learning_starts": 200, "seed": unit.seed, "device": "cpu"}
        points = learning_curve(VarShareSAC("MultiTaskPolicy", env, **options), args.budget, **counts)
        evaluations = [(point.step, point.evaluation) for point in points]
    else:
        model = VarShareSAC.load(train(args, arm, unit.seed), device="cpu")
        start: dict[str, Any] = {"embedding": arm.embedding, "seed": unit.seed}
        if unit.task == "trained":
            env = make_multitask_env([make_spec(name) for name in TRAINED], seed=unit.seed)
            evaluations = [(0, evaluate_tasks(model, env, args.n_episodes))]
        elif unit.training == "none":
            # One evaluation: it may have the episodes of a whole curve.
            n_episodes = args.n_episodes * args.evaluations
            evaluations = [(0, zero_shot(model, make_spec(unit.task), n_episodes, **start))]
        else:
            start["freeze_base"] = unit.training == "frozen"
            curve = few_shot(model, make_spec(unit.task), args.budget, **counts, **start).curve
            evaluations = [(point.step, point.evaluation) for point in curve]
    rest = {"steps": args.steps, "budget": args.budget, "seconds": round(time.perf_counter() - started, 1)}
    return [
        {**unit._asdict(), **rest, "step": step, "mean_return": e.mean_return, "success_rate": e.mean_success_rate}
        for step, e in evaluations
    ]


def units(args: Args) -> list[Unit]:
    """
    All runs.

    :param args: arms and seeds
    :raises SystemExit: there is no such arm
    """
    unknown = sorted(set(args.arms) - set(ARMS))
    if unknown:
        raise SystemExit(f"arms must be among {', '.join(ARMS)}, got {', '.join(unknown)}")
    found = []
    for arm, seed in itertools.product(args.arms, args.seeds):
        if ARMS[arm].base is None:
            found += [Unit(arm, seed, task, "all") for task in HELD_OUT]
        else:
            found.append(Unit(arm, seed, "trained", "none"))
            found += [Unit(arm, seed, *run) for run in itertools.product(HELD_OUT, ("none", "frozen", "all"))]
    return found


def collect(args: Args) -> pd.DataFrame:
    """
    Run what the CSV does not hold yet.

    :param args: what to run
    :return: a row per run and evaluation
    """
    path = args.output / "results.csv"
    args.output.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    rows = pd.read_csv(path)
    done = set(rows[list(KEY)].itertuples(index=False, name=None))
    wanted = [unit for unit in units(args) if (*unit, args.steps, args.budget) not in done]
    with ProcessPoolExecutor(args.processes) as pool:
        # Agents first: several runs share one.
        bases = {(ARMS[unit.arm].base, unit.seed): ARMS[unit.arm] for unit in wanted if ARMS[unit.arm].base}
        for trained in [pool.submit(train, args, arm, seed) for (_, seed), arm in bases.items()]:
            trained.result()
        for future in as_completed([pool.submit(run, args, unit) for unit in wanted]):
            with path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, COLUMNS).writerows(future.result())
    rows = pd.read_csv(path)
    asked = rows["arm"].isin(args.arms) & rows["seed"].isin(args.seeds)
    return rows[asked & (rows["steps"] == args.steps) & (rows["budget"] == args.budget)]


def cell(values: pd.Series, digits: int = 0) -> str:
    """
    Mean over seeds, with Student's interval where there are two of them at least.

    :param values: of each seed
    :param digits: behind the point
    """
    mean, low, high = (f"{value:.{digits}f}" for value in mean_interval(values.tolist(), LEVEL))
    return mean if len(values) < 2 else f"{mean} ({low} to {high})"


def table(header: list[str], lines: list[list[str]]) -> str:
    """
    A table in Markdown.

    :param header: of the columns
    :param lines: cells
    """
    rows = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def report(rows: pd.DataFrame, args: Args) -> str:
    """
    All tables.

    :param rows: as :func:`collect` gives them
    :param args: what was run
    """
    arms = [arm for arm in args.arms if arm in set(rows["arm"])]
    at_once = rows[rows["training"] == "none"].set_index(["arm", "task"]).sort_index()
    columns = [task for task in ("trained", *HELD_OUT) if task in set(at_once.index.get_level_values("task"))]
    lines = [
        [arm, *(cell(at_once.loc[[(arm, task)], "mean_return"]) for task in columns)]
        + [cell(at_once.loc[[(arm, task)], "success_rate"], 2) for task in columns]
        for arm in arms
        if ARMS[arm].base
    ]
    header = ["arm", *(f"{task}: return" for task in columns), *(f"{task}: success" for task in columns)]
    trained = f"{args.steps:,} steps of each of {len(TRAINED)} tasks"
    parts = [f"At once, with what the tasks share, after {trained} (`trained`: these, with their residuals)"]
    parts.append(table(header, lines))
    for task, training in itertools.product(HELD_OUT, ("frozen", "all")):
        curves = rows[(rows["task"] == task) & (rows["training"] == training)]
        steps = sorted(set(curves["step"]))
        returns = curves.groupby(["arm", "step"])["mean_return"]
        lines = [
            [arm, *(cell(returns.get_group((arm, step))) if (arm, step) in returns.groups else "" for step in steps)]
            for arm in arms
            if arm in set(curves["arm"])
        ]
        what = "with the base frozen" if training == "frozen" else "with everything trained"
        parts += [f"Return on `{task}` {what}, after so many steps", table(["arm", *map(str, steps)], lines)]
    return f"Mean over {len(args.seeds)} seeds, {LEVEL:.0%} Student intervals.\n\n" + "\n\n".join(parts) + "\n"


def main(args: Args) -> str:
    """
    Run, write ``tables.md`` and print it.

    :param args: what to run
    :return: the tables
    """
    text = report(collect(args), args)
    (args.output / "tables.md").write_text(text, encoding="utf-8")
    print(text)
    return text


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
