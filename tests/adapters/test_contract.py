"""The law book of the adapters: every row of the table obeys every law. A new adapter is one more row."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch as th
import torch.nn.functional as F
from scipy.stats import kstest
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl

from sb3_varshare.adapters import ADAPTERS, KLWeights
from sb3_varshare.adapters.deterministic import Deterministic
from sb3_varshare.adapters.estimators import ESTIMATORS
from sb3_varshare.adapters.gaussian import SIGMA_STRUCTURES, GaussianWeight, inverse_softplus
from sb3_varshare.adapters.row_noise import TINY_VARIANCE, random_signs, unit_noise
from sb3_varshare.networks import BroNet, TaskLinear

T, B, I, O = 3, 4, 5, 4  # noqa: E741
SIGMA_PRIOR = 0.3
N_DRAWS = 2_000
N_STANDARD_ERRORS = 5.0


class Row(NamedTuple):
    """
    One row of the table.

    :param adapter: its name
    :param kwargs: its arguments
    :param n_members: ensemble members
    """

    adapter: str
    kwargs: dict[str, Any]
    n_members: int | None

    def __str__(self) -> str:
        values = (str(value) for key, value in self.kwargs.items() if key != "sigma_prior")
        return "-".join((self.adapter, *values, f"K={self.n_members}"))

    @property
    def members(self) -> tuple[int, ...]:
        return () if self.n_members is None else (self.n_members,)

    @property
    def has_residual(self) -> bool:
        return self.adapter not in ("none", "independent")

    @property
    def is_noisy(self) -> bool:
        return ADAPTERS[self.adapter].is_stochastic and self.kwargs["estimator"] != "mean"

    def layer(self, n_tasks: int = T) -> TaskLinear:
        """The layer as it starts, with a bias that shows when it is left out or counted twice."""
        th.manual_seed(0)
        layer = TaskLinear(I, O, n_tasks, self.adapter, self.kwargs, self.n_members)
        th.nn.init.normal_(layer.bias)
        return layer

    def trained_layer(self, n_tasks: int = T) -> TaskLinear:
        """The layer away from its starting point."""
        layer = self.layer(n_tasks)
        move(layer.adapter)
        return layer

    def trained_net(self) -> BroNet:
        """A network away from its starting point."""
        th.manual_seed(0)
        net = BroNet(I, O, 8, 1, T, self.adapter, self.kwargs, self.n_members)
        move(net)
        return net


def move(module: Any) -> None:
    """Residuals that differ by task, with a mean over the tasks that is not zero."""
    with th.no_grad():
        for mu in module.means():
            mu.add_(0.2 + 0.3 * th.randn_like(mu))
        for rho in module.spreads():
            rho.add_(0.5 * th.randn_like(rho))


def _kwargs() -> Iterator[tuple[str, dict[str, Any]]]:
    for structure in SIGMA_STRUCTURES:
        for estimator in ESTIMATORS:
            yield "varshare", dict(sigma_prior=SIGMA_PRIOR, sigma_structure=structure, estimator=estimator)
    for estimator in ESTIMATORS:
        yield "low_rank", dict(sigma_prior=SIGMA_PRIOR, rank=2, estimator=estimator)
    yield "low_rank", dict(sigma_prior=SIGMA_PRIOR, rank=2, sigma_structure="tied", estimator="flipout")
    yield "deterministic", dict(sigma_prior=SIGMA_PRIOR)
    yield "none", {}
    yield "independent", {}


ROWS = [Row(adapter, kwargs, n_members) for adapter, kwargs in _kwargs() for n_members in (None, 2)]
RESIDUAL_ROWS = [row for row in ROWS if row.has_residual]
NOISY_ROWS = [row for row in ROWS if row.is_noisy]
STOCHASTIC_ROWS = [row for row in ROWS if ADAPTERS[row.adapter].is_stochastic]


def rows(table: list[Row]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a law for every row of the table."""
    return pytest.mark.parametrize("row", table, ids=str)


def inputs(row: Row, n_tasks: int = T) -> th.Tensor:
    """Rows for every task and, where there is an ensemble, for every member: (*K, T, B, I)."""
    return th.randn(*row.members, n_tasks, B, I, generator=th.Generator().manual_seed(1))


def gaussian(layer: TaskLinear) -> GaussianWeight:
    """The Gaussian weight inside a stochastic adapter."""
    (weight,) = (module for module in layer.modules() if isinstance(module, GaussianWeight))
    return weight


def through_v(layer: TaskLinear, variance: th.Tensor) -> th.Tensor:
    """The variance of the residual's outputs, or weights, given that of its Gaussian part."""
    return th.matmul(variance, layer.adapter.v.square()) if row_rank(layer) else variance


def row_rank(layer: TaskLinear) -> int | None:
    """The rank of a residual in factors, ``None`` of one that is not."""
    return layer.adapter.v.shape[-2] if hasattr(layer.adapter, "v") else None


def plain_linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
    """``torch.nn.functional.linear`` for every member and task: weight (*K, T, I, O), bias (*K, T, 1, O)."""
    lead = x.shape[:-2]
    flat = zip(x.flatten(0, -3), weight.flatten(0, -3), bias.flatten(0, -3), strict=True)
    return th.stack([F.linear(rows_, matrix.mT, offset[0]) for rows_, matrix, offset in flat]).unflatten(0, lead)


def per_task(layer: TaskLinear, tensor: th.Tensor) -> th.Tensor:
    """A base weight or bias with its task axis at full length."""
    return tensor.expand(*layer.shape.members, layer.shape.n_tasks, -1, -1)


def draws(layer: TaskLinear, x: th.Tensor, n_draws: int = N_DRAWS) -> th.Tensor:
    """The sampled noise of the output, (n_draws, *K, T, B, O)."""
    th.manual_seed(2)
    with th.no_grad():
        return th.stack([layer(x, sample=True) for _ in range(n_draws)]) - layer(x)


def assert_uncorrelated(first: th.Tensor, second: th.Tensor) -> None:
    """The mean product of two samples is zero within its standard errors, estimated from the sample itself."""
    products = first * second
    standard_error = products.std(0) / math.sqrt(len(products))
    assert (products.mean(0).abs() / standard_error).max() < N_STANDARD_ERRORS


def assert_moments(sample: th.Tensor, mean: th.Tensor, variance: th.Tensor) -> None:
    """A Gaussian sample has this mean and variance, within standard errors."""
    n = len(sample)
    mean_error = (sample.mean(0) - mean) / (variance / n).sqrt()
    variance_error = (sample.var(0) - variance) / (variance * math.sqrt(2 / (n - 1)))
    assert mean_error.abs().max() < N_STANDARD_ERRORS
    assert variance_error.abs().max() < N_STANDARD_ERRORS


# The mean


@rows(ROWS)
def test_the_start_is_a_plain_linear_layer(row: Row) -> None:
    layer, x = row.layer(), inputs(row)
    expected = plain_linear(x, per_task(layer, layer.theta), per_task(layer, layer.bias))
    th.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


@rows(ROWS)
def test_the_merged_weight_gives_the_mean_output(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)
    merged = layer.merged_weight()
    assert merged.shape == (*row.members, T, I, O)
    th.testing.assert_close(layer(x), plain_linear(x, merged, per_task(layer, layer.bias)), atol=1e-6, rtol=1e-5)
    assert th.equal(layer.merged_weight(1), merged[..., 1, :, :])


@rows(ROWS)
def test_inputs_without_an_ensemble_axis_go_to_every_member(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)[(0,) * len(row.members)]
    th.testing.assert_close(layer(x), layer(x.expand(*row.members, -1, -1, -1)), atol=1e-6, rtol=1e-5)


@rows([row for row in ROWS if row.adapter != "independent"])
def test_the_base_is_theta_alone(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)
    expected = plain_linear(x, per_task(layer, layer.theta), per_task(layer, layer.bias))
    th.testing.assert_close(layer.base(x), expected, atol=1e-6, rtol=1e-5)


def test_independent_networks_have_no_base() -> None:
    layer = Row("independent", {}, None).layer()
    with pytest.raises(TypeError, match="no shared base"):
        layer.base(th.zeros(T, B, I))


@rows(ROWS)
def test_permuting_tasks_permutes_outputs(row: Row) -> None:
    layer, x, order = row.trained_layer(), inputs(row), [2, 0, 1]
    outputs, kl, axis = layer(x), layer.adapter.kl_divergence(), len(row.members)
    with th.no_grad():
        for parameter in layer.parameters():
            if parameter.shape[axis] == T:
                parameter.copy_(parameter.index_select(axis, th.tensor(order)))
    assert th.equal(layer(x[..., order, :, :]), outputs[..., order, :, :])
    assert th.equal(layer.adapter.kl_divergence(), kl[..., order])


@rows(ROWS)
def test_one_task_works(row: Row) -> None:
    layer, x = row.trained_layer(n_tasks=1), inputs(row, n_tasks=1)
    th.testing.assert_close(layer(x), plain_linear(x, layer.merged_weight(), layer.bias), atol=1e-6, rtol=1e-5)
    assert layer(x, sample=True).shape == (*row.members, 1, B, O)
    outputs = layer(x)
    layer.recenter()
    assert all(mu.count_nonzero() == 0 for mu in layer.adapter.means())
    th.testing.assert_close(layer(x), outputs, atol=1e-5, rtol=1e-5)


# The noise


@rows(NOISY_ROWS)
def test_sampled_moments_match_the_closed_form(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)
    with th.no_grad():
        variance = through_v(layer, th.matmul(x.square(), gaussian(layer).sigma().square()))
    assert_moments(draws(layer, x), th.zeros_like(variance), variance)


@rows(STOCHASTIC_ROWS)
def test_row_noise_and_its_gradient_are_those_of_the_formula(row: Row) -> None:
    layer, x = row.trained_layer().double(), inputs(row).double().requires_grad_()
    sigma = gaussian(layer).sigma
    size = (*x.shape[:-1], gaussian(layer).shape.out_features)
    mean, direction = th.randn(2, *size, dtype=th.float64).requires_grad_()
    noise = unit_noise(size, x)
    plain = mean + (th.matmul(x.square(), sigma().square()) + TINY_VARIANCE).sqrt() * noise.dense()
    fast = sigma.add_row_noise(mean, x, noise)
    th.testing.assert_close(fast, plain, atol=1e-9, rtol=1e-9)
    leaves = [mean, x, *gaussian(layer).spreads()]
    expected = th.autograd.grad((plain * direction).sum(), leaves)
    th.testing.assert_close(th.autograd.grad((fast * direction).sum(), leaves), expected, atol=1e-9, rtol=1e-9)


@rows(STOCHASTIC_ROWS)
def test_a_row_of_zeros_has_a_finite_gradient(row: Row) -> None:
    layer, x = row.trained_layer(), th.zeros_like(inputs(row)).requires_grad_()
    mean = th.zeros(*x.shape[:-1], gaussian(layer).shape.out_features)
    noisy = gaussian(layer).sigma.add_row_noise(mean, x, unit_noise(tuple(mean.shape), x))
    gradients = th.autograd.grad(noisy.sum(), [x, *gaussian(layer).spreads()])
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("n_tasks", [1, 3])
def test_unit_noise_is_standard_normal_and_independent_within_a_task(n_tasks: int) -> None:
    th.manual_seed(0)
    draw = unit_noise((2, n_tasks, 50_000, 3), th.zeros(())).dense()
    assert kstest(draw[1, -1, :, 0].numpy(), "norm").pvalue > 1e-4
    error = N_STANDARD_ERRORS / math.sqrt(draw.shape[2])
    for task in range(n_tasks):
        columns = draw[0, task]
        assert (columns.T @ columns / len(columns) - th.eye(3)).abs().max() < 2 * error
        assert th.corrcoef(columns.abs().T).fill_diagonal_(0).abs().max() < error


def test_signs_are_fair_and_tell_nothing_of_each_other() -> None:
    th.manual_seed(0)
    signs = random_signs((20_000, 16), th.zeros(()))
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.mean(0).abs().max() < N_STANDARD_ERRORS / math.sqrt(len(signs))
    products = signs.T @ signs / len(signs) - th.eye(16)
    assert products.abs().max() < N_STANDARD_ERRORS / math.sqrt(len(signs))
    assert random_signs((3, 5), th.zeros((), dtype=th.float64)).shape == (3, 5)


@rows(NOISY_ROWS)
def test_rows_and_tasks_draw_their_own_noise_unless_it_is_shared(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)[..., :1, :].expand(*row.members, T, 2, I)
    noise = draws(layer, x)
    assert_uncorrelated(noise[..., 0, :, :], noise[..., 1, :, :])
    if row.kwargs["estimator"] == "shared_noise":
        th.testing.assert_close(noise[..., 0, :], noise[..., 1, :], atol=1e-5, rtol=1e-4)
    else:
        assert_uncorrelated(noise[..., 0, :], noise[..., 1, :])


def test_flipout_flips_the_inputs_and_outputs_of_every_row() -> None:
    """One input: only the outputs' signs can tell outputs apart. One output: only the inputs' can tell rows apart."""
    kwargs = dict(sigma_prior=SIGMA_PRIOR, estimator="flipout")
    th.manual_seed(9)
    x = th.ones(1, 100, I)
    one_input = draws(TaskLinear(1, 2, 1, "varshare", kwargs), x[..., :1], n_draws=1)[0, 0]
    assert 20 < (one_input[:, 0].sign() == one_input[:, 1].sign() * one_input[0].sign().prod()).sum() < 80
    one_output = draws(TaskLinear(I, 1, 1, "varshare", kwargs), x, n_draws=1)[0, 0]
    assert one_output.abs().std() > 0.1 * one_output.abs().mean()


@rows([row for row in NOISY_ROWS if row.n_members])
def test_ensemble_members_draw_independent_noise(row: Row) -> None:
    noise = draws(row.trained_layer(), inputs(row))
    assert noise.std() > 0.01
    assert_uncorrelated(noise[:, 0], noise[:, 1])
    sizes = noise.square() - noise.square().mean(0)  # random signs would hide a common eps
    assert_uncorrelated(sizes[:, 0], sizes[:, 1])


@rows([row for row in ROWS if not row.is_noisy])
def test_without_noise_a_sample_is_the_mean(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)
    assert th.equal(layer(x, sample=True), layer(x))


@rows(ROWS)
def test_noise_depends_on_the_argument_alone(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)

    def outputs(sample: bool, seed: int) -> th.Tensor:
        th.manual_seed(seed)
        return layer(x, sample=sample)

    training = [outputs(sample, seed=3) for sample in (True, False)]
    layer.eval()
    assert all(th.equal(outputs(sample, seed=3), y) for sample, y in zip((True, False), training, strict=True))
    assert th.equal(outputs(False, seed=4), training[1])
    assert th.equal(outputs(True, seed=4), training[0]) is not row.is_noisy


@rows(STOCHASTIC_ROWS)
def test_drawn_residuals_have_the_posteriors_moments(row: Row) -> None:
    layer, task_ids = row.trained_layer(), th.arange(T).repeat_interleave(N_DRAWS)
    th.manual_seed(4)
    with th.no_grad():
        drawn = layer.adapter.draw(task_ids).unflatten(-3, (T, N_DRAWS)).movedim(-3, 0)
        mean = layer.merged_weight() - layer.theta
        variance = through_v(layer, gaussian(layer).sigma().square())
    assert_moments(drawn, mean, variance)


@rows([row for row in ROWS if not ADAPTERS[row.adapter].is_stochastic])
def test_without_a_posterior_there_is_nothing_to_draw(row: Row) -> None:
    with pytest.raises(TypeError, match="no posterior"):
        row.layer().adapter.draw(th.zeros(2, dtype=th.long))


# The KL divergence


def reference_kl(layer: TaskLinear) -> th.Tensor:
    """The KL by ``torch.distributions``, (*K, T)."""
    if isinstance(layer.adapter, Deterministic):  # the mean term alone: the spread is the prior's
        mu, sigma_prior = layer.adapter.mu, layer.adapter.sigma_prior
        sigma = th.full_like(mu, sigma_prior)
    else:
        weight = gaussian(layer)
        mu, sigma, sigma_prior = weight.mu, weight.sigma(), weight.sigma_prior
    return torch_kl(Normal(mu, sigma), Normal(th.zeros_like(mu), th.full_like(mu, sigma_prior))).sum((-2, -1))


@rows(ROWS)
def test_kl_is_zero_at_the_start(row: Row) -> None:
    kl = row.layer().adapter.kl_divergence()
    assert kl.shape == (*row.members, T)
    assert kl.abs().max() < 1e-6


@rows(RESIDUAL_ROWS)
def test_kl_is_that_of_torch_distributions(row: Row) -> None:
    layer = row.trained_layer()
    th.testing.assert_close(layer.adapter.kl_divergence(), reference_kl(layer), atol=1e-4, rtol=1e-5)
    assert layer.adapter.kl_divergence().min() > 1


@rows(ROWS)
def test_the_shares_of_the_kl(row: Row) -> None:
    """That of the means is half their squared length in units of the prior; no spread enters it."""
    layer = row.trained_layer()
    shares = layer.adapter.kl_shares()
    assert th.equal(shares.mean + shares.spread, layer.adapter.kl_divergence())
    assert shares.mean.shape == shares.spread.shape == (*row.members, T)
    with th.no_grad():
        squares = sum(((mu / layer.adapter.sigma_prior) ** 2).sum((-2, -1)) for mu in layer.adapter.means())  # type: ignore[operator]
        th.testing.assert_close(shares.mean, squares / 2 + th.zeros(*row.members, T))
        for mu in layer.adapter.means():
            mu.zero_()
    th.testing.assert_close(layer.adapter.kl_divergence(), shares.spread)
    assert shares.spread.min() >= 0


@rows([row for row in ROWS if not row.has_residual])
def test_kl_is_zero_without_a_residual(row: Row) -> None:
    kl = row.trained_layer().double().adapter.kl_divergence()
    assert kl.count_nonzero() == 0
    assert kl.dtype == th.float64


@rows(RESIDUAL_ROWS)
def test_kl_gradient_is_autograds(row: Row) -> None:
    layer = row.trained_layer().double()
    parameters = [*layer.adapter.means(), *layer.adapter.spreads()]
    weights = th.rand(*row.members, T, dtype=th.float64)
    closed_form = th.autograd.grad((weights * layer.adapter.kl_divergence()).sum(), parameters)
    by_autograd = th.autograd.grad((weights * reference_kl(layer)).sum(), parameters)
    th.testing.assert_close(closed_form, by_autograd, atol=1e-10, rtol=1e-10)


def all_gradients(layer: TaskLinear, loss: th.Tensor) -> dict[str, th.Tensor]:
    """Gradient of a loss by the name of the parameter."""
    names, parameters = zip(*layer.named_parameters(), strict=True)
    return dict(zip(names, th.autograd.grad(loss, parameters, materialize_grads=True), strict=True))


def weighted_kl(layer: TaskLinear, weights: KLWeights) -> th.Tensor:
    """Of all tasks and members: the means' share by the residual's energy, the rest of the KL is the spreads'."""
    kl, means = layer.adapter.kl_divergence(), th.zeros(())
    for module in layer.modules():
        if hasattr(module, "mu"):
            means = module.mu.square().sum((-2, -1)) / (2 * module.sigma_prior**2)
    return (weights.mean * means + weights.spread * (kl - means)).sum()


@rows(ROWS)
def test_kl_weights_add_the_gradient_of_the_kl(row: Row) -> None:
    layer, x = row.trained_layer().double(), inputs(row).double()
    weights = KLWeights(*th.rand(2, T, dtype=th.float64))
    th.manual_seed(6)
    in_the_loss = layer(x, sample=True).square().sum() + weighted_kl(layer, weights)
    th.manual_seed(6)
    pulled = layer(x, sample=True, kl_weights=weights).square().sum()
    expected, found = all_gradients(layer, in_the_loss), all_gradients(layer, pulled)
    for name, gradient in expected.items():
        if row.kwargs.get("estimator") == "mean" and "rho" in name:
            assert found[name].count_nonzero() == 0  # nothing is drawn, so the spread is not trained
        else:
            th.testing.assert_close(found[name], gradient, atol=1e-9, rtol=1e-9)


@rows(RESIDUAL_ROWS)
def test_in_float32_the_pull_at_the_start_is_next_to_nothing(row: Row) -> None:
    layer, x = row.layer(), inputs(row)
    loss = 0 * layer(x, sample=True, kl_weights=KLWeights(th.ones(T), th.ones(T))).sum()
    for name, gradient in all_gradients(layer, loss).items():
        assert gradient.abs().max() < 1e-4, name


@rows(ROWS)
def test_the_kl_pulls_on_the_residual_alone(row: Row) -> None:
    """``loss = beta mean_t(KL_t / n_t)``: nothing on theta, exactly ``beta mu / (T n_t sigma_prior^2)`` on mu."""
    beta, n_t = 0.7, th.tensor([10.0, 20.0, 50.0], dtype=th.float64)
    layer = row.trained_layer().double()
    loss = beta * (layer.adapter.kl_divergence() / n_t).mean(-1).sum() + 0 * layer.theta.sum()
    loss.backward()
    assert layer.theta.grad is not None and layer.theta.grad.count_nonzero() == 0
    assert layer.bias.grad is None
    for mu in layer.adapter.means():
        owner = layer.adapter if isinstance(layer.adapter, Deterministic) else gaussian(layer)
        th.testing.assert_close(mu.grad, beta * mu.detach() / (T * n_t[:, None, None] * owner.sigma_prior**2))


# Gradients


def task_gradients(layer: TaskLinear) -> list[th.Tensor]:
    """Gradients of the per-task tensors with their task axis in front."""
    axis = len(layer.shape.members)
    tensors = [parameter for parameter in layer.parameters() if parameter.shape[axis] == T]
    assert all(parameter.grad is not None for parameter in tensors)
    return [parameter.grad.movedim(axis, 0) for parameter in tensors if parameter.grad is not None]


@rows([row for row in ROWS if row.adapter != "none"])
def test_a_tasks_loss_moves_no_other_tasks_parameters(row: Row) -> None:
    layer, x, task = row.trained_layer(), inputs(row), 1
    loss = layer(x, sample=True)[..., task, :, :].square().sum() + layer.adapter.kl_divergence()[..., task].sum()
    (loss + 0 * sum(p.sum() for p in layer.parameters())).backward()
    gradients = task_gradients(layer)
    assert gradients
    for gradient in gradients:
        assert gradient[task].abs().max() > 1e-6
        assert gradient[[0, 2]].count_nonzero() == 0


@rows([row for row in ROWS if row.n_members])
def test_a_members_loss_moves_no_other_members_parameters(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)
    (layer(x, sample=True)[0].square().sum() + layer.adapter.kl_divergence()[0].sum()).backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    assert all(gradient is not None and gradient[1].count_nonzero() == 0 for gradient in gradients)
    assert layer.theta.grad is not None and layer.theta.grad[0].abs().max() > 1e-3


@rows(ROWS)
def test_a_row_of_zeros_gives_finite_gradients(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)
    x[..., 0, :] = 0
    x.requires_grad_()
    layer(x, sample=True).square().sum().backward()
    gradients = [x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert layer.theta.grad is not None and layer.theta.grad.abs().max() > 0


@rows(ROWS)
def test_two_calls_before_the_backward_pass_do_not_disturb_each_other(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)
    th.manual_seed(5)
    together = [layer(batch, sample=True).square().sum() for batch in (x, 2 * x)]
    th.stack(together).sum().backward()
    expected = [copy.deepcopy(parameter.grad) for parameter in layer.parameters()]
    layer.zero_grad()
    th.manual_seed(5)
    for batch in (x, 2 * x):
        layer(batch, sample=True).square().sum().backward()
    separate = [parameter.grad for parameter in layer.parameters()]
    th.testing.assert_close(separate, expected, atol=1e-4, rtol=1e-5)


# Re-centring


@rows(ROWS)
@pytest.mark.parametrize("weights", [None, th.tensor([1.0, 5.0, 0.1])], ids=["plain", "weighted"])
def test_recentring_changes_no_output_and_never_raises_the_kl(row: Row, weights: th.Tensor | None) -> None:
    layer, x = row.trained_layer(), inputs(row)
    shares = th.ones(T) if weights is None else weights

    def state() -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        th.manual_seed(6)
        return layer(x), layer(x, sample=True), (shares * layer.adapter.kl_divergence()).sum(-1)

    with th.no_grad():
        mean, sampled, kl = state()
        layer.recenter(weights)
        mean_after, sampled_after, kl_after = state()
    th.testing.assert_close((mean_after, sampled_after), (mean, sampled), atol=1e-5, rtol=1e-4)
    assert (kl_after <= kl + 1e-4).all()
    assert (kl_after < kl - 0.1).all() or not row.has_residual


@rows(RESIDUAL_ROWS)
@pytest.mark.parametrize("weights", [None, th.tensor([1.0, 5.0, 0.1])], ids=["plain", "weighted"])
def test_after_recentring_the_mean_over_the_tasks_is_zero(row: Row, weights: th.Tensor | None) -> None:
    """The optimum over all shifts: there is no better one, so a second step has nothing left to move."""
    layer = row.trained_layer()
    layer.recenter(weights)
    shares = th.ones(T) if weights is None else weights
    for mu in layer.adapter.means():
        assert (mu * shares[:, None, None]).sum(-3).abs().max() < 1e-5


@rows([row for row in ROWS if not row.has_residual])
def test_recentring_is_a_no_op_where_nothing_is_shared_or_nothing_differs(row: Row) -> None:
    layer = row.trained_layer()
    before = copy.deepcopy(layer.state_dict())
    layer.recenter()
    layer.recenter(th.tensor([1.0, 5.0, 0.1]))
    assert all(th.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


# Copies


def assert_same_layer(layer: TaskLinear, other: TaskLinear, x: th.Tensor) -> None:
    """Equal to the last bit: mean, sample under one seed, KL."""
    for sample in (False, True):
        th.manual_seed(7)
        expected = layer(x, sample=sample)
        th.manual_seed(7)
        assert th.equal(other(x, sample=sample), expected)
    assert th.equal(other.adapter.kl_divergence(), layer.adapter.kl_divergence())


@rows(ROWS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_equal_and_independent(row: Row, duplicate: Callable[[TaskLinear], TaskLinear]) -> None:
    layer, x = row.trained_layer(), inputs(row)
    other = duplicate(layer)
    assert_same_layer(layer, other, x)
    with th.no_grad():
        other.theta.add_(1)
    assert not th.allclose(other(x), layer(x))


@rows(ROWS)
def test_the_state_dict_holds_all_that_is_learned(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)
    th.manual_seed(8)
    other = TaskLinear(I, O, T, row.adapter, row.kwargs, row.n_members)
    assert not th.allclose(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert_same_layer(layer, other, x)


@rows(ROWS)
def test_double_precision_and_back(row: Row) -> None:
    layer, x = row.trained_layer(), inputs(row)
    expected = copy.deepcopy(layer)
    layer.double()
    assert layer(x.double(), sample=True).dtype == th.float64
    assert layer.adapter.kl_divergence().dtype == th.float64
    th.testing.assert_close(layer(x.double()).float(), expected(x), atol=1e-5, rtol=1e-5)
    assert_same_layer(expected, layer.float(), x)


# Networks of such layers


@rows(ROWS)
def test_the_averaged_copy_is_the_mean_network(row: Row) -> None:
    net, x = row.trained_net(), inputs(row)
    average = net.averaged_copy()
    th.testing.assert_close(average(x), net(x), atol=1e-5, rtol=1e-4)
    assert th.equal(average(x, sample=True), average(x))
    assert not any(parameter.requires_grad for parameter in average.parameters())


@rows(ROWS)
def test_recentring_never_touches_the_averaged_copy(row: Row) -> None:
    net, x = row.trained_net(), inputs(row)
    average = net.averaged_copy()
    before = average(x)
    net.recenter()
    assert th.equal(average(x), before)
    with th.no_grad():  # a Polyak step with tau = 1
        for target, source in zip(average.averaged_tensors(), net.averaged_tensors(), strict=True):
            target.lerp_(source, 1.0)
    th.testing.assert_close(average(x), before, atol=1e-4, rtol=1e-4)


@rows(ROWS)
def test_the_averaged_copy_follows_by_polyak_steps(row: Row) -> None:
    net, x, tau = row.trained_net(), inputs(row), 0.25
    average = net.averaged_copy()
    start = [tensor.clone() for tensor in average.averaged_tensors()]
    with th.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
        for target, source in zip(average.averaged_tensors(), net.averaged_tensors(), strict=True):
            target.lerp_(source, tau)
        moved = list(net.averaged_tensors())
    expected = [(1 - tau) * old + tau * new for old, new in zip(start, moved, strict=True)]
    th.testing.assert_close(average.averaged_tensors(), expected)
    assert not th.allclose(average(x), net(x), atol=1e-3)


@rows(ROWS)
def test_task_and_shared_parameters_partition_all(row: Row) -> None:
    net, axis = row.trained_net(), len(row.members)
    task, shared = list(net.task_parameters()), list(net.shared_parameters())
    assert sorted(map(id, (*task, *shared))) == sorted(map(id, net.parameters()))
    assert all(parameter.shape[axis] == T for parameter in task)
    assert all(parameter.shape[axis] == 1 for parameter in shared)
    n_plain = 2 * (4 + 3)  # weight and bias of four linear layers and three LayerNorms
    assert len(shared) == {"independent": 0, "low_rank": n_plain + 4}.get(row.adapter, n_plain)


@rows(RESIDUAL_ROWS)
def test_means_and_spreads_are_the_task_parameters(row: Row) -> None:
    net = row.trained_net()
    assert {id(p) for p in (*net.means(), *net.spreads())} == {id(p) for p in net.task_parameters()}
    per_layer = {"full": 1, "tied": 2, "fixed": 0}
    expected = per_layer[row.kwargs.get("sigma_structure", "full")] if row.adapter != "deterministic" else 0
    assert len(list(net.spreads())) == 4 * expected


# What is logged


@rows(ROWS)
def test_the_mean_residual_is_the_distance_to_the_base(row: Row) -> None:
    layer = row.trained_layer()
    mean, squared = layer.adapter.mean_residual(), layer.adapter.squared_residual()
    assert (layer.adapter.sigma_prior is not None) == row.has_residual
    if not row.has_residual:
        assert mean is None and squared is None
        return
    assert mean is not None and squared is not None
    expected = layer.merged_weight() - layer.theta
    th.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-5)
    th.testing.assert_close(squared, expected.square().sum((-2, -1)))


@rows(ROWS)
def test_the_residuals_sigma_is_that_of_its_draws(row: Row) -> None:
    """Which have it by ``test_drawn_residuals_have_the_posteriors_moments``; at the start the prior's, in the mean."""
    layer = row.trained_layer()
    sigma = layer.adapter.residual_sigma()
    if not ADAPTERS[row.adapter].is_stochastic:
        assert sigma is None
        return
    assert sigma is not None and sigma.shape == (*row.members, T, I, O)
    th.testing.assert_close(sigma.square(), through_v(layer, gaussian(layer).sigma().square()))
    assert layer.adapter.sigma_prior == gaussian(layer).sigma_prior


@rows(ROWS)
def test_relative_sigma_starts_at_one(row: Row) -> None:
    layer = row.layer()
    relative = layer.adapter.relative_sigma()
    if not ADAPTERS[row.adapter].is_stochastic:
        assert relative is None
        return
    assert relative is not None
    th.testing.assert_close(relative, th.ones(*row.members, T))
    move(layer.adapter)
    weight = gaussian(layer)
    th.testing.assert_close(layer.adapter.relative_sigma(), weight.sigma().mean((-2, -1)) / weight.sigma_prior)


# Bad input


@pytest.mark.parametrize("name", ["varshare", "low_rank", "deterministic"])
@pytest.mark.parametrize("sigma_prior", [0.0, -0.1, float("nan"), float("inf")])
def test_the_priors_standard_deviation_must_be_positive(name: str, sigma_prior: float) -> None:
    with pytest.raises(ValueError, match=f"sigma_prior must be a positive.*got {sigma_prior}"):
        TaskLinear(I, O, T, name, dict(sigma_prior=sigma_prior))


@pytest.mark.parametrize("name", ["varshare", "low_rank", "deterministic"])
def test_an_unknown_prior_scale_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"prior_scale must be 'relative' or 'absolute', got 'log'"):
        TaskLinear(I, O, T, name, dict(prior_scale="log"))


@pytest.mark.parametrize("name", ["varshare", "low_rank"])
@pytest.mark.parametrize(
    ("argument", "known"), [("estimator", sorted(ESTIMATORS)), ("sigma_structure", sorted(SIGMA_STRUCTURES))]
)
def test_an_unknown_choice_lists_the_known_ones(name: str, argument: str, known: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        TaskLinear(I, O, T, name, {argument: "wrong"})
    assert str(error.value) == f"{argument} must be one of {known}, got 'wrong'."


def test_an_unknown_adapter_gets_a_hint() -> None:
    with pytest.raises(ValueError) as error:
        TaskLinear(I, O, T, "varshar")
    assert str(error.value) == f"adapter must be one of {sorted(ADAPTERS)}, got 'varshar'. Did you mean 'varshare'?"
    with pytest.raises(ValueError, match=r"got 'xyz'\.$"):
        TaskLinear(I, O, T, "xyz")


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_unknown_argument_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=rf"adapter '{name}' takes the arguments .*, got also \['sigma'\]"):
        TaskLinear(I, O, T, name, dict(sigma=0.1))


def test_the_rank_must_be_positive_and_is_capped() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        TaskLinear(I, O, T, "low_rank", dict(rank=0))
    assert row_rank(TaskLinear(I, O, T, "low_rank", dict(rank=99))) == min(I, O)


# The prior's scale and the numbers behind it


@pytest.mark.parametrize("value", [1e-8, 1e-3, 0.2, 1.0, 40.0])
def test_softplus_of_its_inverse_is_the_identity(value: float) -> None:
    result = F.softplus(th.tensor(inverse_softplus(value), dtype=th.float64)).item()
    assert result == pytest.approx(value, rel=1e-8)


@rows(STOCHASTIC_ROWS)
def test_sigma_starts_at_the_prior_in_either_scale(row: Row) -> None:
    relative = SIGMA_PRIOR * math.sqrt(2) / math.sqrt(max(I, O))
    for scale, expected in (("relative", relative), ("absolute", SIGMA_PRIOR)):
        weight = gaussian(row._replace(kwargs=row.kwargs | dict(prior_scale=scale)).layer())
        assert weight.sigma_prior == pytest.approx(expected, rel=1e-12)
        th.testing.assert_close(weight.sigma(), th.full_like(weight.mu, expected))


def test_kl_by_hand() -> None:
    """mu = sigma_prior and sigma = sigma_prior / 2 cost log 2 + 1/8 nats per weight."""
    layer = TaskLinear(I, O, T, "varshare", dict(sigma_prior=0.2, prior_scale="absolute")).double()
    weight = gaussian(layer)
    with th.no_grad():
        weight.mu.fill_(0.2)
        next(weight.spreads()).fill_(inverse_softplus(0.1))
    expected = I * O * (math.log(2) + 1 / 8)
    th.testing.assert_close(layer.adapter.kl_divergence(), th.full((T,), expected, dtype=th.float64))
