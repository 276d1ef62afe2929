"""
Environments of one's own as tasks: two of Gymnasium's pendulums under different gravity, and a class written here.

The tasks may differ in the sizes of their observations and actions; shorter ones are padded. A task that reports
success in ``info`` gets a success rate, one that does not has its return alone. Takes about two minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch as th
import tyro

from sb3_varshare import TaskEvaluation, VarShareSAC, evaluate_tasks, make_multitask_env


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param steps: transitions of each task
    :param episodes: of each task in the evaluation
    :param seed: of everything
    :param threads: of torch; networks as small as these are slower with more
    :param save_path: where the agent goes
    """

    steps: int = 6_000
    episodes: int = 10
    seed: int = 0
    threads: int = 1
    save_path: Path = Path("runs/own_tasks/agent.zip")


class Slide(gymnasium.Env[np.ndarray, np.ndarray]):
    """
    Push a puck over ice to the middle of a table and keep it there.

    Observation (4,): position in m, velocity in m/s. Action (2,): acceleration in m/s^2. Never terminates.
    """

    time_step = 0.1  # s

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(-3.0, 3.0, (2,), dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.uniform(-1, 1, 2), np.zeros(2)
        return self.observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.velocity = 0.95 * self.velocity + self.time_step * np.clip(action, -3, 3)
        self.position = self.position + self.time_step * self.velocity
        distance = float(np.linalg.norm(self.position))
        # The key under which SB3 looks for success.
        return self.observation(), -distance, False, False, {"is_success": distance < 0.1}

    def observation(self) -> np.ndarray:
        """(4,)"""
        return np.concatenate([self.position, self.velocity]).astype(np.float32)


def make_slide() -> gymnasium.Env[Any, Any]:
    """A time limit, since the puck never arrives for good; it tells truncation from termination."""
    return gymnasium.wrappers.TimeLimit(Slide(), 100)


TASKS: dict[str, Callable[[], gymnasium.Env[Any, Any]]] = {
    "earth": partial(gymnasium.make, "Pendulum-v1", g=9.81),
    "moon": partial(gymnasium.make, "Pendulum-v1", g=1.62),
    "slide": make_slide,
}


def main(args: Args) -> TaskEvaluation:
    """Train on all of them, evaluate, save, and go on with the saved agent in one of the plain environments."""
    th.set_num_threads(args.threads)
    env = make_multitask_env(TASKS, seed=args.seed)
    model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=args.seed, verbose=1)
    model.learn(args.steps * env.n_tasks, progress_bar=True)
    evaluation = evaluate_tasks(model, env, n_episodes=args.episodes)
    print(evaluation)
    model.save(args.save_path)
    loaded = VarShareSAC.load(args.save_path)
    for task in TASKS:
        print(f"One episode of {task!r} outside the suite, by the loaded agent: {play(loaded, task, args.seed):.1f}")
    return evaluation


def play(model: VarShareSAC, task: str, seed: int) -> float:
    """
    One episode in the plain environment: no suite, no one-hot.

    :param model: trained on :data:`TASKS`
    :param task: a key of :data:`TASKS`
    :param seed: of the episode
    :return: its return
    """
    env = TASKS[task]()
    observation, _ = env.reset(seed=seed)
    total, is_over = 0.0, False
    while not is_over:
        action, _ = model.predict_task(observation, task=task)
        # The action is the environment's own: of its length and within its bounds.
        observation, reward, terminated, truncated, _ = env.step(action)
        total, is_over = total + float(reward), terminated or truncated
    env.close()
    return total


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
