"""Positions of rows among the rows of their task, without waiting for the device."""

from __future__ import annotations

import torch as th


def rank_within_task(task_ids: th.Tensor, n_tasks: int) -> th.Tensor:
    """
    How many rows of the same task stand before each row.

    :param task_ids: (N,)
    :param n_tasks: T
    :return: (N,)
    """
    return count_within_task(task_ids, n_tasks, th.ones_like(task_ids, dtype=th.bool))[0]


def count_within_task(task_ids: th.Tensor, n_tasks: int, counted: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Like :func:`rank_within_task` where only some rows count.

    :param task_ids: (N,)
    :param n_tasks: T
    :param counted: (N,) bool
    :return: for every row that counts, how many such rows of its task stand before it, (N,), the others have no
        meaning; and how many count for each task, (T,)
    """
    # Not torch's one_hot, which reads the ids on the CPU to check them.
    one_hot = (task_ids[:, None] == th.arange(n_tasks, device=task_ids.device)) & counted[:, None]
    counts = one_hot.cumsum(0)
    return counts.gather(1, task_ids[:, None])[:, 0] - 1, counts[-1]
