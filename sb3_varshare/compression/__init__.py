"""Making a trained agent smaller."""

from sb3_varshare.compression.prune import prune
from sb3_varshare.compression.prune_report import AgentBytes, PrunedLayer, PruneReport

__all__ = ["AgentBytes", "PruneReport", "PrunedLayer", "prune"]
