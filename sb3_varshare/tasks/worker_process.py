"""The parent's hold on one worker process: start it, ask it, wait for it no longer than agreed, end it."""

import multiprocessing as mp
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection as mp_connection
from multiprocessing import spawn
from multiprocessing.reduction import ForkingPickler
from typing import Any

from sb3_varshare.tasks.worker import FAILED, run_worker

# How long a worker that was told to close may take; then it is terminated, and if that does not help, killed.
CLOSING_SECONDS = 5.0
TERMINATING_SECONDS = 1.0
# Bytes; a pipe takes many times as much before anybody reads.
SMALL_MESSAGE = 4096

_start_lock = threading.Lock()


class WorkerFailure(Exception):
    """
    One worker is of no further use. Kept within the pool of workers, which knows tasks and turns it into an error.

    :param reason: what happened, as the end of a sentence that begins with the worker
    :param details: the worker's own traceback
    """

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.reason, self.details = reason, details


class WorkerProcess:
    """
    One process that runs :func:`~sb3_varshare.tasks.worker.run_worker`.

    :param start_method: ``forkserver`` or ``spawn``
    :param name: of the process
    :param arguments: of ``run_worker`` behind the connection
    """

    def __init__(self, start_method: str, name: str, arguments: tuple[Any, ...]) -> None:
        context: Any = mp.get_context(start_method)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run_worker, args=(theirs, *arguments), name=name, daemon=True)
        self._number = 0
        self._sender: threading.Thread | None = None
        self._is_told = False
        with _without_main():
            self._process.start()
        theirs.close()
        self.pid: int = self._process.pid

    def ask(self, command: str, arguments: Any = None) -> None:
        """
        Send a request, without waiting. A worker that is gone or does not read is noticed by :meth:`answer`.

        :param command: see :mod:`~sb3_varshare.tasks.worker`
        :param arguments: of the command
        """
        self._number += 1
        message = bytes(ForkingPickler.dumps((self._number, command, arguments)))
        if len(message) <= SMALL_MESSAGE and not self._is_sending():
            self._send(message)
        else:
            # A worker that does not read would hold us as soon as the pipe is full.
            self._sender = threading.Thread(target=self._send, args=(message, self._sender), daemon=True)
            self._sender.start()

    def answer(self, timeout: float, progress: Callable[[], int] = lambda: 0) -> tuple[str, Any]:
        """
        Wait for the answer to the last request; late answers to earlier ones are thrown away.

        :param timeout: s without progress
        :param progress: a number that grows while the worker gets on
        :return: kind and result
        :raises WorkerFailure: if the worker failed, ended or did not get on
        """
        if self._connection.closed:
            raise WorkerFailure("was ended after an earlier failure")
        seen, deadline = progress(), time.monotonic() + timeout
        while True:
            patience = max(0.0, min(timeout / 10, deadline - time.monotonic()))
            ready = mp_connection.wait([self._connection, self._process.sentinel], patience)
            if self._connection in ready:
                number, kind, result = self._receive()
                if number == self._number:
                    return kind, result
            elif ready:
                raise self._ended()
            elif progress() != seen:
                seen, deadline = progress(), time.monotonic() + timeout
            elif time.monotonic() >= deadline:
                raise WorkerFailure(f"did not come back within {timeout:g} s")

    def tell_to_close(self) -> None:
        """Ask for an orderly end without waiting for it; :meth:`end` follows."""
        # Who has not read the last request would not read this one.
        self._is_told = not self._is_sending()
        if self._is_told:
            self.ask("close")

    def end(self, patience: float = 0.0) -> None:
        """
        Be rid of the process, whatever it does.

        :param patience: s for an end of its own accord
        """
        if patience and self._is_told:
            self._process.join(patience)
            if self._process.is_alive():
                self._process.terminate()
                self._process.join(TERMINATING_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(CLOSING_SECONDS)
        if self._sender is not None and self._is_sending():
            self._sender.join(TERMINATING_SECONDS)  # nobody is left to read
        self._connection.close()

    def _is_sending(self) -> bool:
        return self._sender is not None and self._sender.is_alive()

    def _send(self, message: bytes, before: threading.Thread | None = None) -> None:
        # An interruption may have come between its making and its start.
        if before is not None and before.is_alive():
            before.join()
        with suppress(OSError):
            self._connection.send_bytes(message)

    def _receive(self) -> tuple[int | None, str, Any]:
        try:
            number, kind, result = self._connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if kind == FAILED:
            summary, details = result
            raise WorkerFailure(f"raised {summary}", details)
        return number, kind, result

    def _ended(self) -> WorkerFailure:
        self._process.join(TERMINATING_SECONDS)
        code = self._process.exitcode
        if code is None:
            return WorkerFailure("closed its connection without a word")
        if code < 0:
            names = {known.value: known.name for known in signal.Signals}
            return WorkerFailure(f"was ended by {names.get(-code, f'signal {-code}')}")
        return WorkerFailure(f"exited with code {code}")


@contextmanager
def _without_main() -> Iterator[None]:
    """
    Start processes that do not run the user's script once more, as the standard library does in each.

    The script imports torch, and would need a guard. What is defined in it travels by value in cloudpickle's pickle.
    """
    with _start_lock:
        prepare = spawn.get_preparation_data
        spawn.get_preparation_data = lambda name: {
            key: value for key, value in prepare(name).items() if not key.startswith("init_main")
        }
        try:
            yield
        finally:
            spawn.get_preparation_data = prepare
