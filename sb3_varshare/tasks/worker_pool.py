"""The envs of a suite in supervised worker processes: none can hang or vanish without a word."""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from typing import Any, NoReturn

import cloudpickle
import numpy as np
import numpy.typing as npt

from sb3_varshare.tasks.encoding import split_task
from sb3_varshare.tasks.env_group import IDLE, RESETTING, EnvPlan, lay_out
from sb3_varshare.tasks.layout import balance
from sb3_varshare.tasks.ray_worker import RayWorker
from sb3_varshare.tasks.worker import RAISED
from sb3_varshare.tasks.worker_options import RAY, WorkerError, WorkerOptions
from sb3_varshare.tasks.worker_process import CLOSING_SECONDS, WorkerFailure, WorkerProcess

# Restarts of a worker without a whole step of all its envs in between; one more is an error.
MAX_RESTARTS_IN_A_ROW = 3


@dataclass
class _Worker:
    number: int
    process: WorkerProcess | RayWorker
    ranks: tuple[int, ...]
    incarnation: int = 0
    restarts_in_a_row: int = 0


class WorkerPool:
    """
    The same face as :class:`~sb3_varshare.tasks.env_group.EnvGroup`, with the envs in other processes.

    Processes start at the first use. Each env belongs to one worker; which one is decided at the start, by measuring
    a few steps of every task, so that all workers take equally long. What an env does does not depend on its worker.

    :param plan: of all envs
    :param shape: N, D + T and A
    :param options: how to run them
    """

    def __init__(self, plan: EnvPlan, shape: tuple[int, int, int], options: WorkerOptions) -> None:
        self._plan, self._shape, self._options = plan, shape, options
        self._pickled_plan = cloudpickle.dumps(plan)
        self.n_workers = options.count(shape[0])
        self.arrays, self._buffer = lay_out(*shape, allocate=lambda size: RawArray("B", size))
        self.restarts = np.zeros(shape[0], dtype=np.int64)
        self._last = self.arrays.observations.copy()
        self._workers: list[_Worker] = []
        self._stepping = self._closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers; none before the first use and after the end."""
        return tuple(worker.process.pid for worker in self._workers)

    @property
    def worker_ranks(self) -> tuple[tuple[int, ...], ...]:
        """Ranks of the envs of each worker."""
        return tuple(worker.ranks for worker in self._workers)

    def reset(self, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """
        Start new episodes everywhere; a step that was not waited for is forgotten.

        :param seeds: (N,) new roots of the random streams, None to go on along the present ones
        :param options: (N,) for the envs' resets
        :return: the resets' infos by rank
        :raises WorkerError: if a worker failed and is not to be restarted, or was too often
        """
        self._start()
        self._stepping = False
        if seeds[0] is not None:
            # Workers that are started from here on must know the present root.
            self._plan = dataclasses.replace(self._plan, seed=seeds[0])
            self._pickled_plan = cloudpickle.dumps(self._plan)
        for worker in self._workers:
            worker.process.ask("reset", (seeds, options))
        infos: dict[int, dict[str, Any]] = {}
        for worker in self._workers:
            try:
                infos.update(self._answer(worker))
            except WorkerFailure as failure:
                infos.update(self._revive(worker, failure, options))
        np.copyto(self._last, self.arrays.observations)
        return infos

    def step_async(self, actions: npt.ArrayLike) -> None:
        """
        Let all workers step.

        :param actions: (N, A)
        :raises RuntimeError: if a step was begun and not waited for
        """
        self._refuse_open_step()
        self._start()
        self.arrays.actions[:] = actions
        self._stepping = True
        for worker in self._workers:
            worker.process.ask("step")

    def step(self) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
        """
        Wait for the step. The open episodes of a restarted worker end here, truncated at their last observation.

        :return: infos by rank, and by rank the infos of resets where an episode ended
        :raises RuntimeError: if no step was begun
        :raises WorkerError: if a worker failed and is not to be restarted, or was too often
        """
        if not self._stepping:
            raise RuntimeError("No step was begun; call step_async() first.")
        infos: dict[int, dict[str, Any]] = {}
        reset_infos: dict[int, dict[str, Any]] = {}
        for worker in self._workers:
            try:
                own_infos, own_reset_infos = self._answer(worker)
                worker.restarts_in_a_row = 0
            except WorkerFailure as failure:
                own_reset_infos = self._revive(worker, failure, [{}] * self._shape[0])
                own_infos = self._cut_episodes(worker)
            infos.update(own_infos)
            reset_infos.update(own_reset_infos)
        self._stepping = False
        np.copyto(self._last, self.arrays.observations)
        return infos, reset_infos

    def get_attr(self, ranks: Sequence[int], name: str) -> list[Any]:
        """See :meth:`EnvGroup.get_attr <sb3_varshare.tasks.env_group.EnvGroup.get_attr>`."""
        return self._call(ranks, "get_attr", name)

    def set_attr(self, ranks: Sequence[int], name: str, value: Any) -> list[None]:
        """See :meth:`EnvGroup.set_attr <sb3_varshare.tasks.env_group.EnvGroup.set_attr>`."""
        return self._call(ranks, "set_attr", name, value)

    def env_method(self, ranks: Sequence[int], name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """See :meth:`EnvGroup.env_method <sb3_varshare.tasks.env_group.EnvGroup.env_method>`."""
        return self._call(ranks, "env_method", name, args, kwargs)

    def close(self) -> None:
        """End all workers, whatever they are doing; takes some seconds at most."""
        self._closed = True
        self._end_all(CLOSING_SECONDS)

    # Start and end

    def _start(self) -> None:
        if self._closed:
            raise RuntimeError("These envs were closed, by close() or by a WorkerError; make new ones.")
        if self._workers:
            return
        n_envs = self._shape[0]
        try:
            for number in range(self.n_workers):
                ranks = tuple(range(number, n_envs, self.n_workers))
                self._workers.append(_Worker(number, self._launch(number), ranks))
            for worker in self._workers:
                with self._failure_is_final(worker):
                    self._await_start(worker)
            for worker, ranks in zip(self._workers, balance(self._costs(), self.n_workers), strict=True):
                worker.ranks = ranks
                with self._failure_is_final(worker):
                    self._play(worker)
        except BaseException:
            # Unless it was a worker's failure, an interruption say, the start may be repeated.
            self._end_all()
            raise

    def _launch(self, number: int) -> WorkerProcess | RayWorker:
        if self._options.start_method == RAY:
            return RayWorker(self._pickled_plan, self.arrays, self._shape)
        arguments = (self._pickled_plan, self._buffer, self._shape)
        return WorkerProcess(self._options.method(), f"envs-{number}", arguments)

    def _await_start(self, worker: _Worker) -> None:
        worker.process.answer(self._options.start_timeout)

    def _relaunch(self, worker: _Worker) -> None:
        worker.process.end()
        self.arrays.phases[list(worker.ranks)] = IDLE
        worker.process = self._launch(worker.number)
        self._await_start(worker)

    def _play(self, worker: _Worker) -> None:
        worker.process.ask("play", (worker.ranks, worker.incarnation))
        self._answer(worker)

    def _end_all(self, patience: float = 0.0) -> None:
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.process.tell_to_close()
        for worker in workers:
            worker.process.end(patience)

    def _costs(self) -> list[float]:
        """(N,) s of a step of each env; all alike where there is nothing to choose."""
        n_envs, tasks = self._shape[0], sorted({task for cycle in self._plan.layout for task in cycle})
        if self.n_workers in (1, n_envs) or len(tasks) == 1:
            return [1.0] * n_envs
        costs: dict[int, float] = {}
        for first in range(0, len(tasks), self.n_workers):
            asked = list(zip(self._workers, tasks[first : first + self.n_workers], strict=False))
            for worker, task in asked:
                # The rank is one of its own at this time: its count of calls tells us that it gets on.
                worker.process.ask("measure", (task, worker.ranks[0]))
            for worker, task in asked:
                try:
                    costs[task] = self._answer(worker)
                except WorkerFailure as failure:
                    name = self._plan.suite.task_names[task]
                    error = self._error(worker, failure, f"in the first steps of task {name!r}", (), (name,))
                    self._give_up_or_warn(error)
                    with self._failure_is_final(worker):
                        self._relaunch(worker)
        mean = sum(costs.values()) / max(1, len(costs))
        return [float(np.mean([costs.get(task, mean) for task in cycle])) for cycle in self._plan.layout]

    # Answers and failures

    def _answer(self, worker: _Worker) -> Any:
        ranks = list(worker.ranks)
        return worker.process.answer(self._options.timeout, lambda: int(self.arrays.n_calls[ranks].sum()))[1]

    def _call(self, ranks: Sequence[int], *request: Any) -> list[Any]:
        self._refuse_open_step()
        self._start()
        answers: dict[int, Any] = {}
        raised: Exception | None = None
        asked = [(worker, [rank for rank in worker.ranks if rank in ranks]) for worker in self._workers]
        asked = [(worker, own) for worker, own in asked if own]
        method, *arguments = request
        for worker, own in asked:
            worker.process.ask("call", cloudpickle.dumps((method, own, *arguments)))
        for worker, own in asked:
            try:
                kind, pickled = worker.process.answer(self._options.timeout)
            except WorkerFailure as failure:
                error = self._error(worker, failure, f"in {' '.join(map(str, request[:2]))}")
                if self._options.on_failure == "raise":
                    self._give_up(error)
                # Its episodes end, and it is restarted, in the next step.
                worker.process.end()
                raise error from None
            if kind == RAISED:
                raised = raised or cloudpickle.loads(pickled)
            else:
                answers.update(zip(own, cloudpickle.loads(pickled), strict=True))
        if raised is not None:
            raise raised
        return [answers[rank] for rank in ranks]

    def _refuse_open_step(self) -> None:
        if self._stepping:
            raise RuntimeError("A step was begun and not waited for; call step_wait() first.")

    def _revive(
        self, worker: _Worker, failure: WorkerFailure, options: Sequence[dict[str, Any]]
    ) -> dict[int, dict[str, Any]]:
        """Restart until new episodes have begun, on streams that were not played before; or give up."""
        while True:
            error = self._error(worker, failure)
            if worker.restarts_in_a_row == MAX_RESTARTS_IN_A_ROW:
                error.add_note(f"It was restarted {MAX_RESTARTS_IN_A_ROW} times without a step in between.")
                self._give_up(error)
            self._give_up_or_warn(error)
            worker.restarts_in_a_row += 1
            worker.incarnation += 1
            self.restarts[list(worker.ranks)] += 1
            try:
                self._relaunch(worker)
                self._play(worker)
                worker.process.ask("reset", ([None] * self._shape[0], options))
                infos: dict[int, dict[str, Any]] = self._answer(worker)
                return infos
            except WorkerFailure as again:
                failure = again

    def _cut_episodes(self, worker: _Worker) -> dict[int, dict[str, Any]]:
        """
        End the open episodes where they were seen last. Nobody knows what the step did: no reward, the same state.

        ``worker_restarted`` tells a replay that the transition was not played.
        """
        tasks, infos = split_task(self._last, self._plan.suite.n_tasks)[1], {}
        for rank in worker.ranks:
            self.arrays.rewards[rank], self.arrays.dones[rank] = 0.0, True
            self.arrays.final_observations[rank] = self._last[rank]
            task = int(tasks[rank])
            infos[rank] = {
                "task": self._plan.suite.task_names[task],
                "task_id": task,
                "TimeLimit.truncated": True,
                "worker_restarted": True,
            }
        return infos

    @contextmanager
    def _failure_is_final(self, worker: _Worker) -> Iterator[None]:
        """What a process cannot do at its start, another one could not do either."""
        try:
            yield
        except WorkerFailure as failure:
            self._give_up(self._error(worker, failure, "at its start"))

    def _give_up(self, error: WorkerError) -> NoReturn:
        self._closed = True
        self._end_all()
        raise error from None

    def _give_up_or_warn(self, error: WorkerError) -> None:
        if self._options.on_failure == "raise":
            self._give_up(error)
        warnings.warn(f"{error}\nThe worker is restarted.", RuntimeWarning, stacklevel=2)

    def _error(
        self,
        worker: _Worker,
        failure: WorkerFailure,
        when: str | None = None,
        ranks: tuple[int, ...] | None = None,
        tasks: tuple[str, ...] | None = None,
    ) -> WorkerError:
        """What happened to whom; where it is not given, the phases tell which env the worker was at."""
        if ranks is None:
            at_fault = tuple(rank for rank in worker.ranks if self.arrays.phases[rank] != IDLE)
            ranks = worker.ranks if when or not at_fault else at_fault
        tasks = tuple(self._tasks_of(rank) for rank in ranks) if tasks is None else tasks
        if when is None:
            resetting = any(self.arrays.phases[rank] == RESETTING for rank in ranks)
            idle = all(self.arrays.phases[rank] == IDLE for rank in ranks)
            when = "while idle" if idle else "in reset" if resetting else "in step"
        of_whom = ", ".join(f"env {rank} ({task})" for rank, task in zip(ranks, tasks, strict=False))
        message = f"Worker {worker.number} (process {worker.process.pid}) {failure.reason}, {when}"
        message += f" of {of_whom}." if of_whom else "."
        if failure.details:
            message += f"\n\nTraceback of the worker:\n{failure.details}"
        return WorkerError(message, ranks, tasks)

    def _tasks_of(self, rank: int) -> str:
        """The task an env was playing; in a reset of one that plays several it may be any of them."""
        names = self._plan.suite.task_names
        if self.arrays.phases[rank] == RESETTING or not self._last[rank].any():
            return " or ".join(dict.fromkeys(names[task] for task in self._plan.layout[rank]))
        return names[int(split_task(self._last[rank], len(names))[1])]
