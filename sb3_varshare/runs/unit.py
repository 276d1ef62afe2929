"""One unit of work: an agent of one arm, trained on one suite with one seed."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch as th
import yaml

from sb3_varshare.tuning.progress import FAILURE
from sb3_varshare.tuning.training import Measurement, Settings, Trainer

PACKAGES = ("sb3_varshare", "torch", "stable_baselines3", "gymnasium", "numpy")
# The trainer wants a search space. A run draws nothing from it, and this one goes with every adapter.
NO_SEARCH = {"varshare_sac": "[rows_per_task]"}
Result = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """
    Everything that an outcome depends on, besides the code.

    :param suite: its name in tables
    :param arm: its name in tables
    :param seed: of everything
    :param env: id of the suite
    :param env_kwargs: of the envs
    :param algo: in the zoo
    :param entry: of the zoo's file, with what the declaration says
    :param steps: transitions of all tasks together
    :param evaluations: evenly spaced, the last one at the end
    :param eval_episodes: of each task in an evaluation
    :param device: of the agent
    :param threads: of torch
    """

    suite: str
    arm: str
    seed: int
    env: str
    env_kwargs: dict[str, Any]
    algo: str
    entry: dict[str, Any]
    steps: int
    evaluations: int
    eval_episodes: int
    device: str
    threads: int

    @property
    def name(self) -> str:
        """``<suite>/<arm>_seed<seed>``."""
        return f"{self.suite}/{self.arm}_seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the outcome: all but the names, as JSON has it."""
        fields = {key: value for key, value in asdict(self).items() if key not in ("suite", "arm")}
        found: dict[str, Any] = json.loads(json.dumps(fields))
        return found

    @property
    def identity(self) -> str:
        """Digest of :attr:`settings`."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def entry_file(entry: dict[str, Any]) -> Iterator[str]:
    """
    :param entry: hyper-parameters
    :return: path of a file of the zoo with this entry for every env, within the context
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "entry.yml"
        path.write_text(yaml.safe_dump({"default": entry}), encoding="utf-8")
        yield str(path)


def make_trainer(unit: Unit) -> Trainer:
    """
    :param unit: what to train
    :raises ValueError: something in it is not possible
    :raises ImportError: the suite's own package is not installed
    """
    with entry_file(unit.entry) as conf_file:
        settings = Settings(
            *(unit.env, conf_file),
            env_kwargs=yaml.safe_dump(unit.env_kwargs),
            steps=unit.steps,
            evaluations=unit.evaluations,
            eval_episodes=unit.eval_episodes,
            seed=unit.seed,
            search_space=NO_SEARCH.get(unit.algo),
        )
        return Trainer(settings, unit.device, unit.algo)


def check_device(unit: Unit) -> None:
    """
    :param unit: what to train in this process
    :raises ValueError: it needs a GPU and there is none; SB3 would take the CPU without a word
    """
    if unit.device == "cuda" and not th.cuda.is_available():
        raise ValueError("Expected a GPU for device: cuda, found none here; declare device: cpu, or run it elsewhere.")


def run_unit(unit: Unit) -> Result:
    """
    Train and evaluate. The outcome is the same in any process, on any engine.

    :param unit: what to run
    :return: JSON types only: the unit, its evaluations with all episodes, protocol, versions
    :raises FloatingPointError: the run met numbers that are not finite
    :raises ValueError: it needs a GPU and there is none
    """
    check_device(unit)
    # Before the run: the code that computes, and nothing to fail on at the end.
    about = {"name": unit.name, "identity": unit.identity, "settings": unit.settings, "versions": versions()}
    th.set_num_threads(unit.threads)
    evaluations: list[dict[str, Any]] = []
    protocol: dict[str, Any] = {}

    def keep(measured: Measurement) -> None:
        episodes = [list(episode) for episode in measured.evaluation.episodes]
        if not math.isfinite(measured.evaluation.mean_return):
            raise FloatingPointError(f"The returns are not finite after {measured.step} steps.")
        protocol.update(measured.evaluation.protocol)
        evaluations.append(
            {"step": measured.step, "updates": measured.updates, "seconds": measured.seconds, "episodes": episodes}
        )

    make_trainer(unit).train({}, unit.seed, keep)
    return {**about, "protocol": protocol, "evaluations": evaluations}


def attempt(unit: Unit) -> Result:
    """
    :param unit: what to run
    :return: of :func:`run_unit`; where it raised, the reason as ``failure`` and the traceback
    """
    try:
        return run_unit(unit)
    except Exception as error:
        return {FAILURE: f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


@functools.cache
def versions() -> dict[str, str]:
    """Of what computes, and the commit of the package where it lies in a repository."""
    return {**{name: version(name) for name in PACKAGES}, "python": platform.python_version(), "commit": _commit()}


def _commit() -> str:
    """With a ``+`` where the package differs from it."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package may lie in a folder of somebody else's repository.
        git("ls-files", "--error-unmatch", "version.txt")
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
