"""``python -m sb3_varshare.runs run|unit|list|collect``: a declared grid of runs, see ``docs/runs.md``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

try:
    import gymnasium as gym
    import optuna
    import tyro
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from sb3_varshare.runs.curves import draw_curves
    from sb3_varshare.runs.declaration import read_declaration
    from sb3_varshare.runs.local import run_locally
    from sb3_varshare.runs.on_ray import run_on_ray
    from sb3_varshare.runs.queue import open_queue, work_on_queue
    from sb3_varshare.runs.report import collect as collect_rows
    from sb3_varshare.runs.report import report
    from sb3_varshare.runs.store import Store
    from sb3_varshare.runs.unit import Result, Unit, attempt, check_device, make_trainer
    from sb3_varshare.tuning.files import write_whole
    from sb3_varshare.tuning.progress import FAILURE
    from sb3_varshare.tuning.storage import open_storage
except ModuleNotFoundError as missing:
    raise SystemExit(
        f'Runs need the package {missing.name!r}, which is not installed; run pip install "sb3_varshare[zoo]".'
    ) from missing

File = tyro.conf.Positional[Path]
# What a user can set right; everything else is shown with its traceback.
MISTAKES = (ValueError, ImportError, OSError, gym.error.Error)


def run(
    file: File,
    output: Path,
    engine: Literal["local", "ray", "queue"] = "local",
    processes: int = 1,
    address: str | None = None,
    storage: str | None = None,
    study_name: str | None = None,
    heartbeat: int = 60,
    grace: int | None = None,
    max_retries: int = 3,
) -> int:
    """
    Run the units of a grid that are not finished.

    :param file: with the declaration
    :param output: folder of the results
    :param engine: processes of this machine, a Ray cluster, or a queue in a database, of which this is one worker
    :param processes: units at a time; of the engine local, and of a Ray that is started here
    :param address: ray: of the cluster; by default one is started here
    :param storage: queue: sqlite:///queue.db on one machine, postgresql://user@host/database on many
    :param study_name: queue: its name in the database; by default the grid's
    :param heartbeat: queue: seconds between two signs of life of a running unit
    :param grace: queue: seconds without one after which a unit is lost and retried; by default twice the heartbeat
    :param max_retries: queue, ray: of a unit whose process was lost
    :return: exit status, 0 once all units are finished
    """
    if processes < 1 or max_retries < 0:
        raise ValueError(f"Expected processes >= 1 and max_retries >= 0, got {processes} and {max_retries}.")
    if (engine == "queue") != (storage is not None):
        raise ValueError("Expected --storage with --engine queue, and with no other.")
    if address is not None and engine != "ray":
        raise ValueError("Expected --address with --engine ray alone.")
    name, units, store = _open(file, output)
    missing = [unit for unit in units if not store.is_finished(unit)]
    # One of each arm and suite, so that a mistake in the last one is found before the first is trained.
    for unit in {(unit.suite, unit.arm): unit for unit in missing}.values():
        if address is None:
            check_device(unit)
        make_trainer(unit).check()
    queue = None
    if storage is not None:
        queue = open_queue(open_storage(storage, heartbeat, grace, max_retries), study_name or name, units, store)
    store.claim(name)
    with _recorder(units, store) as record:
        if engine == "local":
            run_locally(missing, processes, store.begin, record)
        elif engine == "ray":
            run_on_ray(missing, address, processes, max_retries, record)
        elif queue is not None:
            work_on_queue(queue, units, store, max_retries, record)
    left = [(one.name, *store.state(one)) for one in units if not store.is_finished(one)]
    for unit_name, state, detail in left:
        print(f"{state} {unit_name}{': ' if detail else ''}{detail}")
    return 1 if left else 0


@contextmanager
def _recorder(units: list[Unit], store: Store) -> Iterator[Callable[[Unit, Result], None]]:
    """Writes what has ended, and draws a bar for all units of the grid."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("units", total=len(units), completed=store.count(units), failed=0)

        def record(unit: Unit, result: Result) -> None:
            store.record(unit, result)
            failed = FAILURE in result
            progress.console.print(f"{'failed' if failed else 'finished'} {unit.name}", markup=False)
            progress.update(bar, completed=store.count(units), failed=progress.tasks[bar].fields["failed"] + failed)

        yield record


def unit(file: File, output: Path, index: int | None = None, name: str | None = None) -> int:
    """
    Run one unit in this process; one that is finished is not repeated.

    :param file: with the declaration
    :param output: folder of the results
    :param index: of the unit, from 0, in the order of ``list``
    :param name: of the unit, such as MT3/varshare_seed0
    :return: exit status, 1 where it failed
    """
    grid, units, store = _open(file, output)
    chosen = _choose(units, index, name)
    if store.is_finished(chosen):
        print(f"{chosen.name} is finished already.")
        return 0
    check_device(chosen)
    store.claim(grid)
    store.begin(chosen)
    result = attempt(chosen)
    store.record(chosen, result)
    print(f"failed {chosen.name}: {result[FAILURE]}" if FAILURE in result else f"finished {chosen.name}")
    return int(FAILURE in result)


def list_units(file: File, output: Path) -> int:
    """
    Show how far a grid is.

    :param file: with the declaration
    :param output: folder of the results
    :return: exit status
    """
    _, units, store = _open(file, output)
    states = [store.state(one) for one in units]
    table = Table("", "unit", "state", "", box=None)
    for position, (one, (state, detail)) in enumerate(zip(units, states, strict=True)):
        table.add_row(str(position), one.name, state, detail)
    Console().print(table)
    names = [state for state, _ in states]
    print(", ".join(f"{names.count(state)} {state}" for state in ("finished", "running", "failed", "missing")))
    return 0


def collect(file: File, output: Path) -> int:
    """
    Write all finished runs as runs.csv, tables of them as report.md and their curves as curves.png into the folder.

    :param file: with the declaration
    :param output: folder of the results
    :return: exit status
    """
    name, units, store = _open(file, output)
    rows = collect_rows(units, store)
    text = report(name, units, rows)
    for path, contents in ((output / "runs.csv", rows.to_csv(index=False)), (output / "report.md", text)):
        write_whole(path, contents)
    draw_curves(rows, output / "curves.png")
    Console().print(Markdown(text))
    print(f"Written to {output / 'runs.csv'}, {output / 'report.md'} and {output / 'curves.png'}")
    return 0


def _open(file: Path, output: Path) -> tuple[str, list[Unit], Store]:
    declaration = read_declaration(file)
    units, store = declaration.units(file.parent), Store(output)
    store.check(declaration.name, units)
    return declaration.name, units, store


def _choose(units: list[Unit], index: int | None, name: str | None) -> Unit:
    if (index is None) == (name is None):
        raise ValueError("Expected either --index or --name.")
    if index is not None and not 0 <= index < len(units):
        raise ValueError(f"Expected an index from 0 to {len(units) - 1}, got {index}.")
    found = units if index is None else [units[index]]
    chosen = [one for one in found if name in (None, one.name)]
    if not chosen:
        raise ValueError(f"There is no unit {name!r}; `list` shows their names.")
    return chosen[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    The command.

    :param arguments: by default those of this process
    :return: exit status, 1 where a unit failed
    :raises SystemExit: something cannot be done as asked; with the reason
    """
    # What it says about trials is said here about units.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    commands: dict[str, Callable[..., int]] = {"run": run, "unit": unit, "list": list_units, "collect": collect}
    try:
        status: Any = tyro.extras.subcommand_cli_from_dict(commands, prog="python -m sb3_varshare.runs", args=arguments)
        return int(status)
    except MISTAKES as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print("Stopped. What was finished is kept; the same command goes on.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    sys.exit(main())
