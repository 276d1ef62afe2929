"""Which tasks belong together: by their residuals, and by what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch as th
from scipy.cluster.hierarchy import leaves_list, linkage

from sb3_varshare.inspection.extras import load
from sb3_varshare.inspection.residuals import named_layers, network_of
from sb3_varshare.networks import TaskLinear
from sb3_varshare.varshare_sac import VarShareSAC

if TYPE_CHECKING:
    import pandas as pd

# Measure -> its unit.
MEASURES = {"noise": "standard deviations", "prior": "units of sigma_prior"}
# Two sigmas of zero and no difference are no distance.
SMALLEST_VARIANCE = 1e-30


def task_distance(
    model: VarShareSAC,
    network: str = "critic",
    measure: str | None = None,
    layer: str | None = None,
    threshold: float = 1.0,
) -> pd.DataFrame:
    """
    How far apart the weights of two tasks are: small for tasks that belong together.

    What two tasks differ by is ``mu_s - mu_t``, whatever the shared weights are: re-centring does not change it.

    - ``"noise"``: the square root of the sum of ``(mu_s - mu_t)^2 / (sigma_s^2 + sigma_t^2)`` over those weights in
      which its root exceeds the threshold. What drifts within the noise is left out.
    - ``"prior"``: ``|mu_s - mu_t| / sigma_prior``, the Euclidean distance in the unit in which the KL prices it. Half
      its square is a KL in nats. For residuals without a spread.

    :param model: an agent with residuals
    :param network: ``"actor"`` or ``"critic"``
    :param measure: ``"noise"`` or ``"prior"``; by default the first where the residuals have a spread
    :param layer: one layer, by its name in :func:`residual_table`; by default all together
    :param threshold: of ``"noise"``, in standard deviations; 0 takes all weights
    :return: (T, T) with the tasks' names, symmetric, zero on the diagonal
    :raises ValueError: the network has no residuals, there is no such layer or measure, or ``"noise"`` has no spread
    :raises ImportError: pandas is not installed
    """
    layers = _layers(model, network, layer)
    measure = measure or default_measure(model, network)
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {tuple(MEASURES)}, got {measure!r}.")
    if measure == "noise" and not all(one.adapter.is_stochastic for one in layers):
        raise ValueError(f"The {network}'s residuals have no spread to measure noise by; use measure='prior'.")
    if not threshold >= 0:
        raise ValueError(f"threshold must be a number that is not negative, got {threshold}.")
    squares = sum(_squares(one, threshold if measure == "noise" else None) for one in layers)
    return _by_task(model, np.sqrt(squares))


def default_measure(model: VarShareSAC, network: str = "critic") -> str:
    """
    :param model: an agent with residuals
    :param network: ``"actor"`` or ``"critic"``
    :return: ``"noise"`` where all residuals have a spread, otherwise ``"prior"``
    """
    return "noise" if all(one.adapter.is_stochastic for one in network_of(model, network).linears()) else "prior"


def task_similarity(
    model: VarShareSAC, network: str = "critic", layer: str | None = None, centered: bool = True
) -> pd.DataFrame:
    """
    Cosine of the angle between the tasks' mean residuals, each layer in units of its ``sigma_prior``: 1 where two tasks
    change the shared weights in the same direction, -1 where in opposite ones.

    It depends on what the shared weights are. Re-centred residuals sum to zero over the tasks, so that tasks that have
    nothing to do with each other are at ``-1 / (T - 1)``, not at 0, and a task that differs much turns the others
    towards each other. :func:`task_distance` has no such centre and finds tasks that belong together more reliably.

    :param model: an agent with residuals
    :param network: ``"actor"`` or ``"critic"``
    :param layer: one layer, by its name in :func:`residual_table`; by default all together
    :param centered: take the tasks' plain mean from the residuals, as re-centring does; for agents that do not
    :return: (T, T) with the tasks' names; NaN for a task with a residual of zero
    :raises ValueError: the network has no residuals, there is no such layer, or two centred residuals, which are
        opposite whatever was learned
    :raises ImportError: pandas is not installed
    """
    if centered and model.n_tasks < 3:
        raise ValueError(
            "Centred residuals of two tasks are opposite whatever was learned (of one, zero): use task_distance, "
            "or centered=False for an agent that was not re-centred."
        )
    products = np.zeros((model.n_tasks, model.n_tasks))
    for one in _layers(model, network, layer):
        mean, _ = _moments(one)
        scaled = (mean - mean.mean(0) if centered else mean) / _prior(one)
        products += (scaled @ scaled.T).cpu().numpy()
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore"):
        return _by_task(model, products / (norms[:, None] * norms))


def action_distance(model: VarShareSAC, observations: np.ndarray) -> pd.DataFrame:
    """
    How differently two tasks act: the mean absolute difference of their mean actions on the same observations, over
    the action dimensions that both have. Of opposite actions it is twice their mean size, at most 2.

    For agents with any adapter, also those without residuals.

    :param model: the agent
    :param observations: (N, D) without a one-hot, such as :func:`replay_observations` gives
    :return: (T, T) with the tasks' names, symmetric, zero on the diagonal; actions in [-1, 1]
    :raises ValueError: the observations have another shape
    :raises ImportError: pandas is not installed
    """
    size = model.policy.observation_size
    if np.ndim(observations) != 2 or not len(observations) or np.shape(observations)[1] != size:
        raise ValueError(f"Expected observations (N, {size}) without a one-hot, got {np.shape(observations)}.")
    policy = model.policy
    rows = th.as_tensor(observations, dtype=th.float32, device=policy.device).expand(model.n_tasks, -1, -1)
    with th.no_grad():
        actions = policy.squash(policy.actor(policy.actor_input(rows)), policy.action_mask, True).cpu().numpy()
    has_dimension = policy.action_mask[:, 0].bool().cpu().numpy()
    distances = np.zeros((model.n_tasks, model.n_tasks))
    for one, other in zip(*np.triu_indices(model.n_tasks, 1), strict=True):
        common = has_dimension[one] & has_dimension[other]
        difference = np.abs(actions[one] - actions[other])[:, common].mean()
        distances[one, other] = distances[other, one] = difference
    return _by_task(model, distances)


def replay_observations(model: VarShareSAC, n_observations: int = 512, seed: int = 0) -> np.ndarray:
    """
    Observations that training came by, of every task equally many; the agent's random generators are left alone.

    :param model: an agent with a replay
    :param n_observations: of all tasks together, rounded up to a multiple of their number
    :param seed: of the draw
    :return: (N, D) without a one-hot
    :raises RuntimeError: a task has no transition in the replay
    """
    per_task = -(-n_observations // model.n_tasks)
    # Seeding is of all devices, and the replay need not live where the networks do.
    devices = [device for device in (model.replay_buffer.device, model.device) if device.type == "cuda"]
    with th.random.fork_rng(devices=devices):
        th.manual_seed(seed)
        batch = model.replay_buffer.sample(per_task * model.n_tasks)
    found: np.ndarray = batch.observations.flatten(0, 1).cpu().numpy()
    return found


def nearest_tasks(distances: pd.DataFrame) -> dict[str, str]:
    """
    :param distances: (T, T) of at least two tasks
    :return: task -> the task at the least distance, of several the first
    """
    values = distances.to_numpy(copy=True)
    np.fill_diagonal(values, np.inf)
    names = list(distances.columns)
    return {name: names[at] for name, at in zip(names, values.argmin(1), strict=True)}


def cluster_tasks(distances: pd.DataFrame) -> np.ndarray:
    """
    Hierarchical clustering by the average distance.

    :param distances: (T, T) of at least two tasks, from :func:`task_distance` or :func:`action_distance`
    :return: (T - 1, 4) as :func:`scipy.cluster.hierarchy.linkage` has it; neighbouring leaves are as near as can be
    :raises ValueError: there are fewer than two tasks
    """
    if len(distances) < 2:
        raise ValueError(f"Clustering needs the distances of at least two tasks, got {len(distances)}.")
    pairs = distances.to_numpy()[np.triu_indices(len(distances), 1)]
    links: np.ndarray = linkage(pairs, "average", optimal_ordering=True)
    return links


def leaf_order(distances: pd.DataFrame) -> list[str]:
    """
    :param distances: (T, T)
    :return: the tasks in the order of the leaves of :func:`cluster_tasks`
    """
    names = list(distances.columns)
    return names if len(names) < 2 else [names[at] for at in leaves_list(cluster_tasks(distances))]


def _layers(model: VarShareSAC, network: str, layer: str | None) -> list[TaskLinear]:
    layers = dict(named_layers(network_of(model, network)))
    if layer is None:
        return list(layers.values())
    if layer not in layers:
        raise ValueError(f"The {network} has the layers {list(layers)}, got {layer!r}.")
    return [layers[layer]]


@th.no_grad()
def _moments(layer: TaskLinear) -> tuple[th.Tensor, th.Tensor | None]:
    """Mean and standard deviation of each task's residual with the members side by side, each (T, weights)."""
    mean, sigma = layer.adapter.mean_residual(), layer.adapter.residual_sigma()
    assert mean is not None, "the networks that get here have residuals"
    flat: Callable[[th.Tensor], th.Tensor] = lambda values: values.detach().movedim(-3, 0).flatten(1)  # noqa: E731
    return flat(mean), None if sigma is None else flat(sigma)


def _prior(layer: TaskLinear) -> float:
    sigma_prior = layer.adapter.sigma_prior
    assert sigma_prior is not None, "a residual has a prior"
    return sigma_prior


def _squares(layer: TaskLinear, threshold: float | None) -> np.ndarray:
    """Squared distance of each pair of tasks in one layer, (T, T): by noise, or without a threshold by the prior."""
    mean, sigma = _moments(layer)
    squares = np.zeros((len(mean), len(mean)))
    # Task by task: all pairs at once would be T times the weights of the layer.
    for task, row in enumerate(_pairs(mean, sigma, _prior(layer), threshold)):
        squares[task, task + 1 :] = squares[task + 1 :, task] = row.cpu().numpy()
    return squares


def _pairs(
    mean: th.Tensor, sigma: th.Tensor | None, sigma_prior: float, threshold: float | None
) -> Iterator[th.Tensor]:
    """Of each task, the squared distances to those behind it."""
    for task in range(len(mean)):
        squares = (mean[task + 1 :] - mean[task]).square()
        if threshold is None or sigma is None:
            yield squares.sum(1) / sigma_prior**2
        else:
            variances = (sigma[task + 1 :].square() + sigma[task].square()).clamp(min=SMALLEST_VARIANCE)
            ratios = squares / variances
            yield th.where(ratios > threshold**2, ratios, 0.0).sum(1)


def _by_task(model: VarShareSAC, matrix: np.ndarray) -> pd.DataFrame:
    return load("pandas").DataFrame(matrix, index=model.task_names, columns=model.task_names)
