"""The space of what is tuned: limits, what a value means for the agent, and whose study it is."""

import json
import math
from typing import Any

import pytest

from sb3_varshare.tuning.search_space import (
    DEFAULT,
    PARAMETERS,
    Choice,
    Range,
    SearchSpace,
    claim_study,
    to_arguments,
    trial_arguments,
)

optuna = pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_the_limits_are_those_of_the_issue() -> None:
    assert (PARAMETERS["beta"], PARAMETERS["sigma_prior"]) == (Range(1e-3, 1.0), Range(0.03, 0.6))
    assert "batch_size" not in PARAMETERS
    assert DEFAULT == ("beta", "sigma_prior", "rows_per_task")


def test_what_is_drawn_lies_within_its_limits_on_a_logarithmic_scale() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [SearchSpace.of(["beta"]).sample(study.ask(), 3)["beta"] for _ in range(300)]
    assert all(1e-3 <= value <= 1.0 for value in drawn)
    # Three decades: a third of the values in each, within four standard deviations.
    shares = [sum(10.0**low <= value < 10.0 ** (low + 1) for value in drawn) / 300 for low in (-3, -2, -1)]
    assert all(abs(share - 1 / 3) < 4 * math.sqrt(2 / 9 / 300) for share in shares)


@pytest.mark.parametrize("n_tasks", [1, 5, 10])
def test_a_trial_gives_the_arguments_that_its_parameters_give_later(n_tasks: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    trial = study.ask()
    arguments = SearchSpace.of(list(PARAMETERS)).sample(trial, n_tasks)
    assert set(trial.params) == set(PARAMETERS)
    assert arguments == to_arguments(trial_arguments(trial.params), n_tasks)
    assert arguments["batch_size"] == trial.params["rows_per_task"] * n_tasks
    assert arguments["actor_width"] == arguments["critic_width"] == trial.params["width"]
    assert arguments["prior_scale"] == "relative"
    assert not {"rows_per_task", "width"} & set(arguments)


def test_the_agent_takes_every_argument() -> None:
    import inspect

    from sb3_varshare import VarShareSAC

    given = to_arguments(trial_arguments(dict.fromkeys(PARAMETERS, 1)), 2)
    assert set(given) <= set(inspect.signature(VarShareSAC.__init__).parameters)


def test_limits_of_ones_own() -> None:
    space = SearchSpace.of({"beta": ["1e-2", 0.1], "estimator": ["flipout"], "sigma_prior": None})
    assert space.parameters == {
        "beta": Range(0.01, 0.1),
        "estimator": Choice(("flipout",)),
        "sigma_prior": Range(0.03, 0.6),
    }
    assert SearchSpace.of("beta").parameters == {"beta": Range(1e-3, 1.0)}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (["betta"], "got 'betta'; did you mean 'beta'?"),
        (["batch_size"], "Expected a parameter that can be tuned, got 'batch_size'"),
        ([], "at least one of beta"),
        (3, "Expected names of parameters, or a mapping from them to limits, got 3"),
        ([{"beta": [0.1, 1.0]}], "Expected names of parameters"),
        ({"beta": [1.0, 0.1]}, r"0 < low < high as the limits of 'beta', got \[1.0, 0.1\]"),
        ({"beta": ["low", None]}, "Expected two numbers 0 < low < high as the limits of 'beta'"),
        ({"beta": [0.0, 0.1]}, "0 < low < high"),
        ({"beta": [0.1, 0.2, 0.3]}, r"Expected \[low, high\] as the limits of 'beta'"),
        ({"beta": 0.1}, "Expected a list as the limits of 'beta', got 0.1"),
        ({"estimator": []}, "at least one value"),
    ],
)
def test_what_is_refused(request_: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSpace.of(request_)


def test_what_has_no_effect_is_refused() -> None:
    SearchSpace.of(["beta", "estimator"]).check_adapter("low_rank")
    SearchSpace.of(["rows_per_task", "width"]).check_adapter("none")
    SearchSpace.of(["beta"]).check_adapter("deterministic")
    with pytest.raises(ValueError, match="Tuning beta, sigma_prior has no effect with adapter='none'"):
        SearchSpace.of().check_adapter("none")
    with pytest.raises(ValueError, match="Tuning estimator has no effect with adapter='deterministic'"):
        SearchSpace.of(["estimator"]).check_adapter("deterministic")


def test_a_study_keeps_its_space() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="one")
    ours = {"env": "MT10-v0", "space": SearchSpace.of(["beta", "width"]).declaration()}
    claim_study(study, ours)
    study.ask()
    again = optuna.load_study(storage=storage, study_name="one")
    claim_study(again, {"env": "MT10-v0", "space": SearchSpace.of(["width", "beta"]).declaration()})
    with pytest.raises(ValueError, match=r"'one' searches something else .env: MT10-v0 in the study, MT50-v0 now"):
        claim_study(again, {**ours, "env": "MT50-v0"})
    with pytest.raises(
        ValueError, match=r"space\.beta\.high: 1\.0 in the study, 0\.2 now; space\.beta\.low: 0\.001 in"
    ):
        claim_study(again, {**ours, "space": SearchSpace.of({"beta": [0.1, 0.2], "width": None}).declaration()})
    with pytest.raises(
        ValueError, match=r"space\.width: \{'choices': \[64, 128, 256, 512\]\} in the study, nothing now"
    ):
        claim_study(again, {**ours, "space": SearchSpace.of(["beta"]).declaration()})
    assert again.user_attrs == {"sb3_varshare": ours} == json.loads(json.dumps(again.user_attrs))


def test_a_declaration_is_compared_as_a_study_gives_it_back() -> None:
    study = optuna.create_study()
    # As a file of hyper-parameters in Python has it.
    for _ in range(2):
        claim_study(study, {"entry": {"train_freq": (1, "episode")}})


def test_a_study_of_somebody_else_is_left_alone() -> None:
    study = optuna.create_study()
    study.ask()
    with pytest.raises(ValueError, match="nothing in the study"):
        claim_study(study, {"env": "MT10-v0"})
    assert study.user_attrs == {}
