"""Train, enjoy and resume through the real commands of the zoo."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rl_zoo3")

from stable_baselines3 import SAC
from zoo_commands import SHORT, TASKS, TINY, TINY_SAC, Zoo

from sb3_varshare import VarShareSAC, evaluate_tasks
from sb3_varshare.zoo.__main__ import main

RUN = Path("logs/varshare_sac/Contextual-v0_1")
MODEL = RUN / "Contextual-v0.zip"
# Warm-up ends once every task has finished an episode: after 50 steps with one env.
TRAIN = ("--algo", "varshare_sac", "-n", "80", "--eval-freq", "40", "--eval-episodes", "2", "--seed", "1")


def rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file; the zoo's own begin with a comment."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


def steps_of(zoo_run: Path) -> list[str]:
    return sorted({row["step"] for row in rows(zoo_run / "evaluations.csv")}, key=int)


@pytest.mark.parametrize(("n_envs", "n_eval_envs"), [(1, 1), (5, 2), (10, 3), (2, 7)])
def test_every_task_is_trained_and_evaluated(zoo: Zoo, n_envs: int, n_eval_envs: int) -> None:
    zoo("train", *TRAIN, "--n-eval-envs", str(n_eval_envs), "-n", "100", "-params", f"n_envs:{n_envs}", *TINY)
    trained = Counter(row["task"] for path in RUN.glob("*.monitor.csv") for row in rows(path))
    assert trained == dict.fromkeys(TASKS, 2)
    model = VarShareSAC.load(MODEL)
    assert model.num_timesteps == 100
    assert model._n_updates > 0
    evaluated = Counter(row["task"] for row in rows(RUN / "evaluations.csv") if row["step"] == "100")
    assert evaluated == dict.fromkeys(TASKS, 2)


def test_the_files_of_a_run(zoo: Zoo) -> None:
    printed = zoo("train", *TRAIN, "--save-freq", "40", "-params", *TINY)
    assert "Using 5 environments" in printed
    assert {path.name for path in RUN.iterdir()} >= {
        *("Contextual-v0", "Contextual-v0.zip", "best_model.zip", "evaluations.csv", "evaluations.npz"),
        *("protocol.json", "rl_model_40_steps.zip", "rl_model_80_steps.zip", "0.monitor.csv", "4.monitor.csv"),
    }
    config = yaml.unsafe_load((RUN / "Contextual-v0/config.yml").read_text())
    assert config["vec_env_wrapper"] == "sb3_varshare.zoo.AssignTasks"
    # At the start, every 40 steps, and once at the end though the zoo ends its first callback twice.
    table, arrays = rows(RUN / "evaluations.csv"), np.load(RUN / "evaluations.npz")
    assert steps_of(RUN) == ["0", "40", "80"] and len(table) == 3 * 5 * 2
    assert arrays["timesteps"].tolist() == [0, 40, 80]
    assert arrays["task_names"].tolist() == [task for task in TASKS for _ in range(2)]
    for name, column in (("results", "episode_return"), ("ep_lengths", "length")):
        np.testing.assert_allclose(arrays[name].ravel(), [float(row[column]) for row in table])
    assert arrays["successes"].shape == (3, 10) and not arrays["successes"].any()


def test_the_best_model_is_that_of_the_best_evaluation(zoo: Zoo) -> None:
    zoo("train", *TRAIN, "-params", *TINY)
    table = rows(RUN / "evaluations.csv")
    # Nothing stands before the evaluation here, and still it is not ended twice.
    assert len(table) == 3 * 5 * 2
    means = {
        step: np.mean([float(row["episode_return"]) for row in table if row["step"] == step]) for step in steps_of(RUN)
    }
    best = max(means, key=lambda step: means[step])
    assert VarShareSAC.load(RUN / "best_model.zip").num_timesteps == int(best)


@pytest.mark.parametrize("n_envs", [1, 4])
def test_enjoy_plays_evaluation_episodes_and_prints_every_task(zoo: Zoo, n_envs: int) -> None:
    zoo("train", *TRAIN, "--n-eval-envs", "5", "-params", *TINY)
    printed = zoo(
        "enjoy",
        "--algo",
        "varshare_sac",
        "-f",
        "logs",
        "--no-render",
        "-n",
        "50",
        "--n-envs",
        str(n_envs),
        "--seed",
        "1",
    )
    lines = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.startswith("│")}
    assert list(lines)[:5] == TASKS
    if n_envs == 1:
        # The same agent, seed and streams: the first episode of each task in the last evaluation.
        last = {
            row["task"]: float(row["episode_return"])
            for row in rows(RUN / "evaluations.csv")
            if (row["step"], row["episode"]) == ("80", "0")
        }
        assert {task: float(lines[task].split("│")[2]) for task in TASKS} == pytest.approx(last, abs=0.051)


def test_enjoy_says_what_was_not_played(zoo: Zoo) -> None:
    zoo("train", *TRAIN, "--eval-freq", "-1", "-params", *TINY)
    enjoy = ("enjoy", "--algo", "varshare_sac", "-f", "logs", "--no-render")
    assert "Not played to an end: reversed, light." in zoo(*enjoy, "-n", "30")
    assert "No episode ended" in zoo(*enjoy, "-n", "9")


def test_resume_goes_on_to_the_same_total(zoo: Zoo) -> None:
    learning_rate = "learning_rate:'lin_0.001'"
    zoo("train", *TRAIN, "--save-replay-buffer", "-params", *TINY, learning_rate)
    first = VarShareSAC.load(MODEL)
    printed = zoo("train", *TRAIN, "-n", "120", "-i", str(MODEL), "--save-replay-buffer")
    assert "Loading replay buffer" in printed and "Going on at step 80 of 120" in printed
    second = VarShareSAC.load(RUN.with_name("Contextual-v0_2") / "Contextual-v0.zip")
    assert second.num_timesteps == 120
    # No second warm-up: an update at each of 8 steps of five environments.
    assert second._n_updates == first._n_updates + 8
    # The agent's own arguments, not those of the file of hyper-parameters.
    assert (second.actor_width, second.batch_size, second.learning_starts) == (8, 20, 20)
    assert second._total_timesteps == 120
    assert steps_of(RUN.with_name("Contextual-v0_2")) == ["80", "120"]


def test_resume_with_another_argument(zoo: Zoo) -> None:
    zoo("train", *TRAIN, "--eval-freq", "-1", "-params", *TINY)
    printed = zoo(
        "train", *TRAIN, "-n", "85", "--eval-freq", "-1", "-i", str(MODEL), "-params", "rows_per_task:2", "beta:0.5"
    )
    assert "No replay_buffer.pkl beside the agent" in printed
    second = VarShareSAC.load(RUN.with_name("Contextual-v0_2") / "Contextual-v0.zip")
    assert (second.batch_size, second.beta, second.actor_width) == (10, 0.5, 8)


def test_resume_keeps_what_the_file_of_hyper_parameters_says_otherwise(zoo: Zoo, tmp_path: Path) -> None:
    zoo("train", *TRAIN, "--eval-freq", "-1", "-params", *TINY)
    config = tmp_path / "other.yml"
    config.write_text(
        "Contextual-v0:\n  n_envs: 5\n  policy: MultiTaskPolicy\n  rows_per_task: 8\n  ent_coef: auto_0.7\n"
    )
    zoo("train", *TRAIN, "-n", "85", "--eval-freq", "-1", "-i", str(MODEL), "--conf-file", str(config))
    second = VarShareSAC.load(RUN.with_name("Contextual-v0_2") / "Contextual-v0.zip")
    assert (second.batch_size, second.ent_coef) == (20, "auto_0.01")
    # The coefficients went on from 0.01; given anew they would begin at 0.7.
    assert second.log_ent_coef is not None and second.log_ent_coef.exp().max() < 0.015


def test_nothing_is_left_to_resume(zoo: Zoo) -> None:
    zoo("train", *TRAIN, "--eval-freq", "-1", "-params", *TINY)
    with pytest.raises(ValueError, match="has been trained for 80 of 80 steps; -n counts from the beginning"):
        zoo("train", *TRAIN, "-i", str(MODEL))
    assert [path.name for path in RUN.parent.iterdir()] == [RUN.name]


def test_a_baseline_of_sb3(zoo: Zoo) -> None:
    train = ("train", "--algo", "sac", "--eval-freq", "50", "--eval-episodes", "1", "--seed", "2")
    zoo(*train, "-n", "50", "-params", *TINY_SAC, "n_envs:2")
    run = Path("logs/sac/Contextual-v0_1")
    assert Counter(row["task"] for row in rows(run / "evaluations.csv")) == dict.fromkeys(TASKS, 2)
    assert "mean over tasks" in zoo(
        "enjoy", "--algo", "sac", "-f", "logs", "--no-render", "-n", "20", "--n-envs", "2", "--seed", "2"
    )
    zoo(*train, "-n", "70", "-i", str(run / "Contextual-v0.zip"), "-params", *TINY_SAC, "n_envs:2")
    assert SAC.load(run.with_name("Contextual-v0_2") / "Contextual-v0.zip").num_timesteps == 70


def test_worker_processes_play_the_same(zoo: Zoo) -> None:
    options = (*TRAIN, "-n", "60", "--eval-freq", "60", "--n-eval-envs", "2")
    zoo("train", *options, "-params", *TINY)
    zoo("train", *options, "--vec-env", "subproc", "-params", *TINY)
    here, there = (RUN.with_name(f"Contextual-v0_{number}") for number in (1, 2))
    agents = [VarShareSAC.load(run / "Contextual-v0.zip").get_parameters() for run in (here, there)]
    for name, parameter in agents[0]["policy"].items():
        np.testing.assert_array_equal(parameter.numpy(), agents[1]["policy"][name].numpy())
    assert Counter(row["task"] for row in rows(there / "0.monitor.csv")) == dict.fromkeys(TASKS, 1)
    evaluated = [[{**row, "seconds": None} for row in rows(run / "evaluations.csv")] for run in (here, there)]
    assert evaluated[0] == evaluated[1]


def test_another_environment_is_the_zoos(zoo: Zoo, tmp_path: Path) -> None:
    config = tmp_path / "mine.yml"
    config.write_text(
        "Pendulum-v1:\n  n_timesteps: 300\n  policy: MlpPolicy\n  width: 8\n"
        "  rows_per_task: 16\n  learning_starts: 100\n"
    )
    main(
        [
            "train",
            "--algo",
            "varshare_sac",
            "--env",
            "Pendulum-v1",
            "--conf-file",
            str(config),
            "--eval-freq",
            "300",
            "--eval-episodes",
            "1",
        ]
    )
    run = Path("logs/varshare_sac/Pendulum-v1_1")
    model = VarShareSAC.load(run / "Pendulum-v1.zip")
    assert (model.n_tasks, model.batch_size, model.num_timesteps) == (1, 16, 300)
    assert np.load(run / "evaluations.npz")["results"].shape == (1, 1)


def test_the_command_and_the_suite_must_be_known(zoo: Zoo) -> None:
    for given in (["tune"], []):
        with pytest.raises(SystemExit, match=r"Expected one of train, enjoy, got (tune|nothing)"):
            main(given)
    with pytest.raises(ValueError, match="you maybe meant Contextual-v0"):
        main(["train", "--algo", "varshare_sac", "--env", "Contextal-v0", *SHORT[2:]])


def test_an_evaluation_by_hand_gives_what_the_zoo_wrote(zoo: Zoo) -> None:
    zoo("train", *TRAIN, "--n-eval-envs", "3", "-params", *TINY)
    import gymnasium as gym
    from stable_baselines3.common.vec_env import DummyVecEnv

    from sb3_varshare.zoo import AssignTasks

    venv = DummyVecEnv([lambda: gym.make("Contextual-v0", horizon=10, purpose="evaluation")] * 5)
    venv.seed(1)
    evaluation = evaluate_tasks(VarShareSAC.load(MODEL), AssignTasks(venv), n_episodes=2)
    last = [row for row in rows(RUN / "evaluations.csv") if row["step"] == "80"]
    assert [episode.episode_return for episode in evaluation.episodes] == pytest.approx(
        [float(row["episode_return"]) for row in last], rel=1e-4
    )
