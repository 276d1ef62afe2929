"""
The estimators of the noise: are their moments right, and how much do the gradients vary?

A small BroNet with residuals and spreads away from their start meets one batch of a regression problem. For every
linear layer, on the inputs that the mean network gives it, the sampled outputs' mean and variance are compared with
the closed form, in standard errors. For the whole network, the gradient of the squared error is drawn many times and
its variance over the draws is summed over the entries of mu and of rho, with bootstrap intervals over the draws.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch as th
import tyro
from rich.console import Console
from rich.table import Table
from scipy import stats

from sb3_varshare.adapters.gaussian import GaussianWeight
from sb3_varshare.networks import BroNet, TaskLinear

ESTIMATORS = ("local_reparameterization", "flipout", "shared_noise")
N_INPUTS, N_TASKS = 6, 4
N_RESAMPLES = 2_000


@dataclass(frozen=True)
class Config:
    """
    What to measure.

    :param draws: forward and backward passes per estimator
    :param width: of the BroNet
    :param batch_size: rows per task
    :param sigma_prior: relative to the initial weights
    :param seed: of everything
    :param json: print one JSON object instead of the table
    """

    draws: int = 2_000
    width: int = 32
    batch_size: int = 32
    sigma_prior: float = 0.3
    seed: int = 0
    json: bool = False


class Estimate(NamedTuple):
    """A number and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


class Measurement(NamedTuple):
    """
    What one estimator gave.

    :param mean_deviation: largest deviation of a sampled mean from the closed form, in standard errors
    :param variance_deviation: the same of a sampled variance
    :param outputs: over how many outputs these are the largest
    :param gradient_variance: of mu and of rho, summed over entries
    :param relative_variance: divided by that of the first estimator in the list
    """

    mean_deviation: float
    variance_deviation: float
    outputs: int
    gradient_variance: dict[str, Estimate]
    relative_variance: dict[str, Estimate]


def make_net(config: Config, estimator: str) -> BroNet:
    """The same parameters for every estimator: mu half the size of sigma_prior, sigma spread around it."""
    th.manual_seed(config.seed)
    kwargs = {"sigma_prior": config.sigma_prior, "estimator": estimator}
    net = BroNet(N_INPUTS, 1, config.width, 1, N_TASKS, "varshare", kwargs)
    with th.no_grad():
        for layer in net.linears():
            weight = gaussian(layer)
            weight.mu.add_(0.5 * weight.sigma_prior * th.randn_like(weight.mu))
        for rho in net.spreads():
            rho.add_(0.5 * th.randn_like(rho))
    return net


def gaussian(layer: TaskLinear) -> GaussianWeight:
    """The layer's residual."""
    (weight,) = (module for module in layer.modules() if isinstance(module, GaussianWeight))
    return weight


def make_batch(config: Config) -> tuple[th.Tensor, th.Tensor]:
    """Inputs (T, B, N_INPUTS) and labels (T, B, 1)."""
    generator = th.Generator().manual_seed(config.seed)
    x = th.randn(N_TASKS, config.batch_size, N_INPUTS, generator=generator)
    slopes = th.linspace(-1, 1, N_TASKS)[:, None]
    return x, (x[..., 0] * x[..., 1] + slopes * x[..., 2]).unsqueeze(-1)


@th.no_grad()
def layer_inputs(net: BroNet, x: th.Tensor) -> list[th.Tensor]:
    """What every linear layer receives in the mean network."""
    received: list[th.Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, args: received.append(args[0])) for layer in net.linears()]
    net(x)
    for handle in handles:
        handle.remove()
    return received


@th.no_grad()
def layer_deviations(layer: TaskLinear, x: th.Tensor, n_draws: int) -> tuple[th.Tensor, th.Tensor]:
    """
    Sampled against closed-form moments of a layer's outputs.

    :return: deviations of mean and variance in standard errors, (T, B, O) each
    """
    noise = th.stack([layer(x, sample=True) for _ in range(n_draws)]) - layer(x)
    variance = th.matmul(x.square(), gaussian(layer).sigma().square())
    mean = noise.mean(0) / (variance / n_draws).sqrt()
    return mean, (noise.var(0) / variance - 1) / math.sqrt(2 / (n_draws - 1))


def moment_deviations(net: BroNet, x: th.Tensor, n_draws: int) -> tuple[float, float, int]:
    """The largest absolute deviations of mean and variance over all layers, and the number of outputs."""
    pairs = zip(net.linears(), layer_inputs(net, x), strict=True)
    deviations = [layer_deviations(layer, inputs, n_draws) for layer, inputs in pairs]
    mean, variance = (th.cat([values.flatten() for values in column]) for column in zip(*deviations, strict=True))
    return mean.abs().max().item(), variance.abs().max().item(), mean.numel()


def gradient_grams(net: BroNet, x: th.Tensor, y: th.Tensor, n_draws: int) -> dict[str, th.Tensor]:
    """
    Inner products of the gradients of any two draws.

    :return: for mu and for rho, (n_draws, n_draws)
    """
    parameters = {"mu": list(net.means()), "rho": list(net.spreads())}
    gradients: dict[str, list[th.Tensor]] = {"mu": [], "rho": []}
    for _ in range(n_draws):
        net.zero_grad()
        ((net(x, sample=True) - y).square().mean() / 2).backward()
        for name, tensors in parameters.items():
            gradients[name].append(th.cat([tensor.grad.flatten() for tensor in tensors if tensor.grad is not None]))
    return {name: gram(th.stack(rows)) for name, rows in gradients.items()}


def gram(rows: th.Tensor) -> th.Tensor:
    """Inner products of the centred rows, in double precision."""
    centred = (rows - rows.mean(0)).double()
    return centred @ centred.mT


def summed_variances(products: th.Tensor, counts: th.Tensor) -> th.Tensor:
    """
    Sum over the entries of the variance over draws, for resampled draws.

    :param products: (n, n) inner products of the draws
    :param counts: (R, n) how often each draw is in a resample
    :return: (R,)
    """
    n = products.shape[-1]
    squares = counts @ products.diagonal()
    return (squares - ((counts @ products) * counts).sum(-1) / n) / (n - 1)


def bootstrap(products: th.Tensor, generator: th.Generator) -> th.Tensor:
    """The sample's own summed variance, then those of the resamples: (1 + N_RESAMPLES,)."""
    n = products.shape[-1]
    drawn = th.randint(n, (N_RESAMPLES, n), generator=generator)
    counts = th.zeros(N_RESAMPLES, n, dtype=products.dtype)
    counts.scatter_add_(1, drawn, th.ones_like(drawn, dtype=products.dtype))
    return summed_variances(products, th.cat((th.ones(1, n, dtype=products.dtype), counts)))


def estimate(values: th.Tensor) -> Estimate:
    """From the value itself, followed by its resamples."""
    low, high = values[1:].quantile(th.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return Estimate(values[0].item(), low, high)


def measure(config: Config) -> dict[str, Measurement]:
    """All estimators on the same network and batch."""
    x, y = make_batch(config)
    generator = th.Generator().manual_seed(config.seed)
    reference: dict[str, th.Tensor] = {}
    results = {}
    for estimator in ESTIMATORS:
        net = make_net(config, estimator)
        deviations = moment_deviations(net, x, config.draws)
        grams = gradient_grams(net, x, y, config.draws)
        variances = {name: bootstrap(products, generator) for name, products in grams.items()}
        reference = reference or variances
        absolute = {name: estimate(values) for name, values in variances.items()}
        relative = {name: estimate(values / reference[name]) for name, values in variances.items()}
        results[estimator] = Measurement(*deviations, absolute, relative)
    return results


def expected_largest(n: int) -> float:
    """About the largest absolute value among n independent standard normals."""
    return float(stats.norm.isf(0.5 / n))


def make_table(results: dict[str, Measurement]) -> Table:
    """One row per estimator."""
    table = Table(title="Noise estimators: moments in standard errors, gradient variance with 95 % intervals")
    table.add_column("estimator", no_wrap=True)
    for header in ("mean", "variance", "grad. variance of mu", "relative", "of rho", "relative"):
        table.add_column(header)
    for name, result in results.items():
        gradients = [
            str(value)
            for key in ("mu", "rho")
            for value in (result.gradient_variance[key], result.relative_variance[key])
        ]
        table.add_row(name, f"{result.mean_deviation:.2f}", f"{result.variance_deviation:.2f}", *gradients)
    n = next(iter(results.values())).outputs
    table.caption = f"Moments: the largest of {n} outputs; about {expected_largest(n):.1f} is expected of exact ones."
    return table


def as_json(results: dict[str, Measurement]) -> str:
    """One object: estimator, then measurement."""
    plain = {
        name: result._asdict()
        | {
            key: {parameter: value._asdict() for parameter, value in getattr(result, key).items()}
            for key in ("gradient_variance", "relative_variance")
        }
        for name, result in results.items()
    }
    return json.dumps(plain)


def main(config: Config) -> None:
    """Measure and print."""
    th.set_num_threads(1)
    results = measure(config)
    if config.json:
        print(as_json(results))
    else:
        Console().print(make_table(results))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
