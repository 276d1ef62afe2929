"""The command in this process, and the results that every engine must give."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from grids import UNITS, declare, outcomes

HERE = str(Path(__file__).parent)
Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def faults() -> Iterator[pytest.MonkeyPatch]:
    """Makes the callback known to this process and to those that it starts."""
    pytest.importorskip("rl_zoo3")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.setenv("PYTHONPATH", HERE, prepend=":")
        patch.delenv("FAULT", raising=False)
        yield patch


@pytest.fixture(scope="session")
def reference(faults: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Outcome of the tiny grid, unit by unit in this process."""
    from sb3_varshare.runs.__main__ import main

    folder = tmp_path_factory.mktemp("reference")
    for index in range(len(UNITS)):
        options = ["--output", str(folder / "results"), "--index", str(index)]
        assert main(["unit", str(declare(folder)), *options]) == 0
    return outcomes(folder / "results")


@pytest.fixture
def runs(
    faults: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs a command on a grid's file in a folder of its own; gives the exit status and what was printed."""
    from sb3_varshare.runs.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FAULT_AT", str(tmp_path))

    def run(command: str, *options: str, **changes: Any) -> tuple[int, str]:
        capsys.readouterr()
        status = main([command, str(declare(tmp_path, **changes)), "--output", "results", *options])
        return status, capsys.readouterr().out

    return run
