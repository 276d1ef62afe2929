"""
One gradient step of the whole agent: how long it takes, against what, and where the time goes.

``--compare adapters`` sets every residual against ``adapter="none"``, and that against ordinary PyTorch; ``sac`` sets
the agent against SB3's SAC and sb3-contrib's TQC, small and with equally many parameters; ``tasks`` sets fifty tasks
against ten. Contenders share one process and a replay of random transitions, and step in turns in random order: on a
machine that others use only the ratios of times in the same round mean something. What the machine can do is measured
in every round too.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch as th
import tyro
from plain_bronet import PlainAgent
from rich.console import Console
from rich.table import Table
from roofline import LimitMeter, count_bytes, machine
from sb3_contrib import TQC
from stable_baselines3 import SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from update_agents import Size, Variant, count_parameters, make_agent, make_replay, make_sb3, width_of_equal_size
from update_race import Race
from update_stages import STAGES

Adapter = Literal["plain", "none", "embedding", "varshare", "low_rank", "deterministic", "independent"]
Structure = Literal["full", "tied", "fixed"]
Estimator = Literal["local_reparameterization", "flipout", "shared_noise", "mean"]
PLAIN, NONE, TIED, FULL = Variant("plain"), Variant("none"), Variant("varshare", "tied"), Variant("varshare")
# Where newcomers start, and operator overhead rules.
SMALL = Size(3, 128, 192)
FEW_TASKS, MANY_TASKS = 10, 50
SB3: dict[str, type[OffPolicyAlgorithm]] = {"SAC": SAC, "TQC": TQC}


@dataclass(frozen=True)
class Args:
    """
    What to measure.

    :param compare: residuals with each other, the agent with SAC and TQC, or fifty tasks with ten
    :param adapters: residuals; ``plain`` is the network of ``none`` in ordinary PyTorch
    :param sigma_structures: of ``varshare``
    :param estimators: of ``varshare``
    :param n_tasks: numbers of tasks
    :param widths: of critics and actor
    :param rows: of all tasks together; the nearest multiple of the number of tasks is taken
    :param critic_depth: residual blocks
    :param actor_depth: residual blocks
    :param recenter_every: gradient steps
    :param rounds: turns of each contender
    :param warm_up_rounds: that do not count
    :param updates: gradient steps in a turn, once as they are and once split, after one that does not count
    :param buffer_size: transitions in the replay
    :param device: of networks and replay
    :param threads: of torch; by default what torch takes
    :param matmul_precision: of products of float32, as ``torch.set_float32_matmul_precision`` takes it
    :param compile: let every agent race against its compiled twin too
    :param seed: of the order
    :param json: print one JSON object instead of the tables
    """

    compare: Literal["adapters", "sac", "tasks"] = "adapters"
    adapters: tuple[Adapter, ...] = (
        "plain",
        "none",
        "embedding",
        "varshare",
        "low_rank",
        "deterministic",
        "independent",
    )
    sigma_structures: tuple[Structure, ...] = ("full", "tied", "fixed")
    estimators: tuple[Estimator, ...] = ("local_reparameterization", "flipout")
    n_tasks: tuple[int, ...] = (10,)
    widths: tuple[int, ...] = (256,)
    rows: int = 1_020
    critic_depth: int = 2
    actor_depth: int = 1
    recenter_every: int = 1
    rounds: int = 20
    warm_up_rounds: int = 2
    updates: int = 2
    buffer_size: int = 1_000_000
    device: str = "cpu"
    threads: int | None = None
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    compile: bool = False
    seed: int = 0
    json: bool = False

    def size(self, n_tasks: int, width: int, multiple: int | None = None) -> Size:
        """
        :param n_tasks: T
        :param width: hidden features
        :param multiple: of what the rows shall be one; by default of T
        """
        multiple = multiple or n_tasks
        return Size(n_tasks, width, max(1, round(self.rows / multiple)) * multiple)


def variants(args: Args) -> list[Variant]:
    """
    The residuals that are compared, ``none`` always among them.

    :param args: the factors
    """
    chosen = []
    for adapter in dict.fromkeys(("none", *args.adapters)):
        if adapter == "varshare":
            chosen += [Variant(adapter, s, e) for s in args.sigma_structures for e in args.estimators]
        else:
            chosen.append(Variant(adapter))
    return chosen


def enter(race: Race, args: Args, size: Size, variant: Variant, against: str, name: str = "") -> None:
    """
    Add a residual to a race, and its compiled twin where that is asked for, or note that it does not fit.

    :param race: gets the contender
    :param args: depths, replay and device
    :param size: of networks and batch
    :param variant: the residual, or :data:`PLAIN`
    :param against: name of the contender that its times are divided by
    :param name: in the table; by default the variant's
    """
    name = name or str(variant)
    replay = make_replay(size.n_tasks, args.buffer_size, race.device)
    depths = (args.critic_depth, args.actor_depth, args.recenter_every)
    try:
        model = make_agent(size, NONE if variant == PLAIN else variant, replay, *depths)
    except MemoryError as error:
        race.skipped.append(f"{name}, {size}: {error}")
        return
    race.add(name, against, PlainAgent(model) if variant == PLAIN else model, size.rows, count_bytes(model))
    if args.compile and variant != PLAIN:
        twin = make_agent(size, variant, replay, *depths)
        race.add(f"{name}, compiled", name, twin, size.rows, count_bytes(twin))
        # After its operations were counted, which the counter cannot see in a compiled graph.
        twin.policy.compile_networks()


def race_of_adapters(args: Args, size: Size) -> Race:
    """
    Every residual against ``none``, and that against ordinary PyTorch.

    :param args: the factors
    :param size: of networks and batch
    """
    race = Race(str(size), th.device(args.device))
    for variant in variants(args):
        is_base = variant == NONE and "plain" in args.adapters
        enter(race, args, size, variant, "plain" if is_base else "none")
    return race


def race_of_tasks(args: Args, width: int) -> Race:
    """
    Many tasks against few, with equally many rows.

    :param args: rows
    :param width: hidden features
    """
    size = args.size(FEW_TASKS, width, math.lcm(FEW_TASKS, MANY_TASKS))
    title = f"T = {MANY_TASKS} against {FEW_TASKS}, width {width}, {size.rows:,} rows"
    race = Race(title, th.device(args.device))
    for variant in (NONE, TIED, FULL):
        for n_tasks in (FEW_TASKS, MANY_TASKS):
            name, base = (f"{variant}, T = {n}" for n in (n_tasks, FEW_TASKS))
            enter(race, args, size._replace(n_tasks=n_tasks), variant, base, name)
    return race


def race_of_sb3(args: Args, size: Size, same_width: bool) -> Race:
    """
    The agent against SAC.

    :param args: replay and device
    :param size: of the agent
    :param same_width: SAC and TQC are as wide as the agent; otherwise they have as many parameters as with ``none``
    """
    sized = "of equal width" if same_width else "with as many parameters as none"
    race = Race(f"{size}, SAC and TQC {sized}", th.device(args.device))
    for variant in (NONE, TIED, FULL):
        enter(race, args, size, variant, "SAC")
    parameters = count_parameters(race.contenders[0].agent)
    for name, algorithm in SB3.items():
        width = size.width if same_width else width_of_equal_size(algorithm, size.n_tasks, parameters)
        agent = make_sb3(algorithm, size.n_tasks, width, args.buffer_size, race.device)
        race.add(name, "SAC", agent, size.rows)
    return race


def races(args: Args) -> Iterator[tuple[Race, Size]]:
    """
    Every race, and the size at which the machine's limits are measured. Agents are made when it is their race's turn.

    :param args: what to measure
    """
    if args.compare == "sac":
        equal = args.size(args.n_tasks[0], args.widths[0])
        yield race_of_sb3(args, SMALL, True), SMALL
        yield race_of_sb3(args, equal, False), equal
        return
    for width in args.widths:
        if args.compare == "tasks":
            yield race_of_tasks(args, width), args.size(FEW_TASKS, width)
            continue
        for n_tasks in args.n_tasks:
            size = args.size(n_tasks, width)
            yield race_of_adapters(args, size), size


def _ratio(contender: dict[str, Any], name: str) -> str:
    if name not in contender["ratio"]:
        return ""
    ratio = contender["ratio"][name]
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _ms(contender: dict[str, Any], name: str) -> str:
    return f"{contender['median_ms'][name]:.2f}" if name in contender["median_ms"] else ""


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def table_of_ratios(result: dict[str, Any]) -> Table:
    """
    Times, ratios, operations and bytes.

    :param result: of a race
    """
    table = Table(title=f"{result['title']}: medians, and quartiles of the ratios of times in the same round")
    headers = ("critic step ms", "ratio", "update ms", "ratio", "GFLOP", "weights MB", "of limits")
    table.add_column("contender", no_wrap=True)
    table.add_column("against", no_wrap=True)
    for header in ("parameters", *headers):
        table.add_column(header, justify="right")
    for row in result["contenders"]:
        weight_bytes = row["weight_bytes"]
        table.add_row(
            row["name"],
            row["against"] if row["ratio"] else "",
            f"{row['parameters']:,}",
            *(text for name in ("critic step", "update") for text in (_ms(row, name), _ratio(row, name))),
            f"{row['flops'] / 1e9:.2f}",
            "" if weight_bytes is None else f"{weight_bytes / 1e6:.1f}",
            _percent(row.get("share_of_limits")),
        )
    limits = {name: values["median"] for name, values in result["limits"].items()}
    table.caption = (
        f"Measured limits: {limits['large_product'] / 1e9:.0f} GFLOP/s in a large product, "
        f"{limits['layer_product'] / 1e9:.0f} in a layer's batched product; {limits['bandwidth'] / 1e9:.1f} GB/s. "
        "Of limits: the products and the fewest passes over weights at these limits, one after the other, as share of "
        "the update."
    )
    return table


def table_of_stages(result: dict[str, Any]) -> Table:
    """
    Milliseconds of every stage, and the shares that are to be small.

    :param result: of a race
    """
    table = Table(title="Median ms of the stages of an update")
    table.add_column("contender", no_wrap=True)
    for header in (*STAGES, "share of sample", "of projection"):
        table.add_column(header, justify="right")
    for row in result["contenders"]:
        if "share" in row:
            shares = (_percent(row["share"][name]) for name in ("sample", "projection"))
            table.add_row(row["name"], *(_ms(row, stage) for stage in STAGES), *shares)
    return table


def main(args: Args) -> dict[str, Any]:
    """
    Measure and print.

    :param args: what to measure
    """
    if args.threads is not None:
        th.set_num_threads(args.threads)
    th.set_float32_matmul_precision(args.matmul_precision)
    device, console, results = th.device(args.device), Console(), []
    # A line that is too long for the terminal wraps; rich would cut the numbers.
    console.width = max(console.width, 220)
    for race, size in races(args):
        meter = LimitMeter(size.n_tasks, size.rows, size.width, device)
        result = race.run(meter, args.rounds, args.warm_up_rounds, args.updates, args.seed)
        results.append(result)
        if not args.json:
            console.print(table_of_ratios(result), table_of_stages(result))
            for line in result["skipped"]:
                console.print(f"Skipped: {line}")
        # The next race's agents are made when these are gone.
        del race, meter
        gc.collect()
    report = {"machine": machine(device), "settings": asdict(args), "races": results}
    if args.json:
        print(json.dumps(report))
    else:
        console.print(report["machine"])
    return report


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
