"""The losses: numbers by hand, signs, and shapes that cannot be confused."""

import math

import pytest
import torch as th

from sb3_varshare import losses

SUPPORT = th.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])


def test_critic_loss_is_the_sum_over_members_of_the_mean_cross_entropy() -> None:
    # Two critics, two tasks, two rows, two atoms; logits (0, log 3) are the probabilities (1/4, 3/4).
    even, odd = th.zeros(2), th.tensor([0.0, math.log(3.0)])
    logits = th.stack([th.stack([th.stack([even, odd]), th.stack([even, even])]), even.expand(2, 2, 2)])
    target = th.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.25, 0.75]]])
    two = math.log(2.0)
    first_member = [(two + math.log(4 / 3)) / 2, two]
    expected = th.tensor([first_member[0] + two, first_member[1] + two])
    th.testing.assert_close(losses.critic_loss(logits, target), expected)


def test_critic_loss_is_least_at_the_target_where_it_is_its_entropy() -> None:
    target = th.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    logits = target.log()[None].requires_grad_(True)
    loss = losses.critic_loss(logits, target)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-(target * target.log()).sum().item())
    assert logits.grad is not None
    th.testing.assert_close(logits.grad, th.zeros_like(logits), atol=1e-7, rtol=0)


def test_target_has_the_entropy_inside_the_discount() -> None:
    # Everything at z = 1; 0.5 + 0.8 * (1 - 0.5 * 0.25) = 1.2 for the first task, 0.5 + 0.8 * (1 - 1 * 0.25) = 1.1.
    next_probabilities = th.tensor([0.0, 0.0, 0.0, 1.0, 0.0]).expand(2, 1, 5)
    target = losses.target_distribution(
        rewards=th.full((2, 1), 0.5),
        discounts=th.full((2, 1), 0.8),
        next_probabilities=next_probabilities,
        next_log_prob=th.full((2, 1), 0.25),
        ent_coef=th.tensor([0.5, 1.0]),
        support=SUPPORT,
    )
    expected = th.tensor([[[0.0, 0.0, 0.0, 0.8, 0.2]], [[0.0, 0.0, 0.0, 0.9, 0.1]]])
    th.testing.assert_close(target, expected)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [(0.0, [0, 0, 1, 0, 0]), (-1.25, [0.25, 0.75, 0, 0, 0]), (7.0, [0, 0, 0, 0, 1]), (-3.0, [1, 0, 0, 0, 0])],
)
def test_without_a_next_value_all_mass_is_at_the_clipped_reward(reward: float, expected: list[float]) -> None:
    target = losses.target_distribution(
        rewards=th.full((1, 1), reward),
        discounts=th.zeros(1, 1),
        next_probabilities=th.rand(1, 1, 5, generator=th.Generator().manual_seed(0)).softmax(-1),
        next_log_prob=th.full((1, 1), 123.0),
        ent_coef=th.ones(1),
        support=SUPPORT,
    )
    th.testing.assert_close(target, th.tensor([[expected]], dtype=th.float32))


def test_q_values_are_the_mean_over_members_of_the_expectations() -> None:
    logits = th.log(th.tensor([[[[0.5, 0.0, 0.5, 0.0, 0.0]]], [[[0.0, 0.0, 0.0, 0.5, 0.5]]]]) + 1e-30)
    th.testing.assert_close(losses.q_values(logits, SUPPORT), th.tensor([[0.25]]))


def test_actor_loss_by_hand() -> None:
    log_prob, q = th.tensor([[-1.0, 1.0], [2.0, 4.0]]), th.tensor([[3.0, 5.0], [-1.0, 0.0]])
    # ((0.1 * -1 - 3) + (0.1 * 1 - 5)) / 2 and ((2 * 2 + 1) + (2 * 4 - 0)) / 2
    th.testing.assert_close(losses.actor_loss(log_prob, q, th.tensor([0.1, 2.0])), th.tensor([-4.0, 6.5]))


def test_entropy_loss_by_hand() -> None:
    # Entropies 1.5 and -1; targets -1 and -0.5; coefficients 0.2 and 2.
    log_prob = th.tensor([[-1.0, -2.0], [0.0, 2.0]])
    loss = losses.entropy_loss(th.tensor([0.2, 2.0]).log(), log_prob, th.tensor([-1.0, -0.5]))
    th.testing.assert_close(loss, th.tensor([0.2 * 2.5, 2 * -0.5]))


@pytest.mark.parametrize(("entropy", "rises"), [(-2.0, True), (0.0, False)])
def test_the_coefficient_rises_when_entropy_is_below_its_target(entropy: float, rises: bool) -> None:
    log_ent_coef = th.tensor([0.1]).log().requires_grad_(True)
    losses.entropy_loss(log_ent_coef, th.full((1, 8), -entropy), th.tensor([-1.0])).mean().backward()
    assert log_ent_coef.grad is not None
    assert (log_ent_coef.grad.item() < 0) == rises  # descent moves against the gradient


def test_a_shared_coefficient_sees_the_mean_over_tasks() -> None:
    log_prob, target = th.tensor([[1.0], [-3.0]]), th.tensor([-1.0, -1.0])
    shared = th.tensor([0.5]).log().requires_grad_(True)
    losses.entropy_loss(shared, log_prob, target).mean().backward()
    assert shared.grad is not None
    # 0.5 * ((-1 + 1) + (3 + 1)) / 2
    assert shared.grad.item() == pytest.approx(1.0)


def test_kl_weights_are_one_over_t_n_and_bounded_below() -> None:
    weights = losses.kl_weights(th.tensor([1.0, 64.0, 100.0, 1000.0]), at_least=64)
    th.testing.assert_close(weights, 1 / (4 * th.tensor([64.0, 64.0, 100.0, 1000.0])))
