"""What counts as one trial, what is lost, and what two workers begin at the same moment."""

from typing import Any

import pytest

optuna = pytest.importorskip("optuna")

from optuna.trial import FrozenTrial, TrialState, create_trial  # noqa: E402

from sb3_varshare.tuning.progress import Caretaker, is_surplus, progress_of, units_of  # noqa: E402
from sb3_varshare.tuning.storage import open_storage  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used with"),
]


def trial(number: int, state: str, retries: tuple[int, ...] = (), **user_attrs: Any) -> FrozenTrial:
    system = {"failed_trial": retries[0], "retry_history": list(retries)} if retries else {}
    value = 1.0 if state == "COMPLETE" else None
    made = create_trial(state=TrialState[state], value=value, system_attrs=system, user_attrs=user_attrs)
    made.number = number
    return made


def counts(trials: list[FrozenTrial], n_trials: int = 3, max_retries: int = 2) -> tuple[int, ...]:
    progress = progress_of(trials, n_trials, max_retries)
    return (progress.finished, progress.waiting, len(progress.running), len(progress.lost), progress.unclaimed)


def test_a_trial_and_its_retries_count_once() -> None:
    trials = [trial(0, "FAIL"), trial(1, "COMPLETE"), trial(2, "FAIL", (0,)), trial(3, "PRUNED", (0, 2))]
    assert counts(trials) == (2, 0, 0, 0, 1)
    assert {unit: len(attempts) for unit, attempts in units_of(trials).items()} == {0: 3, 1: 1}


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([], (0, 0, 0, 0, 3)),
        ([trial(0, "RUNNING"), trial(1, "WAITING")], (0, 1, 1, 0, 1)),
        # Failed for a reason: done. Without one: lost, until it was lost too often.
        ([trial(0, "FAIL", failure="MemoryError: 99 GiB")], (1, 0, 0, 0, 2)),
        ([trial(0, "FAIL")], (0, 0, 0, 1, 2)),
        ([trial(0, "FAIL"), trial(1, "FAIL", (0,)), trial(2, "FAIL", (0, 1))], (1, 0, 0, 0, 2)),
        # More than were asked for: the first ones count.
        ([trial(number, "RUNNING" if number < 3 else "COMPLETE") for number in range(5)], (0, 0, 3, 0, 0)),
    ],
)
def test_states(trials: list[FrozenTrial], expected: tuple[int, ...]) -> None:
    assert counts(trials) == expected


def test_of_two_claims_of_the_last_trial_the_first_counts() -> None:
    trials = [trial(0, "COMPLETE"), trial(1, "COMPLETE"), trial(2, "RUNNING"), trial(3, "RUNNING")]
    assert [is_surplus(one, trials, 3) for one in trials] == [False, False, False, True]
    trials[3] = trial(3, "FAIL", surplus=True)
    assert counts(trials) == (2, 0, 1, 0, 0) and 3 not in units_of(trials)
    # With more trials wanted a new one takes the place.
    trials.append(trial(4, "RUNNING"))
    assert not is_surplus(trials[4], trials, 4)
    # What was queued by a worker that wants more trials is not thrown away by one that wants fewer.
    trials[4:] = [trial(4, "FAIL"), trial(5, "RUNNING", (4,))]
    assert not is_surplus(trials[5], trials, 2)


def test_of_two_retries_of_one_trial_the_first_counts() -> None:
    trials = [trial(0, "FAIL"), trial(1, "RUNNING", (0,)), trial(2, "RUNNING", (0,))]
    assert [is_surplus(one, trials, 3) for one in trials[1:]] == [False, True]
    assert counts(trials) == (0, 0, 1, 0, 2)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_what_the_heartbeat_cannot_see_is_queued_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("sb3_varshare.tuning.progress.time", clock)
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/study.db", 1, 3))
    # Killed between its claim and its first heartbeat.
    silent = study.ask()
    silent.suggest_float("x", 0, 1)
    # Marked as failed by a worker that was killed before it queued it again.
    lost = study.ask()
    lost.suggest_float("x", 0, 1)
    study.tell(lost, state=TrialState.FAIL)
    alive = study.ask()
    alive.set_user_attr("started", {"trial": alive.number})
    first, second = Caretaker(study, 3), Caretaker(study, 3)
    # Longer than two heartbeats and shorter than the grace period; then longer than that.
    for now in (0.0, 2.5, 3.5):
        clock.now = now
        seen = progress_of(study.trials, 3, 3)
        for caretaker in (first, second):
            caretaker.look(seen)
        assert len(study.trials) > 3 if now > 3 else len(study.trials) == 3
    units = units_of(study.trials)
    assert [[one.state.name for one in attempts] for attempts in units.values()] == [
        ["FAIL", "WAITING"],
        ["FAIL", "WAITING"],
        ["RUNNING"],
    ]
    assert all(units[number][1].params == units[number][0].params for number in (0, 1))


@pytest.mark.filterwarnings("ignore:The gRPC proxy has no heartbeat")
@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("study.db", {}, "Expected sqlite:///<file>"),
        ("sqlite:///x.db", {"heartbeat": 0}, "a heartbeat of at least 1 s"),
        ("sqlite:///x.db", {"heartbeat": 5, "grace": 5}, "a longer grace period"),
        ("grpc://nowhere", {}, "grpc://host:port"),
    ],
)
def test_storages_that_are_refused(url: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_storage(url, **options)


def test_a_journal_has_no_heartbeat(tmp_path: Any) -> None:
    with pytest.warns(UserWarning, match="A journal file has no heartbeat"):
        storage = open_storage(f"{tmp_path}/journals/study.log")
    assert not Caretaker(optuna.create_study(storage=storage), 3).has_heartbeat
