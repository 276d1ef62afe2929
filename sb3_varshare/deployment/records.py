"""What policy files say in JSON: written from what is known, and believed only after every entry was looked at."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_varshare.deployment.actor_parts import NetworkSizes, TaskFacts
from sb3_varshare.deployment.files import PolicyFileError, Record

# How a task differs from the base: by a weight that is added, by a factor of one, by nothing, or in everything.
DIFFERENCES = ("weights", "factors", "none", "network")
LARGEST_SIZE = 2**20
LARGEST_DEPTH = 2**10
# Twice as much is still a number of single precision.
LARGEST_BOUND = 1e38


class PolicyFacts(NamedTuple):
    """
    What all tasks of an exported policy have in common besides weights.

    :param adapter: of the agent
    :param difference: how a task differs from the base, one of :data:`DIFFERENCES`
    :param rank: of the factors; 0 where there are none
    :param sizes: of the network
    :param normalized: whether observations are normalised
    :param observation_space: (D,) of the longest observation, without a one-hot
    :param action_space: (A,) of the agent
    :param protocol: of the last training
    """

    adapter: str
    difference: str
    rank: int
    sizes: NetworkSizes
    normalized: bool
    observation_space: spaces.Box
    action_space: spaces.Box
    protocol: dict[str, Any]

    def network_record(self) -> Record:
        """What the base's checksum covers besides its tensors."""
        return {
            **self.sizes._asdict(),
            "difference": self.difference,
            "rank": self.rank,
            "normalized": self.normalized,
        }

    def to_record(self) -> Record:
        """JSON types only."""
        return {
            "adapter": self.adapter,
            "network": self.network_record(),
            "observation_space": _from_box(self.observation_space),
            "action_space": _from_box(self.action_space),
            "protocol": self.protocol,
        }


class Checked:
    """
    A record that was read, taken apart entry by entry.

    :param path: of the file it is from
    :param record: JSON types only
    """

    def __init__(self, path: Path, record: Record) -> None:
        self.path, self.record = path, record

    def refuse(self, key: str, expected: str) -> PolicyFileError:
        """What to raise where an entry is not as expected."""
        return PolicyFileError(self.path, f"expected {key} to be {expected}, got {str(self.record.get(key))[:100]}")

    def whole(self, key: str, low: int, high: int) -> int:
        """A whole number within limits."""
        value = self.record.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.refuse(key, f"a whole number from {low} to {high}")
        return value

    def text(self, key: str) -> str:
        """A string."""
        value = self.record.get(key)
        if not isinstance(value, str):
            raise self.refuse(key, "a string")
        return value

    def choice(self, key: str, choices: tuple[Any, ...]) -> Any:
        """One of a few values of exactly their types."""
        value = self.record.get(key)
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise self.refuse(key, f"one of {choices}")

    def inner(self, key: str) -> Checked:
        """An object."""
        value = self.record.get(key)
        if not isinstance(value, dict):
            raise self.refuse(key, "an object")
        return Checked(self.path, value)

    def numbers(self, key: str, size: int, limit: float, default: float | None = None) -> npt.NDArray[np.float64]:
        """(size,) from a list, or from one number for all; ``None`` in it is the default, where there is one."""
        value = self.record.get(key)
        values = value if isinstance(value, list) else [value] * size
        filled = [default if item is None else item for item in values]
        possible = all(
            item == default or (isinstance(item, int | float) and not isinstance(item, bool) and abs(item) <= limit)
            for item in filled
        )
        if len(values) != size or not possible or None in filled:
            raise self.refuse(key, f"{size} numbers of at most {limit:.0e}")
        return np.array(filled, dtype=np.float64)


def read_policy_facts(path: Path, record: Record) -> PolicyFacts:
    """
    :param path: of the file that the record is from
    :param record: as :meth:`PolicyFacts.to_record` gives it
    :raises PolicyFileError: an entry is missing or not possible
    """
    entries, network = Checked(path, record), Checked(path, record).inner("network")
    sizes = NetworkSizes(
        network.whole("observation_size", 1, LARGEST_SIZE),
        network.whole("task_input_size", 0, LARGEST_SIZE),
        network.whole("action_size", 1, LARGEST_SIZE),
        network.whole("width", 1, LARGEST_SIZE),
        network.whole("depth", 0, LARGEST_DEPTH),
    )
    facts = PolicyFacts(
        entries.text("adapter"),
        network.choice("difference", DIFFERENCES),
        network.whole("rank", 0, LARGEST_SIZE),
        sizes,
        network.choice("normalized", (False, True)),
        _to_box(entries.inner("observation_space"), sizes.observation_size),
        _to_box(entries.inner("action_space"), sizes.action_size),
        entries.inner("protocol").record,
    )
    if (facts.difference == "factors") != (facts.rank > 0):
        raise network.refuse("rank", "positive for factors and 0 otherwise")
    return facts


def task_record(facts: TaskFacts, position: int, base: str) -> Record:
    """
    :param facts: of the task
    :param position: of the task in the agent, by which tasks are listed
    :param base: checksum of the base that it belongs to
    :return: JSON types only
    """
    low, high = facts.bounds
    sizes = {"observation_size": facts.observation_size, "action_size": len(low)}
    names = {"name": facts.name, "full_name": facts.full_name, "position": position}
    return {**names, **sizes, "action_low": list(low), "action_high": list(high), "base_sha256": base}


def read_task_facts(path: Path, record: Record, sizes: NetworkSizes) -> tuple[TaskFacts, int]:
    """
    :param path: of the file that the record is from
    :param record: as :func:`task_record` gives it
    :param sizes: of the network that the task belongs to
    :return: the facts, and the task's position
    :raises PolicyFileError: an entry is missing or not possible
    """
    entries = Checked(path, record)
    n_actions = entries.whole("action_size", 1, sizes.action_size)
    low, high = (entries.numbers(key, n_actions, LARGEST_BOUND) for key in ("action_low", "action_high"))
    if not (low <= high).all():
        raise entries.refuse("action_low", "nowhere above action_high")
    facts = TaskFacts(
        entries.text("name"),
        entries.text("full_name"),
        entries.whole("observation_size", 1, sizes.observation_size),
        (tuple(low.tolist()), tuple(high.tolist())),
    )
    return facts, entries.whole("position", 0, 2**31)


def _from_box(box: spaces.Box) -> Record:
    return {"dtype": str(box.dtype), "low": _from_bound(box.low), "high": _from_bound(box.high)}


def _from_bound(bound: npt.NDArray[Any]) -> Any:
    values = [value if math.isfinite(value) else None for value in bound.tolist()]
    return values[0] if len(set(values)) == 1 else values


def _to_box(entries: Checked, size: int) -> spaces.Box:
    dtype = entries.choice("dtype", ("float32", "float64"))
    low = entries.numbers("low", size, sys.float_info.max, -math.inf)
    high = entries.numbers("high", size, sys.float_info.max, math.inf)
    if not (low <= high).all():
        raise entries.refuse("low", "nowhere above high")
    with np.errstate(over="ignore"):
        return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=getattr(np, dtype))
