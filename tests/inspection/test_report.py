"""All tables and figures at once: as files, from the command line, and while an agent trains."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch as th
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_varshare import VarShareSAC
from sb3_varshare.inspection import InspectionCallback, inspect_agent, residual_table, save_figures, task_distance
from sb3_varshare.inspection.__main__ import look

Agent = Callable[..., VarShareSAC]
NETWORKS = ("actor", "critic")
COLUMNS = ("kl", "mu_over_theta", "signal_share", "sigma_over_prior")
TABLES = {"residuals", *(f"{kind}_{network}" for kind in ("distance", "similarity") for network in NETWORKS)}
FIGURES = {f"residuals_{column}" for column in COLUMNS} | (TABLES - {"residuals"}) | {"tree_actor", "tree_critic"}
ACTIONS = {"distance_actions"}
ACTION_FIGURES = {"distance_actions", "tree_actions"}


def names(files: list[Path] | Path, suffix: str) -> set[str]:
    """Names without their suffix."""
    paths = files.iterdir() if isinstance(files, Path) else files
    return {path.stem for path in paths if path.suffix == suffix}


def test_files(scattered: Agent, tmp_path: Path) -> None:
    model = scattered()
    observations = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    files = save_figures(model, tmp_path / "new" / "folder", observations)
    assert set(files) == set((tmp_path / "new" / "folder").iterdir())
    assert names(files, ".csv") == TABLES | ACTIONS and names(files, ".png") == FIGURES | ACTION_FIGURES
    folder = files[0].parent
    pd.testing.assert_frame_equal(pd.read_csv(folder / "residuals.csv"), residual_table(model))
    distances = pd.read_csv(folder / "distance_critic.csv", index_col=0)
    pd.testing.assert_frame_equal(distances, task_distance(model, "critic"))
    for path in files:
        if path.suffix == ".png":
            # Not empty: the picture has dark and light, in whatever style another package has set.
            assert np.ptp(imread(path)[..., :3]) > 0.5


def test_what_is_not_there_is_left_out(scattered: Agent) -> None:
    """No replay, no actions; no spread, no columns of it; no residuals in the actor; one or two tasks."""
    found = inspect_agent(scattered(adapter="deterministic"))
    assert set(found.tables) == TABLES
    assert set(found.figures) == FIGURES - {"residuals_signal_share", "residuals_sigma_over_prior"}
    found = inspect_agent(scattered(actor_residuals=False))
    assert set(found.tables) == {name for name in TABLES if not name.endswith("actor")}
    found = inspect_agent(scattered(names=("plus", "minus")))
    assert set(found.tables) == {name for name in TABLES if not name.startswith("similarity")}
    assert set(inspect_agent(scattered(names=("plus",))).tables) == {"residuals"}


def test_the_replay_gives_the_observations(scattered: Agent) -> None:
    model = scattered()
    model.learn(60)
    found = inspect_agent(model)
    assert set(found.tables) == TABLES | ACTIONS and set(found.figures) == FIGURES | ACTION_FIGURES
    assert all(isinstance(figure, Figure) for figure in found.figures.values())


# The command


def test_the_command(scattered: Agent, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = scattered(adapter="deterministic")
    model.save(tmp_path / "agent.zip")
    look(tmp_path / "agent.zip", tmp_path / "inside")
    lines = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.split("\n")]
    row = residual_table(model).iloc[0]
    numbers = [f"{row[name]:.3g}" for name in ("kl", "kl_mean", "kl_spread", "mu_norm", "theta_norm", "mu_over_theta")]
    assert ["", "linear_in", "plus", *numbers, "8", ""] in lines
    distance = task_distance(model, "critic").loc["plus", "minus"]
    assert any(line[1:2] == ["plus"] and line[-2:] == [f"{distance:.3g}", ""] for line in lines)
    assert [f"{5 + 8} files in {tmp_path / 'inside'}"] in lines
    assert names(tmp_path / "inside", ".csv") == TABLES


def test_the_command_in_a_process_names_what_is_wrong(agent: Agent, tmp_path: Path) -> None:
    agent(adapter="none").save(tmp_path / "agent.zip")
    command = [sys.executable, "-m", "sb3_varshare.inspection", str(tmp_path / "agent.zip"), "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MPLBACKEND": ""}, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ValueError: An agent with adapter='none' has no residuals to look at")


@pytest.mark.parametrize("package", ["pandas", "matplotlib"])
def test_a_missing_package_names_the_extra(scattered: Agent, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scattered()
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'need {package}, .*pip install "sb3_varshare\[inspection\]"'):
        inspect_agent(model)


# The callback


def test_a_run_with_everything(agent: Agent, tmp_path: Path) -> None:
    """TensorBoard and files get each look, and the agent learns what it learns without."""
    model = agent(tensorboard_log=str(tmp_path))
    model.learn(90, callback=InspectionCallback(60, tmp_path / "files"), tb_log_name="run")
    model.logger.close()
    plain = agent().learn(90)
    for one, other in zip(model.policy.parameters(), plain.policy.parameters(), strict=True):
        assert th.equal(one, other)

    table = residual_table(model)
    folders = sorted((tmp_path / "files").iterdir())
    assert [folder.name for folder in folders] == ["step_000000060", "step_000000090"]
    for folder in folders:
        assert names(folder, ".csv") == TABLES | ACTIONS and names(folder, ".png") == FIGURES | ACTION_FIGURES
    first, last = (pd.read_csv(folder / "residuals.csv") for folder in folders)
    pd.testing.assert_frame_equal(last, table)
    assert 0 < first["kl"].sum() < last["kl"].sum()

    events = EventAccumulator(str(tmp_path / "run_1"), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert set(events.Tags()["images"]) == {f"inspection/{name}" for name in FIGURES | ACTION_FIGURES}
    for column in COLUMNS:
        for (network, layer, task), value in table.set_index(["network", "layer", "task"])[column].items():
            scalars = events.Scalars(f"inspection_{column}/{network}/{layer}/{task}")
            assert [event.step for event in scalars] == [60, 90]
            assert scalars[-1].value == pytest.approx(value, rel=1e-6)
    image = events.Images("inspection/tree_actor")[1]
    assert image.step == 90 and image.height > 100 and image.encoded_image_string.startswith(b"\x89PNG")


def test_when_it_looks(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(InspectionCallback, "_write", lambda callback: looks.append(callback.num_timesteps))
    model, callback = agent(), InspectionCallback(60, tmp_path)
    model.learn(150, callback=callback)
    assert looks == [60, 120, 150]
    # A training that goes on counts on; one that ends where it last looked does not look twice.
    model.learn(90, callback=callback, reset_num_timesteps=False)
    assert looks[3:] == [210, 240]
    looks.clear()
    model.learn(30, callback=InspectionCallback(30, tmp_path))
    assert looks == [30]


def test_a_callback_without_anything_to_write_to_says_so(agent: Agent, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log_freq must be at least 1 transition, got 0"):
        InspectionCallback(0)
    with pytest.raises(ValueError, match="otherwise nothing would be written"):
        InspectionCallback(10, tensorboard=False)
    with pytest.raises(ValueError, match="does not log to TensorBoard: make it with tensorboard_log="):
        agent().learn(30, callback=InspectionCallback(10))
    with pytest.raises(ValueError, match="has no residuals to look at"):
        agent(adapter="independent").learn(30, callback=InspectionCallback(10, tmp_path))
