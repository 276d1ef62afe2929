"""How far each task has moved away from the shared base."""

from __future__ import annotations

import torch as th

from sb3_varshare.networks import TaskNetwork


@th.no_grad()
def residual_statistics(network: TaskNetwork) -> dict[str, th.Tensor]:
    """
    Numbers per task over all layers of a network.

    :param network: any task-conditioned network
    :return: each (T,), where the adapter has it: ``kl`` in nats, ``mu_over_theta`` the ratio of the Frobenius norms of
        mean residual and base, ``sigma_over_prior`` the mean over weights of sigma / sigma_prior
    """
    layers = list(network.linears())
    squared = [layer.adapter.squared_residual() for layer in layers]
    relative = [layer.adapter.relative_sigma() for layer in layers]
    statistics: dict[str, th.Tensor] = {}
    if any(value is not None for value in squared):
        statistics["kl"] = network.kl_divergence()
        base = sum(layer.theta.square().sum() for layer in layers)
        residual = sum(_over_members(value, "sum") for value in squared if value is not None)
        statistics["mu_over_theta"] = (residual / base).sqrt()  # type: ignore[union-attr]
    if any(value is not None for value in relative):
        sizes = [layer.theta[..., :1, :, :].numel() for layer in layers]
        weighted = [_over_members(r, "mean") * n for r, n in zip(relative, sizes, strict=True) if r is not None]
        statistics["sigma_over_prior"] = th.stack(weighted).sum(0) / sum(sizes)
    return statistics


def _over_members(values: th.Tensor, reduction: str) -> th.Tensor:
    members = values.reshape(-1, values.shape[-1])
    return members.sum(0) if reduction == "sum" else members.mean(0)
