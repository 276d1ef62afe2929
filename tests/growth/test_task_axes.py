"""Tensors for other tasks, by hand."""

from typing import Any

import numpy as np
import pytest
import torch as th
from growing import AGENTS, agent_name, make_agent
from gymnasium import spaces

from sb3_varshare.growth.task_axes import is_own, rearrange_moments, rearrange_state, rearranged, resized, task_axes


def test_on_the_task_axis_tasks_keep_their_values_in_the_new_order() -> None:
    old, fresh = th.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), th.full((3, 2), 9.0)
    assert rearranged(old, fresh, (0,), 3, [2, None, 0]).tolist() == [[5.0, 6.0], [9.0, 9.0], [1.0, 2.0]]


def test_on_an_axis_of_inputs_what_stands_before_the_tasks_stays() -> None:
    # Two inputs, then those of tasks 0 and 1.
    old, fresh = th.tensor([10.0, 20.0, 1.0, 2.0]), th.zeros(5)
    assert rearranged(old, fresh, (0,), 2, [0, 1, None]).tolist() == [10.0, 20.0, 1.0, 2.0, 0.0]
    assert rearranged(old, th.zeros(3), (0,), 2, [1]).tolist() == [10.0, 20.0, 2.0]


def test_on_both_axes() -> None:
    # Task t, one input and a one-hot of two: the weight is 100 t + position.
    old = th.tensor([[0.0, 1.0, 2.0], [100.0, 101.0, 102.0]])
    new = rearranged(old, th.full((3, 4), -1.0), (0, 1), 2, [0, 1, None])
    assert new.tolist() == [[0.0, 1.0, 2.0, -1.0], [100.0, 101.0, 102.0, -1.0], [-1.0, -1.0, -1.0, -1.0]]
    assert rearranged(new, th.zeros(2, 3), (0, 1), 3, [0, 1]).tolist() == old.tolist()
    # One task's values into the last place of a larger tensor.
    single = th.tensor([[7.0, 8.0]])
    assert rearranged(single, new, (0, 1), 1, [None, None, 0]).tolist()[2] == [7.0, -1.0, -1.0, 8.0]


def test_without_an_axis_the_old_tensor_is_copied() -> None:
    old = th.tensor([1.0, 2.0])
    new = rearranged(old, th.zeros(2), (), 2, [1])
    assert new.tolist() == [1.0, 2.0]
    assert new.data_ptr() != old.data_ptr()


@pytest.mark.parametrize("kwargs", AGENTS, ids=agent_name)
def test_the_axes_of_the_tasks_are_found(kwargs: dict[str, Any]) -> None:
    model = make_agent(**kwargs)
    axes, state = task_axes(model), model.policy.state_dict()
    own = {name for name in axes if is_own(state[name], axes[name], 2)}
    networks = [model.policy.actor, model.policy.critic.net]
    expected = {id(p) for network in networks for p in network.task_parameters()}
    expected |= {id(p) for p in model.policy.critic.task_input.parameters()}
    expected = {name for name, p in model.policy.named_parameters() if id(p) in expected}
    assert {name for name in own if not name.startswith(("critic_target.", "observation_norm."))} == expected
    inputs = {name for name in axes if any(state[name].shape[axis] > 2 for axis in axes[name])}
    assert bool(inputs) == (kwargs.get("task_input") == "one_hot")
    assert all(".linear_in." in name and ".blocks." not in name for name in inputs)


def test_other_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"shape the networks cannot be changed: w .* \(2, 3\), .* \(2, 4\)"):
        rearrange_state({"w": th.zeros(2, 3)}, {"w": th.zeros(2, 4)}, {"w": (0,)}, 2, [0, 1])


def test_moments_of_a_new_task_are_zero_and_the_count_of_steps_goes_on() -> None:
    old, new = th.nn.Parameter(th.ones(2)), th.nn.Parameter(th.ones(3))
    source, target = th.optim.Adam([old], lr=0.1), th.optim.Adam([new], lr=0.1)
    for _ in range(3):
        (old * th.tensor([1.0, 2.0])).sum().backward()
        source.step()
        source.zero_grad()
    rearrange_moments(target, source, {new: (old, (0,))}, 2, [1, None, 0])
    state, expected = target.state[new], source.state[old]
    assert state["exp_avg"].tolist() == [*expected["exp_avg"].tolist()[1:], 0.0, expected["exp_avg"][0].item()]
    assert state["exp_avg_sq"][1] == 0
    assert state["step"] == 3
    assert state["step"] is not expected["step"]


def test_an_optimizer_whose_state_has_no_task_axis_is_refused() -> None:
    old, new = th.nn.Parameter(th.ones(2, 4)), th.nn.Parameter(th.ones(3, 4))
    source = th.optim.Adafactor([old])
    old.sum().backward()
    source.step()
    with pytest.raises(ValueError, match=r"Adafactor keeps '\w+' .* use Adam or AdamW"):
        rearrange_moments(th.optim.Adafactor([new]), source, {new: (old, (0,))}, 2, [0, 1, None])


def test_an_observation_space_with_another_one_hot() -> None:
    space = spaces.Box(np.array([-1, -2, 0, 0], np.float32), np.array([3, 4, 1, 1], np.float32))
    longer = resized(space, 2, 3)
    assert longer.low.tolist() == [-1, -2, 0, 0, 0] and longer.high.tolist() == [3, 4, 1, 1, 1]
    assert resized(longer, 3, 2) == space
    assert resized(space, 0, 2).high.tolist() == [3, 4, 1, 1, np.inf, np.inf]
