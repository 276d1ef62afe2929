"""Where results lie: a file for each finished unit, written whole or not at all."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import psutil

from sb3_varshare.runs.unit import Result, Unit
from sb3_varshare.tuning.files import write_whole
from sb3_varshare.tuning.progress import FAILURE
from sb3_varshare.tuning.search_space import name_differences

State = Literal["finished", "running", "failed", "missing"]
MARK = "runs.json"


class Store:
    """
    A folder of results.

    :param folder: made when something is written
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self, name: str, units: Iterable[Unit]) -> None:
        """
        :param name: of the grid
        :param units: of the grid
        :raises ValueError: the folder holds results of another grid, or of other settings
        """
        mark = self.folder / MARK
        if mark.exists() and (found := _read(mark)["name"]) != name:
            raise ValueError(
                f"The folder {self.folder} holds results of the grid {found!r}, not {name!r}; use another."
            )
        for unit in units:
            self.is_finished(unit)

    def claim(self, name: str) -> None:
        """
        :param name: of the grid whose results come here
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / MARK).exists():
            write_whole(self.folder / MARK, json.dumps({"name": name}))

    def path(self, unit: Unit, kind: str = "") -> Path:
        """
        :param unit: of the grid
        :param kind: nothing for its results, ``.failed`` or ``.running``
        """
        return self.folder / unit.suite / f"{unit.arm}_seed{unit.seed}{kind}.json"

    def is_finished(self, unit: Unit) -> bool:
        """
        :param unit: of the grid
        :raises ValueError: its file is of other settings
        """
        if not self.path(unit).exists():
            return False
        self.result(unit)
        return True

    def count(self, units: Iterable[Unit]) -> int:
        """
        :param units: of the grid
        :return: how many are finished
        """
        return sum(self.path(unit).exists() for unit in units)

    def result(self, unit: Unit) -> Result:
        """
        :param unit: that is finished
        :raises ValueError: its file is of other settings
        """
        path = self.path(unit)
        found = _read(path)
        if found["identity"] != unit.identity:
            changed = "; ".join(name_differences(found["settings"], unit.settings, "the file"))
            raise ValueError(
                f"{path} holds results of other settings ({changed}). Use another folder, undo the change "
                "of the declaration, or move the file away to run the unit anew."
            )
        return found

    def state(self, unit: Unit) -> tuple[State, str]:
        """
        :param unit: of the grid
        :return: state, and where it runs or why it failed
        """
        if self.is_finished(unit):
            return "finished", ""
        if (mark := _read_if_there(self.path(unit, ".running"))) and _is_alive(mark):
            return "running", f"process {mark['pid']} on {mark['host']}"
        if failed := _read_if_there(self.path(unit, ".failed")):
            return "failed", failed[FAILURE]
        # Since the first look it may have ended.
        return ("finished", "") if self.is_finished(unit) else ("missing", "")

    def begin(self, unit: Unit) -> None:
        """
        Note that a unit runs in this process, or in one that this process has started.

        :param unit: of the grid
        """
        path = self.path(unit, ".running")
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        write_whole(path, json.dumps(own))

    def record(self, unit: Unit, result: Result) -> None:
        """
        :param unit: that has ended
        :param result: its results, or the reason why there are none
        """
        own, failed = self.path(unit), self.path(unit, ".failed")
        own.parent.mkdir(parents=True, exist_ok=True)
        write_whole(failed if FAILURE in result else own, json.dumps(result))
        if FAILURE not in result:
            failed.unlink(missing_ok=True)
        self.path(unit, ".running").unlink(missing_ok=True)


def _is_alive(mark: dict[str, Any]) -> bool:
    """Of a process on another machine nobody can tell from here."""
    if mark["host"] != socket.gethostname():
        return True
    try:
        return bool(psutil.Process(mark["pid"]).create_time() == mark["started"])
    except psutil.NoSuchProcess:
        return False


def _read_if_there(path: Path) -> dict[str, Any] | None:
    """Another process may remove it at any moment."""
    try:
        return _read(path)
    except FileNotFoundError:
        return None


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
