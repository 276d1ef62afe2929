"""An agent of one new task that starts from what the tasks of a trained agent share."""

from __future__ import annotations

from typing import Any

import torch as th

from sb3_varshare.growth.rebuilding import TaskStart, build, fill
from sb3_varshare.growth.task_axes import task_axes
from sb3_varshare.growth.task_envs import MakeTask, new_task, single_task_env
from sb3_varshare.tasks.suite import TaskSpec
from sb3_varshare.varshare_sac import VarShareSAC

BEGINNING: dict[str, Any] = {
    "num_timesteps": 0,
    "_episode_num": 0,
    "_n_updates": 0,
    "_total_timesteps": 0,
    "_num_timesteps_at_start": 0,
    "ep_info_buffer": None,
    "ep_success_buffer": None,
}
# Of the weight that the KL of the means had: it makes tasks share while their data are few, and on a frozen base there
# is nothing to share. With all of it an unfamiliar task did not leave the base, see docs/new_tasks.md.
FROZEN_BETA = 0.1
# Whatever tells the tasks is given by make_env.
OF_TASKS = (
    "n_tasks",
    "task_names",
    "full_names",
    "action_sizes",
    "action_bounds",
    "observation_sizes",
    "protocol",
    "one_hot_size",
    "n_envs",
)


def specialise(
    model: VarShareSAC,
    make_env: MakeTask,
    name: str | None = None,
    *,
    freeze_base: bool = True,
    embedding: str = "random",
    reward_scale: str = "typical",
    n_envs: int | None = None,
    seed: int | None = None,
    **changes: Any,
) -> VarShareSAC:
    """
    An agent of one new task on the base of a trained agent: phi = 0, sigma at the prior, in actor and critics. It needs
    neither the old tasks' environments nor their replay, and ``model`` stays as it is.

    With a frozen base the agent trains its residual alone (with ``adapter="embedding"`` the task's embedding); weights,
    biases and LayerNorms that tasks share are in no optimizer, and nothing is re-centred.
    ``add_task(model, name, make_env, from_agent=agent)`` then puts what it learned into the large agent. Its arguments
    are those of ``model``, counted for one task; it begins with one batch of random steps and with the geometric mean
    of the tasks' entropy coefficients. ``beta``, unless it is a schedule, is a tenth on a frozen base, where there is
    nothing to share that it would have to protect.

    :param model: the trained agent; it may have no environment
    :param make_env: a callable that builds the env of the task, as for ``make_multitask_env``, or its ``TaskSpec``
    :param name: of the task; by default the spec's, or ``new``
    :param freeze_base: train the residual alone; otherwise all of the copy, which no longer fits the large agent
    :param embedding: where an embedding tells the task, it starts ``"random"`` or at the ``"mean"`` of the others
    :param reward_scale: as for :func:`~sb3_varshare.growth.add_task`
    :param n_envs: copies of the env; by default as many as ``model`` has of each of its tasks
    :param seed: of all random generators of the process and of the env; None leaves them alone
    :param changes: arguments of the constructor that shall differ
    :return: a new agent
    :raises ValueError: the task is larger than the networks allow, a changed argument shapes what the tasks share, or
        nothing is left to train
    :raises TypeError: there is no such argument
    """
    spec = new_task(model, name, make_env)
    start = TaskStart(embedding, reward_scale, spec.observation_size).checked()
    defaults: dict[str, Any] = {"base_frozen": freeze_base}
    if freeze_base and not callable(model.beta):
        defaults["beta"] = FROZEN_BETA * model.beta
    if seed is not None:
        # A random embedding is drawn while the agent is built.
        th.manual_seed(seed)
    agent = _single(model, spec, start, n_envs, seed, defaults, changes)
    trained = [group["params"] for module in (agent.actor, agent.critic) for group in module.optimizer.param_groups]
    if not any(trained):
        raise ValueError(
            f"adapter={agent.adapter!r} with task_input={agent.task_input!r} gives a task nothing of its own that "
            "could be trained on a frozen base; use freeze_base=False."
        )
    if seed is not None:
        agent.seed = seed
        agent.set_random_seed(seed)
    return agent


def at_base(model: VarShareSAC, make_env: MakeTask, name: str | None, embedding: str, seed: int | None) -> VarShareSAC:
    """
    As :func:`specialise`, to act and not to learn.

    :param model: the trained agent
    :param make_env: as for :func:`specialise`
    :param name: as for :func:`specialise`
    :param embedding: as for :func:`specialise`
    :param seed: of the env
    """
    spec = new_task(model, name, make_env)
    start = TaskStart(embedding, observation_size=spec.observation_size).checked()
    # What acts for some episodes is not worth the minute of compiling.
    return _single(model, spec, start, None, seed, {"base_frozen": True, "compile": False}, {})


def _single(
    model: VarShareSAC,
    spec: TaskSpec,
    start: TaskStart,
    n_envs: int | None,
    seed: int | None,
    defaults: dict[str, Any],
    changes: dict[str, Any],
) -> VarShareSAC:
    unknown = sorted(name for name in changes if name.startswith("_") or name not in vars(model) or name in OF_TASKS)
    if unknown:
        raise TypeError(f"{type(model).__name__} has no arguments {unknown} that could be changed here.")
    env = single_task_env(model, spec, n_envs, seed)
    # A batch is all that is collected at random: the base knows better.
    begun = BEGINNING | {"one_hot_size": 1, "learning_starts": model.batch_size // model.n_tasks}
    agent = build(model, env, env.suite.describe(), [None], begun | defaults | changes)
    fill(agent, model, task_axes(model), [None], start)
    return agent
