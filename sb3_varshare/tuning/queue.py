"""A worker of a queue: takes trials from a study's storage until all of them are done."""

from __future__ import annotations

import os
import random
import socket
import time
import warnings
from collections.abc import Sequence
from typing import Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from sb3_varshare.tuning.progress import FAILURE, STARTED, SURPLUS, Caretaker, Progress

# Seconds between two looks of a worker that waits for the others' trials; drawn anew each time.
PAUSE = (0.5, 1.5)


class SurplusTrial(Exception):
    """Two workers have taken the last place at the same moment; this one's trial is not needed."""


class Work(Protocol):
    """What the trials of a queue are."""

    def progress(self, trials: Sequence[FrozenTrial]) -> Progress:
        """
        :param trials: of the study
        :return: how far they are
        """

    def is_surplus(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
        """
        :param trial: that was begun
        :param trials: of the study
        :return: whether nobody needs it, as others have taken its place
        """

    def do(self, trial: optuna.Trial) -> float:
        """
        :param trial: that was begun
        :return: what it is worth; not a number where it failed, with the reason as the attribute ``failure``
        """


class Worker:
    """
    Takes trials until all are done.

    :param study: shared by all workers
    :param work: what its trials are
    :param max_retries: of a lost trial
    """

    def __init__(self, study: optuna.Study, work: Work, max_retries: int) -> None:
        self._study, self._work = study, work
        self._caretaker = Caretaker(study, max_retries)
        self._current: int | None = None
        self._has_erred = False

    def progress(self) -> Progress:
        """How far the study is at this moment."""
        return self._work.progress(self._study.get_trials())

    def run(self) -> Progress:
        """
        Work until all trials are done; where the storage has no heartbeat, until the others have begun the last.

        :return: how far the study is then
        :raises KeyboardInterrupt: this worker was told to stop; its trial is in the queue again
        """
        while True:
            progress = self.progress()
            if not (progress.waiting or progress.running or progress.lost or progress.unclaimed):
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
            self._begin(trial)
            return self._work.do(trial)
        except (optuna.TrialPruned, optuna.exceptions.UpdateFinishedTrialError):
            raise
        except BaseException:
            self._has_erred = True
            raise

    def _begin(self, trial: optuna.Trial) -> None:
        # Optuna's thread does the same at some time soon; from the attribute on, others rely on it.
        self._caretaker.record_heartbeat(trial)
        trial.set_user_attr(STARTED, {"trial": trial.number, "worker": f"{socket.gethostname()}:{os.getpid()}"})
        trials = self._study.get_trials()
        own = next(found for found in trials if found.number == trial.number)
        if self._work.is_surplus(own, trials):
            trial.set_user_attr(SURPLUS, True)
            raise SurplusTrial(f"Trial {trial.number} is not needed.")
