"""Which env plays which task, and which worker plays which envs."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from sb3_varshare.tasks.suite import TaskSuite

TaskWeights = Sequence[float] | Mapping[str, float]

# Episodes after which an env that plays several tasks begins its order anew; odd weights are rounded to it.
MAX_CYCLE = 1000
# Weights are fractions from here on, so that equal shares are exactly equal.
MAX_DENOMINATOR = 10**6


class EnvLayout(NamedTuple):
    """
    Which env plays what.

    :param cycles: (N,) task ids that an env plays in turn, again and again
    :param copies: (N,) which copy of its tasks an env is; each copy has random streams of its own
    """

    cycles: tuple[tuple[int, ...], ...]
    copies: tuple[int, ...]


def task_shares(task_weights: TaskWeights | None, suite: TaskSuite) -> tuple[Fraction, ...]:
    """
    The share that each task is to have in what is collected, where all episodes are equally long.

    :param task_weights: (T,) positive numbers of any sum, or a mapping from a name to one, where a task that is not
        named has weight 1; None weighs all alike
    :param suite: of T tasks
    :return: (T,) fractions that sum to 1
    :raises ValueError: if there is not one positive weight for each task, or no task of that name
    """
    weights = [1.0] * suite.n_tasks
    if isinstance(task_weights, Mapping):
        for name, weight in task_weights.items():
            weights[suite.task_id(name)] = float(weight)
    elif task_weights is not None:
        weights = [float(weight) for weight in task_weights]
    if len(weights) != suite.n_tasks:
        raise ValueError(f"task_weights must hold one number for each of {suite.n_tasks} tasks, got {len(weights)}.")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(
            f"task_weights must be positive and finite, got {weights}; to leave a task out, select the others."
        )
    rounded = [Fraction(weight / max(weights)).limit_denominator(MAX_DENOMINATOR) for weight in weights]
    rounded = [max(weight, Fraction(1, MAX_DENOMINATOR)) for weight in rounded]
    return tuple(weight / sum(rounded) for weight in rounded)


def task_layout(n_envs: int, shares: Sequence[Fraction]) -> tuple[tuple[int, ...], ...]:
    """
    Which tasks each env plays, in turn.

    With at least as many envs as tasks every env keeps to one task: each task has one env at least, and as many as
    its share asks for, by largest remainder. Envs step together, so these are shares of steps, whatever the episodes'
    lengths. With fewer, the tasks' shares are laid end to end and cut into N equal pieces (McNaughton's rule for
    machines), one for each env, so that at most N - 1 tasks are in two envs or more. An env shares out episodes, in
    cycles of at most ``MAX_CYCLE``: with episodes of one length these are shares of steps too; with others a task whose
    episodes are longer than those beside it has more steps than its share.

    :param n_envs: N
    :param shares: (T,) positive, with sum 1
    :return: (N,) cycles of task ids; an env plays its cycle again and again
    :raises ValueError: if the number of envs is not a whole one, or 0
    """
    check_n_envs(n_envs)
    if n_envs >= len(shares):
        counts = _apportion(n_envs, shares)
        return tuple((task,) for turn in range(max(counts)) for task, n in enumerate(counts) if n > turn)
    return tuple(_smooth_cycle(piece) for piece in _cut(n_envs, shares))


def evaluation_layout(n_envs: int, n_tasks: int) -> EnvLayout:
    """
    Tasks of envs for evaluation: none is in two envs as long as there are no more envs than tasks.

    The episodes of a task then do not depend on the number of envs.

    :param n_envs: N
    :param n_tasks: T
    :return: which env plays what
    :raises ValueError: if the number of envs is not a whole one, or 0
    """
    check_n_envs(n_envs)
    if n_envs >= n_tasks:
        return EnvLayout(
            tuple((env % n_tasks,) for env in range(n_envs)), tuple(env // n_tasks for env in range(n_envs))
        )
    return EnvLayout(tuple(tuple(range(env, n_tasks, n_envs)) for env in range(n_envs)), (0,) * n_envs)


def check_n_envs(n_envs: int) -> None:
    """
    :param n_envs: N
    :raises ValueError: if it is not a whole number of at least 1
    """
    if not isinstance(n_envs, (int, np.integer)) or n_envs < 1:
        raise ValueError(f"n_envs must be a whole number of at least 1, got {n_envs!r}.")


def balance(costs: Sequence[float], n_workers: int) -> tuple[tuple[int, ...], ...]:
    """
    Give every worker about the same work: the most expensive env first, each to the worker that has least to do.

    :param costs: (N,) of a step of each env, in any unit
    :param n_workers: W, at most N
    :return: (W,) ascending ranks of the envs of each worker, at least one each
    """
    loads = [(0.0, 0)] * n_workers
    ranks: list[list[int]] = [[] for _ in range(n_workers)]
    for rank in sorted(range(len(costs)), key=lambda rank: (-costs[rank], rank)):
        worker = min(range(n_workers), key=lambda worker: loads[worker])
        ranks[worker].append(rank)
        loads[worker] = (loads[worker][0] + costs[rank], loads[worker][1] + 1)
    return tuple(tuple(sorted(own)) for own in ranks)


def _apportion(n_seats: int, shares: Sequence[Fraction]) -> list[int]:
    """Whole numbers of at least 1 with the given sum, as near to the shares as that allows."""
    counts = [max(1, math.floor(n_seats * share)) for share in shares]
    while sum(counts) < n_seats:
        counts[max(range(len(shares)), key=lambda i: n_seats * shares[i] - counts[i])] += 1
    while sum(counts) > n_seats:
        several = [i for i, count in enumerate(counts) if count > 1]
        counts[max(several, key=lambda i: counts[i] - n_seats * shares[i])] -= 1
    return counts


def _cut(n_envs: int, shares: Sequence[Fraction]) -> list[dict[int, Fraction]]:
    """Pieces of length 1 of the shares times N: env -> task -> part of the env's time."""
    # Every N-th task beside the other: an env's tasks are not neighbours, which suites often have alike.
    order = sorted(range(len(shares)), key=lambda task: (task % n_envs, task))
    pieces: list[dict[int, Fraction]] = [{} for _ in range(n_envs)]
    position = Fraction(0)
    for task in order:
        end = position + n_envs * shares[task]
        while position < end:
            env = math.floor(position)
            part = min(end, Fraction(env + 1)) - position
            pieces[env][task] = part
            position += part
    return pieces


def _smooth_cycle(parts: Mapping[int, Fraction]) -> tuple[int, ...]:
    """Smooth weighted round robin, as in nginx: the tasks in their shares, and as evenly spread as can be."""
    tasks, shares = list(parts), list(parts.values())
    length = min(math.lcm(*(share.denominator for share in shares)), MAX_CYCLE)
    counts = _apportion(max(length, len(tasks)), shares)
    credit = np.zeros(len(tasks), dtype=np.int64)
    cycle = []
    for _ in range(sum(counts)):
        credit += counts
        chosen = int(credit.argmax())
        credit[chosen] -= sum(counts)
        cycle.append(tasks[chosen])
    return tuple(cycle)
