"""What a pruning did: weights, bytes, returns."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch as th
from rich.console import Console
from rich.table import Table

from sb3_varshare.compression.search import Candidate
from sb3_varshare.networks import TaskNetwork
from sb3_varshare.varshare_sac import VarShareSAC


class AgentBytes(NamedTuple):
    """
    How large an agent is.

    :param residuals: of the residuals of the networks that are pruned, of all tasks: in memory, and nearly the same in
        a file
    :param agent: all tensors of the agent in memory: networks, target and optimizer states, without gradients
    :param file: the file that ``save`` writes
    """

    residuals: int
    agent: int
    file: int


class PrunedLayer(NamedTuple):
    """
    What is left of the residuals of one layer.

    :param network: ``"actor"`` or ``"critic"``
    :param layer: name of the layer in its network
    :param kept: (T,) weights of each task, of all members
    :param per_task: weights of a task before any pruning, of all members
    :param threshold: the score below which weights were dropped; infinite where none is kept
    """

    network: str
    layer: str
    kept: tuple[int, ...]
    per_task: int
    threshold: float

    @property
    def total(self) -> int:
        """Weights of all tasks before any pruning."""
        return self.per_task * len(self.kept)


@dataclass(frozen=True)
class PruneReport:
    """
    What a pruning did.

    :param task_names: (T,) in order
    :param layers: of all networks that were pruned
    :param before: sizes of the agent that was given
    :param after: and of the one it became
    :param returns_before: mean return of each task; ``None`` where nothing was evaluated
    :param returns_after: the same after pruning
    :param losses: of each task that had learned something, the share of the return above a random policy's that was
        lost; ``None`` where the random policy is not known
    :param candidates: what the search for ``max_loss`` tried, in order
    """

    task_names: tuple[str, ...]
    layers: tuple[PrunedLayer, ...]
    before: AgentBytes
    after: AgentBytes
    returns_before: dict[str, float] | None = None
    returns_after: dict[str, float] | None = None
    losses: dict[str, float] | None = None
    candidates: tuple[Candidate, ...] = ()

    def _of(self, network: str | None) -> Iterator[PrunedLayer]:
        return (layer for layer in self.layers if network in (None, layer.network))

    def kept(self, network: str | None = None) -> int:
        """
        :param network: ``"actor"``, ``"critic"`` or ``None`` for all that were pruned
        :return: weights that are left
        """
        return sum(sum(layer.kept) for layer in self._of(network))

    def total(self, network: str | None = None) -> int:
        """
        :param network: as for :meth:`kept`
        :return: weights before any pruning
        """
        return sum(layer.total for layer in self._of(network))

    def kept_by_task(self, network: str | None = None) -> dict[str, int]:
        """
        :param network: as for :meth:`kept`
        :return: weights that are left of each task
        """
        counts = [layer.kept for layer in self._of(network)]
        return {task: sum(layer[index] for layer in counts) for index, task in enumerate(self.task_names)}

    @property
    def loss(self) -> float | None:
        """Mean of :attr:`losses` over the tasks."""
        return None if self.losses is None else sum(self.losses.values()) / len(self.losses)

    def table(self) -> Table:
        """A row per layer; sizes and returns below."""
        table = Table(title="Weights of the residuals", caption=self._caption(), caption_justify="left")
        for column in ("network", "layer", "kept", "of", "share", "threshold"):
            table.add_column(column, justify="left" if column in ("network", "layer") else "right")
        for layer in self.layers:
            kept = sum(layer.kept)
            cells = [f"{kept:,}", f"{layer.total:,}", f"{kept / layer.total:.2%}", f"{layer.threshold:.3g}"]
            table.add_row(layer.network, layer.layer, *cells)
        return table

    def _caption(self) -> str:
        names = {"residuals": "Residuals", "agent": "Agent in memory", "file": "File"}
        sizes = zip(names.values(), self.before, self.after, strict=True)
        lines = [f"{name}: {before:,} -> {after:,} bytes" for name, before, after in sizes]
        lines.append("Kept: " + ", ".join(f"{task} {kept:,}" for task, kept in self.kept_by_task().items()))
        if self.returns_before is not None and self.returns_after is not None:
            pairs = zip(self.task_names, self.returns_before.values(), self.returns_after.values(), strict=True)
            lines.append("Returns: " + ", ".join(f"{task} {old:.1f} -> {new:.1f}" for task, old, new in pairs))
        if self.loss is not None:
            lines.append(f"Lost of the return above a random policy's, mean over tasks: {self.loss:.2%}")
        return "\n".join(lines)

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=120).print(self.table())
        return text.getvalue()


def tensor_bytes(tensors: Iterable[th.Tensor]) -> int:
    """
    :param tensors: one that appears twice counts once
    """
    sizes = {(t.data_ptr(), t.device): t.numel() * t.element_size() for t in tensors}
    return sum(sizes.values())


def agent_bytes(model: VarShareSAC, networks: Iterable[TaskNetwork]) -> AgentBytes:
    """
    :param model: the agent
    :param networks: whose residuals to count
    """
    adapters = (layer.adapter for network in networks for layer in network.linears())
    residuals = tensor_bytes(tensor for adapter in adapters for tensor in adapter.state_dict().values())
    agent = tensor_bytes(model.policy.state_dict().values())
    for optimizer in (model.policy.actor.optimizer, model.policy.critic.optimizer):
        agent += tensor_bytes(t for state in optimizer.state.values() for t in state.values() if th.is_tensor(t))
    with tempfile.TemporaryFile() as file:
        model.save(file)
        return AgentBytes(residuals, agent, file.seek(0, io.SEEK_END))
