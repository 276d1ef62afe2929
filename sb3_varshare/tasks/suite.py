"""What a task is, what a suite of tasks is, and how to find the suite behind a vectorised environment."""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_varshare.tasks.spaces import ActionBounds


@dataclass(frozen=True)
class TaskSpec:
    """
    One task: its name, its sizes and how to build it.

    :param name: short name, e.g. ``reach-v3``
    :param source: where it comes from, e.g. ``metaworld``
    :param make: builds a single-task env, without one-hot, that draws all its randomness from the given stream. An
        env with a method ``reseed(stream)`` is kept when the seed changes; any other is closed and built again.
    :param horizon: time limit in steps; None leaves the limit to the env itself
    :param observation_size: length of the flat observation
    :param action_size: length of the flat action
    :param action_bounds: lowest and highest action of the env; None for -1 and 1
    :param protocol: JSON types only; what is peculiar to this task and must be equal for two results to be comparable
    :param source_protocol: JSON types only; what holds for all tasks of its source, for a suite that is made of specs
    :raises ValueError: if the horizon is not a whole number of at least 1
    """

    name: str
    source: str
    make: Callable[[np.random.SeedSequence], gym.Env]
    horizon: int | None
    observation_size: int
    action_size: int
    action_bounds: ActionBounds | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    source_protocol: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.horizon is not None and (not isinstance(self.horizon, (int, np.integer)) or self.horizon < 1):
            raise ValueError(f"Task {self.full_name!r} needs a horizon of at least 1 step, got {self.horizon!r}.")

    @property
    def full_name(self) -> str:
        """``source/name``."""
        return f"{self.source}/{self.name}"

    @property
    def bounds(self) -> ActionBounds:
        """Lowest and highest action of the env."""
        return self.action_bounds or ((-1.0,) * self.action_size, (1.0,) * self.action_size)


class TaskDescription(NamedTuple):
    """
    What an agent keeps of a suite: plain data that can be saved, no environments.

    :param names: (T,) labels, unique
    :param action_sizes: (T,) how many of the action's entries each task uses
    :param protocol: JSON types only; see :mod:`sb3_varshare.tasks.protocol`
    :param full_names: (T,) names with their sources; empty where there are none
    :param action_bounds: (T,) lowest and highest action of each task's own env; None where nobody maps the agent's
        actions onto others
    :param observation_sizes: (T,) length of each task's own observation; empty where it is not known
    :param observation_size: D, to which all are padded; 0 where it is not known
    """

    names: tuple[str, ...]
    action_sizes: tuple[int, ...]
    protocol: dict[str, Any]
    full_names: tuple[str, ...] = ()
    action_bounds: tuple[ActionBounds, ...] | None = None
    observation_sizes: tuple[int, ...] = ()
    observation_size: int = 0


@dataclass(frozen=True)
class TaskSource:
    """
    All tasks that one source offers, under one choice of options.

    :param name: of the source
    :param tasks: short name to task; a mapping that builds them when asked is welcome
    :param suites: suite name to the short names of its tasks, in order
    :param protocol: JSON types only; what must be equal for two results to be comparable. ``versions`` in it maps
        packages to their versions, and ``summary`` is a line for tables
    """

    name: str
    tasks: Mapping[str, TaskSpec]
    suites: Mapping[str, tuple[str, ...]]
    protocol: dict[str, Any]

    def task(self, name: str) -> TaskSpec:
        """
        :param name: short name
        :return: the task
        :raises ValueError: if the source has no such task
        """
        if name not in self.tasks:
            raise ValueError(f"Expected a task of source {self.name!r}, got {name!r}; {nearest(name, self.tasks)}")
        return dataclasses.replace(self.tasks[name], source_protocol=self.protocol)


@dataclass(frozen=True)
class TaskSuite:
    """
    An ordered set of tasks. A task's position is its id, everywhere.

    :param name: of the suite
    :param tasks: (T,) at least one, no full name twice
    :param protocol: JSON types only; see :class:`TaskDescription`
    :param padded_sizes: lengths that observations and actions have at least, by padding: room for larger tasks to come,
        or the sizes of networks that were trained with larger tasks
    :raises ValueError: if there is no task, or one twice
    """

    name: str
    tasks: tuple[TaskSpec, ...]
    protocol: dict[str, Any] = field(default_factory=dict)
    padded_sizes: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"Suite {self.name!r} has no tasks; give at least one.")
        twice = [name for name, count in Counter(task.full_name for task in self.tasks).items() if count > 1]
        if twice:
            raise ValueError(f"Suite {self.name!r} must name every task once, got {twice} more than once.")

    @property
    def n_tasks(self) -> int:
        """T."""
        return len(self.tasks)

    @property
    def task_names(self) -> tuple[str, ...]:
        """(T,) short names where they are unique, full names where not."""
        counts = Counter(task.name for task in self.tasks)
        return tuple(task.name if counts[task.name] == 1 else task.full_name for task in self.tasks)

    @property
    def observation_size(self) -> int:
        """Length of the longest observation, or more where they are padded to more."""
        return max(self.padded_sizes[0], *(task.observation_size for task in self.tasks))

    @property
    def action_sizes(self) -> tuple[int, ...]:
        """(T,) length of each task's action."""
        return tuple(task.action_size for task in self.tasks)

    @property
    def action_size(self) -> int:
        """Length of the longest action, or more where they are padded to more."""
        return max(self.padded_sizes[1], *self.action_sizes)

    @property
    def full_protocol(self) -> dict[str, Any]:
        """The suite's protocol and, as ``tasks``, what is peculiar to its tasks, by full name."""
        of_tasks = {task.full_name: task.protocol for task in self.tasks if task.protocol}
        return {**self.protocol, "tasks": of_tasks} if of_tasks else self.protocol

    def task_id(self, task: str | int) -> int:
        """
        :param task: short name, full name, or an id that is only checked
        :return: the task's position in the suite
        :raises ValueError: if there is no such task
        """
        if isinstance(task, (int, np.integer)):
            if not 0 <= task < self.n_tasks:
                raise ValueError(f"Suite {self.name!r} has task ids 0 to {self.n_tasks - 1}, got {task}.")
            return int(task)
        ids = {spec.full_name: i for i, spec in enumerate(self.tasks)}
        ids.update({name: i for i, name in enumerate(self.task_names)})
        if task not in ids:
            raise ValueError(f"Expected a task of suite {self.name!r}, got {task!r}; {nearest(task, self.task_names)}")
        return ids[task]

    def select(self, names: Iterable[str | int]) -> "TaskSuite":
        """
        :param names: names or ids
        :return: a suite of these tasks in this order; ids are counted anew, random streams stay as they are
        :raises ValueError: if there is no such task, or one twice
        """
        tasks = tuple(self.tasks[self.task_id(name)] for name in names)
        return dataclasses.replace(self, name=f"{self.name}[{','.join(task.name for task in tasks)}]", tasks=tasks)

    def describe(self) -> TaskDescription:
        """
        :return: the plain data of this suite
        """
        return TaskDescription(
            self.task_names,
            self.action_sizes,
            self.full_protocol,
            tuple(task.full_name for task in self.tasks),
            tuple(task.bounds for task in self.tasks),
            tuple(task.observation_size for task in self.tasks),
            self.observation_size,
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """
    End of an error message about an unknown name.

    :param name: what was given
    :param known: what there is
    :return: the nearest known names, best first, or all of them where none is near
    """
    names = sorted(set(known))
    close = near(name, names)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known are {', '.join(names)}."


def near(name: str, known: Iterable[str]) -> list[str]:
    """
    :param name: what was given
    :param known: what there is
    :return: those that look like it, best first
    """
    names = sorted(set(known))
    # By what is behind the slash, so that a name without its source finds the name with it.
    shorts = difflib.get_close_matches(
        _short(name), sorted({_short(known_name) for known_name in names}), n=3, cutoff=0.5
    )
    return [known_name for short in shorts for known_name in names if _short(known_name) == short]


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def find_tasks(env: Any) -> TaskDescription | None:
    """
    Find the tasks behind an SB3 ``VecEnv`` or a Gymnasium env, through any number of wrappers.

    :param env: looked at only through attributes, so that SB3 need not be imported
    :return: its tasks, None where it has none
    :raises ValueError: if the copies inside a ``VecEnv`` play different suites
    """
    suite = getattr(env, "suite", None)
    if isinstance(suite, TaskSuite):
        return suite.describe()
    # Subprocesses answer `has_attr` with no, but die of a missing `get_attr`; and they can send plain data only.
    if hasattr(env, "has_attr") and env.has_attr("task_description"):
        found: list[TaskDescription] = env.get_attr("task_description")
        if any(description != found[0] for description in found):
            raise ValueError("All copies inside a VecEnv must play the same suite, got different ones.")
        return found[0]
    if hasattr(env, "get_wrapper_attr") and env.has_wrapper_attr("task_description"):
        description: TaskDescription = env.get_wrapper_attr("task_description")
        return description
    return None
