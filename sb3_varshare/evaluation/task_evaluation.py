"""The outcome of evaluating an agent on every task: data, intervals, a table."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats


class EpisodeResult(NamedTuple):
    """
    One evaluation episode.

    :param task: name of the task
    :param episode: number of the episode of this task
    :param episode_return: sum of raw rewards
    :param length: steps
    :param is_success: success at any step; ``None`` where the environment reports none
    :param success_last: success at the last step; ``None`` where the environment reports none
    """

    task: str
    episode: int
    episode_return: float
    length: int
    is_success: bool | None
    success_last: bool | None


class Estimate(NamedTuple):
    """
    A mean with its interval.

    :param mean: of the episodes
    :param low: lower end of the interval
    :param high: upper end
    """

    mean: float
    low: float
    high: float


def mean_interval(values: list[float], level: float) -> Estimate:
    """
    Mean and Student's t interval over episodes.

    :param values: at least one
    :param level: coverage
    """
    mean = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    if spread == 0:
        return Estimate(mean, mean, mean)
    low, high = stats.t.interval(level, len(values) - 1, loc=mean, scale=spread / np.sqrt(len(values)))
    return Estimate(mean, float(low), float(high))


def share_interval(values: list[bool], level: float) -> Estimate:
    """
    Share of successes and Wilson's interval.

    :param values: at least one
    :param level: coverage
    """
    interval = stats.binomtest(sum(values), len(values)).proportion_ci(level, method="wilson")
    return Estimate(float(np.mean(values)), float(interval.low), float(interval.high))


class TaskEvaluation:
    """
    Episodes of every task, with their means and intervals.

    :param task_names: (T,) in order
    :param episodes: of all tasks
    :param protocol: how the environments were set up; what must be equal for two results to be comparable
    :param level: coverage of the intervals
    """

    def __init__(
        self, task_names: list[str], episodes: list[EpisodeResult], protocol: dict[str, Any], level: float = 0.95
    ) -> None:
        self.task_names, self.episodes, self.protocol, self.level = task_names, episodes, protocol, level

    def of_task(self, task: str) -> list[EpisodeResult]:
        """
        :param task: name of the task
        """
        return [episode for episode in self.episodes if episode.task == task]

    def returns(self) -> dict[str, Estimate]:
        """Mean raw return of each task with its interval over episodes."""
        return {
            task: mean_interval([episode.episode_return for episode in self.of_task(task)], self.level)
            for task in self.task_names
        }

    def success_rates(self) -> dict[str, Estimate]:
        """Share of episodes with success at any step, with its interval, for the tasks that report success."""
        rates = {}
        for task in self.task_names:
            successes = [episode.is_success for episode in self.of_task(task) if episode.is_success is not None]
            if successes:
                rates[task] = share_interval(successes, self.level)
        return rates

    @property
    def mean_return(self) -> float:
        """Mean over tasks of the mean return."""
        return float(np.mean([estimate.mean for estimate in self.returns().values()]))

    @property
    def mean_success_rate(self) -> float | None:
        """Mean over the tasks that report success; ``None`` where none does."""
        rates = [estimate.mean for estimate in self.success_rates().values()]
        return float(np.mean(rates)) if rates else None

    def table(self, title: str = "", columns: dict[str, dict[str, str]] | None = None) -> Table:
        """
        A row per task.

        :param title: above the table
        :param columns: further columns, each a text per task
        """
        table = Table(title=title or None)
        table.add_column("task")
        rates = self.success_rates()
        for name in [
            "return",
            f"{self.level:.0%} interval",
            *(["success", "interval"] if rates else []),
            *(columns or {}),
        ]:
            table.add_column(name, justify="right")
        for task, estimate in self.returns().items():
            cells = [f"{estimate.mean:.1f}", f"{estimate.low:.1f} to {estimate.high:.1f}"]
            if rates:
                rate = rates.get(task)
                cells += ["", ""] if rate is None else [f"{rate.mean:.2f}", f"{rate.low:.2f} to {rate.high:.2f}"]
            table.add_row(task, *cells, *(column.get(task, "") for column in (columns or {}).values()))
        success = self.mean_success_rate
        table.add_section()
        table.add_row(
            "mean over tasks", f"{self.mean_return:.1f}", "", *([f"{success:.2f}", ""] if success is not None else [])
        )
        return table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=120).print(self.table())
        return text.getvalue()
