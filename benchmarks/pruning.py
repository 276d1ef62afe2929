"""
How much of the actor's residuals can go: return over the share of weights that is kept.

Trains agents on the contextual suite, one per seed, or takes those that are there; prunes each to every share, by each
score, with and without refitting the base; plays the same episodes each time. The loss is normalised per task between
the random policy and the unpruned agent. Finished runs and rows are kept in the output folder and not repeated. Prints
Markdown tables with the bytes of the alternatives beside them.
"""

from __future__ import annotations

import csv
import itertools
import math
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch as th
import tyro

from sb3_varshare import VarShareSAC, evaluate_tasks, make_multitask_env, prune
from sb3_varshare.adapters.sparse import Sparse
from sb3_varshare.compression.prune_report import tensor_bytes
from sb3_varshare.compression.return_loss import RandomPolicy
from sb3_varshare.evaluation.task_evaluation import mean_interval

KEYS = ["seed", "scope", "score", "refit", "keep_fraction"]
COLUMNS = (*KEYS, "task", "mean_return", "full_return", "random_return", "loss", "kept", "weights")
SIZES = ("dense", "sparse", "per_task", "shared")


@dataclass
class Args:
    """What to run."""

    seeds: int = 5
    """agents to train"""
    steps: int = 6_000
    """environment steps per task"""
    adapter: Literal["varshare", "deterministic"] = "varshare"
    """residual of the agents; a deterministic one has no signal-to-noise"""
    sigma_structure: Literal["tied", "full", "fixed"] = "tied"
    """of varshare"""
    fractions: tuple[float, ...] = (1.0, 0.5, 0.2, 0.1, 0.05, 0.025, 0.02, 0.01, 0.005, 0.0)
    """shares of the weights to keep"""
    refit: tuple[bool, ...] = (False, True)
    """whether the base moves to the mean of what is dropped"""
    scopes: tuple[str, ...] = ("global",)
    """what weights are ranked within"""
    n_episodes: int = 10
    """evaluation episodes per task"""
    processes: int = 2
    """agents at a time"""
    output: Path = field(default_factory=lambda: Path("runs/pruning"))
    """folder of the agents and the CSV"""

    @property
    def scores(self) -> tuple[str, ...]:
        """What weights are ranked by."""
        return ("magnitude", "signal_to_noise") if self.adapter == "varshare" else ("magnitude",)

    @property
    def label(self) -> str:
        """Of the agents, in names of files."""
        return self.adapter if self.adapter == "deterministic" else f"{self.adapter}_{self.sigma_structure}"

    def agent_file(self, seed: int) -> Path:
        """Where the agent of a seed is kept."""
        return self.output / f"{self.label}_{self.steps}_seed{seed}.zip"

    @property
    def table_file(self) -> Path:
        """Where the rows are kept."""
        return self.output / f"{self.label}_{self.steps}.csv"


def train(seed: int, args: Args) -> None:
    """
    Train the agent of a seed if it is not there.

    :param seed: of everything
    :param args: budget
    """
    if args.agent_file(seed).exists():
        return
    env = make_multitask_env("contextual", seed=seed)
    options: dict[str, Any] = {"preset": "small", "adapter": args.adapter, "seed": seed, "device": "cpu"}
    if args.adapter == "varshare":
        options["sigma_structure"] = args.sigma_structure
    model = VarShareSAC("MultiTaskPolicy", env, **options)
    model.learn(args.steps * env.n_tasks)
    model.save(args.agent_file(seed))


def returns_of(model: Any, env: Any, args: Args) -> dict[str, float]:
    """
    Mean return of each task.

    :param model: who plays
    :param env: where
    :param args: how many episodes
    """
    return {task: estimate.mean for task, estimate in evaluate_tasks(model, env, args.n_episodes).returns().items()}


def actor_bytes(model: VarShareSAC) -> dict[str, int]:
    """
    Bytes of the actor's residuals, of one network per task, and of the shared network alone.

    :param model: unpruned
    """
    dense = tensor_bytes(t for layer in model.policy.actor.linears() for t in layer.adapter.state_dict().values())
    shared = tensor_bytes(model.policy.actor.state_dict().values()) - dense
    return {"dense": dense, "per_task": model.n_tasks * shared, "shared": shared}


def rows_of(seed: int, wanted: list[tuple[str, str, bool, float]], args: Args) -> list[dict[str, Any]]:
    """
    Prune the agent of a seed in each way.

    :param seed: of the agent
    :param wanted: scope, score, refit and share of each
    :param args: how to evaluate
    :return: a row for each way and task
    """
    th.set_num_threads(1)
    train(seed, args)
    env = make_multitask_env("contextual", seed=seed)
    full, random = (returns_of(m, env, args) for m in (VarShareSAC.load(args.agent_file(seed)), RandomPolicy(env)))
    rows = []
    for scope, score, refit, share in wanted:
        model = VarShareSAC.load(args.agent_file(seed), device="cpu")
        sizes = actor_bytes(model)
        options: dict[str, Any] = {"score": score, "scope": scope, "refit_base": refit}
        report = prune(model, keep_fraction=share, networks="actor", **options)
        sizes["sparse"] = report.after.residuals
        for task, value in returns_of(model, env, args).items():
            row = dict(zip(KEYS, (seed, scope, score, refit, share), strict=True)) | {"task": task, **sizes}
            row |= {"mean_return": value, "full_return": full[task], "random_return": random[task]}
            row |= {"kept": report.kept_by_task()[task], "weights": report.total() // model.n_tasks}
            rows.append(row | {"loss": (full[task] - value) / (full[task] - random[task])})
    return rows


def collect(args: Args) -> pd.DataFrame:
    """
    Run what the CSV does not hold yet.

    :param args: what to run
    :return: a row per seed, scope, score, refit, share and task
    """
    args.output.mkdir(parents=True, exist_ok=True)
    columns = (*COLUMNS, *SIZES)
    if not args.table_file.exists():
        args.table_file.write_text(",".join(columns) + "\n", encoding="utf-8")
    finished = set(pd.read_csv(args.table_file)[KEYS].itertuples(index=False, name=None))
    ways = list(itertools.product(args.scopes, args.scores, args.refit, args.fractions))
    wanted = {seed: [way for way in ways if (seed, *way) not in finished] for seed in range(args.seeds)}
    with ProcessPoolExecutor(args.processes) as pool:
        futures = [pool.submit(rows_of, seed, missing, args) for seed, missing in wanted.items() if missing]
        for future in as_completed(futures):
            with args.table_file.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, columns).writerows(future.result())
    rows = pd.read_csv(args.table_file)
    shown = rows["seed"].lt(args.seeds) & rows["scope"].isin(args.scopes)
    return rows[shown & rows["keep_fraction"].isin(args.fractions) & rows["refit"].isin(args.refit)]


def percent(value: float) -> str:
    """With one decimal, and no minus before a zero."""
    return f"{round(value, 3) + 0.0:.1%}"


def markdown(rows: pd.DataFrame) -> str:
    """
    A row per share: return, loss with its interval over seeds, the largest loss of a task, bytes.

    :param rows: of one score and one way to treat the base
    """
    lines = ["| kept | mean return | loss | 95 % over seeds | worst task | bytes | of dense |", f"|{'---|' * 7}"]
    for share, group in rows.groupby("keep_fraction", sort=False):
        by_seed = group.groupby("seed")["loss"].mean()
        loss = mean_interval(by_seed.tolist(), 0.95)
        worst = group.groupby("task")["loss"].mean().max()
        interval = f"{percent(loss.low)} to {percent(loss.high)}" if len(by_seed) > 1 else "one seed"
        cells = [percent(share), f"{group['mean_return'].mean():.0f}", percent(loss.mean), interval, percent(worst)]
        cells += [f"{group['sparse'].mean():,.0f}", percent((group["sparse"] / group["dense"]).mean())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def position_bytes(adapter: Sparse) -> dict[str, int]:
    """
    Bytes that the positions of a layer's kept weights take in several formats.

    :param adapter: what is left of the layer
    """
    rows = math.prod(adapter.size[:-2]) * (adapter.size[-2] + 1)
    gaps = adapter.positions.diff(prepend=adapter.positions.new_tensor([-1]))
    n_kept = len(adapter.positions)
    return {
        "list": 4 * n_kept,
        "bitmask": math.ceil(math.prod(adapter.size) / 8),
        "rows of 16-bit columns": 4 * rows + 2 * n_kept,
        # A gap of 255 or more takes further bytes.
        "gaps of 8 bits": n_kept + int((gaps // 255).sum()),
    }


def formats(args: Args, shares: tuple[float, ...] = (0.05, 0.02, 0.01)) -> str:
    """
    Bytes of a kept weight, its value of four included, by format; mean over the agents.

    :param args: which agents
    :param shares: of the weights, kept by magnitude
    """
    rows = []
    for seed, share in itertools.product(range(args.seeds), shares):
        model = VarShareSAC.load(args.agent_file(seed), device="cpu")
        prune(model, keep_fraction=share)
        for name, network in (("actor", model.policy.actor), ("critic", model.policy.critic.net)):
            layers = pd.DataFrame([position_bytes(layer.adapter) for layer in network.linears()]).sum()
            kept = sum(len(layer.adapter.values) for layer in network.linears())
            rows.append({"network": name, "kept": share, **(4 + layers / kept)})
    means = pd.DataFrame(rows).groupby(["network", "kept"], sort=False).mean()
    lines = [f"| network | kept | {' | '.join(means.columns)} |", f"|{'---|' * (2 + len(means.columns))}"]
    for (name, share), row in means.iterrows():
        lines.append(f"| {name} | {percent(share)} | {' | '.join(f'{value:.1f}' for value in row)} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    """
    Run and print.

    :param args: what to run
    """
    rows = collect(args).sort_values(["scope", "score", "refit", "keep_fraction"], ascending=[True, True, True, False])
    first = rows.iloc[0]
    full, random = rows["full_return"].mean(), rows["random_return"].mean()
    print(f"{args.label}, {rows['seed'].nunique()} seeds: unpruned {full:.0f}, random policy {random:.0f}.")
    print(
        f"Bytes of the actor: residuals {first['dense']:,}, one network per task {first['per_task']:,}, shared network "
        f"alone {first['shared']:,}."
    )
    for (scope, score, refit), group in rows.groupby(["scope", "score", "refit"], sort=False):
        base = "the base refitted" if refit else "the base as it is"
        print(f"\nBy {score}, scope {scope}, {base}\n\n{markdown(group)}")
    print(f"\nBytes of a kept weight by format\n\n{formats(args)}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
