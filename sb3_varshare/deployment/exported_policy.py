"""A policy that was read from its files: acts for each of its tasks, and cannot train."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch as th
from gymnasium import spaces

from sb3_varshare.deployment.actor_parts import ActorParts, TaskFacts, base_facts, build, check_base
from sb3_varshare.deployment.files import Arrays
from sb3_varshare.deployment.plain_actor import PlainActor
from sb3_varshare.deployment.records import PolicyFacts
from sb3_varshare.deployment.residuals import compose_weights, context_shapes
from sb3_varshare.tasks.suite import nearest
from sb3_varshare.varshare_sac.squashed_gaussian import bounded_log_std


class StoredTask(NamedTuple):
    """
    What a task's file holds.

    :param path: of the file
    :param facts: of the task
    :param position: of the task in the agent
    :param arrays: its difference to the base, and what else it has
    """

    path: Path
    facts: TaskFacts
    position: int
    arrays: Arrays

    def is_same(self, other: StoredTask) -> bool:
        """Whether two files hold the same task."""
        return (
            self.facts == other.facts
            and self.arrays.keys() == other.arrays.keys()
            and all(np.array_equal(array, other.arrays[name]) for name, array in self.arrays.items())
        )


class ExportedPolicy:
    """
    The actors of all tasks of a folder. What was read stays as it is stored; a task's network is composed when it first
    acts, and kept.

    :param facts: what the tasks have in common
    :param base: the shared tensors
    :param base_sha256: checksum of the base, by which files of tasks belong to it
    :param tasks: in the order in which they are listed
    """

    def __init__(self, facts: PolicyFacts, base: Arrays, base_sha256: str, tasks: list[StoredTask]) -> None:
        self._facts, self._base, self.base_sha256 = facts, base, base_sha256
        self.tasks = {task.facts.name: task for task in tasks}
        self._actors: dict[tuple[str | None, bool], PlainActor] = {}

    @property
    def task_names(self) -> list[str]:
        """Labels of the tasks whose files are there, in the agent's order."""
        return list(self.tasks)

    @property
    def adapter(self) -> str:
        """Of the agent."""
        return self._facts.adapter

    @property
    def has_base(self) -> bool:
        """Whether the tasks share anything that could act alone."""
        return self._facts.difference != "network"

    @property
    def observation_space(self) -> spaces.Box:
        """(D,) of the longest observation, without a one-hot."""
        return self._facts.observation_space

    @property
    def action_space(self) -> spaces.Box:
        """(A,) of the agent."""
        return self._facts.action_space

    @property
    def protocol(self) -> dict[str, Any]:
        """Of the last training, see :mod:`sb3_varshare.tasks.protocol`."""
        return self._facts.protocol

    def predict(
        self,
        observation: npt.ArrayLike,
        task: str | None = None,
        deterministic: bool = True,
        base: bool = False,
    ) -> tuple[npt.NDArray[Any], None]:
        """
        As :meth:`~sb3_varshare.VarShareSAC.predict_task`.

        :param observation: (D_t,) or (N, D_t) of the task alone, or padded with zeros to the longest of all tasks
        :param task: its name; ``None`` for the shared base without any task, whose actions are in [-1, 1]
        :param deterministic: the mean of the policy instead of a draw from it
        :param base: the shared base in place of the task's own weights
        :return: the action (A_t,) or (N, A_t) as the task's own environment takes it, and None (SB3's recurrent state)
        :raises ValueError: there is no such task or base, or the observation does not fit
        """
        actor = self._actor(task, base)
        rows = self._rows(observation, actor.observation_size)
        with th.no_grad():
            if deterministic:
                actions = actor(rows)
            else:
                mean, log_std = actor.heads(rows)
                drawn = mean + bounded_log_std(log_std).exp() * th.randn_like(mean)
                actions = actor.action_map(th.tanh(drawn))
        found: npt.NDArray[Any] = actions.numpy()
        return (found if np.ndim(observation) > 1 else found[0]), None

    def actor_parts(self, task: str | None, base: bool = False) -> ActorParts:
        """
        :param task: a name; ``None`` for the shared base without any task
        :param base: the shared base in place of the task's own weights
        :return: what the task's actor is made of
        :raises ValueError: there is no such task or base
        """
        check_base(base or task is None, self.has_base)
        if task is None:
            needed = {name: th.empty(shape) for name, shape in context_shapes(self._facts).items()}
            facts = base_facts(self._facts.sizes, needed)
            return ActorParts(self._facts.sizes, facts, compose_weights(self._facts, self._base, {}), {})
        stored = self._stored(task)
        context = {name: th.from_numpy(stored.arrays[name]) for name in context_shapes(self._facts)}
        weights = compose_weights(self._facts, self._base, {} if base else stored.arrays)
        return ActorParts(self._facts.sizes, stored.facts, weights, context)

    def _stored(self, task: str) -> StoredTask:
        if task in self.tasks:
            return self.tasks[task]
        for stored in self.tasks.values():
            if task and task == stored.facts.full_name:
                return stored
        known = nearest(str(task), self.tasks) if self.tasks else "there are no files of tasks."
        raise ValueError(f"Unknown task {task!r}; {known}")

    def _actor(self, task: str | None, base: bool) -> PlainActor:
        key = (task, base)
        if key not in self._actors:
            self._actors[key] = build(self.actor_parts(task, base), stochastic=True)
        return self._actors[key]

    def _rows(self, observation: npt.ArrayLike, size: int) -> th.Tensor:
        """(N, D_t) of one observation or many, with or without padding."""
        rows, longest = np.atleast_2d(np.asarray(observation, dtype=np.float32)), self._facts.sizes.observation_size
        if rows.ndim > 2 or rows.shape[1] not in (size, longest):
            padded = f", or {longest} with zeros at the end" if longest > size else ""
            raise ValueError(f"Expected observations of {size} numbers{padded}, without a one-hot; got {rows.shape}.")
        if rows[:, size:].any():
            raise ValueError(f"The task's observations have {size} numbers, behind them only zeros can stand.")
        return th.from_numpy(np.ascontiguousarray(rows[:, :size]))
