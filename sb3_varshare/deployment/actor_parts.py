"""What one task's actor is made of: its sizes, its tensors, and the plain network that they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch as th
from torch import nn

from sb3_varshare.deployment.plain_actor import ActionMap, Normalization, PlainActor, Trunk
from sb3_varshare.tasks.spaces import ActionBounds
from sb3_varshare.varshare_sac.multi_task_algorithm import MultiTaskAlgorithm
from sb3_varshare.varshare_sac.observation_norm import CLIP, EPSILON, ObservationNorm

Tensors = dict[str, th.Tensor]


class NetworkSizes(NamedTuple):
    """
    Sizes of an actor that all its tasks have in common.

    :param observation_size: D, of the longest observation
    :param task_input_size: what is appended to an observation about its task
    :param action_size: A, of the longest action
    :param width: hidden features
    :param depth: residual blocks
    """

    observation_size: int
    task_input_size: int
    action_size: int
    width: int
    depth: int

    def linears(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and (I, O) of every linear layer, as the policy's actor names them."""
        yield "trunk.linear_in", (self.observation_size + self.task_input_size, self.width)
        for block in range(self.depth):
            yield f"trunk.blocks.{block}.linear_in", (self.width, self.width)
            yield f"trunk.blocks.{block}.linear_out", (self.width, self.width)
        yield "mean", (self.width, self.action_size)
        yield "log_std", (self.width, self.action_size)

    def norms(self) -> Iterator[str]:
        """Name of every LayerNorm."""
        yield "trunk.norm_in"
        for block in range(self.depth):
            yield f"trunk.blocks.{block}.norm_in"
            yield f"trunk.blocks.{block}.norm_out"


class TaskFacts(NamedTuple):
    """
    What is known of a task besides its weights.

    :param name: label
    :param full_name: with its source; empty where it has none
    :param observation_size: length D_t of the task's own observation
    :param bounds: lowest and highest action of its environment, (A_t,) each
    """

    name: str
    full_name: str
    observation_size: int
    bounds: ActionBounds


class ActorParts(NamedTuple):
    """
    One task's actor before it is built.

    :param sizes: of the network
    :param facts: of the task
    :param weights: ``<linear>.weight`` (I, O), ``<linear>.bias`` (O,), ``<norm>.weight`` and ``<norm>.bias`` (width,)
    :param context: the task's share of the actor, as :func:`task_context` gives it
    """

    sizes: NetworkSizes
    facts: TaskFacts
    weights: Tensors
    context: Tensors


def model_sizes(model: MultiTaskAlgorithm) -> NetworkSizes:
    """
    :param model: the agent
    """
    actor, policy = model.policy.actor, model.policy
    first = actor.trunk.linear_in.shape
    task_input_size = policy.critic.task_input.size
    return NetworkSizes(
        policy.observation_size, task_input_size, policy.action_size, first.out_features, len(actor.trunk.blocks)
    )


def task_facts(model: MultiTaskAlgorithm, task_id: int) -> TaskFacts:
    """
    :param model: the agent
    :param task_id: of the task
    :raises ValueError: the model's file is too old to know the bounds of actions
    """
    if model.action_bounds is None:
        # No suite stands between the agent and its environment.
        space = model.action_space
        bounds = space.low.ravel().tolist(), space.high.ravel().tolist()  # type: ignore[attr-defined]
    elif not model.action_bounds:
        raise ValueError(
            "The model's file is of a version that did not keep the bounds of the tasks' actions: load it with "
            "env=, a multi-task env of the same tasks, and save it again."
        )
    else:
        bounds = model.action_bounds[task_id]
    own = model.observation_sizes
    return TaskFacts(
        model.task_names[task_id],
        model.full_names[task_id] if model.full_names else "",
        own[task_id] if own else model.policy.observation_size,
        (tuple(bounds[0]), tuple(bounds[1])),
    )


def task_context(model: MultiTaskAlgorithm, task_id: int) -> Tensors:
    """
    What a task's actor has besides weights.

    :param model: the agent
    :param task_id: of the task
    :return: where the agent has them, ``observation_mean`` (D,), ``observation_variance`` (D,), ``task_input`` (n,)
    """
    policy = model.policy
    context: Tensors = {}
    if isinstance(policy.observation_norm, ObservationNorm):
        context["observation_mean"] = plain(policy.observation_norm.mean[task_id])
        context["observation_variance"] = plain(policy.observation_norm.variance[task_id])
    if policy.critic.task_input.size:
        context["task_input"] = plain(policy.critic.task_input()[task_id])
    return context


def shared_weights(model: MultiTaskAlgorithm, task_id: int = 0) -> Tensors:
    """
    Bases, biases and LayerNorms of the actor; those of one task where nothing is shared.

    :param model: the agent
    :param task_id: of the task
    :return: as :class:`ActorParts` has them
    """
    actor, sizes = model.policy.actor, model_sizes(model)
    weights: Tensors = {}
    for name, _ in sizes.linears():
        layer: Any = actor.get_submodule(name)
        own = task_id if layer.adapter.per_task_base else 0
        weights[f"{name}.weight"], weights[f"{name}.bias"] = plain(layer.theta[own]), plain(layer.bias[own, 0])
    for name in sizes.norms():
        norm: Any = actor.get_submodule(name)
        own = task_id if len(norm.weight) > 1 else 0
        weights[f"{name}.weight"], weights[f"{name}.bias"] = plain(norm.weight[own, 0]), plain(norm.bias[own, 0])
    return weights


def model_parts(model: MultiTaskAlgorithm, task: str | int | None, base: bool = False) -> ActorParts:
    """
    :param model: the agent
    :param task: a name or an index; ``None`` for the shared base without any task
    :param base: the shared base instead of the task's own weights
    :return: copies on the processor
    :raises ValueError: there is no such task or base, or a parameter is not finite
    """
    check_base(base or task is None, model.policy.has_base)
    sizes = model_sizes(model)
    if task is None:
        facts = base_facts(sizes, task_context(model, 0))
        return checked(ActorParts(sizes, facts, shared_weights(model), {}))
    task_id = model.task_id(task)
    weights = shared_weights(model, task_id)
    if not base:
        for name, _ in sizes.linears():
            layer: Any = model.policy.actor.get_submodule(name)
            weights[f"{name}.weight"] = plain(layer.merged_weight(task_id))
    return checked(ActorParts(sizes, task_facts(model, task_id), weights, task_context(model, task_id)))


def checked(parts: ActorParts) -> ActorParts:
    """
    :param parts: of an agent's actor
    :return: the same
    :raises ValueError: a number in them is not finite
    """
    for name, tensor in {**parts.weights, **parts.context}.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} of task {parts.facts.name!r} is not finite: has the agent diverged?")
    return parts


def check_base(wanted: bool, has_base: bool) -> None:
    """
    :param wanted: whether the shared base is to act
    :param has_base: whether there is one
    :raises ValueError: there is none
    """
    if wanted and not has_base:
        raise ValueError("Independent networks share nothing: there is no base to act with; name a task without base.")


def base_facts(sizes: NetworkSizes, needed: Tensors) -> TaskFacts:
    """
    What stands for a task where the base acts alone: the longest observation, actions in [-1, 1].

    :param sizes: of the network
    :param needed: what the actors of tasks have besides weights
    :raises ValueError: that is something, and no task is there to give it
    """
    if needed:
        raise ValueError(
            f"The actor needs {' and '.join(sorted(needed))}, which only a task has: name the task and set base=True."
        )
    return TaskFacts("", "", sizes.observation_size, ((-1.0,) * sizes.action_size, (1.0,) * sizes.action_size))


def plain(tensor: th.Tensor) -> th.Tensor:
    """
    :param tensor: on any device
    :return: a copy on the processor, in no graph
    """
    return tensor.detach().cpu().clone()


def action_limits(bounds: ActionBounds) -> tuple[th.Tensor, th.Tensor]:
    """
    :param bounds: lowest and highest action, (A,) each
    :return: (A,) and (A,), of double precision where single precision would round them
    """
    exact = th.tensor(bounds, dtype=th.float64)
    rounded = exact.float()
    low, high = rounded if th.equal(rounded.double(), exact) else exact
    # Two rows of one storage would be saved as one.
    return low.clone(), high.clone()


def build(parts: ActorParts, stochastic: bool) -> PlainActor:
    """
    The plain network. What is constant for a task, its input and the padding of its observations, is in the bias of the
    first layer.

    :param parts: of the actor
    :param stochastic: with the head of the standard deviation
    :return: in evaluation mode and without gradients
    """
    sizes, facts, weights, context = parts
    own, n_actions = facts.observation_size, len(facts.bounds[0])
    constant = th.zeros(sizes.observation_size)
    normalization: nn.Module = nn.Identity()
    if "observation_mean" in context:
        mean, std = context["observation_mean"], (context["observation_variance"] + EPSILON).sqrt()
        normalization = Normalization(mean[:own].clone(), std[:own].clone(), CLIP)
        constant = Normalization(mean, std, CLIP)(constant)
    constant = th.cat([constant[own:], context.get("task_input", th.zeros(0))])
    first = weights["trunk.linear_in.weight"]
    bias = weights["trunk.linear_in.bias"].double() + constant.double() @ first[own:].double()
    weights = {**weights, "trunk.linear_in.weight": first[:own], "trunk.linear_in.bias": bias.float()}
    limits = action_limits(facts.bounds)
    # Without storage, so that the layers draw no initial weights from the generator of the process.
    with th.device("meta"):
        actor = PlainActor(
            normalization,
            Trunk(own, sizes.width, sizes.depth),
            nn.Linear(sizes.width, n_actions),
            nn.Linear(sizes.width, n_actions) if stochastic else None,
            ActionMap(*limits),
        )
    for name in ("trunk", "mean", "log_std") if stochastic else ("trunk", "mean"):
        own_weights = {key[len(name) + 1 :]: tensor for key, tensor in weights.items() if key.startswith(f"{name}.")}
        if name != "trunk":
            own_weights = {key: tensor[..., :n_actions] for key, tensor in own_weights.items()}
        state = {key: tensor.mT if tensor.dim() == 2 else tensor for key, tensor in own_weights.items()}
        # Views would bring along what they were cut from.
        state = {key: tensor.clone(memory_format=th.contiguous_format) for key, tensor in state.items()}
        actor.get_submodule(name).load_state_dict(state, assign=True)
    return actor.eval().requires_grad_(False)
