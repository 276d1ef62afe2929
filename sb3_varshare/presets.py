"""Named sets of hyper-parameters; an argument that is given explicitly always wins."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

Init = TypeVar("Init", bound=Callable[..., None])

BATCH_SIZE, BATCH_SIZE_SINGLE_TASK = 1024, 256


def default_batch_size(n_tasks: int) -> int:
    """
    The multiple of the number of tasks nearest to 1,024; 256 for one task. BRC's sizes.

    :param n_tasks: tasks T
    """
    return BATCH_SIZE_SINGLE_TASK if n_tasks == 1 else max(1, round(BATCH_SIZE / n_tasks)) * n_tasks


def brc(n_tasks: int) -> dict[str, Any]:
    """
    BRC as its code has it, its own head, shared entropy coefficient and unmasked padded actions included.

    Source: Nauman et al. 2025 (arXiv 2505.23150); widths, batch and warm-up from its ``train.py``

    :param n_tasks: tasks T
    """
    return {
        "adapter": "embedding" if n_tasks > 1 else "none",
        "learning_rate": 3e-4,
        "weight_decay": 1e-4,
        "batch_size": default_batch_size(n_tasks),
        "buffer_size": 1_000_000 * n_tasks,
        "learning_starts": 5_000 * n_tasks,
        "gradient_steps": 2,
        "actor_width": 256,
        "actor_depth": 1,
        "critic_width": 4096,
        "critic_depth": 2,
        "initial_return_std": None,
        "ent_coef": "auto_0.1",
        "share_ent_coef": True,
        "mask_actions": False,
        "normalize_observations": False,
        "n_steps": 1,
    }


def small(n_tasks: int) -> dict[str, Any]:
    """
    For problems that train in minutes on a CPU. The data are few, so the KL weighs less; so are the gradient steps, so
    the target network follows four times as fast and entropy starts with a tenth of the weight.

    :param n_tasks: tasks T
    """
    return {
        "learning_rate": 1e-3,
        "tau": 0.02,
        "ent_coef": "auto_0.01",
        "beta": 0.01,
        "batch_size": 64 * n_tasks,
        "buffer_size": 100_000 * n_tasks,
        "actor_width": 64,
        "critic_width": 64,
        "critic_depth": 1,
    }


def medium(n_tasks: int) -> dict[str, Any]:
    """
    For a few simulated robots within an hour on a CPU.

    An action moves the scaled return by some hundredths only: an entropy coefficient that starts at 0.1 needs 15,000
    gradient steps to fall below that, and the policy stays random until then. Adam takes full steps however small a
    gradient is: at the learning rate of the shared weights the actor's residuals drift far from their prior.

    :param n_tasks: tasks T
    """
    return {
        "learning_rate": 1e-3,
        "beta": 0.03,
        "sigma_prior": 0.05,
        "batch_size": 64 * n_tasks,
        "ent_coef": "auto_0.003",
        "mu_lr_multiplier": 0.1,
        "buffer_size": 200_000 * n_tasks,
        "actor_width": 128,
        "critic_width": 128,
    }


PRESETS: dict[str, Callable[[int], dict[str, Any]]] = {"brc": brc, "small": small, "medium": medium}


def preset_arguments(name: str, n_tasks: int) -> dict[str, Any]:
    """
    :param name: a key of :data:`PRESETS`
    :param n_tasks: tasks T
    :raises ValueError: the preset is unknown
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)} or None, got {name!r}.")
    return PRESETS[name](n_tasks)


def accepts_preset(count_tasks: Callable[[Any, int | None], int]) -> Callable[[Init], Init]:
    """
    Let a constructor with an argument ``preset`` take its other defaults from the preset of that name.

    :param count_tasks: number of tasks from the constructor's ``env`` and ``n_tasks``
    """

    def decorate(init: Init) -> Init:
        signature = inspect.signature(init)

        @functools.wraps(init)
        def with_preset(self: Any, *args: Any, **kwargs: Any) -> None:
            given = signature.bind_partial(self, *args, **kwargs).arguments
            if given.get("preset") is not None:
                n_tasks = count_tasks(given.get("env"), given.get("n_tasks"))
                values = preset_arguments(given["preset"], n_tasks)
                kwargs = {**{name: value for name, value in values.items() if name not in given}, **kwargs}
            init(self, *args, **kwargs)

        return cast(Init, with_preset)

    return decorate
