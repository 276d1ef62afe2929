"""
Damaged policies: whatever happens to the files of an exported policy, it is refused by name or acts as it did.

Small agents of several adapters are exported, and their folders damaged at random: flipped bits, cuts, insertions,
headers of other files, files in each other's place, edited JSON. Each damaged folder is loaded. What may come out is a
``PolicyFileError`` that names a file of the folder, or a policy whose predictions are the same to the last bit. A part
of the damage is forged: contents are edited and all checksums made anew, as an attacker could. Then the policy may be
another one, but what it predicts must be finite. Anything else is counted as failed, and its folder kept.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import tyro
from safetensors import deserialize

from sb3_varshare import PolicyFileError, VarShareSAC, export_policy, load_policy, make_multitask_env
from sb3_varshare.deployment import ExportedPolicy
from sb3_varshare.deployment.files import TYPES, Arrays, Record, digest, write_json, write_tensors
from sb3_varshare.deployment.folder import BASE, POLICY, TASK

TASKS = ("contextual/light", "contextual/forward", "contextual/reversed")
AGENTS: dict[str, dict[str, Any]] = {
    "varshare": {"actor_depth": 2},
    "pruned": {"normalize_observations": True},
    "low_rank": {"adapter": "low_rank", "rank": 3},
    "embedding": {"adapter": "embedding", "normalize_observations": True},
    "independent": {"adapter": "independent"},
}
ROWS = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
# By name within the folder.
Contents = dict[str, bytes]
Rng = np.random.Generator
# Stands for what Python itself can hardly write.
DEEP = ("too deep", "[" * 100_000 + "]" * 100_000)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 5, 7, 255, 2**20, 2**31, 2**63, 10**400),
    *(0.0, -0.5, 1.5, 1e30, 1e308, float("nan"), float("inf")),
    *("", "x", "factors", "network", "none", "weights", "\ud800", "0" * 10_000, DEEP[0]),
    *([], [0.0], [None], [1, 2, 3], {}, {"x": 1}, [[[[[]]]]]),
)


@dataclass(frozen=True)
class Args:
    """
    What to do.

    :param cases: damaged folders
    :param seed: of the damage
    :param keep: where folders go that should not have come out as they did
    """

    cases: int = 10_000
    seed: int = 0
    keep: Path = Path("runs/policy_fuzz")


def make_folders(where: Path) -> list[Path]:
    """
    :param where: a folder for the policies
    :return: one folder for each of :data:`AGENTS`
    """
    folders = []
    for name, settings in AGENTS.items():
        options = {"actor_width": 12, "critic_width": 8, "critic_depth": 1, "batch_size": 33, **settings}
        env = make_multitask_env(list(TASKS), seed=0)
        model = VarShareSAC("MultiTaskPolicy", env, **options, buffer_size=300, seed=0, device="cpu")
        with th.no_grad():
            for parameter in model.policy.actor.parameters():
                parameter.add_(0.2 * th.randn_like(parameter))
            for mean in model.policy.actor.means() if name == "pruned" else ():
                mean.mul_(th.rand_like(mean) < 0.1)
        folders.append(export_policy(model, where / name))
    return folders


def predictions(policy: ExportedPolicy) -> dict[str, np.ndarray]:
    """
    :param policy: that was loaded
    :return: actions of every task
    """
    return {
        task: policy.predict(ROWS[:, : policy.tasks[task].facts.observation_size], task)[0] for task in policy.tasks
    }


def read(folder: Path) -> Contents:
    """
    :param folder: of a policy
    """
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, contents: Contents) -> None:
    """
    :param folder: which is replaced
    :param contents: what it shall hold
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


# Damage to bytes


def flip(contents: Contents, others: list[Contents], rng: Rng) -> None:
    """Some bits of one file; half of the time near its beginning, where its header is."""
    name = str(rng.choice(list(contents)))
    data = bytearray(contents[name])
    for _ in range(int(rng.integers(1, 9))):
        position = int(rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 600)))
        data[position] ^= 1 << int(rng.integers(8))
    contents[name] = bytes(data)


def cut(contents: Contents, others: list[Contents], rng: Rng) -> None:
    """The end, or a piece in between."""
    name = str(rng.choice(list(contents)))
    data = contents[name]
    start, end = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
    contents[name] = data[:start] if rng.random() < 0.5 else data[:start] + data[end:]


def insert(contents: Contents, others: list[Contents], rng: Rng) -> None:
    """Bytes that do not belong there, or zeros over those that do."""
    name = str(rng.choice(list(contents)))
    data, size = contents[name], int(rng.integers(1, 200))
    place = int(rng.choice([0, 8, len(data), rng.integers(len(data) + 1)]))
    kind = rng.integers(3)
    if kind == 2:
        contents[name] = data[:place] + bytes(len(data[place : place + size])) + data[place + size :]
    else:
        contents[name] = data[:place] + (rng.bytes(size) if kind else bytes(size)) + data[place:]


def splice(contents: Contents, others: list[Contents], rng: Rng) -> None:
    """The header of one file before the tensors of another, or another length of the header."""
    other = others[int(rng.integers(len(others)))] if rng.random() < 0.5 else contents
    first = str(rng.choice([name for name in contents if name.endswith(".safetensors")]))
    second = str(rng.choice([name for name in other if name.endswith(".safetensors")]))
    (header, tensors), (other_header, other_tensors) = _parts(contents[first]), _parts(other[second])
    kind = rng.integers(3)
    if kind == 0:
        contents[first] = header + other_tensors
    elif kind == 1:
        contents[first] = other_header + tensors
    else:
        length = int(rng.choice([0, 1, len(header) - 9, len(header), 2**32, 2**62, rng.integers(10_000)]))
        contents[first] = length.to_bytes(8, "little") + header[8:] + tensors


def _parts(data: bytes) -> tuple[bytes, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return data[:end], data[end:]


def swap(contents: Contents, others: list[Contents], rng: Rng) -> None:
    """Files in each other's place, of another policy, once too often, or gone."""
    names = list(contents)
    first, second = (str(name) for name in rng.choice(names, 2))
    other = others[int(rng.integers(len(others)))]
    kind = rng.integers(5)
    if kind == 0:
        contents[first], contents[second] = contents[second], contents[first]
    elif kind == 1:
        contents[first] = other[first]
    elif kind == 2:
        contents["tasks/more.safetensors"] = other["tasks/light.safetensors"] if rng.random() < 0.5 else contents[first]
    elif kind == 3:
        contents[first] = contents[second]
    else:
        del contents[first]


def edit_json(contents: Contents, others: list[Contents], rng: Rng) -> None:
    """An entry of ``policy.json`` or of a header, with the old checksum."""
    if rng.random() < 0.5:
        record = json.loads(contents["policy.json"])
        edit(record, rng)
        contents["policy.json"] = json.dumps(record, indent=2).replace(json.dumps(DEEP[0]), DEEP[1]).encode()
        return
    name = str(rng.choice([name for name in contents if name.endswith(".safetensors")]))
    header, tensors = _parts(contents[name])
    record = json.loads(header[8:])
    if rng.random() < 0.5:
        edit(record, rng)
    else:
        inner = json.loads(record["__metadata__"]["record"])
        edit(inner, rng)
        record["__metadata__"]["record"] = json.dumps(inner).replace(json.dumps(DEEP[0]), DEEP[1])
    # Lone halves of surrogate pairs are no UTF-8: as a file that was not written by json would have them.
    text = json.dumps(record, ensure_ascii=bool(rng.random() < 0.5)).encode("utf-8", "surrogatepass")
    contents[name] = len(text).to_bytes(8, "little") + text + tensors


def edit(record: Any, rng: Rng) -> None:
    """
    :param record: changed in place: one entry anywhere in it gets another value, goes, or comes
    :param rng: chooses
    """
    places = list(_places(record))
    inner, key = places[int(rng.integers(len(places)))]
    value = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
    kind = rng.integers(4)
    if kind == 0:
        del inner[key]
    elif kind == 1 and isinstance(inner, dict):
        inner["more"] = value
    elif kind == 2 and isinstance(inner[key], int | float) and not isinstance(inner[key], bool):
        inner[key] += int(rng.choice([-1, 1, 100]))
    else:
        inner[key] = value


def _places(record: Any) -> Any:
    for key in list(record) if isinstance(record, dict) else range(len(record)):
        yield record, key
        if isinstance(record[key], dict | list) and record[key]:
            yield from _places(record[key])


# Forged contents: every checksum is right


def forge(folder: Path, contents: Contents, rng: Rng) -> None:
    """
    Write a policy with edited records or tensors and checksums that fit.

    :param folder: of the damaged policy, which holds the contents as they were
    :param contents: of the policy
    :param rng: chooses
    """
    policy = json.loads(contents["policy.json"])
    tensors = {name: _unpacked(data) for name, data in contents.items() if name.endswith(".safetensors")}
    targets: list[tuple[Record, Arrays]] = [(policy, {}), *tensors.values()]
    for _ in range(int(rng.integers(1, 3))):
        record, arrays = targets[int(rng.integers(len(targets)))]
        if arrays and rng.random() < 0.6:
            edit_arrays(arrays, rng)
        else:
            edit(record, rng)
    if rng.random() < 0.5:
        # Sizes that the base agrees with.
        tensors["base.safetensors"] = (policy.get("network", {}), tensors["base.safetensors"][1])
    sha256 = digest(*tensors["base.safetensors"])
    kept = {name: value for name, value in policy.items() if name not in ("format", "version", "sha256")}
    write_json(folder / "policy.json", POLICY, {**kept, "base_sha256": sha256})
    for name, (record, arrays) in tensors.items():
        is_base = name == "base.safetensors"
        record = record if is_base or rng.random() < 0.02 else {**record, "base_sha256": sha256}
        write_tensors(folder / name, BASE if is_base else TASK, record, arrays)


def _unpacked(data: bytes) -> tuple[Record, Arrays]:
    header = json.loads(_parts(data)[0][8:])
    arrays = {
        name: np.frombuffer(tensor["data"], TYPES[tensor["dtype"]]).reshape(tensor["shape"]).copy()
        for name, tensor in deserialize(data)
    }
    return json.loads(header["__metadata__"]["record"]), arrays


def edit_arrays(arrays: Arrays, rng: Rng) -> None:
    """
    :param arrays: of which one becomes another, goes, or comes
    :param rng: chooses
    """
    name = str(rng.choice(list(arrays)))
    array = arrays[name].copy()
    kind = rng.integers(8)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays["more"] = array
    elif kind == 2:
        arrays[name] = array.reshape(-1) if array.ndim > 1 else array[None]
    elif kind == 3:
        arrays[name] = array[:-1] if rng.random() < 0.5 else np.concatenate([array, array[-1:]])
    elif kind == 4:
        arrays[name] = array.astype(rng.choice([np.float32, np.float64, np.uint8, np.uint16, np.int64, np.float16]))
    elif array.size:
        value = rng.choice([np.nan, np.inf, 0, 1, 200, 255]) if array.dtype.kind == "f" else rng.choice([0, 1, 7, 255])
        array.flat[int(rng.integers(array.size))] = value
        arrays[name] = array


DAMAGE: tuple[Callable[[Contents, list[Contents], Rng], None], ...] = (flip, cut, insert, splice, swap, edit_json)


def outcome(folder: Path, expected: dict[str, np.ndarray], is_forged: bool) -> str:
    """
    :param folder: of the damaged policy
    :param expected: actions of the whole one
    :param is_forged: whether another policy may come out
    :return: ``"refused"``, ``"the same"``, ``"another"`` where that may be, or what should not have happened
    """
    try:
        with np.errstate(all="raise", under="ignore"):
            found = predictions(load_policy(folder))
    except PolicyFileError as error:
        is_named = error.path == folder / error.path.relative_to(folder) and str(error.path) in str(error)
        return "refused" if is_named else f"FAILED: refused without a file: {error}"
    except Exception as error:
        return f"FAILED: {type(error).__name__}: {str(error)[:300]}"
    if all(task in expected and np.array_equal(actions, expected[task]) for task, actions in found.items()):
        return "the same"
    if not is_forged:
        return "FAILED: loaded, and acts in another way"
    is_finite = all(np.isfinite(actions).all() for actions in found.values())
    return "another" if is_finite else "FAILED: loaded, and what it predicts is not finite"


def fuzz(cases: int, seed: int, keep: Path | None = None) -> tuple[Counter[tuple[str, str]], float]:
    """
    :param cases: damaged folders
    :param seed: of the damage
    :param keep: where folders go that should not have come out as they did
    :return: how often which damage had which outcome; the longest time that a folder took the processor, s
    """
    rng, counts, slowest = np.random.default_rng(seed), Counter[tuple[str, str]](), 0.0
    th.manual_seed(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folders = make_folders(Path(temporary) / "whole")
        whole = [read(folder) for folder in folders]
        expected = [predictions(load_policy(folder)) for folder in folders]
        damaged = Path(temporary) / "damaged"
        for case in range(cases):
            chosen, kind = int(rng.integers(len(folders))), int(rng.integers(len(DAMAGE) + 2))
            contents, is_forged = dict(whole[chosen]), kind >= len(DAMAGE)
            if is_forged:
                write(damaged, contents)
                try:
                    forge(damaged, contents, rng)
                except (ValueError, RecursionError):
                    # Not even a forger can sign a number that is not finite.
                    counts["forge", "cannot be signed"] += 1
                    continue
            else:
                DAMAGE[kind](contents, [c for i, c in enumerate(whole) if i != chosen], rng)
                write(damaged, contents)
            start = time.process_time()
            result = outcome(damaged, expected[chosen], is_forged)
            slowest = max(slowest, time.process_time() - start)
            counts["forge" if is_forged else DAMAGE[kind].__name__, result] += 1
            if result.startswith("FAILED") and keep is not None:
                shutil.copytree(damaged, keep / f"seed{seed}_case{case}", dirs_exist_ok=True)
    return counts, slowest


def main(args: Args) -> None:
    """Damage, load, and say what came out."""
    th.set_num_threads(1)
    start = time.perf_counter()
    counts, slowest = fuzz(args.cases, args.seed, args.keep)
    outcomes = sorted({result for _, result in counts}, key=lambda result: (result.startswith("FAILED"), result))
    print(f"| damage | {' | '.join(outcomes)} |\n|---|{'---|' * len(outcomes)}")
    for damage in sorted({damage for damage, _ in counts}):
        print(f"| {damage} | {' | '.join(str(counts[damage, result]) for result in outcomes)} |")
    seconds = time.perf_counter() - start
    print(f"\n{counts.total():,} folders in {seconds:.0f} s; the slowest took {1000 * slowest:.0f} ms to load and act.")
    if any(result.startswith("FAILED") for result in outcomes):
        raise SystemExit(f"What should not have happened is in {args.keep}.")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
