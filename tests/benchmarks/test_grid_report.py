"""Scores, their estimates and the tables say what can be worked out by hand."""

import dataclasses
from pathlib import Path
from typing import Any

import declaration
import numpy as np
import pandas as pd
import pytest
import report
from pooled import pooled_rows, pooled_table
from rliable import metrics  # type: ignore[import-untyped]
from scores import iqm, mean_difference, score_matrix, with_scores
from unit import COLUMNS

COMMON = {"grid": "comparison", "protocol": "p", "base": "b", "factor": "", "steps": 100, "step": 100}


def make_rows() -> pd.DataFrame:
    """Two contenders, two seeds, two tasks; random has -1,000 and single -200, the mean of -300 and -100."""
    rows: list[dict[str, Any]] = [
        {"suite": "reference", "agent": agent, "seed": seed, "task": task, "reference": task, "mean_return": value}
        for agent, values in {"random": (-1_100, -900), "single": (-300, -100)}.items()
        for seed, value in enumerate(values)
        for task in ("forward", "reversed")
    ]
    returns: dict[str, list[list[float]]] = {
        "varshare-tied": [[-200, -600], [-400, -600]],
        "sac": [[-1_000, -600], [-1_400, np.nan]],
    }
    rows += [
        {"suite": "all", "agent": agent, "seed": seed, "task": task, "reference": reference, "mean_return": value}
        for agent, seeds in returns.items()
        for seed, values in enumerate(seeds)
        for (task, reference), value in zip((("noisy", "forward"), ("reversed", "reversed")), values, strict=True)
    ]
    table = pd.DataFrame([{**COMMON, **row, "status": "finished"} for row in rows], columns=list(COLUMNS))
    table.loc[table["mean_return"].isna(), "status"] = "diverged"
    return table.assign(seconds=10.0)


def test_scores_lie_between_the_random_policy_and_single_task_sac() -> None:
    rows = with_scores(make_rows())
    assert score_matrix(rows[rows["agent"] == "varshare-tied"]).tolist() == [[1.0, 0.5], [0.75, 0.5]]
    # A diverged run counts as the random policy.
    assert score_matrix(rows[rows["agent"] == "sac"]).tolist() == [[0.0, 0.5], [-0.5, 0.0]]


def test_rows_without_a_reference_or_of_two_protocols_are_refused() -> None:
    rows = make_rows()
    with pytest.raises(ValueError, match="single"):
        with_scores(rows[rows["agent"] != "single"])
    with pytest.raises(ValueError, match="one protocol"):
        with_scores(rows.assign(protocol=["p"] * (len(rows) - 1) + ["q"]))


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    matrix = np.array([[0.0, 100.0], [2.0, 3.0], [4.0, 5.0], [-50.0, 7.0]])
    # Sorted: -50, 0 | 2, 3, 4, 5 | 7, 100.
    estimate = iqm(matrix)
    assert estimate.value == 3.5 == metrics.aggregate_iqm(matrix)
    assert estimate.low <= estimate.value <= estimate.high
    assert iqm(matrix) == estimate


def test_equal_runs_have_an_interval_without_width() -> None:
    matrix = np.full((5, 6), 0.75)
    assert iqm(matrix) == (0.75, 0.75, 0.75)
    assert mean_difference(matrix, matrix - 0.5) == (0.5, 0.5, 0.5)


def test_one_failed_task_of_six_is_in_the_mean_and_not_in_the_interquartile_mean() -> None:
    solved, failed = np.ones((5, 6)), np.ones((5, 6))
    failed[:, 0] = 0.4
    assert iqm(failed) == (1.0, 1.0, 1.0)
    assert mean_difference(failed, solved) == pytest.approx((-0.1, -0.1, -0.1))


def test_one_seed_has_no_interval() -> None:
    assert str(iqm(np.array([[0.5, 0.5]]))) == "0.50"
    assert str(mean_difference(np.ones((1, 2)), np.zeros((5, 2)))) == "1.00"


def test_a_table_says_the_numbers() -> None:
    table = report.score_table(with_scores(make_rows())).set_index("").to_dict("index")
    assert list(table) == ["varshare-tied", "sac"]
    varshare, sac = table["varshare-tied"], table["sac"]
    assert varshare["IQM of scores"].startswith("0.62 (")
    assert varshare["mean, minus varshare-tied"] == varshare["all evaluations, minus varshare-tied"] == ""
    assert sac["mean"].startswith("0.00 (-0.25 to")
    assert sac["mean, minus varshare-tied"].startswith("-0.69 (")
    assert [sac[name] for name in ("worst seed", "worst task and seed")] == ["-0.25", "-0.50"]
    assert sac["seeds"] == "2, 1 diverged"


def test_the_mean_of_all_evaluations_says_who_learned_sooner() -> None:
    rows = make_rows()
    # Halfway everybody was at the random policy.
    halfway = rows[(rows["suite"] != "reference") & (rows["status"] == "finished")].assign(
        step=50, mean_return=-1_000.0
    )
    table = report.score_table(with_scores(pd.concat([rows, halfway]))).set_index("").to_dict("index")
    varshare, sac = table["varshare-tied"], table["sac"]
    assert varshare["mean"].startswith("0.69 (") and varshare["all evaluations"].startswith("0.34 (")
    assert sac["all evaluations, minus varshare-tied"].startswith("-0.34 (")
    assert varshare["worst task and seed"] == "0.50"


def make_pool() -> pd.DataFrame:
    """Scores of `noisy` at half of the training and at its end, in two grids of two seeds each."""
    scores = {
        ("comparison", 1): {"varshare-tied": (0.8, 1.0), "l2": (0.2, 0.9), "sac": (0.0, 0.0)},
        ("comparison", 2): {"varshare-tied": (0.2, 1.0), "l2": (0.2, 0.7), "sac": (0.0, 0.0)},
        ("confirmation", 6): {"varshare-tied": (0.9, 0.0), "l2": (0.1, 0.6)},
    }
    rows = [
        {"grid": grid, "seed": seed, "agent": agent, "step": step, "score": score}
        for (grid, seed), agents in scores.items()
        for agent, values in agents.items()
        for step, score in zip((1_500, 3_000), values, strict=True)
    ]
    return pd.DataFrame(rows).assign(suite="all", task="noisy", steps=3_000)


def test_a_grid_and_its_repetition_are_compared_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = declaration.Pool("comparison", "confirmation", ("l2",))
    arms = tuple(declaration.Arm(name) for name in ("varshare-tied", "l2"))
    fresh = dataclasses.replace(declaration.GRIDS["confirmation"], arms=arms)
    monkeypatch.setitem(declaration.GRIDS, "confirmation", fresh)
    rows = make_pool()
    found = pooled_rows(pool, {name: own for name, own in rows.groupby("grid")})
    assert set(found["agent"]) == {"varshare-tied", "l2"}
    table = pooled_table(pool, found).set_index("").to_dict("index")
    varshare, l2 = table["varshare-tied"], table["l2"]
    # At the end 1, 1, 0 and 0.9, 0.7, 0.6; the differences are 0.1, 0.3 and -0.6.
    assert varshare["end"].startswith("0.67 (0.00 to 1.00") and l2["end"].startswith("0.73 (")
    assert varshare["end, minus l2"].startswith("-0.07 (-0.60 to 0.30") and l2["end, minus l2"] == ""
    # Means of both evaluations: 0.9, 0.6, 0.45 and 0.55, 0.45, 0.35.
    assert varshare["all evaluations"].startswith("0.65 (0.45 to 0.90")
    assert varshare["all evaluations, minus l2"].startswith("0.20 (0.10 to 0.35")
    assert varshare["first at 0.8, median (range)"] == "1,500 (1,500 to 3,000)"
    assert l2["first at 0.8, median (range)"] == "never (3,000 to 3,000)"
    assert varshare["seeds"] == "3"


@pytest.mark.parametrize("pool", declaration.POOLS, ids=lambda pool: pool.repetition)
def test_a_repetition_has_the_same_work_on_other_seeds(pool: declaration.Pool) -> None:
    first, fresh = declaration.GRIDS[pool.grid], declaration.GRIDS[pool.repetition]
    assert all(arm in first.arms for arm in fresh.arms) and set(fresh.steps) <= set(first.steps)
    assert not set(fresh.seeds) & set(first.seeds) and first.base == fresh.base
    assert set(pool.controls) <= {arm.name for arm in fresh.arms}


def test_a_page_is_filled_between_its_marks() -> None:
    page = "before\n<!-- table: a -->\nold\n<!-- end of table -->\nafter\n"
    filled = report.fill(page, {"a": "| new |\n"})
    assert filled == "before\n<!-- table: a -->\n\n| new |\n\n<!-- end of table -->\nafter\n"
    assert report.fill(filled, {"a": "| new |\n"}) == filled
    with pytest.raises(ValueError, match="'a'"):
        report.fill(page, {})


def test_the_report_repeats_itself(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    make_rows().to_csv(tmp_path / "results" / "comparison.csv.gz", index=False)
    made = []
    for name in ("one", "two"):
        args = report.Args(tmp_path / "results", tmp_path / name, tmp_path / name, tmp_path / "no_page.md")
        report.main(args)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1]
    assert {"comparison_all_scores.md", "comparison_all_tasks.md", "comparison_all.svg"} <= set(made[0])


def test_a_task_has_the_mean_of_its_seeds() -> None:
    table = report.task_table(with_scores(make_rows()), "score").set_index("")
    assert table.loc["varshare-tied", "`noisy`"].startswith("0.88 (0.75 to 1.00)")
    assert table.loc["sac", "`reversed`"].startswith("0.25 (0.00 to 0.50)")
