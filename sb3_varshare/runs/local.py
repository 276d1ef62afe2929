"""Units in processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from sb3_varshare.runs.unit import Result, Unit, attempt
from sb3_varshare.tuning.progress import FAILURE

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_locally(
    units: Sequence[Unit], processes: int, begin: Callable[[Unit], None], record: Callable[[Unit, Result], None]
) -> None:
    """
    Run units, each in a process of its own: one that is killed takes no other with it, and none inherits anything.

    :param units: to be run
    :param processes: at a time
    :param begin: told of every unit that starts
    :param record: gets every unit that has ended
    """
    context = multiprocessing.get_context("spawn")
    waiting, running = deque(units), dict[Connection, tuple[Unit, BaseProcess]]()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                unit = waiting.popleft()
                ours, theirs = context.Pipe(duplex=False)
                process: BaseProcess = context.Process(target=_work, args=(unit, theirs), daemon=True)
                begin(unit)
                with _threads(unit.threads):
                    process.start()
                # Else this process would hold the pipe open when the other one has ended.
                theirs.close()
                running[ours] = unit, process
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                unit, process = running.pop(connection)
                record(unit, _receive(connection, process))
    finally:
        for _, process in running.values():
            process.kill()


def _receive(connection: Connection, process: BaseProcess) -> Result:
    with connection:
        try:
            result: Result = connection.recv()
        except (EOFError, OSError):
            # The latter where it was killed while it sent.
            result = {}
    process.join()
    return result or {FAILURE: f"Its process ended with exit code {process.exitcode}, without a result."}


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """A process reads these when it imports numpy and torch."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(number)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(unit: Unit, connection: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        # It would go on for ever where that is killed.
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    connection.send(attempt(unit))
