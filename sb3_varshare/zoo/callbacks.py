"""Evaluation of every task in the zoo: while training, and of a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rl_zoo3.callbacks import TrialEvalCallback

from sb3_varshare.evaluation import EvalTasksCallback, TaskEvaluation, evaluate_tasks
from sb3_varshare.tasks.suite import find_tasks
from sb3_varshare.tuning.objective import objective_value


class ZooEvalCallback(EvalTasksCallback):
    """
    Also writes ``evaluations.npz`` as SB3's ``EvalCallback`` does, which the zoo's plots read.

    A row of it holds the episodes of all tasks, in the order of ``task_names``.
    """

    def _init_callback(self) -> None:
        super()._init_callback()
        self._history: list[tuple[int, TaskEvaluation]] = []

    def _evaluate(self) -> None:
        super()._evaluate()
        assert self.last is not None
        self._history.append((self.num_timesteps, self.last))
        if self.log_path is not None:
            self._write_npz(self.log_path / "evaluations.npz")

    def _write_npz(self, path: Path) -> None:
        rows: list[list[Any]] = [evaluation.episodes for _, evaluation in self._history]
        columns: dict[str, Any] = {
            "timesteps": [step for step, _ in self._history],
            "results": [[episode.episode_return for episode in row] for row in rows],
            "ep_lengths": [[episode.length for episode in row] for row in rows],
            "task_names": [episode.task for episode in self._history[0][1].episodes],
        }
        # A task without success would have to be counted as failed.
        if all(episode.is_success is not None for row in rows for episode in row):
            columns["successes"] = [[episode.is_success for episode in row] for row in rows]
        np.savez(path, **columns)


class TrialTasksCallback(TrialEvalCallback):
    """
    Evaluates a trial on every task of a suite, and reports :func:`~sb3_varshare.tuning.objective_value`.

    ``n_eval_episodes`` are those of each task. Other environments are evaluated as in the zoo.
    """

    def _on_step(self) -> bool:
        if find_tasks(self.eval_env) is None:
            keep_going: bool = super()._on_step()
            return keep_going
        if self.eval_freq > 0 and self.n_calls % self.eval_freq == 0:
            self._evaluate()
            self.trial.report(self.last_mean_reward, self.eval_idx)
            if self.trial.should_prune():
                self.is_pruned = True
                return False
        return True

    def _on_training_end(self) -> None:
        # With many envs there can be fewer calls than the zoo counts on.
        if self.eval_idx == 0 and find_tasks(self.eval_env) is not None:
            self._evaluate()

    def _evaluate(self) -> None:
        evaluation = evaluate_tasks(self.model, self.eval_env, self.n_eval_episodes, self.deterministic)
        self.last_mean_reward = objective_value(evaluation)
        self.eval_idx += 1
        attributes = {
            "mean_return": evaluation.mean_return,
            "mean_success_rate": evaluation.mean_success_rate,
            "returns": {task: estimate.mean for task, estimate in evaluation.returns().items()},
            "success_rates": {task: estimate.mean for task, estimate in evaluation.success_rates().items()},
        }
        for name, value in attributes.items():
            self.trial.set_user_attr(name, value)
        if self.last_mean_reward > self.best_mean_reward:
            self.best_mean_reward = self.last_mean_reward
            if self.best_model_save_path is not None:
                self.model.save(Path(self.best_model_save_path) / "best_model.zip")
