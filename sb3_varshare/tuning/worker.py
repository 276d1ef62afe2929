"""A worker of a study: takes trials from the storage until all of them are done."""

from __future__ import annotations

import math
import os
import random
import socket
import time
import warnings
from dataclasses import asdict
from functools import partial

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import TrialState

from sb3_varshare.evaluation import TaskEvaluation
from sb3_varshare.tuning.objective import objective_value
from sb3_varshare.tuning.progress import FAILURE, STARTED, SURPLUS, Caretaker, Progress, is_surplus, progress_of
from sb3_varshare.tuning.search_space import claim_study
from sb3_varshare.tuning.training import Settings, Trainer
from sb3_varshare.tuning.trial_sampler import TrialSeededSampler
from sb3_varshare.zoo.manager import TRIAL_FAILURES

# Under this name a study keeps the options that its settings were read from.
SETTINGS_KEY = "settings"
# Seconds between two looks of a worker that waits for the others' trials; drawn anew each time.
PAUSE = (0.5, 1.5)


class SurplusTrial(Exception):
    """Two workers have taken the last place at the same moment; this one's trial is not needed."""


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


class Worker:
    """
    Takes trials until all are done.

    :param study: shared by all workers
    :param trainer: of the study's settings
    :param n_trials: of the whole study; a trial with all its retries counts once
    :param max_retries: of a lost trial
    """

    def __init__(self, study: optuna.Study, trainer: Trainer, n_trials: int, max_retries: int) -> None:
        self._study, self._trainer, self._n_trials, self._max_retries = study, trainer, n_trials, max_retries
        self._caretaker = Caretaker(study, max_retries)
        self._current: int | None = None
        self._has_erred = False

    def progress(self) -> Progress:
        """How far the study is at this moment."""
        return progress_of(self._study.get_trials(), self._n_trials, self._max_retries)

    def run(self) -> Progress:
        """
        Work until all trials are done; where the storage has no heartbeat, until the others have begun the last.

        :return: how far the study is then
        :raises KeyboardInterrupt: this worker was told to stop; its trial is in the queue again
        """
        while True:
            progress = self.progress()
            if progress.finished >= self._n_trials:
                return progress
            self._caretaker.look(progress)
            if progress.waiting or progress.unclaimed:
                self._take_one()
            elif self._caretaker.has_heartbeat:
                time.sleep(random.uniform(*PAUSE))
            else:
                return progress

    def _take_one(self) -> None:
        self._current, self._has_erred = None, False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self._study.optimize(self._objective, n_trials=1, catch=(SurplusTrial,), gc_after_trial=True)
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            if self._has_erred:
                raise
            # Optuna could not write the outcome, as another worker had ended the trial.
            print(f"Trial {self._current} was taken for lost, since this worker did not answer for too long.")
        except KeyboardInterrupt:
            for trial in self._study.get_trials(states=[TrialState.FAIL]):
                if trial.number == self._current and not {FAILURE, SURPLUS} & set(trial.user_attrs):
                    self._caretaker.give_back(trial)
            raise

    def _objective(self, trial: optuna.Trial) -> float:
        self._current = trial.number
        try:
            return self._work_on(trial)
        except (optuna.TrialPruned, optuna.exceptions.UpdateFinishedTrialError):
            raise
        except BaseException:
            self._has_erred = True
            raise

    def _work_on(self, trial: optuna.Trial) -> float:
        self._begin(trial)
        values: list[float] = []
        evaluations: list[TaskEvaluation] = []
        arguments = self._trainer.space.sample(trial, self._trainer.n_tasks)
        settings = self._trainer.settings
        for run, seed in enumerate(settings.seeds):

            def report(number: int, evaluation: TaskEvaluation, before: int = run * settings.evaluations) -> None:
                trial.report(float(np.mean([*values, objective_value(evaluation)])), before + number)
                if trial.should_prune():
                    raise optuna.TrialPruned

            try:
                evaluation = self._trainer.train(arguments, seed, report)
            except TRIAL_FAILURES as error:
                return self._failed(trial, f"{type(error).__name__}: {error}")
            values.append(objective_value(evaluation))
            evaluations.append(evaluation)
        if not math.isfinite(np.mean(values)):
            return self._failed(trial, f"The returns are not finite: {values}")
        self._describe(trial, values, evaluations)
        return float(np.mean(values))

    def _begin(self, trial: optuna.Trial) -> None:
        storage = self._study._storage
        if self._caretaker.has_heartbeat and isinstance(storage, BaseHeartbeat):
            # Optuna's thread does the same at some time soon; from the attribute on, others rely on it.
            storage.record_heartbeat(trial._trial_id)
        trial.set_user_attr(STARTED, {"trial": trial.number, "worker": f"{socket.gethostname()}:{os.getpid()}"})
        trials = self._study.get_trials()
        own = next(found for found in trials if found.number == trial.number)
        if is_surplus(own, trials, self._n_trials):
            trial.set_user_attr(SURPLUS, True)
            raise SurplusTrial(f"Trial {trial.number} is not needed.")

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
