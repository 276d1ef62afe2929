"""Pruning: after training, most weights of the residuals leave the agent."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch as th
from torch import nn

from sb3_varshare.adapters.sparse import Sparse
from sb3_varshare.compression.prune_report import PrunedLayer, PruneReport, agent_bytes
from sb3_varshare.compression.return_loss import ReturnLoss
from sb3_varshare.compression.search import Candidate, smallest_share
from sb3_varshare.compression.selection import SCOPES, SCORES, KeptLayer, Ranking
from sb3_varshare.networks import TaskLinear, TaskNetwork
from sb3_varshare.tasks.suite import nearest
from sb3_varshare.varshare_sac import VarShareSAC
from sb3_varshare.varshare_sac.kept_weights import PRUNABLE

NETWORKS = {"both": ("actor", "critic"), "actor": ("actor",), "critic": ("critic",)}
# Why other adapters have nothing that could be pruned.
UNPRUNABLE = {
    "none": "it has no residuals",
    "embedding": "it has no residuals: its tasks differ by an input",
    "independent": "its tasks share no base that a weight could be left to",
    "low_rank": "its residuals are products of factors, of which no single weight can leave; make the rank smaller",
}


def prune(
    model: VarShareSAC,
    threshold: float | None = None,
    *,
    keep_fraction: float | None = None,
    max_loss: float | None = None,
    score: str = "magnitude",
    scope: str = "global",
    networks: str = "both",
    refit_base: bool = False,
    env: Any = None,
    n_episodes: int = 10,
    random_returns: Mapping[str, float] | None = None,
) -> PruneReport:
    """
    Drop the weights of the residuals that matter least, in place: of each task, positions and values of the rest stay.

    Re-centres once before, and never again; not at all on a frozen base. The noise leaves with the spreads: what
    remains is a ``"deterministic"`` residual in the kept weights, and learning may go on in these and in the base. A
    pruned critic's target starts anew from it, and an agent that explored by its posterior goes on with mean weights.
    Give one of ``threshold``, ``keep_fraction`` and ``max_loss``.

    :param model: the agent, with ``adapter="varshare"`` or ``"deterministic"``, pruned before or not
    :param threshold: weights that score less are dropped
    :param keep_fraction: share of the weights to keep in each network, of those before any pruning
    :param max_loss: prune as far as the agent loses at most this share of what its return is above a random policy's,
        as a mean over tasks. The actor is searched; the critic, on which no return depends, keeps the same share
    :param score: ``"magnitude"``, ``|mu| / sigma_prior`` of the layer, or ``"signal_to_noise"``, ``|mu| / sigma``
    :param scope: ``"global"`` ranks all weights of a network together, ``"layer"`` keeps the same share of every layer;
        a threshold has no scope
    :param networks: ``"both"``, ``"actor"`` (which is all that acting needs) or ``"critic"``
    :param refit_base: move each weight of the base to the mean of the tasks that keep nothing there: better where so
        much is dropped that returns suffer, no better before
    :param env: to evaluate before and after, as for :func:`~sb3_varshare.evaluate_tasks`; with ``max_loss`` by default
        the agent's own, whose evaluation twin is played
    :param n_episodes: of each task in an evaluation
    :param random_returns: mean return of a random policy by task; with ``max_loss`` by default measured
    :return: weights, bytes and, where it evaluated, returns before and after
    :raises ValueError: an argument is not possible, or the agent has nothing that could be pruned
    """
    _check_choices(score, scope, networks)
    _check_amount(threshold, keep_fraction, max_loss)
    chosen = _chosen_networks(model, networks, score)
    if refit_base and model.base_frozen:
        raise ValueError("refit_base=True moves the base, but this agent stands on a frozen one; leave it out.")
    judge = _judge(model, env, n_episodes, random_returns, max_loss, chosen)
    before = agent_bytes(model, chosen.values())
    if not model.base_frozen:
        for network in chosen.values():
            network.recenter()
    rankings = {name: Ranking(network, score, scope, refit_base) for name, network in chosen.items()}
    candidates: tuple[Candidate, ...] = ()
    if judge is not None and max_loss is not None:
        keep_fraction, candidates = _search(rankings["actor"], judge, max_loss)
    layers: list[PrunedLayer] = []
    for name, ranking in rankings.items():
        kept = ranking.above(threshold) if threshold is not None else ranking.best(keep_fraction or 0.0)
        layers += _install(model, name, kept)
    _follow(model, chosen)
    sizes = before, agent_bytes(model, chosen.values())
    report = PruneReport(tuple(model.task_names), tuple(layers), *sizes, candidates=candidates)
    if judge is None:
        return report
    returns = judge.returns()
    return replace(report, returns_before=judge.before, returns_after=returns, losses=judge.losses(returns))


def _check_choices(score: str, scope: str, networks: str) -> None:
    for name, value, known in (("score", score, SCORES), ("scope", scope, SCOPES), ("networks", networks, NETWORKS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {tuple(known)}, got {value!r}; {nearest(str(value), list(known))}")


def _check_amount(threshold: float | None, keep_fraction: float | None, max_loss: float | None) -> None:
    amounts = {"threshold": threshold, "keep_fraction": keep_fraction, "max_loss": max_loss}
    given = {name: value for name, value in amounts.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"Give exactly one of threshold, keep_fraction and max_loss, got {given or 'none'}.")
    ((name, value),) = given.items()
    if not 0 <= value < math.inf or (name == "keep_fraction" and value > 1):
        words = "a share between 0 and 1" if name == "keep_fraction" else "a finite number that is not negative"
        raise ValueError(f"{name} must be {words}, got {value}.")


def _networks(model: VarShareSAC) -> dict[str, TaskNetwork]:
    return {"actor": model.policy.actor, "critic": model.policy.critic.net}


def _chosen_networks(model: VarShareSAC, networks: str, score: str) -> dict[str, TaskNetwork]:
    """
    :return: those of the agent's networks that are to be pruned, by name
    :raises ValueError: there is none, or it has no spreads and the score needs them
    """
    if model.adapter not in PRUNABLE:
        raise ValueError(f"An agent with adapter={model.adapter!r} cannot be pruned: {UNPRUNABLE[model.adapter]}.")
    if model._peers is not None:
        raise ValueError("Prune before distribute(): all processes must have the same weights to train.")
    has = {"actor": model.actor_residuals, "critic": model.critic_residuals}
    chosen = {name: network for name, network in _networks(model).items() if name in NETWORKS[networks] and has[name]}
    if not chosen:
        switches = " and ".join(f"{name}_residuals=False" for name in NETWORKS[networks])
        raise ValueError(f"There is nothing to prune in networks={networks!r}: the agent was made with {switches}.")
    for name, network in chosen.items():
        if score == "signal_to_noise" and not any(layer.adapter.is_stochastic for layer in network.linears()):
            reason = "it was pruned before" if name in (model.kept_weights or {}) else f"adapter={model.adapter!r}"
            raise ValueError(
                f"score='signal_to_noise' needs a spread for each weight, and the {name} has none ({reason}); "
                "use 'magnitude'."
            )
    return chosen


def _judge(
    model: VarShareSAC,
    env: Any,
    n_episodes: int,
    random_returns: Mapping[str, float] | None,
    max_loss: float | None,
    chosen: Mapping[str, TaskNetwork],
) -> ReturnLoss | None:
    """Who evaluates the agent; ``None`` where nobody is asked to."""
    if max_loss is not None and "actor" not in chosen:
        raise ValueError(
            "max_loss= prunes the actor as far as the return allows, but the actor is not to be pruned here."
        )
    if max_loss is not None and env is None:
        env = model.env
        if env is None:
            raise ValueError("max_loss= plays every task, and this agent has no environment: give env=.")
    return None if env is None else ReturnLoss(model, env, n_episodes, random_returns, max_loss is not None)


def _search(ranking: Ranking, judge: ReturnLoss, max_loss: float) -> tuple[float, tuple[Candidate, ...]]:
    """The smallest share of the actor's weights that was found to hold, and what was tried."""

    def loss_of(share: float) -> float:
        with _tried(ranking.network, ranking.best(share)):
            losses = judge.losses(judge.returns())
        assert losses is not None
        return sum(losses.values()) / len(losses)

    return smallest_share(loss_of, ranking.n_left, ranking.n_weights, max_loss)


@contextmanager
def _tried(network: TaskNetwork, kept: list[KeptLayer]) -> Iterator[None]:
    """Within this context the network is as if it were pruned."""
    previous = [(layer, layer.adapter, layer.theta.data) for layer in network.linears()]
    try:
        for (layer, *_), new in zip(previous, kept, strict=True):
            layer.adapter, layer.theta.data = new.adapter, new.theta
        yield
    finally:
        for layer, adapter, theta in previous:
            layer.adapter, layer.theta.data = adapter, theta


def _install(model: VarShareSAC, name: str, kept: list[KeptLayer]) -> list[PrunedLayer]:
    """Replace the residuals of a network by what is left of them, their optimizer state by what belongs to it."""
    network = _networks(model)[name]
    optimizer: th.optim.Optimizer = getattr(model.policy, name).optimizer
    layers = [(label, module) for label, module in network.named_modules() if isinstance(module, TaskLinear)]
    rows = []
    for (label, layer), new in zip(layers, kept, strict=True):
        old, (mean,) = layer.adapter, layer.adapter.means()
        positions = new.adapter.positions.long()
        index = th.searchsorted(old.positions.long(), positions) if isinstance(old, Sparse) else positions
        _exchange(optimizer, mean, new.adapter.values, index)
        for spread in old.spreads():
            _exchange(optimizer, spread, None, index)
        layer.theta.data.copy_(new.theta)
        layer.adapter = new.adapter
        counts = new.adapter.kept_per_task().reshape(-1, model.n_tasks).sum(0)
        rows.append(PrunedLayer(name, label, tuple(counts.tolist()), layer.theta.numel(), new.threshold))
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    model.kept_weights = {**(model.kept_weights or {}), name: [sum(row.kept) for row in rows]}
    return rows


def _exchange(optimizer: th.optim.Optimizer, old: nn.Parameter, new: nn.Parameter | None, index: th.Tensor) -> None:
    """
    Put a parameter in the place of another.

    :param optimizer: of the old one
    :param old: the parameter that leaves
    :param new: what stays of it; ``None`` for nothing
    :param index: (n,) where the new one's numbers stand in the flattened old one
    """
    for group in optimizer.param_groups:
        exchanged = [new if parameter is old else parameter for parameter in group["params"]]
        group["params"] = [parameter for parameter in exchanged if parameter is not None]
    state = optimizer.state.pop(old, {})
    if state and new is not None:
        # Moments have the shape of their parameter; the number of steps is a scalar.
        optimizer.state[new] = {
            key: value.flatten()[index] if th.is_tensor(value) and value.shape == old.shape else value
            for key, value in state.items()
        }


def _follow(model: VarShareSAC, pruned: Mapping[str, TaskNetwork]) -> None:
    """What depends on the pruned networks: the target critic, the compiled graphs, how the agent explores."""
    policy = model.policy
    if "critic" in pruned:
        policy.critic_target = policy.critic.averaged_copy()
    if "actor" in pruned:
        model.exploration, model._explorer = "mean", None
    if model.compile:
        # The graphs of before are of no use, and count towards those after which PyTorch compiles no more.
        th.compiler.reset()
        policy.compile_networks()
    model._create_aliases()
