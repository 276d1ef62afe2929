"""What is tuned, within which limits, and what a trial is worth."""

from sb3_varshare.tuning.objective import objective_value
from sb3_varshare.tuning.search_space import Choice, Range, SearchSpace, claim_study
from sb3_varshare.tuning.trial_sampler import TrialSeededSampler

__all__ = ["Choice", "Range", "SearchSpace", "TrialSeededSampler", "claim_study", "objective_value"]
