"""One task's actor as a plain network, from a live agent or from an exported policy."""

from __future__ import annotations

from sb3_varshare.deployment.actor_parts import ActorParts, build, model_parts
from sb3_varshare.deployment.exported_policy import ExportedPolicy
from sb3_varshare.deployment.plain_actor import PlainActor
from sb3_varshare.varshare_sac.multi_task_algorithm import MultiTaskAlgorithm

Source = MultiTaskAlgorithm | ExportedPolicy


def compose_task(model: Source, task: str | int | None, base: bool = False) -> PlainActor:
    """
    The actor of one task as a plain network on the processor: shared weights and residual are one matrix, what is
    constant for the task is in a bias, and its output is what the task's environment takes.

    It gives what ``predict_task(observation, task, deterministic=True)`` gives, up to rounding, and shares no memory
    with where it comes from.

    :param model: the agent, or a policy that :func:`~sb3_varshare.load_policy` read
    :param task: its name, or of an agent its index; ``None`` for the shared base without any task, whose observations
        are the longest and whose actions are in [-1, 1]
    :param base: the shared base in place of the task's own weights
    :return: from observations (B, D_t), float32, to actions (B, A_t); D_t is the longest observation where the agent
        does not know the task's own
    :raises ValueError: there is no such task or base, or a parameter is not finite
    """
    return build(actor_parts(model, task, base), stochastic=False)


def actor_parts(model: Source, task: str | int | None, base: bool) -> ActorParts:
    """
    :param model: the agent or an exported policy
    :param task: as for :func:`compose_task`
    :param base: the shared base in place of the task's own weights
    :return: what the actor is made of
    """
    if isinstance(model, ExportedPolicy):
        return model.actor_parts(task if task is None else str(task), base)
    return model_parts(model, task, base)
