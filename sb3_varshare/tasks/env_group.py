"""Some envs of a suite, stepped one after the other in one process; free of torch and of Stable-Baselines3."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sb3_varshare.tasks.multi_task_env import MultiTaskEnv
from sb3_varshare.tasks.seeding import Purpose
from sb3_varshare.tasks.suite import TaskSuite

IDLE, STEPPING, RESETTING = range(3)


@dataclass(frozen=True)
class EnvPlan:
    """
    What all envs of a vectorised env have in common; enough to build any of them in any process.

    :param suite: the tasks
    :param seed: root of all random streams
    :param purpose: ``train`` or ``evaluation``
    :param layout: (N,) cycles of task ids
    :param copies: (N,) which copy of its tasks each env is
    :param render_mode: of the tasks' envs
    :param started: time.time() from which the episodes' ``t`` counts, s
    """

    suite: TaskSuite
    seed: int
    purpose: Purpose
    layout: tuple[tuple[int, ...], ...]
    copies: tuple[int, ...]
    render_mode: str | None
    started: float

    def make(self, rank: int, incarnation: int = 0) -> MultiTaskEnv:
        """
        :param rank: of the env, 0 <= rank < N
        :param incarnation: how often it was lost and built anew; each has random streams of its own
        :return: the env; its simulators are built at its first reset
        """
        copy = self.copies[rank] + incarnation * len(self.layout)
        return MultiTaskEnv(self.suite, self.seed, self.purpose, copy, self.layout[rank], self.render_mode)


class EnvArrays(NamedTuple):
    """
    What goes between whoever steps envs and whoever asks for it, in one piece of memory that they may share.

    :param observations: (N, D + T) float32, at the start of an episode its first one
    :param final_observations: (N, D + T) float32, the last one of the episode that ended, where one did
    :param actions: (N, A) float32
    :param rewards: (N,) float32
    :param n_calls: (N,) int64, steps and resets that were finished: who waits sees progress
    :param dones: (N,) bool
    :param phases: (N,) uint8, ``IDLE``, ``STEPPING`` or ``RESETTING``: who buries a worker sees where it was
    """

    observations: npt.NDArray[np.float32]
    final_observations: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    rewards: npt.NDArray[np.float32]
    n_calls: npt.NDArray[np.int64]
    dones: npt.NDArray[np.bool_]
    phases: npt.NDArray[np.uint8]


def lay_out(
    n_envs: int, observation_size: int, action_size: int, allocate: Callable[[int], Any] = bytearray
) -> tuple[EnvArrays, Any]:
    """
    Put the arrays into one buffer.

    :param n_envs: N
    :param observation_size: D + T
    :param action_size: A
    :param allocate: gives a buffer of that many bytes, zeros where it is new
    :return: views into the buffer, and the buffer
    """
    shapes: list[tuple[tuple[int, ...], Any]] = [
        ((n_envs,), np.int64),  # the widest first, so that everything is aligned
        ((n_envs, observation_size), np.float32),
        ((n_envs, observation_size), np.float32),
        ((n_envs, action_size), np.float32),
        ((n_envs,), np.float32),
        ((n_envs,), np.bool_),
        ((n_envs,), np.uint8),
    ]
    sizes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes]
    buffer = allocate(sum(sizes))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    n_calls, observations, finals, actions, rewards, dones, phases = (
        np.ndarray(shape, dtype, buffer, start) for (shape, dtype), start in zip(shapes, starts, strict=True)
    )
    return EnvArrays(observations, finals, actions, rewards, n_calls, dones, phases), buffer


class EnvGroup:
    """
    The envs of some ranks. Starts the next episode by itself and counts returns and lengths as SB3's ``Monitor`` does.

    :param plan: of all envs
    :param arrays: of all envs; only the rows of these ranks are touched
    :param ranks: of these envs
    :param incarnation: see :meth:`EnvPlan.make`
    """

    def __init__(self, plan: EnvPlan, arrays: EnvArrays, ranks: Sequence[int], incarnation: int = 0) -> None:
        self._plan, self._arrays, self._incarnation = plan, arrays, incarnation
        self.envs = {rank: plan.make(rank, incarnation) for rank in ranks}
        self._returns = dict.fromkeys(ranks, 0.0)
        self._lengths = dict.fromkeys(ranks, 0)

    def reset(self, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """
        Start new episodes everywhere.

        :param seeds: (N,) new roots of the random streams, None to go on along the present ones
        :param options: (N,) for the envs' resets
        :return: the resets' infos by rank
        """
        if self._incarnation and any(seeds[rank] is not None for rank in self.envs):
            # A new seed makes a lost env the equal of one that never was: it returns to the streams of its rank.
            self.close()
            self._incarnation = 0
            self.envs = {rank: self._plan.make(rank) for rank in self.envs}
        return {rank: self._reset(rank, seed=seeds[rank], options=options[rank] or None) for rank in self.envs}

    def step(self) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
        """
        Step with the actions in the arrays.

        :return: infos by rank, and by rank the infos of resets where an episode ended
        """
        arrays, infos, reset_infos = self._arrays, {}, {}
        for rank, env in self.envs.items():
            arrays.phases[rank] = STEPPING
            observation, reward, terminated, truncated, info = env.step(arrays.actions[rank])
            self._returns[rank] += reward
            self._lengths[rank] += 1
            info["TimeLimit.truncated"] = truncated and not terminated
            arrays.rewards[rank] = reward
            arrays.dones[rank] = done = terminated or truncated
            infos[rank] = info
            if done:
                info["episode"] = self._episode(rank)
                arrays.final_observations[rank] = observation
                reset_infos[rank] = self._reset(rank)
            else:
                arrays.observations[rank] = observation
                self._finish(rank)
        return infos, reset_infos

    def get_attr(self, ranks: Sequence[int], name: str) -> list[Any]:
        """
        :param ranks: of envs of this group
        :param name: of an attribute
        :return: its value in each env
        """
        return [self.envs[rank].get_wrapper_attr(name) for rank in ranks]

    def set_attr(self, ranks: Sequence[int], name: str, value: Any) -> list[None]:
        """
        :param ranks: of envs of this group
        :param name: of an attribute
        :param value: for each env
        """
        return [setattr(self.envs[rank], name, value) for rank in ranks]  # type: ignore[func-returns-value]

    def env_method(self, ranks: Sequence[int], name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """
        :param ranks: of envs of this group
        :param name: of a method
        :param args: of the method
        :param kwargs: of the method
        :return: what it returns in each env
        """
        return [self.envs[rank].get_wrapper_attr(name)(*args, **kwargs) for rank in ranks]

    def close(self) -> None:
        """Close the envs; in-process, a later reset builds their simulators again."""
        for env in self.envs.values():
            env.close()

    def _reset(self, rank: int, **kwargs: Any) -> dict[str, Any]:
        self._arrays.phases[rank] = RESETTING
        self._arrays.observations[rank], info = self.envs[rank].reset(**kwargs)
        self._returns[rank], self._lengths[rank] = 0.0, 0
        self._finish(rank)
        return info

    def _finish(self, rank: int) -> None:
        self._arrays.phases[rank] = IDLE
        self._arrays.n_calls[rank] += 1

    def _episode(self, rank: int) -> dict[str, float]:
        """The keys, units and rounding of SB3's ``Monitor``."""
        seconds = time.time() - self._plan.started
        return {"r": round(self._returns[rank], 6), "l": self._lengths[rank], "t": round(seconds, 6)}
