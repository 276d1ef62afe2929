"""The package's own files for the zoo, and what is refused in a file."""

import argparse
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml

pytest.importorskip("rl_zoo3")

from sb3_varshare import VarShareSAC
from sb3_varshare.tasks import find_tasks
from sb3_varshare.zoo import MultiTaskExperimentManager, register
from sb3_varshare.zoo.config import CONFIGS, SUITE_ENTRY_POINT, check_keys

FILES = ("brc", "independent", "l2", "sac", "shared", "tqc", "varshare_sac")
# Its entry is for a user's own choice of tasks.
ANY_TASKS = "MultiTask-v0"
SUITE_IDS = sorted(name for name, spec in gym.registry.items() if spec.entry_point == SUITE_ENTRY_POINT and spec.kwargs)
ADAPTERS = {
    "brc": "embedding",
    "independent": "independent",
    "l2": "deterministic",
    "shared": "none",
    "varshare_sac": "varshare",
}
SMALL = {
    "varshare": {"width": 8, "rows_per_task": 4, "buffer_size": 1000},
    "sb3": {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 1000},
}


@pytest.fixture(autouse=True)
def registered() -> None:
    register()


def manager(folder: Path, name: str, env_id: str, **options: Any) -> MultiTaskExperimentManager:
    algo = name if name in ("sac", "tqc") else "varshare_sac"
    options = {"verbose": 0, "device": "cpu", "eval_freq": -1, "config": str(CONFIGS / f"{name}.yml"), **options}
    return MultiTaskExperimentManager(argparse.Namespace(env=env_id), algo, env_id, str(folder), **options)


def test_no_id_is_part_of_another() -> None:
    # The zoo's plots find the folders of an environment by `id in name`.
    assert len(SUITE_IDS) == 18
    assert [(a, b) for a in SUITE_IDS for b in gym.registry if a != b and a in b] == []


@pytest.mark.parametrize("name", FILES)
def test_every_suite_has_an_entry_that_the_zoo_reads(tmp_path: Path, name: str) -> None:
    entries = yaml.safe_load((CONFIGS / f"{name}.yml").read_text())
    assert sorted(entries) == sorted([*SUITE_IDS, ANY_TASKS])
    del entries[ANY_TASKS]
    for env_id, entry in entries.items():
        read = manager(tmp_path, name, env_id)
        hyperparams, saved = read.read_hyperparameters()
        suite = gym.make(env_id).unwrapped.suite  # type: ignore[attr-defined]
        assert entry["n_envs"] == suite.n_tasks == read.n_tasks
        assert dict(saved) == entry
        assert hyperparams["vec_env_wrapper"] == "sb3_varshare.zoo.AssignTasks"
        left = read._preprocess_hyperparams(dict(hyperparams))[0]
        assert set(left) <= {*entry} - {"n_envs", "n_timesteps", "vec_env_wrapper", "monitor_kwargs"}
    assert not list(tmp_path.iterdir())


def test_there_are_no_other_files() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("env_id", ["Contextual-v0", "HalfCheetahTasks-v0"])
@pytest.mark.parametrize("name", FILES)
def test_an_agent_is_built_from_the_entry(tmp_path: Path, name: str, env_id: str) -> None:
    pytest.importorskip("mujoco")
    small = SMALL["sb3" if name in ("sac", "tqc") else "varshare"]
    built = manager(tmp_path, name, env_id, hyperparams=small).setup_experiment()
    assert built is not None
    model, saved = built
    found = find_tasks(model.env)
    assert found is not None and len(found.names) == model.n_envs == saved["n_envs"]
    assert model.policy.observation_space == gym.make(env_id).observation_space
    if isinstance(model, VarShareSAC):
        assert model.adapter == ADAPTERS[name]
        assert model.batch_size == 4 * model.n_tasks
    else:
        assert type(model).__name__ == name.upper()
    assert model.env is not None
    model.env.close()


@pytest.mark.parametrize("name", FILES)
def test_any_tasks(tmp_path: Path, name: str) -> None:
    small = SMALL["sb3" if name in ("sac", "tqc") else "varshare"]
    options = {"hyperparams": small, "env_kwargs": {"suite": ["contextual/light", "contextual/reversed"]}}
    built = manager(tmp_path, name, ANY_TASKS, **options).setup_experiment()
    assert built is not None
    env = built[0].env
    found = find_tasks(env)
    assert env is not None and found is not None and found.names == ("light", "reversed") and env.num_envs == 10
    env.close()
    with pytest.raises(ValueError, match="Expected the tasks of MultiTask-v0 by env_kwargs"):
        manager(tmp_path / "none", name, ANY_TASKS).setup_experiment()
    assert not (tmp_path / "none").exists()


def test_monitor_files_name_success_only_where_it_is_reported() -> None:
    entries = yaml.safe_load((CONFIGS / "varshare_sac.yml").read_text())
    without = {env_id for env_id, entry in entries.items() if "is_success" not in entry["monitor_kwargs"]}
    gymnasium_suites = {"HalfCheetahTasks-v0", "HopperGravity-v0", "Walker2dMass-v0"}
    assert without - {ANY_TASKS} == {env_id for env_id in SUITE_IDS if env_id.startswith("DMC-")} | gymnasium_suites


@pytest.mark.parametrize(
    ("algo", "key", "message"),
    [
        ("varshare_sac", "betta", "Expected hyper-parameters of 'varshare_sac', got 'betta'; did you mean 'beta'"),
        ("varshare_sac", "sigma_priors", "did you mean 'sigma_prior'"),
        ("varshare_sac", "n_timestep", "did you mean 'n_timesteps'"),
        ("varshare_sac", "rows_per_tasks", "did you mean 'rows_per_task'"),
        ("varshare_sac", "seed", "'seed' cannot stand among the hyper-parameters"),
        ("sac", "beta", "Expected hyper-parameters of 'sac', got 'beta'"),
        ("sac", "gama", "did you mean 'gamma'"),
        ("ppo", "vec_env_wraper", "did you mean 'vec_env_wrapper' or 'env_wrapper'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(algo: str, key: str, message: str) -> None:
    from rl_zoo3 import ALGOS

    with pytest.raises(ValueError, match=message):
        check_keys(["n_envs", "policy", "learning_rate", key], algo, ALGOS[algo])


@pytest.mark.parametrize(
    ("hyperparams", "error", "message"),
    [
        ({"betta": 1}, ValueError, "did you mean 'beta'"),
        ({"normalize": True}, ValueError, "VecNormalize, which has one scale for all tasks"),
        ({"beta": "cos_0.1"}, ValueError, "beta must be a number or lin_<first value>, got 'cos_0.1'"),
        ({"env_kwargs": {"horizen": 3}}, ValueError, "got horizen"),
        ({"n_envs": 0}, ValueError, "n_envs must be a whole number of at least 1, got 0"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    tmp_path: Path, hyperparams: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        manager(tmp_path, "varshare_sac", "Contextual-v0", hyperparams=hyperparams).setup_experiment()
    assert not list(tmp_path.iterdir())


def test_a_suite_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_varshare.tasks.suites.metaworld", None)
    with pytest.raises(ImportError, match=r'not installed; run pip install "sb3_varshare\[metaworld\]"'):
        manager(tmp_path, "varshare_sac", "MT10-v0").setup_experiment()
    assert not list(tmp_path.iterdir())


def test_a_file_without_the_number_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("Contextual-v0:\n  policy: MultiTaskPolicy\n")
    with pytest.raises(ValueError, match="Expected n_timesteps in the file"):
        manager(tmp_path, "varshare_sac", "Contextual-v0", config=str(path)).read_hyperparameters()
    hyperparams, saved = manager(
        tmp_path, "varshare_sac", "Contextual-v0", config=str(path), n_timesteps=12
    ).read_hyperparameters()
    assert hyperparams["n_timesteps"] == 12
    # Without the wrapper every env would play every task.
    assert saved["vec_env_wrapper"] == "sb3_varshare.zoo.AssignTasks"


def test_an_algorithm_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hyper-parameters of 'ppo' .* zoo_configs has brc, independent, l2, sac"):
        MultiTaskExperimentManager(argparse.Namespace(), "ppo", "Contextual-v0", str(tmp_path))


def test_schedules_are_sb3s_own(tmp_path: Path) -> None:
    from stable_baselines3.common.utils import LinearSchedule

    read = manager(tmp_path, "varshare_sac", "Contextual-v0")
    given = read._preprocess_schedules({"learning_rate": "lin_0.1", "beta": "lin_0.5", "gamma": 0.9})
    assert given["gamma"] == 0.9
    for key, start in (("learning_rate", 0.1), ("beta", 0.5)):
        assert isinstance(given[key], LinearSchedule)
        assert [given[key](share) for share in (1.0, 0.5, 0.0)] == [start, start / 2, 0.0]
