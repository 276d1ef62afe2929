"""Writing the folder of an exported policy, so that a failure loses neither the old one nor half of the new."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_varshare.deployment.actor_parts import model_parts, model_sizes, task_context, task_facts
from sb3_varshare.deployment.exported_policy import ExportedPolicy
from sb3_varshare.deployment.files import Arrays, PolicyFileError, write_json, write_tensors
from sb3_varshare.deployment.folder import (
    BASE,
    BASE_FILE,
    POLICY,
    POLICY_FILE,
    TASK,
    TASKS_FOLDER,
    base_sha256,
    load_policy,
    task_file_name,
)
from sb3_varshare.deployment.records import PolicyFacts, task_record
from sb3_varshare.deployment.residuals import find_difference, model_base, model_differences
from sb3_varshare.varshare_sac.multi_task_algorithm import MultiTaskAlgorithm
from sb3_varshare.varshare_sac.observation_norm import ObservationNorm

ENTRIES = (TASKS_FOLDER, BASE_FILE, POLICY_FILE)


def export_policy(
    model: MultiTaskAlgorithm,
    folder: str | Path,
    overwrite: bool = False,
    tasks: Sequence[str | int] | None = None,
) -> Path:
    """
    Write the actor of a trained agent: the shared base once, and one file per task.

    Into a folder with the same base, tasks that it lacks are added, and those that are the same are left alone. What
    was written is read again and compared with the agent before it goes to its place.

    :param model: the agent
    :param folder: where to
    :param overwrite: replace another policy with all its tasks, or, of one with the same base, the tasks that have
        changed
    :param tasks: names or indices of those that are written; all by default
    :return: the folder
    :raises ValueError: the folder holds something else and ``overwrite`` is not set, there is no such task, or a
        parameter is not finite
    """
    folder = Path(folder)
    if isinstance(tasks, str | int):
        raise ValueError(f"tasks must be a list of names or indices, got {tasks!r}; write tasks=[{tasks!r}].")
    task_ids = list(dict.fromkeys(model.task_id(task) for task in (model.task_names if tasks is None else tasks)))
    facts = policy_facts(model)
    base = model_base(model, facts.difference)
    sha256 = base_sha256(facts, base)
    there = _find_policy(folder, sha256, overwrite)
    with _staging(folder) as staged:
        write_tensors(staged / BASE_FILE, BASE, facts.network_record(), finite(base))
        write_json(staged / POLICY_FILE, POLICY, {**facts.to_record(), "base_sha256": sha256})
        (staged / TASKS_FOLDER).mkdir()
        for task_id, difference in zip(task_ids, model_differences(model, facts.difference, task_ids), strict=True):
            task, context = task_facts(model, task_id), task_context(model, task_id)
            arrays = finite({**difference, **{name: tensor.numpy() for name, tensor in context.items()}})
            path = staged / TASKS_FOLDER / task_file_name(task.name)
            write_tensors(path, TASK, task_record(task, task_id, sha256), arrays)
        written = load_policy(staged)
        _compare(model, written)
        if there is None:
            _replace(staged, folder)
        else:
            _add(written, there, folder, overwrite)
    return folder


def policy_facts(model: MultiTaskAlgorithm) -> PolicyFacts:
    """
    :param model: the agent
    :return: what its tasks have in common besides weights
    """
    sizes, (difference, rank) = model_sizes(model), find_difference(model)
    observations, actions = model.observation_space, model.action_space
    assert isinstance(observations, spaces.Box) and isinstance(actions, spaces.Box)
    low, high = (limit[: sizes.observation_size].astype(np.float32) for limit in (observations.low, observations.high))
    return PolicyFacts(
        model.adapter,  # type: ignore[attr-defined]
        difference,
        rank,
        sizes,
        isinstance(model.policy.observation_norm, ObservationNorm),
        spaces.Box(low, high),
        actions,
        model.protocol,
    )


def finite(arrays: Arrays) -> Arrays:
    """
    :param arrays: of an agent
    :return: the same
    :raises ValueError: a number in them is not finite
    """
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of the agent holds a number that is not finite: has training diverged?")
    return arrays


def _find_policy(folder: Path, sha256: str, overwrite: bool) -> ExportedPolicy | None:
    """The policy in the folder where it has the same base; None where there is nothing, or what may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a policy is a folder: choose another name.")
    if not any(os.path.lexists(folder / entry) for entry in ENTRIES):
        return None
    try:
        there = load_policy(folder)
    except PolicyFileError as error:
        if overwrite:
            return None
        raise ValueError(f"{folder} is not empty and holds no whole policy ({error}); use overwrite=True.") from error
    if there.base_sha256 == sha256:
        return there
    if overwrite:
        return None
    raise ValueError(
        f"{folder} holds another policy, or this one with another base: tasks {there.task_names}. Choose another "
        "folder, or replace it with overwrite=True."
    )


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder within the folder, so that what is written there can be moved to its place and cannot be half there."""
    is_new = not folder.exists()
    staged = folder / f".export-{uuid.uuid4().hex}"
    staged.mkdir(parents=True)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _compare(model: MultiTaskAlgorithm, written: ExportedPolicy) -> None:
    """Refuse to hand over files that are not the agent."""
    for task in written.task_names:
        ours, theirs = model_parts(model, task), written.actor_parts(task)
        for name, tensor in ours.weights.items():
            # Factors are multiplied in another order here than there.
            if not th.allclose(tensor, theirs.weights[name], rtol=1e-4, atol=1e-5):
                raise RuntimeError(f"What was written of task {task!r} is not the agent's {name}; nothing was changed.")


def _add(written: ExportedPolicy, there: ExportedPolicy, folder: Path, overwrite: bool) -> None:
    """Move the files of tasks that are new, or have changed, into a folder of the same base."""
    (folder / TASKS_FOLDER).mkdir(exist_ok=True)
    added, changed = {}, {}
    for name, task in written.tasks.items():
        old = there.tasks.get(name)
        if old is None:
            added[name] = (task.path, folder / TASKS_FOLDER / task.path.name)
        elif not old.is_same(task):
            changed[name] = (task.path, old.path)
    if changed and not overwrite:
        raise ValueError(f"{folder} holds other weights of {list(changed)}; replace them with overwrite=True.")
    for _, target in added.values():
        if os.path.lexists(target):
            raise ValueError(f"{target} is the file of another task: give it another name.")
    for source, target in (*added.values(), *changed.values()):
        os.replace(source, target)


def _replace(staged: Path, folder: Path) -> None:
    """
    Put the new policy in the place of what is there, or of nothing; on an error everything is moved back.

    Were the process killed in between, the old one would be whole in ``.replaced-...``, and the folder no policy.
    """
    old = folder / f".replaced-{uuid.uuid4().hex}"
    old.mkdir()
    # A folder is a policy as long as it has its JSON: that goes first and comes last.
    moves = [(folder / entry, old / entry) for entry in reversed(ENTRIES) if os.path.lexists(folder / entry)]
    moves += [(staged / entry, folder / entry) for entry in ENTRIES]
    try:
        for source, target in moves:
            os.replace(source, target)
    except BaseException:
        for source, target in reversed(moves):
            if os.path.lexists(target) and not os.path.lexists(source):
                os.replace(target, source)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)
