"""How much memory an agent will take, counted before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import psutil
import torch as th

from sb3_varshare.varshare_sac.policies import MultiTaskPolicy

GIB = 2**30
FLOAT_BYTES = 4
# Value, gradient and the two moments of Adam.
COPIES_PER_PARAMETER = 4
# What a gradient step keeps for its backward pass: composed weights, sigma, its square, and their gradients. Fitted so
# that the count meets what was measured on MT10 and MT50 with full residuals at width 256, see docs/results.md.
WORKING_COPIES = 7


class MemoryNeed(NamedTuple):
    """
    Bytes that an agent takes on its device.

    :param parameters: numbers that are trained
    :param networks: parameters with their gradients and optimizer state
    :param target: the target critics
    :param working: composed weights and spreads of one gradient step
    :param replay: the replay buffer when it is full
    """

    parameters: int
    networks: int
    target: int
    working: int
    replay: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.networks + self.target + self.working + self.replay

    def __str__(self) -> str:
        parts = {"networks with optimizer": self.networks, "target": self.target, "work": self.working}
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in {**parts, "replay": self.replay}.items())
        return f"{self.total / GIB:.2f} GiB for {self.parameters / 1e6:.1f} M parameters ({listed})"


def memory_need(make_policy: Callable[[], MultiTaskPolicy], replay_bytes: int) -> MemoryNeed:
    """
    Count an agent's memory by building its networks without storage.

    :param make_policy: builds the policy
    :param replay_bytes: of the full replay buffer
    """
    with th.device("meta"):
        policy = make_policy()
    target = sum(p.numel() for p in policy.critic_target.parameters())
    trained = sum(p.numel() for module in (policy.actor, policy.critic) for p in module.parameters())
    networks = COPIES_PER_PARAMETER * trained * FLOAT_BYTES
    return MemoryNeed(trained, networks, target * FLOAT_BYTES, WORKING_COPIES * trained * FLOAT_BYTES, replay_bytes)


def free_memory(device: th.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(th.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check_fits(need: MemoryNeed, device: th.device, advice: str) -> None:
    """
    :param need: what the agent takes
    :param device: where it is going to live
    :param advice: what to change, in a sentence
    :raises MemoryError: it does not fit
    """
    free = free_memory(device)
    if need.total > free:
        raise MemoryError(f"VarShareSAC needs {need}, but {device} has {free / GIB:.2f} GiB free. {advice}")
