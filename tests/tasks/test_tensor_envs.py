"""Envs on a device: both faces, resets, seeds, and the pendulums against their plain form."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from tensor_helpers import AsArrays, CountingRows, NoWaiting

from sb3_varshare.evaluation import evaluate_tasks
from sb3_varshare.tasks import find_tasks, make_suite, make_tensor_env, split_task
from sb3_varshare.tasks.suites.contextual import CONTEXTS, ContextualPendulum
from sb3_varshare.tasks.suites.contextual_tensor import ContextualTensorEnv
from sb3_varshare.types import TensorStep

ZEROS = th.zeros(4, 1)


def play(env: CountingRows, n_steps: int) -> list[TensorStep]:
    """Steps from a fresh start."""
    env.reset_tensor()
    return [env.step_tensor(th.zeros(env.num_envs, 1)) for _ in range(n_steps)]


# Episodes


def test_rows_end_and_begin_on_their_own() -> None:
    """Rows 0 and 2 terminate after three steps, rows 1 and 3 are cut after five."""
    steps = play(CountingRows(4), 6)
    times = [step.observations[:, 0].tolist() for step in steps]
    assert times == [[1, 1, 1, 1], [2, 2, 2, 2], [0, 3, 0, 3], [1, 4, 1, 4], [2, 0, 2, 0], [0, 1, 0, 1]]
    assert [step.terminated.tolist() for step in steps[2:5]] == [[True, False] * 2, [False] * 4, [False] * 4]
    assert [step.truncated.tolist() for step in steps[2:5]] == [[False] * 4, [False] * 4, [False, True] * 2]
    assert [step.final_observations[:, 0].tolist() for step in steps[2:5]] == [[3, 3, 3, 3], [1, 4, 1, 4], [2, 5, 2, 5]]


def test_a_new_episode_has_a_new_draw_and_the_others_keep_theirs() -> None:
    steps = play(CountingRows(4), 3)
    before, after = steps[1].observations[:, 1], steps[2].observations[:, 1]
    assert (before != after).tolist() == [True, False] * 2
    th.testing.assert_close(steps[2].final_observations[:, 1], before)


def test_statistics_of_episodes_by_hand() -> None:
    steps = play(CountingRows(4), 5)
    # Rewards 1, 2, 3, ... times the number of the row.
    assert steps[2].episode_returns.tolist() == [6, 12, 18, 24] and steps[2].episode_lengths.tolist() == [3] * 4
    assert steps[4].episode_returns.tolist() == [3, 30, 9, 60] and steps[4].episode_lengths.tolist() == [2, 5, 2, 5]
    solved = [(step.is_success, step.success_last) for step in steps]
    assert [(any_.tolist()[1], last.tolist()[1]) for any_, last in solved] == [  # type: ignore[union-attr]
        (False, False),
        (True, True),
        (True, False),
        (True, False),
        (True, False),
    ]
    assert steps[3].is_success is not None and steps[3].is_success.tolist() == [False, True, False, True]


def test_a_termination_at_the_time_limit_is_no_truncation() -> None:
    step = play(CountingRows(2, horizon=3), 3)[-1]
    assert step.terminated.tolist() == [True, False] and step.truncated.tolist() == [False, True]


def test_results_of_a_step_do_not_change_with_the_next() -> None:
    env = CountingRows(2)
    env.reset_tensor()
    first = env.step_tensor(th.zeros(2, 1))
    kept = [None if tensor is None else tensor.clone() for tensor in first]
    for _ in range(4):
        env.step_tensor(th.zeros(2, 1))
    for tensor, copy in zip(first, kept, strict=True):
        assert tensor is not None and copy is not None and th.equal(tensor, copy)


def test_every_row_has_its_tasks_one_hot() -> None:
    env = make_tensor_env("contextual", n_envs=12, device="cpu")
    assert split_task(env.reset_tensor(), 5)[1].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert env.rows_per_task == 3 and env.observation_space.shape == (10,)
    assert find_tasks(env) == find_tasks(AsArrays(env)) == make_suite("contextual").describe()


# SB3's face


def test_both_faces_show_the_same() -> None:
    arrays, tensors = (make_tensor_env("contextual", n_envs=10, seed=4, device="cpu", horizon=6) for _ in range(2))
    np.testing.assert_array_equal(arrays.reset(), tensors.reset_tensor().numpy())
    for actions in np.random.default_rng(0).uniform(-1, 1, (14, 10, 1)).astype(np.float32):
        observations, rewards, dones, infos = arrays.step(actions)
        step = tensors.step_tensor(th.from_numpy(actions))
        np.testing.assert_array_equal(observations, step.observations.numpy())
        np.testing.assert_array_equal(rewards, step.rewards.numpy())
        np.testing.assert_array_equal(dones, (step.terminated | step.truncated).numpy())
        for row in np.flatnonzero(dones):
            np.testing.assert_array_equal(infos[row]["terminal_observation"], step.final_observations[row].numpy())
        assert observations.dtype == rewards.dtype == np.float32


@pytest.mark.parametrize("shape", [(1, 1), (4,), (4, 2), (3, 1)])
def test_actions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    env = CountingRows(4)
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(4, 1\), got \(" + ", ".join(map(str, shape))):
        env.step(np.zeros(shape, dtype=np.float32))
    with pytest.raises(ValueError, match=r"shape \(4, 1\)"):
        env.step_tensor(th.zeros(shape))


def test_observations_of_another_shape_and_odd_numbers_of_rows_are_refused() -> None:
    class Wide(CountingRows):
        def observe_rows(self) -> th.Tensor:
            return super().observe_rows().repeat(1, 2)

    with pytest.raises(ValueError, match=r"observe_rows must give observations of shape \(4, 2\), got \(4, 4\)"):
        Wide(4).reset_tensor()
    with pytest.raises(ValueError, match=r"n_envs must be a whole number of at least 1, got 7\.5"):
        make_tensor_env("contextual", n_envs=7.5, device="cpu")  # type: ignore[arg-type]


def test_infos_of_an_episode_are_those_of_the_plain_envs() -> None:
    env = CountingRows(2)
    env.reset()
    for _ in range(5):
        *_, dones, infos = env.step(np.zeros((2, 1), dtype=np.float32))
    assert dones.tolist() == [False, True] and infos[0] == {}
    info: dict[str, Any] = infos[1]
    assert (info["episode"]["r"], info["episode"]["l"]) == (30.0, 5) and info["episode"]["t"] >= 0
    assert info["TimeLimit.truncated"] and info["is_success"] and not info["success_last"]
    assert (info["task"], info["task_id"]) == ("long", 1)


def test_sb3_learns_and_evaluates_on_it(recwarn: pytest.WarningsRecorder) -> None:
    env = make_tensor_env("contextual", device="cpu", horizon=10)
    model = SAC("MlpPolicy", env, learning_starts=10, batch_size=8, buffer_size=100, seed=0, device="cpu")
    model.learn(20)
    twin = env.evaluation_env()
    returns, lengths = evaluate_policy(model, twin, n_eval_episodes=5, return_episode_rewards=True)
    assert lengths == [10] * 5 and all(value < 0 for value in returns) and not len(recwarn)
    assert twin.env_is_wrapped(Monitor) == [True] * 5
    evaluation = evaluate_tasks(model, env, n_episodes=3)
    assert [episode.length for episode in evaluation.episodes] == [10] * 15
    assert evaluation.protocol == make_suite("contextual", horizon=10).protocol


def test_a_row_can_be_drawn() -> None:
    env = make_tensor_env("contextual", device="cpu")
    env.reset()
    assert isinstance(env, ContextualTensorEnv)
    env.angle = th.zeros(5)
    frames = env.get_images()
    assert len(frames) == 5 and frames[0] is not None and frames[0].shape == (128, 128, 3)
    # Upright: dark above the centre, white below it.
    assert frames[0][42, 64, 0] < 100 < frames[0][86, 64, 0]


# Seeds


def test_equal_seeds_give_equal_episodes() -> None:
    def trajectory(**kwargs: Any) -> th.Tensor:
        env = CountingRows(4, **kwargs)
        return th.stack([env.reset_tensor(), *(env.step_tensor(ZEROS).observations for _ in range(9))])

    assert th.equal(trajectory(seed=1), trajectory(seed=1))
    others = [trajectory(seed=2), trajectory(seed=1, purpose="evaluation")]
    assert not any((other[..., 1] == trajectory(seed=1)[..., 1]).any() for other in others)
    assert len(set(trajectory(seed=1)[0, :, 1].tolist())) == 4


def test_a_seed_begins_the_randomness_anew() -> None:
    env = CountingRows(4, seed=1)
    fresh, again = env.reset_tensor(), env.reset_tensor()
    assert not th.equal(fresh, again)
    assert env.seed(1) == [1] * 4
    assert th.equal(env.reset_tensor(), fresh) and th.equal(env.reset_tensor(), again)
    assert env.seed()[0] == env.seed_value != 1


# Pendulums


def test_physics_reward_and_success_are_those_of_the_plain_pendulums() -> None:
    """Step by step from the same state: errors do not add up, and every step of an episode is compared."""
    env = make_tensor_env("contextual", device="cpu")
    assert isinstance(env, ContextualTensorEnv)
    env.reset()
    plain = [ContextualPendulum(context, np.random.SeedSequence(0)) for context in CONTEXTS.values()]
    for pendulum in plain:
        pendulum.reset()
    rng = np.random.default_rng(0)
    for step in range(199):
        actions = rng.uniform(-1.2, 1.2, (5, 1))
        if step >= 100:  # from here on held up by hand, so that success is met too
            env.angle, env.speed = env.angle * 0 + 0.1, env.speed * 0
        for row, pendulum in enumerate(plain):
            pendulum._angle, pendulum._speed = float(env.angle[row]), float(env.speed[row])
        result = env.step_tensor(th.from_numpy(actions).float())
        expected = [p.step(2.0 * np.clip(action, -1, 1)) for p, action in zip(plain, actions, strict=True)]
        np.testing.assert_allclose(result.observations[:, :5], [e[0] for e in expected], atol=2e-5, rtol=0)
        np.testing.assert_allclose(result.rewards, [e[1] for e in expected], rtol=1e-5, atol=2e-5)
        assert result.success_last is not None
        assert result.success_last.tolist() == [e[4]["is_success"] for e in expected]
    assert result.success_last.all()


def test_a_free_fall_of_two_seconds_is_the_same() -> None:
    env = make_tensor_env("contextual", device="cpu")
    assert isinstance(env, ContextualTensorEnv)
    env.reset()
    plain = [ContextualPendulum(context, np.random.SeedSequence(0)) for context in CONTEXTS.values()]
    for row, pendulum in enumerate(plain):
        pendulum.reset()
        env.angle[row], env.speed[row] = pendulum._angle, pendulum._speed
    for action in np.random.default_rng(0).uniform(-1, 1, 40):
        observed = env.step_tensor(th.full((5, 1), action)).observations[:, :5]
        expected = [pendulum.step(np.array([2 * action]))[0] for pendulum in plain]
    np.testing.assert_allclose(observed, expected, atol=1e-3)


# Devices


def test_a_step_reads_nothing_from_the_device() -> None:
    env = make_tensor_env("contextual", n_envs=10, device="cpu", horizon=3)
    env.reset_tensor()
    with NoWaiting():
        for _ in range(5):
            env.step_tensor(th.zeros(10, 1))


def test_the_check_for_waiting_finds_it() -> None:
    x = th.arange(3.0)
    for wait in (lambda: bool(x[0] > 0), lambda: x.nonzero(), lambda: x[x > 0], lambda: x.max().item()):
        with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
            wait()


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
def test_the_same_code_on_a_gpu() -> None:
    env = make_tensor_env("contextual", n_envs=10, seed=3, device="cuda", horizon=3)
    observations = env.reset_tensor()
    actions = th.zeros(10, 1, device="cuda")
    th.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            step = env.step_tensor(actions)
    finally:
        th.cuda.set_sync_debug_mode("default")
    assert observations.is_cuda and step.observations.is_cuda
    assert env.reset().shape == (10, 10)


# Mistakes


def test_fewer_rows_than_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least as many rows as tasks \(5\), got n_envs=4"):
        make_tensor_env("contextual", n_envs=4)


def test_a_suite_without_a_form_on_the_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"that have envs on a device \(contextual\), got counting"):
        make_tensor_env(CountingRows(2).suite)
    with pytest.raises(ValueError, match="of the source 'contextual'"):
        ContextualTensorEnv(CountingRows(2).suite)


def test_rows_take_no_options() -> None:
    with pytest.raises(ValueError, match="take no options"):
        CountingRows(2).set_options({"task": "short"})
