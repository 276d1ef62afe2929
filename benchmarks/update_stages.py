"""
Where the time of one gradient step goes, for ``update_step.py``.

The callables of an agent are replaced for the length of one step by ones that tell a stopwatch where they are. Time
belongs to the innermost of them, so that the stages of a step add up to it.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch as th

from sb3_varshare import losses

# The KL is no stage: layers add its gradient within the backward pass.
CRITIC_STAGES = ("forward", "backward", "optimizer", "other", "re-centre")
STAGES = (
    "sample",
    "target",
    "projection",
    *(f"critic {stage}" for stage in CRITIC_STAGES),
    "target update",
    "actor",
    "actor re-centre",
    "entropy",
    "rest",
)


def synchronize(device: th.device) -> None:
    """
    Wait for what was started.

    :param device: a CPU is never behind
    """
    if device.type == "cuda":
        th.cuda.synchronize(device)


class Stopwatch:
    """
    Exclusive seconds of nested stages.

    :param device: waited for at every border of a stage
    """

    def __init__(self, device: th.device) -> None:
        self.device = device
        self.seconds: dict[tuple[str, ...], float] = defaultdict(float)
        self._path: tuple[str, ...] = ()
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """
        What happens in this context belongs to the stage, but for what happens in a stage within it.

        :param name: of the stage
        """
        outer = self._path
        self._enter((*outer, name))
        try:
            yield
        finally:
            self._enter(outer)

    def _enter(self, path: tuple[str, ...]) -> None:
        synchronize(self.device)
        now = time.perf_counter()
        if self._path:
            self.seconds[self._path] += now - self._since
        self._path, self._since = path, now

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """
        :param function: any callable
        :param name: of its stage
        :return: the same callable in its stage
        """

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return call


def watched(agent: Any) -> list[tuple[Any, str, str]]:
    """
    Owner, attribute and stage of every callable that is timed.

    :param agent: a ``VarShareSAC``, or one that has a part of its methods
    """
    network = getattr(agent.critic, "net", agent.critic)
    candidates = [
        (agent, "train", "train"),
        (agent.replay_buffer, "sample", "sample"),
        (agent, "_critic_target", "target"),
        (losses, "project", "projection"),
        (agent, "_critic_step", "critic"),
        (agent.critic, "forward", "forward"),
        (losses, "critic_loss", "forward"),
        (th.autograd, "backward", "backward"),
        (agent.critic.optimizer, "step", "optimizer"),
        (agent, "_update_target", "target update"),
        (agent, "_actor_step", "actor"),
        (agent, "_entropy_step", "entropy"),
        (network, "recenter", "critic re-centre"),
        (agent.actor, "recenter", "actor re-centre"),
    ]
    return [candidate for candidate in candidates if hasattr(*candidate[:2])]


def stage_of(path: tuple[str, ...]) -> str:
    """
    The stage that a path of nested callables belongs to, one of :data:`STAGES`.

    :param path: from ``train`` inwards
    """
    inner = path[1:]
    if inner[:1] == ("critic",):
        if "target" not in inner:
            return f"critic {inner[-1] if len(inner) > 1 else 'other'}"
        inner = inner[inner.index("target") :]
    if not inner:
        return "rest"
    return "projection" if inner[-1] == "projection" else inner[0]


def stage_seconds(agent: Any, batch_size: int, device: th.device) -> dict[str, float]:
    """
    One gradient step, split.

    :param agent: with the methods of ``VarShareSAC`` that :func:`watched` names
    :param batch_size: rows of all tasks together
    :param device: of the agent
    :return: seconds of each of :data:`STAGES`
    """
    stopwatch = Stopwatch(device)
    with ExitStack() as stack:
        for owner, attribute, name in watched(agent):
            timed = stopwatch.timed(getattr(owner, attribute), name)
            stack.enter_context(mock.patch.object(owner, attribute, timed))
        agent.train(1, batch_size)
    seconds = dict.fromkeys(STAGES, 0.0)
    for path, value in stopwatch.seconds.items():
        seconds[stage_of(path)] += value
    return seconds
