"""Several processes on one study, one of them killed in the middle of a trial."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("tyro")

import optuna
from tuning_commands import SHORT

from sb3_varshare.tuning.progress import units_of
from sb3_varshare.tuning.storage import open_storage

N_TRIALS = 4
PATIENCE = 100
# Set by `make test-postgres`, which starts the server.
POSTGRES = os.environ.get("TUNING_POSTGRES_URL")


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.skipif(POSTGRES is None, reason="make test-postgres has a server")),
    ]
)
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else str(POSTGRES)


@pytest.fixture
def opened(storage: str) -> Iterator[Any]:
    """The same, for this process."""
    found: Any = open_storage(storage)
    yield found
    found.remove_session()
    found.engine.dispose()


@pytest.fixture
def start(storage: str, tmp_path: Path) -> Iterator[Any]:
    """Starts a worker; what still runs at the end is killed."""
    begun: list[subprocess.Popen[str]] = []
    command = (sys.executable, "-m", "sb3_varshare.tuning", "run", *SHORT, "--storage", storage, "--study-name", "s")
    command += ("--n-trials", str(N_TRIALS), "--heartbeat", "1", "--grace", "3", "--pruner", "none", "--threads", "1")
    command += ("--params", "{width: 8, rows_per_task: 4, learning_starts: 20, callback: [pauses.Pause]}")

    def begin(**environment: str) -> "subprocess.Popen[str]":
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        begun.append(
            subprocess.Popen(
                command,
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": path, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(marker: Path, process: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + PATIENCE
    while not marker.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "The worker has not begun a trial."
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_killed_trial_is_finished_by_another_worker(storage: str, opened: Any, start: Any, tmp_path: Path) -> None:
    marker = tmp_path / "stalled"
    victim, worker = start(STALL_AT=str(marker)), start()
    wait_for(marker, victim)
    victim.send_signal(signal.SIGKILL)
    printed = worker.communicate(timeout=PATIENCE)[0]
    assert worker.returncode == 0, printed
    assert f"The study 's' is finished: {N_TRIALS} of {N_TRIALS} trials are done." in printed

    study = optuna.load_study(storage=opened, study_name="s")
    trials = study.trials
    (killed,) = [trial for trial in trials if trial.state.name == "FAIL"]
    (retry,) = [trial for trial in trials if trial.system_attrs.get("failed_trial") == killed.number]
    assert killed.user_attrs["started"]["worker"].endswith(f":{victim.pid}")
    assert retry.user_attrs["started"]["worker"].endswith(f":{worker.pid}")
    assert retry.state.name == "COMPLETE" and retry.params == killed.params
    # The retry counts with what it retries, and nothing else was begun.
    assert len(trials) == N_TRIALS + 1 and len(units_of(trials)) == N_TRIALS
    # All of these are start-up trials.
    assert len({trial.params["beta"] for trial in trials if trial is not retry}) == N_TRIALS

    if storage == POSTGRES:
        return
    again = start()
    printed = again.communicate(timeout=PATIENCE)[0]
    assert again.returncode == 0 and "The study 's' is finished" in printed
    assert len(study.get_trials()) == N_TRIALS + 1
