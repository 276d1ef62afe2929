"""A study of the tuning command in optuna-dashboard, seen by a browser without a display."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

pytest.importorskip("rl_zoo3")
pytest.importorskip("tyro")
pytest.importorskip("optuna_dashboard")

import numpy as np
import optuna
from PIL import Image
from tuning_commands import RUN

from sb3_varshare.tuning.__main__ import main

# Set by `make test-dashboard`, which looks for it.
BROWSER = os.environ.get("TUNING_BROWSER")
STORAGE, STUDY = "sqlite:///study.db", "beta and sigma"
PATIENCE = 60
# Of optuna-dashboard's title bar, and of the bars in a figure by plotly.
TITLE_BLUE, BAR_BLUE = (33, 150, 243), (99, 110, 250)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="make test-dashboard has a browser")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> optuna.Study:
    """Of two trials, in a file in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    main([*RUN, "--storage", STORAGE, "--study-name", STUDY, "--n-trials", "2", "--pruner", "none", "--threads", "1"])
    return optuna.load_study(storage=STORAGE, study_name=STUDY)


@pytest.fixture
def address(study: optuna.Study) -> Iterator[str]:
    """Of the dashboard, as the documented command starts it, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("optuna-dashboard")
    server = subprocess.Popen(
        [command, STORAGE, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, server)
        yield url
    finally:
        server.kill()
        server.communicate()


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urlopen(f"{url}/api/studies"):
                return
        except URLError:
            assert server.poll() is None, server.communicate()[1]
            assert time.monotonic() < end, "The dashboard does not answer."
            time.sleep(0.2)


def look_at(url: str, picture: Path) -> str:
    """Saves a picture of a page once its requests have been answered, and gives its elements."""
    assert BROWSER is not None
    # Chromium's sandbox refuses to start as root. Its clock stands still while a request is under way.
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=20000")
    profile = f"--user-data-dir={picture.with_suffix('.profile')}"
    seen = subprocess.run(
        [BROWSER, *options, profile, "--window-size=1400,1800", f"--screenshot={picture}", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert seen.returncode == 0 and picture.exists(), seen.stderr
    return seen.stdout


def share_of(color: tuple[int, int, int], pixels: np.ndarray) -> float:
    """Of the pixels (H, W, 3) in just this color."""
    return float((pixels == np.array(color)).all(axis=-1).mean())


def test_the_page_of_a_study_shows_its_name_its_best_trial_and_figures(
    address: str, study: optuna.Study, tmp_path: Path
) -> None:
    with urlopen(f"{address}/api/studies") as answer:
        (summary,) = json.load(answer)["study_summaries"]
    page = look_at(f"{address}/dashboard/studies/{summary['study_id']}", tmp_path / "page.png")
    text = re.sub(r"<[^>]+>", " ", page)
    assert STUDY in text and f"Best Trial (number={study.best_trial.number})" in text
    assert str(study.best_value) in text
    for name, value in study.best_params.items():
        assert f"{name}: {value}" in text
    for title in ("History", "Hyperparameter Importance", "Timeline", "Intermediate values"):
        assert title in text
    # Drawn by plotly, each of several layers.
    assert page.count('class="main-svg"') >= 4

    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape == (1800, 1400, 3) and pixels.std() > 20
    # The bars of the importance of the two parameters fill more than the title.
    assert share_of(TITLE_BLUE, pixels) > 0.02 and share_of(BAR_BLUE, pixels) > 0.02
