"""An env whose episodes are written down beforehand, for tests of what is around it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest

from sb3_varshare.tasks.suite import TaskSpec, TaskSuite


class Step(NamedTuple):
    """What one step reports; the last one repeats."""

    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = {}  # noqa: RUF012 - never written to


class ScriptedEnv(gym.Env):
    """Observation: the number of the step in its first entry, a draw of its stream in the others."""

    def __init__(
        self, stream: np.random.SeedSequence, size: int = 2, low: Sequence[float] = (-1.0,), script: Sequence[Step] = ()
    ) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), dtype=np.float64)
        self.action_space = gym.spaces.Box(np.array(low, dtype=np.float32), np.float32(3.0))
        self.generator = np.random.default_rng(stream)
        self.script = list(script) or [Step()]
        self.actions: list[np.ndarray] = []
        self.n_closed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        self.draw = self.generator.uniform()
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.actions.append(action)
        now = self.script[min(self.steps, len(self.script) - 1)]
        self.steps += 1
        return self.observe(), 1.5, now.terminated, now.truncated, dict(now.info)

    def observe(self) -> np.ndarray:
        assert self.observation_space.shape is not None
        return np.array([self.steps, *[self.draw] * (self.observation_space.shape[0] - 1)])

    def render(self) -> str:
        return f"drawn in {self.render_mode}"

    def close(self) -> None:
        self.n_closed += 1


def make_task(
    name: str, size: int = 2, low: Sequence[float] = (-1.0,), script: Sequence[Step] = (), horizon: int | None = None
) -> TaskSpec:
    """A task of source ``scripted``."""
    make = partial(ScriptedEnv, size=size, low=low, script=[Step(*step) for step in script])
    return TaskSpec(name, "scripted", make, horizon, size, len(low), (tuple(low), (3.0,) * len(low)))


@pytest.fixture
def scripted_task() -> Callable[..., TaskSpec]:
    """Makes a task; its script is a sequence of ``(terminated, truncated, info)``."""
    return make_task


@pytest.fixture
def scripted_suite() -> Callable[..., TaskSuite]:
    """Makes a suite of the given tasks, or of three plain ones that end after two steps."""

    def make_suite(*tasks: TaskSpec) -> TaskSuite:
        plain = tuple(make_task(name, horizon=2) for name in ("one", "two", "three"))
        return TaskSuite("scripted", tasks or plain, {"version": 1})

    return make_suite
