"""The plots of rl_zoo3, the example that compares runs, and the page on results, on folders of real runs."""

import importlib.util
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("rliable")

from matplotlib import pyplot as plt
from rl_zoo3.cli import main as rl_zoo3
from stable_baselines3.common.monitor import load_results
from zoo_commands import SHORT, TASKS, TINY, TINY_SAC

from sb3_varshare.zoo.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[2]
ENV = ("-e", "Contextual-v0")
ALGOS = {"varshare_sac": TINY, "sac": TINY_SAC}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``logs`` with two runs of each algorithm, of four episodes of each task."""
    folder = tmp_path_factory.mktemp("plots")
    options = (*SHORT, "-f", str(folder / "logs"), "-n", "200", "--eval-freq", "100", "--eval-episodes", "2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["zoo"])
        for algo, params in ALGOS.items():
            for seed in ("1", "2"):
                main(["train", *options, "--algo", algo, "--n-eval-envs", "5", "--seed", seed, "-params", *params])
    return folder


@pytest.fixture(autouse=True)
def workplace(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own with the runs in it, and no figures."""
    shutil.copytree(folder / "logs", tmp_path / "logs")
    monkeypatch.chdir(tmp_path)
    plt.close("all")
    yield
    plt.close("all")


def runs_of(algo: str) -> list[Path]:
    return sorted(Path("logs", algo).iterdir())


def evaluations(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "evaluations.csv")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["rl_zoo3", *arguments])
    rl_zoo3()


@pytest.mark.parametrize(("score", "column"), [("reward", "r"), ("success", "is_success"), ("length", "l")])
def test_plot_train_draws_the_mean_over_episodes_of_all_tasks(
    monkeypatch: pytest.MonkeyPatch, score: str, column: str
) -> None:
    command(monkeypatch, "plot_train", "-a", "varshare_sac", *ENV, "-f", "logs", "-w", "5", "-y", score)
    lines = {line.get_label(): line.get_ydata() for line in plt.gca().get_lines()}
    assert sorted(lines) == [run.name for run in runs_of("varshare_sac")]
    for run in runs_of("varshare_sac"):
        episodes = load_results(str(run))[column].to_numpy(dtype=float)
        assert len(episodes) == 4 * len(TASKS)
        # A window of five: 16 places.
        np.testing.assert_allclose(lines[run.name], np.convolve(episodes, np.full(5, 0.2), "valid"))


def test_all_plots_and_plot_from_file_average_over_tasks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "all_plots", "-a", *ALGOS, *ENV, "-f", "logs", "--no-million", "-o", "results")
    found = pickle.loads(Path("results.pkl").read_bytes())["Contextual-v0"]
    drawn = {line.get_label(): line.get_xydata() for line in plt.gca().get_lines()}
    for algo in ALGOS:
        means = np.array([evaluations(run).groupby("step")["episode_return"].mean() for run in runs_of(algo)])
        key = f"{algo.upper()}-logs"
        np.testing.assert_allclose(found[key]["mean_per_eval"], means.T, rtol=1e-5)
        np.testing.assert_allclose(found[key]["std_error"], means.std(axis=0) / np.sqrt(2), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(drawn[key], np.stack([[0, 100, 200], means.mean(axis=0)], axis=1), rtol=1e-5)

    capsys.readouterr()
    with pytest.warns(UserWarning, match="Contextual-v0 not found for normalizing scores"):
        command(monkeypatch, "plot_from_file", "-i", "results", "--no-million", "-o", "bars.svg", "-b", "-r", "-iqm")
    last = np.mean([evaluations(run).query("step == 200")["episode_return"].mean() for run in runs_of("sac")])
    assert f"{last:.0f} +/- " in capsys.readouterr().out
    assert "</svg>" in Path("bars.svg").read_text(encoding="utf-8")


def test_success_can_be_plotted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, "all_plots", "-a", *ALGOS, *ENV, "-f", "logs", "-k", "successes", "-o", "results")
    found = pickle.loads(Path("results.pkl").read_bytes())["Contextual-v0"]
    assert found["SAC-logs"]["mean"].tolist() == [0.0, 0.0, 0.0]


def test_what_the_page_on_results_says_runs_as_it_stands() -> None:
    text = (REPOSITORY / "docs" / "reading_results.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {}
    argv = sys.argv
    try:
        for block in blocks:
            exec(block, names)
    finally:
        sys.argv = argv
    curves = names["curves"]
    assert sorted(curves.columns) == sorted(TASKS) and curves.index.tolist() == [0, 100, 200]
    table = evaluations(runs_of("varshare_sac")[0])
    light = table.query("task == 'light' and step == 200")["episode_return"]
    assert len(light) == 2 and curves.loc[200, "light"] == pytest.approx(light.mean())
    for name in ("tasks.png", "training.png"):
        pixels = plt.imread(name)[..., :3]
        assert pixels.std() > 0.05


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_runs", REPOSITORY / "examples" / "compare_runs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def compare(example: ModuleType, *agents: str, **options: Any) -> None:
    example.main(example.Args(agents=tuple(Path("logs", agent) for agent in agents), repetitions=50, **options))


def test_the_interquartile_mean_over_runs_and_tasks(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    compare(example, *ALGOS, runs="Contextual-v0_*", score="return", output=Path("figures/iqm.png"))
    printed = capsys.readouterr().out
    for algo in ALGOS:
        means = [
            evaluations(run).query("step == 200").groupby("task")["episode_return"].mean() for run in runs_of(algo)
        ]
        # Of ten values two at each end are left out.
        expected = np.sort(np.ravel(means))[2:-2].mean()
        assert f"logs/{algo}: IQM of the return {expected:.3f}, 95 % interval " in printed
    assert "(2 runs, 5 tasks, step 200)" in printed
    assert plt.imread("figures/iqm.png")[..., :3].std() > 0.05
    with pytest.raises(SystemExit, match=r"iqm\.png exists; name another file by --output"):
        compare(example, *ALGOS, output=Path("figures/iqm.png"))


def test_runs_that_cannot_be_compared_are_refused(example: ModuleType) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(SystemExit, match=message):
            compare(example, *ALGOS, **options)
        assert not Path("comparison.png").exists()

    with pytest.raises(SystemExit, match="the folder of at least one agent, got none"):
        compare(example)
    refused(
        r"at least 2 runs 'Contextual-v0_1' with evaluations\.csv in logs.varshare_sac, got 1", runs="Contextual-v0_1"
    )
    table = runs_of("sac")[1] / "evaluations.csv"
    rows = pd.read_csv(table)
    rows.assign(is_success=rows["is_success"].where(rows["task"] != "light")).to_csv(table, index=False)
    refused("Not every task of .*sac.Contextual-v0_2 reports success; compare by --score return")
    rows[rows["step"] > 0].to_csv(table, index=False)
    refused(r"evaluation steps of .* at \[0, 100, 200\], got .* at \[100, 200\]; leave it out by --runs")
    rows.to_csv(table, index=False)
    protocol = table.with_name("protocol.json")
    protocol.write_text(protocol.read_text(encoding="utf-8").replace("10", "11"), encoding="utf-8")
    refused("The protocols differ, so the results cannot be compared")
    protocol.unlink()
    refused(r"No such file or directory: .*sac.Contextual-v0_2.protocol\.json")
