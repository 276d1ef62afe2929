"""A new task at once and after some steps."""

from typing import Any

import pytest
import torch as th
from growing import AGENTS, agent_name, assert_equal, make_agent, make_reach, tensors

from sb3_varshare import evaluate_tasks, make_multitask_env
from sb3_varshare.growth import add_task, drop_task, few_shot, learning_curve, zero_shot


@pytest.mark.parametrize("kwargs", [k for k in AGENTS if k["adapter"] != "independent"], ids=agent_name)
def test_zero_shot_moves_nothing(kwargs: dict[str, Any]) -> None:
    model = make_agent(**kwargs).learn(60)
    before, random = tensors(model), th.get_rng_state()
    first = zero_shot(model, make_reach(0.2), 3, name="new", seed=1)
    assert_equal(before, tensors(model))
    assert th.equal(random, th.get_rng_state())
    assert first.task_names == ["new"] and len(first.episodes) == 3
    assert first.episodes == zero_shot(model, make_reach(0.2), 3, name="new", seed=1).episodes


def test_drawn_actions_of_zero_shot_are_those_of_the_seed() -> None:
    model, random = make_agent(), th.get_rng_state()
    first = zero_shot(model, make_reach(0.2), 3, deterministic=False, seed=1)
    assert th.equal(random, th.get_rng_state())
    th.rand(1)
    assert first.episodes == zero_shot(model, make_reach(0.2), 3, deterministic=False, seed=1).episodes
    assert first.episodes != zero_shot(model, make_reach(0.2), 3, seed=1).episodes


def test_zero_shot_plays_as_the_base_of_the_large_agent() -> None:
    model = make_agent(make_multitask_env({"plus": make_reach(0.7), "minus": make_reach(-0.7)}, seed=3)).learn(60)
    expected = evaluate_tasks(model, model.env, 4, base=True).returns()["plus"].mean
    assert zero_shot(model, make_reach(0.7), 4, name="plus", seed=3).mean_return == pytest.approx(expected, rel=1e-4)


def test_zero_shot_of_an_embedding_is_that_of_the_embedding_which_the_new_task_gets() -> None:
    model = make_agent(make_multitask_env({"plus": make_reach(0.7)}, seed=3), adapter="embedding").learn(60)
    played = zero_shot(model, make_reach(0.2), 4, name="new", embedding="mean", seed=3)
    drop_task(add_task(model, "new", make_reach(0.2), embedding="mean"), "plus")
    assert played.mean_return == pytest.approx(evaluate_tasks(model, model.env, 4).mean_return, rel=1e-4)
    # Random ones differ by their seeds, and a curve begins with the same one.
    returns = [zero_shot(model, make_reach(0.2), 4, name="new", seed=seed).mean_return for seed in (3, 4)]
    assert len({played.mean_return, *returns}) == 3
    curve = few_shot(model, make_reach(0.2), 1, 1, n_episodes=4, name="new", seed=4).curve
    assert curve[0].mean_return == returns[1]


def test_zero_shot_needs_a_base() -> None:
    with pytest.raises(ValueError, match="independent networks share nothing"):
        zero_shot(make_agent(adapter="independent"), make_reach())


def test_a_curve_begins_with_zero_shot_and_ends_with_the_last_step() -> None:
    model = make_agent().learn(60)
    result = few_shot(model, make_reach(0.2), 50, 5, n_episodes=2, name="new", seed=1)
    assert [point.step for point in result.curve] == [0, 10, 20, 30, 40, 50]
    assert result.curve[0].evaluation.episodes == zero_shot(model, make_reach(0.2), 2, name="new", seed=1).episodes
    assert all(len(point.evaluation.episodes) == 2 and 0 <= point.success_rate <= 1 for point in result.curve)
    assert result.agent.num_timesteps == 50 and result.agent.base_frozen
    played = evaluate_tasks(result.agent, result.agent.env, 2)
    assert result.curve[-1].mean_return == pytest.approx(played.mean_return)
    again = few_shot(model, make_reach(0.2), 50, 5, n_episodes=2, name="new", seed=1)
    assert [point.mean_return for point in again.curve] == [point.mean_return for point in result.curve]
    add_task(model, "new", make_reach(0.2), from_agent=result.agent)


def test_all_of_it_can_be_trained_and_arguments_changed() -> None:
    agent = few_shot(make_agent(), make_reach(0.2), 20, 1, n_episodes=1, freeze_base=False, beta=0.5).agent
    assert not agent.base_frozen and agent.beta == 0.5


def test_with_several_copies_evaluations_wait_for_their_step() -> None:
    agent = make_agent(make_multitask_env({"plus": make_reach(0.7)}, 3))
    curve = learning_curve(agent, 10, 5, 1)
    # Steps 2, 4, 6 and 8 are due; three copies give 3, 6, 9, 12.
    assert [point.step for point in curve] == [0, 3, 6, 9, 12]


def test_a_curve_has_a_point() -> None:
    with pytest.raises(ValueError, match="at least 1 step, evaluation and episode"):
        few_shot(make_agent(), make_reach(), 10, 0)
    agent = make_agent()
    agent.env = None
    with pytest.raises(ValueError, match="with an environment to learn in"):
        learning_curve(agent, 10)
