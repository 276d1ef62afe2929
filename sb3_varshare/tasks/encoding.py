"""
Where the task sits in an observation: a one-hot of length T behind the D entries of the task's own observation.

The only code that knows. It works on numpy arrays and torch tensors alike and imports no torch.
"""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

ArrayT = TypeVar("ArrayT", bound=Any)


def append_task(
    observation: npt.ArrayLike, task_id: int, n_tasks: int, observation_size: int | None = None
) -> npt.NDArray[np.float32]:
    """
    Put the task behind one observation.

    :param observation: (D,) of any number type
    :param task_id: 0 <= task_id < T
    :param n_tasks: T
    :param observation_size: pad the observation with zeros to this length first
    :return: (D + T,) float32, or (observation_size + T,) where that is given
    :raises ValueError: if the observation is longer than that
    """
    values = np.asarray(observation, dtype=np.float32)
    size = len(values) if observation_size is None else observation_size
    if len(values) > size:
        raise ValueError(f"Expected an observation of at most {size} numbers, got {len(values)}.")
    encoded = np.zeros(size + n_tasks, dtype=np.float32)
    encoded[: len(values)] = values
    encoded[size + task_id] = 1.0
    return encoded


def split_task(observations: ArrayT, n_tasks: int) -> tuple[ArrayT, ArrayT]:
    """
    Take the task off observations; does not check that the tail is a one-hot, see :func:`check_one_hot`.

    :param observations: (..., D + T) numpy array or torch tensor
    :param n_tasks: T; 0 for a plain env without a tail, whose observations are returned as they are, as task 0
    :return: observations (..., D) as a view, and task ids (...,) int64
    """
    if n_tasks == 0:
        # The position of the largest of one entry: zeros of the right shape, kind and device.
        return observations, observations[..., :1].argmax(-1)
    return observations[..., :-n_tasks], observations[..., -n_tasks:].argmax(-1)


def check_one_hot(observations: Any, n_tasks: int) -> None:
    """
    Check that every observation ends in a one-hot: exactly one entry 1, the others 0.

    :param observations: (..., D + T) numpy array or torch tensor
    :param n_tasks: T; with 0 there is nothing to check
    :raises ValueError: naming the first row that has none
    """
    if n_tasks == 0:
        return
    if observations.shape[-1] < n_tasks:
        raise ValueError(
            f"Expected observations with a one-hot of {n_tasks} tasks at the end, "
            f"got a last axis of {observations.shape[-1]}; use an env made by make_multitask_env."
        )
    tail = observations[..., -n_tasks:].reshape(-1, n_tasks)
    valid = ((tail == 0) | (tail == 1)).all(-1) & ((tail == 1).sum(-1) == 1)
    if not valid.all():
        row = valid.tolist().index(False)
        raise ValueError(
            f"Expected the last {n_tasks} entries of every observation to be the one-hot of its task, "
            f"got {tail[row].tolist()} in row {row}; normalise or stack observations before the task is appended."
        )
