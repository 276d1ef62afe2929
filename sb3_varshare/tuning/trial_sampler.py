"""A sampler whose proposals depend on the number of the trial, so that no two workers repeat each other's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState


def trial_seed(seed: int, number: int) -> int:
    """
    :param seed: of the study
    :param number: of the trial, which the storage gives to one worker alone
    :return: a seed of 32 bits
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


class TrialSeededSampler(BaseSampler):
    """
    Makes a sampler of its own for every trial, seeded by the study's seed and the trial's number.

    Optuna seeds a sampler once for each worker: two workers with one seed propose the same start-up trials.

    :param make: builds a sampler from ``seed=``; it must keep nothing from one trial to the next but its generator, as
        Optuna's random and TPE samplers do. It must be picklable where the study shall be
    :param seed: of the study
    """

    def __init__(self, make: Callable[..., BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._samplers: dict[int, BaseSampler] = {}

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number not in self._samplers:
            self._samplers[trial.number] = self._make(seed=trial_seed(self._seed, trial.number))
        return self._samplers[trial.number]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As in Optuna."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As in Optuna."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As in Optuna."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As in Optuna."""
        self._of(trial).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As in Optuna."""
        self._of(trial).after_trial(study, trial, state, values)
        del self._samplers[trial.number]
