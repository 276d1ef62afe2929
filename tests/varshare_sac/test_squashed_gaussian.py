"""The squashed Gaussian against torch's own, masks included."""

import torch as th
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from sb3_varshare.varshare_sac.squashed_gaussian import bounded_log_std, sample_action


def reference_log_prob(mean: th.Tensor, log_std: th.Tensor, actions: th.Tensor) -> th.Tensor:
    normal = Normal(mean.double(), log_std.double().exp())
    squashed = TransformedDistribution(Independent(normal, 1), [TanhTransform(cache_size=1)])
    log_prob: th.Tensor = squashed.log_prob(actions.double())
    return log_prob.float()


def test_log_probability_equals_torch_on_the_dimensions_that_count() -> None:
    th.manual_seed(0)
    mean, log_std = th.randn(3, 50, 4), th.randn(3, 50, 4) * 0.3 - 1
    mask = th.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])[:, None]
    actions, log_prob = sample_action(mean, log_std, mask)
    assert th.equal(actions * (1 - mask), th.zeros_like(actions))
    for task, used in enumerate((4, 2, 1)):
        part = (task, slice(None), slice(used))
        expected = reference_log_prob(mean[part], log_std[part], actions[part])
        th.testing.assert_close(log_prob[task], expected, atol=2e-3, rtol=1e-3)


def test_moments_are_those_of_the_gaussian() -> None:
    th.manual_seed(0)
    mean, log_std = th.tensor([[[0.3, -0.2]]]).expand(1, 40_000, 2), th.tensor([-1.0, -2.0]).expand(1, 40_000, 2)
    actions, _ = sample_action(mean, log_std, th.ones(1, 1, 2))
    raw = th.atanh(actions[0])
    th.testing.assert_close(raw.mean(0), th.tensor([0.3, -0.2]), atol=0.01, rtol=0)
    th.testing.assert_close(raw.std(0), th.tensor([-1.0, -2.0]).exp(), atol=0.01, rtol=0)


def test_far_out_the_log_probability_and_its_gradient_are_finite() -> None:
    mean = th.tensor([[[40.0, -40.0]]], requires_grad=True)
    actions, log_prob = sample_action(mean, th.full((1, 1, 2), 2.0), th.ones(1, 1, 2))
    log_prob.sum().backward()
    assert (actions.abs() <= 1).all() and log_prob.isfinite().all()
    assert mean.grad is not None and mean.grad.isfinite().all()


def test_a_masked_dimension_gets_no_gradient() -> None:
    mean, log_std = th.zeros(1, 5, 2, requires_grad=True), th.zeros(1, 5, 2, requires_grad=True)
    actions, log_prob = sample_action(mean, log_std, th.tensor([[[1.0, 0.0]]]))
    (actions.sum() + log_prob.sum()).backward()
    for tensor in (mean, log_std):
        assert tensor.grad is not None
        assert (tensor.grad[..., 0] != 0).any() and (tensor.grad[..., 1] == 0).all()


def test_log_std_is_bounded_smoothly() -> None:
    values = bounded_log_std(th.tensor([-100.0, 0.0, 100.0]))
    th.testing.assert_close(values, th.tensor([-10.0, -4.0, 2.0]))
