"""``python -m sb3_varshare.tuning run|show|compare|plot``: studies with many workers, see ``docs/tuning.md``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

try:
    import gymnasium as gym
    import optuna
    import torch as th
    import tyro
    from rich.console import Console
    from rich.table import Table

    from sb3_varshare.tuning.comparison import compare as compare_arms
    from sb3_varshare.tuning.comparison import comparison_table
    from sb3_varshare.tuning.plots import plot_study
    from sb3_varshare.tuning.progress import FAILURE, unit_of, units_of
    from sb3_varshare.tuning.queue import Worker
    from sb3_varshare.tuning.storage import open_storage
    from sb3_varshare.tuning.training import Settings, Trainer
    from sb3_varshare.tuning.worker import SETTINGS_KEY, Search, make_pruner, make_sampler, open_study
except ModuleNotFoundError as missing:
    raise SystemExit(
        f'Tuning needs the package {missing.name!r}, which is not installed; run pip install "sb3_varshare[zoo]".'
    ) from missing

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# What a user can set right; everything else is shown with its traceback.
MISTAKES = (ValueError, ImportError, OSError, gym.error.Error)


def run(
    settings: Annotated[Settings, tyro.conf.OmitArgPrefixes],
    storage: str,
    study_name: str,
    n_trials: int = 40,
    sampler: Literal["tpe", "random"] = "tpe",
    pruner: Literal["median", "hyperband", "none"] = "median",
    n_startup_trials: int = 10,
    heartbeat: int = 60,
    grace: int | None = None,
    max_retries: int = 3,
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """
    Work on a study until all its trials are done: start it as often as you like, on any machine.

    :param settings: what a trial is
    :param storage: sqlite:///study.db on one machine, postgresql://user@host/database on many
    :param study_name: of the study, which is made where it does not exist
    :param n_trials: of the whole study, over all workers; a trial that is retried counts once
    :param sampler: what proposes parameters
    :param pruner: what stops trials early, after an evaluation
    :param n_startup_trials: drawn at random before the sampler and the pruner learn from them
    :param heartbeat: seconds between two signs of life of a running trial
    :param grace: seconds without one after which a trial is lost and retried; by default twice the heartbeat
    :param max_retries: of a lost trial
    :param device: cpu, cuda or auto
    :param threads: of torch in this worker; by default torch's choice
    """
    if n_trials < 1 or n_startup_trials < 0 or max_retries < 0:
        raise ValueError(
            f"Expected n_trials >= 1, n_startup_trials >= 0 and max_retries >= 0, got {n_trials}, {n_startup_trials} "
            f"and {max_retries}."
        )
    if threads is not None:
        th.set_num_threads(threads)
    trainer = Trainer(settings, device)
    trainer.check()
    opened = open_storage(storage, heartbeat, grace, max_retries)
    study = open_study(
        *(opened, study_name, trainer),
        make_sampler(sampler, settings, n_startup_trials),
        make_pruner(pruner, settings, n_startup_trials),
    )
    worker = Worker(study, Search(trainer, n_trials, max_retries), max_retries)
    try:
        progress = worker.run()
    except MISTAKES as error:
        # Not one of the command's: the traceback is needed.
        raise RuntimeError(f"A trial ended by {type(error).__name__}: {error}") from error
    if progress.finished < n_trials:
        print(
            f"{progress.finished} of {n_trials} trials are done, and other workers have begun the last ones. Without a "
            "heartbeat nobody can tell whether they still run."
        )
        return
    print(f"The study {study_name!r} is finished: {progress.finished} of {n_trials} trials are done.")
    _print_best(study)


def show(storage: str, study_name: str, rows: int = 10) -> None:
    """
    Print how far a study is, and its best trials.

    :param storage: of the study
    :param study_name: of the study
    :param rows: trials to print
    """
    study = _load(storage, study_name)
    trials = study.get_trials()
    attempts = units_of(trials)
    states = [one[-1].state.name.lower() for one in attempts.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    retries = sum(len(one) - 1 for one in attempts.values())
    print(f"{study_name}: {len(attempts)} trials ({counts or 'none'}), {retries} retries")
    complete = sorted(_complete(trials), key=_value, reverse=True)
    table = Table("trial", "retry of", "value", "success", "return", "parameters")
    for trial in complete[:rows]:
        unit, rate = unit_of(trial), trial.user_attrs.get("mean_success_rate")
        table.add_row(
            *(str(trial.number), "" if unit == trial.number else str(unit), f"{_value(trial):.4f}"),
            *("" if rate is None else f"{rate:.3f}", f"{trial.user_attrs.get('mean_return', float('nan')):.1f}"),
            _parameters(trial),
        )
    Console().print(table)
    for trial in trials:
        if trial.state.name == "FAIL" and FAILURE in trial.user_attrs:
            print(f"Trial {trial.number} failed. {trial.user_attrs[FAILURE]}")


def compare(
    storage: str,
    study_name: str,
    output: Path,
    n_seeds: int = 5,
    first_seed: int = 1000,
    trial: int | None = None,
    conf_file: str | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> None:
    """
    Train the best trial and the default on seeds that the study has not used. Runs that are done are not repeated.

    :param storage: of the study
    :param study_name: of the study
    :param output: folder of the outcome: a file for each run, and comparison.csv
    :param n_seeds: for each of the two
    :param first_seed: the others follow it
    :param trial: number of another trial than the best
    :param conf_file: where the study's file of hyper-parameters is here; by default where it was for its first worker
    :param device: cpu, cuda or auto
    :param threads: of torch; by default torch's choice
    """
    if threads is not None:
        th.set_num_threads(threads)
    study = _load(storage, study_name)
    kept = study.user_attrs.get(SETTINGS_KEY)
    if kept is None:
        raise ValueError(f"The study {study_name!r} was not made by this command.")
    trainer = Trainer(Settings(**{**kept, "conf_file": conf_file or kept["conf_file"]}), device)
    # The files may have changed since.
    open_study(study._storage, study_name, trainer, study.sampler, study.pruner)
    chosen = _best(study) if trial is None else next((t for t in study.get_trials() if t.number == trial), None)
    if chosen is None:
        raise ValueError(f"The study {study_name!r} has no trial {trial}.")
    print(f"Trial {chosen.number}: {_parameters(chosen)}")
    episodes = compare_arms(trainer, chosen.params, range(first_seed, first_seed + n_seeds), output)
    Console().print(comparison_table(episodes))
    print(f"Written to {output / 'comparison.csv'}")


def plot(storage: str, study_name: str, output: Path, suffix: Literal["png", "svg", "pdf"] = "png") -> None:
    """
    Save plots of a study: history, importance, slices, contour.

    :param storage: of the study
    :param study_name: of the study
    :param output: folder of the files
    :param suffix: their kind
    """
    for path in plot_study(_load(storage, study_name), output, suffix):
        print(path)


def _load(storage: str, name: str) -> optuna.Study:
    path = Path(storage.removeprefix("sqlite:///"))
    if (storage.startswith("sqlite:///") or storage.endswith(".log")) and not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        return optuna.load_study(storage=open_storage(storage), study_name=name)
    except KeyError as error:
        raise ValueError(f"There is no study {name!r} in this storage.") from error


def _best(study: optuna.Study) -> FrozenTrial:
    complete = _complete(study.get_trials())
    if not complete:
        raise ValueError(f"The study {study.study_name!r} has no completed trial.")
    return max(complete, key=_value)


def _complete(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    # A pruned trial has a value too, its last report.
    return [trial for trial in trials if trial.state.name == "COMPLETE"]


def _print_best(study: optuna.Study) -> None:
    try:
        best = _best(study)
    except ValueError as error:
        print(error)
    else:
        print(f"Best: trial {best.number}, value {best.value:.4f}: {_parameters(best)}")


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return trial.value


def _parameters(trial: FrozenTrial) -> str:
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in trial.params.items()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """
    The command.

    :param arguments: by default those of this process
    :raises SystemExit: something cannot be done as asked; with the reason
    """
    optuna.logging.set_verbosity(optuna.logging.INFO)
    commands: dict[str, Any] = {"run": run, "show": show, "compare": compare, "plot": plot}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m sb3_varshare.tuning", args=arguments)
    except MISTAKES as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        print("Stopped. A trial that was under way is in the queue again.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    main()
