"""Which spaces a task's env may have, and their sizes."""

import gymnasium as gym
import numpy as np


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
