"""The entropy coefficient: learned or fixed, per task or shared."""

from __future__ import annotations

from collections.abc import Sequence

import torch as th


def initial_ent_coef(ent_coef: str | float | Sequence[float]) -> tuple[float | list[float], bool]:
    """
    Read the argument ``ent_coef``.

    :param ent_coef: ``"auto"``, ``"auto_0.1"``, a number, or a number per task
    :return: the first value or values, and whether they are learned
    :raises ValueError: it is none of these, or not positive where it is learned
    """
    if not isinstance(ent_coef, str):
        return (float(ent_coef) if isinstance(ent_coef, int | float) else [float(v) for v in ent_coef]), False
    kind, _, value = ent_coef.partition("_")
    try:
        start = float(value) if value else 1.0
    except ValueError:
        start = 0.0
    if kind != "auto" or not start > 0:
        raise ValueError(
            f"ent_coef must be a number, a number per task, 'auto' or 'auto_<positive>', got {ent_coef!r}."
        )
    return start, True


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
