"""The agent, in SB3's convention: the algorithm in ``varshare_sac.py``, its policy in ``policies.py``."""

from sb3_varshare.varshare_sac.policies import MultiTaskPolicy
from sb3_varshare.varshare_sac.varshare_sac import VarShareSAC

MlpPolicy = MultiTaskPolicy

__all__ = ["MlpPolicy", "MultiTaskPolicy", "VarShareSAC"]
