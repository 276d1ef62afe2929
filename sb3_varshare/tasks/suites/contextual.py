"""
Pendulums with a visible and a hidden context: small, fast, and one pair that no network blind to the task can solve.

Physics and reward of Gymnasium's ``Pendulum-v1``, in plain floats, with mass and length behind the observation.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from sb3_varshare.tasks.suite import TaskSource, TaskSpec

TIME_STEP = 0.05  # s
GRAVITY = 10.0  # m / s^2
MAX_TORQUE = 2.0  # N m
TORQUES = ((-MAX_TORQUE,), (MAX_TORQUE,))
MAX_SPEED = 8.0  # rad / s
UPRIGHT_ANGLE = 0.3  # rad
UPRIGHT_STEPS = 50


class Context(NamedTuple):
    """
    :param mass: kg, observed
    :param length: m, observed
    :param direction: +1 or -1, what the torque is multiplied with; not observed
    """

    mass: float = 1.0
    length: float = 1.0
    direction: float = 1.0


# `swing-up-twin` is `swing-up` again: what helps one helps the other. `forward` and `reversed` look the same and need
# opposite actions. `light` can be lifted from any angle without a swing: mass * GRAVITY * length / 2 < MAX_TORQUE.
CONTEXTS = {
    "swing-up": Context(),
    "swing-up-twin": Context(),
    "forward": Context(mass=0.8, length=1.2),
    "reversed": Context(mass=0.8, length=1.2, direction=-1.0),
    "light": Context(mass=0.3),
}


class ContextualPendulum(gym.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """
    Swing a rod up and hold it there.

    Observation (5,): cosine and sine of the angle from upright, speed in rad/s, mass in kg, length in m. Action (1,):
    torque in N m. Successful once the rod has been within 0.3 rad of upright for 50 steps in a row.

    :param context: of this pendulum
    :param stream: of its initial states
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - gymnasium declares it like this

    def __init__(self, context: Context, stream: np.random.SeedSequence) -> None:
        high = np.array([1.0, 1.0, MAX_SPEED, np.inf, np.inf], dtype=np.float32)
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gym.spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,), dtype=np.float32)
        self.context = context
        self._fall = 3 * GRAVITY / (2 * context.length) * TIME_STEP
        self._push = 3.0 / (context.mass * context.length**2) * context.direction * TIME_STEP
        self.reseed(stream)

    def reseed(self, stream: np.random.SeedSequence) -> None:
        """
        :param stream: of the initial states from here on
        """
        self.np_random = np.random.Generator(np.random.PCG64(stream))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._angle = float(self.np_random.uniform(-math.pi, math.pi))
        self._speed = float(self.np_random.uniform(-1.0, 1.0))
        self._upright_steps = 0
        return self._observation(), {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        torque = min(max(float(action[0]), -MAX_TORQUE), MAX_TORQUE)
        angle = (self._angle + math.pi) % (2 * math.pi) - math.pi
        reward = -(angle**2 + 0.1 * self._speed**2 + 0.001 * torque**2)
        speed = self._speed + self._fall * math.sin(self._angle) + self._push * torque
        self._speed = min(max(speed, -MAX_SPEED), MAX_SPEED)
        self._angle += self._speed * TIME_STEP
        upright = math.cos(self._angle) > math.cos(UPRIGHT_ANGLE)
        self._upright_steps = self._upright_steps + 1 if upright else 0
        return self._observation(), reward, False, False, {"is_success": self._upright_steps >= UPRIGHT_STEPS}

    def render(self) -> npt.NDArray[np.uint8]:
        """
        :return: (128, 128, 3) the rod, dark on white
        """
        across, down = np.meshgrid(np.linspace(-1.5, 1.5, 128), np.linspace(-1.5, 1.5, 128))
        x, y = math.sin(self._angle), -math.cos(self._angle)
        along = np.clip(across * x + down * y, 0.0, self.context.length)
        is_rod = np.hypot(across - along * x, down - along * y) < 0.08
        return np.where(is_rod[..., None], np.uint8(40), np.uint8(255)).repeat(3, axis=-1)

    def _observation(self) -> npt.NDArray[np.float32]:
        mass, length, _ = self.context
        return np.array((math.cos(self._angle), math.sin(self._angle), self._speed, mass, length), dtype=np.float32)


def load(horizon: int = 200) -> TaskSource:
    """
    :param horizon: time limit in steps
    :return: the source and suite ``contextual``
    :raises ValueError: if the horizon is not positive
    """
    tasks = {
        name: TaskSpec(name, "contextual", partial(ContextualPendulum, context), horizon, 5, 1, TORQUES)
        for name, context in CONTEXTS.items()
    }
    protocol = {"version": 1, "horizon": horizon, "summary": f"version 1, horizon {horizon}"}
    return TaskSource("contextual", tasks, {"contextual": tuple(tasks)}, protocol)
