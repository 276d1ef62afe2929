"""
Run what is missing of declared grids, in as many processes as asked.

    python benchmarks/grids/run.py comparison --processes 2
    python benchmarks/grids/run.py comparison --collect benchmarks/grids/results
    python benchmarks/grids/run.py comparison --restore benchmarks/grids/results

A finished unit is one CSV file, written whole or not at all: a kill at any moment loses the running units only, and the
same command goes on. With ``--collect`` nothing is run: finished units become one table per grid, for ``report.py``.
With ``--restore`` the units of such tables are files again, and a later run does only what they lack.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch as th
import tyro
from declaration import GRIDS, Unit
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from store import collect, is_finished, restore, run_and_write

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param grids: names of declared grids
    :param processes: units at a time, each with one thread
    :param output: folder of the units' files
    :param only_suites: leave out the others; the reference, by which scores are measured, is a suite too
    :param only_agents: leave out the others
    :param seeds: leave out the others
    :param collect: run nothing, and write one table per grid into this folder
    :param restore: run nothing, and take finished units from the tables in this folder
    :param list: run nothing, and show how much is finished
    """

    grids: Annotated[tuple[Literal[tuple(GRIDS)], ...], tyro.conf.Positional]  # type: ignore[valid-type]
    processes: int = 2
    output: Path = Path("runs/grids")
    only_suites: tuple[str, ...] = ()
    only_agents: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    collect: Path | None = None
    restore: Path | None = None
    list: bool = False


def start_worker() -> None:
    """One thread for torch, and an end with the parent: a worker would go on for ever where that is killed."""
    th.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def wanted_units(args: Args) -> list[Unit]:
    """
    :param args: grids and filters
    :raises ValueError: no unit has the suites, agents and seeds that were asked for
    """
    units = [
        unit
        for name in args.grids
        for unit in GRIDS[name].units()
        if (not args.only_suites or unit.suite in args.only_suites)
        and (not args.only_agents or unit.arm.name in args.only_agents)
        and (not args.seeds or unit.seed in args.seeds)
    ]
    if not units:
        known = {unit.suite for name in args.grids for unit in GRIDS[name].units()}
        agents = {unit.arm.name for name in args.grids for unit in GRIDS[name].units()}
        raise ValueError(f"No unit is left by the filters; suites are {sorted(known)}, agents {sorted(agents)}.")
    return units


def run_missing(units: list[Unit], folder: Path, pool: Executor, console: Console) -> dict[str, str]:
    """
    Run the units that have no file yet.

    :param units: all that are wanted
    :param folder: of the units' files
    :param pool: where they run
    :param console: for the progress
    :return: path of a unit that failed -> its error
    :raises ValueError: a file is of other settings or of another protocol
    """
    missing = [unit for unit in units if not is_finished(unit, folder)]
    failures: dict[str, str] = {}
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed"), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, speed_estimate_period=3_600) as progress:
        bar = progress.add_task("units", total=len(missing), failed=0)
        futures = {pool.submit(run_and_write, unit, folder): unit for unit in missing}
        try:
            for future in as_completed(futures):
                path, error = str(futures[future].path), future.exception()
                if error is not None:
                    failures[path] = f"{type(error).__name__}: {error}"
                progress.console.print(path if error is None else f"failed {path}: {failures[path]}", markup=False)
                progress.update(bar, advance=1, failed=len(failures))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return failures


def progress_table(args: Args) -> Table:
    """
    How many units of each grid and suite are finished.

    :param args: grids and filters
    """
    counts: dict[tuple[str, str], list[bool]] = {}
    for unit in wanted_units(args):
        counts.setdefault((unit.grid, unit.suite), []).append(is_finished(unit, args.output))
    table = Table("grid", "suite", "finished", "units")
    for (grid, suite), finished in counts.items():
        table.add_row(grid, suite, str(sum(finished)), str(len(finished)))
    return table


def main(args: Args) -> int:
    """
    :param args: what to run
    :return: exit status, 1 where a unit failed
    """
    console = Console()
    if args.list:
        console.print(progress_table(args))
        return 0
    if args.restore is not None:
        for name in args.grids:
            console.print(f"{name}: {restore(GRIDS[name], args.output, args.restore)} units restored")
        return 0
    if args.collect is not None:
        for name in args.grids:
            console.print(f"{collect(GRIDS[name], args.output, args.collect)}")
        return 0
    # Before the workers start: they read these when they import numpy and torch.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    pool = ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn"), start_worker)
    failures = run_missing(wanted_units(args), args.output, pool, console)
    for path, error in failures.items():
        console.print(f"failed {path}: {error}", markup=False)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__)))
