"""Proposals depend on the trial's number: workers with one seed do not repeat each other."""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna")

from sb3_varshare.tuning.trial_sampler import TrialSeededSampler, trial_seed  # noqa: E402

TPE = partial(optuna.samplers.TPESampler, n_startup_trials=3, multivariate=True)
quiet = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def objective(trial: Any) -> float:
    return trial.suggest_float("x", 0, 1) + 0.1 * trial.suggest_int("k", 1, 5)


def values(study: Any) -> list[tuple[float, ...]]:
    return [tuple(trial.params.values()) for trial in study.trials]


def sampler(seed: int = 4) -> TrialSeededSampler:
    return TrialSeededSampler(TPE, seed)


@quiet
def test_two_workers_propose_what_one_would(tmp_path: Path) -> None:
    one = optuna.create_study(sampler=sampler())
    one.optimize(objective, n_trials=6)
    storage = f"sqlite:///{tmp_path}/study.db"
    workers = [
        optuna.create_study(sampler=sampler(), storage=storage, study_name="s", load_if_exists=True) for _ in range(2)
    ]
    for turn in range(6):
        workers[turn % 2].optimize(objective, n_trials=1)
    assert values(workers[0]) == values(one)
    assert len(set(values(one))) == 6


@quiet
def test_another_seed_proposes_something_else_and_the_study_can_be_kept(tmp_path: Path) -> None:
    first, second = (optuna.create_study(sampler=sampler(seed)) for seed in (4, 5))
    for study in (first, second):
        study.optimize(objective, n_trials=4)
    assert not set(values(first)) & set(values(second))
    kept = pickle.loads(pickle.dumps(first))
    assert values(kept) == values(first)
    kept.optimize(objective, n_trials=1)
    assert len(kept.trials) == 5


def test_seeds_of_trials_differ() -> None:
    seeds = {trial_seed(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**32 for seed in seeds)
