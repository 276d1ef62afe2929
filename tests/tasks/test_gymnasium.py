"""Gymnasium's ids as tasks: arguments, wrappers, horizons, and the robots' rewards and physics by hand."""

import json
import pickle
import re
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv

from sb3_varshare.tasks import (
    MultiTaskEnv,
    TaskSpec,
    check_same_protocol,
    describe_protocol,
    gymnasium_task,
    make_suite,
)
from sb3_varshare.tasks.seeding import task_stream

pytest.importorskip("mujoco")


def make(spec: TaskSpec, seed: int = 0) -> Any:
    return spec.make(task_stream(seed, "train", spec.full_name, 0))


def suite_env(name: str, task: int) -> Any:
    return make(make_suite(name).tasks[task])


def test_suites() -> None:
    cheetah = make_suite("HalfCheetah")
    assert cheetah.task_names == ("run", "run-backwards", "run-slow", "run-fast")
    assert cheetah.tasks[0].full_name == "gymnasium/HalfCheetah/run"
    assert {task.horizon for task in cheetah.tasks} == {1_000}
    assert make_suite("HopperGravity").task_names[0] == "gravity-0.5"
    assert make_suite("Walker2dMass").task_names[-1] == "mass-1.5"
    assert make_suite(["gymnasium/HalfCheetah/run-slow", "gymnasium/Pendulum-v1"]).task_names == (
        "run-slow",
        "Pendulum-v1",
    )


def test_an_id_by_name() -> None:
    suite = make_suite("gymnasium/Pendulum-v1")
    (task,) = suite.tasks
    assert (task.name, task.horizon, task.observation_size, task.action_size) == ("Pendulum-v1", 200, 3, 1)
    assert task.bounds == ((-2.0,), (2.0,))
    assert suite.describe().protocol["tasks"]["gymnasium/Pendulum-v1"]["horizon"] == 200
    assert make_suite("gymnasium/Pendulum-v1", horizon=9).tasks[0].horizon == 9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gymnasium/Pendulm-v1", "did you mean 'Pendulum-v1'"),
        ("gymnasium/CartPole-v1", "flat Box as action space"),
        ("gymnasium/HalfCheetah/walk", "got 'HalfCheetah/walk'"),
    ],
)
def test_ids_that_cannot_be_tasks(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_suite(name)


def test_a_task_must_have_a_time_limit() -> None:
    gym.register("Endless-v0", entry_point="gymnasium.envs.classic_control.pendulum:PendulumEnv")
    try:
        with pytest.raises(ValueError, match="Endless-v0 has no time limit of its own: give a horizon"):
            gymnasium_task("Endless-v0")
        assert gymnasium_task("Endless-v0", horizon=5).horizon == 5
    finally:
        gym.registry.pop("Endless-v0")
    for horizon in (0, -3, 2.5):
        with pytest.raises(ValueError, match=rf"'gymnasium/Pendulum-v1' needs a horizon .*got {horizon}"):
            gymnasium_task("Pendulum-v1", horizon=horizon)  # type: ignore[arg-type]


def test_a_task_keeps_what_its_id_was_registered_with() -> None:
    gym.register("Mine-v0", entry_point=PendulumEnv, kwargs={"g": 3.0}, max_episode_steps=7)
    try:
        task = gymnasium_task("Mine-v0")
    finally:
        gym.registry.pop("Mine-v0")
    assert (task.horizon, task.protocol["id"], make(task).unwrapped.g) == (7, "Mine-v0", 3.0)


def test_specs_in_a_list_bring_the_versions_of_their_source() -> None:
    by_name = make_suite("gymnasium/Pendulum-v1").full_protocol
    ready = make_suite([gymnasium_task("Pendulum-v1")]).full_protocol
    assert ready["gymnasium"]["versions"] == by_name["gymnasium"]["versions"] and "tasks" in ready
    check_same_protocol(ready, by_name)
    assert describe_protocol(ready).startswith("gymnasium: horizon of each task, gymnasium ")


def test_wrappers_without_a_name_differ() -> None:
    wrappers = [lambda env: env, lambda env: double_reward(env, 2.0)]
    one, again, other = (make_suite([gymnasium_task("Pendulum-v1", wrapper=wrappers[i])]) for i in (0, 0, 1))
    name = one.tasks[0].protocol["wrapper"]
    assert re.fullmatch(r".*test_gymnasium\.test_wrappers_without_a_name_differ\.<locals>\.<lambda> at \d+:\d+", name)
    check_same_protocol(one.full_protocol, again.full_protocol)
    with pytest.raises(ValueError, match="wrapper"):
        check_same_protocol(one.full_protocol, other.full_protocol)


def double_reward(env: gym.Env, by: float) -> gym.Env:
    return gym.wrappers.TransformReward(env, lambda reward: by * float(reward))


def test_arguments_wrapper_and_horizon_of_a_task() -> None:
    plain = gymnasium_task("Pendulum-v1", "earth")
    heavy = gymnasium_task("Pendulum-v1", "twice", horizon=3, wrapper=partial(double_reward, by=2.0), g=9.0)
    env = MultiTaskEnv([plain, heavy], seed=1)
    assert env.suite.full_protocol["tasks"] == {
        "gymnasium/earth": {"id": "Pendulum-v1", "horizon": 200, "kwargs": {}, "wrapper": None},
        "gymnasium/twice": {
            "id": "Pendulum-v1",
            "horizon": 3,
            "kwargs": {"g": 9.0},
            "wrapper": "double_reward(by=2.0)",
        },
    }
    assert json.loads(json.dumps(env.suite.full_protocol)) == env.suite.full_protocol
    env.reset(options={"task": "twice"})
    inner: Any = env._env
    assert inner.unwrapped.g == 9.0
    angle, speed = inner.unwrapped.state
    angle = (angle + np.pi) % (2 * np.pi) - np.pi
    ends = [env.step(np.zeros(1, dtype=np.float32)) for _ in range(3)]
    assert ends[0][1] == pytest.approx(-2 * (angle**2 + 0.1 * speed**2), rel=1e-5)
    assert [end[3] for end in ends] == [False, False, True]
    assert pickle.loads(pickle.dumps(make_suite("HalfCheetah"))).describe() == make_suite("HalfCheetah").describe()


def test_there_is_one_time_limit() -> None:
    env: Any = suite_env("HalfCheetah", 0)
    while isinstance(env, gym.Wrapper):
        assert not isinstance(env, gym.wrappers.TimeLimit)
        env = env.env


def test_rewards_of_the_cheetahs_are_the_equations_of_the_docs() -> None:
    envs = [suite_env("HalfCheetah", task) for task in range(4)]
    action = np.array([0.5, -1.0, 0.2, 0.0, 1.0, -0.3], dtype=np.float32)
    cost = 0.1 * float(np.square(action).sum())
    velocities = []
    for env in envs:
        env.reset(seed=3)
        for _ in range(5):
            _, reward, terminated, _, info = env.step(action)
        velocities.append((info["x_velocity"], reward))
        assert not terminated
    v = velocities[0][0]
    assert all(velocity == v for velocity, _ in velocities)
    expected = [v - cost, -v - cost, -abs(v - 1.0) - cost, -abs(v - 3.0) - cost]
    assert [reward for _, reward in velocities] == pytest.approx(expected)


def test_gravity_and_mass_are_scaled() -> None:
    usual = gym.make("Hopper-v5").unwrapped.model  # type: ignore[attr-defined]
    for task, factor in enumerate((0.5, 0.75, 1.0, 1.25, 1.5)):
        model = suite_env("HopperGravity", task).unwrapped.model
        assert model.opt.gravity[2] == pytest.approx(-9.81 * factor)
        np.testing.assert_array_equal(model.body_mass, usual.body_mass)
    walker = gym.make("Walker2d-v5").unwrapped.model  # type: ignore[attr-defined]
    heavy = suite_env("Walker2dMass", 4).unwrapped.model
    np.testing.assert_allclose(heavy.body_mass, 1.5 * walker.body_mass)
    np.testing.assert_allclose(heavy.body_inertia, 1.5 * walker.body_inertia)
    # What MuJoCo derives from the masses has followed.
    np.testing.assert_allclose(heavy.body_subtreemass, 1.5 * walker.body_subtreemass)
    np.testing.assert_allclose(
        heavy.dof_M0 - heavy.dof_armature, 1.5 * (walker.dof_M0 - walker.dof_armature), rtol=1e-6
    )
    assert heavy.opt.gravity[2] == walker.opt.gravity[2]


def test_a_hopper_that_falls_terminates() -> None:
    env = MultiTaskEnv("HopperGravity", seed=0)
    env.reset(options={"task": "gravity-1"})
    ends = []
    while not ends or not any(ends[-1]):
        ends.append(env.step(np.full(3, -1.0, dtype=np.float32))[2:4])
    assert ends[-1] == (True, False) and len(ends) < 1_000


def test_no_success_is_reported() -> None:
    env = MultiTaskEnv("HalfCheetah")
    env.reset()
    assert set(env.step(np.zeros(6, dtype=np.float32))[4]) == {"task", "task_id"}


@pytest.mark.parametrize("task", ["HalfCheetah/run", "HopperGravity/gravity-1", "Walker2dMass/mass-0.5"])
def test_films_follow_the_robot(task: str) -> None:
    """Thirty metres on it fills as much of the picture; before a camera that stands still it would be gone."""
    from sb3_varshare.evaluation.video import choose_gl_backend

    try:
        choose_gl_backend()
    except RuntimeError as error:
        pytest.skip(str(error))
    env = MultiTaskEnv(make_suite([f"gymnasium/{task}"]), render_mode="rgb_array")
    env.reset(seed=0)
    robot = env._playing().unwrapped
    sizes = []
    for x in (0.0, 30.0):
        robot.set_state(np.array([x, *robot.data.qpos[1:]]), robot.data.qvel.copy())
        red, _, blue = np.moveaxis(env.render().astype(int), -1, 0)
        sizes.append((red > blue + 30).sum())  # robots are orange, floors green and grey
    env.close()
    assert sizes[0] > 500
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)
