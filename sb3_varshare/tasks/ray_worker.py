"""A worker as an actor of Ray, on this machine or another: the face of a worker process, without shared memory."""

import os
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cloudpickle

from sb3_varshare.tasks.env_group import RESETTING, STEPPING, EnvArrays, lay_out
from sb3_varshare.tasks.ray_cluster import connect
from sb3_varshare.tasks.worker import DONE, FAILED, Shard
from sb3_varshare.tasks.worker_process import WorkerFailure

# What a step or reset changes in the rows of a worker; the actions go the other way.
RESULTS = ("observations", "final_observations", "rewards", "dones", "n_calls", "phases")
PROGRESS = ("n_calls", "phases")
# A machine that has vanished is believed to be there for some seconds, in which an actor may be placed on it.
PLACEMENTS = 3


class Actor:
    """
    What runs in the other process.

    :param pickled_plan: an :class:`~sb3_varshare.tasks.env_group.EnvPlan`, by cloudpickle
    :param shape: N, D + T and A
    """

    def __init__(self, pickled_plan: bytes, shape: tuple[int, int, int]) -> None:
        self._arrays, _ = lay_out(*shape)
        self._shard = Shard(cloudpickle.loads(pickled_plan), self._arrays)

    def pid(self) -> int:
        """Its process id."""
        return os.getpid()

    def answer(self, command: str, arguments: Any, ranks: Sequence[int], actions: Any) -> tuple[str, Any, Any]:
        """
        :param command: see :class:`~sb3_varshare.tasks.worker.Shard`
        :param arguments: of the command, by cloudpickle
        :param ranks: of its envs
        :param actions: of these, None but for a step
        :return: kind, result by cloudpickle, and the rows of its envs
        """
        if actions is not None:
            self._arrays.actions[ranks] = actions
        try:
            kind, result = self._shard.answer(command, cloudpickle.loads(arguments))
        except BaseException as error:  # whatever an env does, also sys.exit, is told to who asked
            kind, result = FAILED, (f"{type(error).__name__}: {error}", traceback.format_exc())
        # Ray's own way would give arrays in the infos that cannot be written to.
        return kind, cloudpickle.dumps(result), self._rows(RESULTS, ranks)

    def progress(self, ranks: Sequence[int]) -> dict[str, Any]:
        """
        What of its envs may be seen while they step.

        :param ranks: of its envs
        """
        return self._rows(PROGRESS, ranks)

    def _rows(self, names: Sequence[str], ranks: Sequence[int]) -> dict[str, Any]:
        return {name: getattr(self._arrays, name)[ranks] for name in names}


class RayWorker:
    """
    The face of :class:`~sb3_varshare.tasks.worker_process.WorkerProcess`. A lost actor is not restarted by Ray, which
    would know neither its envs nor their streams, but by the pool.

    :param pickled_plan: of all envs, by cloudpickle
    :param arrays: of all envs, here
    :param shape: N, D + T and A
    """

    def __init__(self, pickled_plan: bytes, arrays: EnvArrays, shape: tuple[int, int, int]) -> None:
        self._ray, self._arrays = connect(), arrays
        self._ranks: list[int] = []
        self.pid = 0
        # One core each, on as many machines as there are; a thread of its own tells whether the envs get on.
        make = self._ray.remote(num_cpus=1, scheduling_strategy="SPREAD", concurrency_groups={"watch": 1})
        self._make = partial(make(Actor).remote, pickled_plan, shape)
        self._placements = 0
        self._is_told = False
        self._launch()

    def _launch(self) -> None:
        self._placements += 1
        self._actor = self._make()
        self._reply = self._actor.pid.remote()

    def ask(self, command: str, arguments: Any = None) -> None:
        """
        Send a request, without waiting.

        :param command: see :class:`~sb3_varshare.tasks.worker.Shard`
        :param arguments: of the command
        """
        if self._actor is None:
            return
        if command == "play":
            self._ranks = list(arguments[0])
        elif command == "measure":
            self._ranks = [arguments[1]]
        elif command in ("step", "reset"):
            # If it is lost, nobody will know at which of its envs it was.
            self._arrays.phases[self._ranks] = STEPPING if command == "step" else RESETTING
        actions = self._arrays.actions[self._ranks] if command == "step" else None
        self._reply = self._actor.answer.remote(command, cloudpickle.dumps(arguments), self._ranks, actions)

    def answer(self, timeout: float, progress: Callable[[], int] = lambda: 0) -> tuple[str, Any]:
        """
        Wait for the answer to the last request.

        :param timeout: s without progress
        :param progress: a number that grows while the worker gets on
        :return: kind and result
        :raises WorkerFailure: if the worker failed, was lost or did not get on
        """
        if self._actor is None:
            raise WorkerFailure("was ended after an earlier failure")
        watch: Any = None
        seen, deadline = progress(), time.monotonic() + timeout
        while not self._is_done(self._reply, max(0.0, min(timeout / 10, deadline - time.monotonic()))) or self._moved():
            if watch is None and self._ranks:
                watch = self._actor.progress.options(concurrency_group="watch").remote(self._ranks)
            elif watch is not None and self._is_done(watch):
                self._take(watch)
                watch = None
            if progress() != seen:
                seen, deadline = progress(), time.monotonic() + timeout
            elif time.monotonic() >= deadline:
                hint = "" if self.pid else " (has the Ray cluster a free core for it?)"
                raise WorkerFailure(f"did not come back within {timeout:g} s{hint}")
        return self._receive()

    def tell_to_close(self) -> None:
        """Ask for an orderly end without waiting for it; :meth:`end` follows."""
        self._is_told = self._actor is not None
        self.ask("close")

    def end(self, patience: float = 0.0) -> None:
        """
        Be rid of the actor, whatever it does.

        :param patience: s for an end of its own accord
        """
        if self._actor is None:
            return
        actor, self._actor = self._actor, None
        if self._ray.is_initialized():
            if patience and self._is_told:
                self._is_done(self._reply, patience)
            self._ray.kill(actor)

    def _moved(self) -> bool:
        """Whether the actor was lost before it came into being, and now is to begin somewhere else."""
        if self.pid or self._placements == PLACEMENTS:
            return False
        try:
            self._ray.get(self._reply)
        except self._ray.exceptions.ActorDiedError as error:
            if error.actor_init_failed:
                return False
            self._launch()
            return True
        except self._ray.exceptions.RayError:
            pass  # _receive will say so too
        return False

    def _is_done(self, reply: Any, timeout: float = 0.0) -> bool:
        return bool(self._ray.wait([reply], timeout=timeout)[0])

    def _take(self, watch: Any) -> None:
        try:
            self._fill(self._ray.get(watch))
        except self._ray.exceptions.RayError:
            pass  # the reply will say so too

    def _fill(self, rows: dict[str, Any]) -> None:
        for name, values in rows.items():
            getattr(self._arrays, name)[self._ranks] = values

    def _receive(self) -> tuple[str, Any]:
        try:
            answer = self._ray.get(self._reply)
        except self._ray.exceptions.RayError as error:
            raise WorkerFailure(f"was lost ({type(error).__name__})", str(error)) from None
        if isinstance(answer, int):
            self.pid = answer
            return DONE, answer
        kind, pickled, rows = answer
        self._fill(rows)
        result = cloudpickle.loads(pickled)
        if kind == FAILED:
            raise WorkerFailure(f"raised {result[0]}", result[1])
        return kind, result
