"""What the networks are told about the task besides their weights: nothing, a one-hot, or an embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch as th
import torch.nn.functional as F
from torch import nn


class TaskInput(nn.Module, ABC):
    """
    Features of each task that are appended to the networks' inputs.

    :param n_tasks: tasks T
    """

    size: int

    def __init__(self, n_tasks: int) -> None:
        super().__init__()
        self.n_tasks = n_tasks

    @abstractmethod
    def forward(self) -> th.Tensor:
        """Features, (T, size)."""

    def append(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: (T, B, D)
        :return: (T, B, D + size)
        """
        features = self()
        return th.cat([x, features[:, None].expand(-1, x.shape[1], -1)], -1)


class NoTaskInput(TaskInput):
    """The task acts through the residuals alone."""

    size = 0

    def forward(self) -> th.Tensor:
        return th.empty(self.n_tasks, 0)

    def append(self, x: th.Tensor) -> th.Tensor:
        return x


class OneHotInput(TaskInput):
    """The task's one-hot."""

    def __init__(self, n_tasks: int) -> None:
        super().__init__(n_tasks)
        self.size = n_tasks
        self.register_buffer("one_hot", th.eye(n_tasks), persistent=False)
        self.one_hot: th.Tensor

    def forward(self) -> th.Tensor:
        return self.one_hot


class EmbeddingInput(TaskInput):
    """
    BRC's task embedding: a learned vector of unit L2 norm.

    Source: Nauman et al. 2025 (arXiv 2505.23150); initial spread as flax's ``nn.Embed``
    """

    size = 32

    def __init__(self, n_tasks: int) -> None:
        super().__init__(n_tasks)
        self.table = nn.Parameter(th.randn(n_tasks, self.size) / self.size**0.5)

    def forward(self) -> th.Tensor:
        return F.normalize(self.table, dim=-1)


TASK_INPUTS: dict[str | None, type[TaskInput]] = {
    None: NoTaskInput,
    "one_hot": OneHotInput,
    "embedding": EmbeddingInput,
}
