"""What may stand in a file of the zoo, and where the package's own files are."""

from __future__ import annotations

import inspect
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_varshare.tasks.suite import find_tasks, nearest

# Beside the package in its repository; they are no part of an installed one.
CONFIGS = Path(__file__).resolve().parents[2] / "zoo_configs"
WRAPPER = "sb3_varshare.zoo.AssignTasks"
SUITE_ENTRY_POINT = "sb3_varshare.tasks.multi_task_env:MultiTaskEnv"
# What the zoo itself reads, in rl_zoo3/exp_manager.py.
ZOO_KEYS = {
    *("callback", "env_kwargs", "env_wrapper", "frame_stack", "monitor_kwargs", "n_envs", "n_timesteps"),
    *("noise_std", "noise_type", "normalize", "policy", "vec_env_wrapper"),
}
# What this package adds for its agent: see sb3_varshare/tuning/search_space.py.
OWN_KEYS = {"search_space", "rows_per_task", "width"}
# Arguments that the zoo gives itself, most of them from options of the command.
GIVEN_BY_ZOO = {"env", "tensorboard_log", "seed", "verbose", "device", "_init_setup_model"}


def is_suite(env_id: str) -> bool:
    """
    :param env_id: of Gymnasium
    :return: whether it is a suite of this package
    """
    return gym.spec(env_id).entry_point == SUITE_ENTRY_POINT


def count_tasks(env_id: str, env_kwargs: dict[str, Any]) -> int:
    """
    :param env_id: of Gymnasium
    :param env_kwargs: of its env
    :return: T; 1 for an env that is no suite
    :raises ValueError: if the env wants to be told its suite
    :raises ImportError: if the suite's own package is not installed
    """
    if not is_suite(env_id):
        return 1
    spec = gym.spec(env_id)
    if "suite" not in {**spec.kwargs, **env_kwargs}:
        raise ValueError(
            f"Expected the tasks of {env_id} by env_kwargs, such as --env-kwargs suite:\"'MT1/reach-v3'\"."
        )
    env = spec.make(**env_kwargs)
    found = find_tasks(env)
    assert found is not None
    env.close()
    return len(found.names)


def trained_steps(path: str) -> int:
    """
    :param path: of an agent's file
    :return: steps of its training so far, read without running code from the file
    """
    with zipfile.ZipFile(path) as archive:
        return int(json.loads(archive.read("data"))["num_timesteps"])


def own_config(algo: str) -> str:
    """
    :param algo: name in the zoo
    :return: the package's file for it
    :raises ValueError: there is none
    """
    path = CONFIGS / f"{algo}.yml"
    if not path.is_file():
        known = sorted(file.stem for file in CONFIGS.glob("*.yml"))
        there = f"{CONFIGS.name} has {', '.join(known)}" if known else f"there is no folder {CONFIGS}"
        raise ValueError(f"Expected --conf-file with hyper-parameters of {algo!r} for this environment: {there}.")
    return str(path)


def check_keys(keys: Iterable[str], algo: str, algorithm: type) -> None:
    """
    :param keys: of one entry of a file, with those of ``-params``
    :param algo: name in the zoo
    :param algorithm: its class
    :raises ValueError: the zoo does not read a key, and the algorithm does not take it
    """
    arguments = set(inspect.signature(algorithm.__init__).parameters) - {"self"}  # type: ignore[misc]
    valid = (arguments - GIVEN_BY_ZOO) | ZOO_KEYS | (OWN_KEYS if algo == "varshare_sac" else set())
    for key in keys:
        if key in GIVEN_BY_ZOO:
            raise ValueError(f"{key!r} cannot stand among the hyper-parameters: the zoo sets it, from its own options.")
        if key not in valid:
            raise ValueError(f"Expected hyper-parameters of {algo!r}, got {key!r}; {nearest(key, valid)}")
