"""A pruned layer is the deterministic layer whose other means are zero, in what it computes and in its gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch as th

from sb3_varshare.adapters import KLWeights
from sb3_varshare.adapters.deterministic import Deterministic
from sb3_varshare.adapters.sparse import Sparse
from sb3_varshare.networks import BroNet, TaskLinear
from sb3_varshare.networks.task_linear import AveragedLinear

T, B, I, O = 3, 4, 5, 4  # noqa: E741
WEIGHTS = KLWeights(th.tensor([0.1, 0.2, 0.4], dtype=th.float64), th.ones(T, dtype=th.float64))
MEMBERS = pytest.mark.parametrize("n_members", [None, 2])


def make_pair(n_members: int | None, n_tasks: int = T, share: float = 0.2) -> tuple[TaskLinear, TaskLinear]:
    """The same layer twice: deterministic with most means at zero, and sparse."""
    th.manual_seed(0)
    dense = TaskLinear(I, O, n_tasks, "deterministic", {"sigma_prior": 0.3}, n_members).double()
    assert isinstance(dense.adapter, Deterministic)
    with th.no_grad():
        dense.bias.normal_()
        dense.adapter.mu.normal_().mul_(th.rand_like(dense.adapter.mu) < share)
    mu = dense.adapter.mu.detach()
    positions = mu.flatten().nonzero()[:, 0]
    sparse = copy.deepcopy(dense)
    sparse.adapter = Sparse(dense.shape, dense.adapter.sigma_prior, positions, mu.flatten()[positions]).double()
    return dense, sparse


def adapter_of(layer: TaskLinear) -> Sparse:
    assert isinstance(layer.adapter, Sparse)
    return layer.adapter


def inputs(layer: TaskLinear) -> th.Tensor:
    size = (*layer.shape.members, layer.shape.n_tasks, B, I)
    return th.randn(size, generator=th.Generator().manual_seed(1), dtype=th.float64)


@MEMBERS
@pytest.mark.parametrize("n_tasks", [1, T])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_all_that_it_computes_is_that_of_the_deterministic_layer(
    n_members: int | None, n_tasks: int, share: float
) -> None:
    dense, sparse = make_pair(n_members, n_tasks, share)
    x = inputs(dense)
    th.testing.assert_close(sparse(x), dense(x))
    assert th.equal(sparse(x, sample=True), sparse(x))
    th.testing.assert_close(sparse.base(x), dense.base(x))
    th.testing.assert_close(sparse.merged_weight(), dense.merged_weight())
    for of_dense, of_sparse in (
        (dense.adapter.kl_divergence(), sparse.adapter.kl_divergence()),
        (dense.adapter.squared_residual(), sparse.adapter.squared_residual()),
    ):
        assert of_sparse.shape == (*dense.shape.members, n_tasks)
        th.testing.assert_close(of_sparse, of_dense)
    assert sparse.adapter.relative_sigma() is None


@MEMBERS
@pytest.mark.parametrize("n_tasks", [1, T])
@pytest.mark.parametrize("pulled", [False, True])
def test_gradients_are_those_of_the_deterministic_layer(n_members: int | None, n_tasks: int, pulled: bool) -> None:
    dense, sparse = make_pair(n_members, n_tasks)
    x, weights = inputs(dense), KLWeights(WEIGHTS.mean[:n_tasks], WEIGHTS.spread[:n_tasks]) if pulled else None
    for layer in (dense, sparse):
        layer(x, sample=True, kl_weights=weights).square().sum().backward()
    th.testing.assert_close(sparse.theta.grad, dense.theta.grad)
    th.testing.assert_close(sparse.bias.grad, dense.bias.grad)
    assert isinstance(dense.adapter, Deterministic) and dense.adapter.mu.grad is not None
    adapter = adapter_of(sparse)
    th.testing.assert_close(adapter.values.grad, dense.adapter.mu.grad.flatten()[adapter.positions])


@MEMBERS
def test_the_pull_is_the_gradient_of_the_weighted_kl(n_members: int | None) -> None:
    _, layer = make_pair(n_members)
    adapter = adapter_of(layer)
    (expected,) = th.autograd.grad((WEIGHTS.mean * adapter.kl_divergence()).sum(), [adapter.values])
    (found,) = th.autograd.grad(0 * layer(inputs(layer), sample=True, kl_weights=WEIGHTS).sum(), [adapter.values])
    th.testing.assert_close(found, expected)


@MEMBERS
def test_a_tasks_loss_moves_no_other_tasks_values(n_members: int | None) -> None:
    _, layer = make_pair(n_members, share=0.5)
    adapter = adapter_of(layer)
    (layer(inputs(layer), sample=True)[..., 1, :, :].square().sum() + adapter.kl_divergence()[..., 1].sum()).backward()
    own = adapter.matrix_ids() % T == 1
    assert adapter.values.grad is not None
    assert adapter.values.grad[own].abs().min() > 0 and own.any()
    assert adapter.values.grad[~own].count_nonzero() == 0 and (~own).any()


def test_counts_by_hand() -> None:
    """Two members, two tasks, matrices of 2 x 3: positions 0 to 5 are member 0, task 0; 6 to 11 its task 1."""
    _, layer = make_pair(2)
    shape = layer.shape._replace(n_tasks=2, in_features=2, out_features=3)
    adapter = Sparse(shape, 0.5, th.tensor([0, 5, 6, 18, 20, 23]), th.tensor([1.0, 2.0, 3.0, 0.0, 4.0, 1.0]))
    assert adapter.kept_per_task().tolist() == [[2, 1], [0, 3]]
    assert adapter.squared_residual().tolist() == [[5.0, 9.0], [0.0, 17.0]]
    assert adapter.kl_divergence().tolist() == [[10.0, 18.0], [0.0, 34.0]]
    merged = adapter.merged_weight(th.zeros(2, 1, 2, 3))
    assert merged[0, 0].tolist() == [[1, 0, 0], [0, 0, 2]]
    assert merged[1, 1].tolist() == [[0, 0, 4], [0, 0, 1]]


@MEMBERS
def test_recentring_does_nothing(n_members: int | None) -> None:
    _, layer = make_pair(n_members)
    before = copy.deepcopy(layer.state_dict())
    layer.recenter()
    assert all(th.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


@MEMBERS
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_equal_and_independent(n_members: int | None, duplicate: Callable[[TaskLinear], TaskLinear]) -> None:
    _, layer = make_pair(n_members)
    x, other = inputs(layer), duplicate(layer)
    assert th.equal(other(x), layer(x))
    with th.no_grad():
        adapter_of(other).values.add_(1)
    assert not th.allclose(other(x), layer(x))


@MEMBERS
def test_the_state_dict_holds_positions_and_values(n_members: int | None) -> None:
    _, layer = make_pair(n_members)
    n_kept, x = len(adapter_of(layer).values), inputs(layer)
    other = copy.deepcopy(layer)
    other.adapter = Sparse(layer.shape, 0.3, th.arange(n_kept), th.zeros(n_kept)).double()
    assert not th.allclose(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert th.equal(other(x), layer(x))


@pytest.mark.parametrize("positions", [[0, 2, 1], [0, 1, 1], [-1, 0, 1], [0, 1, T * I * O]])
def test_positions_that_cannot_be_are_refused(positions: list[int]) -> None:
    _, layer = make_pair(None)
    layer.adapter = Sparse(layer.shape, 0.3, th.arange(3), th.zeros(3))
    state = layer.state_dict() | {"adapter.positions": th.tensor(positions)}
    with pytest.raises(ValueError, match=r"adapter\.positions must ascend between 0 and 59"):
        layer.load_state_dict(state)


def test_positions_take_four_bytes() -> None:
    _, layer = make_pair(2)
    assert adapter_of(layer).positions.dtype == th.int32
    wide = layer.shape._replace(n_tasks=200, in_features=4096, out_features=4096)
    assert Sparse(wide, 0.3, th.arange(3), th.zeros(3)).positions.dtype == th.int64


def test_there_is_no_posterior_to_draw_from() -> None:
    with pytest.raises(TypeError, match="Sparse has no posterior"):
        make_pair(None)[1].adapter.draw(th.zeros(2, dtype=th.long))


@MEMBERS
def test_the_average_of_the_parts_is_the_average_of_the_weights(n_members: int | None) -> None:
    """Composing is linear: the target may average base and values each on its own."""
    _, layer = make_pair(n_members)
    x, average, before = inputs(layer), AveragedLinear(layer), layer.merged_weight().detach()
    assert th.equal(average(x), layer(x))
    with th.no_grad():
        for parameter in layer.parameters():
            parameter.add_(th.randn_like(parameter))
        for target, source in zip(average.averaged_tensors(), layer.averaged_tensors(), strict=True):
            target.lerp_(source, 0.25)
        layer.bias.copy_(average.averaged_tensors()[-1])
        expected = th.matmul(x, before.lerp(layer.merged_weight(), 0.25)) + layer.bias
    th.testing.assert_close(average(x), expected)


@MEMBERS
def test_the_averaged_copy_of_a_network_follows_and_moves_with_it(n_members: int | None) -> None:
    net = BroNet(I, O, 8, 1, T, "none", n_members=n_members)
    th.manual_seed(0)
    for layer in net.linears():
        shape = layer.shape
        layer.adapter = Sparse(shape, 0.3, th.arange(0, 30, 3), th.randn(10))
    x, average = th.randn(T, B, I), net.averaged_copy()
    assert th.equal(average(x), net(x))
    assert not any(parameter.requires_grad for parameter in average.parameters())
    for other in (copy.deepcopy(average), pickle.loads(pickle.dumps(average))):
        assert th.equal(other(x), average(x))
    # With the network in double precision the positions must still be whole numbers.
    assert th.equal(average.double()(x.double()), net.double()(x.double()))
    values = {id(layer.adapter.values) for layer in net.linears()}  # type: ignore[union-attr]
    assert {id(parameter) for parameter in net.task_parameters()} == values == {id(p) for p in net.means()}
    assert list(net.spreads()) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # PyTorch, compiling
def test_a_gradient_step_compiles_to_one_graph() -> None:
    th._dynamo.reset()
    _, layer = make_pair(2)
    compiled, x = th.compile(layer, fullgraph=True, backend="aot_eager"), inputs(layer)
    gradients = []
    for network in (layer, compiled):
        network(x, True, WEIGHTS).square().sum().backward()
        gradients.append([parameter.grad for parameter in layer.parameters()])
        layer.zero_grad()
    th.testing.assert_close(gradients[1], gradients[0])
    average = AveragedLinear(layer)
    th.testing.assert_close(th.compile(average, fullgraph=True, backend="aot_eager")(x), average(x))
