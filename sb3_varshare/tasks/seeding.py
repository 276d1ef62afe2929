"""
Random streams of tasks. The root is the seed; the spawn key is (purpose, words of the task's name..., rank).

The name, not the id, is in the key: adding or reordering tasks leaves the streams of the others as they are.
"""

import hashlib
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np

Purpose = Literal["train", "evaluation"]

# Stands where a stream of one env copy has its rank.
_SHARED = 2**32 - 1


def root_seed(seed: int | None) -> int:
    """
    The root of all streams of a set of envs. It is drawn once, so that what they have in common has one root too.

    :param seed: a whole number that is not negative; None draws one
    :return: the root
    :raises ValueError: if it is anything else
    """
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"Expected a seed that is a whole number of at least 0, or None, got {seed!r}.")
    return int(seed)


def task_stream(seed: int, purpose: Purpose, full_name: str, rank: int) -> np.random.SeedSequence:
    """
    The stream of one copy of one task's env.

    :param seed: root, not negative
    :param purpose: training and evaluation never share a stream
    :param full_name: ``source/name`` of the task
    :param rank: which copy of the env
    :return: a stream of its own for each combination
    :raises ValueError: if the purpose is unknown
    """
    if purpose not in get_args(Purpose):
        raise ValueError(f"purpose must be one of {get_args(Purpose)}, got {purpose!r}.")
    words = np.frombuffer(hashlib.sha256(full_name.encode()).digest()[:16], dtype="<u4")
    key = (get_args(Purpose).index(purpose), *(int(word) for word in words), rank)
    return np.random.SeedSequence(seed, spawn_key=key)


def shared_key(stream: np.random.SeedSequence, held_out: bool = True) -> tuple[int, ...]:
    """
    The spawn key for what all copies of a task's env have in common, e.g. its set of goals.

    :param stream: of one copy
    :param held_out: False gives evaluation the key of training
    :return: the stream's key with the rank taken out
    """
    key = stream.spawn_key[:-1]
    return (*(key if held_out else (0, *key[1:])), _SHARED)


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
