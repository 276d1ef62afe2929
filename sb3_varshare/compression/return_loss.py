"""What a change of an agent costs in return."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch as th

from sb3_varshare.evaluation import evaluate_tasks
from sb3_varshare.varshare_sac import VarShareSAC


class RandomPolicy:
    """
    Plays uniformly random actions.

    :param env: whose actions; its own generator is left alone
    """

    def __init__(self, env: Any) -> None:
        self.space = copy.deepcopy(env.action_space)
        self.space.seed(0)

    def predict(self, observation: np.ndarray, deterministic: bool = True) -> tuple[np.ndarray, None]:
        """As SB3's models."""
        return np.stack([self.space.sample() for _ in observation]), None


class ReturnLoss:
    """
    Returns of an agent now and, on the same episodes, after it was changed.

    Multi-task envs of this package play the same episodes at each call; others go on where they are.

    :param model: the agent
    :param env: as for :func:`~sb3_varshare.evaluate_tasks`
    :param n_episodes: of each task
    :param random: mean return of a random policy in each task, the zero of losses; ``None`` where it is not known
    :param measure_random: measure what is not known
    :raises ValueError: it is not known for some task, or the agent has no return above it
    """

    def __init__(
        self,
        model: VarShareSAC,
        env: Any,
        n_episodes: int,
        random: Mapping[str, float] | None = None,
        measure_random: bool = False,
    ) -> None:
        self.model, self.env, self.n_episodes = model, env, n_episodes
        self.before = self.returns()
        if random is None and measure_random:
            random = self.returns(RandomPolicy(env))
        self.random = random
        self._spans = None if random is None else self._above(random)

    def returns(self, model: Any = None) -> dict[str, float]:
        """
        :param model: who plays; by default the agent as it is now
        :return: mean return of each task
        """
        # A compiled network would be compiled anew for each change.
        with th.compiler.set_stance("force_eager") if self.model.compile else nullcontext():
            evaluation = evaluate_tasks(model or self.model, self.env, self.n_episodes)
        return {task: estimate.mean for task, estimate in evaluation.returns().items()}

    def losses(self, after: Mapping[str, float]) -> dict[str, float] | None:
        """
        Share lost of the return above a random policy's; a task that had learned nothing has nothing to lose.

        :param after: mean return of each task now
        :return: of each task in which the agent was better than the random policy, negative for a gain; ``None`` where
            no random policy is known
        """
        if self._spans is None:
            return None
        return {task: (self.before[task] - after[task]) / span for task, span in self._spans.items()}

    def _above(self, random: Mapping[str, float]) -> dict[str, float]:
        missing = sorted(set(self.before) - set(random))
        if missing:
            raise ValueError(f"random_returns must have a return for each of {list(self.before)}, none for {missing}.")
        spans = {task: value - random[task] for task, value in self.before.items() if value > random[task]}
        if not spans:
            raise ValueError(
                "The agent is no better than a random policy in any task, so that it has no return to lose; train it "
                "further, or prune by threshold or keep_fraction."
            )
        return spans
