"""
One agent, several processes that ``torchrun`` starts: each collects and samples for itself, all take the same steps.

Gradients are averaged before every optimizer step; data counts and return ranges are reduced, so that all processes
minimise the loss that one process with all batches would.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import timedelta
from typing import Any

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from sb3_varshare.varshare_sac import VarShareSAC
from sb3_varshare.varshare_sac.observation_norm import ObservationNorm
from sb3_varshare.varshare_sac.peers import Peers

# What may differ between processes. All other plain attributes of the agent must not.
OWN = ("seed", "verbose", "tensorboard_log", "start_time", "replay_device")


@contextmanager
def process_group(timeout: float = 600.0) -> Iterator[int]:
    """
    Join the processes that ``torchrun`` started: by gloo on CPUs and, where there are GPUs, NCCL with one for each.

    :param timeout: s that a process waits for the others before it ends with an error; longer than what only one of
        them does, such as an evaluation
    :yield: the rank of this process
    :raises RuntimeError: ``torchrun`` did not start this process, or it has no GPU of its own
    """
    if "RANK" not in os.environ:
        raise RuntimeError("Expected a process that torchrun started: torchrun --nproc-per-node 2 <script>.")
    backend = "gloo"
    if th.cuda.is_available():
        local, n_gpus = int(os.environ.get("LOCAL_RANK", "0")), th.cuda.device_count()
        if local >= n_gpus:
            raise RuntimeError(f"Expected a GPU for each process, got {n_gpus} for process {local}; start fewer.")
        th.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def rank_seed(seed: int) -> int:
    """
    A seed for this process: the given one in the first, others elsewhere.

    :param seed: the same in all processes
    """
    rank = dist.get_rank()
    return int(np.random.SeedSequence(seed, spawn_key=(rank,)).generate_state(1)[0]) if rank else seed


def distribute(model: VarShareSAC) -> VarShareSAC:
    """
    Make an agent of every process one agent. All begin with what the first process has; the others are silent.

    :param model: the same in all processes but for its seed, and that of its environments
    :return: the model
    :raises RuntimeError: outside of :func:`process_group`
    :raises ValueError: settings differ, seeds do not, or updates do not come after a number of steps
    """
    if not dist.is_initialized():
        raise RuntimeError("Expected to be called inside of `with process_group():`.")
    if model._peers is not None:
        raise ValueError("This agent is distributed already.")
    peers = Peers()
    _check_settings(model, peers)
    optimizers = [model.actor.optimizer, model.critic.optimizer, *filter(None, [model.ent_coef_optimizer])]
    for tensor in _tensors(model, optimizers):
        dist.broadcast(tensor, src=0)
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(peers.average_gradients)
    norm = model.policy.observation_norm
    if isinstance(norm, ObservationNorm):
        # What was seen before counts once.
        model._own_observation_norm = deepcopy(norm)
        if peers.rank:
            model._own_observation_norm.count.zero_()
    if peers.rank:
        model.verbose = 0
        model.set_logger(Logger(None, []))
    model._peers = peers
    return model


def _tensors(model: VarShareSAC, optimizers: list[th.optim.Optimizer]) -> Iterator[th.Tensor]:
    """All that gradient steps read and write."""
    yield from model.policy.state_dict().values()
    yield from model.reward_scale.state_dict().values()
    if model.log_ent_coef is not None:
        yield model.log_ent_coef.data
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield from filter(th.is_tensor, optimizer.state.get(parameter, {}).values())


def _check_settings(model: VarShareSAC, peers: Peers) -> None:
    plain = (bool, int, float, str, tuple, list, type(None))
    settings = {
        name: repr(value)
        for name, value in vars(model).items()
        if isinstance(value, plain) and name not in OWN and (name == "_n_updates" or not name.startswith("_"))
    }
    settings["parameters"] = repr([tuple(parameter.shape) for parameter in model.policy.parameters()])
    env_seed = None if model.env is None else getattr(model.env.unwrapped, "seed_value", None)
    everyone: list[Any] = [None] * peers.n_processes
    dist.all_gather_object(everyone, (settings, env_seed, th.initial_seed()))
    first = everyone[0][0]
    for rank, (other, *_) in enumerate(everyone):
        differing = sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name))
        if differing:
            name = differing[0]
            raise ValueError(
                f"{name} must be the same in all processes, got {first.get(name)} in process 0 and "
                f"{other.get(name)} in process {rank}."
            )
    if model.train_freq.unit != TrainFrequencyUnit.STEP:  # type: ignore[union-attr]
        raise ValueError(f"train_freq must be a number of steps, the same in all processes, got {model.train_freq}.")
    for what, seeds in (("environments", [e[1] for e in everyone]), ("agent", [e[2] for e in everyone])):
        if len(set(seeds)) < len(seeds) and None not in seeds:
            raise ValueError(
                f"The {what} of every process must have a seed of their own, else all collect the same, got {seeds}; "
                "use seed=rank_seed(seed)."
            )
