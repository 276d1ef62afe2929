"""From names, lists and mappings to suites, and Gymnasium's ids."""

import dataclasses
import json
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_varshare.tasks import (
    MultiTaskEnv,
    TaskDescription,
    TaskSource,
    TaskSpec,
    TaskSuite,
    make_suite,
    register_source,
    registry,
)
from sb3_varshare.tasks.protocol import protocol_differences
from sb3_varshare.tasks.registry import remake_suite
from sb3_varshare.tasks.suites.contextual import CONTEXTS, TORQUES, ContextualPendulum


def pendulum(**kwargs: Any) -> gym.Env:
    return gym.make("Pendulum-v1", **kwargs)


def test_named_suites() -> None:
    assert make_suite("contextual").task_names == ("swing-up", "swing-up-twin", "forward", "reversed", "light")
    assert make_suite("MT3").task_names == ("reach-v3", "drawer-close-v3", "button-press-topdown-v3")
    assert [make_suite(name).n_tasks for name in ("MT10", "MT25", "MT50")] == [10, 25, 50]
    assert make_suite("MT10").task_names[:3] == ("reach-v3", "push-v3", "pick-place-v3")


@pytest.mark.parametrize("name", ["MT1/push-v3", "metaworld/push-v3"])
def test_a_suite_of_one(name: str) -> None:
    suite = make_suite(name)
    assert suite.name == name
    assert [task.full_name for task in suite.tasks] == ["metaworld/push-v3"]


def test_a_list_may_mix_sources_and_specs(scripted_task: Callable[..., TaskSpec]) -> None:
    suite = make_suite(["metaworld/reach-v3", "contextual/light", scripted_task("mine", size=50)], horizon=30)
    assert suite.task_names == ("reach-v3", "light", "mine")
    assert [task.horizon for task in suite.tasks] == [30, 30, None]
    assert (suite.observation_size, suite.action_sizes) == (50, (4, 1, 1))
    assert set(suite.protocol) == {"name", "success", "metaworld", "contextual"}


def test_a_suite_passes_through(scripted_suite: Callable[..., TaskSuite]) -> None:
    suite = scripted_suite()
    assert make_suite(suite) is suite
    with pytest.raises(ValueError, match="already built"):
        make_suite(suite, horizon=3)


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        ("MT11", {}, "Expected the name of a suite, got 'MT11'; did you mean 'MT10'"),
        ("MT1/raech-v3", {}, "source 'metaworld', got 'raech-v3'; did you mean 'reach-v3'"),
        (["reach-v3"], {}, "Expected 'source/task' with a source of metaworld, .*contextual, got 'reach-v3'"),
        (["reach-v3"], {}, "did you mean 'metaworld/reach-v3'"),
        (["MT10", "contextual/light"], {}, "got 'MT10', which is a suite; give it alone"),
        ([3], {}, "names of tasks or TaskSpecs, got 3"),
        (["contextual/swingup"], {}, "did you mean 'swing-up'"),
        ({"mine": pendulum}, {"horizon": 0}, "'custom/mine' needs a horizon of at least 1 step, got 0"),
        ({"mine": pendulum()}, {}, "callable that builds the env of task 'mine', got <(Patched)?TimeLimit"),
        ([], {}, "no tasks"),
        (["contextual/light", "contextual/light"], {}, "once"),
        ("contextual", {"n_goals": 3}, r"options of tasks of contextual \(horizon\), got n_goals"),
        ("contextual", {"horizon": 0}, "at least 1 step, got 0"),
    ],
)
def test_what_cannot_be_resolved(tasks: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_suite(tasks, **options)


@pytest.mark.parametrize("tasks", ["MT3", "contextual", {"mine": pendulum}], ids=["MT3", "contextual", "own"])
def test_a_suite_can_be_written_down_and_sent_to_a_worker(tasks: Any) -> None:
    suite = make_suite(tasks, horizon=30)
    assert json.loads(json.dumps(suite.protocol)) == suite.protocol
    assert pickle.loads(pickle.dumps(suite)).describe() == suite.describe()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for source, suite, extra in (("metaworld", "MT3", "metaworld"), ("dm_control", "DMC-easy", "dm-control")):
        entry = registry.SOURCES[source]._replace(module="no_such_package")
        monkeypatch.setitem(registry.SOURCES, source, entry)
        with pytest.raises(
            ImportError, match=rf'need the package .no_such_package.*pip install "sb3_varshare\[{extra}\]"'
        ):
            make_suite(suite)


def test_envs_of_ones_own() -> None:
    suite = make_suite({"heavy": lambda: pendulum(g=12.0), "easy": lambda: pendulum(g=1.0)})
    assert [task.full_name for task in suite.tasks] == ["custom/heavy", "custom/easy"]
    env = MultiTaskEnv(suite, seed=3)
    starts = [env.reset(options={"task": "easy"})[0] for _ in range(3)]
    again = MultiTaskEnv(suite, seed=3)
    assert all(np.array_equal(start, again.reset(options={"task": "easy"})[0]) for start in starts)
    assert not np.array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0][:3], env.reset(seed=3)[0][:3])
    assert np.array_equal(starts[0], env.reset(seed=3, options={"task": "easy"})[0])
    truncated = [env.step(np.zeros(1, dtype=np.float32))[3] for _ in range(200)]
    assert truncated == [False] * 199 + [True]


@pytest.mark.parametrize(
    ("env_id", "message"),
    [("CartPole-v1", "'mine' must have a flat Box as action space, got Discrete"), ("Blackjack-v1", "flat Box as obs")],
)
def test_envs_of_ones_own_with_other_spaces(env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_suite({"mine": lambda: gym.make(env_id)})


def test_unbounded_actions_are_refused() -> None:
    env = pendulum()
    env.action_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(ValueError, match="bounded actions"):
        make_suite({"mine": lambda: env})


@pytest.fixture
def grid_source(monkeypatch: pytest.MonkeyPatch) -> str:
    """A source of one's own: name of a module with ``load``."""
    module = types.ModuleType("grid_tasks")

    def load(horizon: int = 7, wind: float = 0.0) -> TaskSource:
        make = partial(ContextualPendulum, CONTEXTS["light"])
        tasks = {name: TaskSpec(name, "grid", make, horizon, 5, 1, TORQUES) for name in ("east", "west")}
        return TaskSource("grid", tasks, {"Grid": ("west", "east")}, {"horizon": horizon, "wind": wind})

    module.load = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "grid_tasks", module)
    monkeypatch.setattr(registry, "SOURCES", dict(registry.SOURCES))
    return "grid_tasks"


def test_a_source_of_ones_own(grid_source: str) -> None:
    register_source("grid", grid_source, suites=["Grid"])
    assert make_suite("Grid", wind=2.0).describe() == TaskDescription(
        ("west", "east"),
        (1, 1),
        {"success": "any step of the episode", "grid": {"horizon": 7, "wind": 2.0}},
        ("grid/west", "grid/east"),
        (TORQUES, TORQUES),
        (5, 5),
        5,
    )
    env = MultiTaskEnv(["grid/east", "contextual/light"], horizon=3)
    env.reset()
    assert [env.step(np.zeros(1, dtype=np.float32))[3] for _ in range(3)] == [False, False, True]
    # A suite's own defaults stand below what the caller gives.
    register_source("grid", grid_source, suites={"Grid": {"wind": 5.0}})
    winds = [make_suite("Grid", **options).protocol["grid"]["wind"] for options in ({}, {"wind": 1.0})]
    assert winds == [5.0, 1.0]
    assert make_suite("grid/east").protocol["grid"]["wind"] == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("metaworld", "grid_tasks"), "'metaworld' is that of sb3_varshare.tasks.suites.metaworld"),
        (("grid", "grid_tasks", ["MT10"]), r"suites \['MT10'\] are those of source 'metaworld'"),
        (("my/grid", "grid_tasks"), "without a slash"),
    ],
)
def test_a_name_that_is_taken_is_refused(grid_source: str, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_source(*arguments)


def test_the_module_of_a_source_may_be_missing(grid_source: str) -> None:
    register_source("grid", "no_such_module", suites=["Grid"])
    with pytest.raises(ImportError, match=r"need the package 'no_such_module', which is not installed\.$"):
        make_suite("Grid")


def test_a_spec_must_declare_the_bounds_of_its_env(scripted_task: Callable[..., TaskSpec]) -> None:
    spec = dataclasses.replace(scripted_task("one"), action_bounds=None)
    with pytest.raises(ValueError, match=r"declares actions from \(-1.0,\) to \(1.0,\), but its env has .*3.0"):
        MultiTaskEnv([spec]).reset()


def test_gymnasium_ids() -> None:
    env = gym.make("Contextual-v0", seed=5, horizon=3)
    observation, info = env.reset(options={"task": "light"})
    assert env.observation_space.contains(observation)
    assert info == {"task": "light", "task_id": 4}
    assert gym.make("MultiTask-v0", suite=["contextual/light"]).get_wrapper_attr("task_names") == ("light",)
    assert gym.make("MT10-v0").action_space.shape == (4,)


def test_importing_tasks_is_light() -> None:
    heavy = "{'torch', 'stable_baselines3', 'mujoco', 'metaworld', 'dm_control', 'matplotlib'}"
    code = f"import sys, sb3_varshare.tasks; print(sorted({heavy} & set(sys.modules)))"
    worker = f"from sb3_varshare.tasks import MultiTaskEnv; MultiTaskEnv('contextual').reset(); {code}"
    for program in (code, worker):
        done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
        assert (done.stdout.strip(), done.stderr) == ("[]", "")


# A suite again


@pytest.mark.parametrize(
    ("tasks", "options"),
    [
        (["contextual/light", "contextual/swing-up"], {"horizon": 20}),
        ("MT1/reach-v3", {"protocol": "brc", "horizon": 20, "reward_version": "v1"}),
        ("ML10-test", {}),
        ("HalfCheetah", {"horizon": 50}),
        (["metaworld/reach-v3", "gymnasium/Pendulum-v1", "gymnasium/HalfCheetah-v5"], {"protocol": "brc"}),
    ],
)
def test_a_suite_is_made_again_from_what_a_model_keeps(tasks: Any, options: dict[str, Any]) -> None:
    if "contextual" not in str(tasks):
        pytest.importorskip("metaworld")
    first = make_suite(tasks, **options)
    kept = first.describe()
    again = remake_suite(list(kept.full_names), json.loads(json.dumps(kept.protocol)))
    assert protocol_differences(again.full_protocol, kept.protocol) == []
    assert [(task.full_name, task.horizon) for task in again.tasks] == [(t.full_name, t.horizon) for t in first.tasks]
    assert again.task_names == first.task_names


def test_tasks_of_an_unknown_source_are_not_made_again() -> None:
    with pytest.raises(ValueError, match=r"tasks of custom, planets cannot be made .* import the module"):
        remake_suite(["planets/moon", "custom/a", "contextual/light"], {})
