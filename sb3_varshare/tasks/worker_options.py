"""How worker processes are run, and the error that ends a run."""

import os
from dataclasses import dataclass
from multiprocessing import get_all_start_methods
from typing import Literal, get_args

from sb3_varshare.tasks.ray_cluster import count_cpus

RAY = "ray"
OnFailure = Literal["raise", "restart"]


class WorkerError(RuntimeError):
    """
    A worker process failed: which tasks it was about, what happened, and the worker's own traceback.

    :param message: all of it, to be read
    :param ranks: of the envs that were being stepped or reset, or of all envs of the worker where none was
    :param tasks: names of the tasks of these envs
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = (), tasks: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.ranks, self.tasks = ranks, tasks


@dataclass(frozen=True)
class WorkerOptions:
    """
    How worker processes are run.

    :param n_workers: number of processes, at most one for each env; 0 keeps the envs in this process, ``"auto"``
        takes as many as there are processor cores that this process may use
    :param timeout: s that one step or reset of one env, or one call, may take
    :param start_timeout: s until a new process must be ready
    :param on_failure: ``"raise"`` a :class:`WorkerError`, or ``"restart"`` the worker and go on with new episodes
    :param start_method: ``"forkserver"`` or ``"spawn"``, by default the first where the system has it; ``"ray"`` for
        actors of Ray, which may be on other machines
    :raises ValueError: if one of them is out of range
    """

    n_workers: int | Literal["auto"] = 0
    timeout: float = 60.0
    start_timeout: float = 300.0
    on_failure: OnFailure = "raise"
    start_method: str | None = None

    def __post_init__(self) -> None:
        if self.n_workers != "auto" and (not isinstance(self.n_workers, int) or self.n_workers < 0):
            raise ValueError(f'n_workers must be "auto" or a number of at least 0, got {self.n_workers!r}.')
        if not (self.timeout > 0 and self.start_timeout > 0):
            raise ValueError(f"Time-outs must be positive, got {self.timeout} and {self.start_timeout} s.")
        if self.on_failure not in get_args(OnFailure):
            raise ValueError(f"on_worker_failure must be one of {get_args(OnFailure)}, got {self.on_failure!r}.")
        if self.start_method == "fork":
            raise ValueError(
                'start_method must be "forkserver" or "spawn", got "fork", which copies a process without the threads '
                "of torch and CUDA that its locks wait for, and leaves siblings holding each other's pipes."
            )
        if self.start_method not in (None, "forkserver", "spawn", RAY):
            raise ValueError(f'start_method must be "forkserver", "spawn" or "ray", got {self.start_method!r}.')

    def count(self, n_envs: int) -> int:
        """
        :param n_envs: N
        :return: number of processes for so many envs
        """
        if self.n_workers != "auto":
            return min(self.n_workers, n_envs)
        if self.start_method == RAY:
            return min(count_cpus(), n_envs)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, n_envs)

    def method(self) -> str:
        """
        :return: the start method to use
        """
        return self.start_method or ("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
