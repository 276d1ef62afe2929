"""One run of a trial: an agent of the zoo's files with some arguments replaced, trained and evaluated on every task."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rl_zoo3.utils import get_callback_list
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.evaluation import TaskEvaluation, evaluate_tasks
from sb3_varshare.zoo.config import is_suite
from sb3_varshare.zoo.manager import ALGO, MultiTaskExperimentManager
from sb3_varshare.zoo.registration import register


@dataclass(frozen=True)
class Settings:
    """
    What a trial is. A study keeps its settings, and is refused to a command with others.

    :param env: suite, such as Contextual-v0
    :param conf_file: YAML in the zoo's form; by default zoo_configs/varshare_sac.yml
    :param params: YAML, such as "{width: 64, adapter: low_rank}", in the place of the file's
    :param env_kwargs: YAML, such as "{horizon: 50}"
    :param search_space: YAML, such as "[beta, sigma_prior]" or "{beta: [0.01, 0.1], estimator: [flipout]}"; by default
        the file's, else beta, sigma_prior and rows_per_task
    :param steps: transitions of all tasks together, by default the file's
    :param evaluations: during a run, evenly spaced; the last one, at its end, counts
    :param eval_episodes: of each task in an evaluation
    :param eval_envs: stepped at once in an evaluation, by default one for each task
    :param seeds_per_trial: runs of each trial, whose mean counts
    :param seed: first seed of these runs, which are the same for all trials; also that of the sampler
    """

    env: str
    conf_file: str | None = None
    params: str = "{}"
    env_kwargs: str = "{}"
    search_space: str | None = None
    steps: int | None = None
    evaluations: int = 4
    eval_episodes: int = 5
    eval_envs: int | None = None
    seeds_per_trial: int = 1
    seed: int = 0

    def check(self) -> None:
        """
        :raises ValueError: a number is not possible
        """
        for name in ("steps", "evaluations", "eval_episodes", "eval_envs", "seeds_per_trial"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    @property
    def seeds(self) -> list[int]:
        """Of the runs of every trial."""
        return list(range(self.seed, self.seed + self.seeds_per_trial))


def _yaml(text: str, option: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"Expected YAML as {option}, got {text!r}: {error}") from error


def _yaml_mapping(text: str, option: str) -> dict[str, Any]:
    found = _yaml(text, option)
    if not isinstance(found, dict):
        raise ValueError(f"Expected a YAML mapping such as '{{key: value}}' as {option}, got {text!r}.")
    return found


class Measurement(NamedTuple):
    """
    An evaluation during a run.

    :param number: of the evaluation, from 1
    :param step: transitions of all tasks together
    :param updates: gradient steps
    :param seconds: of training alone, by the clock on the wall
    :param evaluation: of every task
    """

    number: int
    step: int
    updates: int
    seconds: float
    evaluation: TaskEvaluation


class Trainer:
    """
    Reads an entry of the zoo's files by the zoo's own reader, and trains agents of it.

    :param settings: what a run is
    :param device: of the agent
    :param algo: name of the agent's algorithm in the zoo
    :raises ValueError: a key, a parameter or an argument is not possible, or the env is no suite
    :raises ImportError: if the suite's own package is not installed
    """

    def __init__(self, settings: Settings, device: str = "cpu", algo: str = ALGO) -> None:
        settings.check()
        register()
        if not is_suite(settings.env):
            raise ValueError(f"Expected a suite of sb3_varshare, such as Contextual-v0, got {settings.env!r}.")
        if settings.conf_file is not None and not Path(settings.conf_file).is_file():
            raise ValueError(f"There is no file {settings.conf_file!r} of hyper-parameters.")
        params = _yaml_mapping(settings.params, "--params")
        if settings.search_space is not None:
            params["search_space"] = _yaml(settings.search_space, "--search-space")
        env_kwargs = _yaml_mapping(settings.env_kwargs, "--env-kwargs")
        self.settings = settings
        self._manager = MultiTaskExperimentManager(
            *(None, algo, settings.env, ""),
            config=settings.conf_file,
            hyperparams=params,
            env_kwargs=env_kwargs,
            n_timesteps=settings.steps or 0,
            n_eval_episodes=settings.eval_episodes,
            optimize_hyperparameters=True,
            seed=settings.seed,
            device=device,
            verbose=0,
        )
        self._set_up(env_kwargs)

    def _set_up(self, env_kwargs: dict[str, Any]) -> None:
        manager = self._manager
        # The zoo prints what it reads.
        with contextlib.redirect_stdout(io.StringIO()):
            manager.setup_experiment()
        self.space, self.n_tasks, self.steps = manager.space, manager.n_tasks, int(manager.n_timesteps)
        self._eval_envs = self.settings.eval_envs or self.n_tasks
        # What stands elsewhere in the declaration.
        elsewhere = ("n_timesteps", "search_space", "env_kwargs")
        self.declaration: dict[str, Any] = {
            "algo": manager.algo,
            "env": self.settings.env,
            "env_kwargs": {**manager.env_kwargs, **env_kwargs},
            "entry": {key: value for key, value in manager.entry.items() if key not in elsewhere},
            "space": self.space.declaration(),
            "steps": self.steps,
            "evaluations": self.settings.evaluations,
            "eval_episodes": self.settings.eval_episodes,
            "seeds": self.settings.seeds,
        }

    def check(self) -> None:
        """
        Build an agent once, with the file's arguments, so that a mistake in them is found before there is a study.

        :raises ValueError: an argument is not possible
        """
        model = self._manager.make_agent({}, self.settings.seed)
        assert model.env is not None
        model.env.close()

    def train(
        self, arguments: dict[str, Any], seed: int, report: Callable[[Measurement], None] | None = None
    ) -> TaskEvaluation:
        """
        One run.

        :param arguments: of the agent, in the place of those in the file
        :param seed: of everything
        :param report: gets every evaluation; what it raises ends the run
        :return: the last evaluation
        :raises FloatingPointError: the run met numbers that are not finite
        :raises ValueError: the agent has learned nothing, as the warm-up was not over at the end
        """
        set_random_seed(seed)
        model = self._manager.make_agent(arguments, seed)
        assert model.env is not None
        eval_env = None
        try:
            eval_env = self._manager.create_envs(self._eval_envs, eval_env=True)
            callback = Evaluations(eval_env, self.steps, self.settings, report or (lambda measurement: None))
            own = get_callback_list({"callback": self._manager.specified_callbacks})
            try:
                model.learn(self.steps, callback=CallbackList([*own, callback]), log_interval=self.steps)
            except (AssertionError, ValueError) as error:
                # PyTorch's distributions raise it for weights that are not finite.
                raise FloatingPointError(f"{type(error).__name__}: {error}") from error
            if getattr(model, "_n_updates", None) == 0:
                raise ValueError(
                    f"The agent took no gradient step in {self.steps} steps of all tasks together: they were its "
                    f"warm-up (learning_starts={getattr(model, 'learning_starts', 0)}, and varshare_sac waits until "
                    "every task has finished an episode). Give more steps, or fewer learning_starts."
                )
            assert callback.last is not None
            return callback.last
        finally:
            model.env.close()
            if eval_env is not None:
                eval_env.close()


@dataclass
class _Schedule:
    """When to evaluate: after equal shares of the steps, the last time at the end of the training."""

    steps: int
    evaluations: int
    done: int = 0

    def is_due(self, step: int) -> bool:
        return self.done + 1 < self.evaluations and step * self.evaluations >= (self.done + 1) * self.steps


class Evaluations(BaseCallback):
    """
    Evaluates every task at equal distances and at the end of the training.

    :param eval_env: for evaluation
    :param steps: of the training
    :param settings: number of evaluations, and their episodes
    :param report: gets every evaluation
    """

    def __init__(self, eval_env: VecEnv, steps: int, settings: Settings, report: Callable[[Measurement], None]) -> None:
        super().__init__()
        self._eval_env, self._report, self._n_episodes = eval_env, report, settings.eval_episodes
        self._schedule = _Schedule(steps, settings.evaluations)
        self.last: TaskEvaluation | None = None
        self._started, self._paused = time.perf_counter(), 0.0

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()

    def _on_step(self) -> bool:
        if self._schedule.is_due(self.num_timesteps):
            self._evaluate()
        return True

    def _on_training_end(self) -> None:
        # Many envs at once may have stepped over an evaluation; the one at the end has the last number all the same.
        self._schedule.done = self._schedule.evaluations - 1
        self._evaluate()

    def _evaluate(self) -> None:
        self._schedule.done += 1
        begun = time.perf_counter()
        seconds = begun - self._started - self._paused
        self.last = evaluate_tasks(self.model, self._eval_env, self._n_episodes)
        self._paused += time.perf_counter() - begun
        updates = int(getattr(self.model, "_n_updates", 0))
        self._report(Measurement(self._schedule.done, self.num_timesteps, updates, seconds, self.last))
