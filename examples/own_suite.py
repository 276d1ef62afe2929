"""
A suite of one's own, known by name like MT10: one function that lists the tasks, and one line that registers it.

The tasks are Gymnasium's pendulum under the gravity of four planets. Once registered, the suite is a word for
``make_multitask_env``, may be mixed with tasks of other sources, and its options and versions stand in every result.
In a package of one's own the function would stand in a module such as ``my_package.planets``, which is imported when
one of its tasks is asked for. Takes about three minutes on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch as th
import tyro

from sb3_varshare import TaskEvaluation, VarShareSAC, evaluate_tasks, make_multitask_env
from sb3_varshare.tasks import TaskSource, gymnasium_task, register_source

GRAVITY = {"moon": 1.62, "mars": 3.73, "venus": 8.87, "earth": 9.81}  # m/s^2


def load(horizon: int = 200) -> TaskSource:
    """
    All tasks of this source. Its arguments are options of ``make_multitask_env``.

    :param horizon: time limit in steps
    """
    tasks = {
        name: gymnasium_task("Pendulum-v1", name, horizon, source="planets", g=gravity)
        for name, gravity in GRAVITY.items()
    }
    suites = {"Planets": tuple(tasks), "RockyMoons": ("moon",)}
    # What must be equal for two results to be comparable.
    return TaskSource("planets", tasks, suites, {"version": 1, "horizon": horizon})


register_source("planets", __name__, suites=["Planets", "RockyMoons"])


@dataclass(frozen=True)
class Args:
    """
    What to run.

    :param tasks: a suite, or several tasks, also of other sources
    :param steps: transitions of each task
    :param episodes: of each task in the evaluation
    :param horizon: time limit in steps
    :param seed: of everything
    """

    tasks: tuple[str, ...] = ("Planets",)
    steps: int = 6_000
    episodes: int = 10
    horizon: int = 200
    seed: int = 0


def main(args: Args) -> TaskEvaluation:
    """Train on the suite by its name; the table names its protocol."""
    th.set_num_threads(1)
    tasks = args.tasks[0] if len(args.tasks) == 1 else args.tasks
    env = make_multitask_env(tasks, seed=args.seed, horizon=args.horizon)
    model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=args.seed, verbose=1)
    model.learn(args.steps * env.n_tasks, progress_bar=True)
    evaluation = evaluate_tasks(model, env, n_episodes=args.episodes)
    print(evaluation)
    env.close()
    return evaluation


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
