"""How a task's difference to the base is stored: dense, or as positions and values where that takes fewer bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th
from scipy import sparse

from sb3_varshare.adapters.low_rank import LowRank
from sb3_varshare.adapters.none import NoAdapter
from sb3_varshare.deployment.actor_parts import Tensors, model_sizes, plain, shared_weights
from sb3_varshare.deployment.files import Arrays, PolicyFileError
from sb3_varshare.deployment.records import PolicyFacts
from sb3_varshare.varshare_sac.multi_task_algorithm import MultiTaskAlgorithm

FLOAT = np.dtype("<f4")
Shapes = dict[str, tuple[int, ...]]
# Compressed sparse rows: where each row begins, the columns, the values.
PARTS = ("rows", "columns", "values")


def pack(name: str, matrix: npt.NDArray[np.float32]) -> Arrays:
    """
    :param name: of the matrix
    :param matrix: (I, O)
    :return: the matrix, or its exact non-zeros as compressed sparse rows of the smallest integers that fit
    """
    rows = sparse.csr_array(matrix)
    # Not what scipy chose, which is at least 32 bits.
    packed = {
        f"{name}.rows": rows.indptr.astype(np.min_scalar_type(rows.nnz)),
        f"{name}.columns": rows.indices.astype(np.min_scalar_type(matrix.shape[1] - 1)),
        f"{name}.values": rows.data,
    }
    return packed if sum(array.nbytes for array in packed.values()) < matrix.nbytes else {name: matrix}


def unpack(name: str, arrays: Arrays, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """
    :param name: of the matrix
    :param arrays: as :func:`check_packed` let them pass
    :param shape: (I, O)
    :return: (I, O)
    """
    if name in arrays:
        return arrays[name]
    starts, columns, values = (arrays[f"{name}.{part}"] for part in PARTS)
    positions = (columns.astype(np.int64), starts.astype(np.int64))
    dense: npt.NDArray[np.float32] = sparse.csr_array((values, *positions), shape=shape).toarray()
    return dense


def check_packed(path: Path, name: str, arrays: Arrays, shape: tuple[int, int]) -> set[str]:
    """
    :param path: of the file that the arrays are from
    :param name: of a matrix
    :param arrays: what the file holds
    :param shape: (I, O) that the matrix must have
    :return: the names of the arrays that make it up
    :raises PolicyFileError: they are not such a matrix
    """
    if name in arrays:
        check_dense(path, arrays, {name: shape})
        return {name}
    names = [f"{name}.{part}" for part in PARTS]
    if not set(names) <= set(arrays):
        raise PolicyFileError(path, f"it lacks {name}")
    starts, columns, values = (arrays[part] for part in names)
    check_dense(path, arrays, {names[2]: (values.size,)})
    positions = [array.astype(np.int64) for array in (starts, columns) if array.dtype.kind == "u" and array.ndim == 1]
    if len(positions) != 2 or len(starts) != shape[0] + 1 or len(columns) != len(values):
        raise PolicyFileError(path, f"the positions of {name} do not have the shape of a matrix {shape}")
    starts, columns = positions
    ascending = np.diff(columns) > 0
    # The last column of a row may be beyond the first of the next.
    breaks = starts[(starts > 0) & (starts < len(columns))] - 1
    ascending[breaks] = True
    if starts[0] != 0 or starts[-1] != len(columns) or (np.diff(starts) < 0).any():
        raise PolicyFileError(path, f"the rows of {name} do not follow each other from 0 to {len(columns)}")
    if not ascending.all() or (columns >= shape[1]).any():
        raise PolicyFileError(path, f"the columns of {name} do not ascend below {shape[1]}")
    return set(names)


def check_dense(path: Path, arrays: Arrays, shapes: Shapes) -> None:
    """
    :param path: of the file that the arrays are from
    :param arrays: what the file holds
    :param shapes: of those that must be there
    :raises PolicyFileError: one is missing, has another shape or type, or holds a number that is not finite
    """
    for name, shape in shapes.items():
        if name not in arrays:
            raise PolicyFileError(path, f"it lacks {name}")
        array = arrays[name]
        if array.shape != shape or array.dtype != FLOAT:
            raise PolicyFileError(
                path, f"expected {name} to be of shape {shape} and type float32, got {array.shape} and {array.dtype}"
            )
        if not np.isfinite(array).all():
            raise PolicyFileError(path, f"{name} holds a number that is not finite")


def find_difference(model: MultiTaskAlgorithm) -> tuple[str, int]:
    """
    :param model: the agent
    :return: how its actor's tasks differ from the base, and the rank of the factors, 0 without
    """
    adapters: list[Any] = [layer.adapter for layer in model.policy.actor.linears()]
    if any(adapter.per_task_base for adapter in adapters):
        return "network", 0
    if all(isinstance(adapter, NoAdapter) for adapter in adapters):
        return "none", 0
    if all(isinstance(adapter, LowRank) for adapter in adapters):
        return "factors", max(adapter.v.shape[-2] for adapter in adapters)
    return "weights", 0


def model_base(model: MultiTaskAlgorithm, difference: str) -> Arrays:
    """
    What all tasks share.

    :param model: the agent
    :param difference: how the tasks differ from it
    """
    if difference == "network":
        return {}
    base = shared_weights(model)
    if difference == "factors":
        for name, _ in model_sizes(model).linears():
            layer: Any = model.policy.actor.get_submodule(name)
            base[f"{name}.shared_factor"] = plain(layer.adapter.v[0])
    return {name: tensor.numpy() for name, tensor in base.items()}


def model_differences(model: MultiTaskAlgorithm, difference: str, task_ids: list[int]) -> Iterator[Arrays]:
    """
    :param model: the agent
    :param difference: how the tasks differ from the base
    :param task_ids: of the tasks that are wanted
    :return: of each task
    """
    if difference == "network":
        yield from ({n: t.numpy() for n, t in shared_weights(model, task).items()} for task in task_ids)
        return
    stacks: dict[str, th.Tensor] = {}
    for name, _ in model_sizes(model).linears() if difference != "none" else ():
        layer: Any = model.policy.actor.get_submodule(name)
        if difference == "factors":
            stacks[f"{name}.factor"] = layer.adapter.factor.mu
        else:
            # On a base of zeros the composed weight is the residual, to the last bit.
            stacks[f"{name}.residual"] = layer.adapter.merged_weight(th.zeros_like(layer.theta))
    for task in task_ids:
        packed = (pack(name, plain(stack[task]).numpy()) for name, stack in stacks.items())
        yield {name: array for arrays in packed for name, array in arrays.items()}


def base_shapes(facts: PolicyFacts) -> Shapes:
    """
    :param facts: of the policy
    :return: of what its base holds
    """
    return {} if facts.difference == "network" else {**network_shapes(facts), **shared_factors(facts)}


def network_shapes(facts: PolicyFacts) -> Shapes:
    """
    :param facts: of the policy
    :return: of a whole network
    """
    shapes: Shapes = {}
    for name, (inputs, outputs) in facts.sizes.linears():
        shapes |= {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}
    for name in facts.sizes.norms():
        shapes |= {f"{name}.{part}": (facts.sizes.width,) for part in ("weight", "bias")}
    return shapes


def shared_factors(facts: PolicyFacts) -> Shapes:
    """
    :param facts: of the policy
    :return: of the factors that all tasks share
    """
    if facts.difference != "factors":
        return {}
    return {f"{n}.shared_factor": (min(facts.rank, *shape), shape[1]) for n, shape in facts.sizes.linears()}


def packed_shapes(facts: PolicyFacts) -> dict[str, tuple[int, int]]:
    """
    :param facts: of the policy
    :return: of the matrices that make up a task's difference
    """
    if facts.difference == "weights":
        return {f"{name}.residual": shape for name, shape in facts.sizes.linears()}
    if facts.difference == "factors":
        return {f"{n}.factor": (shape[0], min(facts.rank, *shape)) for n, shape in facts.sizes.linears()}
    return {}


def context_shapes(facts: PolicyFacts) -> Shapes:
    """
    :param facts: of the policy
    :return: of what a task has besides its difference
    """
    size = facts.sizes.observation_size
    shapes: Shapes = {"observation_mean": (size,), "observation_variance": (size,)} if facts.normalized else {}
    return {**shapes, "task_input": (facts.sizes.task_input_size,)} if facts.sizes.task_input_size else shapes


def compose_weights(facts: PolicyFacts, base: Arrays, task: Arrays) -> Tensors:
    """
    :param facts: of the policy
    :param base: what all tasks share
    :param task: what the task has; nothing for the base alone
    :return: weights as :class:`~sb3_varshare.deployment.actor_parts.ActorParts` has them
    """
    source = task if facts.difference == "network" else base
    weights = {name: th.from_numpy(source[name]) for name in network_shapes(facts)}
    for packed, shape in packed_shapes(facts).items() if task else ():
        name, kind = packed.rsplit(".", 1)
        difference = th.from_numpy(unpack(packed, task, shape))
        if kind == "factor":
            difference = difference @ th.from_numpy(base[f"{name}.shared_factor"])
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + difference
    return weights
