"""A suite of two simulators: padded, masked, trained, saved, loaded, evaluated, and played outside of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_varshare import VarShareSAC, evaluate_tasks, make_multitask_env
from sb3_varshare.varshare_sac import saving

TASKS = ["metaworld/reach-v3", "metaworld/drawer-close-v3", "dm_control/cartpole-balance", "dm_control/walker-walk"]
TINY: dict[str, Any] = {"actor_width": 8, "critic_width": 8, "batch_size": 32, "device": "cpu", "seed": 0}


def small_agent(env: Any, **arguments: Any) -> VarShareSAC:
    return VarShareSAC("MultiTaskPolicy", env, learning_starts=100, buffer_size=4_000, **{**TINY, **arguments})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_mixed_suite_trains_saves_loads_and_evaluates(tmp_path: Path) -> None:
    for package in ("metaworld", "shimmy"):
        pytest.importorskip(package)
    env = make_multitask_env(TASKS, horizon=30)
    assert env.suite.action_sizes == (4, 4, 1, 6) and env.action_space.shape == (6,)
    assert [task.observation_size for task in env.suite.tasks] == [39, 39, 5, 24]
    model = small_agent(env)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(4 * 230)
    assert model._n_updates >= 190
    pairs = list(zip(before, model.policy.parameters(), strict=True))
    assert all(bool(now.isfinite().all()) for _, now in pairs) and any(not th.equal(old, now) for old, now in pairs)
    # Half of each task's own actions, not of the padded ones, and no padded action is stored.
    assert model.target_entropy_tensor.tolist() == [-2.0, -2.0, -0.5, -3.0]
    batch = model.replay_buffer.sample(16)
    for task, size in enumerate(env.suite.action_sizes):
        assert not batch.actions[task, :, size:].any() and batch.actions[task, :, :size].any()
    model.save(tmp_path / "mixed")
    loaded = VarShareSAC.load(tmp_path / "mixed", env=env, device="cpu")
    assert loaded.protocol == model.protocol and loaded.full_names == TASKS
    one, other = (evaluate_tasks(agent, env, n_episodes=1) for agent in (model, loaded))
    assert one.episodes == other.episodes and {episode.length for episode in one.episodes} == {30}
    assert set(one.success_rates()) == {"reach-v3", "drawer-close-v3"}
    assert "metaworld: 50 goals" in one.protocol_line and "dm_control: horizon 30" in one.protocol_line
    env.close()


@pytest.fixture
def unequal_tasks() -> dict[str, Any]:
    """One action with bounds of its own, and two."""
    import gymnasium as gym

    class Pair(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (2,), dtype=np.float32)
        action_space = gym.spaces.Box(np.float32([-1.0, 0.0]), np.float32([3.0, 10.0]))

        def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
            self.time = 0
            return np.zeros(2, dtype=np.float32), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            self.time += 1
            return np.zeros(2, dtype=np.float32), 1.0, self.time == 5, False, {}

    return {"pendulum": lambda: gym.make("Pendulum-v1"), "pair": Pair}


def test_padded_actions_count_in_no_log_probability_or_entropy(unequal_tasks: dict[str, Any]) -> None:
    """The log-probability of the short task does not change with the policy's outputs for what it does not have."""
    model = small_agent(make_multitask_env(unequal_tasks))
    policy = model.policy
    assert policy.action_mask[:, 0].tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert model.target_entropy_tensor.tolist() == [-0.5, -1.0]
    observations = th.zeros(2, 3, policy.observation_size)
    found = []
    for shift in (0.0, 2.0):
        with th.no_grad():
            # Mean and deviation of the second action, which only the second task has.
            policy.actor.mean.bias[..., 1] += shift
            policy.actor.log_std.bias[..., 1] += shift
            th.manual_seed(3)
            found.append(policy.action_log_prob(observations))
    (actions, log_probs), (shifted_actions, shifted_log_probs) = (pair[:2] for pair in found)
    assert not actions[0, :, 1].any() and not shifted_actions[0, :, 1].any()
    th.testing.assert_close(log_probs[0], shifted_log_probs[0])
    assert not th.allclose(log_probs[1], shifted_log_probs[1])


def test_predict_task_gives_the_tasks_own_action(unequal_tasks: dict[str, Any], tmp_path: Path) -> None:
    model = small_agent(make_multitask_env(unequal_tasks))
    rows = {"pendulum": np.zeros(3, dtype=np.float32), "pair": np.zeros(2, dtype=np.float32)}
    with th.no_grad():
        for parameter in model.policy.actor.parameters():
            parameter.normal_()
    model.save(tmp_path / "agent")
    for agent in (model, VarShareSAC.load(tmp_path / "agent", device="cpu")):
        own = agent.predict_task(rows["pendulum"], "custom/pendulum")[0]
        unit = agent.predict(np.array([0, 0, 0, 1, 0], dtype=np.float32), deterministic=True)[0]
        assert own.shape == (1,) and own == pytest.approx(2.0 * unit[:1])
        own = agent.predict_task(rows["pair"], "pair")[0]
        unit = agent.predict(np.array([0, 0, 0, 0, 1], dtype=np.float32), deterministic=True)[0]
        assert own == pytest.approx([1 + 2 * unit[0], 5 + 5 * unit[1]], abs=1e-5)
        assert agent.predict_task(np.zeros((4, 2)), "pair")[0].shape == (4, 2)


def test_another_sources_task_of_the_same_name_is_unknown(unequal_tasks: dict[str, Any]) -> None:
    model = small_agent(make_multitask_env(unequal_tasks))
    assert [model.task_id(task) for task in ("pair", "custom/pair", 1)] == [1, 1, 1]
    with pytest.raises(ValueError, match="Unknown task 'metaworld/pair'; did you mean 'pair'"):
        model.task_id("metaworld/pair")


def test_a_file_without_bounds_says_so_and_takes_them_from_an_env(
    unequal_tasks: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_multitask_env(unequal_tasks)
    model = small_agent(env)
    model.save(tmp_path / "agent", exclude=["action_bounds", "full_names"])
    data = saving.read_data(tmp_path / "agent", trusted=False)
    assert "action_bounds" not in data and data["task_names"] == ["pendulum", "pair"]
    old = VarShareSAC.load(tmp_path / "agent", device="cpu")
    with pytest.raises(ValueError, match="did not keep the bounds of the tasks' actions: load it with env="):
        old.predict_task(np.zeros(3), "pendulum")
    mended = VarShareSAC.load(tmp_path / "agent", env=env, device="cpu")
    np.testing.assert_array_equal(
        mended.predict_task(np.zeros(3), "custom/pendulum")[0], model.predict_task(np.zeros(3), "pendulum")[0]
    )


def test_going_on_in_another_env_is_a_new_protocol() -> None:
    first, second = (make_multitask_env("contextual", horizon=horizon) for horizon in (10, 12))
    model = small_agent(first, batch_size=50)
    model.set_env(second)
    assert model.protocol["contextual"]["horizon"] == 10
    evaluation = evaluate_tasks(model, second, n_episodes=1)
    assert "Trained under another protocol: contextual.horizon: 10 against 12" in evaluation.protocol_line
    model.learn(5)
    assert model.protocol["contextual"]["horizon"] == 12
    assert "another" not in evaluate_tasks(model, second, n_episodes=1).protocol_line
