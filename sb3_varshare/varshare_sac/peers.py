"""What processes that train one agent together tell each other: gradients, and what the loss must know of all data."""

from __future__ import annotations

from typing import Any

import torch as th
import torch.distributed as dist

from sb3_varshare.replay import RewardScale
from sb3_varshare.varshare_sac.observation_norm import ObservationNorm


class Peers:
    """
    The processes of ``torch.distributed``'s default group. All make the same calls in the same order.

    Attributes: ``n_processes``, ``rank``, and after :meth:`exchange` ``counts``, (T,) transitions of each task in the
    replays of all processes.
    """

    counts: th.Tensor

    def __init__(self) -> None:
        self.n_processes, self.rank = dist.get_world_size(), dist.get_rank()
        self._all_are_ready = False

    def reduce(self, tensor: th.Tensor, op: Any = dist.ReduceOp.SUM) -> th.Tensor:
        """
        Reduce a tensor over the processes, in place; all end with the same bits.

        :param tensor: of the same shape in all of them
        :param op: a ``torch.distributed.ReduceOp``
        :return: the tensor
        :raises RuntimeError: a process ended, or did not call this before the group's time-out
        """
        try:
            dist.all_reduce(tensor, op)
        except RuntimeError as error:
            raise RuntimeError(
                f"Process {self.rank} of {self.n_processes} cannot go on: another one ended, left learn() early, or "
                "did not answer within the time-out of process_group(). The output of the others tells which; start "
                "all of them again from the last model that was saved."
            ) from error
        return tensor

    def average_gradients(self, optimizer: th.optim.Optimizer, *_: Any) -> None:
        """
        A hook before an optimizer's step: the mean of the gradients over the processes, by one reduction.

        :param optimizer: whose parameters have their gradients
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        mean = self.reduce(th.cat([gradient.flatten() for gradient in gradients])).div_(self.n_processes)
        for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def exchange(self, reward_scale: RewardScale, counts: th.Tensor, has_rows: bool) -> bool:
        """
        Widen the return ranges to those of all processes, and sum their data counts.

        :param reward_scale: of this process, changed in place
        :param counts: (T,) transitions of each task in this process, on the reward scale's device
        :param has_rows: whether none of these is zero
        :return: whether every task has a reward scale, and in every process rows
        """
        ranges = self.reduce(th.stack([reward_scale.return_max, -reward_scale.return_min]), dist.ReduceOp.MAX)
        reward_scale.widen(ranges[0], -ranges[1])
        waiting = counts.new_full((1,), float(not has_rows))
        sums = self.reduce(th.cat([counts, waiting]))
        self.counts = sums[:-1]
        # Reading it waits for the device, and who has rows keeps some.
        self._all_are_ready = self._all_are_ready or (sums[-1].item() == 0 and not reward_scale.missing_tasks())
        return self._all_are_ready

    @th.no_grad()
    def merge_observations(self, own: ObservationNorm, merged: ObservationNorm) -> None:
        """
        Mean and variance of the observations of all processes (Chan et al. 1979, parallel variance).

        :param own: statistics of what this process has seen
        :param merged: receives those of all
        """
        mean, variance, n_own = own.mean.double(), own.variance.double(), own.count.double()
        count, total = self.reduce(th.stack([n_own.expand_as(mean), n_own * mean]))
        merged_mean = total / count.clamp(min=1)
        squares = self.reduce(n_own * (variance + (mean - merged_mean).square()))
        seen = count > 0
        merged.mean.copy_(merged_mean)
        merged.variance.copy_(th.where(seen, squares / count.clamp(min=1), th.ones_like(squares)))
        merged.count.copy_(count[:, :1])
