"""``python -m sb3_varshare.inspection MODEL.zip --output folder``: look inside a saved agent."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sb3_varshare.inspection.extras import load
from sb3_varshare.inspection.report import inspect_agent, print_tables, save_report
from sb3_varshare.varshare_sac import VarShareSAC


def look(model: Path, /, output: Path, signal_to_noise: float = 1.0, trusted: bool = False) -> None:
    """
    Print what each task changed in each layer and how far apart the tasks are, and write tables and figures.

    The tasks' actions are not compared: a saved agent has no replay to compare them on.

    :param model: the zip of the agent
    :param output: folder of the files
    :param signal_to_noise: what |mu| / sigma of a weight must exceed to be counted as above the noise
    :param trusted: read pickled entries of the zip too, which can run any code
    """
    report = inspect_agent(VarShareSAC.load(model, device="cpu", trusted=trusted), None, signal_to_noise)
    console = Console()
    for table in print_tables(report):
        # A line that is too long for the terminal wraps; rich would cut the numbers.
        needed = console.measure(table, options=console.options.update(width=1_000)).maximum
        console.width = max(console.width, needed)
        console.print(table)
    print(f"{len(save_report(report, output))} files in {output}")


def main() -> None:
    """The command."""
    try:
        load("tyro").cli(look)
    except (ValueError, ImportError, OSError) as mistake:
        raise SystemExit(f"{type(mistake).__name__}: {mistake}") from mistake


if __name__ == "__main__":
    main()
