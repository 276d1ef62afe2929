"""The table: hand-made residuals, sums that agree with what is logged, and agents that have nothing to show."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch as th

from sb3_varshare import VarShareSAC
from sb3_varshare.inspection import residual_table
from sb3_varshare.varshare_sac.diagnostics import residual_statistics

Agent = Callable[..., VarShareSAC]
ACTOR_LAYERS = ["linear_in", "block 0 linear_in", "block 0 linear_out", "mean", "log_std"]
CRITIC_LAYERS = ["linear_in", "block 0 linear_in", "block 0 linear_out", "linear_out"]
NOISY = [
    {"sigma_structure": "full"},
    {"sigma_structure": "tied"},
    {"sigma_structure": "fixed"},
    {"adapter": "low_rank", "rank": 2},
]


def of(table: pd.DataFrame, network: str, layer: str) -> pd.DataFrame:
    """Rows of one layer, by task."""
    rows: pd.DataFrame = table[(table["network"] == network) & (table["layer"] == layer)].set_index("task")
    return rows


def test_the_start_is_the_shared_network(agent: Agent) -> None:
    table = residual_table(agent())
    assert list(table["layer"].unique()) == [*ACTOR_LAYERS, "linear_out"]
    assert list(table[table["network"] == "critic"]["layer"].unique()) == CRITIC_LAYERS
    assert list(of(table, "actor", "mean").index) == ["plus", "again", "minus"]
    assert len(table) == 3 * (len(ACTOR_LAYERS) + len(CRITIC_LAYERS))
    for column in ("kl", "kl_mean", "kl_spread"):
        assert table[column].abs().max() < 1e-6
    for column in ("mu_norm", "mu_over_theta", "signal_share"):
        assert (table[column] == 0).all()
    assert table["sigma_over_prior"].to_numpy() == pytest.approx(1.0)


@pytest.mark.parametrize("structure", ["full", "tied", "fixed"])
def test_hand_made_residuals(agent: Agent, structure: str) -> None:
    """Two critics, a layer of 4 x 4: half of one task's weights three sigma_prior from zero, one member's doubled."""
    model = agent(sigma_structure=structure)
    adapter = dict(model.policy.critic.net.named_linears())["blocks.0.linear_in"].adapter
    prior = adapter.sigma_prior
    assert prior == pytest.approx(0.2 * math.sqrt(2) / 2)
    with th.no_grad():
        mu = adapter.residual.mu  # type: ignore[union-attr]
        mu[0, 1, :2], mu[1, 1, :2] = 3 * prior, -6 * prior
    rows = of(residual_table(model), "critic", "block 0 linear_in")
    # Eight weights of each member: 8 * 9 / 2 + 8 * 36 / 2 nats, and the root of 8 * 9 + 8 * 36 in units of the prior.
    assert rows.loc["again", "kl"] == pytest.approx(180, rel=1e-5)
    assert rows.loc["again", "kl_mean"] == pytest.approx(180, rel=1e-5)
    assert rows.loc["again", "mu_norm"] == pytest.approx(math.sqrt(360) * prior, rel=1e-5)
    # Orthogonal with gain sqrt(2): a norm of sqrt(2 * 4) for each of two members.
    assert rows["theta_norm"].to_numpy() == pytest.approx(4.0, rel=1e-5)
    assert rows.loc["again", "mu_over_theta"] == pytest.approx(math.sqrt(360) * prior / 4, rel=1e-5)
    assert list(rows["n_weights"]) == [32, 32, 32]
    shares = {2.9: 0.5, 3.1: 0.25, 6.1: 0.0, 0.0: 0.5}
    for threshold, share in shares.items():
        found = of(residual_table(model, signal_to_noise=threshold), "critic", "block 0 linear_in")["signal_share"]
        assert list(found) == [0.0, share, 0.0]
    assert list(rows["kl"].iloc[[0, 2]]) == pytest.approx([0, 0], abs=1e-6)


def test_a_spread_by_hand(agent: Agent) -> None:
    """Half of the prior's sigma in each of 16 weights and two members: log 2 + 1/8 - 1/2 nats each."""
    model = agent(sigma_structure="tied")
    adapter = dict(model.policy.critic.net.named_linears())["blocks.0.linear_in"].adapter
    sigma = adapter.residual.sigma  # type: ignore[union-attr]
    wanted = adapter.sigma_prior / 2 / th.nn.functional.softplus(sigma.rho_out[0, 0, 0].detach())
    with th.no_grad():
        sigma.rho_in[:, 2] = wanted.expm1().log()
    rows = of(residual_table(model), "critic", "block 0 linear_in")
    assert rows.loc["minus", "kl_spread"] == pytest.approx(32 * (math.log(2) + 1 / 8 - 1 / 2), rel=1e-4)
    assert rows.loc["minus", "sigma_over_prior"] == pytest.approx(0.5, rel=1e-5)
    assert rows.loc["minus", "kl_mean"] == 0
    assert rows.loc["plus", "sigma_over_prior"] == pytest.approx(1)


@pytest.mark.parametrize("kwargs", [*NOISY, {"adapter": "deterministic"}], ids=str)
def test_layers_add_up_to_what_is_logged(scattered: Agent, kwargs: dict[str, Any]) -> None:
    model = scattered(**kwargs)
    table = residual_table(model)
    assert table["kl"].to_numpy() == pytest.approx((table["kl_mean"] + table["kl_spread"]).to_numpy())
    assert table["mu_over_theta"].to_numpy() == pytest.approx((table["mu_norm"] / table["theta_norm"]).to_numpy())
    for name, network in (("actor", model.policy.actor), ("critic", model.policy.critic.net)):
        logged = residual_statistics(network)
        rows = table[table["network"] == name]
        sums = rows.groupby("task", sort=False)["kl"].sum()
        assert sums.to_numpy() == pytest.approx(logged["kl"].tolist(), rel=1e-5)
        assert sums.to_numpy() == pytest.approx(network.kl_divergence().tolist(), rel=1e-5)
        squares = rows.assign(mu=rows["mu_norm"] ** 2, theta=rows["theta_norm"] ** 2)
        norms = squares.groupby("task", sort=False)[["mu", "theta"]].sum() ** 0.5
        assert (norms["mu"] / norms["theta"]).to_numpy() == pytest.approx(logged["mu_over_theta"].tolist(), rel=1e-5)
        if "sigma_over_prior" in logged:
            weighted = rows.assign(sigma=rows["sigma_over_prior"] * rows["n_weights"])
            means = weighted.groupby("task", sort=False)[["sigma", "n_weights"]].sum()
            expected = logged["sigma_over_prior"].tolist()
            assert (means["sigma"] / means["n_weights"]).to_numpy() == pytest.approx(expected, rel=1e-5)


def test_low_rank_counts_the_weights_and_not_the_factors(scattered: Agent) -> None:
    model = scattered(adapter="low_rank", rank=2)
    layer = dict(model.policy.actor.named_linears())["trunk.blocks.0.linear_in"]
    residual = layer.merged_weight().detach() - layer.theta.detach()
    rows = of(residual_table(model), "actor", "block 0 linear_in")
    assert rows["mu_norm"].to_numpy() == pytest.approx(residual.flatten(1).norm(dim=1).tolist(), rel=1e-4)
    assert list(rows["n_weights"]) == [16, 16, 16]
    th.manual_seed(0)
    drawn = layer.adapter.draw(th.zeros(20_000, dtype=th.long)).detach()
    share = (drawn.mean(0).abs() > drawn.std(0)).float().mean()
    # No weight of this layer is so near the threshold that the sample would decide otherwise.
    assert rows.loc["plus", "signal_share"] == pytest.approx(float(share))


def test_without_a_spread_its_columns_are_empty(scattered: Agent) -> None:
    table = residual_table(scattered(adapter="deterministic"))
    assert table[["sigma_over_prior", "signal_share"]].isna().all(axis=None)
    assert (table["kl_spread"] == 0).all() and (table["kl"] > 0).all()


def test_a_network_without_residuals_is_left_out(scattered: Agent) -> None:
    assert set(residual_table(scattered(actor_residuals=False))["network"]) == {"critic"}
    assert set(residual_table(scattered(critic_residuals=False))["network"]) == {"actor"}


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"adapter": "none"}, "all tasks are one network\\."),
        ({"adapter": "embedding"}, "one network, which an input tells the task"),
        ({"adapter": "independent"}, "every task is a network of its own"),
        ({"actor_residuals": False, "critic_residuals": False}, "actor_residuals and critic_residuals are both off"),
    ],
)
def test_an_agent_without_residuals_hears_why(agent: Agent, kwargs: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"has no residuals to look at: .*{why}"):
        residual_table(agent(**kwargs))


def test_bad_input(agent: Agent) -> None:
    with pytest.raises(ValueError, match="signal_to_noise must be a number that is not negative, got -1"):
        residual_table(agent(), signal_to_noise=-1)
    with pytest.raises(TypeError, match="Expected a VarShareSAC, got a str"):
        residual_table("model.zip")  # type: ignore[arg-type]
