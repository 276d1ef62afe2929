"""
Train one agent on a suite and print a table per task: what ``make train`` runs.

Writes into a folder of its own under ``runs/``: ``evaluations.csv`` (a row per step, task and episode),
``progress.csv`` and TensorBoard logs, ``best_model.zip`` and ``final_model.zip``. Ctrl-C ends the training early and
still saves, evaluates and prints; a second one ends at once.

The default suite takes about three minutes on two CPU cores; MT3 about half an hour, MT10 and MT50 many
hours.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch as th
import tyro
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from sb3_varshare import EvalTasksCallback, MultiTaskVecEnv, VarShareSAC, evaluate_tasks
from sb3_varshare.tasks import make_suite
from sb3_varshare.varshare_sac.diagnostics import residual_statistics

STEPS_PER_TASK = {"contextual": 6_000, "MT3": 60_000}
STEPS_PER_TASK_ELSEWHERE = 20_000
# On Meta-World a step costs a fraction of a gradient step: more data for the same time.
ENVS_PER_TASK = {"MT3": 2}
PRESETS = {"contextual": "small", "MT3": "medium"}


@dataclass(frozen=True)
class Args:
    """
    What to train.

    :param suite: contextual, MT3, MT10, MT25, MT50, MT1/<task>, or several tasks such as metaworld/reach-v3
    :param steps: transitions of each task; by default 6,000 for contextual, 60,000 for MT3, 20,000 elsewhere
    :param adapter: what a task has of its own; by default the preset's, else varshare
    :param seed: of everything
    :param preset: other defaults; plain is none of them; by default small for contextual, medium for MT3, plain
        elsewhere
    :param width: hidden features of actor and critics
    :param n_envs: environments that are stepped at once; by default two for each task of MT3, one elsewhere
    :param log_dir: by default runs/<suite>/<adapter>_seed<seed>; a folder that holds a run is left alone, and the next
        free number is appended
    :param beta: weight of the KL
    :param sigma_prior: standard deviation of the prior, relative to the initial weights
    :param ent_coef: entropy coefficient: auto_<first value>, or a number that stays
    :param task_input: what the networks are told about the task; by default nothing
    :param eval_freq: transitions of each task between evaluations; by default a fifth of the steps
    :param eval_episodes: of each task in an evaluation during training
    :param final_episodes: of each task for the table at the end
    :param device: cpu, cuda or auto
    :param threads: of torch on the CPU; by default 1 with preset small, whose products are too small to be split, and
        torch's choice elsewhere
    """

    suite: tuple[str, ...] = ("contextual",)
    steps: int | None = None
    adapter: Literal["varshare", "low_rank", "deterministic", "embedding", "none", "independent"] | None = None
    seed: int = 0
    preset: Literal["plain", "small", "medium", "brc"] | None = None
    width: int | None = None
    n_envs: int | None = None
    log_dir: Path | None = None
    beta: float | None = None
    sigma_prior: float | None = None
    ent_coef: float | str | None = None
    task_input: Literal["one_hot", "embedding"] | None = None
    eval_freq: int | None = None
    eval_episodes: int = 5
    final_episodes: int = 10
    device: str = "auto"
    threads: int | None = None

    @property
    def suite_name(self) -> str:
        """For tables and folders."""
        return "+".join(self.suite)

    @property
    def chosen_preset(self) -> str | None:
        """The constructor's ``preset``."""
        preset = self.preset or PRESETS.get(self.suite_name)
        return None if preset == "plain" else preset

    @property
    def run_name(self) -> str:
        """``<adapter>_seed<seed>``, with BRC by its name."""
        parts = ["brc"] if self.chosen_preset == "brc" else []
        parts += [self.adapter] if self.adapter else []
        parts += [self.task_input] if self.task_input else []
        return f"{'_'.join(parts) or 'varshare'}_seed{self.seed}"


class StopOnInterrupt(BaseCallback):
    """Ends ``learn`` in order at the first Ctrl-C: what follows it still runs."""

    def __init__(self) -> None:
        super().__init__()
        self.is_interrupted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context Ctrl-C is heard here."""
        previous = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.is_interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("Interrupted: evaluating and saving. Press again to end at once.")

    def _on_step(self) -> bool:
        return not self.is_interrupted


def free_folder(folder: Path) -> Path:
    """
    :param folder: where a run would like to write
    :return: the folder, or with a number behind it where it holds a run
    """
    numbered = (folder.with_name(f"{folder.name}_{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([folder], numbered) if not (path / "evaluations.csv").exists())


def make_env(args: Args) -> MultiTaskVecEnv:
    """
    :param args: which tasks, how many environments
    """
    suite = make_suite(args.suite[0] if len(args.suite) == 1 else args.suite)
    n_envs = args.n_envs or suite.n_tasks * ENVS_PER_TASK.get(args.suite_name, 1)
    return MultiTaskVecEnv(suite, n_envs, args.seed)


def make_model(args: Args, env: MultiTaskVecEnv) -> VarShareSAC:
    """
    :param args: what to train; what is not given is left to the constructor and the preset
    :param env: the suite
    """
    widths = {"actor_width": args.width, "critic_width": args.width}
    options: dict[str, Any] = {"adapter": args.adapter, "beta": args.beta, "sigma_prior": args.sigma_prior, **widths}
    options |= {"ent_coef": args.ent_coef, "task_input": args.task_input, "preset": args.chosen_preset}
    given = {name: value for name, value in options.items() if value is not None}
    return VarShareSAC("MultiTaskPolicy", env, seed=args.seed, device=args.device, verbose=1, **given)


def ent_coefs(model: VarShareSAC) -> list[float]:
    """Entropy coefficient of each task, (T,)."""
    learned = model.log_ent_coef
    values = model.ent_coef_tensor if learned is None else learned.detach().exp()
    return values.expand(model.n_tasks).tolist()


@th.no_grad()
def has_residuals(model: VarShareSAC) -> bool:
    """Whether any task has something of its own on top of a shared base."""
    return any("kl" in residual_statistics(network) for network in (model.policy.actor, model.policy.critic.net))


def columns(model: VarShareSAC, base_returns: dict[str, float]) -> dict[str, dict[str, str]]:
    """
    What the table shows besides return and success; residual columns only for agents with residuals.

    :param model: the trained agent
    :param base_returns: of the shared base alone, per task; empty where there is none
    """
    texts: dict[str, list[str]] = {}
    ratios = []
    for name, network in (("actor", model.policy.actor), ("critic", model.policy.critic.net)):
        statistics = residual_statistics(network)
        if "kl" in statistics:
            texts[f"KL {name} (nats)"] = [f"{value:.0f}" for value in statistics["kl"].tolist()]
            ratios.append(statistics["mu_over_theta"])
    if ratios:
        texts["|mu|/|theta|"] = [f"{value:.3f}" for value in th.stack(ratios).mean(0).tolist()]
    if base_returns:
        texts["base alone"] = [f"{base_returns[task]:.1f}" for task in model.task_names]
    texts["ent. coef."] = [f"{value:.3f}" for value in ent_coefs(model)]
    return {column: dict(zip(model.task_names, cells, strict=True)) for column, cells in texts.items()}


def print_table(model: VarShareSAC, env: MultiTaskVecEnv, args: Args) -> None:
    """
    Evaluate and print.

    :param model: the trained agent
    :param env: the suite; its evaluation twin is played
    :param args: for the title and the number of episodes
    """
    evaluation = evaluate_tasks(model, env, n_episodes=args.final_episodes)
    base_returns = {}
    if has_residuals(model):
        base = evaluate_tasks(model, env, n_episodes=args.final_episodes, base=True)
        base_returns = {task: estimate.mean for task, estimate in base.returns().items()}
    title = f"{args.suite_name}, {args.run_name}, {args.final_episodes} episodes of each task"
    table = evaluation.table(title, columns(model, base_returns))
    console = Console()
    # A line that is too long for the terminal wraps; rich would cut the numbers.
    needed = console.measure(table, options=console.options.update(width=1_000)).maximum
    console.width = max(console.width, needed)
    console.print(table)


def train(args: Args, model: VarShareSAC, steps: int, log_dir: Path) -> float:
    """
    :param args: how to evaluate
    :param model: the agent
    :param steps: transitions of all tasks together
    :param log_dir: of all outputs
    :return: wall-clock seconds, evaluations included
    """
    model.set_logger(configure(str(log_dir), ["csv", "tensorboard"]))
    eval_freq = args.eval_freq * model.n_tasks if args.eval_freq else max(1, steps // 5)
    evaluate = EvalTasksCallback(
        eval_freq=eval_freq,
        n_episodes=args.eval_episodes,
        log_path=log_dir,
        evaluate_base=has_residuals(model),
        verbose=1,
    )
    stop = StopOnInterrupt()
    start = time.perf_counter()
    try:
        with stop.listening():
            model.learn(steps, callback=[evaluate, stop], progress_bar=True)
    finally:
        # Also where training failed: what was learned is not lost.
        model.save(log_dir / "final_model.zip")
        model.logger.close()
    return time.perf_counter() - start


def main(args: Args) -> Path:
    """
    Train, save, print.

    :param args: what to train
    :return: the folder with all outputs
    """
    if args.threads or args.chosen_preset == "small":
        th.set_num_threads(args.threads or 1)
    try:
        env = make_env(args)
        model = make_model(args, env)
    except (ValueError, MemoryError, ImportError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    steps = (args.steps or STEPS_PER_TASK.get(args.suite_name, STEPS_PER_TASK_ELSEWHERE)) * env.n_tasks
    log_dir = free_folder(args.log_dir or Path("runs") / args.suite_name.replace("/", "-") / args.run_name)
    print(f"{args.suite_name}: {env.n_tasks} tasks, {steps:,} transitions, everything goes to {log_dir}")
    seconds = train(args, model, steps, log_dir)
    print_table(model, env, args)
    print(
        f"{seconds:.0f} s for {model.num_timesteps:,} transitions ({model.num_timesteps // env.n_tasks:,} of each "
        f"task) and {model._n_updates:,} gradient steps, evaluations included; saved in {log_dir}"
    )
    env.close()
    return log_dir


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
