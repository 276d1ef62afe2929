"""The base point, and how each learner is built from the same settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from corruptions import FewReplayBuffer, FewTaskReplayBuffer
from stable_baselines3 import SAC
from suites import HORIZON, GridSuite

from sb3_varshare import VarShareSAC
from sb3_varshare.tasks import MultiTaskVecEnv

Settings = Mapping[str, Any]

# The preset `small` and the defaults of the agent written out: what the package changes later changes nothing here.
BASE: dict[str, Any] = {
    # For each task; an agent of T tasks gets T times as much.
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 200,
    # What all learners have.
    "learning_rate": 1e-3,
    "gamma": 0.99,
    # Four times the agent's default, so that few steps are enough.
    "tau": 0.02,
    "gradient_steps": 1,
    "actor_width": 64,
    "critic_width": 64,
    # What VarShareSAC has besides.
    "actor_depth": 1,
    "critic_depth": 1,
    "adapter": "varshare",
    "beta": 0.01,
    # That of the means.
    "beta_sigma": None,
    "beta_warmup": 0.0,
    "kl_scale": "data",
    "sigma_prior": 0.2,
    "prior_scale": "relative",
    # Costs two thirds of "full", see docs/results.md.
    "sigma_structure": "tied",
    "estimator": "local_reparameterization",
    "recenter_every": 1,
    "actor_residuals": True,
    "critic_residuals": True,
    "task_input": None,
    "exploration": "mean",
    "mu_lr_multiplier": 1.0,
    "rho_lr_multiplier": 1.0,
    # A tenth of the agent's default, for the same reason.
    "ent_coef": "auto_0.01",
    "ent_coef_learning_rate": 3e-4,
    "share_ent_coef": False,
    "target_entropy": "auto",
    "mask_actions": True,
    "normalize_observations": False,
    "n_critics": 2,
    "n_atoms": 101,
    "v_min": -10.0,
    "v_max": 10.0,
    "initial_return_std": 0.5,
    "weight_decay": 1e-4,
    "n_steps": 1,
}
PER_TASK = ("batch_size", "buffer_size", "learning_starts")
# Of SB3's SAC; its entropy coefficient is in units of the raw reward and stays as SB3 has it.
SHARED_WITH_SAC = (*PER_TASK, "learning_rate", "gamma", "tau", "gradient_steps")
LEARNERS = ("varshare_sac", "sac", "single", "random")


class RandomAgent:
    """
    Uniformly random actions.

    :param n_actions: A
    :param seed: of the actions
    """

    policy = None

    def __init__(self, n_actions: int, seed: int) -> None:
        self.n_actions, self.generator = n_actions, np.random.default_rng(seed)

    def predict(self, observations: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, None]:
        """
        :param observations: (N, D + T), of which only the number counts
        :param deterministic: without effect
        :return: (N, A) in [-1, 1]
        """
        actions = self.generator.uniform(-1, 1, (len(observations), self.n_actions))
        return actions.astype(np.float32), None


def build_agent(learner: str, settings: Settings, suite: GridSuite, env: MultiTaskVecEnv, seed: int) -> Any:
    """
    :param learner: ``"varshare_sac"``, ``"sac"`` or ``"single"``
    :param settings: complete, as :data:`BASE`
    :param suite: of T tasks
    :param env: of the suite, for training
    :param seed: of the networks and actions
    :return: an agent of SB3's interface
    :raises ValueError: the learner is unknown
    """
    if learner not in LEARNERS[:3]:
        raise ValueError(f"Expected a learner of {LEARNERS[:3]}, got {learner!r}.")
    n_tasks = len(suite.tasks)
    arguments = {**settings, **{name: settings[name] * n_tasks for name in PER_TASK}}
    options: dict[str, Any] = {"seed": seed, "device": "cpu"}
    if max(suite.keep_every) > 1:
        few = FewTaskReplayBuffer if learner == "varshare_sac" else FewReplayBuffer
        options |= {
            "replay_buffer_class": few,
            "replay_buffer_kwargs": {"keep_every": suite.keep_every, "horizon": HORIZON},
        }
    if learner == "varshare_sac":
        return VarShareSAC("MultiTaskPolicy", env, **arguments, **options)
    widths = {"pi": [settings["actor_width"]] * 2, "qf": [settings["critic_width"]] * 2}
    shared = {name: arguments[name] for name in SHARED_WITH_SAC}
    return SAC("MlpPolicy", env, **shared, policy_kwargs={"net_arch": widths}, **options)


def unknown_settings(settings: Settings) -> set[str]:
    """
    :param settings: of VarShareSAC
    :return: those that it does not have
    """
    return set(settings) - set(inspect.signature(VarShareSAC.__init__).parameters)
