"""The projection of return distributions: numbers by hand, laws, and a naive implementation beside it."""

import math

import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from sb3_varshare.categorical import expectation, narrow_logits, project, variance

SUPPORT = th.linspace(-10, 10, 101)
FIVE = th.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])


def naive_project(probabilities: th.Tensor, atoms: th.Tensor, support: th.Tensor) -> th.Tensor:
    """Every atom against every point of the support: a triangular kernel, (..., M, M), in float64."""
    probabilities, atoms, support = probabilities.double(), atoms.double(), support.double()
    spacing = (support[-1] - support[0]) / (len(support) - 1)
    clipped = atoms.clamp(support[0].item(), support[-1].item())
    kernel = (1 - (clipped[..., :, None] - support).abs() / spacing).clamp(min=0)
    return (probabilities[..., None] * kernel).sum(-2)


def test_projection_by_hand() -> None:
    # 0.5 at 0.25: 0.375 to 0 and 0.125 to 1. 0.3 at -1.5: half each to -2 and -1. 0.2 at 1.9: 0.02 to 1, 0.18 to 2.
    probabilities = th.tensor([0.5, 0.3, 0.2, 0.0, 0.0])
    atoms = th.tensor([0.25, -1.5, 1.9, 0.0, 0.0])
    expected = th.tensor([0.15, 0.15, 0.375, 0.125 + 0.02, 0.18])
    th.testing.assert_close(project(probabilities, atoms, FIVE), expected)


def test_variance_by_hand() -> None:
    rows = th.tensor([[0.5, 0.0, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 1.0, 0.0], [0.25, 0.25, 0.0, 0.25, 0.25]])
    th.testing.assert_close(variance(rows, FIVE), th.tensor([4.0, 0.0, 2.5]))
    th.testing.assert_close(variance(rows[None], FIVE + 100), th.tensor([[4.0, 0.0, 2.5]]))


def test_projection_adds_variance() -> None:
    """An atom at a share f of the way between two points adds f (1 - f) spacing^2; on a point it adds nothing."""
    atoms = th.tensor([0.25, -1.5, 1.0, 0.0, 0.0])
    probabilities = th.tensor([0.4, 0.4, 0.2, 0.0, 0.0])
    before = (probabilities * (atoms - (probabilities * atoms).sum()) ** 2).sum()
    added = 0.4 * 0.25 * 0.75 + 0.4 * 0.5 * 0.5
    th.testing.assert_close(variance(project(probabilities, atoms, FIVE), FIVE), before + added)


def test_mass_outside_goes_to_the_edges() -> None:
    probabilities = th.tensor([0.1, 0.2, 0.3, 0.4, 0.0])
    atoms = th.tensor([-2.01, -1e9, 2.5, 1e9, 0.0])
    th.testing.assert_close(project(probabilities, atoms, FIVE), th.tensor([0.3, 0.0, 0.0, 0.0, 0.7]))


@pytest.mark.parametrize("index", range(5))
def test_an_atom_on_a_point_of_the_support_stays_there(index: int) -> None:
    atoms = FIVE[index].repeat(5)
    expected = th.eye(5)[index]
    assert th.equal(project(th.full((5,), 0.2), atoms, FIVE), expected)


def test_the_support_itself_projects_to_itself() -> None:
    probabilities = th.rand(7, 101, generator=th.Generator().manual_seed(0)).softmax(-1)
    th.testing.assert_close(project(probabilities, SUPPORT.expand(7, -1), SUPPORT), probabilities, atol=1e-6, rtol=1e-4)


def test_mass_and_mean_are_preserved_inside() -> None:
    generator = th.Generator().manual_seed(1)
    probabilities = th.randn(3, 4, 101, generator=generator).mul(3).softmax(-1)
    atoms = th.rand(3, 4, 101, generator=generator) * 20 - 10
    projected = project(probabilities, atoms, SUPPORT)
    assert (projected >= 0).all()
    th.testing.assert_close(projected.sum(-1), th.ones(3, 4))
    th.testing.assert_close(expectation(projected, SUPPORT), (probabilities * atoms).sum(-1), atol=2e-5, rtol=1e-5)


@given(
    n_atoms=st.integers(2, 60),
    v_min=st.floats(-20, 5),
    width=st.floats(0.5, 40),
    seed=st.integers(0, 2**31),
    spread=st.floats(0.01, 3),
)
def test_projection_equals_the_naive_one(n_atoms: int, v_min: float, width: float, seed: int, spread: float) -> None:
    generator = th.Generator().manual_seed(seed)
    support = th.linspace(v_min, v_min + width, n_atoms)
    probabilities = th.randn(2, 3, n_atoms, generator=generator).softmax(-1)
    atoms = v_min + width * (0.5 + spread * (th.rand(2, 3, n_atoms, generator=generator) - 0.5))
    projected = project(probabilities, atoms, support)
    # A position is known to about 1e-6 of the largest number involved, in units of the spacing.
    tolerance = 1e-6 * (abs(v_min) + width) * (n_atoms - 1) / width + 1e-6
    expected = naive_project(probabilities, atoms, support)
    th.testing.assert_close(projected.double(), expected, atol=max(tolerance, 1e-5), rtol=0)
    th.testing.assert_close(projected.sum(-1), th.ones(2, 3))


def test_projection_leaves_its_arguments_alone() -> None:
    probabilities, atoms = th.full((5,), 0.2), th.linspace(-3, 3, 5)
    before = probabilities.clone(), atoms.clone()
    project(probabilities, atoms, FIVE)
    assert th.equal(probabilities, before[0]) and th.equal(atoms, before[1])


def test_nan_comes_out_as_nan() -> None:
    """Not as an index out of bounds: on a GPU that ends the process."""
    atoms = th.stack([th.full((5,), th.nan), FIVE])
    projected = project(th.full((2, 5), 0.2), atoms, FIVE)
    assert projected[0].isnan().any() and projected[1].isfinite().all()


def test_expectation_by_hand() -> None:
    probabilities = th.tensor([[0.5, 0.0, 0.0, 0.0, 0.5], [0.0, 0.25, 0.0, 0.75, 0.0]])
    th.testing.assert_close(expectation(probabilities, FIVE), th.tensor([0.0, 0.5]))


@pytest.mark.parametrize("std", [0.3, 0.5, 2.0])
def test_narrow_logits_are_a_bump_of_that_width_around_zero(std: float) -> None:
    probabilities = narrow_logits(SUPPORT, std).softmax(-1)
    assert expectation(probabilities, SUPPORT).item() == pytest.approx(0, abs=1e-5)
    assert math.sqrt(expectation(probabilities, SUPPORT.square()).item()) == pytest.approx(std, rel=1e-3)
