"""Grids declare every unit once, go on after a kill, do not mix, and give the same numbers again."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import run
import store
from declaration import GRIDS, Arm, Grid, Measurement, Unit
from learners import BASE, unknown_settings
from rich.console import Console
from unit import run_unit

from sb3_varshare.presets import preset_arguments

SMOKE = GRIDS["smoke"]
UNITS = [unit for unit in SMOKE.units() if unit.seed == 0]
LEARNED = next(unit for unit in UNITS if unit.arm.name == "base")


def run_all(units: list[Unit], folder: Path) -> dict[str, str]:
    return run.run_missing(units, folder, ThreadPoolExecutor(1), Console(quiet=True))


def contents(folder: Path) -> dict[str, str]:
    """The files without what a clock says."""
    tables = {path.name: pd.read_csv(path, dtype=str).drop(columns="seconds") for path in folder.rglob("*.csv")}
    return {name: table.to_csv() for name, table in tables.items()}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
def test_a_grid_has_no_unit_twice(grid: Grid) -> None:
    units = grid.units()
    assert len({unit.path for unit in units}) == len(units)
    settings = [str(sorted(unit.settings.items())) for unit in units]
    work = {
        (unit.suite, unit.arm.learner, own, unit.seed, unit.steps) for unit, own in zip(units, settings, strict=True)
    }
    assert len(work) == len(units)
    assert not {name for unit in units for name in unknown_settings(unit.settings)}


@pytest.mark.parametrize("name", ["defaults", "weights"])
def test_every_factor_has_the_base_among_its_levels(name: str) -> None:
    grid = GRIDS[name]
    for levels in grid.factors.values():
        at_base = [all(grid.base[key] == value for key, value in changes.items()) for changes in levels.values()]
        assert at_base.count(True) == 1
    assert len(grid.arms) == 1 + sum(len(levels) - 1 for levels in grid.factors.values())


def test_a_killed_grid_goes_on_and_repeats_itself(tmp_path: Path) -> None:
    assert run_all(UNITS, tmp_path) == {}
    first = contents(tmp_path)
    assert len(first) == len(UNITS) == 4
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.csv")}
    (tmp_path / LEARNED.path).unlink()
    assert run_all(UNITS, tmp_path) == {}
    changed = {path for path in tmp_path.rglob("*") if path.is_file() and times.get(path) != path.stat().st_mtime_ns}
    assert changed == {tmp_path / LEARNED.path}
    assert contents(tmp_path) == first
    table = store.read(store.collect(SMOKE, tmp_path, tmp_path / "kept"))
    assert len(table) == 2 + 2 * 2 + 2 * (2 * 2)
    assert set(table["status"]) == {"finished"}
    assert table.loc[table["agent"] == "base", "base_return"].notna().all()
    # What was kept becomes the same files again; those that are there are left alone.
    assert store.restore(SMOKE, tmp_path / "again", tmp_path / "kept") == len(UNITS)
    assert contents(tmp_path / "again") == first
    assert all(store.is_finished(unit, tmp_path / "again") for unit in UNITS)
    assert store.restore(SMOKE, tmp_path / "again", tmp_path / "kept") == 0


def test_training_does_not_depend_on_how_often_it_is_evaluated(tmp_path: Path) -> None:
    once = dataclasses.replace(LEARNED, measurement=Measurement(points=1, episodes=1, final_episodes=2))
    often = dataclasses.replace(LEARNED, measurement=Measurement(points=4, episodes=1, final_episodes=2))
    ends = [[row["mean_return"] for row in run_unit(unit) if row["step"] == unit.steps] for unit in (once, often)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"arm": Arm("base", changes={"beta": 0.5})}, "settings"),
        ({"base": {**LEARNED.base, "gamma": 0.9}}, "base"),
        ({"measurement": Measurement(points=3, episodes=1, final_episodes=2)}, "protocol"),
    ],
)
def test_a_file_of_other_settings_is_refused(tmp_path: Path, change: dict[str, Any], column: str) -> None:
    path = tmp_path / LEARNED.path
    path.parent.mkdir(parents=True)
    pd.DataFrame([LEARNED.identity]).reindex(columns=list(store.COLUMNS)).to_csv(path, index=False)
    assert store.is_finished(LEARNED, tmp_path)
    with pytest.raises(ValueError, match=f"another {column}: expected .* got .*move the file away"):
        run_all([dataclasses.replace(LEARNED, **change)], tmp_path)


def test_a_failed_unit_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(unit: Unit) -> list[dict[str, Any]]:
        if unit.arm.name == "random":
            raise RuntimeError("no luck")
        return [unit.identity]

    monkeypatch.setattr(store, "run_unit", fail)
    failures = run_all(UNITS, tmp_path)
    assert failures == {str(UNITS[0].path): "RuntimeError: no luck"}
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3


@pytest.mark.parametrize("learner", ["varshare_sac", "sac"])
def test_a_diverged_run_is_a_row(learner: str) -> None:
    unit = dataclasses.replace(LEARNED, arm=Arm("wild", learner, {"learning_rate": 1e30}))
    rows = run_unit(unit)
    ends = [row for row in rows if row["step"] == unit.steps]
    assert {row["status"] for row in ends} == {"diverged"}
    assert {row["task"] for row in ends} == {"forward", "reversed"}
    assert all(row["mean_return"] is None for row in ends)


def test_filters_choose_units() -> None:
    args = run.Args(("smoke",), only_suites=("conflict",), only_agents=("base",), seeds=(1,))
    assert [unit.path.name for unit in run.wanted_units(args)] == ["base_240_seed1.csv"]
    with pytest.raises(ValueError, match="No unit is left"):
        run.wanted_units(dataclasses.replace(args, seeds=(7,)))


def test_the_base_point_is_the_preset_small() -> None:
    small = preset_arguments("small", 1)
    assert {name: BASE[name] for name in small} == small
