"""BroNet against a plain PyTorch network, and what it adds to one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch as th
from torch import nn

from sb3_varshare.adapters import ADAPTERS
from sb3_varshare.networks import BroNet, TaskLinear
from sb3_varshare.networks.task_linear import TaskLayerNorm

T, B, IN, OUT, WIDTH, DEPTH = 3, 5, 6, 4, 8, 2


def make_net(adapter: str = "varshare", n_members: int | None = None, **kwargs: Any) -> BroNet:
    """A network with residuals that differ by task and LayerNorms that are not the identity."""
    th.manual_seed(0)
    net = BroNet(IN, OUT, WIDTH, DEPTH, T, adapter, kwargs, n_members)
    with th.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    return net


def inputs() -> th.Tensor:
    return th.randn(T, B, IN, generator=th.Generator().manual_seed(1))


def plain_linear(weight: th.Tensor, bias: th.Tensor) -> nn.Linear:
    layer = nn.Linear(*weight.shape, dtype=weight.dtype)
    layer.load_state_dict({"weight": weight.detach().T, "bias": bias.detach()})
    return layer


def plain_norm(norm: TaskLayerNorm, index: tuple[int, ...]) -> nn.LayerNorm:
    plain = nn.LayerNorm(norm.weight.shape[-1], eps=1e-6, dtype=norm.weight.dtype)
    weight, bias = (tensor.expand(*tensor.shape[:-3], T, 1, -1)[index][0] for tensor in (norm.weight, norm.bias))
    plain.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return plain


class PlainBlock(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        first, norm, second, last_norm = layers
        self.inner = nn.Sequential(first, norm, nn.ReLU(), second, last_norm)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x + self.inner(x)


def plain_net(net: BroNet, index: tuple[int, ...], weights: list[th.Tensor] | None = None) -> nn.Sequential:
    """
    The network of one member and task, of PyTorch's own layers.

    :param net: where the parameters come from
    :param index: member, if there is an ensemble, and task
    :param weights: (I, O) of each linear layer; ``None`` for the merged ones
    """
    task_linears = list(net.linears())
    weights = [layer.merged_weight()[index] for layer in task_linears] if weights is None else weights
    biases = [layer.bias.expand(*layer.shape.members, T, 1, -1)[index][0] for layer in task_linears]
    linears = [plain_linear(*pair) for pair in zip(weights, biases, strict=True)]
    norms = [plain_norm(module, index) for module in net.modules() if isinstance(module, TaskLayerNorm)]
    blocks = [
        PlainBlock(linears[1 + 2 * i], norms[1 + 2 * i], linears[2 + 2 * i], norms[2 + 2 * i]) for i in range(DEPTH)
    ]
    return nn.Sequential(linears[0], norms[0], nn.ReLU(), *blocks, linears[-1])


# fmt: off
SNIPPET = """
from sb3_varshare.networks import BroNet
net = BroNet(in_features=6, out_features=1, width=64, depth=1, n_tasks=6,
             adapter="varshare", adapter_kwargs=dict(sigma_prior=0.3, estimator="flipout"))
y = net(x, sample=True)            # x (T, B, in_features) -> (T, B, out_features)
y0 = net.base(x)                   # phi = 0: the shared base alone
net.kl_divergence()                # (T,) nats, summed over all layers and weights
net.recenter()                     # predictions unchanged, sum of KLs not larger
"""
# fmt: on


def test_the_snippet_without_reinforcement_learning() -> None:
    th.manual_seed(0)
    names: dict[str, Any] = {"x": th.randn(6, 7, 6)}
    exec(SNIPPET, names)
    net, x, y, y0 = (names[name] for name in ("net", "x", "y", "y0"))
    assert y.shape == y0.shape == (6, 7, 1)
    assert not th.allclose(y, y0)
    th.testing.assert_close(net(x), y0)  # at the start every task is the base
    assert net.kl_divergence().shape == (6,) and net.kl_divergence().abs().max() < 1e-6
    with th.no_grad():
        for mu in net.means():
            mu.add_(0.1 + 0.1 * th.randn_like(mu))
    before, kl = net(x), net.kl_divergence()
    net.recenter()
    th.testing.assert_close(net(x), before, atol=1e-4, rtol=1e-4)
    assert net.kl_divergence().sum() < kl.sum()


@pytest.mark.parametrize("n_members", [None, 2])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_plain_network_gives_the_same(adapter: str, n_members: int | None) -> None:
    net, x = make_net(adapter, n_members).double(), inputs().double()
    outputs = net(x)
    members = () if n_members is None else (n_members,)
    assert outputs.shape == (*members, T, B, OUT)
    for index in th.cartesian_prod(*(th.arange(n) for n in (*members, T))).reshape(-1, len(members) + 1).tolist():
        expected = plain_net(net, tuple(index))(x[index[-1]])
        th.testing.assert_close(outputs[tuple(index)], expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("n_members", [None, 2])
def test_without_an_output_layer_the_features_come_out(n_members: int | None) -> None:
    net = BroNet(IN, None, WIDTH, 1, T, "none", n_members=n_members)
    assert len(list(net.linears())) == 3
    assert net(inputs()).shape == (*(() if n_members is None else (n_members,)), T, B, WIDTH)


def test_inputs_with_an_ensemble_axis_go_to_their_member() -> None:
    net = make_net(n_members=2)
    x = th.randn(2, T, B, IN)
    outputs = net(x)
    for k in range(2):
        th.testing.assert_close(outputs[k], net(x[k])[k], atol=1e-6, rtol=1e-6)


def test_the_kl_is_summed_over_layers_and_members() -> None:
    net = make_net(n_members=2)
    expected = sum((layer.adapter.kl_divergence() for layer in net.linears()), th.zeros(2, T)).sum(0)
    th.testing.assert_close(net.kl_divergence(), expected)
    assert net.kl_divergence().shape == (T,)


@pytest.mark.parametrize("adapter", ["varshare", "low_rank"])
def test_given_residuals_equal_merging_by_hand(adapter: str) -> None:
    net, task_ids = make_net(adapter).double(), th.tensor([2, 0, 0, 1])
    x = th.randn(4, 1, IN, dtype=th.float64)
    residuals = net.draw(task_ids)
    outputs = net.with_residuals(x, residuals)
    assert outputs.shape == (4, 1, OUT)
    for row, task in enumerate(task_ids.tolist()):
        weights = [layer.theta[0] + phi[row] for layer, phi in zip(net.linears(), residuals, strict=True)]
        th.testing.assert_close(outputs[row], plain_net(net, (task,), weights)(x[row]), atol=1e-12, rtol=1e-10)
    assert not th.allclose(residuals[0][1], residuals[0][2])  # the same task twice: two draws


@pytest.mark.parametrize("adapter", ["varshare", "low_rank"])
def test_every_member_has_its_own_of_the_given_residuals(adapter: str) -> None:
    """A batch for each of two draws of one task: the mean residuals as draws give the mean output."""
    net = make_net(adapter, n_members=2).double()
    x = th.randn(2, 5, IN, dtype=th.float64)
    drawn = net.draw(th.tensor([1, 1]))
    outputs = net.with_residuals(x, drawn)
    assert outputs.shape == (2, 2, 5, OUT) and drawn[0].shape[:2] == (2, 2)
    assert not th.allclose(drawn[0][:, 0], drawn[0][:, 1])
    for number in range(2):
        one = net.with_residuals(x[number : number + 1], [residual[:, number : number + 1] for residual in drawn])
        th.testing.assert_close(outputs[:, number], one[:, 0], atol=1e-12, rtol=1e-10)
    means = [layer.adapter.mean_residual()[:, [1, 1]] for layer in net.linears()]  # type: ignore[index]
    expected = th.stack([net(rows.expand(T, -1, -1))[:, 1] for rows in x], 1)
    th.testing.assert_close(net.with_residuals(x, means), expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("adapter", ["varshare", "none"])
def test_layers_are_named_in_the_order_in_which_they_are_applied(adapter: str) -> None:
    net = make_net(adapter)
    names, layers = zip(*net.named_linears(), strict=True)
    blocks = [f"blocks.{block}.{name}" for block in range(DEPTH) for name in ("linear_in", "linear_out")]
    assert list(names) == ["linear_in", *blocks, "linear_out"]
    applied: list[th.nn.Module] = []
    net.run(inputs(), lambda layer, x: (applied.append(layer), layer(x))[1])
    assert list(layers) == applied == list(net.linears())


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2)])
@pytest.mark.parametrize(("inputs_", "outputs"), [(6, 32), (32, 32), (32, 1)])
def test_the_relative_prior_is_in_units_of_the_initial_weights(inputs_: int, outputs: int, gain: float) -> None:
    layer = TaskLinear(inputs_, outputs, T, "varshare", dict(sigma_prior=0.3), gain=gain)
    expected = 0.3 * gain / math.sqrt(max(inputs_, outputs))
    (sigma_prior,) = {m.sigma_prior for m in layer.modules() if hasattr(m, "sigma_prior")}
    assert sigma_prior == pytest.approx(expected, rel=1e-12)
    assert 0.3 * layer.theta.square().mean().sqrt().item() == pytest.approx(expected, rel=1e-5)


def test_every_layer_of_a_network_has_its_own_prior() -> None:
    net = BroNet(IN, OUT, WIDTH, 1, T, "deterministic", dict(sigma_prior=0.3))
    priors = [layer.adapter.sigma_prior for layer in net.linears()]
    assert priors == pytest.approx([0.3 * math.sqrt(2 / WIDTH)] * 4)
    wide = BroNet(IN, 100, WIDTH, 0, T, "deterministic", dict(sigma_prior=0.3))
    assert [layer.adapter.sigma_prior for layer in wide.linears()] == pytest.approx(
        [0.3 * math.sqrt(2 / WIDTH), 0.3 * math.sqrt(2 / 100)]
    )


@pytest.mark.parametrize("n_members", [None, 2])
@pytest.mark.parametrize("adapter", ["varshare", "independent"])
def test_scaling_the_output(adapter: str, n_members: int | None) -> None:
    net = BroNet(IN, OUT, WIDTH, DEPTH, T, adapter, n_members=n_members)
    x, bias = inputs(), th.arange(OUT, dtype=th.float32)
    before = net(x)
    net.scale_output(0.01, bias)
    th.testing.assert_close(net(x), 0.01 * before + bias, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("adapter", "n_task_numbers"),  # per weight of a (width, width) layer
    [("varshare", 2 * T), ("low_rank", 0), ("deterministic", T), ("none", 0), ("independent", T)],
)
def test_the_meta_device_counts_without_memory(adapter: str, n_task_numbers: int) -> None:
    width = 1 << 14
    with th.device("meta"):
        net = BroNet(IN, OUT, width, 1, T, adapter, n_members=2)
    assert all(parameter.is_meta for parameter in net.parameters())
    square = [parameter for parameter in net.task_parameters() if parameter.shape[-2:] == (width, width)]
    assert sum(parameter.numel() for parameter in square) == 2 * (2 * width**2) * n_task_numbers


def test_the_ensemble_draws_its_members_apart() -> None:
    net = BroNet(IN, OUT, WIDTH, 1, T, "none", n_members=2)
    for layer in net.linears():
        assert not th.allclose(layer.theta[0], layer.theta[1])


def _load_member(net: BroNet, ensemble: BroNet, member: int) -> None:
    net.load_state_dict({name: tensor[member] for name, tensor in ensemble.state_dict().items()})


def _train(net: BroNet, x: th.Tensor, y: th.Tensor, kl_weights: th.Tensor, n_steps: int) -> None:
    """Adam on the squared error plus the members' own KL weights, (*K, 1)."""
    optimizer = th.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(n_steps):
        kl = th.stack([layer.adapter.kl_divergence() for layer in net.linears()]).sum(0)
        loss = (net(x) - y).square().mean((-3, -2, -1)).sum() + (kl_weights * kl).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.recenter()


@pytest.mark.parametrize("adapter", ["varshare", "low_rank", "deterministic", "none", "independent"])
def test_ensemble_members_train_as_they_would_alone(adapter: str) -> None:
    """Losses summed over members and an elementwise optimizer: independent problems fit into one network."""
    ensemble = make_net(adapter, n_members=2).double()
    alone = [make_net(adapter).double() for _ in range(2)]
    for k, net in enumerate(alone):
        _load_member(net, ensemble, k)
    x, y = th.randn(2, T, B, IN, dtype=th.float64), th.randn(2, T, B, OUT, dtype=th.float64)
    kl_weights = th.tensor([[1e-3], [1e-1]], dtype=th.float64)
    start = ensemble(x)
    _train(ensemble, x, y, kl_weights, n_steps=20)
    outputs = ensemble(x)
    for k, net in enumerate(alone):
        _train(net, x[k], y[k], kl_weights[k], n_steps=20)
        th.testing.assert_close(net(x[k]), outputs[k], atol=1e-9, rtol=1e-9)
    assert (outputs - start).abs().mean() > 0.1
