"""Means, intervals and the table, by hand."""

import math

import pytest
from scipy import stats

from sb3_varshare.evaluation import TaskEvaluation
from sb3_varshare.evaluation.task_evaluation import EpisodeResult, mean_interval, share_interval
from sb3_varshare.tasks import check_same_protocol


def episodes(task: str, returns: list[float], successes: list[bool] | None = None) -> list[EpisodeResult]:
    """Of those that were solved only the first still is at its end."""
    known = successes or [None] * len(returns)
    return [
        EpisodeResult(task, i, r, 10, s, None if s is None else s and i == 0)
        for i, (r, s) in enumerate(zip(returns, known, strict=True))
    ]


PROTOCOL = {"name": "mt-rand", "metaworld": {"horizon": 500, "summary": "50 goals, horizon 500"}}


def test_mean_interval_by_hand() -> None:
    # Mean 2, standard deviation 1, three episodes: 2 -+ t(0.975, 2) / sqrt(3)
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0], 0.95) == pytest.approx((2.0, 2 - half, 2 + half))
    assert half == pytest.approx(2.484, abs=1e-3)


@pytest.mark.parametrize("values", [[4.0], [4.0, 4.0, 4.0]])
def test_without_spread_the_interval_is_a_point(values: list[float]) -> None:
    assert mean_interval(values, 0.95) == (4.0, 4.0, 4.0)


def test_share_interval_by_hand() -> None:
    # Wilson: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    n, p, z = 10, 0.8, stats.norm.ppf(0.95)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert share_interval([True] * 8 + [False] * 2, 0.9) == pytest.approx((0.8, centre - half, centre + half))


def test_all_successes_leave_room_below() -> None:
    estimate = share_interval([True] * 5, 0.95)
    assert (estimate.mean, estimate.high) == pytest.approx((1.0, 1.0)) and 0.5 < estimate.low < 0.6


@pytest.fixture
def evaluation() -> TaskEvaluation:
    """Two tasks that report success, one that does not."""
    found = [
        *episodes("a", [1.0, 3.0], [True, False]),
        *episodes("b", [10.0, 10.0], [True, True]),
        *episodes("c", [-4.0, -6.0]),
    ]
    return TaskEvaluation(["a", "b", "c"], found, PROTOCOL)


def test_means_are_over_tasks(evaluation: TaskEvaluation) -> None:
    assert {task: estimate.mean for task, estimate in evaluation.returns().items()} == {"a": 2.0, "b": 10.0, "c": -5.0}
    assert {task: estimate.mean for task, estimate in evaluation.success_rates().items()} == {"a": 0.5, "b": 1.0}
    assert evaluation.mean_return == pytest.approx(7 / 3) and evaluation.mean_success_rate == 0.75
    assert {task: estimate.mean for task, estimate in evaluation.last_success_rates().items()} == {"a": 0.5, "b": 0.5}
    assert evaluation.mean_last_success_rate == 0.5


def test_the_table_says_it_all(evaluation: TaskEvaluation) -> None:
    lines = [line.split() for line in str(evaluation).splitlines()]
    text = str(evaluation)
    assert "95% interval" in text and "success" in text
    rows = {line[1]: line for line in lines if len(line) > 2}
    assert "2.0" in rows["a"] and "-10.7" in rows["a"] and "14.7" in rows["a"] and "0.50" in rows["a"]
    assert "10.0" in rows["b"] and "1.00" in rows["b"]
    assert "-5.0" in rows["c"] and "0.50" not in rows["c"]
    assert rows["mean"][2:4] == ["over", "tasks"] and "2.3" in rows["mean"] and "0.75" in rows["mean"]


def test_success_at_the_last_step_stands_beside_success(evaluation: TaskEvaluation) -> None:
    table = evaluation.table()
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["success"] == ["0.50", "1.00", "", "0.75"]
    assert columns["at last step"] == ["0.50", "0.50", "", "0.50"]


def test_the_protocol_stands_below_the_table(evaluation: TaskEvaluation) -> None:
    assert evaluation.table().caption == "mt-rand: 50 goals, horizon 500"
    assert "mt-rand: 50 goals, horizon 500" in str(evaluation)
    elsewhere = TaskEvaluation(
        ["a"], episodes("a", [1.0]), PROTOCOL, trained_protocol={**PROTOCOL, "metaworld": {"horizon": 200}}
    )
    assert elsewhere.protocol_line.splitlines()[1] == (
        "Trained under another protocol: metaworld.horizon: 200 against 500"
    )
    assert TaskEvaluation(["a"], episodes("a", [1.0]), {}).protocol_line == "protocol unknown"


def test_results_of_different_protocols_are_not_compared(evaluation: TaskEvaluation) -> None:
    other = TaskEvaluation(["a"], evaluation.of_task("a"), {**PROTOCOL, "metaworld": {"horizon": 200}})
    check_same_protocol(evaluation, TaskEvaluation(["a"], evaluation.of_task("a"), PROTOCOL))
    with pytest.raises(ValueError, match="horizon: 500 against 200"):
        check_same_protocol(evaluation, other)


def test_without_successes_the_table_has_returns_alone() -> None:
    evaluation = TaskEvaluation(["a"], episodes("a", [1.0, 2.0]), {})
    assert evaluation.mean_success_rate is None and evaluation.success_rates() == {}
    assert "success" not in str(evaluation) and "1.5" in str(evaluation)


def test_the_table_takes_further_columns(evaluation: TaskEvaluation) -> None:
    table = evaluation.table("Title", {"KL": {"a": "12.5", "c": "7"}})
    assert table.title == "Title" and [column.header for column in table.columns][-1] == "KL"
    assert list(table.columns[-1].cells)[:3] == ["12.5", "", "7"]
