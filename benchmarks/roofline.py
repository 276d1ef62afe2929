"""
What the machine can do and what a gradient step asks of it, for ``update_step.py``.

Limits are measured: products of float32 matrices, and the bandwidth of memory. Operations are counted by PyTorch on one
step. Bytes are counted from first principles, for tensors of the size of the weights only: activations of 1,020 rows
are small beside the weights of ten tasks of width 256, though not beside one shared network.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
from torch.utils.flop_counter import FlopCounterMode
from update_stages import synchronize

from sb3_varshare import VarShareSAC
from sb3_varshare.networks import TaskNetwork

FLOAT_BYTES = 4
# Rows and columns of a large product, and how often it is timed at once: a GPU is faster than its launches.
LARGE_PRODUCT = {"cpu": 1536, "cuda": 8192}
REPEATS = {"cpu": 2, "cuda": 20}
LARGE_VECTOR = 2**26  # 256 MiB in float32, far above any last-level cache
ADAM_PASSES = 7


class Limits(NamedTuple):
    """
    What the machine was measured to do.

    :param large_product: FLOP/s of one product of large matrices
    :param layer_product: FLOP/s of the batched product of a hidden layer, one weight per critic and task
    :param bandwidth: bytes/s of an addition in place, two reads and one write
    """

    large_product: float
    layer_product: float
    bandwidth: float

    def least_seconds(self, flops: float, n_bytes: float) -> float:
        """
        How long products and passes over weights take at the limits, one after the other as they run.

        :param flops: floating-point operations
        :param n_bytes: moved
        """
        return flops / max(self.large_product, self.layer_product) + n_bytes / self.bandwidth


def rate(function: Callable[[], Any], amount: float, device: th.device) -> float:
    """
    Amount per second.

    :param function: what is timed, after a first call
    :param amount: of one call
    :param device: on which it runs
    """
    function()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(REPEATS[device.type]):
        function()
    synchronize(device)
    return REPEATS[device.type] * amount / (time.perf_counter() - start)


class LimitMeter:
    """
    Measures :class:`Limits`; its tensors are allocated once.

    :param n_tasks: T
    :param rows: of all tasks together
    :param width: of the hidden layer
    :param device: on which
    """

    def __init__(self, n_tasks: int, rows: int, width: int, device: th.device) -> None:
        self.device = device
        n = LARGE_PRODUCT[device.type]
        self.large = [th.randn(n, n, device=device) for _ in range(3)]
        shapes = [(2 * n_tasks, rows // n_tasks, width), (2 * n_tasks, width, width)]
        self.layer = [th.randn(shape, device=device) for shape in (*shapes, shapes[0])]
        self.vectors = [th.zeros(LARGE_VECTOR, device=device) for _ in range(2)]

    def measure(self) -> Limits:
        """Now: another time may be busier."""
        (a, b, c), (x, w, y), (u, v) = self.large, self.layer, self.vectors
        return Limits(
            rate(lambda: th.mm(a, b, out=c), 2 * len(a) ** 3, self.device),
            rate(lambda: th.bmm(x, w, out=y), 2 * x.numel() * w.shape[-1], self.device),
            rate(lambda: u.add_(v), 3 * FLOAT_BYTES * LARGE_VECTOR, self.device),
        )


def count_flops(step: Callable[[], Any]) -> int:
    """
    Floating-point operations of the matrix products of a gradient step; it is taken.

    :param step: takes it
    """
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


class Weights(NamedTuple):
    """
    Numbers in the weight-sized tensors of a network, and how many of them cross the memory at least.

    At least: where one pass can do several things, it does. Weights are composed (``theta + mu``) and noise is drawn in
    the pass that feeds the product, and the KL's gradient is added where the weights' gradient is written.

    :param parameters: all that is trained, P
    :param averaged: in the composed weights that the target follows, W
    :param means: of the residuals, M
    :param spreads: parameters of their standard deviations, R
    """

    parameters: int
    averaged: int
    means: int
    spreads: int

    @property
    def forward(self) -> int:
        """Read the mean network, base and residuals: P - R."""
        return self.parameters - self.spreads

    @property
    def training(self) -> int:
        """
        Forward and backward read all parameters, the latter writes all gradients; Adam.

        Adam reads parameter, gradient and both moments, and writes all but the gradient.
        """
        return 3 * self.parameters + ADAM_PASSES * self.parameters

    @property
    def recenter(self) -> int:
        """Read mu for its mean, then subtract that in place: 3 M."""
        return 3 * self.means

    @property
    def polyak(self) -> int:
        """Read the mean network and the target, write the target: P - R + 2 W."""
        return self.forward + 2 * self.averaged


def count_weights(network: TaskNetwork) -> Weights:
    """
    :param network: of the agent
    """
    groups = (network.parameters(), network.averaged_tensors(), network.means(), network.spreads())
    return Weights(*(sum(tensor.numel() for tensor in group) for group in groups))


def count_bytes(model: VarShareSAC) -> int:
    """
    Bytes of weight-sized tensors that a gradient step moves at least.

    Target: the actor's and the target critics' forward pass. Critics: training, Polyak average, and a forward and a
    backward pass that only read, for the actor. Actor: training. Both: re-centring.

    :param model: its networks are counted
    """
    critic, actor = count_weights(model.policy.critic.net), count_weights(model.policy.actor)
    target = actor.forward + critic.averaged
    recenter = (actor.recenter + critic.recenter) / model.recenter_every if model.recenter_every else 0
    numbers = target + critic.training + critic.polyak + 2 * critic.forward + actor.training + recenter
    return int(FLOAT_BYTES * numbers)


def machine(device: th.device) -> dict[str, Any]:
    """
    What the figures were measured on.

    :param device: of the networks
    """
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = f"{names[0] if names else platform.processor()}, {th.backends.cpu.get_cpu_capability()}"
    return {
        "device": th.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "cores": os.cpu_count(),
        "threads": th.get_num_threads(),
        "torch": th.__version__,
        "python": platform.python_version(),
    }
