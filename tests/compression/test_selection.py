"""What is kept, by hand; and how the smallest share is found."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch as th

from sb3_varshare.adapters.sparse import Sparse
from sb3_varshare.compression.search import SEARCH_STEPS, smallest_share
from sb3_varshare.compression.selection import (
    Selection,
    keep_above,
    keep_share,
    kept_layer,
    mean_residual,
    network_scores,
)
from sb3_varshare.networks import BroNet, TaskLinear

# Two layers of one task: 1 x 4 and 1 x 2.
SCORES = [th.tensor([[[4.0, 1.0, 0.0, 3.0]]]), th.tensor([[[2.0, 5.0]]])]


def masks(selections: list[Selection]) -> list[list[int]]:
    return [selection.mask.flatten().int().tolist() for selection in selections]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.0, [[1, 1, 0, 1], [1, 1]]),
        (3.0, [[1, 0, 0, 1], [0, 1]]),
        (3.5, [[1, 0, 0, 0], [0, 1]]),
        (9.0, [[0] * 4, [0] * 2]),
    ],
)
def test_a_threshold_keeps_what_reaches_it_and_is_not_zero(threshold: float, expected: list[list[int]]) -> None:
    selections = keep_above(SCORES, threshold)
    assert masks(selections) == expected
    assert [selection.threshold for selection in selections] == [threshold] * 2


@pytest.mark.parametrize(
    ("share", "scope", "expected", "thresholds"),
    [
        (0.5, "global", [[1, 0, 0, 1], [0, 1]], [3.0, 3.0]),
        (0.5, "layer", [[1, 0, 0, 1], [0, 1]], [3.0, 5.0]),
        (1 / 3, "global", [[1, 0, 0, 0], [0, 1]], [4.0, 4.0]),
        (0.25, "layer", [[1, 0, 0, 0], [0, 0]], [4.0, math.inf]),
        (1.0, "global", [[1, 1, 0, 1], [1, 1]], [1.0, 1.0]),
        (1.0, "layer", [[1, 1, 0, 1], [1, 1]], [1.0, 2.0]),
        (0.0, "global", [[0] * 4, [0] * 2], [math.inf, math.inf]),
    ],
)
def test_a_share_keeps_the_best(share: float, scope: str, expected: list[list[int]], thresholds: list[float]) -> None:
    selections = keep_share(SCORES, share, scope)
    assert masks(selections) == expected
    assert [selection.threshold for selection in selections] == thresholds


def test_of_equal_scores_as_many_are_kept_as_asked_for() -> None:
    (selection,) = keep_share([th.ones(1, 2, 5, 4)], 0.25, "global")
    assert int(selection.mask.sum()) == 10


def make_layer(mu: list[float], theta: float = 1.0) -> TaskLinear:
    """One input and output, a task for each mean."""
    layer = TaskLinear(1, 1, len(mu), "deterministic", {"sigma_prior": 0.5, "prior_scale": "absolute"})
    with th.no_grad():
        layer.theta.fill_(theta)
        next(layer.adapter.means()).copy_(th.tensor(mu)[:, None, None])
    return layer


def test_the_base_moves_to_the_mean_of_what_is_dropped() -> None:
    """Tasks at 1 + (4, -1, 0, -3): the first is kept at 5, the base becomes the mean of the others, 1 - 4/3."""
    layer, mask = make_layer([4.0, -1.0, 0.0, -3.0]), th.tensor([True, False, False, False])[:, None, None]
    kept = kept_layer(layer, Selection(mask, 4.0), refit_base=True)
    assert kept.theta.item() == pytest.approx(-1 / 3)
    assert kept.adapter.positions.tolist() == [0]
    weights = kept.adapter.merged_weight(kept.theta).flatten().tolist()
    assert weights == pytest.approx([5.0, -1 / 3, -1 / 3, -1 / 3])
    literal = kept_layer(layer, Selection(mask, 4.0), refit_base=False)
    assert literal.theta.item() == 1.0
    assert literal.adapter.merged_weight(literal.theta).flatten().tolist() == [5.0, 1.0, 1.0, 1.0]
    assert layer.theta.item() == 1.0


def test_where_all_is_kept_the_base_stays() -> None:
    layer = make_layer([4.0, -1.0])
    kept = kept_layer(layer, Selection(th.ones(2, 1, 1, dtype=th.bool), 0.0), refit_base=True)
    assert kept.theta.item() == 1.0 and kept.adapter.values.tolist() == [4.0, -1.0]


def test_no_base_is_nearer_to_what_is_dropped() -> None:
    """Against least squares over all bases, by the gradient: it is zero at the mean."""
    th.manual_seed(0)
    layer = TaskLinear(5, 4, 6, "varshare", n_members=2)
    with th.no_grad():
        next(layer.adapter.means()).normal_()
    weights = layer.merged_weight().detach()
    mask = th.rand_like(weights) < 0.4
    kept = kept_layer(layer, Selection(mask, 0.0), refit_base=True)
    after = kept.adapter.merged_weight(kept.theta)
    th.testing.assert_close(after[mask], weights[mask])
    distance = (after - weights).masked_fill(mask, 0)
    assert distance.sum(-3).abs().max() < 1e-5
    literal = kept_layer(layer, Selection(mask, 0.0), refit_base=False)
    literal_distance = literal.adapter.merged_weight(literal.theta) - weights
    assert distance.square().sum() < literal_distance.square().sum()


@pytest.mark.parametrize("sigma_structure", ["full", "tied", "fixed"])
def test_scores_are_ratios_to_a_standard_deviation(sigma_structure: str) -> None:
    th.manual_seed(0)
    net = BroNet(5, 4, 8, 1, 3, "varshare", {"sigma_structure": sigma_structure}, n_members=2)
    with th.no_grad():
        for parameter in (*net.means(), *net.spreads()):
            parameter.add_(0.3 * th.randn_like(parameter))
    magnitude, ratio = network_scores(net, "magnitude"), network_scores(net, "signal_to_noise")
    for layer, by_magnitude, by_ratio in zip(net.linears(), magnitude, ratio, strict=True):
        weight = layer.adapter.residual  # type: ignore[union-attr]
        th.testing.assert_close(by_magnitude * weight.sigma_prior, weight.mu.abs())
        th.testing.assert_close(by_ratio * weight.sigma(), weight.mu.abs())
        nats = (by_magnitude**2 / 2).sum((-2, -1)) + weight.sigma.kl_divergence()
        th.testing.assert_close(layer.adapter.kl_divergence(), nats)
    assert sigma_structure != "fixed" or all(map(th.allclose, magnitude, ratio))


def test_the_residual_of_a_pruned_layer_is_zero_where_nothing_was_kept() -> None:
    layer = make_layer([0.0, 2.0, 0.0])
    layer.adapter = Sparse(layer.shape, 0.5, th.tensor([1]), th.tensor([2.0]))
    assert mean_residual(layer).flatten().tolist() == [0.0, 2.0, 0.0]
    assert mean_residual(make_layer([0.0, 2.0, -1.0])).flatten().tolist() == [0.0, 2.0, -1.0]


# The search


@pytest.mark.parametrize("needed", [1, 7, 300, 5_000, 99_999])
def test_a_loss_that_falls_with_the_share_is_bracketed(needed: int) -> None:
    n_weights = 100_000

    def loss_of(share: float) -> float:
        return 0.0 if share >= needed / n_weights else 1.0

    share, tried = smallest_share(loss_of, n_weights, n_weights, 0.01)
    assert loss_of(share) == 0.0
    # The next smaller size that was tried failed, and is within the resolution of the halvings.
    below = max(candidate.keep_fraction for candidate in tried if candidate.keep_fraction < share)
    assert loss_of(below) == 1.0
    assert share <= max(below, 1 / n_weights) * n_weights ** (2**-SEARCH_STEPS) * 1.001 + 1 / n_weights
    assert len(tried) <= SEARCH_STEPS + 1
    assert all(candidate.loss == loss_of(candidate.keep_fraction) for candidate in tried)


def test_nothing_is_kept_where_nothing_is_lost() -> None:
    share, tried = smallest_share(lambda share: 0.0, 50, 100, 0.01)
    assert share == 0.0 and tried == ((0.0, 0.0),)


def test_all_that_is_left_is_kept_where_any_loss_is_too_much() -> None:
    share, tried = smallest_share(lambda share: 1.0, 50, 100, 0.01)
    assert share == 0.5
    assert all(0 <= candidate.keep_fraction < 0.5 for candidate in tried)


def test_where_no_weight_is_left_nothing_is_tried() -> None:
    assert smallest_share(lambda share: 1.0, 0, 100, 0.01) == (0.0, ())


@pytest.mark.parametrize("loss", [lambda share: 0.5 + 0.5 * math.sin(200 * share), lambda share: float(share < 0.3)])
def test_what_is_found_was_measured_to_hold(loss: Callable[[float], float]) -> None:
    share, tried = smallest_share(loss, 1_000, 1_000, 0.2)
    assert share == 1.0 or ((share, loss(share)) in tried and loss(share) <= 0.2)
    assert share == min((candidate.keep_fraction for candidate in tried if candidate.loss <= 0.2), default=1.0)
