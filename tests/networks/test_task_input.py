"""What is appended to the networks' inputs, to the last number."""

from __future__ import annotations

import pytest
import torch as th

from sb3_varshare.networks import TASK_INPUTS

T, B, D = 3, 2, 4


@pytest.mark.parametrize("name", TASK_INPUTS)
def test_the_features_stand_behind_the_inputs_of_their_task(name: str | None) -> None:
    task_input, x = TASK_INPUTS[name](T), th.randn(T, B, D)
    appended = task_input.append(x)
    assert appended.shape == (T, B, D + task_input.size)
    assert th.equal(appended[..., :D], x)
    for task, features in enumerate(task_input()):
        assert th.equal(appended[task, :, D:], features.expand(B, -1))


def test_the_one_hot_is_the_identity() -> None:
    assert th.equal(TASK_INPUTS["one_hot"](T)(), th.eye(T))


def test_the_embedding_has_unit_norm_and_learns_one_task_at_a_time() -> None:
    embedding = TASK_INPUTS["embedding"](T)
    th.testing.assert_close(embedding().norm(dim=-1), th.ones(T))
    embedding.append(th.zeros(T, B, D))[1].sum().backward()
    (table,) = embedding.parameters()
    assert table.grad is not None and table.grad[1].abs().max() > 1e-3
    assert table.grad[[0, 2]].count_nonzero() == 0


def test_the_task_input_alone_decides_which_parameters_there_are() -> None:
    sizes = {name: [tuple(p.shape) for p in kind(T).parameters()] for name, kind in TASK_INPUTS.items()}
    assert sizes == {None: [], "one_hot": [], "embedding": [(T, 32)]}
