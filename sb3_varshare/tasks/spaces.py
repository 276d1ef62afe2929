"""Which spaces a task's env may have, their sizes and bounds, and the map from [-1, 1] onto the bounds."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

ActionBounds = tuple[tuple[float, ...], tuple[float, ...]]
"""Lowest and highest action, as plain numbers."""


def check_spaces(task_name: str, env: gym.Env) -> tuple[int, int]:
    """
    Check that an env's observations are a flat vector and its actions a flat, bounded one.

    :param task_name: for the error message
    :param env: env of one task
    :return: length of the observation, length of the action
    :raises ValueError: if they are not
    """
    observations, actions = env.observation_space, env.action_space
    if not isinstance(observations, gym.spaces.Box) or len(observations.shape) != 1:
        raise ValueError(
            f"Task {task_name!r} must have a flat Box as observation space, got {observations}; "
            "wrap its env in gymnasium.wrappers.FlattenObservation."
        )
    if not isinstance(actions, gym.spaces.Box) or len(actions.shape) != 1:
        raise ValueError(
            f"Task {task_name!r} must have a flat Box as action space, got {actions}; "
            "only continuous actions are supported."
        )
    if not (np.isfinite(actions.low).all() and np.isfinite(actions.high).all()):
        raise ValueError(
            f"Task {task_name!r} must have bounded actions, got {actions}; "
            "wrap its env in gymnasium.wrappers.RescaleAction or bound the space itself."
        )
    return observations.shape[0], actions.shape[0]


def action_bounds(env: gym.Env) -> ActionBounds:
    """
    Lowest and highest action of an env that :func:`check_spaces` has seen.

    :param env: env of one task
    :return: as plain numbers, which can be saved and compared
    """
    space = env.action_space
    assert isinstance(space, gym.spaces.Box)
    return tuple(space.low.tolist()), tuple(space.high.tolist())


def to_bounds(actions: npt.NDArray[Any], low: npt.ArrayLike, high: npt.ArrayLike) -> npt.NDArray[Any]:
    """
    Map a suite's actions linearly onto a task's own bounds.

    :param actions: (..., A) in [-1, 1]; of these the first A_t are the task's
    :param low: (A_t,) lowest action of the task, an array of its space's type or plain numbers
    :param high: (A_t,) highest
    :return: (..., A_t) within the bounds, of a type that can express these: float64 where float32 would round them
    """
    low, high = _unrounded(low), _unrounded(high)
    # From the middle, so that bounds of -1 and 1 leave an action as it is, to the last bit.
    mapped: npt.NDArray[Any] = (low + high) / 2 + actions[..., : len(low)] * ((high - low) / 2)
    return mapped.clip(low, high)


def _unrounded(numbers: npt.ArrayLike) -> npt.NDArray[Any]:
    """float32 where that loses nothing, since a float32 space contains no float64 action, but not the reverse."""
    if isinstance(numbers, np.ndarray):
        return numbers
    values = np.asarray(numbers, dtype=np.float64)
    narrow = values.astype(np.float32)
    return narrow if np.array_equal(narrow, values) else values
