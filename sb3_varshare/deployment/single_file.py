"""One task's actor as a single file that runs where this package is not: PyTorch's ``.pt2``, or ONNX."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch as th

from sb3_varshare.deployment.actor_parts import TaskFacts, build
from sb3_varshare.deployment.compose import Source, actor_parts
from sb3_varshare.deployment.plain_actor import PlainActor
from sb3_varshare.varshare_sac.saving import write_atomically

OPSET = 18
INPUT, OUTPUT, BATCH = "observation", "action", "batch"
# Of the distance between a task's bounds: what another runtime's rounding may change.
TOLERANCE = 1e-4
BATCH_SIZES = (1, 2, 33)

Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]


def export_task(model: Source, task: str | int | None, path: str | Path, base: bool = False) -> Path:
    """
    Write the actor of one task as one file, for any number of observations at a time. What was made is run and compared
    with the network before it is written.

    :param model: the agent, or a policy that :func:`~sb3_varshare.load_policy` read
    :param task: its name, or of an agent its index; ``None`` for the shared base without any task
    :param path: ending in ``.pt2`` for ``torch.export.load``, or in ``.onnx`` (needs the extra ``onnx``); a file that
        is replaced stays whole until the new one is
    :param base: the shared base in place of the task's own weights
    :return: the path
    :raises ValueError: another ending, no such task or base, or a parameter that is not finite
    :raises ImportError: the packages of the extra are missing
    :raises RuntimeError: what was made acts in another way than the network
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ValueError(f"The path must end in one of {sorted(WRITERS)}, got {str(path)!r}.")
    parts = actor_parts(model, task, base)
    actor = build(parts, stochastic=False)
    data, run = WRITERS[path.suffix](actor, describe(parts.facts, base or task is None))
    check(actor, run, path)
    write_atomically(path, lambda file: file.write(data))
    return path


def describe(facts: TaskFacts, base: bool) -> dict[str, Any]:
    """
    :param facts: of the task
    :param base: whether it is the shared base that acts
    :return: what a user of the file must know
    """
    low, high = facts.bounds
    return {
        "task": facts.name,
        "full_name": facts.full_name,
        "weights": "base" if base else "task",
        "observation_size": facts.observation_size,
        "action_size": len(low),
        "action_low": list(low),
        "action_high": list(high),
    }


def make_pt2(actor: PlainActor, description: dict[str, Any]) -> tuple[bytes, Run]:
    """
    :param actor: the network
    :param description: what is written beside it, as ``task.json``
    :return: the file, and how it is run
    """
    buffer = io.BytesIO()
    th.export.save(trace(actor), buffer, extra_files={"task.json": json.dumps(description)})
    loaded = th.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), lambda rows: loaded(th.from_numpy(rows)).numpy()


def make_onnx(actor: PlainActor, description: dict[str, Any]) -> tuple[bytes, Run]:
    """
    :param actor: the network
    :param description: what is written into the metadata
    :return: the file, and how it is run
    :raises ImportError: the packages of the extra are missing
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - what torch's exporter is written in
    except ImportError as error:
        raise ImportError(f"ONNX needs {error.name}: pip install 'sb3_varshare[onnx]'.") from error
    with quiet():
        program = th.onnx.export(
            trace(actor),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            # The names of the axes, which the graph itself does not keep.
            dynamic_shapes=({0: BATCH},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        # Where the exporter was when it wrote them.
        part.ClearField("metadata_props")
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in description.items()}
    onnx.helper.set_model_props(model, {**texts, "opset": str(model.opset_import[0].version)})
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda rows: session.run([OUTPUT], {INPUT: rows})[0]


def trace(actor: PlainActor) -> th.export.ExportedProgram:
    """
    :param actor: the network
    :return: it as a graph for any number of observations, with nothing in it of where it was made
    """
    example = (th.zeros(2, actor.observation_size, dtype=th.float32),)
    program = th.export.export(actor, example, dynamic_shapes=({0: th.export.Dim(BATCH)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def check(actor: PlainActor, run: Run, path: Path) -> None:
    """
    :param actor: the network
    :param run: how the file is run
    :param path: of the file, for the message
    :raises RuntimeError: they do not act alike
    """
    generator = np.random.default_rng(0)
    for n_rows in BATCH_SIZES:
        rows = generator.normal(size=(n_rows, actor.observation_size)).astype(np.float32)
        expected, found = actor(th.from_numpy(rows)).numpy(), run(rows)
        reach = 2 * actor.action_map.reach.numpy() * TOLERANCE
        if found.shape != expected.shape or found.dtype != expected.dtype or (abs(found - expected) > reach).any():
            raise RuntimeError(f"{path.name} would not act as the agent does with {n_rows} observations; not written.")


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporter says of itself: a deprecated call, and packages that it could make use of."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*isinstance\\(treespec, LeafSpec\\)", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


WRITERS = {".pt2": make_pt2, ".onnx": make_onnx}
