"""dm_control as it is upstream: sizes, order of observations, ends, action repeat, seeds."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sb3_varshare.tasks import MultiTaskEnv, make_suite
from sb3_varshare.tasks.seeding import task_stream

pytest.importorskip("shimmy")
pytest.importorskip("dm_control")

# The quadruped of dm_control 1.0.28 asks numpy for what 2.x deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.in1d. is deprecated:DeprecationWarning")


def make(name: str, seed: int = 0, **options: Any) -> Any:
    spec = make_suite([f"dm_control/{name}"], **options).tasks[0]
    return spec.make(task_stream(seed, "train", spec.full_name, 0))


@pytest.fixture
def walker() -> Iterator[Any]:
    env = make("walker-walk")
    yield env
    env.close()


def test_suites() -> None:
    sizes = {name: make_suite(name).n_tasks for name in ("DMC-easy", "DMC-dogs", "DMC-humanoids", "DMC-full")}
    assert sizes == {"DMC-easy": 21, "DMC-dogs": 4, "DMC-humanoids": 3, "DMC-full": 28}
    full = make_suite("DMC-full")
    assert (full.observation_size, full.action_size) == (223, 38)
    assert make_suite("dm_control/humanoid_CMU-run").action_sizes == (56,)
    assert make_suite("DMC-dogs").task_names == ("dog-stand", "dog-walk", "dog-trot", "dog-run")


def test_the_table_names_the_tasks_of_the_library() -> None:
    from dm_control import suite

    from sb3_varshare.tasks.suites.dm_control import SIZES

    assert set(SIZES) == {f"{domain}-{task}" for domain, task in suite.ALL_TASKS}


# One of each shape of observation, of bounds, and of names with an underscore.
CHEAP = ("ball_in_cup-catch", "cartpole-three_poles", "fish-swim", "quadruped-walk", "lqr-lqr_2_1", "finger-spin")
ALL = ("dog-run", "dog-fetch", "humanoid-run", "humanoid_CMU-run", "manipulator-bring_ball", "stacker-stack_4")


@pytest.mark.parametrize("name", [*CHEAP, *(pytest.param(name, marks=pytest.mark.slow) for name in ALL)])
@pytest.mark.timeout(600)
def test_declared_sizes_and_bounds_are_those_of_the_task(name: str) -> None:
    # A task that differs from its spec is refused.
    env = MultiTaskEnv(f"dm_control/{name}")
    env.reset()
    observation, reward, *_ = env.step(np.ones(env.action_space.shape, dtype=np.float32))
    assert np.isfinite(observation).all() and np.isfinite(reward)
    native = env._envs[0].unwrapped._env.action_spec()  # type: ignore[attr-defined]
    low, high = env.task_description.action_bounds[0]  # type: ignore[index]
    np.testing.assert_allclose(low, native.minimum.clip(-2) if "lqr" not in name else -1)
    np.testing.assert_allclose(high, native.maximum.clip(max=2) if "lqr" not in name else 1)
    env.close()


def test_observations_and_rewards_are_those_of_dm_control(walker: Any) -> None:
    """Flattened in the alphabetical order of the names: height, orientations, velocity."""
    from dm_control import suite

    stream = task_stream(0, "train", "dm_control/walker-walk", 0)
    state = np.random.RandomState(np.random.MT19937(stream))
    reference = suite.load("walker", "walk", task_kwargs={"random": state})
    step = reference.reset()
    observation, _ = walker.reset()
    names = ("height", "orientations", "velocity")
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 6))
    for action in actions:
        np.testing.assert_array_equal(observation, np.hstack([step.observation[name] for name in names]))
        step = reference.step(action)
        observation, reward, terminated, truncated, _ = walker.step(action)
        assert reward == step.reward and not terminated and not truncated


def test_the_time_limit_is_ours_and_truncates() -> None:
    env = MultiTaskEnv("dm_control/pendulum-swingup")
    env.reset()
    ends = [env.step(np.zeros(1, dtype=np.float32))[2:4] for _ in range(1_000)]
    assert ends == [(False, False)] * 999 + [(False, True)]
    # Longer than dm_control's own limit, which is off.
    longer = MultiTaskEnv("dm_control/pendulum-swingup", horizon=1_002)
    longer.reset()
    assert [longer.step(np.zeros(1, dtype=np.float32))[3] for _ in range(1_002)] == [False] * 1_001 + [True]


def test_discount_zero_terminates() -> None:
    """The LQR tasks end when the state has come to rest, with a discount of 0."""
    env = make("lqr-lqr_2_1")
    env.reset()
    physics = env.unwrapped._env.physics
    with physics.reset_context():
        physics.data.qpos[:] = 0
        physics.data.qvel[:] = 0
    assert env.step(np.zeros(1))[2:4] == (True, False)


def test_action_repeat_adds_rewards_and_shortens_the_episode_of_the_agent() -> None:
    plain, repeated = make("cartpole-balance"), make("cartpole-balance", action_repeat=4)
    np.testing.assert_array_equal(plain.reset()[0], repeated.reset()[0])
    for _ in range(3):
        steps = [plain.step(np.array([0.3])) for _ in range(4)]
        observation, reward, *_ = repeated.step(np.array([0.3]))
        np.testing.assert_array_equal(observation, steps[-1][0])
        assert reward == pytest.approx(sum(float(step[1]) for step in steps))
    suite = make_suite("DMC-easy", action_repeat=2)
    assert {task.horizon for task in suite.tasks} == {500}
    assert suite.protocol["dm_control"]["horizon"] == 1_000 and suite.protocol["dm_control"]["action_repeat"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action_repeat": 0}, "at least 1, got 0"),
        ({"horizon": 0}, "positive multiple"),
        ({"horizon": 10, "action_repeat": 3}, r"multiple of action_repeat \(3\).*got 10"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_suite("DMC-easy", **options)


def test_numpys_generator_is_left_alone(walker: Any) -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    walker.reset()
    walker.step(np.zeros(6))
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def test_no_success_is_reported() -> None:
    env = MultiTaskEnv("dm_control/pendulum-swingup")
    env.reset()
    assert set(env.step(np.zeros(1, dtype=np.float32))[4]) == {"task", "task_id"}


def test_rendering_without_a_display_says_what_to_set(walker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    walker.unwrapped.render_mode = "rgb_array"
    with pytest.raises(RuntimeError, match="MUJOCO_GL=egl or MUJOCO_GL=osmesa"):
        walker.render()
