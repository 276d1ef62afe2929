"""How many weights pruning left in each layer: what must be known to build an agent before its tensors are put in."""

from __future__ import annotations

from typing import Any

import torch as th

from sb3_varshare.adapters.base import prior_std
from sb3_varshare.adapters.sparse import Sparse
from sb3_varshare.networks import TaskNetwork

# Adapters whose residual is one number per weight, of which some can be left out.
PRUNABLE = ("varshare", "deterministic")


def check_kept_weights(model: Any) -> None:
    """
    :param model: the agent
    :raises ValueError: its ``kept_weights`` are not those of pruned networks
    """
    kept = {} if model.kept_weights is None else model.kept_weights
    has_residuals = {"actor": model.actor_residuals, "critic": model.critic_residuals}
    possible = [name for name, has in has_residuals.items() if has and model.adapter in PRUNABLE]
    if not isinstance(kept, dict) or not set(kept) <= set(possible):
        raise ValueError(
            f"kept_weights must hold numbers of weights for none or some of {possible}, the networks that have "
            f"residuals to prune, got {model.kept_weights!r}; is the file damaged?"
        )


def allocate_kept(network: TaskNetwork, name: str, counts: Any, adapter_kwargs: dict[str, Any] | None) -> None:
    """
    Give a network without residuals those of a pruned one, to be filled from a file.

    :param network: with ``adapter="none"``
    :param name: of the network, for messages
    :param counts: of each linear layer, the number of kept weights
    :param adapter_kwargs: of the adapter that it had; the prior is as before
    :raises ValueError: the numbers do not fit the layers
    """
    layers = list(network.linears())
    limits = [layer.theta.numel() * layer.shape.n_tasks for layer in layers]
    fits = isinstance(counts, list | tuple) and len(counts) == len(limits)
    if not fits or not all(type(n) is int and 0 <= n <= limit for n, limit in zip(counts, limits, strict=True)):
        raise ValueError(
            f"kept_weights must have a whole number for each of the {len(limits)} linear layers of the {name}, from 0 "
            f"to {limits}, got {counts!r}; is the file damaged?"
        )
    assert adapter_kwargs is not None
    for layer, n_kept in zip(layers, counts, strict=True):
        prior = prior_std(adapter_kwargs["sigma_prior"], adapter_kwargs["prior_scale"], layer.weight_rms)
        layer.adapter = Sparse(layer.shape, prior, th.arange(n_kept), th.zeros(n_kept))
