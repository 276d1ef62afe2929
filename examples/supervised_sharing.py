"""
Does a noisy residual share better than an L2 penalty? Six regression tasks, no reinforcement learning.

Inputs have six normal dimensions. Tasks 1 to 3 are identical, tasks 4 and 5 conflict (one term with opposite
signs), task 6 is identical to the first three but its labels are very noisy. Every model is a BroNet trained by
Adam on

    mean_t [ mean_b (f_t(x) - y)^2 / 2  +  beta * KL_t / n_t ]

which is the ELBO for beta = 1 and Gaussian labels with a standard deviation of 1. That is neither the 0.1 of the
clean tasks nor the 2 of the noisy one: a learner does not know them, and one value for all tasks is what makes the
noisy one hard. Another value s would only rescale the strength, to beta * s^2.

The strength is the best of the same list for every model: the one with the least validation error, a plain mean
over the six tasks and the seeds. Validation labels are as noisy as training labels; in the noisy task they add about
4 to that mean, and a sampling error, but the same rows and labels serve all strengths and models. Test errors are
taken once, at that strength, against noise-free targets.

Seeds and strengths are independent problems, so they are trained as the ensemble members of one network: the loss is
a sum over members and Adam is elementwise, hence no member sees another.

The default takes 18 minutes of CPU time, which two workers share.
"""

from __future__ import annotations

import csv
import math
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch as th
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats

from sb3_varshare.networks import BroNet

matplotlib.use("Agg")
import matplotlib.pyplot as plt

N_INPUTS, N_TASKS = 6, 6
IDENTICAL, CONFLICTING, NOISY = slice(0, 3), slice(3, 5), slice(5, 6)
CONFLICT_SLOPES = (0.0, 0.0, 0.0, 2.0, -2.0, 0.0)
LABEL_STD = (0.1, 0.1, 0.1, 0.1, 0.1, 2.0)
METRICS = ("identical", "conflicting", "noisy", "base", "kl_identical", "kl_conflicting")


@dataclass(frozen=True)
class Config:
    """
    What to run.

    :param seeds: data sets and initial networks
    :param steps: Adam steps
    :param output: folder of the tables and the figure
    :param betas: strengths to choose from; the default brackets the optimum of L2 (about 10) and of VarShare (about 1)
    :param sigma_prior: of the residuals, relative to the initial weights
    :param rows: training rows per task; as many for validation and for test
    :param batch_size: rows per task and step
    :param width: of the BroNet
    :param learning_rate: of Adam
    :param workers: processes with one thread each, which share the models between them
    """

    seeds: int = 5
    steps: int = 4_000
    output: Path = Path("runs/supervised")
    betas: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0)
    sigma_prior: float = 0.3
    rows: int = 2_000
    batch_size: int = 32
    width: int = 64
    learning_rate: float = 3e-4
    workers: int = 2


class Model(NamedTuple):
    """
    A row of the table.

    :param label: its name in the table
    :param adapter: of the BroNet
    :param kwargs: of the adapter, besides ``sigma_prior``
    :param penalized: whether it has a strength
    :param recentred: after every step
    """

    label: str
    adapter: str
    kwargs: dict[str, Any] = {}  # noqa: RUF012
    penalized: bool = True
    recentred: bool = True


MODELS = {
    "shared": Model("shared only", "none", penalized=False, recentred=False),
    "residual": Model("residual, no penalty", "deterministic", penalized=False, recentred=False),
    "l2": Model("residual, L2", "deterministic", recentred=False),
    "l2_recentred": Model("residual, L2, re-centred", "deterministic"),
    "varshare": Model("VarShare, full", "varshare", recentred=False),
    "full": Model("VarShare, full, re-centred", "varshare"),
    "tied": Model("VarShare, tied, re-centred", "varshare", {"sigma_structure": "tied"}),
    "fixed": Model("VarShare, fixed, re-centred", "varshare", {"sigma_structure": "fixed"}),
    "low_rank": Model("low rank (8), re-centred", "low_rank", {"rank": 8}),
}


class Rows(NamedTuple):
    """
    A data set per seed S.

    :param x: (S, T, N, N_INPUTS)
    :param y: (S, T, N, 1)
    """

    x: th.Tensor
    y: th.Tensor


class Problem(NamedTuple):
    """The data sets of all seeds; the targets of ``test`` have no noise."""

    train: Rows
    validation: Rows
    test: Rows


class Run(NamedTuple):
    """
    What one network scored.

    :param model: key of :data:`MODELS`
    :param beta: its strength
    :param seed: its data set
    :param validation: mean squared error over tasks on noisy labels
    :param metrics: test errors and KLs in nats, by the names in :data:`METRICS`
    """

    model: str
    beta: float
    seed: int
    validation: float
    metrics: dict[str, float]


def targets(x: th.Tensor) -> th.Tensor:
    """
    :param x: (S, T, N, N_INPUTS)
    :return: (S, T, N, 1)
    """
    first, second, third, fourth = x[..., :4].unbind(-1)
    slopes = th.tensor(CONFLICT_SLOPES)[:, None]
    return (third + second * (2 * first).sin() + slopes * fourth).unsqueeze(-1)


def draw_rows(n_seeds: int, n_rows: int, noisy_labels: bool, first_seed: int) -> Rows:
    """
    :param n_seeds: data sets
    :param n_rows: rows per task
    :param noisy_labels: add noise to the targets
    :param first_seed: of the generators, one for each data set
    """
    generators = [th.Generator().manual_seed(first_seed + seed) for seed in range(n_seeds)]
    x = th.stack([th.randn(N_TASKS, n_rows, N_INPUTS, generator=generator) for generator in generators])
    noise = th.stack([th.randn(N_TASKS, n_rows, 1, generator=generator) for generator in generators])
    label_std = th.tensor(LABEL_STD)[:, None, None] * noisy_labels
    return Rows(x, targets(x) + label_std * noise)


def draw_problem(config: Config) -> Problem:
    """Training, validation and test rows with seeds of their own."""
    return Problem(
        train=draw_rows(config.seeds, config.rows, noisy_labels=True, first_seed=1_000),
        validation=draw_rows(config.seeds, config.rows, noisy_labels=True, first_seed=2_000),
        test=draw_rows(config.seeds, config.rows, noisy_labels=False, first_seed=3_000),
    )


def draw_batch(rows: Rows, batch_size: int, generator: th.Generator) -> Rows:
    """Random rows of every task, other ones for every seed."""
    lead, n_rows = rows.x.shape[:2], rows.x.shape[2]
    chosen = th.randint(n_rows, (*lead, batch_size, 1), generator=generator)
    return Rows(rows.x.gather(2, chosen.expand(-1, -1, -1, N_INPUTS)), rows.y.gather(2, chosen))


def repeated(rows: Rows, n_strengths: int) -> Rows:
    """The data of every ensemble member: strengths outside, seeds inside."""
    return Rows(rows.x.repeat(n_strengths, 1, 1, 1), rows.y.repeat(n_strengths, 1, 1, 1))


def member_kl(net: BroNet) -> th.Tensor:
    """KL of every member and task, (K, T) nats."""
    return th.stack([layer.adapter.kl_divergence() for layer in net.linears()]).sum(0)


def objective(net: BroNet, batch: Rows, kl_weights: th.Tensor) -> th.Tensor:
    """
    The loss that the module's docstring states, summed over members.

    :param net: K members
    :param batch: (K, T, B, ...)
    :param kl_weights: (K,) beta over the number of training rows
    """
    errors = (net(batch.x, sample=True) - batch.y).square().mean((-2, -1)) / 2
    return (errors + kl_weights[:, None] * member_kl(net)).mean(-1).sum()


def make_net(model: Model, n_strengths: int, config: Config) -> BroNet:
    """A member for every strength and seed, seeds inside; the seed alone decides on its initial weights."""
    kwargs = model.kwargs | ({} if model.adapter == "none" else {"sigma_prior": config.sigma_prior})

    def make(n_members: int) -> BroNet:
        return BroNet(N_INPUTS, 1, config.width, 1, N_TASKS, model.adapter, kwargs, n_members)

    th.manual_seed(0)
    by_seed, net = make(config.seeds), make(n_strengths * config.seeds)
    net.load_state_dict({name: th.cat([tensor] * n_strengths) for name, tensor in by_seed.state_dict().items()})
    return net


def train(model: Model, strengths: Sequence[float], config: Config, rows: Rows) -> BroNet:
    """
    Train a network for every strength and seed, all at once.

    :param model: what to train
    :param strengths: betas
    :param config: sizes
    :param rows: training data of the seeds
    :return: one member per strength and seed, seeds inside
    """
    net = make_net(model, len(strengths), config)
    optimizer = th.optim.AdamW(net.parameters(), config.learning_rate, weight_decay=0, fused=True)
    kl_weights = th.tensor(strengths).repeat_interleave(config.seeds) / config.rows
    generator = th.Generator().manual_seed(0)
    for _ in range(config.steps):
        batch = repeated(draw_batch(rows, config.batch_size, generator), len(strengths))
        loss = objective(net, batch, kl_weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if model.recentred:
            net.recenter()
    return net


@th.no_grad()
def squared_errors(net: BroNet, rows: Rows, base: bool = False) -> th.Tensor:
    """
    Mean squared error of the mean weights, or of the base alone.

    :param net: K members
    :param rows: (K, T, N, ...)
    :return: (K, T)
    """
    apply = net.base if base else net
    chunks = zip(rows.x.split(250, dim=2), rows.y.split(250, dim=2), strict=True)
    return th.cat([(apply(x) - y).square() for x, y in chunks], dim=2).mean((-2, -1))


def evaluate(net: BroNet, problem: Problem, n_strengths: int) -> tuple[th.Tensor, dict[str, th.Tensor]]:
    """
    :return: validation error (K,), and every metric (K,)
    """
    validation = squared_errors(net, repeated(problem.validation, n_strengths)).mean(-1)
    test = repeated(problem.test, n_strengths)
    error, base, kl = squared_errors(net, test), squared_errors(net, test, base=True), member_kl(net).detach()
    columns = (error[:, IDENTICAL], error[:, CONFLICTING], error[:, NOISY], base[:, IDENTICAL])
    return validation, dict(
        zip(METRICS, (column.mean(-1) for column in (*columns, kl[:, IDENTICAL], kl[:, CONFLICTING])), strict=True)
    )


def run_model(name: str, config: Config) -> list[Run]:
    """Train and evaluate one model at every strength and seed."""
    th.set_num_threads(1)
    model, problem = MODELS[name], draw_problem(config)
    strengths = config.betas if model.penalized else (0.0,)
    validation, metrics = evaluate(train(model, strengths, config, problem.train), problem, len(strengths))
    members = [(beta, seed) for beta in strengths for seed in range(config.seeds)]
    return [
        Run(name, beta, seed, validation[k].item(), {metric: values[k].item() for metric, values in metrics.items()})
        for k, (beta, seed) in enumerate(members)
    ]


def run_models(config: Config) -> dict[str, list[Run]]:
    """All models, in parallel."""
    with ProcessPoolExecutor(config.workers, multiprocessing.get_context("spawn")) as pool:
        results = pool.map(run_model, MODELS, [config] * len(MODELS))
        return dict(zip(MODELS, track(results, "Training", len(MODELS)), strict=True))


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g}" + ("" if math.isnan(self.low) else f" ({self.low:.3g} to {self.high:.3g})")


def t_interval(values: Sequence[float]) -> Interval:
    """Student's t over the seeds; the bounds are NaN for a single one."""
    if len(values) < 2:
        return Interval(values[0], math.nan, math.nan)
    result = stats.ttest_1samp(values, 0.0)
    bounds = result.confidence_interval(0.95)
    return Interval(sum(values) / len(values), float(bounds.low), float(bounds.high))


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Geometric mean of the ratios, paired by seed."""
    logs = [math.log(a / b) for a, b in zip(numerators, denominators, strict=True)]
    return Interval(*map(math.exp, t_interval(logs)))


def column(runs: Iterable[Run], metric: str) -> list[float]:
    """One metric of every run."""
    return [run.metrics[metric] for run in runs]


def mean_validation(runs: Iterable[Run]) -> dict[float, float]:
    """Mean validation error over the seeds for every strength."""
    by_beta: dict[float, list[float]] = {}
    for run in runs:
        by_beta.setdefault(run.beta, []).append(run.validation)
    return {beta: sum(values) / len(values) for beta, values in by_beta.items()}


def best_runs(runs: Sequence[Run]) -> list[Run]:
    """The runs of the strength with the least validation error."""
    validation = mean_validation(runs)
    best = min(validation, key=validation.__getitem__)
    return [run for run in runs if run.beta == best]


def make_table(chosen: dict[str, list[Run]], config: Config) -> Table:
    """The table of test errors, with 95 % intervals over the seeds."""
    table = Table(title="Test error against noise-free targets, mean (95 % interval over seeds)")
    for header in ("model", "identical", "conflicting", "noisy", "base on identical", "KL ident. : confl.", "beta"):
        table.add_column(header)
    for name, runs in chosen.items():
        errors = [str(t_interval(column(runs, metric))) for metric in METRICS[:4]]
        kl = [t_interval(column(runs, metric)).mean for metric in METRICS[4:]]
        penalized = MODELS[name].penalized
        nats = f"{kl[0]:.3g} : {kl[1]:.3g}" if penalized else "-"
        table.add_row(MODELS[name].label, *errors, nats, strength(runs[0].beta, config) if penalized else "-")
    table.caption = "* an end of the list of strengths: the best may lie beyond it"
    return table


def strength(beta: float, config: Config) -> str:
    """The chosen strength, with a mark where the list ends."""
    return f"{beta:g}" + ("*" if beta in (min(config.betas), max(config.betas)) else "")


def verdicts(chosen: dict[str, list[Run]]) -> list[str]:
    """The claims that the example tests, as measured."""
    l2, full = chosen["l2_recentred"], chosen["full"]
    claims = [
        ("L2 / VarShare error, identical tasks", column(l2, "identical"), column(full, "identical"), 1.3, True),
        ("L2 / VarShare error, noisy task", column(l2, "noisy"), column(full, "noisy"), 3.0, True),
        ("base alone / VarShare error, identical tasks", column(full, "base"), column(full, "identical"), 1.15, False),
        (
            "KL of conflicting / identical tasks",
            column(full, "kl_conflicting"),
            column(full, "kl_identical"),
            3.0,
            True,
        ),
    ]
    lines = []
    for label, numerators, denominators, aim, at_least in claims:
        ratio = ratio_interval(numerators, denominators)
        verdict = "met" if (ratio.mean >= aim) == at_least else "missed"
        verdict += ", but the interval holds the aim" if ratio.low < aim < ratio.high else ""
        lines.append(f"{label}: {ratio} (aim {'>=' if at_least else '<='} {aim:g}: {verdict})")
    return lines


def write_runs(runs: Iterable[Run], path: Path) -> None:
    """Every network's scores, one row each."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("model", "beta", "seed", "validation", *METRICS))
        for run in runs:
            writer.writerow((run.model, run.beta, run.seed, run.validation, *run.metrics.values()))


def write_table(chosen: dict[str, list[Run]], path: Path) -> None:
    """The table, one row per model and metric."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("model", "beta", "metric", "mean", "low", "high"))
        for name, runs in chosen.items():
            for metric in METRICS:
                writer.writerow((name, runs[0].beta, metric, *t_interval(column(runs, metric))))


def draw_figure(results: dict[str, list[Run]], chosen: dict[str, list[Run]], path: Path) -> None:
    """Errors at the chosen strength, and validation error and noisy task over the strengths."""
    figure, (bars, curves) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    for position, metric in enumerate(METRICS[:4]):
        intervals = [t_interval(column(runs, metric)) for runs in chosen.values()]
        means = [interval.mean for interval in intervals]
        errors = [interval.high - interval.mean for interval in intervals]
        places = [row + 0.2 * (position - 1.5) for row in range(len(chosen))]
        bars.barh(places, means, 0.2, xerr=errors, label="base on identical" if metric == "base" else metric)
    bars.set(xscale="log", xlabel="test error at the chosen strength")
    bars.set_yticks(range(len(chosen)), [MODELS[name].label for name in chosen])
    bars.invert_yaxis()
    bars.legend()
    for name, runs in results.items():
        if MODELS[name].penalized:
            validation = mean_validation(runs)
            curves.plot(list(validation), list(validation.values()), marker="o", label=MODELS[name].label)
    curves.set(xscale="log", xlabel="beta", ylabel="validation error, mean over tasks and seeds")
    curves.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(config: Config) -> None:
    """Train all models, print the table and what it says, save both and a figure."""
    results = run_models(config)
    chosen = {name: best_runs(runs) for name, runs in results.items()}
    config.output.mkdir(parents=True, exist_ok=True)
    write_runs((run for runs in results.values() for run in runs), config.output / "runs.csv")
    write_table(chosen, config.output / "table.csv")
    draw_figure(results, chosen, config.output / "figure.png")
    console = Console()
    console.print(make_table(chosen, config))
    for line in verdicts(chosen):
        console.print(line, highlight=False)
    console.print(f"Saved in {config.output}", highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
