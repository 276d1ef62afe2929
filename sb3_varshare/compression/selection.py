"""Which weights of the residuals are kept, and what becomes of the base under those that are not."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch as th

from sb3_varshare.adapters.sparse import Sparse
from sb3_varshare.networks import TaskLinear, TaskNetwork

SCORES = ("magnitude", "signal_to_noise")
SCOPES = ("global", "layer")


class Selection(NamedTuple):
    """
    What is kept of one layer.

    :param mask: (*K, T, I, O) whether a weight is kept
    :param threshold: the score below which weights are dropped; infinite where none is kept
    """

    mask: th.Tensor
    threshold: float


class KeptLayer(NamedTuple):
    """
    A layer after pruning.

    :param theta: (*K, 1, I, O) its base
    :param adapter: what is left of its residual
    :param threshold: the score below which weights were dropped
    """

    theta: th.Tensor
    adapter: Sparse
    threshold: float


def mean_residual(layer: TaskLinear) -> th.Tensor:
    """
    :param layer: with a residual of one mean per weight, or what pruning left of one
    :return: (*K, T, I, O)
    """
    mean = layer.adapter.mean_residual()
    assert mean is not None, "checked before"
    return mean.detach()


@th.no_grad()
def network_scores(network: TaskNetwork, score: str) -> list[th.Tensor]:
    """
    How much each weight of the residuals is worth keeping; 0 for what is zero already.

    ``|mu| / sigma_prior`` or ``|mu| / sigma``. Both are relative to a standard deviation of the layer, so that layers
    of different widths can be ranked together; ``(mu / sigma_prior)^2 / 2`` is what the weight costs in nats.

    :param network: with residuals that can be pruned
    :param score: ``"magnitude"`` or ``"signal_to_noise"``
    :return: of each linear layer, (*K, T, I, O)
    """
    scores = []
    for layer in network.linears():
        adapter = layer.adapter
        unit = adapter.residual_sigma() if score == "signal_to_noise" else adapter.sigma_prior
        assert unit is not None, "checked before"
        scores.append(mean_residual(layer).abs() / unit)
    return scores


def keep_above(scores: list[th.Tensor], threshold: float) -> list[Selection]:
    """
    :param scores: of each layer, (*K, T, I, O)
    :param threshold: what scores less is dropped, and what is zero already
    """
    return [Selection((score >= threshold) & (score > 0), threshold) for score in scores]


def keep_share(scores: list[th.Tensor], share: float, scope: str) -> list[Selection]:
    """
    The best weights, at most a share of all; never those that are zero already.

    :param scores: of each layer, (*K, T, I, O)
    :param share: of all weights, those of earlier prunings included
    :param scope: ``"global"`` ranks the weights of all layers together, ``"layer"`` those of each on their own
    """
    pools = [scores] if scope == "global" else [[score] for score in scores]
    return [selection for pool in pools for selection in _keep_best(pool, share)]


def _keep_best(scores: list[th.Tensor], share: float) -> list[Selection]:
    flat = th.cat([score.flatten() for score in scores])
    n_kept = min(round(share * len(flat)), int(flat.count_nonzero()))
    best = flat.topk(n_kept)
    mask = th.zeros_like(flat, dtype=th.bool).index_fill_(0, best.indices, True)
    threshold = float(best.values[-1]) if n_kept else math.inf
    parts = mask.split([score.numel() for score in scores])
    return [Selection(part.view_as(score), threshold) for part, score in zip(parts, scores, strict=True)]


@th.no_grad()
def kept_layer(layer: TaskLinear, selection: Selection, refit_base: bool) -> KeptLayer:
    """
    :param layer: before pruning
    :param selection: what to keep of it
    :param refit_base: move the base to the mean of the tasks that keep nothing at a weight: of all bases the nearest to
        what is dropped. A kept weight stays what it was, base and residual together
    """
    mu, theta, mask = mean_residual(layer), layer.theta.detach().clone(), selection.mask
    if refit_base:
        n_dropped = (~mask).sum(-3, keepdim=True)
        shift = mu.masked_fill(mask, 0).sum(-3, keepdim=True) / n_dropped.clamp(min=1)
        theta, mu = theta + shift, mu - shift
    positions = mask.flatten().nonzero()[:, 0]
    assert layer.adapter.sigma_prior is not None, "checked before"
    adapter = Sparse(layer.shape, layer.adapter.sigma_prior, positions, mu.flatten()[positions])
    return KeptLayer(theta, adapter.to(theta.device), selection.threshold)


class Ranking:
    """
    The weights of a network's residuals by what they are worth, and the network that a part of them makes.

    :param network: with residuals that can be pruned; re-centred
    :param score: see :func:`network_scores`
    :param scope: see :func:`keep_share`
    :param refit_base: see :func:`kept_layer`
    """

    def __init__(self, network: TaskNetwork, score: str, scope: str, refit_base: bool) -> None:
        self.network, self.scope, self.refit_base = network, scope, refit_base
        self.scores = network_scores(network, score)
        self.n_weights = sum(values.numel() for values in self.scores)
        self.n_left = sum(int(values.count_nonzero()) for values in self.scores)

    def above(self, threshold: float) -> list[KeptLayer]:
        """
        :param threshold: see :func:`keep_above`
        :return: of each linear layer
        """
        return self._kept(keep_above(self.scores, threshold))

    def best(self, share: float) -> list[KeptLayer]:
        """
        :param share: see :func:`keep_share`
        :return: of each linear layer
        """
        return self._kept(keep_share(self.scores, share, self.scope))

    def _kept(self, selections: list[Selection]) -> list[KeptLayer]:
        pairs = zip(self.network.linears(), selections, strict=True)
        return [kept_layer(layer, selection, self.refit_base) for layer, selection in pairs]
