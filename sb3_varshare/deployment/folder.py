"""
The folder of an exported policy, read: what all tasks share once, and one file per task.

``policy.json`` says what the policy is, ``base.safetensors`` holds what all tasks share, and each file in ``tasks/``
one task's difference to it. A task's file says by checksum which base it belongs to, and nothing else knows the tasks:
one can be added, sent or deleted by itself.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from sb3_varshare.deployment.exported_policy import ExportedPolicy, StoredTask
from sb3_varshare.deployment.files import Arrays, PolicyFileError, digest, read_json, read_tensors
from sb3_varshare.deployment.records import Checked, PolicyFacts, read_policy_facts, read_task_facts
from sb3_varshare.deployment.residuals import (
    Shapes,
    base_shapes,
    check_dense,
    check_packed,
    context_shapes,
    network_shapes,
    packed_shapes,
)

POLICY, BASE, TASK = "sb3_varshare policy", "sb3_varshare base", "sb3_varshare task"
POLICY_FILE, BASE_FILE, TASKS_FOLDER, SUFFIX = "policy.json", "base.safetensors", "tasks", ".safetensors"
PLAIN_NAME = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,99}")
# What Windows keeps for devices, whatever the suffix.
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def task_file_name(task: str) -> str:
    """
    A name for the file of a task: its own where every file system can hold that, else a readable part and a checksum.

    :param task: any text
    """
    if PLAIN_NAME.fullmatch(task) and not DEVICES.fullmatch(task):
        return task + SUFFIX
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", task).strip("-")[:60]
    checksum = hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{readable}~{checksum}{SUFFIX}" if readable else f"{checksum}{SUFFIX}"


def base_sha256(facts: PolicyFacts, base: Arrays) -> str:
    """
    :param facts: of the policy
    :param base: what all tasks share
    :return: what files of tasks name as their base
    """
    return digest(facts.network_record(), base)


def load_policy(folder: str | Path) -> ExportedPolicy:
    """
    Read a policy that :func:`~sb3_varshare.export_policy` wrote. Every file is read and checked here; no code from any
    of them runs.

    :param folder: with ``policy.json``, ``base.safetensors`` and ``tasks/``
    :return: acts for all tasks whose files are there
    :raises PolicyFileError: a file is missing, damaged, of another kind, or of another policy
    """
    folder = Path(folder)
    facts, sha256 = read_policy(folder)
    base = read_base(folder, facts, sha256)
    tasks = [read_task(path, facts, sha256) for path in task_paths(folder)]
    names: dict[str, Path] = {}
    for task in tasks:
        if task.facts.name in names:
            raise PolicyFileError(task.path, f"its task {task.facts.name!r} is also that of {names[task.facts.name]}")
        names[task.facts.name] = task.path
    return ExportedPolicy(facts, base, sha256, sorted(tasks, key=lambda task: (task.position, task.facts.name)))


def read_policy(folder: Path) -> tuple[PolicyFacts, str]:
    """
    :param folder: of the policy
    :return: what its tasks have in common, and the checksum of its base
    :raises PolicyFileError: it is none
    """
    path = folder / POLICY_FILE
    record = read_json(path, POLICY)
    return read_policy_facts(path, record), Checked(path, record).text("base_sha256")


def read_base(folder: Path, facts: PolicyFacts, sha256: str) -> Arrays:
    """
    :param folder: of the policy
    :param facts: what its tasks have in common
    :param sha256: checksum of its base
    :return: what all tasks share
    :raises PolicyFileError: it is not there, or not that
    """
    path, shapes = folder / BASE_FILE, base_shapes(facts)
    record, arrays = read_tensors(path, BASE, n_bytes(shapes))
    if record != facts.network_record() or base_sha256(facts, arrays) != sha256:
        raise PolicyFileError(path, f"it is not the base that {POLICY_FILE} beside it names")
    check_dense(path, arrays, shapes)
    check_names(path, arrays, set(shapes))
    return arrays


def read_task(path: Path, facts: PolicyFacts, sha256: str) -> StoredTask:
    """
    :param path: of the task's file
    :param facts: what the policy's tasks have in common
    :param sha256: checksum of its base
    :raises PolicyFileError: it is not the file of a task of this policy
    """
    matrices, dense = packed_shapes(facts), context_shapes(facts)
    if facts.difference == "network":
        dense |= network_shapes(facts)
    record, arrays = read_tensors(path, TASK, n_bytes({**matrices, **dense}))
    if record.get("base_sha256") != sha256:
        raise PolicyFileError(
            path, "its task belongs to another base: to another policy, or to this one at another time"
        )
    task, position = read_task_facts(path, record, facts.sizes)
    check_dense(path, arrays, dense)
    found = set(dense).union(*(check_packed(path, name, arrays, shape) for name, shape in matrices.items()))
    check_names(path, arrays, found)
    if "observation_variance" in dense and (arrays["observation_variance"] < 0).any():
        raise PolicyFileError(path, "observation_variance is negative somewhere")
    return StoredTask(path, task, position, arrays)


def task_paths(folder: Path) -> list[Path]:
    """
    :param folder: of a policy
    :return: of the files of its tasks
    :raises PolicyFileError: their folder cannot be read
    """
    tasks = folder / TASKS_FOLDER
    try:
        # Git and archives keep no empty folders: none is as good as an empty one.
        return sorted(path for path in tasks.iterdir() if path.suffix == SUFFIX) if tasks.exists() else []
    except OSError as error:
        raise PolicyFileError(tasks, f"cannot be read as a folder ({error})") from error


def check_names(path: Path, arrays: Arrays, known: set[str]) -> None:
    """
    :param path: of the file that the arrays are from
    :param arrays: what it holds
    :param known: what it should hold
    :raises PolicyFileError: it holds more
    """
    more = sorted(set(arrays) - known)
    if more:
        raise PolicyFileError(path, f"it holds more than belongs there: {', '.join(more)[:100]}")


def n_bytes(shapes: Shapes | dict[str, tuple[int, int]]) -> int:
    """
    :param shapes: of arrays of single precision
    :return: what they take at most; packed ones take less
    """
    return 4 * sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
