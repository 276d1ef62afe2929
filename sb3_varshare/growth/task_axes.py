"""Which axes of an agent's tensors belong to the tasks, and the same tensors for other tasks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_varshare.varshare_sac import VarShareSAC

Axes = tuple[int, ...]
Keep = Sequence[int | None]
"""For each task of the new agent its position in the old one, or None for a task that is new."""


def resized(space: spaces.Box, one_hot_size: int, new_one_hot_size: int) -> spaces.Box:
    """
    An observation space with a one-hot of another length at its end.

    :param space: flat
    :param one_hot_size: length of the one-hot in it
    :param new_one_hot_size: length of the one-hot in the result
    """
    size = space.shape[0] - one_hot_size
    low, high = (
        np.append(bound[:size], np.full(new_one_hot_size, bound[-1] if one_hot_size else limit)).astype(np.float32)
        for bound, limit in ((space.low, -np.inf), (space.high, np.inf))
    )
    return spaces.Box(low, high, dtype=np.float32)


def task_axes(model: VarShareSAC) -> dict[str, Axes]:
    """
    The axes along which the policy's tensors are longer with one task more: the task axis itself and, where the task is
    an input as a one-hot, the inputs of the first layers. Read off a policy of T + 1 tasks that has no storage, so that
    no adapter needs to be known here.

    :param model: the agent
    :return: for each entry of the policy's state
    """
    larger = copy.copy(model)
    n_tasks = model.n_tasks + 1
    assert isinstance(model.observation_space, spaces.Box)
    larger.n_tasks = larger.one_hot_size = n_tasks
    larger.observation_space = resized(model.observation_space, model.one_hot_size, n_tasks)
    larger.action_sizes = [*model.action_sizes, model.action_sizes[0]]
    with th.device("meta"):
        state = larger._make_policy().state_dict()
    return {
        name: tuple(axis for axis, size in enumerate(tensor.shape) if state[name].shape[axis] != size)
        for name, tensor in model.policy.state_dict().items()
    }


def is_own(tensor: th.Tensor, axes: Axes, n_tasks: int) -> bool:
    """
    Whether a tensor holds something for each task, and not merely inputs that differ from task to task.

    :param tensor: of the agent
    :param axes: of it that belong to the tasks
    :param n_tasks: T
    """
    return any(tensor.shape[axis] == n_tasks for axis in axes)


def rearranged(old: th.Tensor, fresh: th.Tensor, axes: Axes, n_tasks: int, keep: Keep) -> th.Tensor:
    """
    A tensor for other tasks. On the axes of the tasks, their T entries come last: all there are on the task axis, and
    behind the observation on an axis of inputs.

    :param old: of an agent of T tasks
    :param fresh: of the new agent, what its new tasks start with
    :param axes: that belong to the tasks
    :param n_tasks: T
    :param keep: old position of each task of the new agent
    :return: of ``fresh``'s shape
    """
    targets: list[tuple[int, th.Tensor]] = []
    for axis in axes:
        before = list(range(old.shape[axis] - n_tasks))
        there = [len(before) + task for task in keep if task is not None]
        here = [len(before) + position for position, task in enumerate(keep) if task is not None]
        old = old.index_select(axis, th.tensor([*before, *there], dtype=th.long, device=old.device))
        targets.append((axis, th.tensor([*before, *here], dtype=th.long, device=fresh.device)))
    return _placed(fresh, old.to(fresh), targets)


def _placed(tensor: th.Tensor, part: th.Tensor, targets: list[tuple[int, th.Tensor]]) -> th.Tensor:
    """A copy of a tensor with a part of it replaced, which lies at given positions of some axes."""
    if not targets:
        return part.clone()
    (axis, positions), *others = targets
    return tensor.index_copy(axis, positions, _placed(tensor.index_select(axis, positions), part, others))


def rearrange_state(
    target: Mapping[str, th.Tensor], source: Mapping[str, th.Tensor], axes: Mapping[str, Axes], n_tasks: int, keep: Keep
) -> None:
    """
    Fill tensors with what others hold of the tasks that both have, in place.

    :param target: of the new agent; an entry that the source lacks stays
    :param source: of an agent of T tasks
    :param axes: that belong to the tasks
    :param n_tasks: T
    :param keep: old position of each task of the new agent
    :raises ValueError: sizes that have nothing to do with the tasks differ
    """
    for name, tensor in target.items():
        if name not in source:
            continue
        own = axes.get(name, ())
        sizes = [[size for axis, size in enumerate(t.shape) if axis not in own] for t in (tensor, source[name])]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"Arguments that shape the networks cannot be changed: {name} would have the shape "
                f"{tuple(tensor.shape)}, the agent has {tuple(source[name].shape)}."
            )
        tensor.copy_(rearranged(source[name], tensor, own, n_tasks, keep))


def rearrange_moments(
    target: th.optim.Optimizer,
    source: th.optim.Optimizer,
    pairs: Mapping[th.Tensor, tuple[th.Tensor, Axes]],
    n_tasks: int,
    keep: Keep,
) -> None:
    """
    Let an optimizer go on where another one is; of a new task it knows nothing, so that its moments are zero.

    :param target: of the new agent
    :param source: of an agent of T tasks
    :param pairs: parameter of the new agent -> that of the old one, and its axes that belong to the tasks
    :param n_tasks: T
    :param keep: old position of each task of the new agent
    :raises ValueError: the optimizer keeps something whose form is not the parameter's
    """
    for parameter in (p for group in target.param_groups for p in group["params"] if p in pairs):
        old, axes = pairs[parameter]
        moments = target.state[parameter] if old in source.state else {}
        for key, value in source.state.get(old, {}).items():
            if isinstance(value, th.Tensor) and value.shape == old.shape:
                known = moments.get(key, th.zeros_like(parameter))
                moments[key] = rearranged(value, known, axes, n_tasks, keep)
            elif isinstance(value, th.Tensor) and value.numel() > 1 and axes:
                raise ValueError(
                    f"{type(source).__name__} keeps {key!r} of shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(old.shape)}, which cannot be told apart by tasks; use Adam or AdamW."
                )
            else:
                moments.setdefault(key, copy.deepcopy(value))
