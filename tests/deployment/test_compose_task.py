"""A composed task is a plain network, and acts as the agent does."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from deployment_agents import AGENTS, SIZES, TASKS, TINY, Still, assert_close, make_agent, rows_of, scramble
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from torch import nn

from sb3_varshare import VarShareSAC, compose_task, make_multitask_env
from sb3_varshare.tasks import MultiTaskEnv


@pytest.mark.parametrize("kind", AGENTS)
def test_acts_as_the_agent_does(kind: str) -> None:
    model = make_agent(kind)
    for task, (observation_size, action_size) in SIZES.items():
        rows = rows_of(observation_size)
        actions = compose_task(model, task)(th.from_numpy(rows))
        assert actions.shape == (50, action_size)
        assert_close(actions, model.predict_task(rows, task)[0], model, task)


@pytest.mark.parametrize("kind", sorted(set(AGENTS) - {"independent"}))
def test_the_base_acts_as_the_agents_does(kind: str) -> None:
    model = make_agent(kind)
    rows = rows_of(3)
    with model.policy.base_only():
        expected = model.predict_task(rows, "three")[0]
    assert_close(compose_task(model, "three", base=True)(th.from_numpy(rows)), expected, model, "three")


def test_the_base_without_a_task_is_what_the_tasks_have_in_common() -> None:
    model = make_agent("tied")
    rows = rows_of(4)
    with model.policy.base_only():
        expected = model.predict(np.concatenate([rows, np.eye(3)[[1] * 50]], 1).astype(np.float32), deterministic=True)
    actions = compose_task(model, None)(th.from_numpy(rows)).numpy()
    np.testing.assert_allclose(actions, expected[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("independent", "two", "share nothing"),
        ("independent", None, "share nothing"),
        ("fixed", None, "observation_mean and observation_variance"),
        ("one_hot", None, "task_input, which only a task has"),
    ],
)
def test_there_is_no_base_where_none_can_act(kind: str, task: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose_task(make_agent(kind), task, base=True)


def test_it_is_made_of_plain_layers_and_little_else() -> None:
    actor = compose_task(make_agent("fixed", actor_depth=2), "three")
    leaves = {type(module) for module in actor.modules() if not list(module.children())}
    assert {leaf for leaf in leaves if not leaf.__module__.startswith("torch.nn")} == {
        type(actor.normalization),
        type(actor.action_map),
    }
    assert {nn.Linear, nn.LayerNorm} <= leaves
    width = 8
    sizes = [3 * width + width, *[width * width + width] * 4, width * 2 + 2]
    assert sum(p.numel() for p in actor.parameters()) == sum(sizes) + 5 * 2 * width
    assert {name: tuple(buffer.shape) for name, buffer in actor.named_buffers()} == {
        "normalization.mean": (3,),
        "normalization.std": (3,),
        **{f"action_map.{name}": (2,) for name in ("low", "high", "middle", "reach")},
    }


def test_the_one_hot_is_a_row_of_the_first_layer_in_its_bias() -> None:
    model = make_agent("one_hot")
    layer = model.policy.actor.trunk.linear_in
    actor = compose_task(model, "four")
    # Behind the four entries of the longest observation stands the one-hot of three tasks; "four" is the second.
    expected = layer.bias[0, 0] + layer.theta[0, 4 + 1]
    th.testing.assert_close(actor.trunk.linear_in.bias, expected)
    th.testing.assert_close(actor.trunk.linear_in.weight, layer.theta[0, :4].mT)


def test_weights_are_base_and_residual() -> None:
    model = make_agent("full")
    actor = compose_task(model, "two")
    layer = model.policy.actor.trunk.blocks[0].linear_in
    assert th.equal(actor.trunk.blocks[0].linear_in.weight, (layer.theta[0] + layer.adapter.residual.mu[0]).mT)


def test_bounds_of_double_precision_are_kept() -> None:
    model = make_agent("tied")
    with th.no_grad():
        model.policy.actor.mean.bias.fill_(100.0)
    actor, rows = compose_task(model, "three"), th.from_numpy(rows_of(3))
    assert actor(rows).dtype == th.float64
    assert actor(rows).numpy().tolist() == [[0.1, 0.7]] * 50
    assert compose_task(model, "two")(th.from_numpy(rows_of(2))).dtype == th.float32


def test_an_index_is_as_good_as_a_name() -> None:
    model = make_agent()
    rows = th.from_numpy(rows_of(4))
    assert th.equal(compose_task(model, 1)(rows), compose_task(model, "four")(rows))
    assert th.equal(compose_task(model, "custom/four")(rows), compose_task(model, "four")(rows))
    with pytest.raises(ValueError, match="did you mean 'four'"):
        compose_task(model, "for")


def test_it_draws_nothing_and_shares_no_memory() -> None:
    model = make_agent("tied")
    state = th.random.get_rng_state()
    actor, rows = compose_task(model, "two"), th.from_numpy(rows_of(2))
    assert th.equal(state, th.random.get_rng_state())
    before = actor(rows)
    scramble(model, seed=1)
    assert th.equal(actor(rows), before)
    assert not any(parameter.requires_grad for parameter in actor.parameters()) and not actor.training


def test_lengths_of_observations_are_kept_in_the_file(tmp_path: Path) -> None:
    make_agent().save(tmp_path / "agent.zip")
    model = VarShareSAC.load(tmp_path / "agent.zip", device="cpu")
    assert model.observation_sizes == [2, 4, 3]
    assert compose_task(model, "two").observation_size == 2


def test_without_known_lengths_it_takes_the_longest() -> None:
    model = make_agent("fixed")
    model.observation_sizes = []  # as a file of an older version
    actor, rows = compose_task(model, "two"), rows_of(2)
    padded = np.concatenate([rows, np.zeros((50, 2), dtype=np.float32)], 1)
    assert actor.observation_size == 4
    assert_close(actor(th.from_numpy(padded)), model.predict_task(rows, "two")[0], model, "two")


def test_a_wrapper_that_stacks_observations_makes_others_of_them() -> None:
    model = make_agent("tied", VecFrameStack(make_multitask_env(TASKS), 2))
    assert model.observation_sizes == []
    rows = rows_of(2 * (4 + 3) - 3)
    actor = compose_task(model, "four")
    assert_close(actor(th.from_numpy(rows)), model.predict_task(rows, "four")[0], model, "four")


def test_copies_behind_gymnasiums_wrappers_know_their_lengths() -> None:
    env = DummyVecEnv([lambda: gym.Wrapper(MultiTaskEnv(TASKS))] * 3)
    assert make_agent("tied", env).observation_sizes == [2, 4, 3]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_single_environment_without_a_suite(dtype: type) -> None:
    env = Still(3, [-2.0, 0.1], [2.0, 0.9], dtype)
    model = scramble(VarShareSAC("MultiTaskPolicy", env, **{**TINY, "batch_size": 32}))
    rows = rows_of(3)
    actions, expected = compose_task(model, "task")(th.from_numpy(rows)).numpy(), model.predict_task(rows, "task")[0]
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-5)
    assert all(env.action_space.contains(action) for action in actions.astype(dtype))


def test_what_cannot_be_composed_says_why() -> None:
    model = make_agent()
    model.action_bounds = []
    with pytest.raises(ValueError, match="did not keep the bounds"):
        compose_task(model, "two")
    model = make_agent()
    with th.no_grad():
        model.policy.actor.mean.theta[0, 0, 0] = th.nan
    with pytest.raises(ValueError, match=r"mean\.weight of task 'two' is not finite"):
        compose_task(model, "two")
