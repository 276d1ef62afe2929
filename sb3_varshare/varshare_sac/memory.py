"""How much memory an agent will take, counted before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import psutil
import torch as th

from sb3_varshare.adapters.sparse import Sparse
from sb3_varshare.varshare_sac.policies import MultiTaskPolicy

GIB = 2**30
FLOAT_BYTES = 4
# Value, gradient and the two moments of Adam.
COPIES_PER_PARAMETER = 4
# Weight-sized tensors that a gradient step keeps for its backward pass: composed weights, and of full residuals sigma
# and its square; the rest is what is on the way. At most 2.2 were measured, see docs/results.md.
WORKING_COPIES = 2.5
# Of the size of a critic layer's output for all rows and members; 43 were measured without residuals.
LAYER_OUTPUTS = 50


class MemoryNeed(NamedTuple):
    """
    Bytes that an agent takes on its device.

    :param parameters: numbers that are trained
    :param networks: parameters with their gradients and optimizer state
    :param target: the target critics
    :param working: what one gradient step keeps: composed weights, spreads, and what layers put out
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


def memory_need(make_policy: Callable[[], MultiTaskPolicy], layer_output: int, replay_bytes: int) -> MemoryNeed:
    """
    Count an agent's memory by building its networks without storage.

    :param make_policy: builds the policy
    :param layer_output: numbers that a critic layer puts out in a gradient step, K rows width
    :param replay_bytes: of the full replay buffer
    """
    with th.device("meta"):
        policy = make_policy()
    target = sum(p.numel() for p in policy.critic_target.parameters())
    trained = sum(p.numel() for module in (policy.actor, policy.critic) for p in module.parameters())
    networks = COPIES_PER_PARAMETER * trained * FLOAT_BYTES
    layers = (*policy.actor.linears(), *policy.critic.net.linears())
    # A pruned layer's weights are composed whole, though few of its residuals are parameters.
    pruned = sum(th.Size(layer.adapter.size).numel() for layer in layers if isinstance(layer.adapter, Sparse))
    working = int(WORKING_COPIES * (trained + pruned) + LAYER_OUTPUTS * layer_output) * FLOAT_BYTES
    return MemoryNeed(trained, networks, target * FLOAT_BYTES, working, replay_bytes)


def free_memory(device: th.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return int(th.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def checked_memory(model: Any) -> MemoryNeed:
    """
    Count what an agent will take, say so, and refuse what its device has no room for.

    :param model: a ``VarShareSAC`` whose arguments are set and whose replay holds nothing yet
    :raises MemoryError: it does not fit
    """
    # Without an environment nothing is collected: the agent was loaded to act.
    replay_counts = model.env is not None and model.replay_buffer.device.type == model.device.type
    rows = model.n_tasks * model.replay_buffer.buffer_size if replay_counts else 0
    need = memory_need(
        model._make_policy,
        model.n_critics * model.batch_size * model.critic_width,
        rows * model.replay_buffer.row_size * FLOAT_BYTES,
    )
    if model.verbose >= 1:
        print(f"VarShareSAC takes {need}")
    free = free_memory(model.device)
    if need.total > free:
        raise MemoryError(
            f"VarShareSAC needs {need}, but {model.device} has {free / GIB:.2f} GiB free. Make critic_width "
            f"({model.critic_width}), actor_width ({model.actor_width}) or buffer_size ({model.buffer_size}) "
            "smaller, or use adapter='low_rank', whose memory grows with the rank instead."
        )
    return need
