"""The entropy coefficient: learned or fixed, per task or shared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch as th


def initial_ent_coef(ent_coef: str | float | Sequence[float]) -> tuple[float | list[float], bool]:
    """
    Read the argument ``ent_coef``.

    :param ent_coef: ``"auto"``, ``"auto_0.1"``, a number, or a number per task
    :return: the first value or values, and whether they are learned
    :raises ValueError: it is none of these, negative, or not positive where it is learned
    """
    learned = isinstance(ent_coef, str)
    kind, _, value = ent_coef.partition("_") if isinstance(ent_coef, str) else ("", "", ent_coef)
    try:
        start = np.array(1.0 if value == "" else value, dtype=np.float64)
    except (TypeError, ValueError):
        start = np.array(np.nan)
    possible = kind == "auto" and start > 0 if learned else (start >= 0).all()
    if not possible or start.ndim > 1:
        raise ValueError(
            "ent_coef must be a number that is not negative, one per task, 'auto' or 'auto_<positive>', "
            f"got {ent_coef!r}."
        )
    return start.tolist(), learned


def per_task(name: str, value: float | Sequence[float], n_tasks: int, device: th.device) -> th.Tensor:
    """
    A value for each task from one for all or one for each.

    :param name: of the argument, for the error
    :param value: a number, or T of them
    :param n_tasks: tasks T
    :param device: where the tensor lives
    :return: (T,)
    :raises ValueError: the length is wrong
    """
    if isinstance(value, int | float):
        return th.full((n_tasks,), float(value), device=device)
    if len(value) != n_tasks:
        raise ValueError(f"{name} must be one number or one per task ({n_tasks}), got {len(value)} numbers.")
    return th.tensor([float(v) for v in value], device=device)


def target_entropies(
    target_entropy: str | float | Sequence[float], action_sizes: Sequence[int], device: th.device
) -> th.Tensor:
    """
    :param target_entropy: ``"auto"`` for ``-A_t / 2``, a number, or a number per task; nats
    :param action_sizes: (T,) action dimensions of each task
    :param device: where the tensor lives
    :return: (T,)
    :raises ValueError: it is another string, or the length is wrong
    """
    if isinstance(target_entropy, str):
        if target_entropy != "auto":
            raise ValueError(f"target_entropy must be 'auto', a number, or one per task, got {target_entropy!r}.")
        return -th.tensor(action_sizes, dtype=th.float32, device=device) / 2
    return per_task("target_entropy", target_entropy, len(action_sizes), device)
