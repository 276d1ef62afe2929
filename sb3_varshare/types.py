"""
What crosses the borders between rooms.

Shape letters, used everywhere: **T** tasks, **N** environments, **B** rows per task in a batch, **K** critics,
**M** atoms of a return distribution, **D** observation, **A** action, **I/O** a layer's inputs and outputs. Once a
batch leaves the replay buffer, axis 0 is the task axis.
"""

from __future__ import annotations

from typing import NamedTuple

import torch as th


class TaskBatch(NamedTuple):
    """
    Transitions of all tasks, the same number of each.

    :param observations: (T, B, D) without the task one-hot
    :param actions: (T, B, A) in [-1, 1], zero where the task has no such dimension
    :param next_observations: (T, B, D) after n steps, or the last of the episode if it ended before
    :param rewards: (T, B) raw, the discounted sum over the n steps
    :param discounts: (T, B) what multiplies the value of the next observation; 0 after a termination
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor
