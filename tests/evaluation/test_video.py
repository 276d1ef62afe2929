"""Films: real files, read back frame by frame."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest

from sb3_varshare import MultiTaskVecEnv, VarShareSAC, make_multitask_env, record_videos
from sb3_varshare.evaluation import video
from sb3_varshare.evaluation.video import BAR_HEIGHT, choose_gl_backend, label_frame
from sb3_varshare.tasks import make_suite, make_tensor_env, registry

# imageio leaves ffmpeg's pipes to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

Agent = Callable[..., VarShareSAC]
TASKS = ["contextual/swing-up", "contextual/light"]


def frames_of(path: Path) -> list[np.ndarray]:
    with imageio.get_reader(path) as reader:
        return [np.asarray(frame) for frame in reader]


@pytest.fixture
def two_pendulums() -> MultiTaskVecEnv:
    """Episodes of nine steps."""
    return make_multitask_env(TASKS, horizon=9, seed=3)


def test_a_film_for_every_task_and_episode(agent: Agent, two_pendulums: MultiTaskVecEnv, tmp_path: Path) -> None:
    files = record_videos(agent(two_pendulums), two_pendulums, tmp_path / "films", n_episodes=2)
    assert [path.name for path in files] == ["swing-up-0.mp4", "swing-up-1.mp4", "light-0.mp4", "light-1.mp4"]
    films = [frames_of(path) for path in files]
    # One of the first state and one for each step.
    assert [len(film) for film in films] == [10] * 4
    assert {frame.shape for film in films for frame in film} == {(256 + BAR_HEIGHT, 256, 3)}
    first, other = films[0][0].astype(int), films[1][0].astype(int)
    assert abs(first - films[0][9]).max() > 100, "the picture moves"
    assert abs(first[BAR_HEIGHT:] - other[BAR_HEIGHT:]).max() > 100, "episodes differ"
    assert first[:BAR_HEIGHT].min() < 100, "the bar has a text"


def test_equal_seeds_give_equal_films(agent: Agent, two_pendulums: MultiTaskVecEnv, tmp_path: Path) -> None:
    model = agent(two_pendulums)
    films = [
        frames_of(record_videos(model, two_pendulums, tmp_path / str(number), seed=seed)[0])
        for number, seed in enumerate((None, two_pendulums.seed_value, 4))
    ]
    np.testing.assert_array_equal(films[0], films[1])
    assert np.abs(films[0][0].astype(int) - films[2][0]).max() > 100


def test_rows_on_a_device_are_filmed_by_their_plain_envs(agent: Agent, tmp_path: Path) -> None:
    env = make_tensor_env(TASKS, device="cpu", horizon=3)
    (first, _) = record_videos(agent(env), env, tmp_path)
    assert len(frames_of(first)) == 4


def test_the_mark_appears_when_the_task_is_solved() -> None:
    frame = np.full((300, 301, 3), 200, dtype=np.uint8)
    plain, solved, other = label_frame(frame, "a", False), label_frame(frame, "a", True), label_frame(frame, "b", False)
    assert plain.shape == (300 + BAR_HEIGHT, 302, 3)
    np.testing.assert_array_equal(plain[BAR_HEIGHT:, :301], frame)
    np.testing.assert_array_equal(plain[BAR_HEIGHT:], solved[BAR_HEIGHT:])
    assert (solved[4, -8] == (0, 120, 60)).all() and (plain[4, -8] == 255).all()
    assert (plain[:BAR_HEIGHT, :60] != other[:BAR_HEIGHT, :60]).any()


def test_other_tasks_are_refused(agent: Agent, two_pendulums: MultiTaskVecEnv, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="knows the tasks"):
        record_videos(agent(two_pendulums), "contextual", tmp_path)


def test_a_missing_package_is_named(
    agent: Agent, two_pendulums: MultiTaskVecEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = video.importlib.util.find_spec
    monkeypatch.setattr(
        video.importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else find(name)
    )
    with pytest.raises(ImportError, match=r'imageio_ffmpeg.*pip install "sb3_varshare\[video\]"'):
        record_videos(agent(two_pendulums), two_pendulums, tmp_path)


# The tasks of the training


def test_by_default_the_tasks_and_the_protocol_of_the_training_are_filmed(agent: Agent, tmp_path: Path) -> None:
    env = make_multitask_env(TASKS, horizon=4, seed=3)
    model = agent(env)
    own, given = record_videos(model, None, tmp_path / "a", seed=3), record_videos(model, env, tmp_path / "b")
    assert [path.name for path in own] == [path.name for path in given] == ["swing-up-0.mp4", "light-0.mp4"]
    for ours, theirs in zip(own, given, strict=True):
        np.testing.assert_array_equal(frames_of(ours), frames_of(theirs))
    assert len(frames_of(own[0])) == 5


def test_another_protocol_than_that_of_the_training_is_named(agent: Agent, tmp_path: Path) -> None:
    model = agent(make_multitask_env(TASKS, horizon=4))
    with pytest.warns(UserWarning, match=r"another protocol than it is filmed under: contextual\.horizon: 4 against 6"):
        (first, _) = record_videos(model, make_suite(TASKS, horizon=6), tmp_path)
    assert len(frames_of(first)) == 7


def test_tasks_without_a_source_must_be_given(agent: Agent, counting_envs: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tasks of custom cannot be made from their names"):
        record_videos(agent(counting_envs({"a": {}})), None, tmp_path)
    foreign = agent(gym.make("Pendulum-v1"))
    with pytest.raises(ValueError, match="does not tell the sources of its tasks"):
        record_videos(foreign, None, tmp_path)


# The command


def test_the_command(agent: Agent, tmp_path: Path) -> None:
    agent(make_multitask_env(TASKS, horizon=3)).save(tmp_path / "model.zip")
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "sb3_varshare.evaluation.video"]
    options = [str(tmp_path / "model.zip"), "--suite", *TASKS, "--output", str(tmp_path / "films")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "contextual.horizon: 3 against 200" in done.stderr
    films = sorted((tmp_path / "films").iterdir())
    assert sorted(done.stdout.split()) == [str(film) for film in films]
    assert [film.name for film in films] == ["light-0.mp4", "swing-up-0.mp4"]
    assert len(frames_of(films[0])) == 201


def test_the_command_takes_the_models_tasks_by_default(agent: Agent, tmp_path: Path) -> None:
    agent(make_multitask_env(TASKS, horizon=3)).save(tmp_path / "model.zip")
    video.film(tmp_path / "model.zip", output=tmp_path)
    assert len(frames_of(tmp_path / "light-0.mp4")) == 4


PLANETS = """
from sb3_varshare.tasks import TaskSource, register_source
from sb3_varshare.tasks.suites import contextual

def load(horizon=200):
    moon = replace(contextual.load(horizon).tasks["light"], name="moon", source="planets")
    return TaskSource("planets", {"moon": moon}, {}, {"horizon": horizon})

register_source("planets", __name__)
"""


def test_the_command_takes_sources_of_ones_own(agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planets_of_a_test.py").write_text(f"from dataclasses import replace\n{PLANETS}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "SOURCES", dict(registry.SOURCES))
    importlib.import_module("planets_of_a_test")
    agent(make_multitask_env(["planets/moon"], horizon=3)).save(tmp_path / "model.zip")
    registry.SOURCES.pop("planets")
    sys.modules.pop("planets_of_a_test")
    with pytest.raises(ValueError, match="tasks of planets cannot be made from their names"):
        video.film(tmp_path / "model.zip", output=tmp_path)
    video.film(tmp_path / "model.zip", output=tmp_path, modules=("planets_of_a_test",))
    assert len(frames_of(tmp_path / "moon-0.mp4")) == 4


# OpenGL


@pytest.fixture
def headless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No display, and nothing chosen."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    # Not deleted: what the code under test sets would then outlive the test.
    monkeypatch.setenv("MUJOCO_GL", "")


def answer(monkeypatch: pytest.MonkeyPatch, working: str | None) -> list[str]:
    """Let one backend answer the probe; what was asked is noted."""
    asked: list[str] = []

    def run(command: Any, env: dict[str, str], **_: Any) -> Any:
        asked.append(env["MUJOCO_GL"])
        works = env["MUJOCO_GL"] == working
        return subprocess.CompletedProcess(command, 0, "works" if works else "", "" if works else "first\nno library")

    monkeypatch.setattr(video.subprocess, "run", run)
    return asked


@pytest.mark.usefixtures("headless")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere MuJoCo needs no choice")
def test_the_first_backend_that_works_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer(monkeypatch, "osmesa")
    assert choose_gl_backend() == "osmesa" == os.environ["MUJOCO_GL"] and asked == ["egl", "osmesa"]
    assert choose_gl_backend() == "osmesa" and len(asked) == 2, "a choice stays"


@pytest.mark.usefixtures("headless")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere MuJoCo needs no choice")
def test_without_a_backend_both_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, None)
    with pytest.raises(RuntimeError, match=r"MUJOCO_GL=egl or MUJOCO_GL=osmesa.*egl: no library; osmesa: no library"):
        choose_gl_backend()


@pytest.mark.slow
@pytest.mark.usefixtures("headless")
def test_metaworld_is_filmed(agent: Agent, tmp_path: Path) -> None:
    pytest.importorskip("metaworld")
    try:
        choose_gl_backend()
    except RuntimeError as error:
        pytest.skip(str(error))
    env = make_multitask_env("MT1/reach-v3", horizon=3)
    (path,) = record_videos(agent(env), env, tmp_path)
    frames = frames_of(path)
    assert len(frames) == 4 and frames[0].shape[1] >= 256
    assert frames[0][BAR_HEIGHT:].std() > 10, "something is drawn"
