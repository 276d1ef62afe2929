"""Evaluation happens on streams that training never sees, whatever vectorises the training environments."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)

from sb3_varshare import EvalTasksCallback, VarShareSAC, evaluate_tasks, make_multitask_env, make_tensor_env
from sb3_varshare.evaluation.evaluation_env import evaluation_env, rewind
from sb3_varshare.tasks import MultiTaskEnv, find_tasks, make_suite

Agent = Callable[..., VarShareSAC]
Envs = Callable[..., Any]


class Scaled(VecEnvWrapper):
    """Doubles the rewards, and counts its steps."""

    n_steps = 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        self.n_steps += 1
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, 2 * rewards, dones, infos


def copies_of_sb3(n: int = 2, **kwargs: Any) -> VecEnv:
    """The Gymnasium face in SB3's own set, root 4."""
    return make_vec_env("Contextual-v0", n, seed=4, env_kwargs={"horizon": 6, **kwargs})


def first_observations(env: VecEnv) -> np.ndarray:
    env.reset()
    rewind(env)
    observations = env.reset()
    assert isinstance(observations, np.ndarray)
    return observations


# Twins


@pytest.mark.parametrize("n", [1, 3])
def test_copies_in_sb3s_own_set_have_a_twin(agent: Agent, n: int) -> None:
    env = copies_of_sb3(n)
    expected = make_multitask_env("contextual", seed=4, horizon=6).evaluation_env()
    for _ in range(2):  # before their first reset, and after it
        twin: Any = evaluation_env(env)
        assert (twin.purpose, twin.num_envs, find_tasks(twin)) == ("evaluation", 5, find_tasks(env))
        np.testing.assert_array_equal(twin.reset(), expected.reset())
        env.reset()
        rewind(expected)


def test_copies_in_sb3s_own_set_are_not_touched(agent: Agent) -> None:
    env = copies_of_sb3()
    model = agent(env, batch_size=50).learn(14)
    state = [(copy.unwrapped._steps, copy.unwrapped.current_task) for copy in env.envs]  # type: ignore[attr-defined]
    found = evaluate_tasks(model, model.get_env(), n_episodes=2)
    assert [(copy.unwrapped._steps, copy.unwrapped.current_task) for copy in env.envs] == state  # type: ignore[attr-defined]
    same = make_multitask_env("contextual", seed=0, horizon=6)  # the agent has seeded the set with 0
    assert found.episodes == evaluate_tasks(model, same, n_episodes=2).episodes
    callback = EvalTasksCallback(n_episodes=2)
    model.learn(2, callback=callback, reset_num_timesteps=False)
    assert callback.last is not None and callback.last.episodes == found.episodes


def test_a_gymnasium_id_is_evaluated_elsewhere(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(gym.make("Contextual-v0", horizon=6), batch_size=50)
    purposes: list[str] = []
    reset = MultiTaskEnv.reset
    monkeypatch.setattr(MultiTaskEnv, "reset", lambda env, **kw: (purposes.append(env.purpose), reset(env, **kw))[1])
    evaluate_tasks(model, model.get_env(), n_episodes=1)
    assert set(purposes) == {"evaluation"}


@pytest.mark.parametrize("make", [make_multitask_env, make_tensor_env])
def test_an_evaluation_environment_is_played_as_it_is(make: Any) -> None:
    twin = evaluation_env(make("contextual"))
    assert twin.purpose == "evaluation"  # type: ignore[attr-defined]
    assert evaluation_env(twin) is twin
    own = copies_of_sb3(purpose="evaluation")
    assert evaluation_env(own) is own


# The same episodes


def evaluation_copies() -> VecEnv:
    return copies_of_sb3(purpose="evaluation")


def workers() -> VecEnv:
    return make_multitask_env("contextual", n_workers=1, horizon=6, seed=4).evaluation_env()


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_multitask_env("contextual", seed=4, horizon=6).evaluation_env(2),
        lambda: make_tensor_env("contextual", seed=4, device="cpu", horizon=6).evaluation_env(),
        lambda: VecCheckNan(make_multitask_env("contextual", seed=4, horizon=6).evaluation_env()),
        evaluation_copies,
        workers,
    ],
)
def test_every_evaluation_plays_the_same_episodes(agent: Agent, make: Callable[[], VecEnv]) -> None:
    env = make()
    model = agent(make_multitask_env("contextual", horizon=6), batch_size=50)
    try:
        first, second = (evaluate_tasks(model, env, n_episodes=3).episodes for _ in range(2))
    finally:
        env.close()
    assert first == second
    assert len({episode.episode_return for episode in first}) == 5 * 3, "episodes differ"


def test_rewinding_begins_the_streams_anew() -> None:
    own, pending = make_multitask_env("contextual", seed=4), copies_of_sb3(purpose="evaluation")
    for env in (own, pending):
        first = env.reset()
        assert not np.array_equal(env.reset(), first)
        np.testing.assert_array_equal(first_observations(env), first)


def test_the_callback_plays_all_goals_at_every_evaluation(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("metaworld")
    goals: list[tuple[float, ...]] = []
    reset = MultiTaskEnv.reset

    def watched(env: MultiTaskEnv, **kwargs: Any) -> Any:
        observation, info = reset(env, **kwargs)
        if env.purpose == "evaluation":
            goals.append(tuple(observation[36:39]))
        return observation, info

    monkeypatch.setattr(MultiTaskEnv, "reset", watched)
    model = agent(make_multitask_env("MT1/reach-v3", n_goals=3, horizon=4))
    model.learn(12, callback=EvalTasksCallback(eval_freq=6, n_episodes=3, evaluate_base=True))
    # At the start, after six steps and at the end, mean and base; the last of the four is begun and not counted.
    played = [goals[start : start + 3] for start in range(0, len(goals), 4)]
    assert len(goals) == 3 * 2 * 4 and len(set(played[0])) == 3
    assert all(episodes == played[0] for episodes in played)


# Refusals


def test_a_wrapper_that_a_twin_would_lack_is_refused(agent: Agent, counting_envs: Envs) -> None:
    inner = counting_envs({"a": {"rewards": (1.0,), "lengths": (3,)}})
    env = VecCheckNan(Scaled(VecCheckNan(inner)))
    model = agent(env)
    for refused in (lambda: evaluate_tasks(model, env), lambda: model.learn(4, callback=EvalTasksCallback())):
        with pytest.raises(ValueError, match=r"wrapped in Scaled, .* such as Scaled\(make_multitask_env\(\.\.\.\)"):
            refused()
    given = Scaled(inner.evaluation_env())
    assert [e.episode_return for e in evaluate_tasks(model, given, n_episodes=2).episodes] == [6.0, 6.0]
    assert given.n_steps == 6
    callback = EvalTasksCallback(eval_env=given, n_episodes=1)
    model.learn(4, callback=callback)
    assert callback.last is not None and callback.last.mean_return == 6.0


def test_those_that_only_look_on_are_left_out(agent: Agent, counting_envs: Envs) -> None:
    env = VecCheckNan(counting_envs({"a": {"lengths": (3,)}}))
    assert evaluate_tasks(agent(env), env, n_episodes=1).mean_return == 3.0


def test_normalised_environments_of_sb3_are_refused(counting_envs: Envs) -> None:
    env = VecNormalize(counting_envs({"a": {}}))
    model = SAC("MlpPolicy", env, buffer_size=10, device="cpu", policy_kwargs={"net_arch": [4]})
    with pytest.raises(ValueError, match="wrapped in VecNormalize"):
        evaluate_tasks(model, env)


def test_a_gymnasium_wrapper_is_refused() -> None:
    inner = MultiTaskEnv("contextual")
    env: Any = DummyVecEnv([lambda: gym.wrappers.TransformReward(inner, lambda reward: 2 * reward)])
    with pytest.raises(ValueError, match="wrapped in TransformReward"):
        evaluation_env(env)


def test_tasks_in_other_processes_cannot_be_read(agent: Agent) -> None:
    env = make_vec_env(MultiTaskEnv, 1, env_kwargs={"suite": "contextual"}, vec_env_cls=SubprocVecEnv)
    try:
        with pytest.raises(ValueError, match=r"behind SubprocVecEnv cannot be read.*purpose='evaluation'"):
            evaluation_env(env)
    finally:
        env.close()


def test_a_bare_environment_is_refused(agent: Agent) -> None:
    env = MultiTaskEnv(make_suite("contextual", horizon=6))
    model = agent(env, batch_size=50)
    with pytest.raises(ValueError, match="Expected a VecEnv to evaluate on, got MultiTaskEnv; use make_multitask_env"):
        evaluate_tasks(model, env)


def test_the_agents_own_foreign_environments_are_refused(agent: Agent, counting_envs: Envs) -> None:
    def make() -> VecEnv:
        return DummyVecEnv([lambda: counting_envs({"x": {}}).envs[0].unwrapped._task_env(0)])

    model = agent(make()).learn(4)
    last = model._last_obs
    for env in (model.get_env(), VecMonitor(model.env)):
        with pytest.raises(ValueError, match="agent's own training environments, and they have no evaluation twin"):
            evaluate_tasks(model, env)
    assert model._last_obs is last
    assert evaluate_tasks(model, make(), n_episodes=1).mean_return == 3.0
