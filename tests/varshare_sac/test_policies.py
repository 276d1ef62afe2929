"""The policy: tasks read from observations, masks, optimizers, what trains what."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.utils import ConstantSchedule

from sb3_varshare.categorical import expectation
from sb3_varshare.varshare_sac import MultiTaskPolicy

N_TASKS, OBSERVATION_SIZE, ACTION_SIZE = 3, 4, 2
ADAPTERS = ["varshare", "low_rank", "deterministic", "none", "independent"]


def make_policy(**kwargs: Any) -> MultiTaskPolicy:
    th.manual_seed(0)
    sizes = {"actor_width": 8, "critic_width": 8, "critic_depth": 1}
    one_hot_size = kwargs.pop("one_hot_size", N_TASKS)
    action_space = kwargs.pop("action_space", gym.spaces.Box(-1, 1, (ACTION_SIZE,), dtype=np.float32))
    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE + one_hot_size,), dtype=np.float32)
    policy = MultiTaskPolicy(
        observation_space,
        action_space,
        ConstantSchedule(1e-3),
        **{"n_tasks": N_TASKS, "one_hot_size": one_hot_size, **sizes, **kwargs},
    )
    scatter_residuals(policy)
    return policy


@th.no_grad()
def scatter_residuals(policy: MultiTaskPolicy) -> None:
    """Give every task mean residuals of its own."""
    for network in (policy.actor, policy.critic.net):
        for mu in network.means():
            mu.normal_(0, 0.3)


def observe(tasks: list[int], seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(len(tasks), OBSERVATION_SIZE))
    return np.concatenate([rows, np.eye(N_TASKS)[tasks]], 1).astype(np.float32)


# Acting


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("normalize_observations", [False, True])
def test_the_order_of_rows_does_not_matter(adapter: str, normalize_observations: bool) -> None:
    policy = make_policy(adapter=adapter, normalize_observations=normalize_observations)
    observations = observe([2, 0, 0, 1, 2, 2, 0])
    policy.observation_norm.update(observations[:, :OBSERVATION_SIZE], observations[:, OBSERVATION_SIZE:].argmax(1))
    actions, _ = policy.predict(observations, deterministic=True)
    order = np.random.default_rng(1).permutation(7)
    shuffled, _ = policy.predict(observations[order], deterministic=True)
    np.testing.assert_allclose(shuffled, actions[order], atol=1e-6)
    for row, action in zip(observations, actions, strict=True):
        np.testing.assert_allclose(policy.predict(row, deterministic=True)[0], action, atol=1e-6)


def test_the_one_hot_alone_tells_the_task() -> None:
    policy = make_policy()
    observations = np.concatenate([np.ones((3, OBSERVATION_SIZE)), np.eye(3)], 1).astype(np.float32)
    actions, _ = policy.predict(observations, deterministic=True)
    assert len({tuple(row) for row in actions.tolist()}) == 3


def test_blind_without_residuals() -> None:
    policy = make_policy(adapter="none")
    observations = np.concatenate([np.ones((3, OBSERVATION_SIZE)), np.eye(3)], 1).astype(np.float32)
    actions, _ = policy.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions, actions[[0, 0, 0]])


def test_a_deterministic_action_is_tanh_of_the_mean() -> None:
    policy = make_policy(one_hot_size=0, n_tasks=1)
    observations = np.random.default_rng(0).normal(size=(5, OBSERVATION_SIZE)).astype(np.float32)
    mean = policy.actor(th.from_numpy(observations)[None])[0, :, :ACTION_SIZE]
    np.testing.assert_allclose(policy.predict(observations, deterministic=True)[0], mean.tanh().detach(), atol=1e-6)


def test_drawn_actions_vary_and_stay_in_the_space() -> None:
    policy = make_policy(action_space=gym.spaces.Box(np.array([-3.0, 0.0]), np.array([5.0, 0.5]), dtype=np.float64))
    observations = observe([0, 1, 2] * 50)
    first, _ = policy.predict(observations)
    second, _ = policy.predict(observations)
    assert not np.allclose(first, second)
    assert (first >= [-3, 0]).all() and (first <= [5, 0.5]).all()
    assert first[:, 0].min() < -1 and first[:, 0].max() > 2


def test_dimensions_that_a_task_lacks_are_zero() -> None:
    policy = make_policy(action_sizes=(2, 1, 2))
    for deterministic in (True, False):
        actions, _ = policy.predict(observe([0, 1, 2]), deterministic=deterministic)
        assert (actions == 0).tolist() == [[False, False], [False, True], [False, False]]
    actions, log_prob = policy.action_log_prob(th.randn(3, 6, OBSERVATION_SIZE))
    assert (actions[1, :, 1] == 0).all() and log_prob.shape == (3, 6)


def test_base_alone_is_the_policy_without_its_residuals() -> None:
    policy = make_policy()
    observations = observe([0, 1, 2])
    full, _ = policy.predict(observations, deterministic=True)
    with policy.base_only():
        base, _ = policy.predict(observations, deterministic=True)
    again, _ = policy.predict(observations, deterministic=True)
    with th.no_grad():
        for mu in policy.actor.means():
            mu.zero_()
    zeroed, _ = policy.predict(observations, deterministic=True)
    np.testing.assert_allclose(base, zeroed, atol=1e-6)
    np.testing.assert_array_equal(full, again)
    assert not np.allclose(base, full)


def test_base_alone_ends_with_its_context_also_after_an_error() -> None:
    policy = make_policy(adapter="independent")
    with pytest.raises(TypeError, match="no shared base"), policy.base_only():
        policy.predict(observe([0]), deterministic=True)
    policy.predict(observe([0]), deterministic=True)


# Critics


@pytest.mark.parametrize("std", [0.5, 1.5])
def test_returns_start_narrow(std: float) -> None:
    policy = make_policy(initial_return_std=std)
    with th.no_grad():
        for mu in policy.critic.net.means():
            mu.zero_()
    probabilities = policy.critic.probabilities(th.randn(3, 20, OBSERVATION_SIZE), th.rand(3, 20, ACTION_SIZE))
    support = policy.critic.support
    mean = expectation(probabilities, support)
    spread = (expectation(probabilities, support.square()) - mean.square()).sqrt()
    assert (mean.abs() < 0.1 * std).all()
    th.testing.assert_close(spread, th.full_like(spread, std), rtol=0.1, atol=0)


def test_brcs_own_head_starts_wide() -> None:
    policy = make_policy(initial_return_std=None, critic_width=64)
    probabilities = policy.critic.probabilities(th.randn(3, 20, OBSERVATION_SIZE), th.rand(3, 20, ACTION_SIZE))
    support = policy.critic.support
    variance = expectation(probabilities, support.square()) - expectation(probabilities, support).square()
    assert variance.sqrt().mean() > 4


def test_members_differ_and_are_averaged() -> None:
    policy = make_policy(n_critics=3, n_atoms=11, v_min=-2.0, v_max=3.0, initial_return_std=None)
    observations, actions = th.randn(3, 5, OBSERVATION_SIZE), th.rand(3, 5, ACTION_SIZE)
    logits = policy.critic(observations, actions)
    assert logits.shape == (3, 3, 5, 11)
    assert not th.allclose(logits[0], logits[1])
    th.testing.assert_close(policy.critic.support, th.linspace(-2, 3, 11))
    th.testing.assert_close(policy.critic.probabilities(observations, actions), logits.softmax(-1).mean(0))
    expected = (logits.softmax(-1) * th.linspace(-2, 3, 11)).sum(-1).mean(0)
    th.testing.assert_close(policy.q_values(observations, actions), expected)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_target_starts_equal_and_is_frozen(adapter: str) -> None:
    policy = make_policy(adapter=adapter)
    policy.critic_target = policy.critic.averaged_copy()  # after the residuals were scattered
    observations, actions = th.randn(3, 5, OBSERVATION_SIZE), th.rand(3, 5, ACTION_SIZE)
    expected = policy.critic.probabilities(observations, actions)
    th.testing.assert_close(policy.critic_target.probabilities(observations, actions), expected)
    assert not any(parameter.requires_grad for parameter in policy.critic_target.parameters())
    ours = {parameter.data_ptr() for parameter in policy.critic.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in policy.critic_target.parameters()}


# The task embedding


def test_the_embedding_has_unit_norm_and_is_told_to_both_networks() -> None:
    policy = make_policy(adapter="none", task_input="embedding")
    with th.no_grad():
        policy.critic.task_input.table.mul_(7)  # type: ignore[union-attr,operator]
    features = policy.actor_input(th.zeros(3, 1, OBSERVATION_SIZE))[..., OBSERVATION_SIZE:]
    th.testing.assert_close(features.norm(dim=-1), th.ones(3, 1))
    actions, _ = policy.predict(np.concatenate([np.zeros((3, 4)), np.eye(3)], 1).astype(np.float32), deterministic=True)
    assert len({tuple(row) for row in actions.tolist()}) == 3
    q = policy.q_values(th.zeros(3, 1, OBSERVATION_SIZE), th.zeros(3, 1, ACTION_SIZE))
    assert len(set(q.flatten().tolist())) == 3


def test_the_actor_does_not_train_the_embedding_and_the_critic_does() -> None:
    policy = make_policy(adapter="none", task_input="embedding")
    table = policy.critic.task_input.table
    assert isinstance(table, th.nn.Parameter)
    assert id(table) not in {id(parameter) for parameter in policy.actor.parameters()}
    actions, log_prob = policy.action_log_prob(th.randn(3, 5, OBSERVATION_SIZE))
    assert th.autograd.grad((actions.sum() + log_prob.sum()), table, allow_unused=True) == (None,)
    (gradient,) = th.autograd.grad(policy.critic(th.randn(3, 5, 4), actions.detach())[..., 0].sum(), table)
    assert (gradient != 0).any(1).all()


def test_the_target_has_an_embedding_of_its_own() -> None:
    policy = make_policy(adapter="none", task_input="embedding")
    observations, actions = th.randn(3, 5, OBSERVATION_SIZE), th.rand(3, 5, ACTION_SIZE)
    before = policy.critic_target.probabilities(observations, actions)
    with th.no_grad():
        policy.critic.task_input.table.normal_()  # type: ignore[union-attr,operator]
    th.testing.assert_close(policy.critic_target.probabilities(observations, actions), before)
    averaged = {id(tensor) for tensor in policy.critic_target.averaged_tensors()}
    assert id(policy.critic_target.task_input.table) in averaged


# Optimizers


def roles(optimizer: th.optim.Optimizer) -> dict[float, dict[str, Any]]:
    return {group["lr_multiplier"]: group for group in optimizer.param_groups}


@pytest.mark.parametrize("sigma_structure", ["full", "tied"])
def test_every_parameter_is_in_one_group_with_its_own_rate_and_decay(sigma_structure: str) -> None:
    policy = make_policy(
        adapter_kwargs={"sigma_structure": sigma_structure},
        mu_lr_multiplier=2.0,
        rho_lr_multiplier=5.0,
        optimizer_kwargs={"weight_decay": 0.25},
    )
    for module, network in ((policy.actor, policy.actor), (policy.critic, policy.critic.net)):
        groups = roles(module.optimizer)
        assert {m: (g["lr"], g["weight_decay"]) for m, g in groups.items()} == {
            1.0: (1e-3, 0.25),
            2.0: (2e-3, 0.0),
            5.0: (5e-3, 0.0),
        }
        assert {id(p) for p in groups[2.0]["params"]} == {id(p) for p in network.means()}
        assert {id(p) for p in groups[5.0]["params"]} == {id(p) for p in network.spreads()}
        everything = [id(p) for group in groups.values() for p in group["params"]]
        assert len(everything) == len(set(everything))
        assert set(everything) == {id(p) for p in module.parameters()}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("task_input", [None, "embedding"])
def test_a_frozen_base_is_in_no_optimizer(adapter: str, task_input: str | None) -> None:
    policy = make_policy(adapter=adapter, task_input=task_input, base_frozen=True)
    assert policy.base_frozen
    for module, network in ((policy.actor, policy.actor), (policy.critic, policy.critic.net)):
        own = {id(p) for p in network.task_parameters()} | {
            id(p) for name, p in module.named_parameters() if name.startswith("task_input")
        }
        trained = [id(p) for group in module.optimizer.param_groups for p in group["params"]]
        assert len(trained) == len(own) and set(trained) == own
        assert {id(p) for p in module.parameters() if p.requires_grad} == own
        # Also where there is nothing to step on.
        module.optimizer.step()
    assert bool(list(policy.actor.shared_parameters())) == (adapter != "independent")


def test_residuals_can_be_switched_off_per_network() -> None:
    policy = make_policy(actor_residuals=False)
    assert not list(policy.actor.means()) and list(policy.critic.net.means())
    policy = make_policy(critic_residuals=False)
    assert list(policy.actor.means()) and not list(policy.critic.net.means())
