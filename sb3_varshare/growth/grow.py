"""A trained agent with one task more or one less."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.adapters.low_rank import LowRank
from sb3_varshare.growth.rebuilding import TaskStart, build, ent_coef_axes, fill, go_on
from sb3_varshare.growth.task_axes import (
    Axes,
    Keep,
    is_own,
    rearrange_moments,
    rearrange_state,
    rearranged,
    resized,
    task_axes,
)
from sb3_varshare.growth.task_envs import MakeTask, described, grown_env, new_task, shrunk_env
from sb3_varshare.tasks.suite import TaskDescription, TaskSpec, find_tasks
from sb3_varshare.varshare_sac import VarShareSAC
from sb3_varshare.varshare_sac.arguments import ADAPTER_ARGUMENTS, check_own_sizes, own_observation_sizes

# What must be equal for the parts of one agent to mean the same in another.
COMMON = ("adapter", "task_input", "v_min", "v_max", "n_steps", "gamma", "normalize_observations", "share_ent_coef")


def add_task(
    model: VarShareSAC,
    name: str,
    make_env: MakeTask | None = None,
    *,
    env: VecEnv | None = None,
    from_agent: VarShareSAC | None = None,
    embedding: str = "random",
    reward_scale: str = "typical",
) -> VarShareSAC:
    """
    Let a trained agent have one task more, which starts at the shared base: phi = 0, sigma at the prior. To be called
    between two calls of ``learn``, which then goes on with all tasks.

    The agent is changed in place, and only once everything is ready: after an error it is what it was. Weights,
    moments, entropy coefficients, scales and replay rows of the other tasks stay to the last bit. Environments that are
    built anew begin their streams anew, and the old ones are closed. Batches keep their rows of each task.

    :param model: the agent
    :param name: of the new task
    :param make_env: a callable that builds the env of the task, as for ``make_multitask_env``, or its ``TaskSpec``
    :param env: environments of all tasks, the new one last, instead of those that would be built. They stay the
        caller's, as do those that they replace
    :param from_agent: an agent that learned the task on the frozen base, see
        :func:`~sb3_varshare.growth.specialise`: residual, entropy coefficient, reward scale, normalisation, moments and
        replay rows are taken from it
    :param embedding: where an embedding tells the task, a new one is ``"random"`` or the ``"mean"`` of the others
    :param reward_scale: rewards of the task are divided by the ``"typical"`` scale of the others until its returns are
        larger, or, if they have another unit, by its ``"own"``; the warm-up then lasts until its first episode ends
    :return: the agent
    :raises ValueError: the agent has a task of that name, the new one is larger than its networks allow, the
        environments are not those of these tasks or cannot be built anew, or ``from_agent`` has another base
    :raises MemoryError: there is no room for the larger agent beside the smaller one
    """
    _refuse_distributed(model)
    if make_env is None and env is None:
        raise ValueError("Expected make_env=, which builds the env of the new task, or env=, envs of all tasks.")
    spec = None if make_env is None else new_task(model, name, make_env)
    start = TaskStart(embedding, reward_scale, None if spec is None else spec.observation_size).checked()
    _refuse_known(model, name, spec)
    keep: Keep = [*range(model.n_tasks), None]
    if env is None and spec is not None and model.env is not None:
        agent = _with_tasks(model, grown_env(model.env, spec), keep, name, spec)
    else:
        agent = _with_tasks(model, env, keep, name, spec)
    axes = task_axes(model)
    fill(agent, model, axes, keep, start)
    go_on(agent, model, axes, keep)
    if from_agent is not None:
        _check_same_base(model, from_agent, axes)
        _take_over(agent, from_agent, axes)
    return _become(model, agent, closes=env is None)


def drop_task(model: VarShareSAC, name: str | int, *, env: VecEnv | None = None) -> VarShareSAC:
    """
    Let an agent forget a task: the opposite of :func:`add_task`, with the same care for the others and for errors.

    :param model: the agent
    :param name: of the task, or its index
    :param env: environments of the remaining tasks, as for :func:`add_task`
    :return: the agent
    :raises ValueError: there is no such task, it is the only one, the environments are not those of the others, or
        the residuals of the others need the input that tells it
    """
    _refuse_distributed(model)
    gone = model.task_id(name)
    if model.n_tasks == 1:
        raise ValueError(f"{model.task_names[0]!r} is the only task of the agent, which cannot be without one.")
    keep: Keep = [task for task in range(model.n_tasks) if task != gone]
    closes = env is None
    if env is None and model.env is not None:
        env = shrunk_env(model.env, gone)
    agent, axes = _with_tasks(model, env, keep, "", None), task_axes(model)
    _refuse_lost_factors(agent, model, gone)
    fill(agent, model, axes, keep)
    go_on(agent, model, axes, keep)
    return _become(model, agent, closes)


def _refuse_distributed(model: VarShareSAC) -> None:
    if model._peers is not None:
        raise ValueError("The tasks of an agent cannot change while several processes train it: do it before.")


def _refuse_known(model: VarShareSAC, name: str, spec: TaskSpec | None) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"Expected the name of the new task, got {name!r}.")
    # A short name that two sources share would give an old task another label.
    known = {*model.task_names, *model.full_names, *(full.rpartition("/")[2] for full in model.full_names)}
    if name in known or (spec is not None and spec.full_name in known):
        raise ValueError(f"The agent has a task {name!r} already, among {model.task_names}; choose another name.")


def _with_tasks(model: VarShareSAC, env: VecEnv | None, keep: Keep, name: str, spec: TaskSpec | None) -> VarShareSAC:
    names = _labels(model, keep, name)
    one_hot_size = len(keep)
    assert isinstance(model.observation_space, spaces.Box)
    space = resized(model.observation_space, model.one_hot_size, one_hot_size)
    tasks = None if env is None else find_tasks(env)
    if env is not None and (env.observation_space.shape, env.action_space.shape) != (
        space.shape,
        model.action_space.shape,
    ):
        raise ValueError(
            f"Expected environments with observations of {space.shape}, the one-hot of {one_hot_size} tasks at their "
            f"end, and actions of {model.action_space.shape}, got {env.observation_space.shape} and "
            f"{env.action_space.shape}."
        )
    if tasks is not None and list(tasks.names) != names:
        raise ValueError(f"Expected environments of the tasks {names} in this order, got {list(tasks.names)}.")
    if tasks is not None and env is not None:
        _check_sizes(model, tasks, own_observation_sizes(tasks, env.observation_space), keep)
    if tasks is None:
        tasks = described(model, keep, spec)
        # Nobody may tell more of the new task than its name.
        sizes = [int(model.action_space.shape[0])] * (len(names) - len(tasks.names))  # type: ignore[index]
        tasks = tasks._replace(names=tuple(names), action_sizes=(*tasks.action_sizes, *sizes))
    changes: dict[str, Any] = {"one_hot_size": one_hot_size}
    if env is None:
        changes |= {"observation_space": space, "n_envs": _number_of_envs(model, len(keep))}
    return build(model, env, tasks, keep, changes)


def _check_sizes(model: VarShareSAC, tasks: TaskDescription, observation_sizes: Sequence[int], keep: Keep) -> None:
    """Of tasks that the agent had before."""
    pairs = [(here, there) for here, there in enumerate(keep) if there is not None]
    known = {"actions": model.action_sizes, "observations": model.observation_sizes}
    found = {"actions": tasks.action_sizes, "observations": observation_sizes}
    check_own_sizes(
        [model.task_names[there] for _, there in pairs],
        {what: [sizes[there] for _, there in pairs] if sizes else [] for what, sizes in known.items()},
        {what: [sizes[here] for here, _ in pairs] if sizes else [] for what, sizes in found.items()},
    )


def _number_of_envs(model: VarShareSAC, n_tasks: int) -> int:
    """Of an agent without environments, how many it is to be given: each task with as many copies as before."""
    if model.n_envs < model.n_tasks:
        return model.n_envs
    return model.n_envs + (n_tasks - model.n_tasks) * round(model.n_envs / model.n_tasks)


def _labels(model: VarShareSAC, keep: Keep, name: str) -> list[str]:
    """Names of the new agent's tasks: one that had its source before it, since two were named alike, may be alone."""
    kept = [model.full_names[task] for task in keep if task is not None] if model.full_names else []
    alike = Counter(full.rpartition("/")[2] for full in kept)
    labels = []
    for task in keep:
        label = name if task is None else model.task_names[task]
        short = label.rpartition("/")[2]
        labels.append(short if label in kept and alike[short] == 1 else label)
    return labels


def _refuse_lost_factors(agent: VarShareSAC, model: VarShareSAC, gone: int) -> None:
    """A layer has at most as many factors as inputs, and the one-hot of the task that goes is one of these."""
    others = [task for task in range(model.n_tasks) if task != gone]
    for network, old in ((agent.policy.actor, model.policy.actor), (agent.policy.critic.net, model.policy.critic.net)):
        for (name, layer), known in zip(network.named_linears(), old.linears(), strict=True):
            if not isinstance(layer.adapter, LowRank) or not isinstance(known.adapter, LowRank):
                continue
            left, needed = layer.adapter.v.shape[-2], known.adapter.v.shape[-2]
            # A factor that came with a task which nobody has trained since is zero for the others.
            if left < needed and known.adapter.factor.mu[..., others, :, gone - model.n_tasks].any():
                raise ValueError(
                    f"Without the input that tells this task, {name} has at most {left} factors, and the residuals of "
                    f"the other tasks need {needed}. With task_input='one_hot' tasks can be dropped where rank is at "
                    f"most the length of an observation ({model.policy.observation_size}), got rank={model.rank}."
                )


def _check_same_base(model: VarShareSAC, agent: VarShareSAC, axes: dict[str, Axes]) -> None:
    """What the tasks of an agent share must be, to the last bit, what another agent's task was learned on."""
    if agent.n_tasks != 1:
        raise ValueError(f"Expected from_agent of one task, as specialise gives it, got {agent.n_tasks} tasks.")
    if not agent.base_frozen:
        raise ValueError(
            "from_agent has trained all of its weights, so that its residual means nothing on the base of this agent; "
            "use specialise(..., freeze_base=True)."
        )
    for name in (*COMMON, *ADAPTER_ARGUMENTS.get(model.adapter, ())):
        if getattr(agent, name) != getattr(model, name):
            raise ValueError(f"from_agent has {name} {getattr(agent, name)!r}, the agent {getattr(model, name)!r}.")
    ours, theirs = model.policy.state_dict(), agent.policy.state_dict()
    if ours.keys() != theirs.keys():
        raise ValueError(f"from_agent has other networks: {sorted(ours.keys() ^ theirs.keys())} are in one alone.")
    for name, tensor in ours.items():
        if name.startswith("critic_target.") or is_own(tensor, axes[name], model.n_tasks):
            continue
        expected = rearranged(tensor, th.zeros_like(theirs[name]), axes[name], model.n_tasks, [None])
        if not th.equal(expected, theirs[name]):
            raise ValueError(
                f"from_agent stands on another base: {name} differs. If the agent was trained since, its base has "
                "moved: specialise it anew."
            )


@th.no_grad()
def _take_over(agent: VarShareSAC, single: VarShareSAC, axes: dict[str, Axes]) -> None:
    """The last task of an agent becomes what an agent of one task on the same base has made of it."""
    n_tasks = agent.n_tasks
    keep: Keep = [*[None] * (n_tasks - 1), 0]
    state, theirs = agent.policy.state_dict(), single.policy.state_dict()
    own = {name: tensor for name, tensor in state.items() if is_own(tensor, axes[name], n_tasks)}
    rearrange_state(own, theirs, axes, 1, keep)
    parameters, old = dict(agent.policy.named_parameters()), dict(single.policy.named_parameters())
    pairs: Any = {parameters[name]: (old[name], axes[name]) for name in own if name in parameters}
    rearrange_moments(agent.actor.optimizer, single.actor.optimizer, pairs, 1, keep)
    rearrange_moments(agent.critic.optimizer, single.critic.optimizer, pairs, 1, keep)
    scales, old_scales = agent.reward_scale.state_dict(), single.reward_scale.state_dict()
    rearrange_state(scales, old_scales, dict.fromkeys(scales, (0,)), 1, keep)
    if not agent.share_ent_coef and agent.log_ent_coef is not None and single.log_ent_coef is not None:
        agent.log_ent_coef.copy_(rearranged(single.log_ent_coef, agent.log_ent_coef, ent_coef_axes(agent), 1, keep))
        pairs = {agent.log_ent_coef: (single.log_ent_coef, ent_coef_axes(agent))}
        rearrange_moments(agent.ent_coef_optimizer, single.ent_coef_optimizer, pairs, 1, keep)  # type: ignore[arg-type]
    agent.replay_buffer.take_rows(single.replay_buffer, {n_tasks - 1: 0})


def _become(model: VarShareSAC, agent: VarShareSAC, closes: bool) -> VarShareSAC:
    """The agent that the caller holds is the new one from here on."""
    old_env = model.env
    logger = {name: value for name, value in vars(model).items() if name in ("_logger", "_custom_logger")}
    vars(model).clear()
    vars(model).update(vars(agent) | logger)
    if closes and old_env is not None:
        old_env.close()
    return model
