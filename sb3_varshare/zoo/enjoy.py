"""The zoo's ``enjoy`` on suites: evaluation streams, and a table per task at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rl_zoo3.utils import create_test_env
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn, VecEnvWrapper

from sb3_varshare.evaluation import EpisodeResult, TaskEvaluation
from sb3_varshare.tasks.suite import find_tasks
from sb3_varshare.zoo.config import WRAPPER, is_suite


class EpisodeTable(VecEnvWrapper):
    """
    Keeps the episodes that end, and prints a table of them when the envs are closed.

    :param venv: of a suite
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        tasks = find_tasks(venv)
        assert tasks is not None
        self.tasks = tasks
        self.episodes: list[EpisodeResult] = []
        self._begin()

    def _begin(self) -> None:
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=int)

    def reset(self) -> VecEnvObs:
        """As the envs do."""
        self._begin()
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """As the envs do."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self._returns += rewards
        self._lengths += 1
        for env in np.flatnonzero(dones):
            self._keep(int(env), infos[env])
        self._returns[dones], self._lengths[dones] = 0.0, 0
        return observations, rewards, dones, infos

    def _keep(self, env: int, info: dict[str, Any]) -> None:
        task = info["task"]
        number = sum(episode.task == task for episode in self.episodes)
        success = info.get("is_success"), info.get("success_last")
        self.episodes.append(EpisodeResult(task, number, float(self._returns[env]), int(self._lengths[env]), *success))

    def evaluation(self) -> TaskEvaluation | None:
        """
        :return: of the tasks that were played to an end, None where there is none
        """
        played = [name for name in self.tasks.names if any(episode.task == name for episode in self.episodes)]
        return TaskEvaluation(played, self.episodes, self.tasks.protocol) if played else None

    def close(self) -> None:
        """Print the table and close the envs."""
        evaluation = self.evaluation()
        if evaluation is None:
            print("No episode ended: give more steps by -n.")
        else:
            table, console = evaluation.table(f"{len(self.episodes)} episodes"), Console()
            # A line that is too long for the terminal wraps; rich would cut the numbers.
            console.width = max(
                console.width, console.measure(table, options=console.options.update(width=1_000)).maximum
            )
            console.print(table)
        missing = [name for name in self.tasks.names if evaluation is None or name not in evaluation.task_names]
        if missing and evaluation is not None:
            print(f"Not played to an end: {', '.join(missing)}. Give more steps by -n, or more envs by --n-envs.")
        self.venv.close()


def create_suite_test_env(env_id: str, **options: Any) -> VecEnv:
    """
    The zoo's ``create_test_env``; a suite plays on streams that training never sees.

    :param env_id: of Gymnasium
    :param options: as in the zoo
    :return: envs
    """
    if not is_suite(env_id):
        plain: VecEnv = create_test_env(env_id, **options)
        return plain
    options["env_kwargs"] = {"purpose": "evaluation", **(options.get("env_kwargs") or {})}
    options["hyperparams"].setdefault("vec_env_wrapper", WRAPPER)
    return EpisodeTable(create_test_env(env_id, **options))
