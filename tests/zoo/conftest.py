"""The commands of the zoo, run in this process, in a folder of their own."""

from pathlib import Path

import pytest
from zoo_commands import SHORT, Zoo


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Zoo:
    """Runs a command and gives what it printed."""
    pytest.importorskip("rl_zoo3")
    from sb3_varshare.zoo.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["zoo"])

    def run(command: str, *options: str) -> str:
        capsys.readouterr()
        main([command, *SHORT, *options])
        return capsys.readouterr().out

    return run
