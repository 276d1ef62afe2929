"""What the method is for: two tasks that look the same and want opposite actions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sb3_varshare import VarShareSAC

TinyAgent = Callable[..., VarShareSAC]
OBSERVATIONS = np.repeat(np.arange(4)[:, None] / 4, 2, 1).astype(np.float32)


@pytest.fixture(scope="module")
def learned(request: pytest.FixtureRequest) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Actions at each step of the two tasks, best +0.7 and -0.7, after 240 updates."""

    def learn(env: Any, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        model = VarShareSAC(
            "MultiTaskPolicy",
            env,
            learning_rate=5e-3,
            learning_starts=60,
            batch_size=128,
            buffer_size=4_000,
            gamma=0.5,
            actor_width=16,
            actor_depth=0,
            critic_width=16,
            critic_depth=0,
            seed=0,
            device="cpu",
            **kwargs,
        ).learn(540)
        plus, minus = (model.predict_task(OBSERVATIONS, name)[0][:, 0] for name in ("plus", "minus"))
        return plus, minus

    return learn


@pytest.mark.parametrize(
    "kwargs",
    [
        {"adapter": "varshare"},
        {"adapter": "varshare", "estimator": "flipout", "sigma_structure": "tied"},
        {"adapter": "varshare", "exploration": "posterior"},
        {"adapter": "low_rank"},
        {"adapter": "deterministic"},
        {"adapter": "embedding"},
        {"adapter": "none", "task_input": "one_hot"},
    ],
    ids=lambda kwargs: "-".join(kwargs.values()),
)
def test_conflicting_tasks_separate(
    learned: Callable[..., tuple[np.ndarray, np.ndarray]], target_env: Callable[..., Any], kwargs: dict[str, Any]
) -> None:
    plus, minus = learned(target_env(), **kwargs)
    assert (plus > 0.4).all() and (minus < -0.4).all()


def test_a_blind_network_finds_the_compromise(
    learned: Callable[..., tuple[np.ndarray, np.ndarray]], target_env: Callable[..., Any]
) -> None:
    plus, minus = learned(target_env(), adapter="none")
    np.testing.assert_array_equal(plus, minus)
    assert (abs(plus) < 0.45).all()


def test_a_single_plain_environment_is_solved(single_target_env: type) -> None:
    model = VarShareSAC(
        "MlpPolicy",
        single_target_env(0.6),
        learning_rate=5e-3,
        learning_starts=60,
        batch_size=64,
        gamma=0.5,
        adapter="none",
        actor_width=16,
        critic_width=16,
        seed=0,
        device="cpu",
    ).learn(360)
    actions, _ = model.predict(OBSERVATIONS, deterministic=True)
    np.testing.assert_allclose(actions[:, 0], 0.6, atol=0.25)
