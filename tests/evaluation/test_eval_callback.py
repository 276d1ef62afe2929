"""The callback: tidy rows, the best model, the base, and a training that does not notice."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_varshare import EvalTasksCallback, TaskEvaluation, VarShareSAC, make_multitask_env
from sb3_varshare.evaluation import eval_callback
from sb3_varshare.evaluation.task_evaluation import EpisodeResult

Agent = Callable[..., VarShareSAC]
Envs = Callable[..., Any]

PAIR: dict[str, dict[str, Any]] = {
    "a": {"lengths": (2,), "rewards": (1.0,), "successes": (True,)},
    "b": {"lengths": (3,), "rewards": (-2.0,), "successes": (False,)},
}


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "evaluations.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_tidy(agent: Agent, counting_envs: Envs, tmp_path: Path) -> None:
    callback = EvalTasksCallback(eval_freq=10, n_episodes=2, log_path=tmp_path / "run")
    agent(counting_envs(PAIR)).learn(24, callback=callback)
    rows = rows_of(tmp_path / "run")
    # At the first step, every ten transitions, and at the end; a row per step, task and episode.
    steps = sorted({int(row["step"]) for row in rows})
    assert steps == [0, 10, 20, 24]
    keys = [(row["step"], row["weights"], row["task"], row["episode"]) for row in rows]
    assert len(keys) == len(set(keys)) == 4 * 2 * 2
    for row in rows:
        expected = ("2.0", "2", "True") if row["task"] == "a" else ("-6.0", "3", "False")
        assert (row["episode_return"], row["length"], row["is_success"]) == expected
        assert row["weights"] == "mean" and row["success_last"] == "False"


def test_the_base_is_evaluated_beside(agent: Agent, counting_envs: Envs, tmp_path: Path) -> None:
    callback = EvalTasksCallback(eval_freq=100, n_episodes=1, log_path=tmp_path, evaluate_base=True)
    model = agent(counting_envs(PAIR))
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(12, callback=callback)
    model.logger.close()
    assert {(row["weights"], row["task"]) for row in rows_of(tmp_path)} == {
        (weights, task) for weights in ("mean", "base") for task in "ab"
    }
    with (tmp_path / "progress.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["eval/mean_return"]) == float(last["eval_base/mean_return"]) == -2.0
    assert float(last["eval/success_rate"]) == 0.5
    assert (float(last["eval_return/a"]), float(last["eval_return/b"])) == (2.0, -6.0)
    assert (float(last["eval_success_rate/a"]), float(last["eval_success_rate/b"])) == (1.0, 0.0)
    assert int(float(last["time/total_timesteps"])) == 12


def scripted(monkeypatch: pytest.MonkeyPatch, outcomes: list[tuple[float, float | None]]) -> None:
    """Let the evaluations have given outcomes: return, and success of half the episodes or none."""
    remaining = iter(outcomes)

    def evaluate(*args: Any, **kwargs: Any) -> TaskEvaluation:
        value, success = next(remaining)
        return TaskEvaluation(
            ["a"], [EpisodeResult("a", 0, value, 1, None if success is None else success > 0, None)], {}
        )

    monkeypatch.setattr(eval_callback, "evaluate_tasks", evaluate)


@pytest.mark.parametrize(
    ("outcomes", "best"),
    [
        ([(1.0, 0.0), (5.0, 0.0), (3.0, 0.0)], 1),
        ([(9.0, 0.0), (1.0, 1.0), (8.0, 0.0)], 1),  # success before return
        ([(1.0, 1.0), (2.0, 1.0), (9.0, 0.0)], 1),  # return among equal successes
        ([(-5.0, None), (-7.0, None), (-3.0, None)], 2),
        ([(1.0, None), (1.0, None), (1.0, None)], 0),  # the first of equals
    ],
)
def test_the_best_model_is_kept_by_success_then_return(
    agent: Agent,
    counting_envs: Envs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outcomes: list[tuple[float, float | None]],
    best: int,
) -> None:
    scripted(monkeypatch, outcomes)
    agent(counting_envs(PAIR)).learn(20, callback=EvalTasksCallback(eval_freq=10, log_path=tmp_path))
    assert VarShareSAC.load(tmp_path / "best_model", device="cpu").num_timesteps == [0, 10, 20][best]


def test_without_a_path_nothing_is_written(
    agent: Agent, counting_envs: Envs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    callback = EvalTasksCallback(eval_freq=10, n_episodes=1)
    agent(counting_envs(PAIR)).learn(12, callback=callback)
    assert not list(tmp_path.iterdir())
    assert callback.best == (0.5, -2.0) and callback.last is not None and callback.last.mean_return == -2.0


def test_training_does_not_notice(agent: Agent, counting_envs: Envs) -> None:
    plain = agent(counting_envs(PAIR)).learn(40)
    watched = agent(counting_envs(PAIR)).learn(40, callback=EvalTasksCallback(eval_freq=6, n_episodes=1))
    assert plain._n_updates == watched._n_updates > 0
    theirs = watched.policy.state_dict()
    assert all(th.equal(tensor, theirs[name]) for name, tensor in plain.policy.state_dict().items())


@pytest.mark.parametrize("reset_num_timesteps", [True, False])
def test_a_second_training_is_evaluated_too(
    agent: Agent, counting_envs: Envs, monkeypatch: pytest.MonkeyPatch, reset_num_timesteps: bool
) -> None:
    steps: list[int] = []
    original = eval_callback.evaluate_tasks

    def evaluate(model: Any, *args: Any, **kwargs: Any) -> TaskEvaluation:
        steps.append(model.num_timesteps)
        return original(model, *args, **kwargs)

    monkeypatch.setattr(eval_callback, "evaluate_tasks", evaluate)
    callback = EvalTasksCallback(eval_freq=10, n_episodes=1)
    model = agent(counting_envs(PAIR))
    model.learn(24, callback=callback)
    assert steps == [0, 10, 20, 24]
    steps.clear()
    model.learn(24, callback=callback, reset_num_timesteps=reset_num_timesteps)
    assert steps == ([0, 10, 20, 24] if reset_num_timesteps else [30, 40, 48])


def test_two_runs_do_not_share_a_table(agent: Agent, counting_envs: Envs, tmp_path: Path) -> None:
    def callback() -> EvalTasksCallback:
        return EvalTasksCallback(eval_freq=10, n_episodes=1, log_path=tmp_path)

    model = agent(counting_envs(PAIR)).learn(12, callback=callback())
    before = (tmp_path / "evaluations.csv").read_text()
    with pytest.raises(FileExistsError, match="holds another run"):
        agent(counting_envs(PAIR)).learn(12, callback=callback())
    assert (tmp_path / "evaluations.csv").read_text() == before
    model.learn(12, callback=callback(), reset_num_timesteps=False)
    assert (tmp_path / "evaluations.csv").read_text().startswith(before)


def test_a_base_that_does_not_exist_is_refused_at_the_start(agent: Agent, counting_envs: Envs) -> None:
    independent = agent(counting_envs(PAIR), adapter="independent")
    sb3 = SAC("MlpPolicy", counting_envs(PAIR), buffer_size=10, device="cpu", policy_kwargs={"net_arch": [4]})
    for model in (independent, sb3):
        with pytest.raises(ValueError, match="needs a shared base"):
            model.learn(12, callback=EvalTasksCallback(evaluate_base=True))
        assert model.num_timesteps == 0


def test_an_environment_of_ones_own_is_used_and_left_open(
    agent: Agent, counting_envs: Envs, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = counting_envs(PAIR)
    own = env.evaluation_env()
    closed: list[bool] = []
    monkeypatch.setattr(own, "close", lambda: closed.append(True))
    callback = EvalTasksCallback(eval_env=own, eval_freq=10, n_episodes=1)
    agent(env).learn(12, callback=callback)
    assert callback.eval_env is own and not closed


def test_an_environment_without_a_twin_must_be_given(agent: Agent, counting_envs: Envs) -> None:
    def make() -> Any:
        return DummyVecEnv([lambda: counting_envs({"x": {}}).envs[0].unwrapped._task_env(0)])

    model = agent(make())
    for given in (None, model.env):
        with pytest.raises(ValueError, match="no evaluation twin"):
            model.learn(10, callback=EvalTasksCallback(eval_env=given))
    model.learn(12, callback=EvalTasksCallback(eval_env=make(), eval_freq=100, n_episodes=1))


def test_it_works_with_sb3s_own_agents(counting_envs: Envs, tmp_path: Path) -> None:
    model = SAC(
        "MlpPolicy",
        counting_envs(PAIR),
        buffer_size=100,
        learning_starts=10,
        batch_size=8,
        device="cpu",
        policy_kwargs={"net_arch": [4]},
    )
    model.learn(24, callback=EvalTasksCallback(eval_freq=10, n_episodes=1, log_path=tmp_path))
    assert len(rows_of(tmp_path)) == 4 * 2
    assert SAC.load(tmp_path / "best_model", device="cpu").num_timesteps == 0


def test_a_line_per_evaluation(agent: Agent, counting_envs: Envs, capsys: pytest.CaptureFixture[str]) -> None:
    agent(counting_envs(PAIR)).learn(12, callback=EvalTasksCallback(eval_freq=100, n_episodes=1, verbose=1))
    assert "12 eval: return -2.0, success 0.50" in capsys.readouterr().out


def test_the_protocol_stands_beside_the_table_and_cannot_change(agent: Agent, tmp_path: Path) -> None:
    def callback() -> EvalTasksCallback:
        return EvalTasksCallback(eval_freq=1_000, n_episodes=1, log_path=tmp_path)

    env = make_multitask_env("contextual", horizon=4)
    model = agent(env, batch_size=50)
    model.set_logger(configure(str(tmp_path), ["csv", "tensorboard"]))
    model.learn(5, callback=callback())
    assert json.loads((tmp_path / "protocol.json").read_text()) == env.suite.describe().protocol == model.protocol
    model.learn(5, callback=callback(), reset_num_timesteps=False)
    before = (tmp_path / "evaluations.csv").read_text()
    model.set_env(make_multitask_env("contextual", horizon=5))
    with pytest.raises(ValueError, match=r"contextual\.horizon: 4 against 5"):
        model.learn(5, callback=callback(), reset_num_timesteps=False)
    assert (tmp_path / "evaluations.csv").read_text() == before
    model.logger.close()
    assert "eval/protocol" not in (tmp_path / "progress.csv").read_text()
    accumulator = EventAccumulator(str(tmp_path)).Reload()
    assert "eval/protocol/text_summary" in accumulator.Tags()["tensors"]
