"""The two ways into the replay: what is stored, what is counted, and that the one on the device waits for nothing."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import StopTrainingOnMaxEpisodes
from stable_baselines3.common.noise import NormalActionNoise
from tensor_helpers import AsArrays, CountingRows, NoWaiting

from sb3_varshare import EvalTasksCallback, VarShareSAC, make_multitask_env, make_tensor_env
from sb3_varshare.tasks import RowStep
from sb3_varshare.varshare_sac.collection import MultiTaskCollection
from sb3_varshare.varshare_sac.tensor_collection import KEPT_STEPS

TinyAgent = Callable[..., VarShareSAC]
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (200, 8, 1)).astype(np.float32)


@pytest.fixture
def scripted(tiny_agent: TinyAgent, monkeypatch: pytest.MonkeyPatch) -> TinyAgent:
    """Makes an agent that acts by a table on either face and never trains: equal actions, whatever draws them."""

    def step_of(model: Any) -> np.ndarray:
        return ACTIONS[model.num_timesteps // model.n_envs]

    def both_scales(model: Any, *_: Any) -> tuple[np.ndarray, np.ndarray]:
        return model.policy.unscale_action(step_of(model)), step_of(model)

    monkeypatch.setattr(MultiTaskCollection, "_sample_action", both_scales)
    monkeypatch.setattr(MultiTaskCollection, "sample_tensor_action", lambda model, _: th.from_numpy(step_of(model)))
    return lambda env, **kwargs: tiny_agent(env, **{"learning_starts": 10**6, "batch_size": 30, **kwargs})


def rows_of(model: VarShareSAC) -> list[list[list[float]]]:
    rows = model.replay_buffer._rows
    assert rows is not None
    return [rows[task, :size].tolist() for task, size in enumerate(model.replay_buffer.sizes)]


# Both faces


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("make", [CountingRows, lambda n: make_tensor_env("contextual", n, device="cpu", horizon=7)])
def test_both_faces_store_and_count_the_same(scripted: TinyAgent, make: Callable[[int], Any], n_steps: int) -> None:
    on_tensors = scripted(make(8), n_steps=n_steps, normalize_observations=True).learn(8 * 80)
    # A wrapper sees only what passes through numpy.
    on_arrays = scripted(AsArrays(make(8)), n_steps=n_steps, normalize_observations=True).learn(8 * 80)
    assert on_tensors._collector is not None and on_arrays._collector is None
    assert on_tensors.replay_buffer.size() > 8 * 70 and on_tensors.replay_buffer.check_valid() == (True, "")
    assert rows_of(on_tensors) == rows_of(on_arrays)
    for name, values in on_arrays.reward_scale.state_dict().items():
        assert th.equal(on_tensors.reward_scale.state_dict()[name], values), name
    for name, values in on_arrays.policy.observation_norm.state_dict().items():
        assert th.equal(on_tensors.policy.observation_norm.state_dict()[name], values), name
    for ours, theirs in zip(on_tensors.task_stats._returns, on_arrays.task_stats._returns, strict=True):
        assert list(ours) == pytest.approx(list(theirs), rel=1e-5)
    assert [list(x) for x in on_tensors.task_stats._successes] == [list(x) for x in on_arrays.task_stats._successes]
    assert on_tensors._episode_num == on_arrays._episode_num > 0
    assert list(on_tensors.ep_success_buffer or ()) == list(on_arrays.ep_success_buffer or ())


def test_an_agent_learns_on_the_device(tiny_agent: TinyAgent, tmp_path: Path) -> None:
    env = make_tensor_env("contextual", n_envs=20, seed=0, device="cpu", horizon=10)
    model = tiny_agent(env, learning_starts=100, batch_size=40)
    callback = EvalTasksCallback(eval_freq=10**6, n_episodes=1, log_path=tmp_path)
    model.learn(20 * 26, callback=callback)
    # Ten steps until every task has ended an episode, then one gradient step for each.
    assert model._n_updates == 17
    assert model.replay_buffer.size() == model.num_timesteps == 20 * 26
    assert model._episode_num == 20 * 2
    assert callback.last is not None and len(callback.last.episodes) == 5
    assert isinstance(model._last_obs, th.Tensor)


def test_random_actions_of_the_warm_up_fill_the_range(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(make_tensor_env("contextual", n_envs=100, device="cpu"), learning_starts=10**6, batch_size=30)
    model.learn(2_000)
    actions = th.cat([th.tensor(rows)[:, 10] for rows in rows_of(model)])
    assert -1 <= actions.min() < -0.98 and 0.98 < actions.max() <= 1 and abs(actions.mean()) < 0.06


def test_posterior_exploration_on_the_device(tiny_agent: TinyAgent) -> None:
    env = make_tensor_env("contextual", n_envs=10, device="cpu", horizon=5)
    model = tiny_agent(env, exploration="posterior", learning_starts=40, batch_size=40).learn(200)
    assert model._explorer is not None and model._n_updates > 0
    assert model.replay_buffer.check_valid() == (True, "")


def test_training_goes_on_after_saving(tiny_agent: TinyAgent, tmp_path: Path) -> None:
    env = make_tensor_env("contextual", n_envs=10, device="cpu", horizon=5)
    model = tiny_agent(env, learning_starts=40, batch_size=40).learn(120)
    model.save(tmp_path / "model")
    loaded = VarShareSAC.load(tmp_path / "model", env=env, device="cpu", force_reset=False)
    assert isinstance(model._last_obs, th.Tensor)
    np.testing.assert_array_equal(np.asarray(loaded._last_obs), model._last_obs.numpy())
    loaded.learn(50, reset_num_timesteps=False)
    assert loaded.num_timesteps == 170 and loaded.replay_buffer.size() == 50


# Waiting


def test_after_the_warm_up_no_step_waits_for_the_device(tiny_agent: TinyAgent) -> None:
    env = make_tensor_env("contextual", n_envs=10, device="cpu", horizon=5)
    model = tiny_agent(env, learning_starts=40, batch_size=40, n_steps=3, normalize_observations=True).learn(120)
    collector = model._collector
    assert collector is not None and model.is_warm() and not collector.recorder.is_full
    with NoWaiting(), th.no_grad():
        for _ in range(12):
            scaled = collector.act()
            collector.store(scaled, collector.step(scaled))
    assert model.replay_buffer.size() == 120 + 12 * 10 - 2 * 10  # the last two steps of all are open


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("n_steps", [1, 3])
def test_no_step_waits_for_a_gpu(tiny_agent: TinyAgent, n_steps: int) -> None:
    env = make_tensor_env("contextual", n_envs=50, device="cuda", horizon=5)
    model = tiny_agent(env, device="cuda", learning_starts=40, batch_size=40, n_steps=n_steps).learn(600)
    collector = model._collector
    assert collector is not None and model.is_warm()
    th.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(12):
            scaled = collector.act()
            collector.store(scaled, collector.step(scaled))
    finally:
        th.cuda.set_sync_debug_mode("default")
    collector.flush()
    assert model.replay_buffer.check_valid() == (True, "")


# Left early


def stop(model: Any) -> bool:
    return False


def interrupt(model: Any) -> bool:
    raise KeyboardInterrupt


@pytest.mark.parametrize("face", [lambda env: env, AsArrays])
@pytest.mark.parametrize("leave", [stop, interrupt])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_no_transition_leads_over_the_place_where_training_was_left(
    tiny_agent: TinyAgent, face: Callable[[Any], Any], leave: Callable[[Any], bool], n_steps: int
) -> None:
    model = tiny_agent(face(CountingRows(4)), learning_starts=10**6, n_steps=n_steps)
    for end in (20, 44, 72, 88):
        with contextlib.suppress(KeyboardInterrupt):
            model.learn(1_000, lambda *_, end=end: model.num_timesteps < end or leave(model), reset_num_timesteps=False)
        assert model.num_timesteps == end and model._last_obs is None
    model.learn(40, reset_num_timesteps=False)
    assert model.replay_buffer.check_valid() == (True, "")
    for rows in rows_of(model):
        found = np.array(rows)
        assert len(found) > 30
        # Time goes on by one (by up to three where the target has three steps) in the same episode.
        passed = found[:, 2] - found[:, 0]
        assert ((passed >= 1) & (passed <= n_steps)).all() and (found[:, 3] == found[:, 1]).all()


class InterruptedEnv(gym.Env):
    """Observes (episode, step). Ctrl-C comes during every 23rd step, by when other environments have stepped or not."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), dtype=np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), dtype=np.float32)

    def __init__(self) -> None:
        self.episode, self.steps = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return np.array([self.episode, 0], dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time, self.steps = self.time + 1, self.steps + 1
        if self.steps % 23 == 0:
            raise KeyboardInterrupt
        return np.array([self.episode, self.time], dtype=np.float32), 0.0, False, self.time == 5, {}


def test_an_interrupt_within_a_step_leaves_no_false_transition(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(make_multitask_env({"a": InterruptedEnv, "b": InterruptedEnv}), learning_starts=10**6)
    interrupts = 0
    while model.num_timesteps < 200:
        try:
            model.learn(200 - model.num_timesteps, reset_num_timesteps=False)
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 5
    for rows in rows_of(model):
        found = np.array(rows)
        assert len(found) == 100
        assert (found[:, 2] == found[:, 0]).all() and (found[:, 3] == found[:, 1] + 1).all()


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_an_interrupt_within_a_reset_is_followed_by_another(
    tiny_agent: TinyAgent, monkeypatch: pytest.MonkeyPatch, reset_num_timesteps: bool
) -> None:
    env = CountingRows(4)
    model = tiny_agent(env, learning_starts=10**6).learn(20)
    reset, calls = env.reset, []

    def interrupted() -> np.ndarray:
        calls.append(len(calls))
        first = reset()
        if len(calls) == 1:
            raise KeyboardInterrupt
        return first

    monkeypatch.setattr(env, "reset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(20)
    model.learn(20, reset_num_timesteps=reset_num_timesteps)
    assert len(calls) == 2


# Mistakes


class Broken(CountingRows):
    """The fifth step of row 3 has no reward."""

    n_steps = 0

    def step_rows(self, actions: th.Tensor) -> RowStep:
        self.n_steps += 1
        step = super().step_rows(actions)
        broken = (th.arange(self.num_envs) == 3) & (self.n_steps == 5)
        return step._replace(rewards=th.where(broken, th.nan, step.rewards))


def test_what_is_not_finite_is_never_stored_and_named_later(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(Broken(4), normalize_observations=True, learning_starts=10**6)
    with pytest.raises(ValueError, match=r"task 'long', environment 3, within the last 64 steps before step 256"):
        model.learn(4 * 100)
    assert model.replay_buffer.check_valid() == (True, "")
    assert model.replay_buffer.sizes.tolist() == [2 * KEPT_STEPS, 2 * KEPT_STEPS - 1]
    # The environments start anew.
    model.learn(4 * 5, reset_num_timesteps=False)
    assert model.replay_buffer.sizes.tolist() == [2 * KEPT_STEPS + 10, 2 * KEPT_STEPS + 9]


def test_action_noise_is_refused(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(CountingRows(2), action_noise=NormalActionNoise(np.zeros(1), np.ones(1)))
    with pytest.raises(ValueError, match="action_noise draws numpy arrays"):
        model.learn(10)


def test_training_by_episodes_is_refused(tiny_agent: TinyAgent) -> None:
    with pytest.raises(ValueError, match="train_freq must count steps"):
        tiny_agent(CountingRows(2), train_freq=(1, "episode")).learn(10)


def test_a_callback_can_stop(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(CountingRows(2))
    model.learn(100, callback=lambda locals_, _: locals_["self"].num_timesteps < 30)
    assert model.num_timesteps == 30


# Callbacks of SB3


@pytest.mark.parametrize("face", [lambda env: env, AsArrays])
def test_a_number_of_episodes_can_stop(tiny_agent: TinyAgent, face: Callable[[Any], Any]) -> None:
    # Task 0 ends episodes of three steps and task 1 of five: three of each, or six in all, are there after twelve.
    model = tiny_agent(face(CountingRows(2)), learning_starts=10**6)
    model.learn(1_000, callback=StopTrainingOnMaxEpisodes(3))
    assert model.num_timesteps == 2 * 12
    seen: list[Any] = []
    model.learn(2 * 5, callback=lambda names, _: seen.append(np.asarray(names["dones"]).tolist()) is None)
    assert seen == [[False, False], [False, False], [True, False], [False, False], [False, True]]
