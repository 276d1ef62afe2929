"""
Train on Meta-World: a suite or a list of tasks, evaluated while it trains, saved, loaded and played.

Needs the ``metaworld`` extra. MT3 takes about an hour for 50,000 steps of each task on one CPU core.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium
import tyro

from sb3_varshare import EvalTasksCallback, TaskEvaluation, VarShareSAC, evaluate_tasks, make_multitask_env


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param tasks: a suite (MT1/<task>, MT3, MT10, MT25, MT50) or several tasks such as metaworld/reach-v3
    :param steps: transitions of each task
    :param protocol: mt-rand is 50 goals and 500 steps, brc one goal and 200 steps; evaluation plays other goals
    :param preset: other defaults of the agent; medium is for a few tasks on a CPU
    :param width: hidden features of actor and critics
    :param eval_freq: transitions of each task between evaluations
    :param episodes: of each task in an evaluation
    :param seed: of everything
    :param log_dir: of all outputs
    """

    tasks: tuple[str, ...] = ("MT3",)
    steps: int = 50_000
    protocol: Literal["mt-rand", "brc"] = "mt-rand"
    preset: Literal["medium", "brc"] | None = "medium"
    width: int = 128
    eval_freq: int = 5_000
    episodes: int = 5
    seed: int = 0
    log_dir: Path = Path("runs/metaworld")


def main(args: Args) -> TaskEvaluation:
    """Train, evaluate, save, load, play."""
    tasks = args.tasks[0] if len(args.tasks) == 1 else args.tasks
    env = make_multitask_env(tasks, seed=args.seed, protocol=args.protocol)
    model = VarShareSAC(
        "MultiTaskPolicy",
        env,
        preset=args.preset,
        actor_width=args.width,
        critic_width=args.width,
        seed=args.seed,
        tensorboard_log=str(args.log_dir),
        verbose=1,
    )
    evaluate = EvalTasksCallback(
        # Everything in SB3 counts the transitions of all environments together.
        eval_freq=args.eval_freq * env.n_tasks,
        n_episodes=args.episodes,
        log_path=args.log_dir,
        evaluate_base=True,
        verbose=1,
    )
    model.learn(args.steps * env.n_tasks, callback=evaluate, progress_bar=True)
    model.save(args.log_dir / "final_model.zip")

    best = VarShareSAC.load(args.log_dir / "best_model.zip", env=env)
    evaluation = evaluate_tasks(best, env, n_episodes=args.episodes)
    # The line below the table names the protocol; evaluations.csv has it beside it in protocol.json.
    print(evaluation)
    env.close()
    for task in best.task_names:
        print(f"{task}: {'solved' if play(best, task, args.seed) else 'not solved'} in Meta-World's own environment")
    return evaluation


def play(model: VarShareSAC, task: str, seed: int) -> bool:
    """
    One episode in the environment that Meta-World itself builds for the task.

    :param model: trained on this task among others
    :param task: such as ``reach-v3``
    :param seed: of Meta-World's goals
    :return: whether the episode was solved
    """
    env = gymnasium.make("Meta-World/MT1", env_name=task, seed=seed)
    observation, _ = env.reset()
    is_solved, is_over = False, False
    while not (is_solved or is_over):
        action, _ = model.predict_task(observation, task=task)
        observation, _, terminated, truncated, info = env.step(action)
        is_solved, is_over = bool(info["success"]), terminated or truncated
    env.close()
    return is_solved


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
