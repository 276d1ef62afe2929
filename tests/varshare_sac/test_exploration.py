"""Acting with one draw of the weights per environment and episode."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_varshare import VarShareSAC, make_multitask_env

TinyAgent = Callable[..., VarShareSAC]


def observe(tasks: list[int]) -> np.ndarray:
    return np.concatenate([np.full((len(tasks), 2), 0.5), np.eye(2)[tasks]], 1).astype(np.float32)


def starts(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


@pytest.fixture
def quiet_agent(tiny_agent: TinyAgent) -> TinyAgent:
    """An agent whose actions vary by the drawn weights alone: its Gaussian is as narrow as can be."""

    def make(**kwargs: Any) -> VarShareSAC:
        model = tiny_agent(**{"exploration": "posterior", "sigma_prior": 1.0, **kwargs})
        with th.no_grad():
            model.policy.actor.log_std.theta.zero_()
            model.policy.actor.log_std.bias.fill_(-30.0)
            for spread in model.policy.actor.log_std.adapter.spreads():
                spread.fill_(-30.0)
        return model

    return make


@pytest.mark.parametrize("adapter", ["varshare", "low_rank"])
def test_one_draw_per_env_and_episode(quiet_agent: TinyAgent, adapter: str) -> None:
    model = quiet_agent(adapter=adapter)
    act, observations = model.explorer.act, observe([0, 1, 1])
    first = act(observations, starts(1, 1, 1))
    assert first.shape == (3, 1) and (abs(first) <= 1).all()
    assert abs(first[1] - first[2]) > 1e-3, "two envs of a task draw on their own"
    within = act(observations, starts(0, 0, 0))
    np.testing.assert_allclose(within, first, atol=1e-3)
    after = act(observations, starts(0, 1, 0))
    np.testing.assert_allclose(after[[0, 2]], first[[0, 2]], atol=1e-3)
    assert abs(after[1] - first[1]) > 1e-3


@pytest.mark.parametrize("kwargs", [{}, {"normalize_observations": True}, {"task_input": "embedding"}])
def test_a_new_episode_may_be_of_another_task(quiet_agent: TinyAgent, kwargs: dict[str, Any]) -> None:
    """The draw is from the posterior of the task that the episode plays, not of the env."""
    model = quiet_agent(sigma_prior=1e-6, **kwargs)
    model.policy.observation_norm.update(np.array([[0.0, 2.0], [1.0, 9.0]], dtype=np.float32), np.array([0, 0]))
    with th.no_grad():
        for mu in model.policy.actor.means():
            mu.normal_(0, 0.5, generator=th.Generator().manual_seed(0))
    acts = [model.explorer.act(observe([task]), starts(1)).item() for task in (0, 1)]
    expected = [model.predict(observe([task]), deterministic=True)[0].item() for task in (0, 1)]
    np.testing.assert_allclose(acts, expected, atol=1e-3)
    assert abs(expected[0] - expected[1]) > 0.01


def test_draws_have_the_posteriors_mean_and_spread(quiet_agent: TinyAgent) -> None:
    """The first layer's output is linear in the weights: its moments are known."""
    model = quiet_agent(sigma_prior=0.3)
    layer = model.policy.actor.trunk.linear_in
    tasks = th.tensor([0, 1]).repeat(4_000)
    with th.no_grad():
        next(iter(layer.adapter.means())).normal_(0, 0.5, generator=th.Generator().manual_seed(0))
        drawn = layer.adapter.draw(tasks).unflatten(0, (4_000, 2))
    mean = layer.merged_weight() - layer.theta
    th.testing.assert_close(drawn.mean(0), mean.detach(), atol=0.03, rtol=0)
    sigma = layer.adapter.residual.sigma()  # type: ignore[union-attr,operator]
    th.testing.assert_close(drawn.std(0), sigma.detach(), rtol=0.06, atol=0)


def test_recentring_within_an_episode_changes_no_action(quiet_agent: TinyAgent) -> None:
    model = quiet_agent()
    observations = observe([0, 1])
    with th.no_grad():
        for mu in model.policy.actor.means():
            mu.normal_(0.5, 0.2, generator=th.Generator().manual_seed(0))
    before = model.explorer.act(observations, starts(1, 1))
    model.policy.actor.recenter()
    np.testing.assert_allclose(model.explorer.act(observations, starts(0, 0)), before, atol=2e-3)


def test_drawn_actions_are_masked_and_in_the_models_action_space(tiny_agent: TinyAgent, single_target_env: Any) -> None:
    env = make_multitask_env(
        {"two": lambda: single_target_env(action_size=2), "one": lambda: single_target_env(action_size=1)}
    )
    model = tiny_agent(env, exploration="posterior")
    actions = model.explorer.act(env.reset(), starts(1, 1))  # type: ignore[arg-type]
    assert actions.shape == (2, 2) and actions[1, 1] == 0 and (actions[0] != 0).all()


def test_an_agent_learns_with_posterior_exploration(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(exploration="posterior", normalize_observations=True)
    model.learn(80)
    assert model._n_updates > 0 and model._explorer is not None
    assert model.replay_buffer.check_valid() == (True, "")
