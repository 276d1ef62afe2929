"""One's own Gymnasium envs as tasks."""

from collections.abc import Callable, Mapping
from functools import partial

import gymnasium as gym
import numpy as np

from sb3_varshare.tasks.seeding import SeededOnce
from sb3_varshare.tasks.spaces import action_bounds, check_spaces
from sb3_varshare.tasks.suite import TaskSource, TaskSpec


def _make(factory: Callable[[], gym.Env], stream: np.random.SeedSequence) -> gym.Env:
    return SeededOnce(factory(), stream)


def load(factories: Mapping[str, Callable[[], gym.Env]], horizon: int | None = None) -> TaskSource:
    """
    :param factories: task name to a callable that builds its env; each is called once here, to learn its sizes
    :param horizon: time limit in steps for all of them; None leaves it to the envs, which must then end by themselves
    :return: the source ``custom``
    :raises ValueError: if there is an env in place of a callable, an env's spaces are not flat and bounded, or the
        horizon is not positive
    """
    tasks = {}
    for name, factory in factories.items():
        if not callable(factory):
            raise ValueError(
                f"Expected a callable that builds the env of task {name!r}, got {factory}; "
                "write lambda: ... before it, since every copy and every worker builds its own."
            )
        env = factory()
        observation_size, action_size = check_spaces(name, env)
        bounds = action_bounds(env)
        env.close()
        tasks[name] = TaskSpec(name, "custom", partial(_make, factory), horizon, observation_size, action_size, bounds)
    protocol = {"horizon": horizon or "of each env", "versions": {"gymnasium": gym.__version__}}
    return TaskSource("custom", tasks, {}, protocol)
