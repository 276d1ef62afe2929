"""Agents that take gradient steps in turns, for ``update_step.py``, and what their times say."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from roofline import LimitMeter, Limits, count_flops
from update_agents import count_parameters
from update_stages import STAGES, stage_seconds, synchronize

# Contender -> what is timed -> seconds.
Round = dict[str, dict[str, float]]


@dataclass
class Contender:
    """
    An agent that takes gradient steps.

    :param name: in the table
    :param against: name of the contender that its times are divided by
    :param agent: with a method ``train`` as SB3's algorithms have it
    :param rows: of all tasks together
    :param flops: of a gradient step
    :param weight_bytes: of weight-sized tensors that it moves; None where they were not counted
    """

    name: str
    against: str
    agent: Any
    rows: int
    flops: int
    weight_bytes: int | None

    def turn(self, n_updates: int, device: th.device) -> dict[str, float]:
        """
        Take steps.

        :param n_updates: how many, once as they are and once split
        :param device: of the agent
        :return: median seconds of ``update``, and of ``critic step`` and all stages where the agent has them
        """
        # What the others left in the caches is not this one's time.
        self.agent.train(1, self.rows)
        times = {"update": float(np.median([self._seconds(device) for _ in range(n_updates)]))}
        if not hasattr(self.agent, "_critic_step"):
            return times
        splits = [stage_seconds(self.agent, self.rows, device) for _ in range(n_updates)]
        for split in splits:
            split["critic step"] = sum(seconds for name, seconds in split.items() if name.startswith("critic "))
        return times | {name: float(np.median([split[name] for split in splits])) for name in splits[0]}

    def _seconds(self, device: th.device) -> float:
        synchronize(device)
        start = time.perf_counter()
        self.agent.train(1, self.rows)
        synchronize(device)
        return time.perf_counter() - start


class Race:
    """
    Contenders in one process.

    :param title: what they do
    :param device: of all of them
    """

    def __init__(self, title: str, device: th.device) -> None:
        self.title, self.device = title, device
        self.contenders: list[Contender] = []
        self.skipped: list[str] = []

    def add(self, name: str, against: str, agent: Any, rows: int, weight_bytes: int | None = None) -> None:
        """
        Add an agent. It takes its first step here, so that the next one finds all of its memory taken.

        :param name: in the table
        :param against: name of the contender that its times are divided by
        :param agent: with a method ``train``
        :param rows: of all tasks together
        :param weight_bytes: of weight-sized tensors that a step moves, where they were counted
        """
        flops = count_flops(lambda: agent.train(1, rows))
        self.contenders.append(Contender(name, against, agent, rows, flops, weight_bytes))

    def run(self, meter: LimitMeter, n_rounds: int, n_warm_up: int, n_updates: int, seed: int) -> dict[str, Any]:
        """
        Let all step in turns, in a new order every round.

        :param meter: of the machine's limits, which has its turn at the end of a round
        :param n_rounds: turns of each
        :param n_warm_up: rounds before these that do not count
        :param n_updates: gradient steps in a turn
        :param seed: of the orders
        :return: title, limits, contenders and who was left out
        """
        generator = np.random.default_rng(seed)
        rounds: list[Round] = []
        limits: list[Limits] = []
        for _ in range(n_warm_up + n_rounds):
            order = [self.contenders[i] for i in generator.permutation(len(self.contenders))]
            rounds.append({contender.name: contender.turn(n_updates, self.device) for contender in order})
            limits.append(meter.measure())
        rounds, limits = rounds[n_warm_up:], limits[n_warm_up:]
        return {
            "title": self.title,
            "limits": {name: spread(np.array([getattr(limit, name) for limit in limits])) for name in Limits._fields},
            "contenders": [summary(contender, rounds, limits) for contender in self.contenders],
            "skipped": self.skipped,
        }


def spread(values: np.ndarray) -> dict[str, float]:
    """
    :param values: one per round
    :return: median and quartiles
    """
    return dict(zip(("low", "median", "high"), np.quantile(values, (0.25, 0.5, 0.75)).tolist(), strict=True))


def summary(contender: Contender, rounds: list[Round], limits: list[Limits]) -> dict[str, Any]:
    """
    What one contender did.

    :param contender: which
    :param rounds: seconds
    :param limits: in the same rounds
    """
    times = {name: np.array([turns[contender.name][name] for turns in rounds]) for name in rounds[0][contender.name]}
    result: dict[str, Any] = {
        "name": contender.name,
        "against": contender.against,
        "parameters": count_parameters(contender.agent),
        "flops": contender.flops,
        "weight_bytes": contender.weight_bytes,
        "median_ms": {name: 1e3 * float(np.median(seconds)) for name, seconds in times.items()},
        "ratio": {},
        "rounds_ms": {name: (1e3 * seconds).tolist() for name, seconds in times.items()},
    }
    for name in ("critic step", "update"):
        # A base that did not fit, or has no such stage, leaves nothing to divide by.
        base = [turns.get(contender.against, {}).get(name) for turns in rounds]
        if name in times and contender.against != contender.name and None not in base:
            result["ratio"][name] = spread(times[name] / np.array(base, dtype=float))
    if "critic step" in times:
        split = sum(times[stage] for stage in STAGES)
        result["share"] = {stage: float(np.median(times[stage] / split)) for stage in STAGES}
    if contender.weight_bytes is not None:
        least = [limit.least_seconds(contender.flops, contender.weight_bytes) for limit in limits]
        result["share_of_limits"] = float(np.median(np.array(least) / times["update"]))
    return result
