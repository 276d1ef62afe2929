"""Tasks that fail in a chosen way; in a module of its own, free of torch, since worker processes import it."""

import dataclasses
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_varshare.tasks.suite import TaskSpec, TaskSuite


class Fault(NamedTuple):
    """
    :param kind: ``raise``, ``exit``, ``kill`` or ``hang``
    :param where: ``step`` or ``reset``
    :param at: at which call of it, counted from 1
    :param marks: folder in which each fault leaves a file
    :param times: how many faults there may be; the envs built after that are sound
    """

    kind: str
    where: str
    at: int
    marks: Path
    times: int = 1


class Faulty(gym.Wrapper):
    """A sound env, until its fault is due."""

    def __init__(self, env: gym.Env, fault: Fault) -> None:
        super().__init__(env)
        self.fault, self.calls = fault, {"step": 0, "reset": 0}

    def reset(self, **kwargs: Any) -> Any:
        self._count("reset")
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        self._count("step")
        return self.env.step(action)

    def _count(self, where: str) -> None:
        self.calls[where] += 1
        due = where == self.fault.where and self.calls[where] >= self.fault.at
        if not due or not any(self._take(number) for number in range(self.fault.times)):
            return
        if self.fault.kind == "raise":
            raise ArithmeticError("the simulator is unstable")
        if self.fault.kind == "exit":
            os._exit(7)
        if self.fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            pass

    def _take(self, number: int) -> bool:
        """Whether this is the process that may have this fault: two of them may be due at once."""
        try:
            (self.fault.marks / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def make_faulty(make: Any, fault: Fault, stream: np.random.SeedSequence) -> gym.Env:
    """A maker of tasks around another."""
    return Faulty(make(stream), fault)


def with_fault(suite: TaskSuite, task: str, fault: Fault) -> TaskSuite:
    """The suite, with one task that fails."""
    tasks = list(suite.tasks)
    tasks[suite.task_id(task)] = dataclasses.replace(
        tasks[suite.task_id(task)], make=partial(make_faulty, tasks[suite.task_id(task)].make, fault)
    )
    return dataclasses.replace(suite, tasks=tuple(tasks))


class Slow(gym.Wrapper):
    """Each step sleeps."""

    def __init__(self, env: gym.Env, seconds: float) -> None:
        super().__init__(env)
        self.seconds = seconds

    def step(self, action: Any) -> Any:
        time.sleep(self.seconds)
        return self.env.step(action)


class TwoWordsError(Exception):
    """Cannot be unpickled, since its ``args`` are not those of its constructor."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


class NoPicture(gym.Wrapper):
    """Cannot be drawn."""

    def render(self) -> Any:
        raise TwoWordsError("no", "light")


class Reporter(gym.Env):
    """Its observation tells which modules its process has loaded, and in which process it is."""

    modules = ("torch", "stable_baselines3", "pytest")

    def __init__(self, stream: np.random.SeedSequence) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (len(self.modules) + 1,), dtype=np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (1,), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.array([*(float(name in sys.modules) for name in self.modules), os.getpid()]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.reset()[0], 0.0, False, False, {}


def reporter_suite() -> TaskSuite:
    """Two of them."""
    return TaskSuite("reporters", tuple(TaskSpec(name, "reporters", Reporter, None, 4, 1) for name in ("a", "b")))
