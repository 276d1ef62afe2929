"""Distances and cosines between tasks: by hand, and what they must not depend on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th

from sb3_varshare import VarShareSAC
from sb3_varshare.inspection import action_distance, nearest_tasks, replay_observations, task_distance, task_similarity
from sb3_varshare.inspection.similarity import cluster_tasks, leaf_order

Agent = Callable[..., VarShareSAC]
LAYER = "block 0 linear_in"
EVERY = [
    {"sigma_structure": "full"},
    {"sigma_structure": "tied"},
    {"sigma_structure": "fixed"},
    {"adapter": "low_rank", "rank": 2},
    {"adapter": "deterministic"},
]


def set_means(model: VarShareSAC, values: list[list[float]]) -> float:
    """The first weights of one actor layer for each task, in units of the prior; returns the prior."""
    adapter = dict(model.policy.actor.named_linears())["trunk.blocks.0.linear_in"].adapter
    (mu,) = adapter.means()
    assert adapter.sigma_prior is not None
    with th.no_grad():
        mu.zero_()
        mu.flatten(1)[:, : len(values[0])] = adapter.sigma_prior * th.tensor(values)
    return adapter.sigma_prior


def matrix(table: pd.DataFrame) -> np.ndarray:
    values: np.ndarray = table.to_numpy()
    return values


def test_distances_by_hand(agent: Agent) -> None:
    model = agent(sigma_structure="fixed")
    set_means(model, [[3.0, 0.0, 1.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    prior = task_distance(model, "actor", measure="prior")
    assert list(prior.index) == list(prior.columns) == model.task_names
    expected = np.sqrt([[0, 26, 10], [26, 0, 16], [10, 16, 0]])
    np.testing.assert_allclose(matrix(prior), expected, rtol=1e-6)
    # Both sigmas are the prior's: a difference of d is d / sqrt(2) standard deviations. One of 1 is below the first.
    np.testing.assert_allclose(
        matrix(task_distance(model, "actor")) ** 2, np.array([[0, 25, 9], [25, 0, 16], [9, 16, 0]]) / 2
    )
    np.testing.assert_allclose(matrix(task_distance(model, "actor", threshold=0)), expected / np.sqrt(2), rtol=1e-6)
    wide = [[0, 16, 0], [16, 0, 16], [0, 16, 0]]
    np.testing.assert_allclose(matrix(task_distance(model, "actor", threshold=2.5)) ** 2, np.array(wide) / 2)


def test_the_noise_is_that_of_both_tasks(agent: Agent) -> None:
    model = agent(sigma_structure="full")
    prior = set_means(model, [[5.0], [0.0], [0.0]])
    sigma = dict(model.policy.actor.named_linears())["trunk.blocks.0.linear_in"].adapter.residual.sigma  # type: ignore
    with th.no_grad():
        for task, value in enumerate((3.0, 4.0, 0.5)):
            sigma.rho[task] = th.tensor(value * prior).expm1().log()
    distances = task_distance(model, "actor", layer=LAYER)
    # 5 / sqrt(3^2 + 4^2) is just at the threshold, of which float32 may fall on either side.
    assert task_distance(model, "actor", layer=LAYER, threshold=0.99).loc["plus", "again"] == pytest.approx(
        1.0, rel=1e-5
    )
    assert task_distance(model, "actor", layer=LAYER, threshold=1.01).loc["plus", "again"] == 0
    assert distances.loc["plus", "minus"] == pytest.approx(5 / np.sqrt(9.25), rel=1e-5)
    assert distances.loc["again", "minus"] == 0


def test_equal_tasks_without_any_noise_are_no_distance_apart(agent: Agent) -> None:
    model = agent(sigma_structure="full")
    with th.no_grad():
        for rho in model.policy.actor.spreads():
            rho.fill_(-200)
    assert (matrix(task_distance(model)) == 0).all()


@pytest.mark.parametrize("network", ["actor", "critic"])
@pytest.mark.parametrize("kwargs", EVERY, ids=str)
def test_distances_are_distances(scattered: Agent, kwargs: dict[str, Any], network: str) -> None:
    model = scattered(**kwargs)
    for measure in ("noise", "prior") if kwargs.get("adapter") != "deterministic" else ("prior",):
        values = matrix(task_distance(model, network, measure))
        assert (values == values.T).all() and (np.diag(values) == 0).all()
        assert (values[np.triu_indices(3, 1)] > 0).all()
        layers = [
            LAYER,
            "linear_in",
            "block 0 linear_out",
            *(("mean", "log_std") if network == "actor" else ["linear_out"]),
        ]
        parts = [matrix(task_distance(model, network, measure, layer)) ** 2 for layer in layers]
        np.testing.assert_allclose(np.sum(parts, 0), values**2, rtol=1e-6)


@pytest.mark.parametrize("kwargs", EVERY, ids=str)
def test_the_shared_weights_do_not_matter(scattered: Agent, kwargs: dict[str, Any]) -> None:
    model = scattered(**kwargs)
    before = {
        (network, measure): matrix(task_distance(model, network, measure))
        for network in ("actor", "critic")
        for measure in (None, "prior")
    }
    cosines = matrix(task_similarity(model, "actor"))
    plain = matrix(task_similarity(model, "actor", centered=False))
    model.policy.actor.recenter()
    model.policy.critic.net.recenter()
    for (network, measure), values in before.items():
        np.testing.assert_allclose(matrix(task_distance(model, network, measure)), values, rtol=1e-4)
    np.testing.assert_allclose(matrix(task_similarity(model, "actor")), cosines, atol=1e-5)
    np.testing.assert_allclose(matrix(task_similarity(model, "actor", centered=False)), cosines, atol=1e-5)
    assert not np.allclose(plain, cosines, atol=0.05)


def test_the_members_of_the_critic_count_alike(scattered: Agent) -> None:
    model = scattered()
    before = matrix(task_distance(model, "critic"))
    with th.no_grad():
        for parameter in (*model.policy.critic.net.means(), *model.policy.critic.net.spreads()):
            parameter.copy_(parameter.flip(0))
    np.testing.assert_allclose(matrix(task_distance(model, "critic")), before, rtol=1e-5)


def test_cosines_by_hand(agent: Agent) -> None:
    model = agent()
    set_means(model, [[1.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    plain = matrix(task_similarity(model, "actor", centered=False))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(plain, [[1, half, -1], [half, 1, -half], [-1, -half, 1]], atol=1e-6)
    # Less their mean (0, 1/3): (1, -1/3), (1, 2/3), (-2, -1/3).
    rows = np.array([[3, -1], [3, 2], [-6, -1]]) / np.linalg.norm([[3, -1], [3, 2], [-6, -1]], axis=1, keepdims=True)
    np.testing.assert_allclose(matrix(task_similarity(model, "actor")), rows @ rows.T, atol=1e-6)
    np.testing.assert_allclose(matrix(task_similarity(model, "actor", layer=LAYER)), rows @ rows.T, atol=1e-6)
    assert task_similarity(model, "actor", layer="mean").isna().all(axis=None)


def test_unrelated_tasks_are_not_at_zero(agent: Agent) -> None:
    """Three equally long residuals at right angles: centred, their cosines are -1 / (T - 1)."""
    model = agent()
    set_means(model, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    values = matrix(task_similarity(model, "actor"))
    np.testing.assert_allclose(values[np.triu_indices(3, 1)], -0.5, atol=1e-6)


def test_two_tasks_have_no_cosine_and_a_distance(scattered: Agent) -> None:
    model = scattered(names=("plus", "minus"))
    with pytest.raises(ValueError, match=r"opposite whatever was learned.*use task_distance"):
        task_similarity(model, "actor")
    assert task_similarity(model, "actor", centered=False).shape == (2, 2)
    assert task_distance(model).loc["plus", "minus"] > 0


# Actions


@th.no_grad()
def act_constantly(model: VarShareSAC, actions: list[list[float]]) -> None:
    """Each task's mean action, whatever it sees: a constant hidden layer times the task's residual in the head."""
    actor = model.policy.actor
    for parameter in actor.parameters():
        parameter.zero_()
    last = actor.trunk.blocks[0].norm_out
    last.bias.fill_(1.0)
    (mu,) = actor.mean.adapter.means()
    mu[:, 0] = th.tensor(actions).atanh()


def test_actions_by_hand(agent: Agent) -> None:
    model = agent()
    act_constantly(model, [[0.5], [0.2], [-0.4]])
    observations = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    distances = action_distance(model, observations)
    np.testing.assert_allclose(matrix(distances), [[0, 0.3, 0.9], [0.3, 0, 0.6], [0.9, 0.6, 0]], atol=1e-6)
    assert nearest_tasks(distances) == {"plus": "again", "again": "plus", "minus": "again"}


def test_only_dimensions_that_both_tasks_have_are_compared(agent: Agent) -> None:
    model = agent(action_sizes=(2, 2, 1))
    act_constantly(model, [[0.5, 0.5], [0.2, -0.5], [0.3, 0.9]])
    distances = action_distance(model, np.zeros((2, 2), dtype=np.float32))
    expected = [[0, 0.65, 0.2], [0.65, 0, 0.1], [0.2, 0.1, 0]]
    np.testing.assert_allclose(matrix(distances), expected, atol=1e-6)


def test_actions_are_those_of_predict(scattered: Agent) -> None:
    model = scattered(normalize_observations=True)
    model.learn(30)
    rows = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    tasks = np.eye(3, dtype=np.float32)
    actions = [model.predict(np.concatenate([rows, np.tile(task, (5, 1))], 1), deterministic=True)[0] for task in tasks]
    expected = np.abs(np.array(actions)[:, None] - np.array(actions)[None]).mean((2, 3))
    np.testing.assert_allclose(matrix(action_distance(model, rows)), expected, atol=1e-6)


@pytest.mark.parametrize("adapter", ["none", "embedding", "independent", "deterministic"])
def test_actions_are_compared_whatever_the_adapter(agent: Agent, adapter: str) -> None:
    distances = matrix(action_distance(agent(adapter=adapter), np.ones((1, 2), dtype=np.float32)))
    differ = adapter in ("embedding", "independent")
    assert (distances[np.triu_indices(3, 1)] > 0).all() == differ and (distances >= 0).all()


def test_the_replay_gives_every_task_equally_and_disturbs_nothing(agent: Agent) -> None:
    model = agent()
    model.learn(90)
    th.manual_seed(5)
    expected = th.rand(3)
    th.manual_seed(5)
    observations = replay_observations(model, 10)
    assert th.equal(th.rand(3), expected)
    assert observations.shape == (12, 2)
    assert set(observations[:, 0]) <= {0.0, 0.25, 0.5, 0.75}
    np.testing.assert_array_equal(observations, replay_observations(model, 10))
    assert not np.array_equal(observations, replay_observations(model, 10, seed=1))


def test_the_generators_of_all_devices_are_left_alone(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeding seeds those of the networks' GPU too, from which training draws, wherever the replay lives."""
    model, kept = agent(), []
    model.learn(90)

    @contextmanager
    def fork_rng(devices: list[th.device]) -> Iterator[None]:
        kept.extend(devices)
        yield

    monkeypatch.setattr(th.random, "fork_rng", fork_rng)
    model.device = th.device("cuda", 0)
    replay_observations(model, 12)
    assert kept == [th.device("cuda", 0)]


# Clusters


def test_clusters_join_what_is_near_first() -> None:
    names = ["a", "b", "c", "d"]
    distances = pd.DataFrame(0.0, index=names, columns=names)
    for one, other, value in (("a", "c", 1), ("b", "d", 2), ("a", "b", 6), ("a", "d", 8), ("c", "b", 6), ("c", "d", 8)):
        distances.loc[one, other] = distances.loc[other, one] = float(value)
    links = cluster_tasks(distances)
    assert [set(map(int, link[:2])) for link in links[:2]] == [{0, 2}, {1, 3}]
    assert list(links[:, 2]) == [1, 2, 7]
    order = leaf_order(distances)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset("ac"), frozenset("bd")}
    # The leaves in the middle are those with the shorter way to each other.
    assert "d" in (order[0], order[3])


def test_one_task_has_no_clusters(scattered: Agent) -> None:
    distances = task_distance(scattered(names=("plus",)))
    assert matrix(distances).tolist() == [[0]] and leaf_order(distances) == ["plus"]
    with pytest.raises(ValueError, match="at least two tasks, got 1"):
        cluster_tasks(distances)


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: task_distance(model, "target"), r"network must be one of \('actor', 'critic'\), got 'target'"),
        (
            lambda model: task_distance(model, "actor", layer="block 7"),
            r"The actor has the layers \['linear_in', .*got 'block 7'",
        ),
        (lambda model: task_distance(model, measure="L2"), r"measure must be one of \('noise', 'prior'\), got 'L2'"),
        (lambda model: task_distance(model, threshold=-1.0), "threshold must be a number that is not negative"),
        (lambda model: action_distance(model, np.zeros((3, 5))), r"Expected observations \(N, 2\) without a one-hot"),
        (lambda model: action_distance(model, np.zeros((0, 2))), r"Expected observations \(N, 2\)"),
    ],
)
def test_mistakes_are_named(agent: Agent, call: Callable[[VarShareSAC], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(agent())


def test_noise_and_networks_that_are_not_there(scattered: Agent) -> None:
    with pytest.raises(ValueError, match="no spread to measure noise by; use measure='prior'"):
        task_distance(scattered(adapter="deterministic"), measure="noise")
    with pytest.raises(
        ValueError, match=r"The actor has no residuals \(actor_residuals=False\); take network='critic'"
    ):
        task_distance(scattered(actor_residuals=False), "actor")
