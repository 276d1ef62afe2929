"""What a trained agent is worth on a task that it has not seen: at once, and after some steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_varshare.evaluation import TaskEvaluation, evaluate_tasks
from sb3_varshare.evaluation.evaluation_env import evaluation_env
from sb3_varshare.growth.specialist import at_base, specialise
from sb3_varshare.growth.task_envs import MakeTask
from sb3_varshare.varshare_sac import VarShareSAC


class CurvePoint(NamedTuple):
    """
    One evaluation in the course of a training.

    :param step: transitions of all tasks together so far
    :param mean_return: raw, the mean over episodes and tasks
    :param success_rate: success at any step; None where the tasks report none
    :param evaluation: all of its episodes
    """

    step: int
    mean_return: float
    success_rate: float | None
    evaluation: TaskEvaluation


class FewShot(NamedTuple):
    """
    What came out of :func:`few_shot`.

    :param agent: of the new task alone; with a frozen base ``add_task(..., from_agent=agent)`` takes it
    :param curve: from the zero-shot evaluation at step 0 to the last step
    """

    agent: VarShareSAC
    curve: list[CurvePoint]


def zero_shot(
    model: VarShareSAC,
    make_env: MakeTask,
    n_episodes: int = 10,
    *,
    name: str | None = None,
    embedding: str = "random",
    deterministic: bool = True,
    seed: int | None = None,
) -> TaskEvaluation:
    """
    Play a new task with what the tasks of a trained agent share, phi = 0. No random generator of the process moves.

    :param model: the trained agent; it stays as it is
    :param make_env: a callable that builds the env of the task, or its ``TaskSpec``
    :param n_episodes: how many
    :param name: of the task; by default the spec's, or ``new``
    :param embedding: where an embedding tells the task, it is ``"random"`` or the ``"mean"`` of the others
    :param deterministic: act with the mean of the policy
    :param seed: of the env, of a random embedding, and of actions that are drawn
    :return: the episodes
    :raises ValueError: the tasks share nothing that could act, or the task is larger than the networks allow
    """
    if not model.policy.has_base:
        raise ValueError("zero_shot plays with what the tasks share, and independent networks share nothing.")
    device = model.device
    with th.random.fork_rng([device] if device.type == "cuda" else []):
        if seed is not None:
            th.manual_seed(seed)
        agent = at_base(model, make_env, name, embedding, seed)
        assert agent.env is not None
        try:
            return evaluate_tasks(agent, agent.env, n_episodes, deterministic)
        finally:
            agent.env.close()


def few_shot(
    model: VarShareSAC,
    make_env: MakeTask,
    steps: int,
    evaluations: int = 10,
    *,
    n_episodes: int = 10,
    freeze_base: bool = True,
    **options: Any,
) -> FewShot:
    """
    Let an agent learn a new task from the base of a trained one, and evaluate it on the way.

    :param model: the trained agent; it stays as it is
    :param make_env: a callable that builds the env of the task, or its ``TaskSpec``
    :param steps: transitions of the new task
    :param evaluations: how many, evenly spread, besides the one before the first step
    :param n_episodes: of each evaluation, the same episodes in all
    :param freeze_base: train the residual alone
    :param options: further arguments of :func:`~sb3_varshare.growth.specialise`, ``embedding`` and ``seed`` among them
    :return: the agent and its curve
    """
    agent = specialise(model, make_env, freeze_base=freeze_base, **options)
    return FewShot(agent, learning_curve(agent, steps, evaluations, n_episodes))


def learning_curve(model: VarShareSAC, steps: int, evaluations: int = 10, n_episodes: int = 10) -> list[CurvePoint]:
    """
    Train an agent and evaluate it on the way.

    :param model: any agent with an environment, changed in place
    :param steps: transitions of all tasks together
    :param evaluations: how many, evenly spread, besides the one before the first step
    :param n_episodes: of each task in each evaluation
    :return: the evaluations in order
    :raises ValueError: there is no evaluation or no step, or the agent has no environment
    """
    if min(steps, evaluations, n_episodes) < 1:
        raise ValueError(f"Expected at least 1 step, evaluation and episode, got {steps}, {evaluations}, {n_episodes}.")
    if model.env is None:
        raise ValueError(
            "Expected an agent with an environment to learn in; give it one by set_env, or load it with env=."
        )
    env = evaluation_env(model.env, model)
    recorder = _CurveRecorder(env, steps, evaluations, n_episodes)
    try:
        model.learn(steps, callback=recorder)
    finally:
        if env is not model.env:
            env.close()
    return recorder.curve


class _CurveRecorder(BaseCallback):
    def __init__(self, env: VecEnv, steps: int, evaluations: int, n_episodes: int) -> None:
        super().__init__()
        self.env, self.n_episodes = env, n_episodes
        self.due = [round(steps * number / evaluations) for number in range(evaluations)]
        self.curve: list[CurvePoint] = []

    def _on_rollout_start(self) -> None:
        # Between updates; of several that are due at once the last one counts.
        if self.due and self.num_timesteps >= self.due[0]:
            self.due = [step for step in self.due if step > self.num_timesteps]
            self._evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self) -> None:
        assert isinstance(self.model, VarShareSAC)
        evaluation = evaluate_tasks(self.model, self.env, self.n_episodes)
        point = CurvePoint(self.num_timesteps, evaluation.mean_return, evaluation.mean_success_rate, evaluation)
        self.curve.append(point)
