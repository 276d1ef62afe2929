"""Three doubts about a value: by hand, by the law of total variance, and against draws made another way."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_varshare import VarShareSAC, make_multitask_env
from sb3_varshare.categorical import expectation, variance
from sb3_varshare.inspection import ValueUncertainty, value_uncertainty

Agent = Callable[..., VarShareSAC]
SUPPORT = np.linspace(-10, 10, 11)
NOISY = [
    {"sigma_structure": "full"},
    {"sigma_structure": "tied"},
    {"sigma_structure": "fixed"},
    {"adapter": "low_rank", "rank": 2},
]


def rows(n: int = 6) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(n, 2)).astype(np.float32)


@th.no_grad()
def predict_constantly(model: VarShareSAC, probabilities: list[list[float]]) -> None:
    """Each critic's return distribution, whatever it sees."""
    net = model.policy.critic.net
    for parameter in (*net.linear_out.parameters(),):  # type: ignore[union-attr]
        parameter.zero_()
    net.linear_out.bias.copy_(th.tensor(probabilities).log()[:, None, None])  # type: ignore[union-attr]


def points(*atoms: int) -> list[float]:
    """All mass in equal shares on some of the eleven atoms -10, -8, ..., 10."""
    mass = np.full(11, 1e-30)
    mass[list(atoms)] = 1 / len(atoms)
    return mass.tolist()


def test_by_hand(agent: Agent) -> None:
    """Critics sure of 2 and of 6: they disagree by 2 either way. One at -4 or 8, the other at 0 or 4: 6 and 2."""
    model = agent(adapter="deterministic")
    predict_constantly(model, [points(6), points(8)])
    found = value_uncertainty(model, rows(), task="again")
    np.testing.assert_allclose(found.value, 4, atol=1e-5)
    np.testing.assert_allclose(found.aleatoric, 0, atol=1e-5)
    np.testing.assert_allclose(found.disagreement, 2, atol=1e-5)
    predict_constantly(model, [points(3, 9), points(5, 7)])
    found = value_uncertainty(model, rows(), task="again")
    np.testing.assert_allclose(found.value, 2, atol=1e-5)
    np.testing.assert_allclose(found.aleatoric, np.sqrt((6**2 + 2**2) / 2), atol=1e-5)
    np.testing.assert_allclose(found.disagreement, 0, atol=1e-5)


@pytest.mark.parametrize("kwargs", [*NOISY, {"adapter": "independent"}, {"adapter": "embedding"}], ids=str)
def test_the_law_of_total_variance(scattered: Agent, kwargs: dict[str, Any]) -> None:
    """The critics' mean distribution, as the policy gives it: its mean and its variance in two parts."""
    model = scattered(initial_return_std=None, **kwargs)
    actions = np.random.default_rng(4).uniform(-1, 1, (6, 1)).astype(np.float32)
    grids = (th.from_numpy(array).expand(3, -1, -1) for array in (rows(), actions))
    with th.no_grad():
        mixture = model.policy.critic.probabilities(*grids)
    for task in range(3):
        found = value_uncertainty(model, rows(), actions, task)
        support = model.policy.critic.support
        np.testing.assert_allclose(found.value, expectation(mixture[task], support), atol=1e-5)
        total = found.aleatoric**2 + found.disagreement**2
        np.testing.assert_allclose(total, variance(mixture[task], support), rtol=1e-4)
        assert (found.disagreement > 0.01).all() and (found.aleatoric > 1).all()


@pytest.mark.parametrize("kwargs", NOISY, ids=str)
def test_epistemic_is_the_spread_over_the_posterior(scattered: Agent, kwargs: dict[str, Any]) -> None:
    """Against draws that are put into the weights of an agent, one by one, in a loop over the tasks' own networks."""
    model = scattered(initial_return_std=None, **kwargs)
    actions = np.zeros((6, 1), dtype=np.float32)
    found = value_uncertainty(model, rows(), actions, "minus", n_samples=1_000)
    net, support = model.policy.critic.net, model.policy.critic.support
    x = th.from_numpy(np.concatenate([rows(), actions], 1))
    th.manual_seed(11)
    values = []
    with th.no_grad():
        for _ in range(1_000):
            drawn = iter([layer.theta[:, 0] + layer.adapter.draw(th.tensor([2]))[:, 0] for layer in net.linears()])
            logits = net.run(x.expand(2, 1, -1, -1), lambda layer, h: h @ next(drawn)[:, None] + layer.bias)  # noqa: B023
            values.append(expectation(logits.softmax(-1), support).mean(0)[0])
    expected = th.stack(values).std(0).numpy()
    # The standard error of a standard deviation of 1,000 draws is 2.2 %, of the difference of two of them 3.2 %.
    np.testing.assert_allclose(found.epistemic, expected, rtol=0.15)
    assert (found.epistemic > 0.01).all()


def test_a_posterior_without_spread_has_no_doubt(scattered: Agent) -> None:
    model = scattered(initial_return_std=None)
    with th.no_grad():
        for rho in model.policy.critic.net.spreads():
            rho.fill_(-200)
    found = value_uncertainty(model, rows())
    np.testing.assert_allclose(found.epistemic, 0, atol=1e-6)
    assert (found.disagreement > 0).all()


@pytest.mark.parametrize("kwargs", [{"adapter": "deterministic"}, {"adapter": "none"}, {"critic_residuals": False}])
def test_without_a_posterior_it_is_not_known(agent: Agent, kwargs: dict[str, Any]) -> None:
    found = value_uncertainty(agent(**kwargs), rows())
    assert np.isnan(found.epistemic).all()
    for known in (found.value, found.aleatoric, found.disagreement):
        assert np.isfinite(known).all()


def test_the_wider_the_posterior_the_larger_the_doubt(agent: Agent) -> None:
    means = []
    for sigma_prior in (0.05, 0.2, 0.8):
        model = agent(sigma_prior=sigma_prior, sigma_structure="fixed", initial_return_std=None)
        means.append(value_uncertainty(model, rows()).epistemic.mean())
    assert means[0] < means[1] < means[2]


def test_a_task_has_its_own_doubt_and_the_others_do_not_matter(scattered: Agent) -> None:
    model = scattered(initial_return_std=None)
    first = [value_uncertainty(model, rows(), task=task) for task in range(3)]
    with th.no_grad():
        for parameter in (*model.policy.critic.net.means(), *model.policy.critic.net.spreads()):
            parameter.select(-3 if parameter.dim() == 4 else -2, 1).mul_(2)
    second = [value_uncertainty(model, rows(), task=task) for task in range(3)]
    for task in (0, 2):
        np.testing.assert_array_equal(np.stack(first[task][:4]), np.stack(second[task][:4]))
    assert not np.allclose(first[1].value, second[1].value)
    assert not np.allclose(first[1].epistemic, second[1].epistemic)


# Actions, units, seeds


def test_by_default_the_policy_acts(scattered: Agent) -> None:
    model = scattered(normalize_observations=True)
    model.learn(40)
    actions, _ = model.predict(np.concatenate([rows(), np.tile([0, 0, 1], (6, 1))], 1), deterministic=True)
    default, given = value_uncertainty(model, rows(), task="minus"), value_uncertainty(model, rows(), actions, "minus")
    np.testing.assert_allclose(np.stack(default[:4]), np.stack(given[:4]), rtol=1e-5, atol=1e-6)
    values = model.policy.q_values(th.from_numpy(rows()).expand(3, -1, -1), th.from_numpy(actions).expand(3, -1, -1))[
        2
    ].detach()
    np.testing.assert_allclose(given.value, values, atol=1e-5)


def test_actions_of_a_smaller_task_may_be_shorter(scattered: Agent) -> None:
    model = scattered(action_sizes=(2, 2, 1))
    own = np.full((6, 1), 0.4, dtype=np.float32)
    padded = np.concatenate([own, np.full((6, 1), 0.9, dtype=np.float32)], 1)
    short, long = (value_uncertainty(model, rows(), actions, "minus") for actions in (own, padded))
    np.testing.assert_array_equal(short.value, long.value)
    assert not np.allclose(short.value, value_uncertainty(model, rows(), padded, "plus").value)


def test_in_returns_everything_is_times_the_reward_scale(scattered: Agent) -> None:
    model = scattered(ent_coef=0.2, target_entropy=-3.0)
    model.reward_scale.return_max.copy_(th.tensor([5.0, 20.0, 1.0]))
    model.reward_scale.return_min.copy_(th.tensor([-35.0, 10.0, 0.0]))
    found = value_uncertainty(model, rows(), task="plus")
    # The largest return, 35, and the entropy's 0.2 * 3 / (2 * 0.01), over v_max.
    assert found.reward_scale == pytest.approx((35 + 30) / 10)
    returns = found.in_returns()
    np.testing.assert_allclose(np.stack(returns[:4]), 6.5 * np.stack(found[:4]), rtol=1e-6)
    assert returns.reward_scale == 1.0
    np.testing.assert_array_equal(np.stack(returns.in_returns()[:4]), np.stack(returns[:4]))


def test_a_task_that_never_ended_an_episode_has_no_returns(agent: Agent) -> None:
    found = value_uncertainty(agent(), rows())
    assert isinstance(found, ValueUncertainty) and found.reward_scale == np.inf
    with pytest.raises(ValueError, match="no reward scale: no episode of it has ended"):
        found.in_returns()


def test_equal_seeds_draw_equally_and_disturb_nothing(scattered: Agent) -> None:
    model = scattered()
    th.manual_seed(5)
    expected = th.rand(3)
    th.manual_seed(5)
    first = value_uncertainty(model, rows(), seed=1)
    assert th.equal(th.rand(3), expected)
    np.testing.assert_array_equal(first.epistemic, value_uncertainty(model, rows(), seed=1).epistemic)
    assert not np.array_equal(first.epistemic, value_uncertainty(model, rows(), seed=2).epistemic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "mines"}, "Unknown task 'mines'.*minus"),
        ({"n_samples": 1}, "n_samples must be at least 2 for a spread, got 1"),
        ({"observations": np.zeros((4, 5))}, r"Expected observations \(N, 2\) without a one-hot, got \(4, 5\)"),
        ({"observations": np.zeros(2)}, r"Expected observations \(N, 2\)"),
        ({"observations": np.zeros((0, 2))}, r"Expected observations \(N, 2\) without a one-hot, got \(0, 2\)"),
        ({"actions": np.zeros((3, 1))}, r"Expected actions \(6, 1\), got \(3, 1\)"),
        ({"actions": np.zeros((6, 4))}, r"Expected actions \(6, 1\), got \(6, 4\)"),
    ],
)
def test_mistakes_are_named(agent: Agent, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        value_uncertainty(agent(), **{"observations": rows(), **arguments})


# On a trained agent


class NoisyEnv(gym.Env):
    """Four steps, each with a reward of ``noise`` times a standard normal, whatever is done."""

    observation_space = gym.spaces.Box(-1, 1, (1,), dtype=np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), dtype=np.float32)

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.time += 1
        reward = self.noise * self.np_random.normal() - 0.1 * float(action[0] ** 2)
        return np.full(1, self.time / 4, dtype=np.float32), reward, self.time == 4, False, {}


@pytest.mark.slow
def test_aleatoric_is_the_spread_of_the_return() -> None:
    """What is still to come varies by the root of the number of steps left; where nothing varies, nothing does."""
    env = make_multitask_env({"quiet": lambda: NoisyEnv(0.0), "noisy": lambda: NoisyEnv(1.0)}, seed=0)
    options = {
        "actor_width": 16,
        "critic_width": 16,
        "learning_starts": 100,
        "ent_coef": 0.01,
        "batch_size": 64,
        "train_freq": 2,
        "tau": 0.02,
    }
    model = VarShareSAC("MultiTaskPolicy", env, preset="small", seed=0, device="cpu", **options)
    model.learn(4_000)
    states = np.arange(4, dtype=np.float32)[:, None] / 4
    noisy, quiet = (value_uncertainty(model, states, task=task).in_returns() for task in ("noisy", "quiet"))
    expected = [np.sqrt(sum(0.99 ** (2 * step) for step in range(left))) for left in (4, 3, 2, 1)]
    # From few steps, on atoms that widen it.
    np.testing.assert_allclose(noisy.aleatoric, expected, rtol=0.35)
    assert (np.diff(noisy.aleatoric) < 0).all()
    assert (quiet.aleatoric < 0.1).all()
    assert (noisy.epistemic > quiet.epistemic).all()
