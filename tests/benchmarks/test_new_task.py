"""The benchmark of new tasks: its runs, its tables by hand, and what a tiny run leaves behind."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The module, registered since dataclasses look theirs up."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "new_task.py"
    spec = importlib.util.spec_from_file_location("benchmark_new_task", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_arm_has_its_runs(benchmark: ModuleType) -> None:
    units = benchmark.units(benchmark.Args(seeds=(0, 1), arms=("varshare", "scratch")))
    # Trained tasks once, and two new tasks at once, frozen and with everything trained; from scratch there is one way.
    assert len(units) == len(set(units)) == 2 * (1 + 2 * 3) + 2 * 2
    with pytest.raises(SystemExit, match="arms must be among varshare"):
        benchmark.units(benchmark.Args(arms=("varshar",)))


def test_tables_by_hand(benchmark: ModuleType) -> None:
    args = benchmark.Args(seeds=(0, 1), arms=("varshare", "scratch"), steps=5, budget=7)
    rows = [
        ("varshare", seed, "between", training, 5, 7, step, value + seed * 2, 0.5, 1.0)
        for seed in (0, 1)
        for training, step, value in (("none", 0, -10.0), ("frozen", 0, -10.0), ("frozen", 7, -3.0), ("all", 7, -1.0))
    ]
    rows += [("scratch", 0, "between", "all", 5, 7, 7, -8.0, 0.0, 1.0)]
    text = benchmark.report(pd.DataFrame(rows, columns=list(benchmark.COLUMNS)), args)
    # Student's interval of two values at a distance of 2 is their mean +- 12.706.
    assert "| varshare | -9 (-22 to 4) | 0.50 (0.50 to 0.50) |" in text
    assert "| varshare | -9 (-22 to 4) | -2 (-15 to 11) |" in text
    assert "| varshare | 0 (-13 to 13) |\n| scratch | -8 |" in text


@pytest.mark.parametrize(
    ("arm", "task", "training", "steps"),
    [
        ("varshare", "trained", "none", [0]),
        ("varshare", "between", "none", [0]),
        ("embedding, mean", "reversed", "frozen", [0, 3, 6]),
        ("L2", "reversed", "all", [0, 3, 6]),
        ("scratch", "between", "all", [0, 3, 6]),
    ],
)
def test_a_tiny_run(
    benchmark: ModuleType, tmp_path: Path, arm: str, task: str, training: str, steps: list[int]
) -> None:
    args = benchmark.Args(steps=2, budget=6, evaluations=2, n_episodes=1, output=tmp_path)
    rows = benchmark.run(args, benchmark.Unit(arm, 0, task, training))
    assert [row["step"] for row in rows] == steps
    assert all(set(row) == set(benchmark.COLUMNS) and row["mean_return"] < 0 for row in rows)
    assert len(list((tmp_path / "agents").glob("*.zip"))) == (arm != "scratch")
