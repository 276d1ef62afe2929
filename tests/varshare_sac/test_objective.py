"""One gradient step: what the KL pulls, what each step touches, and that the device is waited for once."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_varshare import VarShareSAC

TinyAgent = Callable[..., VarShareSAC]
B = 16


@pytest.fixture
def ready_agent(tiny_agent: TinyAgent) -> TinyAgent:
    """An agent whose replay holds 40 transitions of either task, with residuals away from zero; nothing trained."""

    def make(**kwargs: Any) -> VarShareSAC:
        model = tiny_agent(learning_starts=10_000, batch_size=2 * B, **kwargs)
        model.learn(80)
        model.learning_starts = 0
        with th.no_grad():
            for network in (model.policy.actor, model.policy.critic.net):
                for mu in network.means():
                    mu.normal_(0, 0.05, generator=th.Generator().manual_seed(1))
        return model

    return make


def parameters_of(module: th.nn.Module) -> list[th.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def equal(before: list[th.Tensor], module: th.nn.Module) -> bool:
    return all(th.equal(*pair) for pair in zip(before, module.parameters(), strict=True))


def gradients(model: VarShareSAC, beta: float) -> dict[str, dict[str, th.Tensor]]:
    """Gradient of actor and critic by the agent's own steps, with the same batch and noise whatever beta is."""
    model.beta = beta
    found: dict[str, dict[str, th.Tensor]] = {}

    def keep_gradient(module: th.nn.Module, loss: th.Tensor) -> None:
        name = "actor" if module is model.policy.actor else "critic"
        values = th.autograd.grad(loss.mean(), list(module.parameters()))
        found[name] = {key: g for (key, _), g in zip(module.named_parameters(), values, strict=True)}

    model._minimise = keep_gradient  # type: ignore[method-assign]
    th.manual_seed(3)
    batch = model.replay_buffer.sample(2 * B)
    ent_coef, weights = model._ent_coef(), model._kl_weights(2 * B)
    model._critic_step(batch, model._critic_target(batch, ent_coef), weights)
    model._actor_step(batch, ent_coef, weights)
    return found


def means_with_prior(module: th.nn.Module) -> Iterator[tuple[str, th.Tensor, float]]:
    """Name, value and absolute prior standard deviation of every mean residual."""
    for name, layer in module.named_modules():
        if hasattr(layer, "mu") and hasattr(layer, "sigma_prior"):
            yield f"{name}.mu", layer.mu, layer.sigma_prior


@pytest.mark.parametrize("adapter", ["varshare", "deterministic", "low_rank"])
@pytest.mark.parametrize("kl_scale", ["data", "constant"])
def test_gradient_law(ready_agent: TinyAgent, adapter: str, kl_scale: str) -> None:
    """
    The pull on theta is exactly 0, and on mu exactly ``beta mu / (T n_t sigma_prior^2)``, for the actor times ent_coef.
    """
    model = ready_agent(adapter=adapter, kl_scale=kl_scale, ent_coef=[0.3, 0.05], rank=2)
    model.replay_buffer.written = th.tensor([40, 25])  # unequal data
    counts = th.tensor([2_000.0, 2_000.0] if kl_scale == "constant" else [40.0, 25.0])
    beta = 1e6  # so that the difference of two gradients is precise
    without, with_kl = gradients(model, 0.0), gradients(model, beta)
    for name, module, coefficient in (
        ("critic", model.policy.critic, th.ones(2)),
        ("actor", model.policy.actor, th.tensor([0.3, 0.05])),
    ):
        means = {key: (mu, sigma_prior) for key, mu, sigma_prior in means_with_prior(module)}
        assert len(means) == len(list((module.net if name == "critic" else module).means()))  # type: ignore[union-attr]
        for key, gradient in with_kl[name].items():
            if key in means:
                mu, sigma_prior = means[key]
                expected = beta * mu * (coefficient / counts)[:, None, None] / (2 * sigma_prior**2)
                th.testing.assert_close(gradient - without[name][key], expected.detach(), rtol=1e-3, atol=1e-4 * beta)
                ratio = (gradient - without[name][key]).norm() / expected.norm()
                assert ratio.item() == pytest.approx(1, abs=1e-5)
            elif "rho" not in key:
                assert th.equal(gradient, without[name][key]), key


def test_rewards_count_in_units_of_the_tasks_range(ready_agent: TinyAgent) -> None:
    """Rewards and their range ten times as large: the same gradient, if there is no entropy to weigh them against."""
    model = ready_agent(ent_coef=0.0)
    rows = model.replay_buffer._rows
    assert rows is not None
    before = gradients(model, 0.0)["critic"]
    rows[0, :, -2] *= 10
    larger = gradients(model, 0.0)["critic"]
    model.reward_scale.return_max[0] *= 10
    model.reward_scale.return_min[0] *= 10
    scaled = gradients(model, 0.0)["critic"]
    for key, gradient in before.items():
        th.testing.assert_close(scaled[key], gradient, rtol=1e-4, atol=1e-6)
    assert not th.allclose(larger["net.linear_out.bias"], before["net.linear_out.bias"], rtol=1e-2)


def test_the_pull_on_rho_vanishes_at_the_prior(ready_agent: TinyAgent) -> None:
    model = ready_agent(beta_sigma=None)
    without, with_kl = gradients(model, 0.0), gradients(model, 1.0)
    n_rho = 0
    for name in ("actor", "critic"):
        for key, gradient in with_kl[name].items():
            if "rho" in key:
                n_rho += 1
                th.testing.assert_close(gradient, without[name][key], atol=1e-6, rtol=1e-4)
    assert n_rho > 0


def test_each_step_trains_its_own_network(ready_agent: TinyAgent) -> None:
    model = ready_agent()
    actor, critic, policy = model.policy.actor, model.policy.critic, model.policy
    batch = model.replay_buffer.sample(2 * B)
    ent_coef, weights = model._ent_coef(), model._kl_weights(2 * B)
    before = parameters_of(actor), parameters_of(critic), parameters_of(policy.critic_target)
    model._critic_step(batch, model._critic_target(batch, ent_coef), weights)
    assert equal(before[0], actor) and not equal(before[1], critic) and equal(before[2], policy.critic_target)
    before = parameters_of(actor), parameters_of(critic), parameters_of(policy.critic_target)
    model._actor_step(batch, ent_coef, weights)
    assert not equal(before[0], actor) and equal(before[1], critic) and equal(before[2], policy.critic_target)
    # The actor's loss passes through the critics without leaving a gradient there that the next step would add.
    model.policy.critic.optimizer.zero_grad()
    model._actor_step(batch, ent_coef, weights)
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_one_tasks_rows_do_not_move_the_others_residual(ready_agent: TinyAgent) -> None:
    model = ready_agent(beta=0.0, recenter_every=0)
    model._minimise = lambda module, loss: losses.append((module, loss))  # type: ignore[method-assign]
    losses: list[tuple[Any, th.Tensor]] = []
    batch = model.replay_buffer.sample(2 * B)
    ent_coef, weights = model._ent_coef(), model._kl_weights(2 * B)
    model._critic_step(batch, model._critic_target(batch, ent_coef), weights)
    model._actor_step(batch, ent_coef, weights)
    for module, loss in losses:
        network = module.net if module is model.policy.critic else module
        for gradient in th.autograd.grad(loss[0], list(network.means())):
            task_axis = gradient.movedim(-3, 0)
            assert (task_axis[1] == 0).all() and (task_axis[0] != 0).any()


@pytest.mark.parametrize("interval", [1, 3])
def test_the_target_follows_by_tau(ready_agent: TinyAgent, interval: int) -> None:
    model = ready_agent(tau=0.25, target_update_interval=interval)
    critic, target = model.policy.critic, model.policy.critic_target
    for _ in range(2):
        expected = [tensor.clone() for tensor in target.averaged_tensors()]
        for _ in range(interval):
            model.train(1, 2 * B)
        sources = critic.averaged_tensors()
        expected = [0.75 * old + 0.25 * new for old, new in zip(expected, sources, strict=True)]
        for ours, theirs in zip(target.averaged_tensors(), expected, strict=True):
            # Re-centring changes theta + mu by rounding only.
            th.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("recenter_every", "n_steps", "centred"), [(0, 10, False), (1, 1, True), (10, 9, False), (10, 10, True)]
)
def test_recentring_every_so_many_steps(
    ready_agent: TinyAgent, recenter_every: int, n_steps: int, centred: bool
) -> None:
    model = ready_agent(recenter_every=recenter_every)
    model.train(n_steps, 2 * B)
    for network in (model.policy.actor, model.policy.critic.net):
        off = max(mu.mean(-3).abs().max().item() for mu in network.means())
        assert (off < 1e-6) == centred


def test_rates_and_multipliers_survive_training(ready_agent: TinyAgent) -> None:
    model = ready_agent(learning_rate=lambda progress: 0.01 * progress, mu_lr_multiplier=3.0, rho_lr_multiplier=0.5)
    model._current_progress_remaining = 0.5
    model.train(1, 2 * B)
    for optimizer in (model.policy.actor.optimizer, model.policy.critic.optimizer):
        groups = {group["lr_multiplier"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
        assert groups == {1.0: (0.005, 1e-4), 3.0: (0.015, 0.0), 0.5: (0.0025, 0.0)}
    assert model.ent_coef_optimizer is not None
    assert [group["lr"] for group in model.ent_coef_optimizer.param_groups] == [3e-4]


def test_weight_decay_reaches_the_base_and_never_the_residuals(ready_agent: TinyAgent) -> None:
    """With huge decay and no learning signal of note, theta shrinks and mu and rho stay."""
    model = ready_agent(learning_rate=1e-6, weight_decay=1e5, recenter_every=0)
    layer = model.policy.critic.net.linear_in
    theta, mu = layer.theta.detach().clone(), next(iter(layer.adapter.means())).detach().clone()
    model.train(1, 2 * B)
    th.testing.assert_close(layer.theta.detach(), 0.9 * theta, atol=1e-5, rtol=1e-5)
    th.testing.assert_close(next(iter(layer.adapter.means())).detach(), mu, atol=2e-6, rtol=0)


def test_the_entropy_coefficient_of_each_task_goes_its_own_way(ready_agent: TinyAgent) -> None:
    model = ready_agent(target_entropy=[-50.0, 50.0], ent_coef_learning_rate=0.1)
    before = model._ent_coef().clone()
    model.train(1, 2 * B)
    after = model._ent_coef()
    assert after[0] < before[0] and after[1] > before[1]
    assert before.tolist() == pytest.approx([0.1, 0.1])


def test_a_shared_coefficient_is_one_number(ready_agent: TinyAgent) -> None:
    model = ready_agent(share_ent_coef=True)
    assert model.log_ent_coef is not None and model.log_ent_coef.shape == (1,)
    model.train(2, 2 * B)
    assert model._ent_coef().shape == (2,) and model._ent_coef()[0] == model._ent_coef()[1] != 0.1


@pytest.mark.parametrize(("ent_coef", "expected"), [(0.2, [0.2, 0.2]), ([0.2, 0.4], [0.2, 0.4])])
def test_a_fixed_coefficient_stays(ready_agent: TinyAgent, ent_coef: Any, expected: list[float]) -> None:
    model = ready_agent(ent_coef=ent_coef)
    model.train(3, 2 * B)
    assert model._ent_coef().tolist() == pytest.approx(expected)


def test_beta_follows_its_schedule_and_warm_up(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(beta=lambda progress: 2.0 * progress, beta_warmup=0.5, kl_scale="constant")
    expected = {1.0: 0.0, 0.75: 1.5 * 0.5, 0.5: 1.0, 0.25: 0.5}
    for progress, beta in expected.items():
        model._current_progress_remaining = progress
        # beta / (T n_t) with n_t = buffer_size / T
        np.testing.assert_allclose(model._kl_weights(32).mean, np.full(2, beta / 4_000), rtol=1e-6)


def test_the_kl_weighs_less_as_data_arrive(ready_agent: TinyAgent) -> None:
    model = ready_agent(beta=0.5)
    np.testing.assert_allclose(model._kl_weights(32).mean, [0.5 / 80, 0.5 / 80], rtol=1e-6)
    np.testing.assert_allclose(model._kl_weights(200).mean, [0.5 / 200, 0.5 / 200], rtol=1e-6)  # at least B


@pytest.mark.parametrize(("beta_sigma", "expected"), [(1.0, 1.0), (0.2, 0.2), (0.0, 0.0), (None, 0.5)])
def test_means_and_spreads_have_weights_of_their_own(
    ready_agent: TinyAgent, beta_sigma: float | None, expected: float
) -> None:
    weights = ready_agent(beta=0.5, beta_sigma=beta_sigma)._kl_weights(32)
    np.testing.assert_allclose(weights.mean, [0.5 / 80, 0.5 / 80], rtol=1e-6)
    np.testing.assert_allclose(weights.spread, [expected / 80, expected / 80], rtol=1e-6)


# The device


def test_one_train_call_reads_the_device_once(ready_agent: TinyAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready_agent()
    model.train(2, 2 * B)  # what is only read at the first time
    reads: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(th.Tensor, name)

        def read(self: th.Tensor, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_code
            # Optimizers keep their step count on the CPU.
            if "torch/optim" not in caller.co_filename:
                reads.append(f"{name} in {caller.co_name}")
            return original(self, *args, **kwargs)

        return read

    for name in ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(th.Tensor, name, counted(name))
    model.train(5, 2 * B)
    assert reads == ["tolist in _record_losses"]


def test_a_step_that_diverges_says_so(ready_agent: TinyAgent) -> None:
    model = ready_agent()
    with th.no_grad():
        next(model.policy.critic.parameters()).fill_(th.nan)
    with pytest.raises(FloatingPointError, match=r"diverged before gradient step 3.*critic_loss"):
        model.train(3, 2 * B)


def test_nothing_is_trained_before_the_warm_up_is_over(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(learning_starts=10_000)
    model.learn(40)
    model.train(1, 32)
    assert model._n_updates == 0
