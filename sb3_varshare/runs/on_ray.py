"""Units as tasks of Ray, on one machine or on many. Only Ray's core is used, none of its libraries."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from sb3_varshare.runs.unit import Result, Unit, attempt
from sb3_varshare.tuning.progress import FAILURE


def run_on_ray(
    units: Sequence[Unit],
    address: str | None,
    processes: int,
    max_retries: int,
    record: Callable[[Unit, Result], None],
) -> None:
    """
    Run units wherever Ray has a free processor. Results come back to this process, so nodes need share no disk.

    :param units: to be run
    :param address: of a cluster; without one Ray is started on this machine
    :param processes: at a time, on a Ray that is started here
    :param max_retries: of a unit whose process or node was lost
    :param record: gets every unit that has ended
    :raises ImportError: Ray is not installed
    :raises ConnectionError: there is no cluster at the address
    """
    if not units:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ImportError('The engine ray needs Ray; run pip install "sb3_varshare[ray]".') from error
    if address is None:
        processors = processes * max(unit.threads for unit in units)
        ray.init(address="local", num_cpus=processors, include_dashboard=False, log_to_driver=False)
    else:
        ray.init(address=address, log_to_driver=False)
    try:
        warn_of_waiting(units, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        task = ray.remote(attempt)
        running = {
            task.options(
                num_cpus=unit.threads, num_gpus=int(unit.device == "cuda"), max_retries=max_retries, name=unit.name
            ).remote(unit): unit
            for unit in units
        }
        while running:
            (done,), _ = ray.wait(list(running))
            unit = running.pop(done)
            try:
                result = ray.get(done)
            except ray.exceptions.RayError as error:
                result = {FAILURE: f"{type(error).__name__}: {error}"}
            record(unit, result)
    finally:
        ray.shutdown()


def warn_of_waiting(units: Sequence[Unit], machines: Sequence[Mapping[str, float]]) -> None:
    """
    Say so where units have no place yet. A cluster may grow, so that Ray keeps them and says nothing.

    :param units: to be run
    :param machines: resources of each by Ray's names
    """
    processors, gpus = max(unit.threads for unit in units), int(any(unit.device == "cuda" for unit in units))
    if not any(found.get("CPU", 0) >= processors and found.get("GPU", 0) >= gpus for found in machines):
        needed = f"{processors} processor(s){' and a GPU' if gpus else ''}"
        print(f"No machine of the Ray cluster has {needed}: units wait until one joins. Ctrl-C ends this.")
