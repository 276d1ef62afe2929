"""
What runs in a worker process: some envs, driven through a pipe and shared arrays.

Free of torch and of Stable-Baselines3, so that a worker starts fast and stays small.
"""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import cloudpickle
import numpy as np

from sb3_varshare.tasks.env_group import EnvArrays, EnvGroup, EnvPlan, lay_out

# Steps whose time is taken, after some that fill caches, and s after which no further one is begun.
WARM_UP_STEPS, TIMED_STEPS = 2, 20
MEASURING_SECONDS = 0.5

# Kinds of answers: all went well, the caller's own call raised and the envs go on, the envs failed and this is the end.
DONE, RAISED, FAILED = "done", "raised", "failed"


def run_worker(connection: Connection, pickled_plan: bytes, buffer: Any, shape: tuple[int, int, int]) -> None:
    """
    Answer requests ``(number, command, arguments)`` by ``(number, kind, result)`` until told to close.

    :param connection: to the parent
    :param pickled_plan: an :class:`EnvPlan`, by cloudpickle
    :param buffer: shared memory
    :param shape: N, D + T and A, for :func:`lay_out`
    """
    # Ctrl-C is the parent's affair, which then closes us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        plan: EnvPlan = cloudpickle.loads(pickled_plan)
        connection.send((0, DONE, os.getpid()))
        _serve(connection, Shard(plan, lay_out(*shape, allocate=lambda _: buffer)[0]))
    except BaseException as error:  # whatever an env does, also sys.exit, is told to the parent
        try:
            connection.send((None, FAILED, (f"{type(error).__name__}: {error}", traceback.format_exc())))
        except OSError:
            pass  # nobody is left to be told


def step_cost(plan: EnvPlan, task_id: int, report: Callable[[], None]) -> float:
    """
    Time a task on an env of its own, which is thrown away: those that are played shall start untouched.

    :param plan: of all envs
    :param task_id: which task
    :param report: called after each step and each reset, each of which may take as long as the time-out
    :return: processor time of a step, s; that of others on a busy machine does not count
    """
    env = plan.make(0)
    env.reset(options={"task": task_id})
    report()
    actions = np.random.default_rng(0).uniform(-1, 1, (WARM_UP_STEPS + TIMED_STEPS, *(env.action_space.shape or ())))
    n_timed, start, deadline = 0, time.process_time(), time.monotonic() + MEASURING_SECONDS
    for i, action in enumerate(actions.astype(np.float32)):
        if i == WARM_UP_STEPS:
            n_timed, start = 0, time.process_time()
        _, _, terminated, truncated, _ = env.step(action)
        n_timed += 1
        report()
        if terminated or truncated:
            env.reset(options={"task": task_id})
            report()
        if time.monotonic() > deadline:
            break
    seconds = time.process_time() - start
    env.close()
    return seconds / n_timed


class Shard:
    """
    The envs of one worker, and what it can be asked for.

    :param plan: of all envs
    :param arrays: of all envs; those of this worker write their rows
    """

    def __init__(self, plan: EnvPlan, arrays: EnvArrays) -> None:
        self._plan, self._arrays = plan, arrays
        self._group = EnvGroup(plan, arrays, ())

    def answer(self, command: str, arguments: Any) -> tuple[str, Any]:
        """
        :param command: ``step``, ``reset``, ``call``, ``play``, ``measure`` or ``close``
        :param arguments: of the command
        :return: kind and result
        """
        if command == "step":
            return DONE, self._group.step()
        if command == "reset":
            return DONE, self._group.reset(*arguments)
        if command == "call":
            return _call(self._group, arguments)
        if command == "play":
            self._group = EnvGroup(self._plan, self._arrays, *arguments)
        elif command == "measure":
            task_id, rank = arguments
            return DONE, step_cost(self._plan, task_id, partial(np.add.at, self._arrays.n_calls, rank, 1))
        elif command == "close":
            self._group.close()
        return DONE, None


def _serve(connection: Connection, shard: Shard) -> None:
    while True:
        try:
            number, command, arguments = connection.recv()
        except (EOFError, OSError):
            command, arguments = "close", None
        kind, result = shard.answer(command, arguments)
        if command == "close":
            return
        connection.send((number, kind, result))


def _call(group: EnvGroup, pickled: bytes) -> tuple[str, bytes]:
    """A method of the group. What it raises is the caller's, and the envs go on; all in cloudpickle for lambdas."""
    try:
        method, *arguments = cloudpickle.loads(pickled)
        return DONE, cloudpickle.dumps(getattr(group, method)(*arguments))
    except Exception as error:
        note = f"In a worker process:\n{traceback.format_exc()}"
        error.add_note(note)
        try:
            pickled = cloudpickle.dumps(error)
            cloudpickle.loads(pickled)
        except Exception:  # it holds what cannot be pickled, or its class cannot be called with its `args`
            plain = RuntimeError(f"{type(error).__name__}: {error}")
            plain.add_note(note)
            pickled = cloudpickle.dumps(plain)
        return RAISED, pickled


def _end_with_parent() -> None:
    """A dead parent closes the pipe, but an env in an endless loop would never look at it."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
