"""The zoo's experiment manager where many tasks need more than its files and hooks offer."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
import warnings
from functools import partial
from typing import Any, cast

import gymnasium as gym
import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages.journal import JournalFileBackend
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS, SimpleLinearSchedule
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import ConvertCallback, ProgressBarCallback
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecMonitor

from sb3_varshare.presets import preset_arguments
from sb3_varshare.tasks import MultiTaskVecEnv, WorkerOptions, make_suite
from sb3_varshare.tasks.layout import check_n_envs, evaluation_layout
from sb3_varshare.tuning.search_space import SearchSpace, claim_study, to_arguments
from sb3_varshare.tuning.trial_sampler import TrialSeededSampler, trial_seed
from sb3_varshare.zoo.callbacks import ZooEvalCallback
from sb3_varshare.zoo.config import WRAPPER, check_keys, count_tasks, is_suite, own_config, trained_steps

ALGO = "varshare_sac"
# What PyTorch says in an error of no class of its own where there is no memory for a tensor, or for cuBLAS.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_failure(error: BaseException) -> bool:
    """
    :param error: by which a trial has ended
    :return: whether it has failed, for memory or for numbers that are not finite, and the study goes on
    """
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in OUT_OF_MEMORY)
    return isinstance(error, FloatingPointError | MemoryError)


@dataclasses.dataclass
class Continued:
    """
    A loaded agent whose training goes on where it was; the zoo starts it from zero.

    :param model: the agent
    """

    model: BaseAlgorithm

    @property
    def env(self) -> Any:
        """The agent's."""
        return self.model.env

    def learn(self, total_timesteps: int, **options: Any) -> None:
        """
        :param total_timesteps: of the whole training
        :param options: of the agent's ``learn``
        """
        remaining = total_timesteps - self.model.num_timesteps
        self.model.learn(remaining, reset_num_timesteps=False, **options)


class MultiTaskExperimentManager(ExperimentManager):
    """
    Reads, trains, resumes and tunes as the zoo does, and every task of a suite is evaluated.

    :param args: all options of the command
    :param algo: name of the algorithm
    :param env_id: of Gymnasium
    :param positional: as in the zoo
    :param config: file or module with hyper-parameters; for suites and for this package's agent by default
        ``zoo_configs/<algo>.yml``
    :param keywords: as in the zoo
    """

    def __init__(
        self, args: Any, algo: str, env_id: str, *positional: Any, config: str | None = None, **keywords: Any
    ) -> None:
        self.is_suite = is_suite(env_id)
        if config is None and (self.is_suite or algo == ALGO):
            config = own_config(algo)
        super().__init__(args, algo, env_id, *positional, **{**keywords, "config": config})
        self.n_tasks = 1
        self.space = SearchSpace.of()
        # What the file and the command say, as a run saves it.
        self.entry: dict[str, Any] = {}

    # Hyper-parameters

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: the entry of the file with what a trial and the command say, and the same to be saved
        :raises ValueError: a key is unknown, or something that is needed is not there
        """
        if self.trial_id == 0 and self.storage and self.study_name:
            # The zoo takes number 0 for no number.
            trial = self.load_trial(self.storage, self.study_name, 0)
            self.custom_hyperparams = {**trial, **(self.custom_hyperparams or {})}
        hyperparams, saved = super().read_hyperparameters()
        self.entry = copy.deepcopy(dict(saved))
        check_keys(hyperparams, self.algo, ALGOS[self.algo])
        check_n_envs(hyperparams.get("n_envs", 1))
        self._check_timesteps(hyperparams)
        if self.is_suite:
            for entry in (hyperparams, saved):
                entry.setdefault("vec_env_wrapper", WRAPPER)
        self.n_tasks = count_tasks(self.env_name.gym_id, hyperparams.get("env_kwargs") or self.env_kwargs)
        if self.algo == ALGO:
            request = hyperparams.pop("search_space", None)
            hyperparams = to_arguments(hyperparams, self.n_tasks)
            if self.optimize_hyperparameters:
                self._choose_space(request, hyperparams)
        return hyperparams, saved

    def _check_timesteps(self, hyperparams: dict[str, Any]) -> None:
        if self.n_timesteps <= 0 and "n_timesteps" not in hyperparams:
            raise ValueError("Expected n_timesteps in the file of hyper-parameters, or the option -n.")
        # The zoo needs the key in any case.
        total = self.n_timesteps if self.n_timesteps > 0 else int(hyperparams["n_timesteps"])
        hyperparams["n_timesteps"] = total
        done = trained_steps(self.trained_agent) if self.continue_training else 0
        if done >= total:
            raise ValueError(
                f"The agent has been trained for {done} of {total} steps; -n counts from the beginning of its "
                "training: give a greater number."
            )

    def _choose_space(self, request: Any, hyperparams: dict[str, Any]) -> None:
        self.space = SearchSpace.of(request)
        preset = hyperparams.get("preset")
        defaults = {} if preset is None else preset_arguments(preset, self.n_tasks)
        self.space.check_adapter(hyperparams.get("adapter", defaults.get("adapter", "varshare")))

        def sample(trial: optuna.Trial, n_actions: int, n_envs: int, additional: dict[str, Any]) -> dict[str, Any]:
            return self.space.sample(trial, self.n_tasks)

        samplers: dict[str, Any] = HYPERPARAMS_SAMPLER
        samplers[ALGO] = sample

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        if isinstance(hyperparams.get("beta"), str):
            kind, _, start = hyperparams["beta"].partition("_")
            if kind != "lin":
                raise ValueError(f"beta must be a number or lin_<first value>, got {hyperparams['beta']!r}.")
            hyperparams["beta"] = SimpleLinearSchedule(start)
        hyperparams = ExperimentManager._preprocess_schedules(hyperparams)
        # SB3's own is equal, and a file of the agent holds it without a pickle.
        return {
            key: LinearSchedule(value.initial_value, 0.0, 1.0) if isinstance(value, SimpleLinearSchedule) else value
            for key, value in hyperparams.items()
        }

    def _preprocess_normalization(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        if self.is_suite and hyperparams.get("normalize"):
            raise ValueError(
                "normalize wraps the envs in VecNormalize, which has one scale for all tasks and would normalise the "
                "task one-hot; leave it out. VarShareSAC scales rewards per task, and observations with "
                "normalize_observations: true."
            )
        return super()._preprocess_normalization(hyperparams)

    # Environments

    def create_log_folder(self) -> None:
        """Make the folder of the run. A search has none: an empty one would be taken for the latest run."""
        if not self.optimize_hyperparameters:
            super().create_log_folder()

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: N
        :param eval_env: on streams that training never sees
        :param no_log: write no file of episodes
        :return: envs; with ``--vec-env subproc`` in this package's supervised processes
        """
        no_log = no_log or self.optimize_hyperparameters
        if self.is_suite:
            own = self._eval_env_kwargs_args if eval_env else None
            env_kwargs = {**(own or self.env_kwargs), **({"purpose": "evaluation"} if eval_env else {})}
            if self.vec_env_class is SubprocVecEnv:
                return self._worker_envs(n_envs, env_kwargs, no_log or eval_env)
            if eval_env:
                self.eval_env_kwargs = env_kwargs
        envs: VecEnv = super().create_envs(n_envs, eval_env, no_log)
        return envs

    def _worker_envs(self, n_envs: int, env_kwargs: dict[str, Any], no_log: bool) -> VecEnv:
        if self.env_wrapper is not None:
            raise ValueError("env_wrapper cannot be given to envs in worker processes; use --vec-env dummy.")
        options = {**gym.spec(self.env_name.gym_id).kwargs, **env_kwargs}
        purpose, render_mode = options.pop("purpose", "train"), options.pop("render_mode", None)
        suite = make_suite(options.pop("suite"), **options)
        workers = WorkerOptions("auto", **self.vec_env_kwargs)
        # What AssignTasks would do; these envs know their tasks from the start.
        layout = evaluation_layout(n_envs, suite.n_tasks) if purpose == "evaluation" else None
        env: VecEnv = MultiTaskVecEnv(suite, n_envs, self.seed, purpose, render_mode, workers=workers, layout=layout)
        if not no_log:
            with warnings.catch_warnings():
                # These envs count episodes in SB3's way already, but write no file.
                warnings.filterwarnings("ignore", "The environment is already wrapped with a `Monitor`")
                env = VecMonitor(env, os.path.join(self.save_path, "0"), **self.monitor_kwargs)
        return env if self.vec_env_wrapper is None else self.vec_env_wrapper(env)

    def create_callbacks(self) -> None:
        """As in the zoo, with the evaluation of every task in the place of SB3's."""
        if not self.is_suite:
            super().create_callbacks()
            return
        eval_freq, self.eval_freq = self.eval_freq, -1
        super().create_callbacks()
        if eval_freq > 0 and not self.optimize_hyperparameters:
            env = self.create_envs(self.n_eval_envs, eval_env=True)
            options: dict[str, Any] = {"log_path": self.save_path, "deterministic": self.deterministic_eval}
            self.callbacks.append(
                ZooEvalCallback(env, eval_freq, self.n_eval_episodes, verbose=self.verbose, **options)
            )
        # The zoo ends the first callback a second time, which it takes for the progress bar.
        self.callbacks.sort(key=lambda callback: not isinstance(callback, ProgressBarCallback))
        if not self.show_progress:
            self.callbacks.insert(0, ConvertCallback(None))

    # Training

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        if self.algo == ALGO:
            # Everything is in the agent's file. To give ent_coef again would begin its coefficients anew.
            given = {"policy", *to_arguments(self.custom_hyperparams or {}, self.n_tasks)}
            hyperparams = {key: value for key, value in hyperparams.items() if key in given}
        model: BaseAlgorithm = super()._load_pretrained_agent(hyperparams, env)
        if not os.path.exists(os.path.join(os.path.dirname(self.trained_agent), "replay_buffer.pkl")):
            print(
                "No replay_buffer.pkl beside the agent: training goes on with an empty one (see --save-replay-buffer)."
            )
        print(f"Going on at step {model.num_timesteps} of {self.n_timesteps}")
        return model

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train; an agent that was loaded goes on until ``n_timesteps`` of its whole training are done.

        :param model: the agent
        """
        if self.log_interval < -1:
            # The zoo says None, which VarShareSAC takes for its own interval.
            self.log_interval = sys.maxsize
        try:
            super().learn(cast(BaseAlgorithm, Continued(model)) if self.continue_training else model)
        finally:
            # The zoo leaves them open; worker processes would stay.
            for callback in self.callbacks:
                if isinstance(callback, ZooEvalCallback) and callback.eval_env is not None:
                    callback.eval_env.close()

    # Tuning

    def make_agent(self, arguments: dict[str, Any], seed: int) -> BaseAlgorithm:
        """
        An agent with envs of its own, after :meth:`setup_experiment` of a search.

        :param arguments: of the agent, in the place of those in the file
        :param seed: of the agent and its envs, and of the evaluation envs that are created next
        :return: the agent; who asked for it closes its envs
        """
        # SB3 writes into the dictionaries that it is given.
        hyperparams = {**copy.deepcopy(self._hyperparams), **arguments}
        self.seed = seed
        env = self.create_envs(self.n_envs, no_log=True)
        try:
            agent: BaseAlgorithm = ALGOS[self.algo](env=env, seed=seed, device=self.device, **hyperparams)
        except BaseException:
            env.close()
            raise
        return agent

    def _create_sampler(self, sampler_method: str) -> BaseSampler:
        if sampler_method == "auto":
            found: BaseSampler = super()._create_sampler(sampler_method)
            return found

        # The zoo's samplers, made anew for every trial.
        tpe = partial(TPESampler, n_startup_trials=self.n_startup_trials, multivariate=True)
        return TrialSeededSampler(tpe if sampler_method == "tpe" else RandomSampler, self.seed)

    def objective(self, trial: optuna.Trial) -> float:
        """
        :param trial: of Optuna
        :return: what the trial is worth; not a number where it failed, which Optuna marks as failed
        :raises optuna.TrialPruned: the trial was stopped early
        """
        # SB3 writes into the dictionaries that it is given.
        pristine, self._hyperparams = self._hyperparams, copy.deepcopy(self._hyperparams)
        set_random_seed(trial_seed(self.seed, trial.number))
        try:
            value: float = super().objective(trial)
            return value
        except optuna.TrialPruned as pruned:
            # The zoo also calls it pruned where the agent raised, for a value that is not finite as a rule.
            if pruned.__cause__ is None:
                raise
            return self._failed(trial, pruned.__cause__)
        except Exception as error:
            if not is_failure(error):
                raise
            return self._failed(trial, error)
        finally:
            self._hyperparams = pristine

    @staticmethod
    def _failed(trial: optuna.Trial, error: BaseException) -> float:
        trial.set_user_attr("failure", f"{type(error).__name__}: {error}")
        print(f"Trial {trial.number} failed. {type(error).__name__}: {error}")
        return float("nan")

    def hyperparameters_optimization(self) -> None:
        """
        Search as the zoo does, after the study was found to be of the same environment, algorithm and space.

        :raises ValueError: the study is of others
        """
        if self.n_jobs > 1:
            warnings.warn(
                "--n-jobs are threads that share random generators; run the command once more instead.", stacklevel=2
            )
        if self.storage is not None and self.study_name is not None:
            study = optuna.create_study(
                storage=self._open_storage(), study_name=self.study_name, load_if_exists=True, direction="maximize"
            )
            space = self.space.declaration() if self.algo == ALGO else f"that of rl_zoo3 for {self.algo}"
            claim_study(study, {"algo": self.algo, "env": self.env_name.gym_id, "space": space})
        super().hyperparameters_optimization()

    def _open_storage(self) -> Any:
        assert self.storage is not None
        if not self.storage.endswith(".log"):
            return self.storage
        os.makedirs(os.path.dirname(self.storage) or ".", exist_ok=True)
        return optuna.storages.JournalStorage(JournalFileBackend(self.storage))
