"""One of the processes of ``test_distributed``: plays all scenes and leaves what came of them in a file."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from sb3_varshare import VarShareSAC, make_multitask_env
from sb3_varshare.distributed import distribute, process_group, rank_seed
from sb3_varshare.types import TaskBatch, Transitions
from sb3_varshare.varshare_sac import squashed_gaussian

TASKS = ["contextual/light", "contextual/reversed"]
N_TASKS, SIZE, ROWS, STEPS = len(TASKS), 5, 16, 13
TINY: dict[str, Any] = {
    "batch_size": 32,
    "buffer_size": 4_000,
    "learning_starts": 16,
    "actor_width": 8,
    "critic_width": 8,
    "critic_depth": 1,
    "device": "cpu",
}
# Plain gradient descent: what Adam makes of rounding is not bounded where a gradient is near zero.
MEAN_MODE: dict[str, Any] = {
    "estimator": "mean",
    "normalize_observations": True,
    "batch_size": N_TASKS * ROWS,
    "beta": 1.0,
    "learning_rate": 0.1,
    "learning_starts": 0,
    "policy_kwargs": {"optimizer_class": th.optim.SGD},
}
LONG_RUN: dict[str, Any] = {"gradient_steps": 2, "recenter_every": 3, "target_update_interval": 2, "beta": 1.0}


class ConstantNoise:
    """Stands for torch where actions are drawn: noise of 0.5, however rows are cut into batches."""

    def __getattr__(self, name: str) -> Any:
        return getattr(th, name)

    @staticmethod
    def randn_like(tensor: th.Tensor) -> th.Tensor:
        return th.full_like(tensor, 0.5)


def make_agent(n_envs: int = N_TASKS, **kwargs: Any) -> VarShareSAC:
    """A tiny agent on two pendulums with episodes of four steps."""
    return VarShareSAC("MultiTaskPolicy", make_multitask_env(TASKS, n_envs, horizon=4), **{**TINY, **kwargs})


def feed(model: VarShareSAC, part: int) -> None:
    """Steps of one part of the data, 13 and 20 of them on other scales; after eight, both environments play task 0."""
    generator = np.random.default_rng(part)
    for step in range(STEPS + 7 * part):
        task_ids = np.arange(N_TASKS) if step < 8 else np.zeros(N_TASKS, dtype=np.int64)
        last = np.full(N_TASKS, step % 4 == 3)
        rewards = (generator.normal(size=N_TASKS) * (1 + part)).astype(np.float32)
        observations, following = (
            np.concatenate([generator.normal(part, 1 + part, (N_TASKS, SIZE)), np.eye(N_TASKS)[task_ids]], 1)
            for _ in range(2)
        )
        actions = generator.uniform(-1, 1, (N_TASKS, 1))
        columns = [th.as_tensor(array, dtype=th.float32) for array in (observations, actions, rewards, following)]
        model.store(Transitions(*columns, th.zeros(N_TASKS, dtype=th.bool), th.as_tensor(last)))
        model.count(task_ids, rewards, np.zeros(N_TASKS, dtype=bool), last, [{}] * N_TASKS)
    model.reward_scale.forget_open_episodes()


def batches(part: int, n_batches: int) -> list[TaskBatch]:
    """What one process samples."""
    generator = th.Generator().manual_seed(part)

    def normal(*size: int) -> th.Tensor:
        return th.randn(N_TASKS, ROWS, *size, generator=generator)

    return [
        TaskBatch(normal(SIZE), normal(1).tanh(), normal(SIZE), normal(), th.full((N_TASKS, ROWS), 0.99))
        for _ in range(n_batches)
    ]


def state_of(model: VarShareSAC) -> dict[str, Any]:
    """All that training changes, as copies."""
    optimizers = [model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer]
    tensors = {
        **model.policy.state_dict(),
        **{f"scale.{name}": value for name, value in model.reward_scale.state_dict().items()},
        "log_ent_coef": model.log_ent_coef,
        "kl_weights": th.stack([*model._kl_weights(model.batch_size)]),
    }
    for number, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():  # type: ignore[union-attr]
            tensors.update({f"optimizer.{number}.{index}.{name}": value for name, value in values.items()})
    return {name: value.detach().clone() for name, value in tensors.items()}


def mean_steps(model: VarShareSAC, parts: list[int], sampled: list[TaskBatch]) -> dict[str, Any]:
    """The agent after a step for each batch, with the data of these parts."""
    left = iter(sampled)
    model.replay_buffer.sample = lambda batch_size: next(left)  # type: ignore[method-assign, assignment]
    model._setup_learn(1_000)
    for part in parts:
        feed(model, part)
    model.num_timesteps = 1
    model.train(len(sampled), N_TASKS * sampled[0].rewards.shape[1])
    return state_of(model)


def scene_mean_mode(rank: int) -> dict[str, Any]:
    """Three steps on own batches, from own data."""
    model = distribute(make_agent(**{**MEAN_MODE, "seed": rank_seed(5)}))
    return mean_steps(model, [rank], batches(rank, 3))


def scene_long_run(rank: int) -> dict[str, Any]:
    """A training that collects, with noise, re-centring and target updates."""
    model = distribute(make_agent(seed=rank_seed(5), verbose=1, **LONG_RUN))
    start = state_of_networks(model)
    model.learn(200)
    assert model.replay_buffer._rows is not None
    return {"start": start, "end": state_of(model), "replay": model.replay_buffer._rows[:, :50].clone()}


def state_of_networks(model: VarShareSAC) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def scene_refused(rank: int) -> dict[str, Any]:
    """Agents that cannot be one."""
    return {
        "seeds": error_of(lambda: distribute(make_agent(seed=3))),
        "settings": error_of(lambda: distribute(make_agent(seed=rank_seed(3), beta=0.1 + rank))),
        "episodes": error_of(lambda: distribute(make_agent(1, seed=rank_seed(3), train_freq=(1, "episode")))),
    }


def scene_lost(rank: int, timeout: float) -> dict[str, Any]:
    """The second process stops answering for a while, and later is gone."""
    model = make_agent(seed=rank_seed(5))
    distribute(model)

    def on_step(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if rank == 1 and model.num_timesteps >= 60:
            if timeout > 60:
                os._exit(9)
            time.sleep(2 * timeout)
        return True

    start = time.monotonic()
    error = error_of(lambda: model.learn(100_000, callback=on_step))
    return {"error": error, "seconds": time.monotonic() - start}


def main(folder: Path, ports: list[str]) -> None:
    th.set_num_threads(1)
    rank, results = int(os.environ["RANK"]), {}
    os.environ["MASTER_PORT"] = ports[0]
    with process_group():
        results["long_run"] = scene_long_run(rank)
        results["refused"] = scene_refused(rank)
        squashed_gaussian.th = ConstantNoise()  # type: ignore[assignment]
        results["mean_mode"] = scene_mean_mode(rank)
    for scene, timeout, port in (("hangs", 2.0, ports[1]), ("ends", 600.0, ports[2])):
        os.environ["MASTER_PORT"] = port
        with process_group(timeout):
            results[scene] = scene_lost(rank, timeout)
        th.save(results, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
