"""The tuning command in this process: studies, mistakes, failures, plots, and the best against the default."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("tyro")

import numpy as np
import optuna
import pandas as pd
import torch as th
from optuna.storages import RetryHeartbeatStaleTrialCallback
from tuning_commands import RUN, TASKS, TINY

from sb3_varshare import VarShareSAC
from sb3_varshare.tuning import worker
from sb3_varshare.tuning.__main__ import main
from sb3_varshare.tuning.comparison import iqm_interval
from sb3_varshare.tuning.progress import Progress, progress_of

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
STORED = ("--storage", "sqlite:///study.db", "--study-name", "s")
Command = Callable[..., str]


@pytest.fixture
def tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a folder of its own and gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        capsys.readouterr()
        main(arguments)
        return capsys.readouterr().out

    return run


def study() -> optuna.Study:
    return optuna.load_study(storage="sqlite:///study.db", study_name="s")


def test_a_study_from_its_start_to_the_comparison(tuning: Command) -> None:
    options = (*RUN, *STORED, "--seeds-per-trial", "2", "--seed", "7")
    assert "is finished: 2 of 2 trials are done" in tuning(*options, "--n-trials", "2")
    assert "is finished: 3 of 3 trials are done" in tuning(*options, "--n-trials", "3", "--sampler", "random")
    trials = study().trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    for trial in trials:
        assert set(trial.params) == {"beta", "sigma_prior"} and list(trial.user_attrs["returns"]) == TASKS
        assert len(trial.user_attrs["values"]) == 2 and trial.value == np.mean(trial.user_attrs["values"])
        # Two evaluations of each of two seeds.
        assert list(trial.intermediate_values) == [1, 2, 3, 4] and trial.intermediate_values[4] == trial.value
    assert study().user_attrs["sb3_varshare"]["seeds"] == [7, 8]

    assert "s: 3 trials (3 complete), 0 retries" in tuning("show", *STORED)
    files = tuning("plot", *STORED, "--output", "plots").split()
    assert {Path(file).name for file in files} == {"history.png", "slice.png", "importance.png", "contour.png"}
    assert all(Path(file).read_bytes().startswith(b"\x89PNG") for file in files)

    compare = ("compare", *STORED, "--output", "best", "--n-seeds", "2")
    printed = tuning(*compare)
    assert printed.count("Training ") == 4 and "difference" in printed
    table = pd.read_csv("best/comparison.csv")
    assert set(table["arm"]) == {"best", "default"} and set(table["seed"]) == {1000, 1001}
    assert list(table["task"].unique()) == TASKS and len(table) == 2 * 2 * 5
    before = Path("best/comparison.csv").read_bytes()
    Path("best/default_seed1001.json").unlink()
    assert tuning(*compare).count("Training ") == 1
    assert Path("best/comparison.csv").read_bytes() == before
    with pytest.raises(SystemExit, match=r"seeds that the study has not used, got \[8, 9\]"):
        tuning(*compare, "--first-seed", "8")
    other = next(trial.number for trial in trials if trial.params != study().best_params)
    with pytest.raises(SystemExit, match="holds the runs of another trial or study"):
        tuning(*compare, "--trial", str(other))
    assert Path("best/comparison.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--params", "{widht: 8}"), "got 'widht'; did you mean 'width'"),
        (("--params", "{gamma: 2}"), "gamma must be"),
        (("--params", "width"), "Expected a YAML mapping"),
        (("--params", "{width: 8"), "Expected YAML as --params, got '{width: 8'"),
        (("--params", "{n_envs: 0}"), "n_envs must be a whole number of at least 1, got 0"),
        (("--search-space", "[beta"), r"Expected YAML as --search-space, got '\[beta'"),
        (("--storage", "sqlite:////dev/null/study.db"), r"\[Errno \d+\] .*/dev/null"),
        (("--search-space", "[betta]"), "got 'betta'; did you mean 'beta'"),
        (("--params", "{adapter: none}"), "has no effect with adapter='none'"),
        (("--env", "Pendulum-v1"), "Expected a suite of sb3_varshare"),
        (("--env", "Contextual-v1"), "Contextual"),
        (("--conf-file", "none.yml"), "There is no file 'none.yml'"),
        (("--evaluations", "0"), "evaluations must be at least 1"),
        (("--storage", "study.db"), "Expected sqlite:///"),
        (("--n-trials", "0"), "n_trials >= 1"),
    ],
)
def test_mistakes_leave_no_study(tuning: Command, changes: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        tuning(*RUN, *STORED, *changes)
    assert not Path("study.db").exists()


def test_a_suite_that_is_not_installed(tuning: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_varshare.tasks.suites.metaworld", None)
    with pytest.raises(SystemExit, match=r'run pip install "sb3_varshare\[metaworld\]"'):
        tuning(*RUN, *STORED, "--env", "MT3-v0")
    assert not Path("study.db").exists()


def test_a_study_with_other_settings_is_left_alone(tuning: Command) -> None:
    tuning(*RUN, *STORED, "--n-trials", "1")
    before = json.dumps(study().user_attrs)
    changes = [
        (("--search-space", "{beta: [0.1, 1], sigma_prior: null}"), r"space\.beta\.low: 0\.001 in the study, 0\.1 now"),
        (("--steps", "70"), "steps: 60 in the study, 70 now"),
        (("--params", TINY.replace("8", "16")), r"entry\.width: 8 in the study, 16 now\)"),
        (("--seed", "1"), "seeds: "),
    ]
    for options, message in changes:
        with pytest.raises(SystemExit, match=f"searches something else.*{message}"):
            tuning(*RUN, *STORED, "--n-trials", "2", *options)
    assert len(study().trials) == 1 and json.dumps(study().user_attrs) == before


@pytest.mark.parametrize(
    "error",
    [
        FloatingPointError("nan"),
        th.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError("99 GiB"),
        ValueError("loc"),
    ],
)
def test_a_failure_is_marked_and_the_study_goes_on(
    tuning: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    train = VarShareSAC.train
    failed: list[VarShareSAC] = []

    def fail_once(self: VarShareSAC, *arguments: Any, **options: Any) -> None:
        if not failed:
            failed.append(self)
            raise error
        train(self, *arguments, **options)

    monkeypatch.setattr(VarShareSAC, "train", fail_once)
    printed = tuning(*RUN, *STORED, "--n-trials", "2")
    assert [trial.state.name for trial in study().trials] == ["FAIL", "COMPLETE"]
    assert study().trials[0].user_attrs["failure"].endswith(f"{type(error).__name__}: {error}")
    # A failure is an outcome, which is not retried.
    assert "Trial 0 failed. " in printed and "2 of 2 trials are done" in printed


def test_any_other_error_ends_the_worker_and_the_trial_is_not_done(
    tuning: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: VarShareSAC, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(VarShareSAC, "train", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            tuning(*RUN, *STORED, "--n-trials", "1")
    (trial,) = study().trials
    assert trial.state.name == "FAIL" and "failure" not in trial.user_attrs
    assert progress_of([trial], 1, 3).lost == [trial]


def test_a_trial_that_ends_within_the_warm_up_is_a_mistake(tuning: Command) -> None:
    with pytest.raises(RuntimeError, match=r"no gradient step in 60 steps .*learning_starts=61, "):
        tuning(*RUN, *STORED, "--n-trials", "1", "--params", TINY.replace("starts: 20", "starts: 61"))


def test_a_comparison_without_a_run_is_refused(tuning: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning(*RUN, *STORED, "--n-trials", "1")

    def fail(self: VarShareSAC, *arguments: Any, **options: Any) -> None:
        raise FloatingPointError("losses are nan")

    monkeypatch.setattr(VarShareSAC, "train", fail)
    with pytest.raises(
        SystemExit, match=r"The run of 'best' with seed 1000 failed \(FloatingPointError: losses are nan\)"
    ):
        tuning("compare", *STORED, "--output", "best", "--n-seeds", "1")
    assert {path.name for path in Path("best").iterdir()} == {"comparison.json"}


def test_a_trial_that_is_stopped_by_hand_goes_back_into_the_queue(
    tuning: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def stop(self: VarShareSAC, *arguments: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(VarShareSAC, "train", stop)
        with pytest.raises(SystemExit) as stopped:
            tuning(*RUN, *STORED, "--n-trials", "1")
        assert stopped.value.code == 130
    tuning(*RUN, *STORED, "--n-trials", "1")
    first, second = study().trials
    assert (first.state.name, second.state.name) == ("FAIL", "COMPLETE") and first.params == second.params


def test_trials_are_stopped_early_after_equal_evaluations(tuning: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the last evaluation of a run the value is read twice: for the report, and for the trial.
    values = iter([5.0, 6.0, 6.0, 5.0, 6.0, 6.0, 1.0])
    monkeypatch.setattr("sb3_varshare.tuning.worker.objective_value", lambda evaluation: next(values))
    tuning(*RUN, *STORED, "--n-trials", "3", "--n-startup-trials", "1")
    assert [trial.state.name for trial in study().trials] == ["COMPLETE", "COMPLETE", "PRUNED"]


def test_a_trial_too_many_ends_at_once(tuning: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning(*RUN, *STORED, "--n-trials", "1")
    looks = iter([Progress(0, 0, [], [], 1)])
    real = worker.progress_of
    # The first look was before the other worker took the last place.
    monkeypatch.setattr(worker, "progress_of", lambda *given: next(looks, None) or real(*given))
    assert "is finished: 1 of 1 trials are done" in tuning(*RUN, *STORED, "--n-trials", "1")
    first, second = study().trials
    assert (first.state.name, second.state.name) == ("COMPLETE", "FAIL") and second.user_attrs["surplus"] is True


def test_a_worker_that_was_taken_for_dead_goes_on(tuning: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    train = VarShareSAC.train
    lost: list[int] = []

    def lose_once(self: VarShareSAC, *arguments: Any, **options: Any) -> None:
        if not lost:
            lost.append(0)
            # What another worker does after the grace period.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                study().tell(0, state=optuna.trial.TrialState.FAIL)
                RetryHeartbeatStaleTrialCallback()(study(), study().trials[0])
        train(self, *arguments, **options)

    monkeypatch.setattr(VarShareSAC, "train", lose_once)
    printed = tuning(*RUN, *STORED, "--n-trials", "1")
    assert "Trial 0 was taken for lost" in printed and "1 of 1 trials are done" in printed
    first, second = study().trials
    assert (first.state.name, second.state.name) == ("FAIL", "COMPLETE") and first.params == second.params


def test_what_is_not_there(tuning: Command) -> None:
    for command in (("show",), ("plot", "--output", "plots"), ("compare", "--output", "best")):
        with pytest.raises(SystemExit, match=r"There is no file study\.db"):
            tuning(*command, *STORED)
    assert not Path("study.db").exists()
    optuna.create_study(storage="sqlite:///study.db", study_name="other")
    with pytest.raises(SystemExit, match="There is no study 's'"):
        tuning("show", *STORED)
    with pytest.raises(SystemExit, match="at least 2 completed trials, got 0"):
        tuning("plot", "--storage", STORED[1], "--study-name", "other", "--output", "plots")


def test_a_journal(tuning: Command) -> None:
    journal = ("--storage", "journals/study.log", "--study-name", "s")
    with pytest.warns(UserWarning, match="has no heartbeat"):
        assert "1 of 1 trials are done" in tuning(*RUN, *journal, "--n-trials", "1")
    with pytest.warns(UserWarning, match="has no heartbeat"):
        assert "1 trials (1 complete)" in tuning("show", *journal)


def test_the_interquartile_mean() -> None:
    scores = np.array([[0.0, 10.0, 1.0], [2.0, 3.0, 4.0], [5.0, 6.0, -9.0], [7.0, 8.0, 9.0]])
    estimate = iqm_interval(scores)
    # Of twelve sorted values the middle six: 2, 3, 4, 5, 6, 7.
    assert estimate.mean == 4.5 and estimate.low < 4.5 < estimate.high
    assert iqm_interval(scores) == estimate
