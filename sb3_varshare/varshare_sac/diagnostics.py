"""How far each task has moved away from the shared base: what is logged, and the layers that it is summed from."""

from __future__ import annotations

from typing import NamedTuple

import torch as th

from sb3_varshare.adapters.kl import KLShares
from sb3_varshare.networks import TaskLinear, TaskNetwork


class LayerStatistics(NamedTuple):
    """
    Residuals of one layer, those of all members of an ensemble together.

    :param n_weights: of one task
    :param kl: each share (T,) nats, summed over the weights
    :param squared_residual: (T,) squared Frobenius norm of the mean residual
    :param squared_base: squared Frobenius norm of the shared weight
    :param relative_sigma: (T,) mean over the weights of sigma / sigma_prior; ``None`` without a spread
    """

    n_weights: int
    kl: KLShares
    squared_residual: th.Tensor
    squared_base: th.Tensor
    relative_sigma: th.Tensor | None


@th.no_grad()
def layer_statistics(network: TaskNetwork) -> dict[str, LayerStatistics]:
    """
    The layers of a network that have a residual.

    :param network: any task-conditioned network
    :return: name of the layer as a module -> its numbers, in the order in which the layers are applied
    """
    found = {name: _statistics(layer) for name, layer in network.named_linears()}
    return {name: statistics for name, statistics in found.items() if statistics is not None}


def _statistics(layer: TaskLinear) -> LayerStatistics | None:
    adapter = layer.adapter
    squared, relative, shares = adapter.squared_residual(), adapter.relative_sigma(), adapter.kl_shares()
    if squared is None:
        return None
    return LayerStatistics(
        layer.theta[..., :1, :, :].numel(),
        KLShares(_members(shares.mean).sum(0), _members(shares.spread).sum(0)),
        _members(squared).sum(0),
        layer.theta.square().sum(),
        None if relative is None else _members(relative).mean(0),
    )


def _members(values: th.Tensor) -> th.Tensor:
    """(*K, T) as (K, T)."""
    return values.reshape(-1, values.shape[-1])


@th.no_grad()
def residual_statistics(network: TaskNetwork) -> dict[str, th.Tensor]:
    """
    Numbers per task over all layers of a network.

    :param network: any task-conditioned network
    :return: each (T,), where the adapter has it: ``kl`` in nats, ``mu_over_theta`` the ratio of the Frobenius norms of
        mean residual and base, ``sigma_over_prior`` the mean over weights of sigma / sigma_prior
    """
    layers = list(layer_statistics(network).values())
    if not layers:
        return {}
    residual = th.stack([layer.squared_residual for layer in layers]).sum(0)
    base = th.stack([layer.squared_base for layer in layers]).sum(0)
    statistics = {
        "kl": th.stack([share for layer in layers for share in layer.kl]).sum(0),
        "mu_over_theta": (residual / base).sqrt(),
    }
    noisy = [(layer.relative_sigma, layer.n_weights) for layer in layers if layer.relative_sigma is not None]
    if noisy:
        weighted = th.stack([relative * n_weights for relative, n_weights in noisy])
        statistics["sigma_over_prior"] = weighted.sum(0) / sum(n_weights for _, n_weights in noisy)
    return statistics
