"""What the workers of a study do, and what the study keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from sb3_varshare.evaluation import TaskEvaluation
from sb3_varshare.tuning.objective import objective_value
from sb3_varshare.tuning.progress import FAILURE, Progress, is_surplus, progress_of
from sb3_varshare.tuning.search_space import claim_study
from sb3_varshare.tuning.training import Measurement, Settings, Trainer
from sb3_varshare.tuning.trial_sampler import TrialSeededSampler
from sb3_varshare.zoo.manager import is_failure

# Under this name a study keeps the options that its settings were read from.
SETTINGS_KEY = "settings"


def make_sampler(name: str, settings: Settings, n_startup_trials: int) -> BaseSampler:
    """
    :param name: tpe or random
    :param settings: with the seed
    :param n_startup_trials: drawn at random before TPE learns from them
    :return: a sampler seeded by the number of each trial
    """
    # constant_liar: TPE then keeps away from what other workers are trying at the moment.
    tpe = partial(TPESampler, n_startup_trials=n_startup_trials, multivariate=True, constant_liar=True)
    return TrialSeededSampler(tpe if name == "tpe" else RandomSampler, settings.seed)


def make_pruner(name: str, settings: Settings, n_startup_trials: int) -> BasePruner:
    """
    :param name: median, hyperband or none
    :param settings: with the number of evaluations and seeds
    :param n_startup_trials: that are never stopped by the median
    :return: a pruner, which compares trials after equally many evaluations
    """
    if name == "none":
        return NopPruner()
    if name == "median":
        return MedianPruner(n_startup_trials, n_warmup_steps=settings.evaluations // 3)
    return HyperbandPruner(min_resource=1, max_resource=settings.evaluations * settings.seeds_per_trial)


def open_study(
    storage: BaseStorage, name: str, trainer: Trainer, sampler: BaseSampler, pruner: BasePruner
) -> optuna.Study:
    """
    :param storage: of the study
    :param name: of the study
    :param trainer: whose settings the study must have
    :param sampler: of this worker
    :param pruner: of this worker
    :return: the study, new or as others left it
    :raises ValueError: the study was opened with other settings
    """
    study = optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction="maximize", sampler=sampler, pruner=pruner
    )
    claim_study(study, trainer.declaration)
    if SETTINGS_KEY not in study.user_attrs:
        study.set_user_attr(SETTINGS_KEY, asdict(trainer.settings))
    return study


class Search:
    """
    What the workers of a study do.

    :param trainer: of the study's settings
    :param n_trials: of the whole study; a trial with all its retries counts once
    :param max_retries: of a lost trial
    """

    def __init__(self, trainer: Trainer, n_trials: int, max_retries: int) -> None:
        self._trainer, self._n_trials, self._max_retries = trainer, n_trials, max_retries

    def progress(self, trials: Sequence[FrozenTrial]) -> Progress:
        """As in :class:`~sb3_varshare.tuning.queue.Work`."""
        return progress_of(trials, self._n_trials, self._max_retries)

    def is_surplus(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
        """As in :class:`~sb3_varshare.tuning.queue.Work`."""
        return is_surplus(trial, trials, self._n_trials)

    def do(self, trial: optuna.Trial) -> float:
        """As in :class:`~sb3_varshare.tuning.queue.Work`."""
        values: list[float] = []
        evaluations: list[TaskEvaluation] = []
        arguments = self._trainer.space.sample(trial, self._trainer.n_tasks)
        settings = self._trainer.settings
        for run, seed in enumerate(settings.seeds):

            def report(measured: Measurement, before: int = run * settings.evaluations) -> None:
                value = objective_value(measured.evaluation)
                trial.report(float(np.mean([*values, value])), before + measured.number)
                if trial.should_prune():
                    raise optuna.TrialPruned

            try:
                evaluation = self._trainer.train(arguments, seed, report)
            except Exception as error:
                if not is_failure(error):
                    raise
                return self._failed(trial, f"{type(error).__name__}: {error}")
            values.append(objective_value(evaluation))
            evaluations.append(evaluation)
        if not math.isfinite(np.mean(values)):
            return self._failed(trial, f"The returns are not finite: {values}")
        self._describe(trial, values, evaluations)
        return float(np.mean(values))

    @staticmethod
    def _failed(trial: optuna.Trial, reason: str) -> float:
        trial.set_user_attr(FAILURE, reason)
        print(f"Trial {trial.number} failed. {reason}")
        return float("nan")

    def _describe(self, trial: optuna.Trial, values: list[float], evaluations: list[TaskEvaluation]) -> None:
        rates = [evaluation.mean_success_rate for evaluation in evaluations]
        known = [rate for rate in rates if rate is not None]
        attributes = {
            "values": values,
            "mean_return": float(np.mean([evaluation.mean_return for evaluation in evaluations])),
            "mean_success_rate": float(np.mean(known)) if known else None,
            "returns": _mean_over_seeds([evaluation.returns() for evaluation in evaluations]),
            "success_rates": _mean_over_seeds([evaluation.success_rates() for evaluation in evaluations]),
        }
        for name, value in attributes.items():
            trial.set_user_attr(name, value)


def _mean_over_seeds(estimates: list[dict]) -> dict[str, float]:
    return {task: float(np.mean([one[task].mean for one in estimates])) for task in estimates[0]}
