"""
Peak memory of gradient steps, against the count that the constructor makes.

Every agent takes its steps in a process of its own that holds the libraries and a small replay already; what the
process takes above that is counted, with all libraries' own caches.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch as th
import tyro
from rich.console import Console
from rich.table import Table
from update_agents import Size, Variant, make_agent, make_replay

MIB = 2**20
VARIANTS = (
    Variant("none"),
    Variant("varshare", "full"),
    Variant("varshare", "tied"),
    Variant("varshare", "fixed"),
    Variant("deterministic"),
    Variant("low_rank"),
)


@dataclass(frozen=True)
class Args:
    """
    What to measure.

    :param sizes: tasks and width, as ``10x256``
    :param rows: of all tasks together; the nearest multiple of the number of tasks is taken
    :param updates: gradient steps
    :param json: print one JSON object instead of the table
    :param one: used by the script itself: number of the variant to be
    """

    sizes: tuple[str, ...] = ("10x256", "10x512", "50x256")
    rows: int = 1_020
    updates: int = 4
    json: bool = False
    one: int | None = None


class Peak(threading.Thread):
    """Watches what the process holds, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.highest = psutil.Process().memory_info().rss
        self.is_watching = True

    def run(self) -> None:
        while self.is_watching:
            self.highest = max(self.highest, psutil.Process().memory_info().rss)
            time.sleep(0.001)


def measure(args: Args, size: Size, variant: Variant) -> dict[str, Any]:
    """
    Take gradient steps.

    :param args: how many
    :param size: of the agent
    :param variant: its residual
    """
    device = th.device("cpu")
    replay = make_replay(size.n_tasks, 50_000, device)
    # What the libraries take at their first use is not the agent's.
    make_agent(size._replace(width=16), variant, replay, 2, 1, 1).train(2, size.rows)
    peak = Peak()
    peak.start()
    model = make_agent(size, variant, replay, 2, 1, 1)
    model.train(args.updates, size.rows)
    peak.is_watching = False
    peak.join()
    need = model.memory_need
    return {
        "size": str(size),
        "variant": str(variant),
        "parameters": need.parameters,
        "measured_mib": (peak.highest - peak.before) / MIB,
        "counted_mib": (need.total - need.replay) / MIB,
        "networks_mib": (need.networks + need.target) / MIB,
    }


def main(args: Args) -> None:
    """
    Measure and print.

    :param args: what to measure
    """
    results = []
    for text in args.sizes:
        n_tasks, width = map(int, text.split("x"))
        size = Size(n_tasks, width, max(1, round(args.rows / n_tasks)) * n_tasks)
        if args.one is not None:
            return print(json.dumps(measure(args, size, VARIANTS[args.one])))
        for number in range(len(VARIANTS)):
            flags = ["--sizes", text, "--rows", str(args.rows), "--updates", str(args.updates), "--one", str(number)]
            output = subprocess.run([sys.executable, __file__, *flags], stdout=subprocess.PIPE, check=True).stdout
            results.append(json.loads(output))
    if args.json:
        return print(json.dumps({"settings": asdict(args), "results": results}))
    table = Table(title="MiB above what the process held before, and the count")
    for name in ("size", "variant", "parameters", "measured", "counted", "measured / counted"):
        table.add_column(name)
    for result in results:
        measured, counted = result["measured_mib"], result["counted_mib"]
        numbers = (f"{result['parameters']:,}", f"{measured:.0f}", f"{counted:.0f}", f"{measured / counted:.2f}")
        table.add_row(result["size"], result["variant"], *numbers)
    Console(width=120).print(table)
    return None


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
