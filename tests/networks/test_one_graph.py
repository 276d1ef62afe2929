"""Every network is one graph for ``torch.compile``: a break would cost more than compiling saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch as th

from sb3_varshare.adapters import ADAPTERS, KLWeights
from sb3_varshare.adapters.estimators import ESTIMATORS
from sb3_varshare.adapters.gaussian import SIGMA_STRUCTURES
from sb3_varshare.networks import BroNet

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((adapter, {}) for adapter in ADAPTERS if adapter != "varshare"),
    *(
        ("varshare", {"sigma_structure": structure, "estimator": estimator})
        for structure in SIGMA_STRUCTURES
        for estimator in ESTIMATORS
    ),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # PyTorch, compiling
@pytest.mark.parametrize(("adapter", "kwargs"), VARIANTS, ids=lambda value: str(value))
def test_a_gradient_step_compiles_to_one_graph(adapter: str, kwargs: dict[str, Any]) -> None:
    th._dynamo.reset()
    net = BroNet(4, 3, 8, 1, 3, adapter, kwargs, n_members=2)
    # This backend runs the operations as they are: with the same random numbers the results are the same.
    compiled = th.compile(net, fullgraph=True, backend="aot_eager")
    x, weights = th.randn(3, 5, 4), KLWeights(th.tensor([0.1, 0.2, 0.3]), th.tensor([0.3, 0.1, 0.2]))
    gradients = []
    for network in (net, compiled):
        th.manual_seed(0)
        network(x, True, weights).square().mean().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
        net.zero_grad()
    for expected, got in zip(*gradients, strict=True):
        assert (expected is None) == (got is None)
        if expected is not None:
            th.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
