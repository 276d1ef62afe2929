"""Per-task evaluation during training."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.evaluation.evaluate import evaluate_tasks
from sb3_varshare.evaluation.evaluation_env import evaluation_env
from sb3_varshare.evaluation.task_evaluation import EpisodeResult, TaskEvaluation
from sb3_varshare.tasks.protocol import check_same_protocol

COLUMNS = ("step", "seconds", "weights", *EpisodeResult._fields)


class EvalTasksCallback(BaseCallback):
    """
    Evaluates every task with the same number of episodes, at the first step and then regularly.

    Writes ``evaluations.csv`` (a row per step, task and episode; ``seconds`` is the wall-clock of training so far,
    without the evaluations), beside it ``protocol.json``, and keeps the best model by mean success rate, then mean
    return, as ``best_model.zip``. One table has one protocol: going on with another one is refused.

    :param eval_env: where to evaluate; by default the evaluation twin of the training environment. Multi-task envs play
        the same episodes at every evaluation, with the base alone too
    :param eval_freq: transitions of all tasks together between evaluations
    :param n_episodes: of each task
    :param log_path: folder of the table and the best model; ``None`` writes nothing
    :param deterministic: act with the mean of the policy
    :param evaluate_base: evaluate the shared base alone (phi = 0) as well
    :param verbose: 1 prints a line per evaluation
    """

    def __init__(
        self,
        eval_env: VecEnv | None = None,
        eval_freq: int = 10_000,
        n_episodes: int = 5,
        log_path: str | Path | None = None,
        deterministic: bool = True,
        evaluate_base: bool = False,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.eval_env, self.eval_freq, self.n_episodes = eval_env, eval_freq, n_episodes
        self.log_path = None if log_path is None else Path(log_path)
        self.deterministic, self.evaluate_base = deterministic, evaluate_base
        self.best: tuple[float, float] | None = None
        self.last: TaskEvaluation | None = None
        self._next_evaluation = 0
        self._seconds, self._resumed_at = 0.0, 0.0
        self._env: VecEnv | None = None
        self._is_twin = False

    def _init_callback(self) -> None:
        self._close_twin()
        given = self.model.env if self.eval_env is None else self.eval_env
        self._env = evaluation_env(given, self.model)
        self._is_twin = self._env is not given
        if self.evaluate_base and not getattr(self.model.policy, "has_base", False):
            raise ValueError(
                "evaluate_base=True needs a shared base, which neither independent networks nor agents of SB3 have."
            )
        if self.log_path is not None:
            self.log_path.mkdir(parents=True, exist_ok=True)
            if self.last is None and self.model.num_timesteps == 0 and self._table.exists():
                raise FileExistsError(f"{self._table} holds another run; choose another log_path or move it away.")

    @property
    def _table(self) -> Path:
        assert self.log_path is not None
        return self.log_path / "evaluations.csv"

    def _on_training_start(self) -> None:
        # A training that counts from zero again is evaluated from its start.
        self._next_evaluation = max(self._next_evaluation, self.num_timesteps) if self.num_timesteps else 0
        self._resumed_at = time.perf_counter()

    def _on_rollout_start(self) -> None:
        # Between updates, not within a step: the model is whole, and the transition is stored.
        if self.num_timesteps >= self._next_evaluation:
            self._next_evaluation = self.num_timesteps + self.eval_freq
            self._evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._evaluate()
        self._close_twin()

    def _close_twin(self) -> None:
        if self._is_twin and self._env is not None:
            self._env.close()
            self._env = None

    def _evaluate(self) -> None:
        assert self._env is not None
        self._seconds += time.perf_counter() - self._resumed_at
        options: dict[str, Any] = {"n_episodes": self.n_episodes, "deterministic": self.deterministic}
        evaluation = evaluate_tasks(self.model, self._env, **options)
        self._keep_protocol(evaluation)
        self.last = evaluation
        self._record("eval", self.last)
        self._write("mean", self.last)
        if self.evaluate_base:
            base = evaluate_tasks(self.model, self._env, base=True, **options)
            self._record("eval_base", base)
            self._write("base", base)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        self._keep_best(self.last)
        self._resumed_at = time.perf_counter()

    def _keep_protocol(self, evaluation: TaskEvaluation) -> None:
        """Write it at the first evaluation, and check it at the others."""
        if self.last is None:
            texts_only_for_tensorboard = ("stdout", "log", "json", "csv")
            self.logger.record("eval/protocol", evaluation.protocol_line, exclude=texts_only_for_tensorboard)
        else:
            check_same_protocol(self.last, evaluation)
        if self.log_path is None:
            return
        path = self.log_path / "protocol.json"
        if self._table.exists() and path.exists():
            check_same_protocol(json.loads(path.read_text(encoding="utf-8")), evaluation)
        else:
            path.write_text(json.dumps(evaluation.protocol, indent=2), encoding="utf-8")

    def _record(self, prefix: str, evaluation: TaskEvaluation) -> None:
        self.logger.record(f"{prefix}/mean_return", evaluation.mean_return)
        if evaluation.mean_success_rate is not None:
            self.logger.record(f"{prefix}/success_rate", evaluation.mean_success_rate)
        if evaluation.mean_last_success_rate is not None:
            self.logger.record(f"{prefix}/last_success_rate", evaluation.mean_last_success_rate)
        for task, estimate in evaluation.returns().items():
            self.logger.record(f"{prefix}_return/{task}", estimate.mean, exclude="stdout")
        for task, estimate in evaluation.success_rates().items():
            self.logger.record(f"{prefix}_success_rate/{task}", estimate.mean, exclude="stdout")
        if self.verbose:
            success = "" if evaluation.mean_success_rate is None else f", success {evaluation.mean_success_rate:.2f}"
            print(f"{self.num_timesteps:>9} {prefix}: return {evaluation.mean_return:.1f}{success}")

    def _write(self, weights: str, evaluation: TaskEvaluation) -> None:
        if self.log_path is None:
            return
        is_new = not self._table.exists()
        with self._table.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(COLUMNS)
            for episode in evaluation.episodes:
                writer.writerow([self.num_timesteps, round(self._seconds, 1), weights, *episode])

    def _keep_best(self, evaluation: TaskEvaluation) -> None:
        score = (evaluation.mean_success_rate or 0.0, evaluation.mean_return)
        if self.best is None or score > self.best:
            self.best = score
            if self.log_path is not None:
                self.model.save(self.log_path / "best_model.zip")
