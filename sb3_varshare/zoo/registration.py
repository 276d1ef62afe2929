"""Makes the agent known to rl_zoo3."""

from __future__ import annotations

from typing import Any

import rl_zoo3.enjoy
import rl_zoo3.exp_manager
import rl_zoo3.train
from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
from rl_zoo3.utils import ALGOS

import sb3_varshare.tasks  # noqa: F401 - registers the Gymnasium ids
from sb3_varshare.tuning.search_space import SearchSpace, trial_arguments
from sb3_varshare.varshare_sac import VarShareSAC
from sb3_varshare.zoo.callbacks import TrialTasksCallback
from sb3_varshare.zoo.enjoy import create_suite_test_env
from sb3_varshare.zoo.manager import ALGO, MultiTaskExperimentManager


def sample_varshare_sac_params(
    trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    The default search space for one task; for a suite the manager puts that of the study in this place.

    :param trial: of Optuna
    :param n_actions: A
    :param n_envs: N
    :param additional_args: of the zoo
    :return: arguments of the agent
    """
    return SearchSpace.of().sample(trial, n_tasks=1)


def register() -> None:
    """
    Make ``varshare_sac`` an algorithm of the zoo, and let it train, evaluate and tune on suites task by task.

    What the zoo offers as a table is entered there; what it offers as a name in a module is replaced. To call it again
    changes nothing.
    """
    ALGOS[ALGO] = VarShareSAC
    # Each dictionary is typed after its first entries.
    samplers: dict[str, Any] = HYPERPARAMS_SAMPLER
    converters: dict[str, Any] = HYPERPARAMS_CONVERTER
    samplers[ALGO], converters[ALGO] = sample_varshare_sac_params, trial_arguments
    replaced = (
        (rl_zoo3.train, "ExperimentManager", MultiTaskExperimentManager),
        (rl_zoo3.exp_manager, "TrialEvalCallback", TrialTasksCallback),
        (rl_zoo3.enjoy, "create_test_env", create_suite_test_env),
    )
    for module, name, ours in replaced:
        setattr(module, name, ours)
