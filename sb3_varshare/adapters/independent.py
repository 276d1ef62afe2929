"""Nothing shared: one network per task."""

from __future__ import annotations

import torch as th

from sb3_varshare.adapters.base import Adapter, LayerShape


class Independent(Adapter):
    """
    A base weight, bias and LayerNorm of its own for every task, all trained in the same batched products.

    :param shape: sizes of the layer
    :param weight_rms: not used
    """

    per_task_base = True

    def __init__(self, shape: LayerShape, weight_rms: float) -> None:
        super().__init__(shape)

    def averaged_tensors(self, theta: th.Tensor) -> tuple[th.Tensor, ...]:
        return (theta,)
