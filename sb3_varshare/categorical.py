"""Return distributions on a fixed support: expectation, projection and the initial head."""

from __future__ import annotations

import torch as th


def expectation(probabilities: th.Tensor, support: th.Tensor) -> th.Tensor:
    """
    :param probabilities: (..., M)
    :param support: (M,) the atoms
    :return: (...,) mean of the distribution
    """
    return probabilities @ support


def variance(probabilities: th.Tensor, support: th.Tensor) -> th.Tensor:
    """
    :param probabilities: (..., M)
    :param support: (M,) the atoms
    :return: (...,) variance of the distribution, never negative
    """
    deviations = support - expectation(probabilities, support)[..., None]
    return (probabilities * deviations.square()).sum(-1)


def project(probabilities: th.Tensor, atoms: th.Tensor, support: th.Tensor) -> th.Tensor:
    """
    Project mass on arbitrary atoms onto the support: each atom's mass goes to its two neighbours, linearly.

    Mass is preserved; the mean is too, for atoms inside the support. Atoms outside are moved to its edge.

    Source: Bellemare et al. 2017 (arXiv 1707.06887), algorithm 1

    :param probabilities: (..., M) mass of each atom
    :param atoms: (..., M) where that mass lies
    :param support: (M,) evenly spaced, ascending
    :return: (..., M) mass on the support
    """
    v_min, n_atoms = support[0], support.shape[0]
    spacing = (support[-1] - v_min) / (n_atoms - 1)
    position = ((atoms - v_min) / spacing).clamp(0, n_atoms - 1)
    # The last atom counts as the upper neighbour of the one before it, so that lower + 1 always exists. The clamp from
    # below is for NaN, which would otherwise be an index out of bounds and on a GPU end the process.
    lower = position.long().clamp(0, n_atoms - 2)
    to_upper = probabilities * (position - lower)
    projected = th.zeros_like(probabilities).scatter_add_(-1, lower, probabilities - to_upper)
    return projected.scatter_add_(-1, lower + 1, to_upper)


def narrow_logits(support: th.Tensor, std: float) -> th.Tensor:
    """
    Logits of a Gaussian bump around zero, the bias of a head that starts sure that returns are near zero.

    :param support: (M,)
    :param std: standard deviation of the bump, in units of the support
    :return: (M,)
    """
    return -support.square() / (2 * std**2)
