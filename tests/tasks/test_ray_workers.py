"""Workers as actors of Ray: the episodes of the envs in this process, and an end or a restart of what is lost."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import faulty
import numpy as np
import psutil
import pytest
from faulty import Fault, with_fault
from test_worker_pool import play_alike

from sb3_varshare.tasks import MultiTaskVecEnv, WorkerError, WorkerOptions, make_multitask_env, make_suite
from sb3_varshare.tasks.ray_worker import RayWorker

if not os.environ.get("CI"):
    pytest.importorskip("ray")

# Not a word to its makers, and no warning of what its next version will do.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of two cores each on this machine; the second may be removed, the first not."""
    import ray
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings():
        # Ray leaves a file of its log open in this process.
        warnings.simplefilter("ignore", ResourceWarning)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        cluster.add_node(num_cpus=2)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def make_env(suite: Any = "contextual", **kwargs: Any) -> MultiTaskVecEnv:
    options = {"n_workers": 2, "seed": 3, "start_method": "ray", "on_worker_failure": "restart", **kwargs}
    return make_multitask_env(suite, **options)


def cluster_nodes() -> list[Any]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def step(env: MultiTaskVecEnv) -> Any:
    return env.step(np.zeros((env.num_envs, *(env.action_space.shape or ())), dtype=np.float32))


def lost_in(env: MultiTaskVecEnv, n_steps: int) -> list[int]:
    """Ranks whose episode ended since their worker was lost; checks how it ended."""
    lost = []
    for _ in range(n_steps):
        before = env._players._last.copy()  # type: ignore[union-attr]
        observations, rewards, dones, infos = step(env)
        assert np.isfinite(observations).all()
        for rank, info in enumerate(infos):
            if "worker_restarted" in info:
                lost.append(rank)
                assert dones[rank] and rewards[rank] == 0 and info["TimeLimit.truncated"]
                np.testing.assert_array_equal(info["terminal_observation"], before[rank])
    return lost


def test_episodes_are_those_without_workers(cluster: Any) -> None:
    options: dict[str, Any] = {"n_envs": 7, "seed": 3, "horizon": 9}
    env = make_env(**options)
    play_alike(env, make_multitask_env("contextual", **options), 25)
    assert len(set(env.worker_pids)) == 2 and os.getpid() not in env.worker_pids
    env.set_attr("nothing", {"a": 1}, indices=2)
    assert env.get_attr("nothing", indices=2) == [{"a": 1}]
    with pytest.raises(AttributeError):
        env.get_attr("something")
    step(env)
    env.close()
    assert env.worker_pids == ()
    n_cores = sum(node["Resources"].get("CPU", 0) for node in cluster_nodes())
    assert WorkerOptions("auto", start_method="ray").count(100) == n_cores >= 2


def test_a_cluster_that_is_full_is_an_error(cluster: Any) -> None:
    env = make_env(n_workers=5, worker_start_timeout=2.0)
    with pytest.raises(WorkerError, match=r"did not come back within 2 s \(has the Ray cluster a free core"):
        env.reset()


def test_a_killed_actor_is_an_error_that_names_the_tasks(cluster: Any) -> None:
    env = make_env(on_worker_failure="raise")
    env.reset()
    os.kill(env.worker_pids[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"Worker 1 .* was lost \(ActorDiedError\), in step of env") as error:
        step(env)
    ranks = error.value.ranks
    assert 0 < len(ranks) < 5 and error.value.tasks == tuple(env.task_names[rank] for rank in ranks)


def test_an_actor_that_is_lost_before_it_runs_is_placed_anew(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    launch, n_launched = RayWorker._launch, 0

    def lose(last: int) -> Any:
        def launch_and_lose(worker: RayWorker) -> None:
            nonlocal n_launched
            launch(worker)
            n_launched += 1
            # As with a machine that has vanished, of which Ray does not know yet.
            if n_launched <= last:
                ray.kill(worker._actor)

        return launch_and_lose

    monkeypatch.setattr(RayWorker, "_launch", lose(2))
    env = make_env(n_workers=1, on_worker_failure="raise")
    assert env.reset().shape[0] == env.num_envs and n_launched == 3
    env.close()
    n_launched = 0
    monkeypatch.setattr(RayWorker, "_launch", lose(9))
    with pytest.raises(WorkerError, match=r"was lost \(ActorDiedError\), at its start"):
        make_env(n_workers=1).reset()
    assert n_launched == 3


@pytest.fixture
def faulty_by_value() -> Iterator[None]:
    """Ray's processes do not find this folder's modules."""
    cloudpickle.register_pickle_by_value(faulty)
    yield
    cloudpickle.unregister_pickle_by_value(faulty)


@pytest.mark.usefixtures("faulty_by_value")
@pytest.mark.parametrize(
    ("kind", "message"), [("raise", "raised ArithmeticError"), ("hang", "did not come back within 3 s")]
)
def test_the_env_at_fault_is_named(cluster: Any, tmp_path: Path, kind: str, message: str) -> None:
    suite = with_fault(make_suite("contextual", horizon=15), "reversed", Fault(kind, "step", 40, tmp_path))
    env = make_env(suite, worker_timeout=3.0)
    env.reset()
    with pytest.warns(RuntimeWarning, match=rf"{message}.*, in step of env \d \(reversed\)\.") as caught:
        lost = lost_in(env, 50)
    assert len(caught) == 1 and env.task_names.index("reversed") in lost
    assert env.worker_restarts == len(lost)
    env.close()


def test_collection_goes_on_when_a_node_is_lost(cluster: Any) -> None:
    node = cluster.list_all_nodes()[1]
    raylet = node.all_processes["raylet"][0].process.pid
    env = make_env()
    env.reset()
    while not any(psutil.Process(pid).ppid() == raylet for pid in env.worker_pids):
        # Ray had not yet noticed that the actors of the last test have gone.
        env.close()
        env = make_env()
        env.reset()
    assert lost_in(env, 3) == []
    cluster.remove_node(node, allow_graceful=False)
    lost: list[int] = []
    deadline = time.monotonic() + 60
    with pytest.warns(RuntimeWarning, match="was lost .*in step of env"):
        # The processes of a node end a moment after it.
        while not lost and time.monotonic() < deadline:
            lost = lost_in(env, 1)
    assert 0 < len(lost) < 5
    assert lost_in(env, 5) == [] and env.worker_restarts == len(lost)
    env.close()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "sb3_varshare\[ray\]"'):
        make_env(n_workers="auto")
