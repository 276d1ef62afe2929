"""
Films of every task that a model plays, without a display.

``python -m sb3_varshare.evaluation.video model.zip --output videos``
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from sb3_varshare.tasks.multi_task_env import MultiTaskEnv
from sb3_varshare.tasks.protocol import protocol_differences
from sb3_varshare.tasks.registry import make_suite, remake_suite
from sb3_varshare.tasks.suite import TaskSuite
from sb3_varshare.varshare_sac import VarShareSAC

BACKENDS = ("egl", "osmesa")
# Sources whose tasks draw without OpenGL.
DRAWN_BY_HAND = ("contextual",)
PROBE = "import mujoco; context = mujoco.GLContext(64, 64); context.make_current(); print('works', flush=True)"
PROBE_SECONDS = 120
SMALLEST_WIDTH = 256
BAR_HEIGHT, TEXT_SIZE = 28, 16


def choose_gl_backend() -> str | None:
    """
    Make MuJoCo draw without a display: set ``MUJOCO_GL`` to the first backend that works here, in a process of its own.

    Nothing is changed where there is a display, where the variable is set, or where MuJoCo is not installed.

    :return: what ``MUJOCO_GL`` is now, None where it is not set
    :raises RuntimeError: there is no display, and neither EGL nor OSMesa works
    """
    chosen = os.environ.get("MUJOCO_GL")
    has_display = not sys.platform.startswith("linux") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    if chosen or has_display or importlib.util.find_spec("mujoco") is None:
        return chosen
    reasons = []
    for backend in BACKENDS:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        # EGL may complain when the interpreter ends, long after the context was made.
        if "works" in probe.stdout:
            os.environ["MUJOCO_GL"] = backend
            return backend
        reasons.append(f"{backend}: {(probe.stderr.strip().splitlines() or ['no message'])[-1]}")
    raise RuntimeError(
        "There is no display, and MuJoCo can draw neither by EGL nor by OSMesa here; install libegl1 (with a GPU "
        f"driver or Mesa) or libosmesa6, and set MUJOCO_GL=egl or MUJOCO_GL=osmesa. They said: {'; '.join(reasons)}"
    )


def label_frame(frame: np.ndarray, text: str, solved: bool) -> np.ndarray:
    """
    Put a bar with a text above a picture, and a green mark at its right end once the task is solved.

    :param frame: (height, width, 3)
    :param text: in the bar
    :param solved: whether it is
    :return: (bar + height, width, 3), both even; a small picture is enlarged by a whole factor
    """
    from PIL import Image, ImageDraw, ImageFont

    factor = max(1, -(-SMALLEST_WIDTH // frame.shape[1]))
    picture = frame.repeat(factor, 0).repeat(factor, 1)
    height, width = (size + size % 2 for size in picture.shape[:2])
    canvas = np.full((BAR_HEIGHT + height, width, 3), 255, dtype=np.uint8)
    canvas[BAR_HEIGHT : BAR_HEIGHT + picture.shape[0], : picture.shape[1]] = picture
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(TEXT_SIZE)
    draw.text((6, 5), text, fill=(20, 20, 20), font=font)
    if solved:
        left = width - 8 - draw.textlength("solved", font=font)
        draw.rectangle((left - 6, 2, width - 3, BAR_HEIGHT - 3), fill=(0, 120, 60))
        draw.text((left, 5), "solved", fill=(255, 255, 255), font=font)
    return np.asarray(image)


def record_videos(
    model: Any,
    env: Any,
    folder: str | Path,
    n_episodes: int = 1,
    deterministic: bool = True,
    seed: int | None = None,
    fps: int = 30,
) -> list[Path]:
    """
    Film every task: a file per task and episode, each frame labelled with the task, the step and whether it is solved.

    The episodes are of evaluation streams; the environments that are given are not touched.

    :param model: a :class:`~sb3_varshare.VarShareSAC`, or any SB3 model that was trained on the suite
    :param env: a multi-task env whose suite is played, whatever :func:`sb3_varshare.tasks.make_suite` takes, or None
        for the tasks that the model was trained on, set up by the options in its protocol
    :param folder: where to; made if it is not there
    :param n_episodes: of each task
    :param deterministic: act with the mean of the policy
    :param seed: root of the randomness; by default that of the environments, or 0
    :param fps: frames per second; every step of the environment is a frame
    :return: the files, ``<task>-<episode>.mp4``, in the order of tasks and episodes
    :raises ImportError: the extra ``video`` is not installed
    :raises RuntimeError: nothing here can draw without a display
    :raises ValueError: the model knows other tasks, or its own cannot be made from their names
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, got {n_episodes}.")
    writer_of = _writer()
    inner = getattr(env, "unwrapped", env)
    suite = _suite(model, env)
    if any(task.source not in DRAWN_BY_HAND for task in suite.tasks):
        choose_gl_backend()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seed = getattr(inner, "seed_value", 0) if seed is None else seed
    player = MultiTaskEnv(suite, seed, "evaluation", render_mode="rgb_array")
    files = []
    try:
        for task_id, name in enumerate(suite.task_names):
            for episode in range(n_episodes):
                path = folder / f"{name.replace('/', '_')}-{episode}.mp4"
                with writer_of(path, fps) as writer:
                    _film(model, player, task_id, name, deterministic, writer)
                files.append(path)
    finally:
        player.close()
    return files


def _suite(model: Any, env: Any) -> TaskSuite:
    """What is played; a warning says what differs from the training."""
    if env is None:
        if not getattr(model, "full_names", None):
            raise ValueError("The model does not tell the sources of its tasks; give the environments or the suite.")
        suite = remake_suite(model.full_names, model.protocol)
    else:
        found = getattr(getattr(env, "unwrapped", env), "suite", None)
        suite = found if isinstance(found, TaskSuite) else make_suite(env)
    known = getattr(model, "task_names", None)
    if known is not None and list(known) != list(suite.task_names):
        raise ValueError(f"The model knows the tasks {known}, the suite has {list(suite.task_names)}, in order.")
    differences = protocol_differences(model, suite.full_protocol) if hasattr(model, "protocol") else []
    if differences:
        text = f"The model was trained under another protocol than it is filmed under: {'; '.join(differences)}"
        warnings.warn(text, stacklevel=3)
    return suite


def _film(model: Any, player: MultiTaskEnv, task_id: int, name: str, deterministic: bool, writer: Any) -> None:
    """One episode into an open file."""
    observation, info = player.reset(options={"task": task_id})
    step, is_over = 0, False
    while True:
        solved = bool(info.get("is_success", False))
        writer.append_data(label_frame(player.render(), f"{name}   step {step}", solved))
        if is_over:
            return
        action, _ = model.predict(observation, deterministic=deterministic)
        observation, _, terminated, truncated, info = player.step(action)
        step, is_over = step + 1, terminated or truncated


def _writer() -> Any:
    """A function that opens an mp4 file for frames."""
    missing = [name for name in ("imageio", "imageio_ffmpeg", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f'Films need {", ".join(missing)}, which is not installed; run pip install "sb3_varshare[video]".'
        )
    import imageio.v2 as imageio

    def open_file(path: Path, fps: int) -> Any:
        # Frames are of even sizes already; the default would enlarge them to multiples of 16.
        return imageio.get_writer(path, fps=fps, codec="libx264", macro_block_size=2)

    return open_file


def film(
    model: Path,
    /,
    suite: tuple[str, ...] = (),
    output: Path = Path("videos"),
    protocol: str | None = None,
    modules: tuple[str, ...] = (),
    episodes: int = 1,
    seed: int = 0,
    fps: int = 30,
    stochastic: bool = False,
) -> None:
    """
    Film every task of a trained model.

    :param model: the zip of the agent
    :param suite: a suite or the tasks to play; by default those of the model's training
    :param output: folder of the films
    :param protocol: named choice of options of the suite; by default that of the model's training, or with ``--suite``
        the suite's own
    :param modules: to import first, which register sources of one's own
    :param episodes: of each task
    :param seed: root of the randomness
    :param fps: frames per second
    :param stochastic: draw actions from the policy instead of taking its mean
    """
    for module in modules:
        importlib.import_module(module)
    agent = VarShareSAC.load(model, device="cpu")
    names = suite or (agent.full_names if protocol else ())
    tasks = make_suite(names[0] if len(names) == 1 else names, protocol=protocol) if names else None
    for path in record_videos(agent, tasks, output, episodes, not stochastic, seed, fps):
        print(path)


def main() -> None:
    """The command."""
    try:
        import tyro
    except ImportError as error:
        raise ImportError('The command needs tyro; run pip install "sb3_varshare[video]".') from error
    tyro.cli(film)


if __name__ == "__main__":
    main()
