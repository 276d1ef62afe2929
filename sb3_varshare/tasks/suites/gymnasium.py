"""
Gymnasium's registered envs as tasks, with keyword arguments and wrappers per task, and suites of MuJoCo robots.

- ``HalfCheetah``: ``run`` and ``run-backwards`` pay the velocity v forwards or backwards, ``run-slow`` and ``run-fast``
  pay -abs(v - target) with targets of 1 and 3 m/s; all of them less HalfCheetah-v5's control cost 0.1 sum(a^2). Source:
  the goal direction and goal velocity tasks of Finn et al. 2017, "Model-Agnostic Meta-Learning", whose velocities are
  from 0 to 2 m/s; Rakelly et al. 2019, "PEARL", take 0 to 3 m/s.
- ``HopperGravity``: Hopper-v5 under 0.5 to 1.5 times the gravity. Source: Henderson et al. 2017, "Benchmark
  Environments for Multitask Learning in Continuous Domains".
- ``Walker2dMass``: Walker2d-v5 with 0.5 to 1.5 times the mass of every part, by the same steps.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec

from sb3_varshare.tasks.seeding import SeededOnce
from sb3_varshare.tasks.spaces import action_bounds, check_spaces
from sb3_varshare.tasks.suite import TaskSource, TaskSpec

Wrapper = Callable[[gym.Env], gym.Env]
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)
SLOW, FAST = 1.0, 3.0  # m/s


class TargetSpeed(gym.Wrapper):
    """
    Pays for keeping a speed: -abs(v - target) plus the env's own control cost, both from its ``info``.

    :param env: a MuJoCo robot that reports ``x_velocity`` and ``reward_ctrl``
    :param target: m/s
    """

    def __init__(self, env: gym.Env, target: float) -> None:
        super().__init__(env)
        self.target = target

    def step(self, action: npt.NDArray[Any]) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self.env.step(action)
        reward = -abs(info["x_velocity"] - self.target) + info["reward_ctrl"]
        return observation, reward, terminated, truncated, info


def scale_physics(env: gym.Env, gravity: float = 1.0, mass: float = 1.0) -> gym.Env:
    """
    Change a MuJoCo env's gravity and the mass of all its bodies, with their inertia.

    :param env: with a MuJoCo ``model``
    :param gravity: factor
    :param mass: factor
    :return: the same env
    """
    import mujoco

    model, data = env.unwrapped.model, env.unwrapped.data  # type: ignore[attr-defined]
    model.opt.gravity[:] *= gravity
    model.body_mass[:] *= mass
    model.body_inertia[:] *= mass
    mujoco.mj_setConst(model, data)
    return env


def gymnasium_task(
    env_id: str,
    name: str | None = None,
    horizon: int | None = None,
    wrapper: Wrapper | None = None,
    source: str = "gymnasium",
    **kwargs: Any,
) -> TaskSpec:
    """
    A task from a registered env; the env is built once here, to learn its sizes.

    :param env_id: e.g. ``HalfCheetah-v5``; its spaces must be flat boxes
    :param name: of the task; by default the id
    :param horizon: time limit in steps; by default that of the id. There is no other
    :param wrapper: takes the env and returns it wrapped or changed. The protocol holds its name and the arguments of a
        ``partial``, so give what makes a difference between two results there
    :param source: of which it is a task; another where a source of your own has it
    :param kwargs: for ``gymnasium.make``, e.g. ``forward_reward_weight=-1``
    :return: the task
    :raises ValueError: if there is no positive time limit, or the spaces are not flat and bounded
    """
    name, spec = name or env_id, gym.spec(env_id)
    horizon = spec.max_episode_steps if horizon is None else horizon
    if horizon is None:
        raise ValueError(f"{env_id} has no time limit of its own: give a horizon of at least 1 step.")
    # By its spec: in a worker nobody has registered the ids of a script.
    build = partial(_build, spec, wrapper, kwargs)
    env = build()
    observation_size, action_size = check_spaces(f"{source}/{name}", env)
    bounds = action_bounds(env)
    env.close()
    protocol = {
        "id": env_id,
        "horizon": horizon,
        # JSON types only: what is none is named by its text.
        "kwargs": json.loads(json.dumps(kwargs, default=repr)),
        "wrapper": _describe(wrapper),
    }
    make = partial(_seeded, build)
    return TaskSpec(
        name, source, make, horizon, observation_size, action_size, bounds, protocol, _source_protocol("of each task")
    )


def _build(spec: EnvSpec, wrapper: Wrapper | None, kwargs: dict[str, Any]) -> gym.Env:
    # One time limit, that of the spec; the checker would play a step of its own.
    env: gym.Env = gym.make(spec, max_episode_steps=-1, disable_env_checker=True, **kwargs)
    if not {"camera_id", "camera_name", "default_camera_config"} & kwargs.keys():
        _follow_robot(env)
    return env if wrapper is None else wrapper(env)


def _follow_robot(env: gym.Env) -> None:
    """Gymnasium 1.4 films with a camera that stands still, also where the robot's model has one that follows."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None:
        import mujoco

        camera = mujoco.mj_name2id(renderer.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        renderer.camera_id = camera if camera >= 0 else renderer.camera_id


def _seeded(build: Callable[[], gym.Env], stream: np.random.SeedSequence) -> gym.Env:
    return SeededOnce(build(), stream)


def _describe(wrapper: Any) -> str | None:
    """A name that is the same in every process, with the arguments of a partial."""
    if isinstance(wrapper, partial):
        arguments = [*map(repr, wrapper.args), *(f"{key}={value!r}" for key, value in wrapper.keywords.items())]
        return f"{_describe(wrapper.func)}({', '.join(arguments)})"
    if isinstance(wrapper, FunctionType) and wrapper.__name__ == "<lambda>":
        code = wrapper.__code__
        # Where its body begins, since there may be several in a line.
        column = min((column for *_, column, _ in code.co_positions() if column), default=0)
        return f"{wrapper.__module__}.{wrapper.__qualname__} at {code.co_firstlineno}:{column}"
    return getattr(wrapper, "__qualname__", None if wrapper is None else type(wrapper).__qualname__)


# Task -> id, wrapper and keyword arguments.
VARIANTS: dict[str, tuple[str, Wrapper | None, dict[str, Any]]] = {
    "HalfCheetah/run": ("HalfCheetah-v5", None, {}),
    "HalfCheetah/run-backwards": ("HalfCheetah-v5", None, {"forward_reward_weight": -1.0}),
    "HalfCheetah/run-slow": ("HalfCheetah-v5", partial(TargetSpeed, target=SLOW), {}),
    "HalfCheetah/run-fast": ("HalfCheetah-v5", partial(TargetSpeed, target=FAST), {}),
    **{
        f"HopperGravity/gravity-{factor:g}": ("Hopper-v5", partial(scale_physics, gravity=factor), {})
        for factor in FACTORS
    },
    **{f"Walker2dMass/mass-{factor:g}": ("Walker2d-v5", partial(scale_physics, mass=factor), {}) for factor in FACTORS},
}
SUITES = {
    suite: tuple(task for task in VARIANTS if task.startswith(f"{suite}/"))
    for suite in ("HalfCheetah", "HopperGravity", "Walker2dMass")
}


class RegisteredTasks(Mapping[str, TaskSpec]):
    """
    All variants of this file and all of Gymnasium's ids; a task is built when it is asked for.

    :param horizon: time limit in steps; None for that of each id
    """

    def __init__(self, horizon: int | None) -> None:
        self._horizon = horizon

    def __getitem__(self, name: str) -> TaskSpec:
        if name in VARIANTS:
            env_id, wrapper, kwargs = VARIANTS[name]
            suite, _, short_name = name.partition("/")
            return gymnasium_task(env_id, short_name, self._horizon, wrapper, f"gymnasium/{suite}", **kwargs)
        return gymnasium_task(name, horizon=self._horizon)

    def __contains__(self, name: object) -> bool:
        return name in VARIANTS or name in gym.registry

    def __iter__(self) -> Iterator[str]:
        yield from VARIANTS
        yield from gym.registry

    def __len__(self) -> int:
        return len(VARIANTS) + len(gym.registry)


def load(horizon: int | None = None) -> TaskSource:
    """
    :param horizon: time limit in steps for all tasks; None for that of each id
    :return: the source ``gymnasium``, with suites HalfCheetah, HopperGravity and Walker2dMass
    """
    protocol = _source_protocol("of each id" if horizon is None else horizon)
    return TaskSource("gymnasium", RegisteredTasks(horizon), SUITES, protocol)


def _source_protocol(horizon: int | str) -> dict[str, Any]:
    """The tasks' own protocols hold the rest, the horizon too."""
    versions = {"gymnasium": gym.__version__}
    try:
        versions["mujoco"] = version("mujoco")
    except PackageNotFoundError:
        pass
    return {"summary": f"horizon {horizon}", "versions": versions}
