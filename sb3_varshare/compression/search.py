"""The smallest share of the weights at which a loss stays within a bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

# Halvings, in logarithms, between one weight and all: with a million weights the last two sizes are 6 % apart.
SEARCH_STEPS = 8


class Candidate(NamedTuple):
    """
    A size that was tried.

    :param keep_fraction: share of the weights
    :param loss: share of the return that was lost, mean over tasks
    """

    keep_fraction: float
    loss: float


def smallest_share(
    loss_of: Callable[[float], float], n_left: int, n_weights: int, max_loss: float
) -> tuple[float, tuple[Candidate, ...]]:
    """
    Try none at all, then halve between one weight and all that are left. A loss need not rise as weights leave: the
    result is the smallest share that was tried and held, and one below it that was not tried may hold too.

    :param loss_of: the loss with a share of the weights
    :param n_left: weights that are not zero already; with all of them nothing is lost
    :param n_weights: all weights
    :param max_loss: the bound
    :return: the share, and what was tried, in order
    """
    tried: list[Candidate] = []

    def holds(share: float) -> bool:
        tried.append(Candidate(share, loss_of(share)))
        return tried[-1].loss <= max_loss

    if n_left == 0 or holds(0.0):
        return 0.0, tuple(tried)
    low, high = 0, n_left
    for _ in range(SEARCH_STEPS):
        middle = round(math.sqrt(max(low, 1) * high))
        if not low < middle < high:
            break
        if holds(middle / n_weights):
            high = middle
        else:
            low = middle
    return high / n_weights, tuple(tried)
