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


class Transitions(NamedTuple):
    """
    One step of all environments, as it is stored.

    :param observations: (N, D + one-hot)
    :param actions: (N, A) in [-1, 1], zero where the task has no such dimension
    :param rewards: (N,) raw
    :param next_observations: (N, D + one-hot) the true next observation, also at the end of an episode
    :param terminated: (N,) bool, the task itself ended the episode
    :param truncated: (N,) bool, a time limit did; the next observation is bootstrapped
    """

    observations: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor
    next_observations: th.Tensor
    terminated: th.Tensor
    truncated: th.Tensor


class TensorStep(NamedTuple):
    """
    What a step of environments on a device gives. Where an episode ended, the next one has already begun.

    :param observations: (N, D + one-hot) to act on
    :param rewards: (N,) raw
    :param terminated: (N,) bool, the task itself ended the episode
    :param truncated: (N,) bool, a time limit ended the episode and the task did not
    :param final_observations: (N, D + one-hot) what the action led to: ``observations``, but at the end of an episode
        its last observation
    :param episode_returns: (N,) sum of the rewards of the episode so far
    :param episode_lengths: (N,) int64, its steps so far
    :param is_success: (N,) bool, solved at any step of the episode so far; None where the tasks know no success
    :param success_last: (N,) bool, solved at this step; None where the tasks know no success
    """

    observations: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor
    truncated: th.Tensor
    final_observations: th.Tensor
    episode_returns: th.Tensor
    episode_lengths: th.Tensor
    is_success: th.Tensor | None = None
    success_last: th.Tensor | None = None
