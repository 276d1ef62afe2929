"""
How fast environments are collected from, how soon they start and what they take.

Three contenders step the same tasks: the raw simulators one after the other in one process, SB3's ``SubprocVecEnv``
in its usual use (one process for each environment), and worker processes of this package. Each lives in a process of
its own that has imported what a training script imports; they are stepped in turns, so that all meet the same machine.
With ``--faults`` it shows instead what either does when one of ten environments fails.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_varshare.tasks import MultiTaskEnv, TaskSpec, TaskSuite, make_multitask_env, make_suite

CONTENDERS = ("raw", "subproc", "workers")
KINDS, PLACES = ("raise", "exit", "kill", "hang"), ("step", "reset")
GIB = 2**30


@dataclass
class Args:
    """What to measure."""

    suite: str = "MT10"
    """suite that all contenders step"""
    large_suite: str = "MT50"
    """suite that only the workers step; empty to leave it out"""
    n_workers: int = 2
    """processes of this package"""
    ray: bool = False
    """let workers as actors of Ray take part, as many"""
    steps: int = 1000
    """steps of all environments in a repeat"""
    repeats: int = 5
    """repeats of each contender, in turns"""
    faults: bool = False
    """show what happens to failures instead"""
    worker_timeout: float = 10.0
    """seconds without an answer that count as a failure, with --faults"""
    watchdog: float = 60.0
    """seconds after which a contender that hangs is killed, with --faults"""
    json: bool = False
    """print one JSON object instead of a table"""
    contender: str = ""
    """used by the script itself: be this contender and read commands"""


class Faulty(gym.Wrapper):
    """
    Fails at its 40th step or 3rd reset.

    :param env: a sound one
    :param kind: of ``KINDS``
    :param place: of ``PLACES``
    """

    def __init__(self, env: gym.Env, kind: str, place: str) -> None:
        super().__init__(env)
        self.kind, self.place, self.left = kind, place, {"step": 40, "reset": 3}

    def step(self, action: Any) -> Any:
        self._count("step")
        return self.env.step(action)

    def reset(self, **kwargs: Any) -> Any:
        self._count("reset")
        return self.env.reset(**kwargs)

    def _count(self, place: str) -> None:
        self.left[place] -= 1
        if place != self.place or self.left[place]:
            return
        if self.kind == "raise":
            raise ArithmeticError("the simulator is unstable")
        if self.kind == "exit":
            os._exit(7)
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            pass


def make_faulty(task: TaskSpec, kind: str, place: str, stream: np.random.SeedSequence) -> gym.Env:
    """
    A maker of tasks.

    :param task: a sound one
    :param kind: of ``KINDS``
    :param place: of ``PLACES``
    :param stream: of the task
    """
    return Faulty(task.make(stream), kind, place)


def faulty_suite(kind: str, place: str) -> TaskSuite:
    """
    Ten pendulums, the fourth of which fails.

    :param kind: of ``KINDS``
    :param place: of ``PLACES``
    """
    task = make_suite("contextual", horizon=15).tasks[0]

    def fields(i: int) -> dict[str, Any]:
        make = partial(make_faulty, task, kind, place) if i == 3 else task.make
        return {**vars(task), "name": f"task-{i}", "make": make}

    return TaskSuite("faulty", tuple(TaskSpec(**fields(i)) for i in range(10)))


def make_env(suite: TaskSuite, task: int) -> gym.Env:
    """
    One environment of one task, as a user of ``SubprocVecEnv`` makes it.

    :param suite: the tasks
    :param task: id
    """
    return Monitor(MultiTaskEnv(suite, rank=task, tasks=[task]))


def make_contender(name: str, suite: TaskSuite, args: Args) -> VecEnv:
    """
    Environments, one per task.

    :param name: ``subproc``, ``workers`` or ``ray``
    :param suite: the tasks
    :param args: number of workers and their time-out
    """
    if name == "subproc":
        return SubprocVecEnv([partial(make_env, suite, task) for task in range(suite.n_tasks)])
    timeout = args.worker_timeout if args.faults else 300.0
    method = "ray" if name == "ray" else None
    return make_multitask_env(suite, n_workers=args.n_workers, worker_timeout=timeout, start_method=method)


def raw_stepper(suite: TaskSuite) -> Callable[[int], None]:
    """
    Steps the bare environments of all tasks, without vectorisation, statistics or one-hot.

    :param suite: the tasks
    """
    streams = np.random.SeedSequence(0).spawn(suite.n_tasks)
    envs = [task.make(stream) for task, stream in zip(suite.tasks, streams, strict=True)]
    for env in envs:
        env.action_space.seed(0)
        env.reset()
    played = np.zeros(suite.n_tasks, dtype=int)

    def step(n_steps: int) -> None:
        for _ in range(n_steps):
            for i, env in enumerate(envs):
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                played[i] += 1
                if terminated or truncated or played[i] == suite.tasks[i].horizon:
                    env.reset()
                    played[i] = 0

    return step


def vec_stepper(env: VecEnv) -> Callable[[int], None]:
    """
    Steps a vectorised environment with random actions.

    :param env: reset here
    """
    env.reset()
    generator = np.random.default_rng(0)

    def step(n_steps: int) -> None:
        for _ in range(n_steps):
            env.step(generator.uniform(-1, 1, (env.num_envs, *(env.action_space.shape or ()))).astype(np.float32))

    return step


def memory_of_children() -> float:
    """Proportional set size of all processes that this one started, in GiB: shared pages are counted once."""
    return sum(child.memory_full_info().pss for child in psutil.Process().children(recursive=True)) / GIB


def serve(args: Args) -> None:
    """
    Be one contender: start, report, then step as often as a line of the standard input says.

    :param args: which contender, and of what
    """
    suite = make_suite(args.suite)
    start = time.perf_counter()
    step = raw_stepper(suite) if args.contender == "raw" else vec_stepper(make_contender(args.contender, suite, args))
    seconds = time.perf_counter() - start
    memory = psutil.Process().memory_full_info().pss / GIB if args.contender == "raw" else memory_of_children()
    print(json.dumps({"start_s": seconds, "memory_gib": memory}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        step(int(line))
        print(json.dumps(int(line) * suite.n_tasks / (time.perf_counter() - start)), flush=True)
    # The parent has heard what it wanted; SB3's envs would take their time.
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(0)


class Contender:
    """
    A contender in its process.

    :param name: of ``CONTENDERS``
    :param suite: name of a suite
    :param args: number of workers
    """

    def __init__(self, name: str, suite: str, args: Args) -> None:
        flags = ["--contender", name, "--suite", suite, "--n-workers", str(args.n_workers)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.result: dict[str, Any] = {"contender": name, "suite": suite, **self._read(), "steps_per_s": []}

    def step(self, n_steps: int) -> None:
        """
        Step and note the rate.

        :param n_steps: of all environments
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{n_steps}\n")
        self._process.stdin.flush()
        self.result["steps_per_s"].append(self._read())

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def measure(args: Args) -> list[dict[str, Any]]:
    """
    Start all, then step them in turns.

    :param args: what to measure
    """
    results = []
    for suite, names in ((args.suite, (*CONTENDERS, *["ray"] * args.ray)), (args.large_suite, ("workers",))):
        if not suite:
            continue
        contenders = [Contender(name, suite, args) for name in names]
        for _ in range(args.repeats):
            for contender in contenders:
                contender.step(args.steps)
        for contender in contenders:
            contender.close()
            rates = contender.result["steps_per_s"]
            results.append({**contender.result, "median_steps_per_s": float(np.median(rates))})
    return results


def fail(args: Args) -> None:
    """
    Step an environment that fails, and tell how that ends: one JSON line each for the failure and for the close.

    :param args: the contender as ``name/kind/place``
    """
    name, kind, place = args.contender.split("/")
    env = make_contender(name, faulty_suite(kind, place), args)
    env.reset()
    print(json.dumps("started"), flush=True)
    start = time.perf_counter()
    try:
        for _ in range(100):
            env.step(np.zeros((10, 1), dtype=np.float32))
    except Exception as error:
        message = (str(error).splitlines() or ["(no message)"])[0]
        print(json.dumps(f"{time.perf_counter() - start:.1f} s: {type(error).__name__}: {message}"), flush=True)
    start = time.perf_counter()
    env.close()
    print(json.dumps(f"{time.perf_counter() - start:.1f} s"), flush=True)


def watch(name: str, kind: str, place: str, args: Args) -> dict[str, str]:
    """
    Run :func:`fail` in a process that is killed with all its children if it hangs.

    :param name: ``subproc`` or ``workers``
    :param kind: of ``KINDS``
    :param place: of ``PLACES``
    :param args: time-outs
    """
    flags = ["--faults", "--contender", f"{name}/{kind}/{place}", "--worker-timeout", str(args.worker_timeout)]
    command = [sys.executable, __file__, *flags, "--n-workers", str(args.n_workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        output, _ = process.communicate(timeout=args.watchdog)
    except subprocess.TimeoutExpired:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        output, _ = process.communicate()
    _, failure, close, *_ = [*map(json.loads, output.splitlines()), *["hangs, killed"] * 3]
    return {"contender": name, "fault": f"{kind} in {place}", "failure": failure, "close": close}


def main(args: Args) -> None:
    """
    Measure and print.

    :param args: what to measure
    """
    if args.contender:
        return fail(args) if args.faults else serve(args)
    if args.faults:
        results = [watch(name, kind, place, args) for kind in KINDS for place in PLACES for name in CONTENDERS[1:]]
    else:
        results = measure(args)
    if args.json:
        return print(json.dumps(results))
    table = Table(title="One of ten environments fails" if args.faults else f"{os.cpu_count()} cores")
    for name in results[0]:
        table.add_column(name)
    for result in results:
        table.add_row(*(_text(value) for value in result.values()))
    Console().print(table)
    return None


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{number:.0f}" for number in value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main(tyro.cli(Args))
