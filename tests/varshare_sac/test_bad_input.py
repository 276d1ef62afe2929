"""Bad input gets a clear error and loses nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_varshare import VarShareSAC, make_multitask_env
from sb3_varshare.varshare_sac import memory

TinyAgent = Callable[..., VarShareSAC]
TargetEnvs = Callable[..., Any]


class SpacesEnv(gym.Env):
    """Has spaces and nothing else."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space


FLAT = gym.spaces.Box(-1, 1, (3,), dtype=np.float32)
ACTIONS = gym.spaces.Box(-1, 1, (1,), dtype=np.float32)

# Arguments


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"adapter": "varshar"}, "adapter must be one of .*'varshare'.*got 'varshar'"),
        ({"kl_scale": "datum"}, "kl_scale must be one of"),
        ({"task_input": "onehot"}, "task_input must be one of"),
        ({"exploration": "thompson"}, "exploration must be one of"),
        ({"exploration": "posterior", "adapter": "none"}, "exploration='posterior' draws weights"),
        ({"exploration": "posterior", "adapter": "deterministic"}, "exploration='posterior' draws weights"),
        ({"exploration": "posterior", "actor_residuals": False}, "exploration='posterior' draws weights"),
        ({"sigma_structure": "diagonal"}, "sigma_structure must be one of"),
        ({"estimator": "reparameterization"}, "estimator must be one of"),
        ({"prior_scale": "absolut"}, "prior_scale must be"),
        ({"sigma_prior": 0.0}, "sigma_prior must be a positive"),
        ({"adapter": "low_rank", "rank": 0}, "rank must be at least 1"),
        ({"preset": "huge"}, "preset must be one of"),
        ({"n_tasks": 3}, "n_tasks is 3, but the environment has 2 tasks"),
        ({"batch_size": 33}, r"multiple of n_tasks \(2\).*got 33; use 32 or 34"),
        ({"batch_size": 1}, r"multiple of n_tasks \(2\).*got 1; use 2 or 4"),
        ({"batch_size": 0}, r"multiple of n_tasks \(2\).*got 0; use 2 or 4"),
        ({"buffer_size": 1}, r"buffer_size must be at least n_tasks \(2\)"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"ent_coef": "automatic"}, "ent_coef must be a number"),
        ({"ent_coef": "auto_-1"}, "ent_coef must be a number"),
        ({"ent_coef": "auto_x"}, "ent_coef must be a number"),
        ({"ent_coef": None}, "ent_coef must be a number"),
        ({"ent_coef": -0.1}, "ent_coef must be a number"),
        ({"ent_coef": [0.1, -0.1]}, "ent_coef must be a number"),
        ({"tau": 1.5}, "tau must"),
        ({"ent_coef": [0.1, 0.2, 0.3]}, r"ent_coef must be one number or one per task \(2\), got 3"),
        ({"target_entropy": "min"}, "target_entropy must be 'auto'"),
        ({"target_entropy": [-1.0]}, r"target_entropy must be one number or one per task \(2\), got 1"),
        ({"gamma": 1.0}, "gamma must"),
        ({"gamma": -0.1}, "gamma must"),
        ({"v_min": 10.0}, "v_min must be below v_max"),
        ({"v_max": -1.0}, "v_max must be positive"),
        ({"n_atoms": 1}, "n_atoms must"),
        ({"n_critics": 0}, "n_critics must"),
        ({"beta": -1.0}, "beta must"),
        ({"beta_warmup": 2.0}, "beta_warmup must"),
        ({"recenter_every": -1}, "recenter_every must"),
        ({"initial_return_std": 0.0}, "initial_return_std must"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_arguments_are_checked_when_the_agent_is_built(
    tiny_agent: TinyAgent, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_agent(**kwargs)


# Environments


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (FLAT, gym.spaces.Discrete(3), "continuous action space"),
        (FLAT, gym.spaces.MultiDiscrete([2, 2]), "continuous action space"),
        (gym.spaces.Dict({"a": FLAT}), ACTIONS, "flat observations"),
        (gym.spaces.Box(0, 255, (4, 4, 3), dtype=np.uint8), ACTIONS, "flat observations"),
        (gym.spaces.Discrete(4), ACTIONS, "flat observations"),
    ],
)
@pytest.mark.parametrize("vectorised", [False, True])
def test_spaces_that_cannot_be_used(
    tiny_agent: TinyAgent, observation_space: gym.Space, action_space: gym.Space, message: str, vectorised: bool
) -> None:
    env: Any = SpacesEnv(observation_space, action_space)
    with pytest.raises(ValueError, match=message):
        tiny_agent(DummyVecEnv([lambda: env]) if vectorised else env)


def test_an_id_is_checked_like_an_environment(tiny_agent: TinyAgent) -> None:
    with pytest.raises(ValueError, match="continuous action space"):
        tiny_agent("CartPole-v1")


@pytest.mark.parametrize("n_tasks", [-1, 0, 3, 7])
def test_a_one_hot_must_fit_into_the_observation(tiny_agent: TinyAgent, n_tasks: int) -> None:
    with pytest.raises(ValueError, match=rf"got n_tasks={n_tasks} with observations of 3 numbers"):
        tiny_agent("Pendulum-v1", n_tasks=n_tasks, batch_size=None)


def test_an_observation_without_the_one_hot_it_should_have(tiny_agent: TinyAgent) -> None:
    with pytest.raises(ValueError, match="to be the one-hot of its task"):
        tiny_agent("Pendulum-v1", n_tasks=2).learn(10)


def test_vec_normalize_is_refused_everywhere(tiny_agent: TinyAgent, target_env: TargetEnvs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="VecNormalize has one scale"):
        tiny_agent(VecNormalize(target_env()))
    model = tiny_agent()
    with pytest.raises(ValueError, match="VecNormalize has one scale"):
        model.set_env(VecNormalize(target_env()))
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="VecNormalize has one scale"):
        VarShareSAC.load(tmp_path / "model", VecNormalize(target_env()))
    assert model.learn(20).num_timesteps == 20


@pytest.mark.parametrize(
    ("targets", "kwargs", "message"),
    [
        (
            {"plus": 0.7, "minus": -0.7, "zero": 0.0},
            {},
            r"knows the tasks \['plus', 'minus'\].*has \['plus', 'minus', 'z",
        ),
        ({"minus": -0.7, "plus": 0.7}, {}, r"has \['minus', 'plus'\], in order"),
        ({"plus": 0.7, "other": -0.7}, {}, r"has \['plus', 'other'\]"),
        ({"plus": 0.7, "minus": -0.7}, {"observation_size": 5}, "Observation spaces do not match"),
        ({"plus": 0.7, "minus": -0.7}, {"action_size": 2}, "Action spaces do not match"),
    ],
)
def test_another_environment_must_have_the_same_tasks(
    tiny_agent: TinyAgent,
    target_env: TargetEnvs,
    tmp_path: Path,
    targets: dict[str, float],
    kwargs: dict[str, Any],
    message: str,
) -> None:
    model = tiny_agent()
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        model.set_env(target_env(targets, **kwargs))
    with pytest.raises(ValueError, match=message):
        VarShareSAC.load(tmp_path / "model", target_env(targets, **kwargs))
    assert model.learn(20).num_timesteps == 20


@pytest.mark.parametrize("what", ["action", "observation"])
def test_the_tasks_of_another_environment_must_have_their_own_sizes(
    tiny_agent: TinyAgent, single_target_env: type, tmp_path: Path, what: str
) -> None:
    """Padded to the longest, the spaces are equal."""

    def make(*sizes: int) -> Any:
        tasks = zip(("one", "other"), sizes, strict=True)
        return make_multitask_env(
            {name: lambda size=size: single_target_env(**{f"{what}_size": size}) for name, size in tasks}
        )

    model = tiny_agent(make(3, 2))
    model.save(tmp_path / "model")
    message = rf"\['one', 'other'\] have {what}s of \[3, 2\] numbers, those of the environment of \[2, 3\], in order"
    with pytest.raises(ValueError, match=message):
        model.set_env(make(2, 3))
    with pytest.raises(ValueError, match=message):
        VarShareSAC.load(tmp_path / "model", make(2, 3))
    model.set_env(make(3, 2))


# Numbers that are none


class Faulty(gym.Wrapper):
    """Gives a number that is none in the third step of the second episode, once."""

    def __init__(self, env: gym.Env, where: str, value: float) -> None:
        super().__init__(env)
        self.where, self.value, self.episodes, self.broken = where, value, 0, True

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        observation, info = self.env.reset(**kwargs)
        self.episodes, self.time = self.episodes + 1, 0
        if self.where == "reset" and self.episodes == 2 and self.broken:
            self.broken = False
            observation = np.full_like(observation, self.value)
        return observation, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.time += 1
        if self.episodes == 2 and self.time == 3 and self.broken and self.where != "reset":
            self.broken = False
            if self.where == "reward":
                reward = self.value
            else:
                observation = np.full_like(observation, self.value)
        return observation, float(reward), terminated, truncated, info


@pytest.mark.parametrize(
    ("where", "value", "name", "step"),
    [
        ("reward", np.nan, "reward", 14),
        ("reward", np.inf, "reward", 14),
        ("observation", np.nan, "observation", 14),
        ("observation", -np.inf, "observation", 14),
        ("reset", np.nan, "reset observation", 8),
    ],
)
@pytest.mark.parametrize("n_steps", [1, 3])
def test_numbers_that_are_none_are_named_and_lose_nothing(
    tiny_agent: TinyAgent, single_target_env: type, where: str, value: float, name: str, step: int, n_steps: int
) -> None:
    env = make_multitask_env({"sound": single_target_env, "faulty": lambda: Faulty(single_target_env(), where, value)})
    model = tiny_agent(env, learning_starts=8, n_steps=n_steps)
    seen: list[tuple[dict[str, th.Tensor], list[int]]] = []

    def watch(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        state = {key: tensor.clone() for key, tensor in model.policy.state_dict().items()}
        seen.append((state, model.replay_buffer.sizes.tolist()))
        return True

    # The suite builds and resets each environment once before: what counts is the second episode of training.
    with pytest.raises(ValueError) as caught:
        model.learn(60, callback=watch)
    assert f"gave a {name} that is not finite: task 'faulty', environment 1, step {step}" in str(caught.value)
    state, sizes = seen[-1]
    assert all(th.equal(tensor, state[key]) for key, tensor in model.policy.state_dict().items())
    assert model.replay_buffer.sizes.tolist() == sizes and model.replay_buffer.check_valid() == (True, "")
    model.learn(40, reset_num_timesteps=False)
    assert model.num_timesteps == step + 40 and model._n_updates > 0
    assert model.replay_buffer.check_valid() == (True, "")
    # No row leads from before the fault to after it: time goes on by n steps, or to the end of the episode.
    for task in range(2):
        rows = model.replay_buffer.sample(2 * 500)
        steps = (rows.next_observations[task, :, 0] - rows.observations[task, :, 0]) * 4
        assert steps.max().round().item() == n_steps and steps.min().round().item() == 1


def test_a_first_observation_that_is_not_finite(tiny_agent: TinyAgent, single_target_env: type) -> None:
    class Sick(gym.Wrapper):
        sick = True

        def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
            observation, info = self.env.reset(**kwargs)
            return np.full_like(observation, np.nan if Sick.sick else 0), info

    env = make_multitask_env({"sound": single_target_env, "sick": lambda: Sick(single_target_env())})
    model = tiny_agent(env)
    with pytest.raises(ValueError, match="first observation that is not finite: task 'sick', environment 1, step 0"):
        model.learn(20)
    assert model.replay_buffer.size() == 0
    Sick.sick = False
    assert model.learn(20).num_timesteps == 20


# Memory


def test_what_does_not_fit_is_refused_before_it_is_allocated(
    tiny_agent: TinyAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    original = th.nn.Module.__init__

    def record(self: th.nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        built.append(str(th.empty(0).device))

    monkeypatch.setattr(memory, "free_memory", lambda device: 10 * 2**30)
    monkeypatch.setattr(th.nn.Module, "__init__", record)
    with pytest.raises(MemoryError) as caught:
        tiny_agent(critic_width=16_384, critic_depth=2)
    message = str(caught.value)
    assert "critic_width (16384)" in message and "low_rank" in message and "has 10.00 GiB free" in message
    assert built and set(built) == {"meta"}


def test_the_replay_counts_where_it_lives(tiny_agent: TinyAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**30)
    with pytest.raises(MemoryError, match=r"replay .*buffer_size \(100000000\)"):
        tiny_agent(buffer_size=10**8)
    tiny_agent(buffer_size=10**8, replay_device="meta")


def test_an_agent_that_only_acts_needs_no_room_for_a_replay(
    tiny_agent: TinyAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_agent(buffer_size=10**8).save(tmp_path / "model")
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**30)
    VarShareSAC.load(tmp_path / "model", device="cpu").predict(np.zeros((1, 4), dtype=np.float32))


def test_the_count_is_that_of_the_parameters(tiny_agent: TinyAgent) -> None:
    model = tiny_agent()
    need = model.memory_need
    trained = sum(p.numel() for net in (model.policy.actor, model.policy.critic) for p in net.parameters())
    target = sum(p.numel() for p in model.policy.critic_target.parameters())
    assert (need.parameters, need.networks, need.target) == (trained, 16 * trained, 4 * target)
    assert need.replay == 4 * 4_000 * model.replay_buffer.row_size
    outputs = model.n_critics * model.batch_size * model.critic_width
    assert need.working == 4 * (2.5 * trained + 50 * outputs)
    assert need.total == need.networks + need.target + need.working + need.replay


def test_the_need_is_said(tiny_agent: TinyAgent, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_agent(verbose=1)
    assert "VarShareSAC takes 0.00 GiB for" in capsys.readouterr().out
