"""
Per-task weight residuals.

A new one is a file with an :class:`Adapter`, a line in :data:`ADAPTERS` and a row in the contract test.
"""

from sb3_varshare.adapters.base import Adapter, LayerShape
from sb3_varshare.adapters.deterministic import Deterministic
from sb3_varshare.adapters.independent import Independent
from sb3_varshare.adapters.kl import KLWeights
from sb3_varshare.adapters.low_rank import LowRank
from sb3_varshare.adapters.none import NoAdapter
from sb3_varshare.adapters.varshare import VarShare

ADAPTERS: dict[str, type[Adapter]] = {
    "varshare": VarShare,
    "low_rank": LowRank,
    "deterministic": Deterministic,
    "none": NoAdapter,
    "independent": Independent,
}

__all__ = ["ADAPTERS", "Adapter", "KLWeights", "LayerShape"]
