"""Workers that raise, exit, are killed or hang: a named error or a restart in time, and no process left."""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from faulty import Fault, with_fault

from sb3_varshare import VarShareSAC, evaluate_tasks
from sb3_varshare.tasks import MultiTaskVecEnv, WorkerError, WorkerOptions, make_suite, split_task
from sb3_varshare.tasks.suite import TaskSuite

TIMEOUT = 4.0
KINDS = {
    "raise": "raised ArithmeticError: the simulator is unstable",
    "exit": "exited with code 7",
    "kill": "was ended by SIGKILL",
    "hang": f"did not come back within {TIMEOUT:g} s",
}
# Resets are counted per env: a worker's first one is that of the start.
PLACES = [("step", 40), ("reset", 3)]
FAULTS = [(kind, where, at) for kind in KINDS for where, at in PLACES]
# Half of the restarts in every run: each kind, each place.
RESTARTS = [pytest.param(*fault, marks=[pytest.mark.slow] if i % 4 in (1, 2) else []) for i, fault in enumerate(FAULTS)]


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    """All processes of workers have gone when a test ends; those of the standard library may stay."""

    def workers() -> list[psutil.Process]:
        # The fork server and the tracker of resources are children, a worker is a child of the fork server.
        return [p for child in psutil.Process().children() for p in child.children(recursive=True)]

    before = {process.pid for process in workers()}
    yield
    left = [process for process in workers() if process.pid not in before]
    assert psutil.wait_procs(left, timeout=3)[1] == []


def make_env(suite: TaskSuite, n_envs: int, timeout: float = TIMEOUT, **kwargs: Any) -> MultiTaskVecEnv:
    return MultiTaskVecEnv(suite, n_envs, seed=1, workers=WorkerOptions(2, timeout=timeout, **kwargs))


def play(env: MultiTaskVecEnv, n_steps: int) -> list[tuple[Any, ...]]:
    """Reset and step with the same actions each time."""
    actions = np.random.default_rng(0).uniform(-1, 1, (n_steps, env.num_envs, *(env.action_space.shape or ())))
    return [(env.reset(),), *[env.step(action) for action in actions.astype(np.float32)]]


def check_error(env: MultiTaskVecEnv, task: str, kind: str, where: str, timeout: float) -> None:
    """An error that names env and task, in time, after which nothing runs."""
    env.reset()
    pids = env.worker_pids
    start = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        for _ in range(100):
            start = time.monotonic()
            env.step(np.zeros((env.num_envs, *(env.action_space.shape or ())), dtype=np.float32))
    assert time.monotonic() - start < timeout + 3
    rank = [env.task_names[cycle[0]] for cycle in env.layout].index(task)
    assert (caught.value.ranks, caught.value.tasks) == ((rank,), (task,))
    message = str(caught.value)
    assert KINDS[kind].replace(f"{TIMEOUT:g}", f"{timeout:g}") in message
    assert f"in {where} of env {rank} ({task})" in message
    assert ("in _count" in message) == (kind == "raise")
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 1
    assert not any(psutil.pid_exists(pid) for pid in pids)


def check_restart(env: MultiTaskVecEnv, sound: MultiTaskVecEnv, n_steps: int) -> None:
    """Only the failed worker's episodes are cut, and what follows in its envs was not played before."""
    with pytest.warns(RuntimeWarning, match="The worker is restarted"):
        steps = play(env, n_steps)
    expected = play(sound, n_steps)
    (fault,) = [i for i, step in enumerate(steps[1:], 1) if any("worker_restarted" in info for info in step[3])]
    lost = [rank for rank, info in enumerate(steps[fault][3]) if "worker_restarted" in info]
    kept = [rank for rank in range(env.num_envs) if rank not in lost]
    assert 0 < len(lost) < env.num_envs
    for i in range(n_steps + 1):
        rows = list(range(env.num_envs)) if i < fault else kept
        np.testing.assert_array_equal(steps[i][0][rows], expected[i][0][rows])
    last_seen, new = steps[fault - 1][0], steps[fault][0]
    for rank in lost:
        info = steps[fault][3][rank]
        assert steps[fault][2][rank] and steps[fault][1][rank] == 0 and info["TimeLimit.truncated"]
        np.testing.assert_array_equal(info["terminal_observation"], last_seen[rank])
        assert "episode" not in info and "is_success" not in info
        assert info["task_id"] == split_task(last_seen[rank], env.n_tasks)[1] == split_task(new[rank], env.n_tasks)[1]
        starts = [step[0][rank] for step in expected if len(step) == 1 or step[2][rank]]
        assert not any(np.array_equal(new[rank], start) for start in starts)
    assert env.worker_restarts == len(lost)
    per_task = env.worker_restarts_per_task()
    assert sum(per_task.values()) == len(lost) and per_task[steps[fault][3][lost[0]]["task"]] > 0
    # A new seed makes them equals of envs that never failed.
    for venv in (env, sound):
        venv.seed(9)
    np.testing.assert_array_equal(env.reset(), sound.reset())
    action = np.zeros((env.num_envs, *(env.action_space.shape or ())), dtype=np.float32)
    np.testing.assert_array_equal(env.step(action)[0], sound.step(action)[0])
    env.close()


@pytest.mark.parametrize(("kind", "where", "at"), FAULTS)
def test_an_error_names_the_task(kind: str, where: str, at: int, tmp_path: Path) -> None:
    suite = with_fault(make_suite("contextual", horizon=15), "reversed", Fault(kind, where, at, tmp_path))
    check_error(make_env(suite, 5), "reversed", kind, where, TIMEOUT)


@pytest.mark.parametrize(("kind", "where", "at"), RESTARTS)
def test_a_restart_cuts_episodes_and_goes_on(kind: str, where: str, at: int, tmp_path: Path) -> None:
    plain = make_suite("contextual", horizon=15)
    suite = with_fault(plain, "reversed", Fault(kind, where, at, tmp_path))
    check_restart(make_env(suite, 10, on_failure="restart"), MultiTaskVecEnv(plain, 10, seed=1), 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
# Each kind once: what differs by place is seen on tasks that are quickly built.
@pytest.mark.parametrize(("kind", "where", "at"), [fault for i, fault in enumerate(FAULTS) if i % 4 in (0, 3)])
def test_one_of_ten_metaworld_envs_fails(kind: str, where: str, at: int, tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    plain = make_suite("MT10", horizon=15)
    suite = with_fault(plain, "door-open-v3", Fault(kind, where, at, tmp_path, times=1))
    # A simulator is built within a step's time, and the machine may be busy.
    check_error(make_env(suite, 10, timeout=20.0), "door-open-v3", kind, where, 20.0)
    for mark in tmp_path.iterdir():
        mark.unlink()
    check_restart(make_env(suite, 10, timeout=20.0, on_failure="restart"), MultiTaskVecEnv(plain, 10, seed=1), 45)


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_in_the_very_first_reset(kind: str, tmp_path: Path) -> None:
    suite = with_fault(make_suite("contextual"), "light", Fault(kind, "reset", 1, tmp_path, times=1))
    env = make_env(suite, 5)
    with pytest.raises(WorkerError, match=r"in the first steps of task 'light'") as caught:
        env.reset()
    assert caught.value.tasks == ("light",) and KINDS[kind] in str(caught.value)
    for mark in tmp_path.iterdir():
        mark.unlink()
    # One worker for each env: nothing is timed, and the reset itself fails.
    env = MultiTaskVecEnv(suite, 5, workers=WorkerOptions(5, timeout=TIMEOUT, on_failure="restart"))
    with pytest.warns(RuntimeWarning, match=r"in reset of env 4 \(light\)"):
        assert env.reset().shape == (5, 10)
    assert env.worker_restarts_per_task() == {**dict.fromkeys(env.task_names, 0), "light": 1}
    env.close()


def test_a_task_that_always_fails_ends_in_the_error(tmp_path: Path) -> None:
    suite = with_fault(make_suite("contextual"), "light", Fault("raise", "step", 30, tmp_path, times=100))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        env = make_env(suite, 5, on_failure="restart")
        play(env, 100)  # a step in between: this is no row of failures
        assert len(caught) == 3 and env.worker_restarts > 0
        env.close()
        env = make_env(with_fault(suite, "light", Fault("exit", "reset", 1, tmp_path, times=100)), 5)
        with pytest.raises(WorkerError, match="exited with code 7"):
            env.reset()
        env = make_env(
            with_fault(suite, "light", Fault("exit", "reset", 1, tmp_path, times=100)), 5, on_failure="restart"
        )
        with pytest.raises(WorkerError, match="exited with code 7") as error:
            env.reset()
    assert "restarted 3 times" in error.value.__notes__[0]


def test_a_worker_that_is_killed_from_outside(tmp_path: Path) -> None:
    env = make_env(make_suite("contextual"), 5, on_failure="restart")
    env.reset()
    first, second = env.worker_pids
    os.kill(first, signal.SIGKILL)
    with pytest.warns(RuntimeWarning, match="was ended by SIGKILL"):
        env.step(np.zeros((5, 1), dtype=np.float32))
    assert env.worker_pids[1] == second and env.worker_pids[0] != first
    os.kill(second, signal.SIGSTOP)
    with pytest.warns(RuntimeWarning, match="did not come back within 4 s"):
        env.step(np.zeros((5, 1), dtype=np.float32))
    os.kill(env.worker_pids[0], signal.SIGKILL)
    with pytest.raises(WorkerError, match="in get_attr current_task"):
        env.get_attr("current_task")
    with pytest.warns(RuntimeWarning, match="ended after an earlier failure"):
        assert env.step(np.zeros((5, 1), dtype=np.float32))[2].any()
    env.close()


def test_a_worker_that_does_not_read_ends_in_the_error() -> None:
    env = make_env(make_suite("contextual"), 5, timeout=2.0)
    env.reset()
    os.kill(env.worker_pids[1], signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"Worker 1 .* did not come back within 2 s, in set_attr blob"):
        env.set_attr("blob", np.zeros(2**20))  # more than a pipe takes
    assert time.monotonic() - start < 5
    env.close()


def test_what_is_larger_than_a_pipe_arrives() -> None:
    env = make_env(make_suite("contextual"), 5)
    env.reset()
    blob = np.random.default_rng(0).normal(size=2**20)
    env.set_attr("blob", blob)
    assert all(np.array_equal(copy, blob) for copy in env.get_attr("blob"))
    env.close()


def test_a_worker_that_ignores_being_told_to_close_is_ended() -> None:
    env = make_env(make_suite("contextual"), 5)
    env.reset()
    for pid in env.worker_pids:
        os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 15


def test_training_goes_on_and_the_replay_is_intact(tmp_path: Path) -> None:
    suite = with_fault(make_suite("contextual", horizon=10), "reversed", Fault("kill", "step", 60, tmp_path))
    env = make_env(suite, 5, on_failure="restart")
    sizes: dict[str, Any] = {"actor_width": 8, "critic_width": 8, "critic_depth": 1}
    model = VarShareSAC(
        "MultiTaskPolicy", env, batch_size=10, buffer_size=2000, learning_starts=20, seed=0, device="cpu", **sizes
    )
    with pytest.warns(RuntimeWarning, match="The worker is restarted"):
        model.learn(500)
    assert model.num_timesteps == 500 and env.worker_restarts > 0
    assert model.replay_buffer.check_valid() == (True, "")
    # Nobody saw what the last action in a lost env led to.
    assert model.replay_buffer.size() == 500 - env.worker_restarts
    assert all(np.isfinite(parameter.detach().numpy()).all() for parameter in model.policy.parameters())
    env.close()


def test_an_episode_lost_in_an_evaluation_is_played_again(tmp_path: Path) -> None:
    suite = with_fault(make_suite("contextual", horizon=10), "reversed", Fault("kill", "step", 5, tmp_path))
    env = make_env(suite, 5, on_failure="restart")
    model = VarShareSAC("MultiTaskPolicy", env, actor_width=8, critic_width=8, critic_depth=1, seed=0, device="cpu")
    with pytest.warns(RuntimeWarning, match="The worker is restarted"):
        evaluation = evaluate_tasks(model, env, n_episodes=3)
    assert [episode.episode for episode in evaluation.of_task("reversed")] == [0, 1, 2]
    assert {episode.length for episode in evaluation.episodes} == {10}
    env.close()
