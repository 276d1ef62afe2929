"""Units as trials of an Optuna study in a database, which is the queue of any number of workers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from sb3_varshare.runs.store import Store
from sb3_varshare.runs.unit import Result, Unit, attempt
from sb3_varshare.tuning.progress import FAILURE, SURPLUS, Progress
from sb3_varshare.tuning.queue import Worker
from sb3_varshare.tuning.search_space import claim_study

# User attribute of a trial, which Optuna copies into its retries.
UNIT = "unit"


def open_queue(storage: optuna.storages.BaseStorage, name: str, units: Sequence[Unit], store: Store) -> optuna.Study:
    """
    Queue what is neither finished nor in the queue: also what has failed before.

    :param storage: of the study
    :param name: of the study
    :param units: all of the grid
    :param store: of the results
    :return: the study
    :raises ValueError: the study is the queue of something else
    """
    # Nothing is sampled; Optuna's own sampler would look at all trials before each.
    sampler = optuna.samplers.RandomSampler()
    study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, sampler=sampler)
    identities = "".join(f"{unit.name} {unit.identity}\n" for unit in units)
    claim_study(study, {"units": hashlib.sha256(identities.encode()).hexdigest()[:16]})
    queued = {trial.user_attrs.get(UNIT) for trial in study.get_trials() if _is_active(trial)}
    for unit in units:
        if unit.name not in queued and not store.is_finished(unit):
            study.enqueue_trial({}, user_attrs={UNIT: unit.name})
    return study


def work_on_queue(
    study: optuna.Study,
    units: Sequence[Unit],
    store: Store,
    max_retries: int,
    record: Callable[[Unit, Result], None],
) -> None:
    """
    Be one worker until all units have ended.

    :param study: of :func:`open_queue`
    :param units: all of the grid
    :param store: of the results, shared by all workers
    :param max_retries: of a unit whose worker was lost
    :param record: gets every unit that this worker has ended
    """
    Worker(study, Matrix(units, store, max_retries, record), max_retries).run()


class Matrix:
    """
    The trials of a queue of units.

    :param units: all of the grid
    :param store: of the results
    :param max_retries: of a unit whose worker was lost
    :param record: gets every unit that this worker has ended
    """

    def __init__(
        self, units: Sequence[Unit], store: Store, max_retries: int, record: Callable[[Unit, Result], None]
    ) -> None:
        self._units, self._store = {unit.name: unit for unit in units}, store
        self._max_retries, self._record = max_retries, record

    def progress(self, trials: Sequence[FrozenTrial]) -> Progress:
        """As in :class:`~sb3_varshare.tuning.queue.Work`."""
        attempts: dict[str, list[FrozenTrial]] = {name: [] for name in self._units}
        for trial in trials:
            if SURPLUS not in trial.user_attrs and trial.user_attrs.get(UNIT) in attempts:
                attempts[trial.user_attrs[UNIT]].append(trial)
        finished = waiting = 0
        running, lost = [], []
        for name, own in attempts.items():
            active = [trial for trial in own if _is_active(trial)]
            if self._store.path(self._units[name]).exists():
                finished += 1
            elif active and active[0].state == TrialState.RUNNING:
                running.append(active[0])
            elif active:
                waiting += 1
            elif not own or self._has_ended(own[-1]):
                finished += 1
            else:
                lost.append(own[-1])
        return Progress(finished, waiting, running, lost, unclaimed=0)

    def _has_ended(self, trial: FrozenTrial) -> bool:
        retries = len(trial.system_attrs.get("retry_history", []))
        return trial.state == TrialState.COMPLETE or FAILURE in trial.user_attrs or retries >= self._max_retries

    def is_surplus(self, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
        """As in :class:`~sb3_varshare.tuning.queue.Work`; two workers that start together may queue a unit twice."""
        name = trial.user_attrs.get(UNIT)
        return (
            name not in self._units
            or self._store.path(self._units[name]).exists()
            or any(
                _is_active(other) and other.user_attrs.get(UNIT) == name
                for other in trials
                if other.number < trial.number
            )
        )

    def do(self, trial: optuna.Trial) -> float:
        """As in :class:`~sb3_varshare.tuning.queue.Work`."""
        unit = self._units[trial.user_attrs[UNIT]]
        self._store.begin(unit)
        result = attempt(unit)
        if FAILURE in result:
            trial.set_user_attr(FAILURE, result[FAILURE])
        self._record(unit, result)
        return float("nan") if FAILURE in result else 1.0


def _is_active(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.RUNNING, TrialState.WAITING) and SURPLUS not in trial.user_attrs
