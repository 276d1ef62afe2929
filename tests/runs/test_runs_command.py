"""Declarations, units, states, tables and mistakes of the command, in this process."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from grids import TASKS, UNITS, declare
from matplotlib.figure import Figure

pytest.importorskip("rl_zoo3")
pytest.importorskip("pydantic")

from sb3_varshare.runs import Unit, read_declaration
from sb3_varshare.runs.curves import draw_curves
from sb3_varshare.runs.on_ray import warn_of_waiting
from sb3_varshare.runs.store import Store
from sb3_varshare.runs.unit import attempt

Command = Callable[..., tuple[int, str]]
METAWORLD = Path(__file__).parents[2] / "benchmarks" / "metaworld.yaml"


def unit(**changes: Any) -> Unit:
    settings = {"env": "Contextual-v0", "env_kwargs": {}, "algo": "sac", "entry": {"gamma": 0.9}, "steps": 100}
    common = {"evaluations": 2, "eval_episodes": 1, "device": "cpu", "threads": 1}
    return Unit(**{"suite": "s", "arm": "a", "seed": 0, **settings, **common, **changes})


def test_the_identity_is_that_of_what_determines_the_outcome() -> None:
    assert unit(suite="other", arm="other").identity == unit().identity
    # Written results are compared with it: it must never change for the same settings.
    assert unit().identity == "5d7f229ac9282d08"
    for change in ({"seed": 1}, {"steps": 101}, {"entry": {"gamma": 0.99}}, {"threads": 2}, {"algo": "tqc"}):
        assert unit(**change).identity != unit().identity


def test_units_from_their_start_to_the_table(reference: Mapping[str, Any], runs: Command, tmp_path: Path) -> None:
    assert runs("unit", "--name", UNITS[0]) == (0, f"finished {UNITS[0]}\n")
    path = tmp_path / "results" / f"{UNITS[0]}.json"
    before = path.read_bytes()
    assert runs("unit", "--index", "0") == (0, f"{UNITS[0]} is finished already.\n")
    assert path.read_bytes() == before
    printed = runs("list")[1]
    assert "1 finished, 0 running, 0 failed, 3 missing" in printed
    assert [line.split()[1] for line in printed.splitlines()[1:5]] == UNITS

    result = json.loads(before)
    printed = runs("collect")[1]
    rows = pd.read_csv(tmp_path / "results" / "runs.csv", float_precision="round_trip")
    assert set(rows["suite"]) == {"short"} and set(rows["arm"]) == {"varshare"} and set(rows["seed"]) == {0}
    # A row for each evaluation, task and episode, in this order.
    assert list(rows["step"]) == [50] * 5 + [100] * 5 and list(rows["task"]) == TASKS * 2
    written = [episode[2] for evaluation in result["evaluations"] for episode in evaluation["episodes"]]
    assert list(rows["episode_return"]) == written
    assert list(rows["updates"]) == [evaluation["updates"] for evaluation in result["evaluations"] for _ in TASKS]
    assert set(rows["protocol"]) == {"contextual: version 1, horizon 10"} and set(rows["unit"]) == {result["identity"]}
    report = (tmp_path / "results" / "report.md").read_text()
    assert (tmp_path / "results" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "1 of 4 runs are finished" in report and f"| {np.mean(written[5:]):.1f} |" in report
    assert "1 of 4 runs are finished" in printed


def test_a_table_of_known_results(runs: Command, tmp_path: Path) -> None:
    declaration = read_declaration(declare(tmp_path, arms={"one": {"params": {"width": 8}}, "two": {}}, seeds=[0, 1]))
    store = Store(tmp_path / "results")
    for found in declaration.units():
        # Success of the first arm is 1 in the first task alone, of the second in all; returns are the seed.
        episodes = [[task, 0, float(found.seed), 10, found.arm == "two" or task == TASKS[0], False] for task in TASKS]
        last = {"step": 100, "updates": 7, "seconds": 120.0, "episodes": episodes}
        first = {**last, "step": 50, "episodes": [[task, 0, -9.0, 10, False, False] for task in TASKS]}
        about = {"identity": found.identity, "settings": found.settings, "versions": {"commit": "abc"}}
        store.record(found, {"name": found.name, **about, "protocol": {}, "evaluations": [first, last]})
    assert runs("collect", arms={"one": {"params": {"width": 8}}, "two": {}})[0] == 0
    lines = (tmp_path / "results" / "report.md").read_text().splitlines()
    # IQM: of 10 numbers 0 and 1 without the two lowest and highest; of returns 0 and 1 as many of each. Of all
    # evaluations: nobody had success at the first one, and returns were -9.
    # Both arms have the same returns, so that their differences by seed are 0 without a width.
    returns = "0.5 (-5.9 to 6.9) | 0.5 (0.0 to 1.0) | -4.2 (-7.4 to -1.1)"
    assert f"| one | 2 | 0.200 | 0.000 | 0.100 |  | {returns} |  | 7 | 2.0 |" in lines
    assert f"| two | 2 | 1.000 | 1.000 | 0.500 | 0.400 | {returns} | 0.0 | 7 | 2.0 |" in lines
    assert f"| success of | {' | '.join(TASKS)} |" in lines
    assert "| one | 1.000 | 0.000 | 0.000 | 0.000 | 0.000 |" in lines


def test_a_figure_has_a_panel_for_each_suite_and_shows_means_over_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, format: drawn.append(figure))
    rows = [
        # 10 and 20 steps of two tasks; the runs succeed in one of four and in three of four episodes, then in all.
        {"suite": "known", "arm": "a", "seed": seed, "step": step, "task": task, "is_success": success}
        for seed, first in ((0, (1, 0, 0, 0)), (1, (1, 1, 1, 0)))
        for step, successes in ((20, first), (40, (1, 1, 1, 1)))
        for task, success in zip(("x", "x", "y", "y"), successes, strict=True)
    ]
    rows += [{**row, "suite": "unknown", "is_success": None, "step": 2 * row["step"]} for row in rows]
    draw_curves(pd.DataFrame(rows).assign(episode_return=-5.0), tmp_path / "curves.png")
    known, unknown = drawn[0].axes
    assert known.get_lines()[0].get_xydata().tolist() == [[10, 0.5], [20, 1.0]]
    assert unknown.get_lines()[0].get_xydata().tolist() == [[20, -5.0], [40, -5.0]]
    assert (known.get_title(), known.get_ylabel()) == ("known", "success, mean over tasks")
    assert (unknown.get_title(), unknown.get_ylabel()) == ("unknown", "return, mean over tasks")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "seed: unknown key; did you mean 'seeds'"),
        ({"suites": {"s": {"id": "Contextual-v0", "parms": {}}}}, "suites.s.parms: unknown key; did you mean 'params'"),
        ({"arms": {"a": {"confile": "x"}}}, "arms.a.confile: unknown key; did you mean 'conf_file'"),
        ({"arms": {"a": {"algo": "ppo"}}}, "arms.a.algo: Input should be 'varshare_sac', 'sac' or 'tqc', got 'ppo'"),
        ({"arms": {"a/b": {}}}, "arms.a/b"),
        ({"arms": {}}, "arms: .*at least 1"),
        ({"seeds": [0, "1"]}, "seeds.1: Input should be a valid integer, got '1'"),
        ({"seeds": [3, 3]}, r"every seed once, got \[3, 3\]"),
        ({"steps_per_task": 0}, "steps_per_task: Input should be greater than or equal to 1, got 0"),
        ({"arms": {"a": {"params": {"widht": 8}}}}, "got 'widht'; did you mean 'width'"),
        ({"arms": {"a": {"params": {"gamma": 2.0}}}}, "gamma must be"),
        ({"arms": {"a": {"conf_file": "none.yml"}}}, "There is no file .*none.yml"),
        ({"suites": {"s": {"id": "Pendulum-v1"}}}, "Expected a suite of sb3_varshare"),
        ({"suites": {"s": {"id": "Contextual-v7"}}}, "Contextual"),
    ],
)
def test_mistakes_write_nothing(runs: Command, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        runs("run", **changes)
    assert not (tmp_path / "results").exists()


def test_mistakes_of_the_command(runs: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command, options, message in (
        ("run", ("--processes", "0"), "Expected processes >= 1"),
        ("run", ("--engine", "queue"), "Expected --storage with --engine queue"),
        ("run", ("--storage", "sqlite:///q.db"), "Expected --storage with --engine queue"),
        ("run", ("--address", "10.0.0.1:6379"), "Expected --address with --engine ray alone"),
        ("unit", (), "either --index or --name"),
        ("unit", ("--index", "4"), "index from 0 to 3, got 4"),
        ("unit", ("--name", "short/sac"), "no unit 'short/sac'"),
        ("collect", (), "No unit is finished"),
    ):
        with pytest.raises(SystemExit, match=message):
            runs(command, *options)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit, match=r'pip install "sb3_varshare\[ray\]"'):
        runs("run", "--engine", "ray")


def test_results_of_something_else_are_left_alone(runs: Command, tmp_path: Path) -> None:
    assert runs("unit", "--index", "1")[0] == 0
    path = tmp_path / "results" / f"{UNITS[1]}.json"
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="results of the grid 'tiny', not 'other'"):
        runs("run", name="other")
    with pytest.raises(SystemExit, match="evaluations: 2 in the file, 3 now; steps: 100 in the file, 150 now"):
        runs("run", evaluations=3, steps_per_task=30)
    assert path.read_bytes() == before
    # A grid may grow.
    assert "1 finished, 0 running, 0 failed, 5 missing" in runs("list", seeds=[0, 1, 2])[1]


def test_a_failure_is_kept_until_the_unit_is_finished(
    runs: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT", "raise")
    assert runs("unit", "--index", "0") == (1, f"failed {UNITS[0]}: RuntimeError: broken on purpose\n")
    assert "broken on purpose" in runs("list")[1]
    failed = tmp_path / "results" / "short" / "varshare_seed0.failed.json"
    assert "faults.py" in json.loads(failed.read_text())["traceback"]
    assert runs("unit", "--index", "0")[0] == 0 and not failed.exists()


def test_a_unit_that_runs_is_shown(runs: Command, tmp_path: Path) -> None:
    declaration = read_declaration(declare(tmp_path))
    store, units = Store(tmp_path / "results"), declaration.units()
    store.begin(units[0])
    assert "1 running, 0 failed, 3 missing" in runs("list")[1]
    # As after a crash of this process.
    mark = store.path(units[0], ".running")
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "started": 0.0}))
    assert "0 running, 0 failed, 4 missing" in runs("list")[1]


def test_a_unit_that_ends_between_two_looks(runs: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs("unit", "--index", "0")[0] == 0
    looks, is_finished = iter([False]), Store.is_finished
    # Its file was not there at the first look, and that of its process is there no more at the second.
    monkeypatch.setattr(Store, "is_finished", lambda *given: next(looks, None) is None and is_finished(*given))
    store, units = Store(tmp_path / "results"), read_declaration(tmp_path / "tiny.yaml").units()
    assert store.state(units[0]) == ("finished", "")


def test_what_cannot_be_run_is_known_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_varshare.runs.unit.make_trainer", lambda unit: pytest.fail("It was trained."))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "Expected a GPU for device: cuda, found none here" in attempt(unit(device="cuda"))["failure"]

    def no_version() -> dict[str, str]:
        raise LookupError("no version")

    monkeypatch.setattr("sb3_varshare.runs.unit.versions", no_version)
    assert attempt(unit())["failure"] == "LookupError: no version"


@pytest.mark.parametrize("command", [("run",), ("run", "--engine", "ray"), ("unit", "--index", "0")])
def test_a_grid_for_gpus_is_not_run_on_processors(
    runs: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="Expected a GPU for device: cuda"):
        runs(*command, device="cuda")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("threads", "device", "missing"),
    [(2, "cpu", None), (3, "cpu", "3 processor(s): units wait"), (1, "cuda", "1 processor(s) and a GPU: units wait")],
)
def test_units_for_which_a_cluster_has_no_place(
    capsys: pytest.CaptureFixture[str], threads: int, device: str, missing: str | None
) -> None:
    warn_of_waiting([unit(threads=threads, device=device)], [{"CPU": 2.0}, {"memory": 1.0}])
    printed = capsys.readouterr().out
    assert printed == "" if missing is None else missing in printed


def test_the_example_of_the_page(tmp_path: Path) -> None:
    page = (METAWORLD.parents[1] / "docs" / "runs.md").read_text(encoding="utf-8")
    path = tmp_path / "grid.yaml"
    path.write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    units = read_declaration(path).units(METAWORLD.parent)
    assert [found.name for found in units[:3]] == [f"contextual/{arm}_seed0" for arm in ("varshare", "l2", "sac")]
    sac = units[2].entry
    assert (sac["n_envs"], sac["learning_rate"], sac["batch_size"]) == (10, 0.0003, 320)


def test_the_comparison_on_metaworld() -> None:
    pytest.importorskip("metaworld")
    units = {found.name: found for found in read_declaration(METAWORLD).units(METAWORLD.parent)}
    assert len(units) == 18
    arms = {found.arm: found.entry for found in units.values()}
    assert {arm: entry.get("adapter") for arm, entry in arms.items()} == {
        "varshare": None,
        "l2": "deterministic",
        "embedding": "embedding",
    }
    for found in units.values():
        n_tasks = {"MT3": 3, "MT5": 5}[found.suite]
        assert found.steps == 50_000 * n_tasks and found.entry["n_envs"] == 2 * n_tasks
        assert found.entry["preset"] == "medium" and (found.evaluations, found.eval_episodes) == (10, 5)
