"""Making a trained agent smaller."""

from sb3_varshare.compression.prune_report import AgentBytes, PrunedLayer, PruneReport
from sb3_varshare.compression.pruning import prune

__all__ = ["AgentBytes", "PruneReport", "PrunedLayer", "prune"]
