"""The contextual pendulums as rows of tensors: the same physics, rewards and success, on any device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch as th

from sb3_varshare.tasks.suite import TaskSuite
from sb3_varshare.tasks.suites import contextual as plain
from sb3_varshare.tasks.tensor_vec_env import RowStep, TensorVecEnv


class ContextualTensorEnv(TensorVecEnv):
    """
    Rods to swing up and hold, a row each; see :class:`~sb3_varshare.tasks.suites.contextual.ContextualPendulum`.

    :param suite: of tasks of the source ``contextual``
    :param args: as :class:`TensorVecEnv` takes them
    :param kwargs: as :class:`TensorVecEnv` takes them
    :raises ValueError: a task is of another source
    """

    render_modes = ("rgb_array",)

    def __init__(self, suite: TaskSuite, *args: Any, **kwargs: Any) -> None:
        foreign = [task.full_name for task in suite.tasks if task.source != "contextual"]
        if foreign:
            raise ValueError(f"Expected tasks of the source 'contextual', got {foreign}.")
        super().__init__(suite, *args, **kwargs)
        contexts = [plain.CONTEXTS[task.name] for task in suite.tasks]
        fall = [3 * plain.GRAVITY / (2 * c.length) * plain.TIME_STEP for c in contexts]
        push = [3.0 / (c.mass * c.length**2) * c.direction * plain.TIME_STEP for c in contexts]
        self._fall, self._push, self._mass, self._length = (
            th.tensor(values, dtype=th.float32, device=self.device)[self.task_ids]
            for values in (fall, push, [c.mass for c in contexts], [c.length for c in contexts])
        )
        self.angle, self.speed = th.zeros_like(self._fall), th.zeros_like(self._fall)
        self._upright_steps = th.zeros_like(self.task_ids)

    def reset_rows(self, mask: th.Tensor) -> None:
        """
        :param mask: (N,) bool
        """
        angle, speed = 2 * th.rand(2, self.num_envs, generator=self.generator, device=self.device) - 1
        self.angle = th.where(mask, math.pi * angle, self.angle)
        self.speed = th.where(mask, speed, self.speed)
        self._upright_steps = th.where(mask, 0, self._upright_steps)

    def step_rows(self, actions: th.Tensor) -> RowStep:
        """
        :param actions: (N, 1) in [-1, 1]
        :return: rewards, no termination, successes
        """
        torque = actions[:, 0] * plain.MAX_TORQUE
        angle = (self.angle + math.pi).remainder(2 * math.pi) - math.pi
        rewards = -(angle.square() + 0.1 * self.speed.square() + 0.001 * torque.square())
        speed = self.speed + self._fall * self.angle.sin() + self._push * torque
        self.speed = speed.clamp(-plain.MAX_SPEED, plain.MAX_SPEED)
        self.angle = self.angle + self.speed * plain.TIME_STEP
        upright = self.angle.cos() > math.cos(plain.UPRIGHT_ANGLE)
        self._upright_steps = th.where(upright, self._upright_steps + 1, 0)
        return RowStep(rewards, th.zeros_like(upright), self._upright_steps >= plain.UPRIGHT_STEPS)

    def observe_rows(self) -> th.Tensor:
        """
        :return: (N, 5) cosine and sine of the angle, speed, mass, length
        """
        return th.stack([self.angle.cos(), self.angle.sin(), self.speed, self._mass, self._length], -1)

    def render_row(self, row: int) -> np.ndarray:
        """
        :param row: which
        :return: (128, 128, 3) the rod, dark on white
        """
        context = plain.CONTEXTS[self.suite.tasks[row % self.n_tasks].name]
        pendulum = plain.ContextualPendulum(context, np.random.SeedSequence(0))
        pendulum.reset()
        pendulum._angle = float(self.angle[row])
        return pendulum.render()
