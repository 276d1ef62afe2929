"""
Suites that separate methods, each from one cause, made of one pendulum.

All tasks of a suite look the same; only the direction of the torque and what is wrong with the training data differ.
Evaluation is on the clean reward: the training suite is made for training only, and its clean twin is a suite of its
own with the same tasks and streams.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

from corruptions import CLEAN, Corruption, make_corrupted

from sb3_varshare.tasks import MultiTaskVecEnv, TaskSpec, TaskSuite
from sb3_varshare.tasks.protocol import SUCCESS
from sb3_varshare.tasks.suites.contextual import TORQUES, Context, ContextualPendulum

HORIZON = 200  # steps
# The clean reward of a step lies between -17 and 0; under random actions its standard deviation is about 4.
REWARD_NOISE = 30.0
REWARD_FACTOR = 100.0
FEW = 10  # one in so many steps is kept

FORWARD, REVERSED = Context(), Context(direction=-1.0)
OBSERVATION_SIZE, ACTION_SIZE = 5, 1


@dataclass(frozen=True)
class GridTask:
    """
    :param name: of the task
    :param context: of its pendulum
    :param corruption: of its training reward
    :param keep_every: one in so many of its steps reaches the replay
    """

    name: str
    context: Context = FORWARD
    corruption: Corruption = CLEAN
    keep_every: int = 1

    @property
    def reference(self) -> str:
        """The task of the suite ``reference`` that is the same when it is clean."""
        return "forward" if self.context == FORWARD else "reversed"

    def spec(self, clean: bool) -> TaskSpec:
        """
        :param clean: for evaluation
        """
        corrupted = not clean and self.corruption != CLEAN
        make = partial(make_corrupted, self.context, self.corruption) if corrupted else self._make_clean()
        protocol: dict[str, Any] = {"context": list(self.context)}
        protocol |= self.corruption._asdict() if corrupted else {}
        protocol |= {"keep_every": self.keep_every} if not clean and self.keep_every > 1 else {}
        return TaskSpec(self.name, "grids", make, HORIZON, OBSERVATION_SIZE, ACTION_SIZE, TORQUES, protocol)

    def _make_clean(self) -> partial[ContextualPendulum]:
        return partial(ContextualPendulum, self.context)


@dataclass(frozen=True)
class GridSuite:
    """
    :param name: of the suite
    :param tasks: (T,) in order
    :param identical: names of two tasks that are the same
    :param conflicting: names of two tasks that need opposite actions
    """

    name: str
    tasks: tuple[GridTask, ...]
    identical: tuple[str, str] | None = None
    conflicting: tuple[str, str] | None = None

    @property
    def keep_every(self) -> list[int]:
        """(T,) of each task."""
        return [task.keep_every for task in self.tasks]

    def only(self, name: str) -> GridSuite:
        """
        :param name: of a task
        :return: a suite of this task alone
        """
        (task,) = (task for task in self.tasks if task.name == name)
        return dataclasses.replace(self, tasks=(task,), identical=None, conflicting=None)

    def build(self, clean: bool) -> TaskSuite:
        """
        :param clean: for evaluation
        :return: the package's suite
        """
        protocol = {"success": SUCCESS, "grids": {"horizon": HORIZON}}
        return TaskSuite(self.name, tuple(task.spec(clean) for task in self.tasks), protocol)

    def training_env(self, seed: int) -> MultiTaskVecEnv:
        """
        One environment per task, with its corruption.

        :param seed: of the random streams
        """
        return MultiTaskVecEnv(self.build(clean=False), seed=seed)

    def clean_env(self, seed: int, n_copies: int = 1) -> MultiTaskVecEnv:
        """
        Environments to evaluate on, as many of each task as asked.

        :param seed: of the random streams, which training never sees
        :param n_copies: environments per task
        """
        suite = self.build(clean=True)
        return MultiTaskVecEnv(suite, n_copies * suite.n_tasks, seed, "evaluation")


_FORWARD, _TWIN, _REVERSED = GridTask("forward"), GridTask("twin"), GridTask("reversed", REVERSED)
_NOISY = GridTask("noisy", corruption=Corruption(noise_std=REWARD_NOISE))
_SCALED = GridTask("scaled", corruption=Corruption(factor=REWARD_FACTOR))
_FEW = GridTask("few", keep_every=FEW)
_IDENTICAL, _CONFLICT = ("forward", "twin"), ("forward", "reversed")

# The tasks `noisy`, `scaled` and `few` are `forward` again when clean: whoever shares can solve them by its data.
# Beside them stands `reversed`, so that sharing everything is no solution.
SUITES = {
    suite.name: suite
    for suite in (
        GridSuite("identical", (_FORWARD, _TWIN), identical=_IDENTICAL),
        GridSuite("conflict", (_FORWARD, _REVERSED), conflicting=_CONFLICT),
        GridSuite("noisy", (_FORWARD, _REVERSED, _NOISY), conflicting=_CONFLICT),
        GridSuite("scaled", (_FORWARD, _REVERSED, _SCALED), conflicting=_CONFLICT),
        GridSuite("few", (_FORWARD, _REVERSED, _FEW), conflicting=_CONFLICT),
        GridSuite("all", (_FORWARD, _TWIN, _REVERSED, _NOISY, _SCALED, _FEW), _IDENTICAL, _CONFLICT),
        # What scores are measured by: the random policy and single-task SAC.
        GridSuite("reference", (_FORWARD, _REVERSED)),
    )
}
