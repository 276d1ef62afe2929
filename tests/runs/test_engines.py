"""Every engine gives the same results to the last bit, whatever is killed on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from grids import UNITS, declare, outcomes

PATIENCE = 120
Command = Callable[..., tuple[int, str]]
pytestmark = pytest.mark.slow


def wait_for(marker: Path) -> bool:
    end = time.monotonic() + PATIENCE
    while not marker.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return marker.exists()


def test_local_processes(
    reference: Mapping[str, Any], runs: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "kill")
    status, printed = runs("run", "--processes", "2", seeds=[0])
    # One was killed, and the other went on.
    assert status == 1 and printed.count("finished ") == 1
    assert "Its process ended with exit code -9, without a result." in printed
    assert "1 finished, 0 running, 1 failed, 0 missing" in runs("list", seeds=[0])[1]
    status, printed = runs("run", "--processes", "2", seeds=[0])
    assert status == 0 and printed.count("finished ") == 1
    assert outcomes(tmp_path / "results") == {name: reference[name] for name in reference if "seed0" in name}
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"runs.json", "short"}


@pytest.fixture
def cluster(faults: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster with one node of one processor."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield found
    found.shutdown()


def test_ray_with_a_lost_node(reference: Mapping[str, Any], cluster: Any, runs: Command, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1, env_vars={"FAULT": "stall", "FAULT_AT": str(tmp_path)})
    removed = []

    def remove() -> None:
        if wait_for(tmp_path / "stall"):
            cluster.remove_node(node, allow_graceful=False)
            removed.append(node)

    remover = threading.Thread(target=remove)
    remover.start()
    status, printed = runs("run", "--engine", "ray", "--address", cluster.address)
    remover.join()
    assert status == 0 and removed, printed
    assert outcomes(tmp_path / "results") == reference


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_queue_with_a_killed_worker(
    reference: Mapping[str, Any], runs: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    options = ("--engine", "queue", "--storage", "sqlite:///queue.db", "--heartbeat", "1", "--grace", "3")
    command = (sys.executable, "-m", "sb3_varshare.runs", "run", str(declare(tmp_path)), "--output", "results")
    with subprocess.Popen([*command, *options], env={**os.environ, "FAULT": "stall"}) as victim:
        try:
            assert wait_for(tmp_path / "stall")
        finally:
            victim.send_signal(signal.SIGKILL)
    study = optuna.load_study(storage="sqlite:///queue.db", study_name="tiny")
    # As of a worker that has started at the same moment.
    study.enqueue_trial({}, user_attrs={"unit": UNITS[3]})
    status, printed = runs("run", *options)
    assert status == 0, printed
    assert outcomes(tmp_path / "results") == reference

    trials = study.get_trials()
    killed = trials[0]
    (retry,) = [trial for trial in trials if trial.system_attrs.get("failed_trial") == killed.number]
    assert killed.state.name == "FAIL" and killed.user_attrs["started"]["worker"].endswith(f":{victim.pid}")
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert retry in complete and sorted(trial.user_attrs["unit"] for trial in complete) == sorted(UNITS)
    before = (tmp_path / "results" / f"{UNITS[0]}.json").stat().st_mtime_ns
    assert runs("run", *options)[0] == 0 and len(study.get_trials()) == len(trials)
    assert (tmp_path / "results" / f"{UNITS[0]}.json").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="searches something else"):
        runs("run", *options, "--output", "other", seeds=[5])
    assert not (tmp_path / "other").exists()
