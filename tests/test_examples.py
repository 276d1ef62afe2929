"""Every example runs with a tiny budget and leaves behind what its docstring promises."""

import ast
import csv
import importlib.util
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PENDULUMS = {"swing-up", "swing-up-twin", "forward", "reversed", "light"}
# Episodes of the contextual suite have 200 steps, and its warm-up lasts for one of each task.
STEPS = 220


def load_example(name: str) -> ModuleType:
    """The module of an example; registered, since dataclasses look their module up."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run_train_suite(folder: Path, capsys: pytest.CaptureFixture[str], **arguments: Any) -> str:
    """What ``train_suite`` prints at a tiny budget."""
    example = load_example("train_suite")
    budget = {"steps": STEPS, "eval_freq": 1_000, "eval_episodes": 1, "final_episodes": 2, "width": 8}
    example.main(example.Args(log_dir=folder, threads=1, **{**budget, **arguments}))
    return capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_says_what_it_shows(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert len(ast.get_docstring(tree) or "") > 80
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_train_suite_prints_a_table_and_writes_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    output = run_train_suite(folder, capsys)
    for header in (
        "return",
        "success",
        "KL actor (nats)",
        "KL critic (nats)",
        "|mu|/|theta|",
        "base alone",
        "ent. coef.",
    ):
        assert header in output
    for task in PENDULUMS:
        assert f"│ {task} " in output
    assert f"{5 * STEPS:,} transitions ({STEPS:,} of each task) and 20 gradient steps" in output
    rows = read_rows(folder / "evaluations.csv")
    assert {row["weights"] for row in rows} == {"mean", "base"}
    assert {row["task"] for row in rows} == PENDULUMS
    # Every task was played equally often: once by each kind of weights at each evaluation.
    assert set(Counter((row["step"], row["weights"], row["task"]) for row in rows).values()) == {1}
    assert int(rows[-1]["step"]) == 5 * STEPS
    for file in ("progress.csv", "best_model.zip", "final_model.zip"):
        assert (folder / file).stat().st_size > 0
    assert list(folder.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("adapter", ["none", "embedding", "independent", "deterministic"])
def test_train_suite_shows_what_an_adapter_has(
    adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run_train_suite(tmp_path / "run", capsys, adapter=adapter, steps=210, suite=("contextual/light",))
    assert ("base alone" in output) == ("KL actor" in output) == (adapter == "deterministic")
    assert "ent. coef." in output


def test_train_suite_takes_several_tasks_and_leaves_an_older_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, suite = tmp_path / "run", ("contextual/light", "contextual/forward")
    first = run_train_suite(folder, capsys, suite=suite)
    second = run_train_suite(folder, capsys, suite=suite)
    assert "everything goes to " + str(folder) + "\n" in first
    assert "everything goes to " + str(folder) + "_2\n" in second
    tables = [read_rows(path / "evaluations.csv") for path in (folder, tmp_path / "run_2")]
    # Equal seeds give equal runs, except for what they took.
    first_run, second_run = ([{**row, "seconds": ""} for row in table] for table in tables)
    assert first_run == second_run


def test_train_suite_still_prints_and_saves_after_an_interrupt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_varshare import EvalTasksCallback

    def interrupt(callback: EvalTasksCallback) -> bool:
        if callback.num_timesteps == 500:
            os.kill(os.getpid(), signal.SIGINT)
        return True

    monkeypatch.setattr(EvalTasksCallback, "_on_step", interrupt)
    before = signal.getsignal(signal.SIGINT)
    output = run_train_suite(tmp_path / "run", capsys)
    assert signal.getsignal(signal.SIGINT) is before
    assert "Interrupted" in output and "500 transitions" in output and "│ light " in output
    assert (tmp_path / "run" / "final_model.zip").exists()


def test_train_suite_names_what_is_wrong_without_a_traceback() -> None:
    example = load_example("train_suite")
    with pytest.raises(SystemExit, match="did you mean 'contextual'"):
        example.main(example.Args(suite=("contextal",)))


def test_train_suite_defaults() -> None:
    example = load_example("train_suite")
    assert example.Args().chosen_preset == "small"
    assert example.Args(preset="plain").chosen_preset is None
    assert example.Args(suite=("MT10",)).chosen_preset is None
    for args, n_envs in (
        (example.Args(), 5),
        (example.Args(suite=("MT3",)), 6),
        (example.Args(suite=("MT3",), n_envs=4), 4),
    ):
        env = example.make_env(args)
        assert env.num_envs == n_envs
        env.close()
    names = {
        example.Args().run_name: "varshare_seed0",
        example.Args(adapter="none", task_input="one_hot", seed=3).run_name: "none_one_hot_seed3",
        example.Args(suite=("MT3",), preset="brc").run_name: "brc_seed0",
    }
    assert all(got == expected for got, expected in names.items())


def test_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("quickstart")
    evaluation = example.main(example.Args(steps=1_100, episodes=2, save_path=tmp_path / "agent.zip"))
    assert set(evaluation.success_rates()) == PENDULUMS
    assert (tmp_path / "agent.zip").exists()
    assert "First action on 'light': [" in capsys.readouterr().out


def test_own_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("own_tasks")
    evaluation = example.main(example.Args(steps=210, episodes=1, save_path=tmp_path / "agent.zip"))
    assert list(evaluation.returns()) == ["earth", "moon", "slide"]
    assert list(evaluation.success_rates()) == ["slide"]
    assert "One episode of 'slide' outside the suite" in capsys.readouterr().out


@pytest.mark.slow
def test_deploy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    example = load_example("deploy")
    found = example.main(example.Args(steps=210, episodes=1, output=tmp_path))
    assert set(found) == {"earth", "moon"}
    for forms in found.values():
        assert set(forms) == {"agent", "folder", ".onnx", ".pt2"}
        # Of the order of a thousand; rounding grows with the steps.
        assert all(returns == pytest.approx(forms["agent"], abs=0.5) for returns in forms.values())
    assert "What the tasks share" in capsys.readouterr().out
    loaded = example.make_agent(example.Args(model=tmp_path / "agent.zip"))
    returns = example.play(lambda row: loaded.predict_task(row, "moon")[0], "moon", 1)
    assert returns == found["moon"]["agent"]
    runner = (EXAMPLES / "run_exported.py").read_text(encoding="utf-8")
    imported = {node for node in ast.walk(ast.parse(runner)) if isinstance(node, ast.Import | ast.ImportFrom)}
    assert not any("sb3" in ast.unparse(node) for node in imported)


def test_own_suite(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_varshare.tasks import registry

    monkeypatch.setattr(registry, "SOURCES", dict(registry.SOURCES))
    example = load_example("own_suite")
    evaluation = example.main(example.Args(steps=210, episodes=1))
    assert list(evaluation.returns()) == ["moon", "mars", "venus", "earth"]
    assert "planets: version 1, horizon 200" in capsys.readouterr().out
    mixed = example.Args(tasks=("planets/moon", "contextual/light"), steps=30, episodes=1, horizon=20)
    assert list(example.main(mixed).returns()) == ["moon", "light"]


def test_new_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("new_task")
    budget = {"steps": 260, "new_steps": 70, "joint_steps": 10, "evaluations": 1, "episodes": 1}
    model = example.main(example.Args(**budget, save_path=tmp_path / "agent.zip"))
    assert model.task_names == ["swing-up", "forward", "light", "swing-up-twin", "reversed"]
    assert (tmp_path / "agent.zip").exists()
    output = capsys.readouterr().out
    assert "after 0, " in output and "after 70" in output and "In the agent: swing-up -" in output


def test_after_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("after_training")
    budget = {"steps": 260, "new_steps": 70, "max_loss": 0.5, "episodes": 1}
    assert example.main(example.Args(**budget, output=tmp_path)) < 1e-4
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"inside", "policy", "pruned.zip", "unpruned.zip", "reversed.onnx"}
    assert {path.stem for path in (tmp_path / "policy" / "tasks").iterdir()} == PENDULUMS
    assert (tmp_path / "pruned.zip").stat().st_size < (tmp_path / "unpruned.zip").stat().st_size
    assert "'reversed': -" in capsys.readouterr().out


def test_compare_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("compare_adapters")
    agents = ("varshare", "one_hot", "sac", "tqc", "sac_per_task")
    suite = ("contextual/light", "contextual/forward")
    budget = {"steps": 505, "episodes": 1, "width": 8, "suite": suite, "output": tmp_path}
    example.main(example.Args(agents=agents, **budget))
    rows = read_rows(tmp_path / "episodes.csv")
    assert Counter((row["agent"], row["task"]) for row in rows) == {
        (agent, task): 1 for agent in (*agents, "random") for task in ("light", "forward")
    }
    assert (tmp_path / "scores.png").stat().st_size > 0
    output = capsys.readouterr().out
    assert all(f"│ {agent} " in output for agent in (*agents, "random"))


def test_compare_adapters_scores_by_hand() -> None:
    example = load_example("compare_adapters")
    returns = {
        "random": {"a": [-10.0, -30.0], "b": [1.0, 1.0]},
        "good": {"a": [0.0, 0.0], "b": [2.0, 2.0]},
        "half": {"a": [-5.0, -15.0], "b": [3.0, 3.0]},
    }
    assert example.scores(returns) == {
        "random": {"a": [0.5, -0.5], "b": [0.0, 0.0]},
        "good": {"a": [1.0, 1.0], "b": [0.5, 0.5]},
        "half": {"a": [0.75, 0.25], "b": [1.0, 1.0]},
    }


def test_compare_adapters_knows_its_agents() -> None:
    example = load_example("compare_adapters")
    with pytest.raises(SystemExit, match="agents must be among varshare"):
        example.main(example.Args(agents=("varshare", "ppo")))


def test_look_inside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("look_inside")
    distances = example.main(example.Args(steps=STEPS, looks=1, output=tmp_path))
    assert set(distances) == {"actor's residuals", "critic's residuals", "actions"}
    assert all(set(matrix.columns) == PENDULUMS for matrix in distances.values())
    output = capsys.readouterr().out
    assert all(f"│ {task} " in output for task in PENDULUMS)
    assert all(f"│ {name} " in output for name in (*distances, "swing-up-twin │ impossible"))
    assert (tmp_path / "agent.zip").exists() and (tmp_path / "tree_actions.png").exists()
    assert [path.name for path in (tmp_path / "training").iterdir()] == [f"step_{5 * STEPS:09d}"]


def test_posterior_exploration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load_example("posterior_exploration")
    curves = example.main(example.Args(steps=STEPS, evaluations=2, episodes=1, output=tmp_path))
    assert set(curves) == {"mean", "posterior"}
    for way in curves:
        assert list(curves[way][0]) == [0, 550, 1_100]
        assert len(read_rows(tmp_path / f"{way}_seed0" / "evaluations.csv")) == 3 * len(PENDULUMS)
    assert (tmp_path / "curves.png").stat().st_size > 0
    assert "1,100" in capsys.readouterr().out


@pytest.mark.parametrize("score", ["magnitude", "signal_to_noise"])
def test_prune(tmp_path: Path, capsys: pytest.CaptureFixture[str], score: str) -> None:
    from sb3_varshare import VarShareSAC

    example, path = load_example("prune"), tmp_path / "pruned.zip"
    # After so little training anything may be lost, and the search ends with the base alone.
    budget = {"steps": STEPS, "episodes": 1, "max_loss": 100.0, "save_path": path}
    report = example.main(example.Args(score=score, more_steps=20, **budget))
    assert report.kept() == 0 and set(report.returns_after) == PENDULUMS
    output = capsys.readouterr().out
    assert "tried: 0.00% lost " in output and f"{path}: {path.stat().st_size:,} bytes" in output
    loaded = VarShareSAC.load(path)
    assert loaded.num_timesteps == 5 * (STEPS + 20)
    again = example.main(example.Args(model=path, **budget))
    assert again.kept() == 0 and again.candidates == ()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Overriding environment.*:UserWarning")
def test_train_metaworld(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("metaworld")
    example = load_example("train_metaworld")
    # Episodes have 500 steps: the warm-up takes them all but ten.
    budget = {"steps": 510, "episodes": 1, "width": 8, "eval_freq": 1_000, "log_dir": tmp_path}
    evaluation = example.main(example.Args(**budget))
    assert list(evaluation.returns()) == ["reach-v3", "drawer-close-v3", "button-press-topdown-v3"]
    assert evaluation.protocol["metaworld"]["reward_version"] == "v2"
    assert {row["step"] for row in read_rows(tmp_path / "evaluations.csv")} == {"0", "1530"}
    assert (tmp_path / "best_model.zip").exists() and (tmp_path / "final_model.zip").exists()
    assert "reach-v3: " in capsys.readouterr().out
