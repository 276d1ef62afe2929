"""No residual: one weight for all tasks."""

from __future__ import annotations

import torch as th

from sb3_varshare.adapters.base import Adapter, LayerShape


class NoAdapter(Adapter):
    """
    One shared network. A null object, so that the control runs through the same code as the method.

    :param shape: sizes of the layer
    :param weight_rms: not used
    """

    def __init__(self, shape: LayerShape, weight_rms: float) -> None:
        super().__init__(shape)

    def averaged_tensors(self, theta: th.Tensor) -> tuple[th.Tensor, ...]:
        return (theta,)
