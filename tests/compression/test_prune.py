"""A pruned agent: what is left of it, that it acts, learns on and is logged, and what cannot be pruned."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_varshare import VarShareSAC, evaluate_tasks, prune
from sb3_varshare.adapters.sparse import Sparse
from sb3_varshare.compression.return_loss import ReturnLoss
from sb3_varshare.networks import TaskNetwork
from sb3_varshare.varshare_sac.diagnostics import residual_statistics

Agents = Callable[..., VarShareSAC]
TargetEnvs = Callable[..., Any]

PRUNABLE: list[dict[str, Any]] = [
    {"sigma_structure": "full"},
    {"sigma_structure": "tied"},
    {"sigma_structure": "fixed"},
    {"adapter": "deterministic"},
]
EACH_ADAPTER = pytest.mark.parametrize("kwargs", PRUNABLE, ids=lambda kwargs: next(iter(kwargs.values())))
OBSERVATIONS = np.concatenate(
    [np.linspace(0, 1, 12).reshape(6, 2), np.eye(3)[[0, 1, 2, 0, 2, 1]]], axis=1, dtype=np.float32
)
# Far below what any policy gets, -4 (1 + 0.7)^2 at worst: returns differ by parts of it.
RANDOM = {"plus": -20.0, "minus": -20.0, "minus-twin": -20.0}


def networks_of(model: VarShareSAC) -> dict[str, TaskNetwork]:
    return {"actor": model.policy.actor, "critic": model.policy.critic.net}


def merged(network: TaskNetwork) -> list[th.Tensor]:
    return [layer.merged_weight().detach().clone() for layer in network.linears()]


def adapters(network: TaskNetwork) -> list[Sparse]:
    found = [layer.adapter for layer in network.linears()]
    assert all(isinstance(adapter, Sparse) for adapter in found)
    return found  # type: ignore[return-value]


# What is left


@EACH_ADAPTER
def test_with_all_weights_nothing_changes_but_the_noise(agent: Agents, kwargs: dict[str, Any]) -> None:
    model = agent(**kwargs)
    before = {name: merged(network) for name, network in networks_of(model).items()}
    actions = model.predict(OBSERVATIONS, deterministic=True)[0]
    report = prune(model, 0.0)
    for name, network in networks_of(model).items():
        th.testing.assert_close(merged(network), before[name], atol=1e-6, rtol=1e-5)
        assert report.kept(name) == sum(len(adapter.values) for adapter in adapters(network))
    np.testing.assert_allclose(model.predict(OBSERVATIONS, deterministic=True)[0], actions, atol=1e-6)


@EACH_ADAPTER
def test_without_any_weight_the_base_is_left(agent: Agents, kwargs: dict[str, Any]) -> None:
    model = agent(**kwargs)
    model.policy.actor.recenter()
    with model.policy.base_only():
        base = model.predict(OBSERVATIONS, deterministic=True)[0]
    report = prune(model, keep_fraction=0.0)
    assert report.kept() == 0 and set(report.kept_by_task().values()) == {0}
    np.testing.assert_allclose(model.predict(OBSERVATIONS, deterministic=True)[0], base, atol=1e-6)


@EACH_ADAPTER
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_kept_weights_are_the_largest_and_stay_what_they_were(
    agent: Agents, kwargs: dict[str, Any], scope: str
) -> None:
    model = agent(**kwargs)
    for network in networks_of(model).values():
        network.recenter()
    before = {
        name: (merged(net), [x.theta.detach().clone() for x in net.linears()])
        for name, net in networks_of(model).items()
    }
    report = prune(model, keep_fraction=0.1, scope=scope)
    for name, network in networks_of(model).items():
        weights, bases = before[name]
        total = sum(weight.numel() for weight in weights)
        assert report.total(name) == total
        counts = [len(adapter.values) for adapter in adapters(network)]
        assert counts == [sum(layer.kept) for layer in report.layers if layer.network == name]
        if scope == "layer":
            assert counts == [round(0.1 * weight.numel()) for weight in weights]
        else:
            assert sum(counts) == round(0.1 * total)
        for adapter, old, base, new in zip(adapters(network), weights, bases, merged(network), strict=True):
            kept = th.zeros_like(old, dtype=th.bool).view(-1)
            kept[adapter.positions.long()] = True
            kept = kept.view_as(old)
            th.testing.assert_close(new[kept], old[kept], atol=1e-6, rtol=1e-5)
            residual = (old - base).abs()
            assert not kept.any() or residual[kept].min() >= residual[~kept].max() - 1e-6 or scope == "global"
    assert report.kept() == sum(report.kept_by_task().values())


def test_a_threshold_is_in_units_of_the_prior(agent: Agents) -> None:
    model = agent(sigma_structure="full")
    for network in networks_of(model).values():
        network.recenter()
    expected = [
        int(((layer.merged_weight() - layer.theta).abs() >= 2 * layer.adapter.residual.sigma_prior).sum())
        for layer in model.policy.actor.linears()
    ]
    report = prune(model, 2.0, networks="actor")
    assert [sum(layer.kept) for layer in report.layers] == expected
    assert all(layer.threshold == 2.0 for layer in report.layers)
    assert 0 < report.kept() < report.total()


def test_signal_to_noise_prefers_weights_that_are_known(agent: Agents) -> None:
    """Equal means, the spreads of one task a tenth of the others': its weights are the ones that are kept."""
    model = agent(sigma_structure="full")
    with th.no_grad():
        for layer in model.policy.actor.linears():
            weight = layer.adapter.residual  # type: ignore[union-attr]
            weight.mu.copy_(th.tensor([1.0, -0.5, -0.5])[:, None, None].expand_as(weight.mu))
            weight.sigma.rho[1].sub_(3.0)
    report = prune(model, keep_fraction=1 / 3, score="signal_to_noise", networks="actor")
    assert report.kept_by_task() == {"plus": 0, "minus": report.total() // 3, "minus-twin": 0}


def test_bytes_are_those_of_the_tensors_and_the_file(agent: Agents, tmp_path: Path) -> None:
    model = agent(sigma_structure="full")
    model.save(tmp_path / "before")
    old = [
        weakref.ref(parameter) for net in networks_of(model).values() for parameter in (*net.means(), *net.spreads())
    ]
    report = prune(model, keep_fraction=0.05)
    gc.collect()
    assert all(reference() is None for reference in old)
    # Full residuals: mean and rho of four bytes; pruned ones: position and value.
    assert report.before.residuals == 8 * report.total()
    assert report.after.residuals == 8 * report.kept()
    model.save(tmp_path / "after")
    sizes = [(tmp_path / f"{name}.zip").stat().st_size for name in ("before", "after")]
    assert [report.before.file, report.after.file] == pytest.approx(sizes, abs=20)  # digits of timings in the JSON
    # Adam has two moments for each; the target held the composed critics, now base, values and the same positions.
    critic = report.total("critic")
    moments = 2 * 4 * (2 * report.total() - report.kept())
    n_residuals = len(old) // 2
    base = critic // model.n_tasks
    target = 4 * (critic - base - report.kept("critic"))
    steps = 4 * n_residuals  # of the spreads
    saved = 8 * (report.total() - report.kept()) + moments + target + steps
    assert report.before.agent - report.after.agent == saved


def test_what_is_kept_keeps_its_moments(agent: Agents) -> None:
    model = agent()
    states = {}
    for name, network in networks_of(model).items():
        optimizer = getattr(model.policy, name).optimizer
        states[name] = [{k: v.clone() for k, v in optimizer.state[mu].items()} for mu in network.means()]
    settings = [g["lr_multiplier"] for g in model.policy.actor.optimizer.param_groups]
    prune(model, keep_fraction=0.2)
    for name, network in networks_of(model).items():
        module = getattr(model.policy, name)
        for adapter, old in zip(adapters(network), states[name], strict=True):
            new = module.optimizer.state[adapter.values]
            assert new["step"] == old["step"] > 0
            for moment in ("exp_avg", "exp_avg_sq"):
                assert th.equal(new[moment], old[moment].flatten()[adapter.positions.long()])
        groups = module.optimizer.param_groups
        assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in module.parameters()}
        assert [id(p) for p in groups[1]["params"]] == [id(p) for p in network.means()]
        assert groups[1]["weight_decay"] == 0.0
        assert set(module.optimizer.state) <= set(module.parameters())
    assert [g["lr_multiplier"] for g in model.policy.actor.optimizer.param_groups] == settings[:2]


def test_the_target_is_the_pruned_critic(agent: Agents) -> None:
    model = agent()
    prune(model, keep_fraction=0.1)
    x = th.randn(model.n_tasks, 5, 3)
    assert th.equal(model.policy.critic_target.net(x), model.policy.critic.net(x))
    assert model.critic_target is model.policy.critic_target
    assert not any(parameter.requires_grad for parameter in model.policy.critic_target.parameters())


def test_one_network_alone(agent: Agents) -> None:
    model = agent()
    target = model.policy.critic_target
    report = prune(model, keep_fraction=0.1, networks="actor")
    assert {layer.network for layer in report.layers} == {"actor"}
    assert model.policy.critic_target is target and set(model.kept_weights or {}) == {"actor"}
    assert not any(isinstance(layer.adapter, Sparse) for layer in model.policy.critic.net.linears())
    prune(model, keep_fraction=0.1, networks="critic")
    assert set(model.kept_weights or {}) == {"actor", "critic"}
    model.learn(20, reset_num_timesteps=False)
    target = model.policy.critic_target
    prune(model, keep_fraction=0.05, networks="actor")
    assert model.policy.critic_target is target


def test_a_network_without_residuals_is_passed_over(agent: Agents) -> None:
    model = agent(actor_residuals=False)
    assert {layer.network for layer in prune(model, keep_fraction=0.1).layers} == {"critic"}
    with pytest.raises(ValueError, match=r"nothing to prune in networks='actor'.*actor_residuals=False"):
        prune(model, keep_fraction=0.1, networks="actor")


def test_pruning_further(agent: Agents) -> None:
    model = agent()
    first = prune(model, keep_fraction=0.2)
    model.learn(20, reset_num_timesteps=False)
    positions = [set(adapter.positions.tolist()) for adapter in adapters(model.policy.actor)]
    moments = [
        model.policy.actor.optimizer.state[adapter.values]["exp_avg"] for adapter in adapters(model.policy.actor)
    ]
    by_position = [
        dict(zip(adapter.positions.tolist(), values.tolist(), strict=True))
        for adapter, values in zip(adapters(model.policy.actor), moments, strict=True)
    ]
    second = prune(model, keep_fraction=0.05)
    assert second.total() == first.total() and second.kept("actor") == round(0.05 * second.total("actor"))
    assert second.before.residuals == first.after.residuals
    for adapter, before, moment in zip(adapters(model.policy.actor), positions, by_position, strict=True):
        assert set(adapter.positions.tolist()) <= before
        kept = model.policy.actor.optimizer.state[adapter.values]["exp_avg"].tolist()
        assert kept == [moment[position] for position in adapter.positions.tolist()]
    # There is no way back: a larger share leaves what is left.
    assert prune(model, keep_fraction=0.5).kept() == second.kept()
    assert prune(model, 0.0).kept() == second.kept()
    assert prune(model, keep_fraction=0.0).kept() == 0


def test_a_single_task_is_its_own_base(agent: Agents, target_env: TargetEnvs) -> None:
    model = agent(target_env({"only": 0.5}))
    observation = OBSERVATIONS[:, :2]
    observation = np.concatenate([observation, np.ones((6, 1), np.float32)], 1)
    actions = model.predict(observation, deterministic=True)[0]
    assert prune(model, keep_fraction=1.0).kept() == 0
    np.testing.assert_allclose(model.predict(observation, deterministic=True)[0], actions, atol=1e-6)
    model.learn(20, reset_num_timesteps=False)


# It goes on


@EACH_ADAPTER
def test_learning_changes_kept_values_and_the_base_alone(agent: Agents, kwargs: dict[str, Any]) -> None:
    model = agent(**kwargs)
    prune(model, keep_fraction=0.1)
    before = {
        name: [(a.positions.clone(), a.values.detach().clone()) for a in adapters(net)]
        for name, net in networks_of(model).items()
    }
    bases = {
        name: [layer.theta.detach().clone() for layer in net.linears()] for name, net in networks_of(model).items()
    }
    updates = model._n_updates
    model.learn(40, reset_num_timesteps=False)
    assert model._n_updates > updates
    for name, network in networks_of(model).items():
        for layer, adapter, (positions, values), base in zip(
            network.linears(), adapters(network), before[name], bases[name], strict=True
        ):
            assert th.equal(adapter.positions, positions)
            assert len(values) == 0 or not th.equal(adapter.values, values)
            assert not th.equal(layer.theta, base)
            dropped = th.ones(layer.merged_weight().numel(), dtype=th.bool)
            dropped[positions.long()] = False
            difference = (layer.merged_weight() - layer.theta).flatten()
            assert difference[dropped].count_nonzero() == 0


def test_the_base_alone_can_be_evaluated(agent: Agents, target_env: TargetEnvs) -> None:
    model = agent()
    prune(model, keep_fraction=0.1)
    base = evaluate_tasks(model, target_env(), 1, base=True).returns()
    prune(model, keep_fraction=0.0)
    alone = evaluate_tasks(model, target_env(), 1).returns()
    assert {task: value.mean for task, value in alone.items()} == pytest.approx(
        {task: value.mean for task, value in base.items()}, rel=1e-5
    )


def test_posterior_exploration_ends(agent: Agents) -> None:
    model = agent(exploration="posterior")
    prune(model, keep_fraction=0.1, networks="critic")
    assert model.exploration == "posterior"
    prune(model, keep_fraction=0.1)
    assert model.exploration == "mean"
    model.learn(20, reset_num_timesteps=False)


def test_statistics_are_of_what_is_left(agent: Agents) -> None:
    model = agent()
    prune(model, keep_fraction=0.1, networks="actor")
    actor, critic = (residual_statistics(network) for network in networks_of(model).values())
    assert set(actor) == {"kl", "mu_over_theta"} and set(critic) == {*actor, "sigma_over_prior"}
    costs = [
        (layer.merged_weight() - layer.theta).square().sum((-2, -1)) / (2 * layer.adapter.sigma_prior**2)
        for layer in model.policy.actor.linears()
    ]
    th.testing.assert_close(actor["kl"], th.stack(costs).sum(0))
    model.dump_logs()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # PyTorch, compiling
@th._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def test_a_compiled_agent_is_compiled_anew(
    agent: Agents, target_env: TargetEnvs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The default backend would build each graph with a C compiler; this one runs the traced operations as they are.
    compile_module = th.nn.Module.compile
    monkeypatch.setattr(th.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager"))
    th._dynamo.reset()
    model = agent(compile=True, actor_depth=0, critic_depth=0, steps=20)
    report = prune(model, max_loss=0.005, env=target_env(), n_episodes=1, random_returns=RANDOM)
    assert len(report.candidates) > 2
    updates = model._n_updates
    model.learn(20, reset_num_timesteps=False)
    assert model._n_updates > updates
    actions = model.predict(OBSERVATIONS, deterministic=True)[0]
    with th.compiler.set_stance("force_eager"):
        np.testing.assert_allclose(model.predict(OBSERVATIONS, deterministic=True)[0], actions, atol=1e-6)


# As far as the return allows


def test_returns_before_and_after(agent: Agents, target_env: TargetEnvs) -> None:
    model = agent()
    before = {task: value.mean for task, value in evaluate_tasks(model, target_env(), 2).returns().items()}
    report = prune(model, keep_fraction=0.02, env=target_env(), n_episodes=2, random_returns=RANDOM)
    after = {task: value.mean for task, value in evaluate_tasks(model, target_env(), 2).returns().items()}
    assert report.returns_before == before and report.returns_after == after and before != after
    assert report.losses == {task: (before[task] - after[task]) / (before[task] + 20.0) for task in before}
    assert report.loss == pytest.approx(sum(report.losses.values()) / 3)
    text = str(report)
    assert all(f"{task} {before[task]:.1f} -> {after[task]:.1f}" in " ".join(text.split()) for task in before)
    assert "mean_head" not in text and "trunk.linear_in" in text and "File: " in text


def test_without_an_environment_nothing_is_evaluated(agent: Agents) -> None:
    report = prune(agent(), keep_fraction=0.02)
    assert (report.returns_before, report.returns_after, report.losses, report.loss) == (None,) * 4


@pytest.mark.parametrize("max_loss", [0.0, 0.01, 0.9])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_pruned_as_far_as_the_return_allows(agent: Agents, max_loss: float, scope: str) -> None:
    model = agent()
    report = prune(model, max_loss=max_loss, n_episodes=1, random_returns=RANDOM, scope=scope)
    assert report.loss is not None and report.candidates
    assert report.loss <= max_loss + 1e-6
    held = [candidate for candidate in report.candidates if candidate.loss <= max_loss]
    share = min((candidate.keep_fraction for candidate in held), default=1.0)
    for name in ("actor", "critic"):
        assert report.kept(name) == pytest.approx(share * report.total(name), abs=len(report.layers))
    if held:
        assert report.loss == pytest.approx(min(held).loss)
    assert report.candidates[0].keep_fraction == 0.0


def test_the_search_leaves_no_trace(agent: Agents) -> None:
    searched, direct = agent(), agent()
    report = prune(searched, max_loss=0.05, n_episodes=1, random_returns=RANDOM)
    held = min(c.keep_fraction for c in report.candidates if c.loss <= 0.05)
    prune(direct, keep_fraction=held)
    for name, value in direct.policy.state_dict().items():
        assert th.equal(searched.policy.state_dict()[name], value), name


def test_the_random_policy_is_measured_with_the_agents_generators_left_alone(agent: Agents) -> None:
    model = agent(steps=0)
    with th.no_grad():
        model.policy.actor.mean.theta.zero_()
        next(model.policy.actor.mean.adapter.means()).zero_()
    state = model.env.action_space.np_random.bit_generator.state  # type: ignore[union-attr]
    judge = ReturnLoss(model, model.env, 200, measure_random=True)
    found = judge.random
    assert found is not None
    # Acting with zero, the agent gets -4 t^2.
    assert list(judge.before.values()) == pytest.approx([-4 * 0.49] * 3)
    assert judge.losses(found) == pytest.approx(dict.fromkeys(found, 1.0))
    # Uniform in [-1, 1]: the mean of (a - t)^2 is 1/3 + t^2, four times an episode.
    assert list(found.values()) == pytest.approx([-4 * (1 / 3 + 0.49)] * 3, rel=0.1)
    assert model.env.action_space.np_random.bit_generator.state == state  # type: ignore[union-attr]


def test_losses_by_hand(agent: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {"plus": 10.0, "minus": 0.0, "minus-twin": -3.0}
    monkeypatch.setattr(ReturnLoss, "returns", lambda self, model=None: before)
    model = agent(steps=0)
    judge = ReturnLoss(model, model.env, 1, {"plus": 0.0, "minus": -4.0, "minus-twin": -3.0})
    assert judge.losses({"plus": 9.0, "minus": 1.0, "minus-twin": -9.0}) == {"plus": 0.1, "minus": -0.25}
    assert ReturnLoss(model, model.env, 1).losses(before) is None
    with pytest.raises(ValueError, match=r"a return for each of .*, none for \['minus'\]"):
        ReturnLoss(model, model.env, 1, {"plus": 0.0, "minus-twin": 0.0})
    with pytest.raises(ValueError, match="no better than a random policy in any task"):
        ReturnLoss(model, model.env, 1, dict.fromkeys(before, 10.0))


# What cannot be pruned


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"adapter": "none"}, "it has no residuals"),
        ({"adapter": "embedding"}, "its tasks differ by an input"),
        ({"adapter": "independent"}, "share no base"),
        ({"adapter": "low_rank"}, "make the rank smaller"),
    ],
)
def test_other_adapters_say_why_not(agent: Agents, kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"adapter='{kwargs['adapter']}' cannot be pruned: .*{reason}"):
        prune(agent(steps=0, **kwargs), keep_fraction=0.1)


def test_signal_to_noise_needs_spreads(agent: Agents) -> None:
    with pytest.raises(ValueError, match=r"the actor has none \(adapter='deterministic'\); use 'magnitude'"):
        prune(agent(steps=0, adapter="deterministic"), keep_fraction=0.1, score="signal_to_noise")
    model = agent()
    prune(model, keep_fraction=0.1, networks="critic")
    with pytest.raises(ValueError, match=r"the critic has none \(it was pruned before\)"):
        prune(model, keep_fraction=0.1, score="signal_to_noise")
    assert model.kept_weights is not None and set(model.kept_weights) == {"critic"}
    prune(model, keep_fraction=0.1, score="signal_to_noise", networks="actor")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "exactly one of threshold, keep_fraction and max_loss, got none"),
        ({"threshold": 1.0, "max_loss": 0.1}, r"exactly one .*'threshold': 1.0, 'max_loss': 0.1"),
        ({"threshold": -1.0}, "threshold must be a finite number that is not negative, got -1.0"),
        ({"threshold": float("nan")}, "threshold must be a finite"),
        ({"keep_fraction": 1.5}, "keep_fraction must be a share between 0 and 1, got 1.5"),
        ({"max_loss": float("inf")}, "max_loss must be a finite"),
        ({"keep_fraction": 0.1, "score": "magnitud"}, r"score must be one of .*did you mean 'magnitude'"),
        ({"keep_fraction": 0.1, "scope": "task"}, r"scope must be one of \('global', 'layer'\), got 'task'"),
        ({"keep_fraction": 0.1, "networks": "all"}, r"networks must be one of \('both', 'actor', 'critic'\)"),
        ({"max_loss": 0.1, "networks": "critic"}, "the actor is not to be pruned"),
        ({"max_loss": 0.1, "random_returns": {}}, "random_returns must have a return for each"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(agent: Agents, kwargs: dict[str, Any], message: str) -> None:
    model = agent(steps=0)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        prune(model, **kwargs)
    assert model.kept_weights is None
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


def test_a_search_needs_an_environment(agent: Agents, tmp_path: Path) -> None:
    agent(steps=0).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="this agent has no environment: give env="):
        prune(VarShareSAC.load(tmp_path / "agent", device="cpu"), max_loss=0.1)


def test_an_agent_of_several_processes_is_pruned_before(agent: Agents) -> None:
    model = agent(steps=0)
    model._peers = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"Prune before distribute\(\)"):
        prune(model, keep_fraction=0.1)
