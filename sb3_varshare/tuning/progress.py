"""How far a study is. A trial and all its retries are one unit of work, and count once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

# User attributes of a trial. Optuna copies them into a retry, so the first names the trial that it is about.
STARTED, FAILURE, SURPLUS = "started", "failure", "surplus"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def unit_of(trial: Any) -> int:
    """
    :param trial: of Optuna
    :return: number of the trial that it retries, else its own
    """
    return int(trial.system_attrs.get("failed_trial", trial.number))


def units_of(trials: Sequence[FrozenTrial]) -> dict[int, list[FrozenTrial]]:
    """
    All attempts at each unit of work.

    :param trials: of a study
    :return: unit -> its attempts, both in order; without what two workers have begun or queued at the same moment
    """
    units: dict[int, dict[int, FrozenTrial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        if SURPLUS not in trial.user_attrs:
            attempt = len(trial.system_attrs.get("retry_history", []))
            units.setdefault(unit_of(trial), {}).setdefault(attempt, trial)
    return {unit: [units[unit][attempt] for attempt in sorted(units[unit])] for unit in sorted(units)}


@dataclass(frozen=True)
class Progress:
    """
    How far a study is.

    :param finished: units that are done: completed, pruned, failed for a reason, or lost once too often
    :param waiting: units that are in the queue
    :param running: trials under way
    :param lost: trials that ended without a result and without a reason, and are not in the queue again
    :param unclaimed: units that nobody has begun
    """

    finished: int
    waiting: int
    running: list[FrozenTrial]
    lost: list[FrozenTrial]
    unclaimed: int


def progress_of(trials: Sequence[FrozenTrial], n_trials: int, max_retries: int) -> Progress:
    """
    :param trials: of a study
    :param n_trials: units that shall be done; those with the lowest numbers count
    :param max_retries: of a lost trial
    :return: how far they are
    """
    units = list(units_of(trials).values())[:n_trials]
    running, lost = [], []
    finished = waiting = 0
    for attempts in units:
        last = attempts[-1]
        if any(trial.state in ENDED for trial in attempts):
            finished += 1
        elif last.state == TrialState.RUNNING:
            running.append(last)
        elif last.state == TrialState.WAITING:
            waiting += 1
        elif FAILURE in last.user_attrs or len(attempts) > max_retries:
            finished += 1
        else:
            lost.append(last)
    return Progress(finished, waiting, running, lost, n_trials - len(units))


def is_surplus(trial: FrozenTrial, trials: Sequence[FrozenTrial], n_trials: int) -> bool:
    """
    Whether nobody needs a trial: others have taken all units between this worker's look and its claim.

    :param trial: that was begun
    :param trials: of the study
    :param n_trials: units that shall be done
    """
    units = units_of(trials)
    attempts = units.get(unit_of(trial), [])
    if all(attempt.number != trial.number for attempt in attempts):
        return True
    # What was queued, a retry or somebody's own proposal, is not thrown away.
    is_queued = {"failed_trial", "fixed_params"} & set(trial.system_attrs)
    return not is_queued and list(units).index(unit_of(trial)) >= n_trials


class Caretaker:
    """
    Puts lost trials into the queue again.

    Optuna's heartbeat finds a trial whose worker died while training. Two gaps of milliseconds are left: a worker may
    die before the first heartbeat of its trial, or after it has marked another's as failed and before it queues it.

    :param study: with a storage that has a heartbeat, or without
    :param max_retries: of a lost trial
    """

    def __init__(self, study: optuna.Study, max_retries: int) -> None:
        self._study, self._max_retries = study, max_retries
        # A study has no public way to its storage, and puts a cache before a database: get_storage of Optuna 5.0.
        storage: Any = getattr(study._storage, "_backend", study._storage)
        interval = storage.get_heartbeat_interval() if isinstance(storage, RDBStorage) else None
        self._database: RDBStorage | None = None if interval is None else storage
        self._grace = 0.0 if interval is None else float(storage.grace_period or 2 * interval)
        # By this machine's clock: those of several may differ.
        self._first_seen: dict[int, float] = {}

    @property
    def has_heartbeat(self) -> bool:
        """Whether lost trials are found."""
        return self._database is not None

    def record_heartbeat(self, trial: optuna.Trial) -> None:
        """
        Give the first sign of life of a trial; Optuna's thread gives the others.

        :param trial: that this process has begun
        """
        if self._database is not None:
            # A trial's public number is that within its study; the table of signs of life has the database's.
            self._database.record_heartbeat(trial._trial_id)

    def look(self, progress: Progress) -> None:
        """
        :param progress: of the study at this moment
        """
        if not self.has_heartbeat:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)
        silent = [trial for trial in progress.running if trial.user_attrs.get(STARTED, {}).get("trial") != trial.number]
        now = time.monotonic()
        self._first_seen = {
            trial.number: self._first_seen.get(trial.number, now) for trial in [*silent, *progress.lost]
        }
        for trial in [*silent, *progress.lost]:
            if now - self._first_seen[trial.number] > self._grace:
                self.give_back(trial)

    def give_back(self, trial: FrozenTrial) -> None:
        """
        Queue a trial again, with its parameters.

        :param trial: running or failed
        """
        if trial.state == TrialState.RUNNING:
            try:
                self._study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                # Another worker was faster.
                return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            RetryHeartbeatStaleTrialCallback(max_retry=self._max_retries)(self._study, trial)
