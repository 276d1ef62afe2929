"""The outcome of evaluating an agent on every task: data, intervals, a table."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from sb3_varshare.tasks.protocol import describe_protocol, protocol_differences


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
    :param protocol: how the environments were set up; what must be equal for two results to be comparable, see
        :func:`sb3_varshare.tasks.check_same_protocol`
    :param level: coverage of the intervals
    :param trained_protocol: that of the agent's training, where it is known
    """

    def __init__(
        self,
        task_names: list[str],
        episodes: list[EpisodeResult],
        protocol: dict[str, Any],
        level: float = 0.95,
        trained_protocol: dict[str, Any] | None = None,
    ) -> None:
        self.task_names, self.episodes, self.protocol, self.level = task_names, episodes, protocol, level
        self.trained_protocol = trained_protocol

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
        return self._shares("is_success")

    def last_success_rates(self) -> dict[str, Estimate]:
        """Share of episodes with success at their last step, with its interval, for the tasks that report success."""
        return self._shares("success_last")

    def _shares(self, field: str) -> dict[str, Estimate]:
        rates = {}
        for task in self.task_names:
            successes = [getattr(episode, field) for episode in self.of_task(task)]
            known = [success for success in successes if success is not None]
            if known:
                rates[task] = share_interval(known, self.level)
        return rates

    @property
    def mean_return(self) -> float:
        """Mean over tasks of the mean return."""
        return float(np.mean([estimate.mean for estimate in self.returns().values()]))

    @property
    def mean_success_rate(self) -> float | None:
        """Mean over the tasks that report success; ``None`` where none does."""
        return _mean(self.success_rates())

    @property
    def mean_last_success_rate(self) -> float | None:
        """The same of success at the last step."""
        return _mean(self.last_success_rates())

    @property
    def protocol_line(self) -> str:
        """The protocol in words; where training had another one, what differed."""
        line = describe_protocol(self.protocol)
        differences = protocol_differences(self.trained_protocol or self.protocol, self.protocol)
        return f"{line}\nTrained under another protocol: {'; '.join(differences)}" if differences else line

    def table(self, title: str = "", columns: dict[str, dict[str, str]] | None = None) -> Table:
        """
        A row per task, and the protocol below.

        :param title: above the table
        :param columns: further columns, each a text per task
        """
        table = Table(title=title or None, caption=self.protocol_line, caption_justify="left")
        table.add_column("task")
        rates, last_rates = self.success_rates(), self.last_success_rates()
        for name in [
            "return",
            f"{self.level:.0%} interval",
            *(["success", "interval", "at last step"] if rates else []),
            *(columns or {}),
        ]:
            table.add_column(name, justify="right")
        for task, estimate in self.returns().items():
            cells = [f"{estimate.mean:.1f}", f"{estimate.low:.1f} to {estimate.high:.1f}"]
            if rates:
                rate, last = rates.get(task), last_rates.get(task)
                cells += ["", ""] if rate is None else [f"{rate.mean:.2f}", f"{rate.low:.2f} to {rate.high:.2f}"]
                cells += ["" if last is None else f"{last.mean:.2f}"]
            table.add_row(task, *cells, *(column.get(task, "") for column in (columns or {}).values()))
        success, last_success = self.mean_success_rate, self.mean_last_success_rate
        table.add_section()
        means = [] if success is None else [f"{success:.2f}", "", "" if last_success is None else f"{last_success:.2f}"]
        table.add_row("mean over tasks", f"{self.mean_return:.1f}", "", *means)
        return table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=120).print(self.table())
        return text.getvalue()


def _mean(rates: dict[str, Estimate]) -> float | None:
    return float(np.mean([estimate.mean for estimate in rates.values()])) if rates else None
