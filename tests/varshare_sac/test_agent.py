"""The agent behaves as SB3's users expect: counting, warm-up, seeds, environments, callbacks, logs."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_varshare import MultiTaskPolicy, VarShareSAC, make_multitask_env

TinyAgent = Callable[..., VarShareSAC]
TargetEnvs = Callable[..., Any]


def state_of(model: VarShareSAC) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def equal(first: dict[str, th.Tensor], second: dict[str, th.Tensor]) -> bool:
    return first.keys() == second.keys() and all(th.equal(first[name], second[name]) for name in first)


class ForeignEnv(gym.Env):
    """Knows nothing of suites; its observation ends in the one-hot of its task, in float64."""

    def __init__(self, task: int, n_tasks: int) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (2 + n_tasks,), dtype=np.float64)
        self.action_space = gym.spaces.Box(-2, 2, (1,), dtype=np.float32)
        self.task, self.n_tasks = task, n_tasks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        return np.concatenate([[self.time / 5, self.task / 5], np.eye(self.n_tasks)[self.task]])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.time += 1
        return self._observe(), -(float(action[0]) ** 2), self.time == 3, False, {}


class Watch(BaseCallback):
    """Writes down what happens."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.updates: list[int] = []
        self.actions: list[np.ndarray] = []
        self.ended = False

    def _on_step(self) -> bool:
        self.steps.append(self.num_timesteps)
        self.updates.append(self.model._n_updates)
        self.actions.append(self.locals["buffer_actions"].copy())
        return True

    def _on_training_end(self) -> None:
        self.ended = True


# Counting and warm-up


def test_all_tasks_transitions_count_together(tiny_agent: TinyAgent) -> None:
    model, watch = tiny_agent(learning_starts=20), Watch()
    model.learn(60, callback=watch)
    assert watch.steps == list(range(2, 61, 2)) and watch.ended
    assert model.num_timesteps == 60 and model.replay_buffer.sizes.tolist() == [30, 30]
    # As in SB3, the first update follows the step that passes learning_starts; then one for each step of all envs.
    assert model._n_updates == (60 - 20) // 2
    assert watch.updates[watch.steps.index(22)] == 0 and watch.updates[watch.steps.index(24)] == 1


@pytest.mark.parametrize(("gradient_steps", "train_freq", "expected"), [(2, 1, 40), (1, 2, 10), (-1, 1, 40)])
def test_gradient_steps_as_in_sb3(tiny_agent: TinyAgent, gradient_steps: int, train_freq: int, expected: int) -> None:
    model = tiny_agent(learning_starts=20, gradient_steps=gradient_steps, train_freq=train_freq)
    model.learn(60)
    assert model._n_updates == expected


def test_learning_goes_on_from_where_it_stopped(tiny_agent: TinyAgent) -> None:
    model = tiny_agent()
    model.learn(40).learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 60 and model.replay_buffer.size() == 60


def test_the_warm_up_lasts_until_every_task_has_finished_an_episode(
    tiny_agent: TinyAgent, single_target_env: type
) -> None:
    env = make_multitask_env({"short": single_target_env, "long": lambda: single_target_env(n_steps=30)})
    model, watch = tiny_agent(env, learning_starts=4), Watch()
    with th.no_grad():  # the policy's own actions are told from random ones by being all alike
        model.policy.actor.log_std.theta.zero_()
        model.policy.actor.log_std.bias.fill_(-30.0)
        for spread in model.policy.actor.log_std.adapter.spreads():
            spread.fill_(-30.0)
        model.policy.actor.mean.bias.fill_(10.0)
    model.learn(70, callback=watch)
    saturated = [bool((actions > 0.99).all()) for actions in watch.actions]
    assert not any(saturated[:30]) and saturated[30]
    assert watch.updates[29] == 0 and watch.updates[31] > 0


@pytest.mark.parametrize(("n_tasks", "batch_size"), [(1, 256), (2, 1024), (3, 1023)])
def test_the_default_batch(tiny_agent: TinyAgent, target_env: TargetEnvs, n_tasks: int, batch_size: int) -> None:
    env = target_env({f"t{i}": 0.1 * i for i in range(n_tasks)})
    assert tiny_agent(env, batch_size=None).batch_size == batch_size


def test_stored_actions_of_missing_dimensions_are_zero(tiny_agent: TinyAgent, single_target_env: type) -> None:
    def make() -> Any:
        return make_multitask_env({"two": lambda: single_target_env(action_size=2), "one": single_target_env})

    noise = NormalActionNoise(np.zeros(2), np.full(2, 0.3))
    model = tiny_agent(make(), action_noise=noise)
    model.learn(60)
    batch = model.replay_buffer.sample(200)
    assert (batch.actions[1, :, 1] == 0).all() and (batch.actions[0] != 0).all()
    assert model.action_sizes == [2, 1] and model.target_entropy_tensor.tolist() == [-1.0, -0.5]

    unmasked = tiny_agent(make(), mask_actions=False)
    unmasked.learn(60)
    assert (unmasked.replay_buffer.sample(200).actions != 0).all()
    assert unmasked.target_entropy_tensor.tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("terminates", [False, True])
def test_the_end_of_an_episode_reaches_replay_and_reward_scale(
    tiny_agent: TinyAgent, target_env: TargetEnvs, terminates: bool
) -> None:
    """Rewards near -100 in episodes of four steps: a termination ends the return, a truncation goes on for ever."""
    model = tiny_agent(target_env({"a": 10.0, "b": 10.0}, terminates=terminates), gamma=0.5, learning_starts=100)
    model.learn(40)
    discounts = model.replay_buffer.sample(400).discounts
    assert sorted(set(discounts.flatten().tolist())) == ([0.0, 0.5] if terminates else [0.5])
    # The last step's return is its reward alone, or that and all that would have followed.
    largest = model.reward_scale.return_max
    assert ((largest > -125) & (largest < -80)).all() if terminates else (largest < -160).all()


def test_observations_are_normalised_by_what_the_agent_saw(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(normalize_observations=True)
    model.learn(40)
    norm, rows = model.policy.observation_norm, model.replay_buffer._rows
    assert rows is not None
    observations = rows[:, :20, :2]
    th.testing.assert_close(norm.mean, observations.mean(1), atol=1e-5, rtol=1e-5)
    th.testing.assert_close(norm.variance, observations.var(1, unbiased=False), atol=1e-5, rtol=1e-5)
    assert norm.count.flatten().tolist() == [20, 20]  # type: ignore[operator,union-attr]


# Seeds


def test_equal_seeds_give_equal_agents(tiny_agent: TinyAgent) -> None:
    first, second, other = (state_of(tiny_agent(seed=seed).learn(60)) for seed in (1, 1, 2))
    assert equal(first, second) and not equal(first, other)


# Environments


@pytest.mark.parametrize("n_envs", [1, 2, 3, 4, 7])
def test_any_number_of_environments(tiny_agent: TinyAgent, target_env: TargetEnvs, n_envs: int) -> None:
    env = target_env({"a": 0.5, "b": 0.0, "c": -0.5}, n_envs=n_envs)
    model = tiny_agent(env, batch_size=30)
    model.learn(84)
    assert model._n_updates > 0 and model.replay_buffer.check_valid() == (True, "")
    assert model.replay_buffer.size() == model.num_timesteps >= 84


@pytest.mark.parametrize("monitored", [False, True])
def test_a_foreign_vec_env_with_its_number_of_tasks(tiny_agent: TinyAgent, monitored: bool) -> None:
    env: Any = DummyVecEnv([lambda task=task: ForeignEnv(task, 2) for task in (1, 0, 1)])
    model = tiny_agent(VecMonitor(env) if monitored else env, n_tasks=2)
    assert model.task_names == ["task_0", "task_1"] and model.policy.observation_size == 2
    model.learn(60)
    assert model._n_updates > 0 and model.replay_buffer.sizes.tolist() == [20, 40]
    assert model.predict_task(np.zeros(2), "task_1")[0].shape == (1,)


def test_a_plain_environment_by_its_id(tiny_agent: TinyAgent) -> None:
    model = tiny_agent("Pendulum-v1", adapter="none", batch_size=None, learning_starts=195)
    assert (model.n_tasks, model.one_hot_size, model.task_names, model.batch_size) == (1, 0, ["task"], 256)
    model.learn(210)
    assert model._n_updates == 11  # the first episode ends at step 200
    action, _ = model.predict(np.zeros(3, dtype=np.float32), deterministic=True)
    np.testing.assert_array_equal(action, model.predict_task(np.zeros(3), "task")[0])


def test_another_environment_can_be_set(tiny_agent: TinyAgent, target_env: TargetEnvs) -> None:
    model = tiny_agent().learn(40)
    model.set_env(target_env())
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 60 and model.replay_buffer.check_valid() == (True, "")


def test_an_episode_that_a_new_environment_cuts_is_forgotten(tiny_agent: TinyAgent, target_env: TargetEnvs) -> None:
    """The second environment's first rewards must not be added to the unfinished episode of the first."""
    model = tiny_agent(n_steps=3).learn(2 * 6)  # one episode of four steps and two steps more
    model.set_env(target_env())
    model.learn(2 * 4, reset_num_timesteps=False)
    # Either episode: a sum per step; of the two open steps nothing.
    assert model.replay_buffer.sizes.tolist() == [8, 8]


# One task


def test_predict_task_takes_names_indices_and_short_observations(
    tiny_agent: TinyAgent, single_target_env: type
) -> None:
    env = make_multitask_env({"small": single_target_env, "large": lambda: single_target_env(observation_size=5)})
    model = tiny_agent(env)
    short = np.array([0.5, -0.5], dtype=np.float32)
    by_hand = np.array([0.5, -0.5, 0, 0, 0, 1, 0], dtype=np.float32)
    expected, state = model.predict(by_hand, deterministic=True)
    assert state is None and expected.shape == (1,)
    for task in ("small", "custom/small", 0):
        np.testing.assert_array_equal(model.predict_task(short, task)[0], expected)
    np.testing.assert_array_equal(model.predict_task(by_hand[:5], "small")[0], expected)
    rows = np.stack([by_hand[:5]] * 3)
    np.testing.assert_allclose(model.predict_task(rows, "small")[0], np.stack([expected] * 3), atol=1e-6)
    draws = {model.predict_task(short, "large", deterministic=False)[0].item() for _ in range(3)}
    assert len(draws) == 3
    with th.no_grad():
        next(iter(model.policy.actor.trunk.linear_in.adapter.means())).normal_()
    assert model.predict_task(short, np.int64(1))[0] != model.predict_task(short, 0)[0]


@pytest.mark.parametrize(
    ("task", "message"),
    [("plsu", "Unknown task 'plsu'; did you mean 'plus'?"), (2, "Unknown task 2"), (-1, "Unknown task -1")],
)
def test_an_unknown_task_is_named(tiny_agent: TinyAgent, task: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        tiny_agent().predict_task(np.zeros(2), task)
    assert message in str(caught.value)


def test_an_observation_that_is_too_long_is_refused(tiny_agent: TinyAgent) -> None:
    with pytest.raises(ValueError, match="at most 2 numbers without a one-hot"):
        tiny_agent().predict_task(np.zeros(4), "plus")


# Callbacks and logs


def test_a_callback_can_stop(tiny_agent: TinyAgent) -> None:
    model = tiny_agent()
    model.learn(100, callback=lambda locals_, globals_: locals_["self"].num_timesteps < 30)
    assert model.num_timesteps == 30


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_a_progress_bar(tiny_agent: TinyAgent) -> None:
    assert tiny_agent().learn(20, progress_bar=True).num_timesteps == 20


def test_logs_have_every_number_per_task(tiny_agent: TinyAgent, target_env: TargetEnvs, tmp_path: Path) -> None:
    model = tiny_agent(target_env(reports_success=True))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(80, log_interval=4)
    model.logger.close()
    with (tmp_path / "progress.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    per_task = ["return", "success_rate", "ent_coef", "reward_scale"]
    per_task += [f"{net}_{key}" for net in ("actor", "critic") for key in ("kl", "mu_over_theta", "sigma_over_prior")]
    for key in per_task:
        for task in ("plus", "minus"):
            assert np.isfinite(float(last[f"{key}/{task}"])), f"{key}/{task}"
    for key in ("critic_loss", "actor_loss", "ent_coef_loss", "ent_coef", "learning_rate", "n_updates"):
        assert np.isfinite(float(last[f"train/{key}"])), key
    assert float(last["ent_coef/plus"]) == pytest.approx(model._ent_coef()[0].item(), rel=0.05)
    assert float(last["time/total_timesteps"]) <= 80


def test_without_successes_none_are_logged(tiny_agent: TinyAgent, tmp_path: Path) -> None:
    model = tiny_agent(adapter="none")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(80, log_interval=4)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0]
    assert "return/plus" in header
    assert "success_rate" not in header and "kl/" not in header and "sigma" not in header


def test_tensorboard_has_a_curve_per_task(tiny_agent: TinyAgent, tmp_path: Path) -> None:
    tiny_agent(tensorboard_log=str(tmp_path)).learn(60, log_interval=4).logger.close()
    (run,) = tmp_path.iterdir()
    assert run.name == "VarShareSAC_1"
    events = EventAccumulator(str(run))
    events.Reload()
    assert {"return/plus", "return/minus", "critic_kl/plus", "ent_coef/minus"} <= set(events.Tags()["scalars"])


def test_returns_of_the_training_episodes_are_raw(tiny_agent: TinyAgent, target_env: TargetEnvs) -> None:
    model = tiny_agent(target_env({"a": 0.0, "b": 50.0}, scale=1.0), learning_starts=1_000)
    model.learn(40)
    returns = {name: list(queue) for name, queue in zip(model.task_names, model.task_stats._returns, strict=True)}
    assert [len(values) for values in returns.values()] == [5, 5]
    assert all(-4 <= value <= 0 for value in returns["a"]) and all(value < -4 * 49**2 * 0.99 for value in returns["b"])


# Arguments


@pytest.mark.parametrize(
    "policy_kwargs", [{}, {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}}]
)
def test_policy_kwargs_are_not_changed(tiny_agent: TinyAgent, policy_kwargs: dict[str, Any]) -> None:
    given = dict(policy_kwargs)
    model = tiny_agent(policy_kwargs=policy_kwargs)
    assert policy_kwargs == given
    assert type(model.policy.actor.optimizer) is policy_kwargs.get("optimizer_class", th.optim.AdamW)


def test_optimizer_kwargs_leave_the_weight_decay_argument_alone(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(weight_decay=0.125, policy_kwargs={"optimizer_kwargs": {"eps": 1e-5}})
    group = model.policy.critic.optimizer.param_groups[0]
    assert (group["weight_decay"], group["eps"]) == (0.125, 1e-5)


def test_an_optimizer_without_a_fused_version_can_be_used(tiny_agent: TinyAgent) -> None:
    model = tiny_agent(policy_kwargs={"optimizer_class": th.optim.RMSprop}).learn(40)
    assert isinstance(model.policy.actor.optimizer, th.optim.RMSprop) and model._n_updates > 0


@pytest.mark.parametrize("policy", ["MultiTaskPolicy", "MlpPolicy"])
def test_both_names_of_the_policy(policy: str, target_env: TargetEnvs) -> None:
    model = VarShareSAC(policy, target_env(), actor_width=4, critic_width=4, device="cpu")
    assert type(model.policy) is MultiTaskPolicy


def test_a_preset_gives_defaults_that_arguments_override(target_env: TargetEnvs) -> None:
    model = VarShareSAC("MultiTaskPolicy", target_env(), preset="brc", critic_width=8, critic_depth=1, device="cpu")
    assert (model.critic_width, model.critic_depth, model.actor_width, model.gradient_steps) == (8, 1, 256, 2)
    assert (model.adapter, model.learning_starts, model.share_ent_coef) == ("embedding", 10_000, True)
    assert not list(model.policy.actor.means())
