"""What each task has changed in each layer, as a table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch as th

from sb3_varshare.inspection.extras import load
from sb3_varshare.networks import TaskLinear, TaskNetwork
from sb3_varshare.varshare_sac import VarShareSAC
from sb3_varshare.varshare_sac.diagnostics import LayerStatistics, layer_statistics

if TYPE_CHECKING:
    import pandas as pd

NETWORKS = ("actor", "critic")
# Column of numbers -> what it is, with its unit, as colour bars say it.
COLUMNS = {
    "kl": "KL (nats)",
    "kl_mean": "KL of the means\n(nats)",
    "kl_spread": "KL of the spreads\n(nats)",
    "mu_norm": "|mu|",
    "theta_norm": "|theta|",
    "mu_over_theta": "|mu| / |theta|",
    "sigma_over_prior": "mean of\nsigma / sigma_prior",
    "signal_share": "share of weights\nabove the noise",
    "n_weights": "number of weights",
}
WITHOUT_RESIDUALS = {
    "none": "all tasks are one network",
    "embedding": "all tasks are one network, which an input tells the task",
    "independent": "every task is a network of its own, and there is no shared one that it could differ from",
}


def residual_table(model: VarShareSAC, signal_to_noise: float = 1.0) -> pd.DataFrame:
    """
    How far each task has moved away from the shared network, layer by layer.

    The members of the critic count as one layer: sums run over all of them, and so do norms and means.

    :param model: an agent with residuals
    :param signal_to_noise: what ``|mu| / sigma`` of a weight must exceed to be counted in ``signal_share``
    :return: a row per network, layer and task with the columns ``network``, ``layer``, ``task``, ``kl``, ``kl_mean``
        and ``kl_spread`` (nats, summed over the weights), ``mu_norm`` and ``theta_norm`` (Frobenius),
        ``mu_over_theta``, ``sigma_over_prior`` (mean over the weights), ``signal_share`` and ``n_weights``. What needs
        a spread is NaN where there is none. With ``low_rank`` the KL and ``sigma_over_prior`` are those of the factor
        ``U``, all else that of the weights ``U V``
    :raises ValueError: the agent has no residuals, or the threshold is negative
    :raises ImportError: pandas is not installed
    """
    if not signal_to_noise >= 0:
        raise ValueError(f"signal_to_noise must be a number that is not negative, got {signal_to_noise}.")
    rows = []
    for name in networks_with_residuals(model):
        network = network_of(model, name)
        layers = dict(network.named_linears())
        for module, statistics in layer_statistics(network).items():
            columns = _columns(statistics, layers[module], signal_to_noise)
            for task, values in zip(model.task_names, zip(*columns.values(), strict=True), strict=True):
                head = {"network": name, "layer": layer_name(module), "task": task}
                rows.append({**head, **dict(zip(columns, values, strict=True)), "n_weights": statistics.n_weights})
    return load("pandas").DataFrame(rows)


@th.no_grad()
def _columns(statistics: LayerStatistics, layer: TaskLinear, signal_to_noise: float) -> dict[str, list[float]]:
    """Of one layer, column -> a number per task."""
    mean, spread = statistics.kl
    unknown = th.full_like(mean, th.nan)
    mu_norm, theta_norm = statistics.squared_residual.sqrt(), statistics.squared_base.sqrt()
    relative, share = statistics.relative_sigma, signal_share(layer, signal_to_noise)
    tensors = {
        "kl": mean + spread,
        "kl_mean": mean,
        "kl_spread": spread,
        "mu_norm": mu_norm,
        "theta_norm": theta_norm.expand_as(mu_norm),
        "mu_over_theta": mu_norm / theta_norm,
        "sigma_over_prior": unknown if relative is None else relative,
        "signal_share": unknown if share is None else share,
    }
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def signal_share(layer: TaskLinear, signal_to_noise: float) -> th.Tensor | None:
    """
    :param layer: with a residual
    :param signal_to_noise: threshold
    :return: (T,) share of the weights with ``|mu| / sigma`` above it; ``None`` without a spread
    """
    mean, sigma = layer.adapter.mean_residual(), layer.adapter.residual_sigma()
    if mean is None or sigma is None:
        return None
    # Not divided: a sigma of zero is fine.
    above = (mean.abs() > signal_to_noise * sigma).to(mean.dtype).mean((-2, -1))
    return above.reshape(-1, above.shape[-1]).mean(0)


def layer_name(module: str) -> str:
    """
    The name of a layer for people.

    :param module: its name as a module, such as ``trunk.blocks.0.linear_in``
    :return: such as ``block 0 linear_in``
    """
    return re.sub(r"blocks\.(\d+)\.", r"block \1 ", module.removeprefix("trunk."))


def named_layers(network: TaskNetwork) -> Iterator[tuple[str, TaskLinear]]:
    """
    :param network: any task-conditioned network
    :return: names for people and layers, in the order in which they are applied
    """
    return ((layer_name(module), layer) for module, layer in network.named_linears())


@th.no_grad()
def networks_with_residuals(model: VarShareSAC) -> tuple[str, ...]:
    """
    :param model: the agent
    :return: ``"actor"``, ``"critic"`` or both
    :raises ValueError: neither has residuals
    """
    _check_agent(model)
    found = tuple(name for name in NETWORKS if _has_residuals(_network(model, name)))
    if not found:
        why = WITHOUT_RESIDUALS.get(model.adapter, "actor_residuals and critic_residuals are both off")
        raise ValueError(
            f"An agent with adapter={model.adapter!r} has no residuals to look at: {why}. "
            "action_distance compares its tasks by what they do."
        )
    return found


def network_of(model: VarShareSAC, name: str) -> TaskNetwork:
    """
    :param model: an agent with residuals
    :param name: ``"actor"`` or ``"critic"``
    :return: the network
    :raises ValueError: there is no such network, or it has no residuals
    """
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {NETWORKS}, got {name!r}.")
    found = networks_with_residuals(model)
    if name not in found:
        raise ValueError(f"The {name} has no residuals ({name}_residuals=False); take network={found[0]!r}.")
    return _network(model, name)


def _network(model: VarShareSAC, name: str) -> TaskNetwork:
    return model.policy.actor if name == "actor" else model.policy.critic.net


def _has_residuals(network: TaskNetwork) -> bool:
    return any(layer.adapter.mean_residual() is not None for layer in network.linears())


def _check_agent(model: Any) -> None:
    if not isinstance(model, VarShareSAC):
        raise TypeError(f"Expected a VarShareSAC, got a {type(model).__name__}.")
