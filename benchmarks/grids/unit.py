"""One unit of work: train one agent on one suite, evaluate it on the clean twin, return tidy rows."""

from __future__ import annotations

import functools
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from declaration import Unit
from learners import RandomAgent, build_agent
from stable_baselines3.common.callbacks import BaseCallback
from suites import SUITES, GridSuite

from sb3_varshare import VarShareSAC, evaluate_tasks
from sb3_varshare.tasks import MultiTaskVecEnv, append_task
from sb3_varshare.varshare_sac.diagnostics import residual_statistics

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("sb3_varshare", "torch", "stable_baselines3", "gymnasium", "numpy")
# The observations at which the actions of two tasks are compared, from uniformly random actions.
PROBE_SEED, PROBE_SIZE, PROBE_EVERY = 2_026, 256, 7
RANDOM_EPISODES = 50
COLUMNS = (
    *("grid", "suite", "agent", "learner", "factor", "level", "settings", "base", "protocol", "seed", "steps"),
    *("task", "reference", "step", "updates", "status", "mean_return", "base_return", "kl_actor", "kl_critic"),
    *("distance_identical", "distance_conflicting", "seconds", *PACKAGES, "python", "commit"),
)

Row = dict[str, Any]


def run_unit(unit: Unit) -> list[Row]:
    """
    Train and evaluate; an agent that diverges is a row per task with the status ``diverged``.

    :param unit: what to run
    :return: a row per evaluation and task, with the keys :data:`COLUMNS`
    """
    suite = SUITES[unit.suite]
    # Single-task agents are as many agents as tasks.
    parts = [suite.only(task.name) for task in suite.tasks] if unit.arm.learner == "single" else [suite]
    rows = [row for part in parts for row in _play(unit, part)]
    common = {**unit.identity, **versions()}
    references = {task.name: task.reference for task in suite.tasks}
    return [
        {**dict.fromkeys(COLUMNS), **common, "reference": references[row["task"]], "status": "finished", **row}
        for row in rows
    ]


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes, and the commit, with a ``+`` where the code differs from it."""
    return {**{name: version(name) for name in PACKAGES}, "python": platform.python_version(), "commit": _commit()}


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "sb3_varshare", "benchmarks/grids/*.py")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _play(unit: Unit, suite: GridSuite) -> list[Row]:
    if unit.arm.learner == "random":
        agent = RandomAgent(1, unit.seed)
        returns = _returns(agent, suite.clean_env(unit.seed, 5), RANDOM_EPISODES)
        return [{"task": task, "step": unit.steps, "mean_return": value} for task, value in returns.items()]
    env = suite.training_env(unit.seed)
    model = build_agent(unit.arm.learner, unit.settings, suite, env, unit.seed)
    evaluations = Evaluations(unit, suite)
    try:
        model.learn(unit.steps * env.n_tasks, callback=evaluations)
    except (FloatingPointError, ValueError) as error:
        # SB3's SAC does not look at its losses: it fails where it draws from a distribution that is not finite.
        if isinstance(error, ValueError) and is_finite(model):
            raise
        status = {"step": unit.steps, "updates": model._n_updates, "status": "diverged"}
        evaluations.rows += [{"task": task.name, **status, "seconds": evaluations.seconds()} for task in suite.tasks]
    return evaluations.rows


def is_finite(model: Any) -> bool:
    """
    :param model: an agent of SB3
    :return: whether all of its parameters are finite
    """
    return all(bool(th.isfinite(parameter).all()) for parameter in model.policy.parameters())


class Evaluations(BaseCallback):
    """
    Evaluates at evenly spaced steps and at the end, between updates. The agent's training is not changed by it.

    :param unit: how often, and with how many episodes
    :param suite: whose clean twin is played
    """

    def __init__(self, unit: Unit, suite: GridSuite) -> None:
        super().__init__()
        self.unit, self.suite, self.measurement = unit, suite, unit.measurement
        self.env: MultiTaskVecEnv = suite.clean_env(unit.seed, unit.measurement.episodes)
        self.rows: list[Row] = []
        self._done = 0
        self._started, self._paused = time.process_time(), 0.0

    def seconds(self) -> float:
        """Processor time of training so far, s, without evaluations: with one thread no other load moves it."""
        return time.process_time() - self._started - self._paused

    def _on_training_start(self) -> None:
        self._started = time.process_time()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        due = (self._done + 1) * self.unit.steps * len(self.suite.tasks) / self.measurement.points
        if self.num_timesteps >= due and self._done + 1 < self.measurement.points:
            self._evaluate(self.measurement.episodes, with_base=self._done == 0)

    def _on_training_end(self) -> None:
        self._evaluate(self.measurement.final_episodes, with_base=True)

    def _evaluate(self, n_episodes: int, with_base: bool) -> None:
        if not is_finite(self.model):
            raise FloatingPointError(f"Parameters are not finite after {self.num_timesteps} steps.")
        seconds, started = self.seconds(), time.process_time()
        self._done += 1
        columns: dict[str, dict[str, float]] = {"mean_return": _returns(self.model, self.env, n_episodes)}
        columns |= kls(self.model)
        if with_base and "kl_actor" in columns:
            columns["base_return"] = _returns(self.model, self.env, n_episodes, base=True)
        columns |= distances(self.model, self.suite)
        common = {
            "step": self.num_timesteps // len(self.suite.tasks),
            "updates": self.model._n_updates,
            "seconds": seconds,
        }
        for task in self.suite.tasks:
            values = {name: column[task.name] for name, column in columns.items() if task.name in column}
            self.rows.append({"task": task.name, **common, **values})
        self._paused += time.process_time() - started


def _returns(model: Any, env: MultiTaskVecEnv, n_episodes: int, base: bool = False) -> dict[str, float]:
    estimates = evaluate_tasks(model, env, n_episodes, base=base).returns()
    return {task: estimate.mean for task, estimate in estimates.items()}


def kls(model: Any) -> dict[str, dict[str, float]]:
    """
    :param model: any agent
    :return: for an agent with residuals, column -> task -> KL in nats of the actor and of the critics
    """
    if not isinstance(model, VarShareSAC):
        return {}
    networks = {"kl_actor": model.policy.actor, "kl_critic": model.policy.critic.net}
    found = {name: residual_statistics(network).get("kl") for name, network in networks.items()}
    return {
        name: dict(zip(model.task_names, values.tolist(), strict=True))
        for name, values in found.items()
        if values is not None
    }


@functools.cache
def probe() -> np.ndarray:
    """Observations without a one-hot, (256, D): every seventh of uniformly random play, the same for all agents."""
    suite = SUITES["identical"].only("forward")
    env, agent = suite.clean_env(PROBE_SEED), RandomAgent(1, PROBE_SEED)
    observations = [env.reset()]
    for _ in range(PROBE_SIZE * PROBE_EVERY):
        # The agent looks at nothing but the number of rows.
        observations.append(env.step(agent.predict(observations[0])[0])[0])  # type: ignore[arg-type]
    return np.concatenate(observations)[: PROBE_SIZE * PROBE_EVERY : PROBE_EVERY, :-1]


def distances(model: Any, suite: GridSuite) -> dict[str, dict[str, float]]:
    """
    How differently two tasks act: the mean absolute difference of their mean actions in [-1, 1] on the same
    observations. 0 is no difference; of opposite actions it is twice their mean size, at most 2.

    :param model: of the suite's tasks
    :param suite: which tasks make a pair
    :return: column -> task -> distance
    """
    names = [task.name for task in suite.tasks]
    columns = {}
    for column, pair in (("distance_identical", suite.identical), ("distance_conflicting", suite.conflicting)):
        if pair is not None:
            mean_actions = [_mean_actions(model, names.index(name), len(names)) for name in pair]
            columns[column] = dict.fromkeys(pair, float(np.abs(mean_actions[0] - mean_actions[1]).mean()))
    return columns


def _mean_actions(model: Any, task_id: int, n_tasks: int) -> np.ndarray:
    observations = np.stack([append_task(row, task_id, n_tasks) for row in probe()])
    actions: np.ndarray = model.predict(observations, deterministic=True)[0]
    return actions
