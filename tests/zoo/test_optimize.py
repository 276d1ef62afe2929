"""The zoo's search: what a trial is worth, what fails, and whose study it is."""

import functools
import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rl_zoo3")

import optuna
import torch as th
from zoo_commands import TASKS, TINY, TINY_SAC, Zoo

from sb3_varshare import VarShareSAC
from sb3_varshare.tuning import SearchSpace

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:Tensorboard log is deactivated"),
]
STORAGE = "sqlite:///study.db"
SEARCH = ("train", "-n", "60", "-optimize", "--n-startup-trials", "2", "--n-evaluations", "2", "--eval-episodes", "1")
SEARCH += ("--no-optim-plots", "--seed", "3")
STORED = ("--storage", STORAGE, "--study-name", "s")
OURS = ("--algo", "varshare_sac", "-params", *TINY, "search_space:['beta','sigma_prior']")


def study() -> optuna.Study:
    return optuna.load_study(storage=STORAGE, study_name="s")


def states() -> list[str]:
    return [trial.state.name for trial in study().trials]


@pytest.mark.parametrize(("n_envs", "n_eval_envs"), [(1, 2), (5, 1), (10, 3)])
def test_four_trials(zoo: Zoo, n_envs: int, n_eval_envs: int) -> None:
    zoo(*SEARCH, *STORED, "--n-trials", "4", "--n-eval-envs", str(n_eval_envs), *OURS, f"n_envs:{n_envs}")
    trials = study().trials
    assert len(trials) == 4 and {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    for trial in trials:
        assert 1e-3 <= trial.params["beta"] <= 1 and 0.03 <= trial.params["sigma_prior"] <= 0.6
        assert set(trial.params) == {"beta", "sigma_prior"}
        assert list(trial.user_attrs["returns"]) == TASKS == list(trial.user_attrs["success_rates"])
    complete = next(trial for trial in trials if trial.state.name == "COMPLETE")
    # No success: the squashed return alone, divided by twice the five episodes.
    mean_return = complete.user_attrs["mean_return"]
    assert complete.value == pytest.approx((1 + mean_return / (1000 + abs(mean_return))) / 2 / 10)
    # A report that can be read again, and no folder that enjoy would take for the latest run.
    (report,) = Path("logs/varshare_sac").glob("*.pkl")
    assert len(pickle.loads(report.read_bytes()).trials) == 4
    assert not [path for path in Path("logs/varshare_sac").iterdir() if path.is_dir()]


def test_the_command_once_more_goes_on(zoo: Zoo) -> None:
    zoo(*SEARCH, *STORED, "--n-trials", "1", *OURS)
    zoo(*SEARCH, *STORED, "--n-trials", "1", *OURS)
    first, second = study().trials
    # With one seed, as two workers would have.
    assert first.params["beta"] != second.params["beta"]


def test_a_study_of_another_space_is_refused(zoo: Zoo) -> None:
    zoo(*SEARCH, *STORED, "--n-trials", "1", *OURS)
    before = study()
    others = [
        ("--algo", "varshare_sac", "-params", *TINY),
        ("--algo", "varshare_sac", "-params", *TINY, "search_space:{'beta': [0.1, 1], 'sigma_prior': None}"),
        ("--algo", "sac", "-params", *TINY_SAC),
    ]
    for other in others:
        with pytest.raises(ValueError, match="'s' searches something else"):
            zoo(*SEARCH, *STORED, "--n-trials", "1", *other)
    assert len(study().trials) == 1
    assert study().user_attrs == before.user_attrs
    assert study().user_attrs["sb3_varshare"] == {
        "algo": "varshare_sac",
        "env": "Contextual-v0",
        "space": SearchSpace.of(["beta", "sigma_prior"]).declaration(),
    }


def test_a_journal(zoo: Zoo) -> None:
    for _ in range(2):
        zoo(*SEARCH, "--storage", "journals/study.log", "--study-name", "s", "--n-trials", "1", *OURS)
    with pytest.raises(ValueError, match="searches something else"):
        zoo(*SEARCH, "--storage", "journals/study.log", "--study-name", "s", "--algo", "sac")


@pytest.mark.parametrize(
    "error",
    [
        FloatingPointError("losses are nan"),
        MemoryError("needs 99 GiB"),
        th.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        # What PyTorch's distributions raise for weights that are not finite: the zoo would call the trial pruned.
        ValueError("Expected parameter loc to satisfy the constraint Real()"),
    ],
)
def test_a_failure_is_marked_and_the_study_goes_on(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    train = VarShareSAC.train
    failed: list[VarShareSAC] = []

    def fail_once(self: VarShareSAC, *arguments: Any, **options: Any) -> None:
        if not failed:
            failed.append(self)
            raise error
        train(self, *arguments, **options)

    monkeypatch.setattr(VarShareSAC, "train", fail_once)
    printed = zoo(*SEARCH, *STORED, "--n-trials", "2", *OURS)
    assert states() == ["FAIL", "COMPLETE"]
    assert study().trials[0].user_attrs["failure"] == f"{type(error).__name__}: {error}"
    assert f"Trial 0 failed. {type(error).__name__}" in printed


def test_a_trial_too_large_to_build_fails(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([0, 2**40, 2**40])
    monkeypatch.setattr("sb3_varshare.varshare_sac.memory.free_memory", lambda device: next(free))
    zoo(*SEARCH, *STORED, "--n-trials", "2", *OURS)
    assert states() == ["FAIL", "COMPLETE"]
    assert study().trials[0].user_attrs["failure"].startswith("MemoryError: VarShareSAC needs")


def test_a_mistake_ends_the_study(zoo: Zoo) -> None:
    with pytest.raises(ValueError, match="gamma must be"):
        zoo(*SEARCH, *STORED, "--n-trials", "2", *OURS, "gamma:2")
    assert states() == ["FAIL"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_trial_is_trained_again_by_its_number(zoo: Zoo, number: int) -> None:
    space = "search_space:['beta','sigma_prior','rows_per_task']"
    zoo(*SEARCH, *STORED, "--n-trials", "2", *OURS[:2], "-params", "width:8", "learning_starts:20", space)
    found = study().trials[number].params
    train = ("train", "-n", "10", "--eval-freq", "-1", *STORED, "--algo", "varshare_sac", "--trial-id", str(number))
    zoo(*train, "-params", "width:8", "gamma:0.5")
    model = VarShareSAC.load("logs/varshare_sac/Contextual-v0_1/Contextual-v0.zip")
    assert (model.beta, model.sigma_prior, model.batch_size) == (
        found["beta"],
        found["sigma_prior"],
        found["rows_per_task"] * 5,
    )
    assert (model.prior_scale, model.gamma, model.actor_width) == ("relative", 0.5, 8)


def test_what_has_no_effect_is_not_tuned(zoo: Zoo) -> None:
    with pytest.raises(ValueError, match="Tuning beta, sigma_prior has no effect with adapter='none'"):
        zoo(*SEARCH, *OURS, "adapter:'none'")
    with pytest.raises(ValueError, match="no effect with adapter='embedding'"):
        zoo(*SEARCH, *OURS, "preset:'brc'")


@pytest.mark.parametrize("algo", ["sac", "tqc"])
def test_a_baseline_is_tuned_on_the_same_objective(zoo: Zoo, algo: str) -> None:
    options = ("-params", "learning_starts:50", "n_envs:2")
    zoo(*SEARCH, *STORED, "--n-trials", "1", "--algo", algo, "--n-eval-envs", "2", *options)
    (trial,) = study().trials
    assert list(trial.user_attrs["returns"]) == TASKS


def test_trials_do_not_share_what_sb3_writes_into(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    init = VarShareSAC.__init__

    @functools.wraps(init)
    def spy(self: VarShareSAC, *arguments: Any, **options: Any) -> None:
        given.append(options["policy_kwargs"])
        options["policy_kwargs"]["optimizer_kwargs"]["eps"] = len(given)
        init(self, *arguments, **options)

    monkeypatch.setattr(VarShareSAC, "__init__", spy)
    zoo(*SEARCH, *STORED, "--n-trials", "2", *OURS, "policy_kwargs:dict(optimizer_kwargs=dict(eps=1e-5))")
    first, second = given
    assert first is not second and first["optimizer_kwargs"] is not second["optimizer_kwargs"]
