"""The same envs in worker processes: bit-equal episodes, SB3's interface, and an orderly end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from faulty import NoPicture, Slow, reporter_suite
from gymnasium.envs.classic_control import PendulumEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_varshare import VarShareSAC, evaluate_tasks
from sb3_varshare.tasks import MultiTaskVecEnv, WorkerOptions, find_tasks, make_multitask_env, make_suite
from sb3_varshare.tasks.env_group import EnvPlan
from sb3_varshare.tasks.worker import step_cost

MakeEnv = Callable[..., MultiTaskVecEnv]


def alive(pids: tuple[int, ...]) -> list[int]:
    """Those of the processes that still run."""
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def make_env() -> Iterator[MakeEnv]:
    """Makes envs with workers, and sees to it that no process is left."""
    made: list[MultiTaskVecEnv] = []

    def make(*args: Any, n_workers: int = 2, **kwargs: Any) -> MultiTaskVecEnv:
        made.append(make_multitask_env(*args, n_workers=n_workers, **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


def same_step(one: Any, other: Any) -> None:
    """Bit-equal results, and equal infos but for the time."""
    for mine, theirs in zip(one[:3], other[:3], strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    for info, other_info in zip(one[3], other[3], strict=True):
        assert info.keys() == other_info.keys()
        for key in info.keys() - {"terminal_observation", "episode"}:
            assert info[key] == other_info[key]
        if "episode" in info:
            assert info["episode"].keys() == {"r", "l", "t"}
            assert [info["episode"][key] for key in "rl"] == [other_info["episode"][key] for key in "rl"]
            assert info["episode"]["t"] > 0
            np.testing.assert_array_equal(info["terminal_observation"], other_info["terminal_observation"])


def play_alike(one: MultiTaskVecEnv, other: MultiTaskVecEnv, n_steps: int) -> None:
    """Both envs give the same, through ends of episodes, a reset and a new seed."""
    actions = np.random.default_rng(0).uniform(-1, 1, (n_steps, one.num_envs, *(one.action_space.shape or ())))
    for new_seed in (None, None, 7):
        if new_seed is not None:
            one.seed(new_seed)
            other.seed(new_seed)
        np.testing.assert_array_equal(one.reset(), other.reset())
        assert one.reset_infos == other.reset_infos
        for action in actions.astype(np.float32):
            same_step(one.step(action), other.step(action))
        assert one.reset_infos == other.reset_infos


@pytest.mark.parametrize(("n_envs", "n_workers"), [(5, 1), (7, 2), (3, 3)])
def test_episodes_are_those_without_workers(make_env: MakeEnv, n_envs: int, n_workers: int) -> None:
    options: dict[str, Any] = {"n_envs": n_envs, "seed": 3, "horizon": 9}
    play_alike(make_env("contextual", n_workers=n_workers, **options), make_multitask_env("contextual", **options), 25)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_episodes_of_metaworld_are_those_without_workers(make_env: MakeEnv) -> None:
    pytest.importorskip("metaworld")
    options: dict[str, Any] = {"n_envs": 5, "seed": 3, "horizon": 15}
    play_alike(make_env("MT10", worker_timeout=200.0, **options), make_multitask_env("MT10", **options), 40)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_workers_load_neither_torch_nor_the_script(start_method: str) -> None:
    workers = WorkerOptions(2, start_method=start_method)
    env = MultiTaskVecEnv(reporter_suite(), workers=workers)
    observations = env.reset()
    env.close()
    assert not observations[:, :3].any()
    assert len({os.getpid(), *observations[:, 3].astype(int)}) == 3


def test_fork_and_other_nonsense_is_refused() -> None:
    for arguments, message in [
        ({"start_method": "fork"}, 'must be "forkserver" or "spawn", got "fork", which copies'),
        ({"start_method": "thread"}, "got 'thread'"),
        ({"n_workers": -1}, "at least 0, got -1"),
        ({"n_workers": "many"}, "got 'many'"),
        ({"worker_timeout": 0.0}, "must be positive"),
        ({"on_worker_failure": "ignore"}, "must be one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_multitask_env("contextual", **arguments)


def test_numbers_of_workers() -> None:
    assert WorkerOptions(4).count(3) == 3
    assert WorkerOptions("auto").count(1000) == len(os.sched_getaffinity(0))
    assert WorkerOptions("auto").count(1) == 1
    assert WorkerOptions(0).count(3) == 0


def test_nothing_starts_before_it_is_used(make_env: MakeEnv) -> None:
    env = make_env("contextual")
    evaluation = env.evaluation_env()
    stacked = VecFrameStack(env, 2)
    assert find_tasks(stacked) == env.suite.describe()
    assert env.worker_pids == evaluation.worker_pids == ()
    assert (evaluation.n_workers, evaluation.purpose) == (2, "evaluation")
    evaluation.close()


def test_the_interface_of_sb3(make_env: MakeEnv) -> None:
    env = make_env("contextual", render_mode="rgb_array")
    env.set_options([{"task": name} for name in reversed(env.task_names)])
    env.reset()
    assert env.get_attr("current_task") == [4, 3, 2, 1, 0]
    assert env.get_attr("current_task", indices=[4, 0]) == [0, 4]
    assert env.has_attr("suite") and not env.has_attr("nothing")
    env.set_attr("nothing", {"a": 1}, indices=2)
    assert env.get_attr("nothing", indices=2) == [{"a": 1}]
    assert env.env_method("set_tasks", ["light"], indices=range(5)) == [None] * 5
    assert env.env_is_wrapped(Monitor) == [True] * 5 and not any(env.env_is_wrapped(gym.wrappers.ClipAction))
    env.reset()
    assert env.get_attr("current_task") == [4] * 5
    assert [image.shape for image in env.get_images() if image is not None] == [(128, 128, 3)] * 5
    assert env.render().shape == (3 * 128, 2 * 128, 3)  # type: ignore[union-attr]


def test_what_a_call_raises_is_raised_here_and_the_worker_goes_on(make_env: MakeEnv) -> None:
    env = make_env("contextual")
    env.reset()
    with pytest.raises(ValueError, match="did you mean") as caught:
        env.env_method("set_tasks", ["ligth"])
    assert "In a worker process" in caught.value.__notes__[0]
    with pytest.raises(AttributeError, match="nothing"):
        env.get_attr("nothing")
    assert env.reset().shape == (5, 10)


def test_lambdas_and_what_the_script_defines_travel(make_env: MakeEnv) -> None:
    env = make_env({"slow": lambda: gym.make("Pendulum-v1", g=2.0), "fast": lambda: gym.make("Pendulum-v1", g=10.0)})
    assert env.reset().shape == (2, 5)
    assert env.get_attr("suite")[0].task_names == ("slow", "fast")


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_ids_that_only_this_process_knows_travel(make_env: MakeEnv, start_method: str) -> None:
    class Mine(PendulumEnv):
        pass

    gym.register("Mine-v0", entry_point=Mine, max_episode_steps=9)
    try:
        env = make_env(["gymnasium/Mine-v0", "gymnasium/Pendulum-v1"], start_method=start_method, seed=2)
    finally:
        gym.registry.pop("Mine-v0")
    np.testing.assert_array_equal(env.reset(), make_multitask_env(env.suite, seed=2).reset())


def test_the_time_out_is_that_of_a_step_while_steps_are_timed_too(make_env: MakeEnv) -> None:
    slow = {name: lambda: Slow(gym.make("Pendulum-v1"), 0.15) for name in ("one", "two")}
    env = make_env(slow, n_envs=3, worker_timeout=1.0)  # 22 steps would take 3.3 s
    assert env.reset().shape == (3, 5)


def test_timing_reports_each_step_and_ends_early() -> None:
    suite = make_suite({"one": lambda: Slow(gym.make("Pendulum-v1"), 0.15)}, horizon=2)
    plan, reports = EnvPlan(suite, 0, "train", ((0,),), (0,), None, 0.0), []
    step_cost(plan, 0, lambda: reports.append(time.monotonic()))
    # The first reset, four steps of 0.15 s in 0.5 s, and a reset after each second step.
    assert len(reports) == 1 + 4 + 2
    assert max(np.diff(reports)) < 0.5


def test_an_error_that_cannot_be_unpickled_arrives_as_another(make_env: MakeEnv) -> None:
    env = make_env({"one": lambda: NoPicture(gym.make("Pendulum-v1"))}, n_workers=1)
    env.reset()
    with pytest.raises(RuntimeError, match="TwoWordsError: no light") as caught:
        env.env_method("render")
    assert "in render" in caught.value.__notes__[0]
    assert env.reset().shape == (1, 4)


def test_a_step_is_begun_once_and_ended_once(make_env: MakeEnv) -> None:
    env, other = make_env("contextual", seed=1), make_multitask_env("contextual", seed=1)
    zeros, ones = np.zeros((5, 1), dtype=np.float32), np.ones((5, 1), dtype=np.float32)
    env.reset()
    other.reset()
    with pytest.raises(RuntimeError, match="No step was begun"):
        env.step_wait()
    env.step_async(ones)
    with pytest.raises(RuntimeError, match="call step_wait"):
        env.step_async(zeros)
    same_step(env.step_wait(), other.step(ones))
    same_step(env.step(zeros), other.step(zeros))


@contextmanager
def interruption(seconds: float) -> Iterator[None]:
    """Ctrl-C, some time after the block was entered."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGINT))
    # A shell starts what it runs in the background with this signal ignored, and Python leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            yield
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_start_that_was_interrupted_may_be_repeated(make_env: MakeEnv) -> None:
    env = make_env("contextual", seed=1)
    with interruption(0.1):
        env.reset()
    assert env.worker_pids == ()
    np.testing.assert_array_equal(env.reset(), make_multitask_env("contextual", seed=1).reset())


def test_close_returns_though_a_worker_never_read_what_it_was_sent(make_env: MakeEnv) -> None:
    env = make_env("contextual")
    env.reset()
    pids = env.worker_pids
    os.kill(pids[0], signal.SIGSTOP)
    with interruption(0.5):
        env.set_attr("blob", np.zeros(2**20))
    start = time.monotonic()
    env.close()
    assert time.monotonic() - start < 15 and alive(pids) == []


def test_a_step_that_was_not_waited_for_is_forgotten_by_reset(make_env: MakeEnv) -> None:
    env = make_env("contextual", seed=1)
    env.reset()
    env.step_async(np.ones((5, 1), dtype=np.float32))
    with pytest.raises(RuntimeError, match="call step_wait"):
        env.get_attr("current_task")
    other = make_multitask_env("contextual", seed=1)
    other.reset()
    np.testing.assert_array_equal(env.reset(), other.reset())
    action = np.ones((5, 1), dtype=np.float32)
    same_step(env.step(action), other.step(action))


def test_close_ends_all_and_may_be_repeated(make_env: MakeEnv) -> None:
    env = make_env("contextual")
    env.close()
    other = make_env("contextual")
    other.reset()
    pids = other.worker_pids
    assert len(alive(pids)) == 2
    other.step_async(np.zeros((5, 1), dtype=np.float32))
    other.close()
    other.close()
    assert alive(pids) == []
    with pytest.raises(RuntimeError, match="make new ones"):
        other.reset()


SCRIPT = """
import os, sys, time
import numpy as np
from sb3_varshare.tasks import make_multitask_env
env = make_multitask_env("contextual", n_workers=2)  # no guard: workers do not run the script
env.reset()
print(*env.worker_pids, flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "raise KeyboardInterrupt", "time.sleep(60)"])
def test_no_worker_outlives_its_parent(end: str, tmp_path: Any) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(end=end))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = tuple(int(pid) for pid in process.stdout.readline().split())
    assert len(pids) == 2
    if "sleep" in end:
        process.terminate()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(pids) == []


def test_agents_train_and_are_evaluated_on_workers(make_env: MakeEnv) -> None:
    sizes = {"actor_width": 8, "critic_width": 8, "critic_depth": 1}
    options = {"batch_size": 10, "buffer_size": 1000, "learning_starts": 10, "seed": 0, "device": "cpu", **sizes}
    models = []
    for n_workers in (2, 0):
        env = make_env("contextual", n_workers=n_workers, seed=5, horizon=5)
        model = VarShareSAC("MultiTaskPolicy", env, **options)  # type: ignore[arg-type]
        model.learn(60)
        returns = evaluate_tasks(model, env, n_episodes=1).returns()
        models.append((model.policy.actor.state_dict(), {task: value.mean for task, value in returns.items()}))
        assert model.replay_buffer.check_valid() == (True, "")
    for key, value in models[0][0].items():
        np.testing.assert_array_equal(value.numpy(), models[1][0][key].numpy())
    assert models[0][1] == models[1][1]
    evaluation = make_env("contextual", horizon=5).evaluation_env()
    lengths = evaluate_policy(model, evaluation, n_eval_episodes=5, return_episode_rewards=True)[1]  # type: ignore[arg-type]
    evaluation.close()
    assert lengths == [5] * 5
