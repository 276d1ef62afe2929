"""One's own Gymnasium envs as tasks."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_varshare.tasks.spaces import check_spaces
from sb3_varshare.tasks.suite import TaskSource, TaskSpec


class SeededOnce(gym.Wrapper):
    """
    Seeds an env at its first reset and never again, so that it goes on along one stream of its own.

    :param env: whose ``reset(seed=...)`` seeds it
    :param stream: where its seed comes from
    """

    def __init__(self, env: gym.Env, stream: np.random.SeedSequence) -> None:
        super().__init__(env)
        self.reseed(stream)

    def reseed(self, stream: np.random.SeedSequence) -> None:
        """
        :param stream: from which the next reset seeds the env anew
        """
        self._next_seed: int | None = int(stream.generate_state(1)[0])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is None:
            seed = self._next_seed
        self._next_seed = None
        return self.env.reset(seed=seed, options=options)


def _make(factory: Callable[[], gym.Env], stream: np.random.SeedSequence) -> gym.Env:
    return SeededOnce(factory(), stream)


def load(factories: Mapping[str, Callable[[], gym.Env]], horizon: int | None = None) -> TaskSource:
    """
    :param factories: task name to a callable that builds its env; each is called once here, to learn its sizes
    :param horizon: time limit in steps for all of them; None leaves it to the envs, which must then end by themselves
    :return: the source ``custom``
    :raises ValueError: if an env's spaces are not flat and bounded
    """
    tasks = {}
    for name, factory in factories.items():
        env = factory()
        observation_size, action_size = check_spaces(name, env)
        env.close()
        tasks[name] = TaskSpec(name, "custom", partial(_make, factory), horizon, observation_size, action_size)
    protocol = {"horizon": horizon, "tasks": list(tasks), "gymnasium": gym.__version__}
    return TaskSource("custom", tasks, {}, protocol)
