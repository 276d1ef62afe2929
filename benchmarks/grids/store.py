"""Where results lie: a file per finished unit, and one table per grid that is kept."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from declaration import Grid, Unit
from unit import COLUMNS, run_unit

from sb3_varshare.varshare_sac.saving import write_atomically

# Of a grid's table, whose every row says how it came about: a tenth of the size.
TABLE = ".csv.gz"
# Five digits are more than ten episodes can tell.
FLOAT_FORMAT = "%.5g"
INTEGERS = ("seed", "steps", "step")
NUMBERS = (
    *("updates", "mean_return", "base_return", "kl_actor", "kl_critic"),
    *("distance_identical", "distance_conflicting", "seconds"),
)
TEXTS = tuple(name for name in COLUMNS if name not in (*INTEGERS, *NUMBERS))


def read(path: Path) -> pd.DataFrame:
    """
    :param path: of a unit's file or of a grid's table
    :return: its rows; texts stay texts, and an empty one is not a missing number
    """
    table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False)
    return table.assign(**{name: pd.to_numeric(table[name]) for name in NUMBERS})


def is_finished(unit: Unit, folder: Path) -> bool:
    """
    :param unit: of a grid
    :param folder: of all units' files
    :return: whether its file is there
    :raises ValueError: the file is another unit's: of other settings, or of another protocol
    """
    path = folder / unit.path
    if not path.exists():
        return False
    found = read(path)
    for name, expected in unit.identity.items():
        values = sorted({str(value) for value in found[name]})
        if values != [str(expected)]:
            raise ValueError(
                f"{path} holds results of another {name}: expected {expected!r}, got {', '.join(map(repr, values))}. "
                "Results of both must not be mixed: move the file away to run the unit anew, choose another --output, "
                "or undo the change of the declaration. (`base` is the digest of the base point in learners.py.)"
            )
    return True


def run_and_write(unit: Unit, folder: Path) -> Path:
    """
    Run a unit and write its file, whole or not at all.

    :param unit: of a grid
    :param folder: of all units' files
    :return: the file
    """
    rows = run_unit(unit)
    path = folder / unit.path
    _write(pd.DataFrame(rows, columns=list(COLUMNS)), path)
    return path


def collect(grid: Grid, folder: Path, results: Path) -> Path:
    """
    Put the files of a grid's finished units into one table.

    :param grid: which one
    :param folder: of all units' files
    :param results: folder of the tables that are kept
    :return: the table
    :raises ValueError: no unit is finished, or a file is of another grid's making
    """
    finished = [folder / unit.path for unit in grid.units() if is_finished(unit, folder)]
    if not finished:
        raise ValueError(f"Expected finished units of the grid {grid.name!r} in {folder}, found none: run it first.")
    path = results / f"{grid.name}{TABLE}"
    _write(pd.concat(_texts(finished), ignore_index=True), path)
    return path


def restore(grid: Grid, folder: Path, results: Path) -> int:
    """
    The inverse of :func:`collect`, so that a grid goes on where the tables that are kept end.

    :param grid: which one
    :param folder: of all units' files; files that are there stay as they are
    :param results: folder of the tables that are kept
    :return: number of the files that were written
    """
    (table,) = _texts([results / f"{grid.name}{TABLE}"])
    units = {tuple(map(str, unit.identity.values())): unit for unit in grid.units()}
    missing = {key: unit for key, unit in units.items() if not (folder / unit.path).exists()}
    found = {key: rows for key, rows in table.groupby(list(grid.units()[0].identity), sort=False) if key in missing}
    for key, rows in found.items():
        _write(rows, folder / missing[key].path)
    return len(found)


def _texts(paths: Iterable[Path]) -> list[pd.DataFrame]:
    """Files as they stand: reading numbers would write them anew."""
    return [pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths]


def _write(table: pd.DataFrame, path: Path) -> None:
    text = table.to_csv(index=False, float_format=FLOAT_FORMAT).encode()
    # Without a time, so that equal results are equal files.
    data = gzip.compress(text, mtime=0) if path.suffix == ".gz" else text
    write_atomically(path, lambda file: file.write(data))
