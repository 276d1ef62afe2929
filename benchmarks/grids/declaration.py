"""Which grids there are: suites, arms, seeds and steps."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learners import BASE
from suites import FEW, HORIZON, REWARD_FACTOR, REWARD_NOISE

# To be raised whenever suites, learners or measurements change what a number means.
PROTOCOL_VERSION = 1
STEPS = 3_000
# Single-task SAC needs more than the multi-task agents: what has the score 1 shall have solved its task.
REFERENCE_STEPS = 6_000
# Seed 0 was looked at when the base point was chosen.
SEEDS = (1, 2, 3, 4, 5)
# What was looked at on those is confirmed, or not, on these.
FRESH_SEEDS = (6, 7, 8, 9, 10)
CAUSES = ("identical", "conflict", "noisy", "scaled", "few", "all")
REFERENCE = "reference"
Factors = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Arm:
    """
    One contender of a grid.

    :param name: as it stands in tables
    :param learner: one of :data:`learners.LEARNERS`
    :param changes: of the base point
    :param factor: what is varied; empty for the base and in comparisons
    :param level: of the factor
    """

    name: str
    learner: str = "varshare_sac"
    changes: Mapping[str, Any] = field(default_factory=dict)
    factor: str = ""
    level: str = ""


@dataclass(frozen=True)
class Measurement:
    """
    :param points: evaluations, evenly spaced, the last one at the end
    :param episodes: of each task at each of them
    :param final_episodes: of each task at the end
    """

    points: int = 10
    episodes: int = 5
    final_episodes: int = 10

    @property
    def protocol(self) -> str:
        """What must be equal for two rows to stand in one table."""
        return (
            f"grids {PROTOCOL_VERSION}: horizon {HORIZON}, noise {REWARD_NOISE:g}, factor {REWARD_FACTOR:g}, "
            f"one step in {FEW}; {self.points} evaluations of {self.episodes} episodes, {self.final_episodes} last"
        )


@dataclass(frozen=True)
class Unit:
    """
    One piece of work: one arm on one suite with one seed.

    :param grid: its name
    :param suite: its name
    :param arm: the contender
    :param seed: of everything
    :param steps: environment steps per task
    :param base: the base point
    :param measurement: how it is evaluated
    """

    grid: str
    suite: str
    arm: Arm
    seed: int
    steps: int
    base: Mapping[str, Any]
    measurement: Measurement

    @property
    def settings(self) -> dict[str, Any]:
        """The base point with this arm's changes."""
        return {**self.base, **self.arm.changes}

    @property
    def identity(self) -> dict[str, Any]:
        """The columns that a file must have to be this unit's."""
        base = json.dumps({**self.base}, sort_keys=True)
        return {
            "grid": self.grid,
            "suite": self.suite,
            "agent": self.arm.name,
            "learner": self.arm.learner,
            "factor": self.arm.factor,
            "level": self.arm.level,
            "settings": json.dumps({**self.arm.changes}, sort_keys=True),
            "base": hashlib.sha256(base.encode()).hexdigest()[:8],
            "protocol": self.measurement.protocol,
            "seed": self.seed,
            "steps": self.steps,
        }

    @property
    def path(self) -> Path:
        """Of its file, below the output folder."""
        return Path(self.grid) / self.suite / f"{self.arm.name}_{self.steps}_seed{self.seed}.csv"


@dataclass(frozen=True)
class Grid:
    """
    :param name: of the grid
    :param question: that its tables answer
    :param suites: names
    :param arms: contenders, each on every suite; the first one is what the others are compared with
    :param steps: environment steps per task; several where that is what is varied
    :param seeds: of each arm
    :param reference_steps: of the single-task agents that have the score 1
    :param base: the base point
    :param measurement: how units are evaluated
    :param factors: what the arms vary, factor -> level -> changes; empty in comparisons
    """

    name: str
    question: str
    suites: tuple[str, ...]
    arms: tuple[Arm, ...]
    steps: tuple[int, ...] = (STEPS,)
    seeds: tuple[int, ...] = SEEDS
    reference_steps: int = REFERENCE_STEPS
    base: Mapping[str, Any] = field(default_factory=lambda: dict(BASE))
    measurement: Measurement = field(default_factory=Measurement)
    factors: Factors = field(default_factory=dict)

    def units(self) -> list[Unit]:
        """All of its work, the reference first, seed by seed: an unfinished grid has whole seeds."""
        units = []
        for seed in self.seeds:
            wanted = [(REFERENCE, arm, self.reference_steps) for arm in REFERENCE_ARMS]
            wanted += list(itertools.product(self.suites, self.arms, self.steps))
            units += [
                Unit(self.name, suite, arm, seed, steps, self.base, self.measurement) for suite, arm, steps in wanted
            ]
        return units


@dataclass(frozen=True)
class Pool:
    """
    :param grid: name of a grid
    :param repetition: of one with some of its agents and steps, on other seeds
    :param controls: agents of the repetition that the others are compared with
    """

    grid: str
    repetition: str
    controls: tuple[str, ...]


def factor_arms(factors: Factors, base: Mapping[str, Any]) -> tuple[Arm, ...]:
    """
    The base, and an arm for each level that is not the base's own.

    :param factors: factor -> level -> changes
    :param base: the base point
    """
    arms = [Arm("base")]
    for factor, levels in factors.items():
        for level, changes in levels.items():
            if any(base[name] != value for name, value in changes.items()):
                arms.append(Arm(f"{factor}={level}", changes=changes, factor=factor, level=level))
    return tuple(arms)


def _levels(name: str, *values: Any) -> dict[str, dict[str, Any]]:
    return {str(value): {name: value} for value in values}


FACTORS: dict[str, dict[str, dict[str, Any]]] = {
    "kl_scale": _levels("kl_scale", "data", "constant"),
    "beta": _levels("beta", 0.01, 0.05, 0.1, 1.0),
    "beta_sigma": {"beta": {"beta_sigma": None}, **_levels("beta_sigma", 0.1, 1.0)},
    "beta_warmup": _levels("beta_warmup", 0.0, 0.1, 0.3),
    "sigma_structure": _levels("sigma_structure", "full", "tied", "fixed"),
    "estimator": _levels("estimator", "local_reparameterization", "flipout", "shared_noise", "mean"),
    "sigma_prior": _levels("sigma_prior", 0.03, 0.1, 0.2, 0.3, 0.5),
    "recenter_every": {**_levels("recenter_every", 1, 10), "never": {"recenter_every": 0}},
    "residuals": {
        "both": {"actor_residuals": True, "critic_residuals": True},
        "actor": {"actor_residuals": True, "critic_residuals": False},
        "critic": {"actor_residuals": False, "critic_residuals": True},
    },
    "mu_lr_multiplier": _levels("mu_lr_multiplier", 0.1, 0.3, 1.0),
    "initial_return_std": _levels("initial_return_std", 0.5, None),
    "learning_rate": _levels("learning_rate", 3e-4, 1e-3),
    "share_ent_coef": _levels("share_ent_coef", False, True),
    # What could keep a learned sigma from shrinking, and where the base point differs from the agent's own defaults.
    "rho_lr_multiplier": _levels("rho_lr_multiplier", 0.1, 0.3, 1.0),
    "ent_coef": _levels("ent_coef", "auto_0.1", "auto_0.01", "auto_0.003"),
    "tau": _levels("tau", 0.005, 0.02),
}
# With the spreads' weight of their own another weight of the means, or another prior, may be the better one.
OWN_WEIGHT = {**BASE, "beta_sigma": 1.0}
OWN_WEIGHT_FACTORS = {
    "beta": _levels("beta", 0.003, 0.01, 0.03, 0.1),
    "sigma_prior": _levels("sigma_prior", 0.1, 0.2, 0.4),
}

REFERENCE_ARMS = (Arm("random", "random"), Arm("single", "single"))
COMPARED = (
    Arm("varshare-tied"),
    Arm("varshare-full", changes={"sigma_structure": "full"}),
    # What keeps a learned sigma from shrinking.
    Arm("varshare-tied, beta_sigma=1", changes={"beta_sigma": 1.0}),
    Arm("varshare-full, beta_sigma=1", changes={"sigma_structure": "full", "beta_sigma": 1.0}),
    Arm("varshare-fixed", changes={"sigma_structure": "fixed"}),
    Arm("varshare-fixed, beta=0.03", changes={"sigma_structure": "fixed", "beta": 0.03}),
    Arm("l2", changes={"adapter": "deterministic"}),
    # Without noise another weight may be the better one.
    Arm("l2, beta=0.03", changes={"adapter": "deterministic", "beta": 0.03}),
    Arm("l2, beta=0.1", changes={"adapter": "deterministic", "beta": 0.1}),
    # What the preset `brc` has besides sizes, learning rate and gradient steps, which are those of all here.
    Arm(
        "brc",
        changes={
            "adapter": "embedding",
            "initial_return_std": None,
            "share_ent_coef": True,
            "mask_actions": False,
        },
    ),
    # BRC's task input alone: its random head needs more steps than there are here, with any adapter.
    Arm("embedding", changes={"adapter": "embedding"}),
    Arm("sac", "sac"),
    Arm("one-hot", changes={"adapter": "none", "task_input": "one_hot"}),
    Arm("shared", changes={"adapter": "none"}),
    Arm("independent", changes={"adapter": "independent"}),
)
# Of the confirmation: what was to be seen on other seeds, beside what it is to beat.
CONFIRMED = (
    "varshare-tied",
    "varshare-full",
    "varshare-tied, beta_sigma=1",
    "varshare-full, beta_sigma=1",
    "varshare-fixed",
)
CONFIRMED_CONTROLS = ("l2", "l2, beta=0.03", "l2, beta=0.1")
# With half and twice the data: one of a kind, and L2 at the best of its weights too.
WITH_OTHER_DATA = (
    "varshare-tied",
    "varshare-full",
    "varshare-fixed",
    "l2",
    "l2, beta=0.1",
    "brc",
    "embedding",
    "sac",
    "shared",
    "independent",
)
_TINY = {**BASE, "batch_size": 4, "actor_width": 8, "critic_width": 8, "n_atoms": 11}

GRIDS = {
    grid.name: grid
    for grid in (
        Grid("defaults", "Which settings?", ("all",), factor_arms(FACTORS, BASE), factors=FACTORS),
        Grid("comparison", "Which method?", CAUSES, COMPARED),
        Grid(
            "confirmation",
            "Does a learned sigma hold on seeds that nothing was chosen on?",
            ("all",),
            tuple(arm for arm in COMPARED if arm.name in (*CONFIRMED, *CONFIRMED_CONTROLS)),
            seeds=FRESH_SEEDS,
        ),
        Grid(
            "weights",
            "Which weight of the means, and which prior, with the spreads at the bound's weight?",
            ("all",),
            factor_arms(OWN_WEIGHT_FACTORS, OWN_WEIGHT),
            base=OWN_WEIGHT,
            factors=OWN_WEIGHT_FACTORS,
        ),
        Grid(
            "data",
            "Which method, with half and twice the data?",
            ("all",),
            tuple(arm for arm in COMPARED if arm.name in WITH_OTHER_DATA),
            (STEPS // 2, 2 * STEPS),
        ),
        Grid(
            "data_confirmation",
            "Who keeps the noisy task solved with twice the data, on seeds that nothing was chosen on?",
            ("all",),
            tuple(arm for arm in COMPARED if arm.name in ("varshare-tied", "varshare-fixed", "l2")),
            (2 * STEPS,),
            seeds=FRESH_SEEDS,
        ),
        Grid(
            "smoke",
            "Does the machinery run?",
            ("conflict",),
            (Arm("base"), Arm("beta=1.0", changes={"beta": 1.0}, factor="beta", level="1.0")),
            steps=(240,),
            seeds=(0, 1),
            reference_steps=240,
            base=_TINY,
            measurement=Measurement(points=2, episodes=1, final_episodes=2),
        ),
    )
}
POOLS = (
    Pool("comparison", "confirmation", ("l2", "l2, beta=0.1", "varshare-tied")),
    Pool("data", "data_confirmation", ("l2",)),
)
