"""
The same budget for several ways of sharing, and for SB3's own agents, on the very same environments.

``sac`` and ``tqc`` are SB3's SAC and sb3-contrib's TQC: they read the task's one-hot at the end of the observation,
which makes them multi-task agents as they are. ``sac_per_task`` trains one SAC for each task. Steps of each task and
gradient steps are equal for all. Scores are returns with the random policy at 0 and the best agent of the task at 1.

Writes ``episodes.csv`` (a row per agent, seed, task and episode) and ``scores.png``. A run of a residual agent on the
contextual suite takes two to three minutes on two CPU cores, of the others less than one: all of them with one seed
about a quarter of an hour. More seeds take as many times longer, and only they make differences mean something.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
import torch as th
import tyro
from rich.console import Console
from rich.table import Table
from sb3_contrib import TQC
from stable_baselines3 import SAC

from sb3_varshare import MultiTaskVecEnv, TaskEvaluation, VarShareSAC, evaluate_tasks, make_multitask_env
from sb3_varshare.evaluation.task_evaluation import EpisodeResult
from sb3_varshare.tasks import check_same_protocol

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Args:
    """
    What to compare.

    :param agents: names of AGENTS
    :param seeds: a run of every agent for each
    :param suite: contextual, MT3, ..., or several tasks
    :param steps: transitions of each task
    :param episodes: of each task in the evaluation
    :param preset: of our agents, for what stands not here
    :param width: hidden features of all networks
    :param learning_rate: of all agents
    :param threads: of torch
    :param output: folder of the table and the figure
    """

    agents: tuple[str, ...] = ("varshare", "deterministic", "embedding", "one_hot", "blind", "sac", "tqc")
    seeds: tuple[int, ...] = (0,)
    suite: tuple[str, ...] = ("contextual",)
    steps: int = 6_000
    episodes: int = 10
    preset: Literal["small", "medium"] = "small"
    width: int = 64
    learning_rate: float = 1e-3
    threads: int = 1
    output: Path = Path("runs/compare")


class Episode(NamedTuple):
    """A row of the tidy table: who played, and how it went."""

    agent: str
    seed: int
    result: EpisodeResult


class RandomAgent:
    """
    Plays at random: the zero of the scores. ``predict`` is all that an evaluation needs of an agent.

    :param env: whose actions to draw
    :param seed: of the draws
    """

    def __init__(self, env: MultiTaskVecEnv, seed: int) -> None:
        self.space = env.action_space
        self.space.seed(seed)

    def predict(self, observation: np.ndarray, deterministic: bool = True) -> tuple[np.ndarray, None]:
        """As SB3's models."""
        return np.stack([self.space.sample() for _ in observation]), None


def varshare(env: MultiTaskVecEnv, seed: int, args: Args, **options: Any) -> VarShareSAC:
    """Our agent, with whatever residual and task input."""
    return VarShareSAC(
        "MultiTaskPolicy",
        env,
        preset=args.preset,
        learning_rate=args.learning_rate,
        actor_width=args.width,
        critic_width=args.width,
        batch_size=64 * env.n_tasks,
        seed=seed,
        **options,
    )


def library(algorithm: type[SAC] | type[TQC], env: MultiTaskVecEnv, seed: int, args: Args) -> SAC | TQC:
    """SB3's agent with the same batch, learning rate, warm-up and gradient steps, and layers of the same width."""
    return algorithm(
        "MlpPolicy",
        env,
        learning_rate=args.learning_rate,
        learning_starts=1_000,
        batch_size=64 * env.n_tasks,
        policy_kwargs={"net_arch": [args.width, args.width]},
        seed=seed,
    )


def train_jointly(make: Callable[..., Any], env: MultiTaskVecEnv, seed: int, args: Args) -> TaskEvaluation:
    """One agent for all tasks."""
    model = make(env, seed, args)
    model.learn(args.steps * env.n_tasks, progress_bar=True)
    return evaluate_tasks(model, env, args.episodes)


def train_apart(make: Callable[..., Any], env: MultiTaskVecEnv, seed: int, args: Args) -> TaskEvaluation:
    """One agent for each task, with as many steps of it."""
    suites = [env.suite.select([task]) for task in env.task_names]
    parts = [train_jointly(make, MultiTaskVecEnv(suite, seed=seed), seed, args) for suite in suites]
    episodes = [episode for part in parts for episode in part.episodes]
    return TaskEvaluation(list(env.task_names), episodes, env.suite.full_protocol)


def play_randomly(env: MultiTaskVecEnv, seed: int, args: Args) -> TaskEvaluation:
    """Nobody learns."""
    return evaluate_tasks(RandomAgent(env, seed), env, args.episodes)


AGENTS: dict[str, Callable[[MultiTaskVecEnv, int, Args], TaskEvaluation]] = {
    "varshare": partial(train_jointly, varshare),
    "varshare_full": partial(train_jointly, partial(varshare, sigma_structure="full")),
    "varshare_fixed": partial(train_jointly, partial(varshare, sigma_structure="fixed")),
    "low_rank": partial(train_jointly, partial(varshare, adapter="low_rank")),
    "deterministic": partial(train_jointly, partial(varshare, adapter="deterministic")),
    "embedding": partial(train_jointly, partial(varshare, adapter="embedding")),
    "one_hot": partial(train_jointly, partial(varshare, adapter="none", task_input="one_hot")),
    "blind": partial(train_jointly, partial(varshare, adapter="none")),
    "independent": partial(train_jointly, partial(varshare, adapter="independent")),
    "sac": partial(train_jointly, partial(library, SAC)),
    "tqc": partial(train_jointly, partial(library, TQC)),
    "sac_per_task": partial(train_apart, partial(library, SAC)),
    "random": play_randomly,
}


def returns_by_task(episodes: Iterable[Episode]) -> dict[str, dict[str, list[float]]]:
    """Agent -> task -> mean return of each seed."""
    played: dict[str, dict[str, dict[int, list[float]]]] = {}
    for agent, seed, result in episodes:
        seeds = played.setdefault(agent, {}).setdefault(result.task, {})
        seeds.setdefault(seed, []).append(result.episode_return)
    return {
        agent: {task: [float(np.mean(returns)) for returns in seeds.values()] for task, seeds in tasks.items()}
        for agent, tasks in played.items()
    }


def scores(returns: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, list[float]]]:
    """
    Returns of every seed with the random policy at 0 and the task's best agent at 1, by their means over seeds.

    :param returns: of :func:`returns_by_task`, ``random`` among the agents
    """
    scaled: dict[str, dict[str, list[float]]] = {agent: {} for agent in returns}
    for task, random in returns["random"].items():
        zero, one = np.mean(random), max(np.mean(tasks[task]) for tasks in returns.values())
        for agent, tasks in returns.items():
            # Where nobody beats the random policy there is no scale.
            span = one - zero if one > zero else np.nan
            scaled[agent][task] = [float((value - zero) / span) for value in tasks[task]]
    return scaled


def make_table(scaled: dict[str, dict[str, list[float]]], args: Args) -> Table:
    """A row per agent, best first, with the range over seeds behind the mean over tasks."""
    tasks = list(scaled["random"])
    table = Table(title=f"{'+'.join(args.suite)}, {args.steps:,} steps of each task: 0 random, 1 the task's best agent")
    table.add_column("agent")
    for name in (*tasks, "mean over tasks", "seeds"):
        table.add_column(name, justify="right")
    rows = []
    for agent, by_task in scaled.items():
        means = np.mean(list(by_task.values()), axis=0)
        cells = [f"{np.mean(by_task[task]):.2f}" for task in tasks]
        spread = f" ({means.min():.2f} to {means.max():.2f})" if len(means) > 1 else ""
        rows.append((means.mean(), agent, [*cells, f"{means.mean():.2f}{spread}", str(len(means))]))
    for _, agent, cells in sorted(rows, reverse=True):
        table.add_row(agent, *cells)
    return table


def write_episodes(episodes: Iterable[Episode], path: Path) -> None:
    """A row per agent, seed, task and episode, returns as the environment pays them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("agent", "seed", *EpisodeResult._fields))
        writer.writerows((agent, seed, *result) for agent, seed, result in episodes)


def draw_figure(scaled: dict[str, dict[str, list[float]]], path: Path) -> None:
    """A dot per agent, task and seed, and a bar for the mean over tasks and seeds."""
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(scaled) + 1.5), layout="constrained")
    agents = sorted(scaled, key=lambda agent: np.mean(list(scaled[agent].values())))
    axes.barh(agents, [np.mean(list(scaled[agent].values())) for agent in agents], color="lightgrey")
    for task in scaled["random"]:
        dots = [(score, agent) for agent in agents for score in scaled[agent][task]]
        axes.plot(*zip(*dots, strict=True), "o", markersize=4, alpha=0.8, label=task)
    axes.set_xlabel("score: 0 random, 1 the task's best agent")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(args: Args) -> list[Episode]:
    """Train all, print a table, save the episodes and a figure."""
    unknown = set(args.agents) - set(AGENTS)
    if unknown:
        raise SystemExit(f"agents must be among {', '.join(AGENTS)}, got {', '.join(sorted(unknown))}")
    th.set_num_threads(args.threads)
    args.output.mkdir(parents=True, exist_ok=True)
    episodes: list[Episode] = []
    first: TaskEvaluation | None = None
    for seed in args.seeds:
        for agent in dict.fromkeys((*args.agents, "random")):
            env = make_multitask_env(args.suite[0] if len(args.suite) == 1 else args.suite, seed=seed)
            print(f"{agent}, seed {seed}")
            evaluation = AGENTS[agent](env, seed, args)
            first = first or evaluation
            # What did not come about alike does not belong into one table.
            check_same_protocol(first, evaluation)
            episodes += [Episode(agent, seed, result) for result in evaluation.episodes]
            env.close()
            # After every run, so that an interrupted comparison keeps what it has.
            write_episodes(episodes, args.output / "episodes.csv")
    scaled = scores(returns_by_task(episodes))
    draw_figure(scaled, args.output / "scores.png")
    table, console = make_table(scaled, args), Console()
    table.caption = first.protocol_line if first else None
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1_000)).maximum)
    console.print(table)
    print(f"Saved in {args.output}")
    return episodes


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
