"""A tensor env whose episodes are known, and a check that nothing waits for the device."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnvWrapper
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_varshare.tasks import RowStep, TaskSpec, TaskSuite, TensorVecEnv


def no_plain_env(stream: np.random.SeedSequence) -> Any:
    """Of tasks that only exist as rows."""
    raise NotImplementedError


class CountingRows(TensorVecEnv):
    """
    Row i is in its episode's step k: observation (k, draw of the episode), reward k * (i + 1).

    Task 0 terminates after three steps, task 1 never; both have a time limit. Solved in the second step alone.
    """

    def __init__(self, n_envs: int | None = None, horizon: int = 5, **kwargs: Any) -> None:
        tasks = [TaskSpec(name, "counting", no_plain_env, horizon, 2, 1) for name in ("short", "long")]
        super().__init__(TaskSuite("counting", tuple(tasks), {}), n_envs, **kwargs)
        self.time = th.zeros(self.num_envs, device=self.device)
        self.draw = th.zeros(self.num_envs, device=self.device)

    def reset_rows(self, mask: th.Tensor) -> None:
        draw = th.rand(self.num_envs, generator=self.generator, device=self.device)
        self.time, self.draw = th.where(mask, 0.0, self.time), th.where(mask, draw, self.draw)

    def step_rows(self, actions: th.Tensor) -> RowStep:
        self.time = self.time + 1
        rewards = self.time * th.arange(1, self.num_envs + 1, device=self.device)
        return RowStep(rewards, (self.time >= 3) & (self.task_ids == 0), self.time == 2)

    def observe_rows(self) -> th.Tensor:
        return th.stack([self.time, self.draw], -1)


class AsArrays(VecEnvWrapper):
    """Changes nothing, and sees only what passes through numpy, as every wrapper."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


class NoWaiting(TorchDispatchMode):
    """Raises where an operator reads the data of a tensor into Python, or makes a shape that depends on them."""

    FORBIDDEN = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype == th.bool]
            assert not masks, f"{name} with a mask waits for the device"
        return func(*args, **(kwargs or {}))
