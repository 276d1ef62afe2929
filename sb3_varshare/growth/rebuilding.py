"""An agent like another one for other tasks: built anew, then filled with what the other one knows of them."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch as th
import torch.nn.functional as F
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.growth.task_axes import Axes, Keep, rearrange_moments, rearrange_state, rearranged
from sb3_varshare.networks.task_input import EmbeddingInput, OneHotInput
from sb3_varshare.tasks.suite import TaskDescription
from sb3_varshare.varshare_sac import VarShareSAC
from sb3_varshare.varshare_sac.observation_norm import ObservationNorm

# Observations that the statistics of the other tasks count for in those of a new one.
PRIOR_OBSERVATIONS = 1_000
ENV_ATTRIBUTES = ("n_envs", "observation_space", "action_space")
# What of an agent begins anew with its environments.
OPEN_EPISODES = {"_last_obs": None, "_last_episode_starts": None, "_last_original_obs": None}


class TaskStart(NamedTuple):
    """
    What a new task starts with.

    :param embedding: where an embedding tells the task, ``"random"`` or the ``"mean"`` of the others
    :param reward_scale: ``"typical"``, that of the middle one of the tasks in the order of their scales, or ``"own"``,
        which its own first episode gives
    :param observation_size: length of its observations, None for the longest
    """

    embedding: str = "random"
    reward_scale: str = "typical"
    observation_size: int | None = None

    def checked(self) -> TaskStart:
        """
        :raises ValueError: a choice is none
        """
        for name, choices in (("embedding", ("random", "mean")), ("reward_scale", ("typical", "own"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}.")
        return self


DEFAULT_START = TaskStart()


def build(
    model: VarShareSAC,
    env: VecEnv | None,
    tasks: TaskDescription,
    keep: Keep,
    changes: dict[str, Any],
) -> VarShareSAC:
    """
    An agent of the same arguments for other tasks, which knows nothing yet. No random generator of the process moves.

    :param model: the agent
    :param env: environments of the tasks, or None to predict alone
    :param tasks: what the new agent keeps of them
    :param keep: position of each task in the old agent, None for a new one
    :param changes: attributes that differ
    :raises ValueError: the agent was pruned
    :raises MemoryError: there is no room for it beside the old one
    """
    if model.kept_weights is not None:
        raise ValueError(
            "A pruned agent has no room for what another task would learn, so its tasks cannot be changed: change them "
            "first and prune afterwards, from the file that was saved before pruning."
        )
    left_out = {name.split(".")[0] for names in model._get_torch_save_params() for name in names}
    left_out |= set(model._excluded_save_params())
    attributes = {name: value for name, value in vars(model).items() if name not in left_out}
    agent = type(model)(model.policy_class, env, device=model.device, _init_setup_model=False)
    given = {} if env is None else {name: getattr(agent, name) for name in ENV_ATTRIBUTES}
    counted = per_task_arguments(model, tasks, keep)
    agent.__dict__.update(copy.deepcopy(attributes) | counted | OPEN_EPISODES | given | changes)
    agent._adopt(tasks)
    if isinstance(agent.action_noise, VectorizedActionNoise):
        # SB3 makes one for each environment anew.
        agent.action_noise = agent.action_noise.base_noise
    seed, agent.seed = agent.seed, None
    try:
        with th.random.fork_rng([agent.device] if agent.device.type == "cuda" else []):
            agent._setup_model()
    except MemoryError as error:
        raise MemoryError(
            f"{error} The old and the new networks stand side by side while tasks change: where the new ones alone "
            "have room, save the agent, load it with device='cpu', change its tasks, save it, and load it here again."
        ) from error
    agent.seed = seed
    if agent.compile:
        # The graphs of before count towards those after which PyTorch compiles no more.
        th.compiler.reset()
    return agent


def per_task_arguments(model: VarShareSAC, tasks: TaskDescription, keep: Keep) -> dict[str, Any]:
    """
    Arguments of the constructor that count or list tasks. Rows of each task, in a batch and in the replay, stay.

    :param model: the agent
    :param tasks: of the new agent
    :param keep: position in the old agent of each of them, None for a new one
    """
    n_tasks = len(keep)
    capacity, rest = divmod(model.buffer_size, model.n_tasks)
    arguments: dict[str, Any] = {
        "batch_size": model.batch_size // model.n_tasks * n_tasks,
        "buffer_size": capacity * n_tasks + min(rest, n_tasks - 1),
    }
    if not isinstance(model.ent_coef, str | int | float):
        new = typical_ent_coef(model)
        arguments["ent_coef"] = [new if task is None else float(model.ent_coef[task]) for task in keep]
    if not isinstance(model.target_entropy, str | int | float):
        per_action = float(np.mean(np.divide(model.target_entropy, model.action_sizes)))
        arguments["target_entropy"] = [
            per_action * size if task is None else float(model.target_entropy[task])
            for task, size in zip(keep, tasks.action_sizes, strict=True)
        ]
    return arguments


def typical_ent_coef(model: VarShareSAC) -> float:
    """The geometric mean of the tasks' entropy coefficients: the policy that a new task starts with goes with them."""
    return float(model._ent_coef().log().mean().exp())


def typical_range(model: VarShareSAC) -> dict[str, float]:
    """
    The range of returns of the middle one of the tasks that have one: the critics that a new task starts with know no
    other unit. None has one before the first episodes have ended.

    :param model: the agent
    :return: by name in the state of the reward scale
    """
    state = {name: tensor.tolist() for name, tensor in model.reward_scale.state_dict().items()}
    ranges = sorted(zip(state["return_max"], state["return_min"], strict=True), key=lambda ends: max(map(abs, ends)))
    known = [ends for ends in ranges if ends[0] >= ends[1]]
    return dict(zip(("return_max", "return_min"), known[(len(known) - 1) // 2], strict=True)) if known else {}


@th.no_grad()
def fill(
    agent: VarShareSAC,
    model: VarShareSAC,
    axes: dict[str, Axes],
    keep: Keep,
    start: TaskStart = DEFAULT_START,
) -> None:
    """
    Put into an agent what another one knows of the tasks that both have; new tasks start at the shared base.

    :param agent: as :func:`build` gives it
    :param model: the agent that it is like
    :param axes: of ``model``, see :func:`~sb3_varshare.growth.task_axes.task_axes`
    :param keep: position of each task in the old agent, None for a new one
    :param start: what a new task starts with
    """
    n_tasks, policy = model.n_tasks, agent.policy
    _start_task_input(agent, model, keep, start.embedding)
    state, old_state = policy.state_dict(), model.policy.state_dict()
    online = {name: tensor for name, tensor in state.items() if not name.startswith("critic_target.")}
    rearrange_state(online, old_state, axes, n_tasks, keep)
    # Of a new task the target starts at the critics, as that of a new agent does.
    th._foreach_copy_(policy.critic_target.averaged_tensors(), policy.critic.averaged_tensors())
    if any(task is not None for task in keep):
        target = {name: tensor for name, tensor in state.items() if name not in online}
        rearrange_state(target, old_state, axes, n_tasks, keep)
    _start_observation_norm(agent, model, keep, start.observation_size)
    scales, old_scales = agent.reward_scale.state_dict(), model.reward_scale.state_dict()
    if start.reward_scale == "typical":
        for name, value in typical_range(model).items():
            scales[name].fill_(value)
    rearrange_state(scales, old_scales, dict.fromkeys(scales, (0,)), n_tasks, keep)
    if agent.log_ent_coef is not None and model.log_ent_coef is not None:
        is_given = agent.ent_coef != model.ent_coef
        fresh = agent.log_ent_coef if is_given else th.full_like(agent.log_ent_coef, np.log(typical_ent_coef(model)))
        agent.log_ent_coef.copy_(rearranged(model.log_ent_coef, fresh, ent_coef_axes(model), n_tasks, keep))
    agent.replay_buffer.take_rows(
        model.replay_buffer, {here: there for here, there in enumerate(keep) if there is not None}
    )


def go_on(agent: VarShareSAC, model: VarShareSAC, axes: dict[str, Axes], keep: Keep) -> None:
    """
    Let the optimizers of an agent go on where those of another one are.

    :param agent: filled
    :param model: the agent that it is like
    :param axes: of ``model``'s tensors
    :param keep: position of each task in the old agent, None for a new one
    """
    old = dict(model.policy.named_parameters())
    pairs = {parameter: (old[name], axes[name]) for name, parameter in agent.policy.named_parameters() if name in old}
    for target, source in (
        (agent.actor.optimizer, model.actor.optimizer),
        (agent.critic.optimizer, model.critic.optimizer),
    ):
        rearrange_moments(target, source, pairs, model.n_tasks, keep)  # type: ignore[arg-type]
    if agent.ent_coef_optimizer is not None and model.ent_coef_optimizer is not None:
        assert agent.log_ent_coef is not None and model.log_ent_coef is not None
        pair = {agent.log_ent_coef: (model.log_ent_coef, ent_coef_axes(model))}
        rearrange_moments(agent.ent_coef_optimizer, model.ent_coef_optimizer, pair, model.n_tasks, keep)


def ent_coef_axes(model: VarShareSAC) -> Axes:
    """
    :param model: the agent
    :return: the axes of its entropy coefficient that belong to the tasks
    """
    return () if model.share_ent_coef else (0,)


def _start_task_input(agent: VarShareSAC, model: VarShareSAC, keep: Keep, embedding: str) -> None:
    task_input, old = agent.policy.critic.task_input, model.policy.critic.task_input
    if isinstance(task_input, OneHotInput):
        for layer in (agent.policy.actor.trunk.linear_in, agent.policy.critic.net.linear_in):
            # Nothing is known of an input that nobody has seen.
            layer.theta[..., -len(keep) :, :] = 0.0
    elif isinstance(task_input, EmbeddingInput) and isinstance(old, EmbeddingInput):
        known = old().mean(0) if embedding == "mean" else th.randn_like(old.table[0])
        task_input.table.copy_(F.normalize(known, dim=-1).expand_as(task_input.table))


def _start_observation_norm(agent: VarShareSAC, model: VarShareSAC, keep: Keep, observation_size: int | None) -> None:
    """New tasks begin with the statistics of the others together, which count for a number of observations."""
    norm, old = agent.policy.observation_norm, model.policy.observation_norm
    if not isinstance(norm, ObservationNorm) or not isinstance(old, ObservationNorm) or not bool(old.count.any()):
        return
    mean = old.mean.mean(0)
    variance = (old.variance + (old.mean - mean).square()).mean(0)
    for task in (position for position, place in enumerate(keep) if place is None):
        norm.mean[task], norm.variance[task], norm.count[task] = mean, variance, PRIOR_OBSERVATIONS
        if observation_size is not None:
            # The zeros behind a shorter observation stay zeros.
            norm.mean[task, observation_size:], norm.variance[task, observation_size:] = 0.0, 1.0
