"""
The model file: SB3's zip, with everything that is not a tensor as plain JSON.

SB3 itself pickles every attribute that is not JSON, and unpickling runs code from the file. Here the types that an
agent normally holds are written as tagged JSON. Anything else (an action noise, a schedule of one's own) is pickled as
SB3 does it, and then the file only loads with ``trusted=True``.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import uuid
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.save_util import json_to_data, load_from_zip_file, recursive_setattr
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

TAG = ":type_tag:"
PICKLED = ":serialized:"
ENT_COEF_OPTIMIZER = "ent_coef_optimizer"
# What zipfile and json raise for files that are none, cut short, or damaged.
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    ValueError,
    RuntimeError,
    EOFError,
    OSError,
)


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.ravel().tolist()}


def _decode_array(value: dict[str, Any]) -> np.ndarray:
    return np.array(value["values"], dtype=value["dtype"]).reshape(value["shape"])


def _encode_box(box: spaces.Box) -> dict[str, Any]:
    return {"low": encode(box.low), "high": encode(box.high)}


def _decode_box(value: dict[str, Any]) -> spaces.Box:
    low = decode(value["low"])
    return spaces.Box(low, decode(value["high"]), dtype=low.dtype)


# Type -> (tag, to plain JSON values, back)
_CODECS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    np.ndarray: ("array", _encode_array, _decode_array),
    # What was last observed on a device; it goes on as a tensor when training does.
    th.Tensor: ("array", lambda tensor: _encode_array(tensor.cpu().numpy()), _decode_array),
    spaces.Box: ("box", _encode_box, _decode_box),
    TrainFreq: (
        "train_freq",
        lambda freq: [freq.frequency, freq.unit.value],
        lambda value: (value[0], value[1]),
    ),
    deque: (
        "deque",
        lambda queue: {"maxlen": queue.maxlen, "items": [encode(item) for item in queue]},
        lambda value: deque([decode(item) for item in value["items"]], maxlen=value["maxlen"]),
    ),
    LinearSchedule: (
        "linear_schedule",
        lambda schedule: [schedule.start, schedule.end, schedule.end_fraction],
        lambda value: LinearSchedule(*value),
    ),
    ConstantSchedule: ("constant_schedule", lambda schedule: schedule.val, ConstantSchedule),
    FloatSchedule: (
        "float_schedule",
        lambda schedule: encode(schedule.value_schedule),
        lambda value: FloatSchedule(decode(value)),
    ),
}
_DECODERS = {tag: back for tag, _, back in _CODECS.values()}


def encode(value: Any) -> Any:
    """
    Plain JSON values for what an agent normally holds; anything else comes back as it is.

    :param value: an attribute of the agent
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in _CODECS:
        tag, to_plain, _ = _CODECS[type(value)]
        return {TAG: tag, "value": to_plain(value)}
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """
    The inverse of :func:`encode`; tuples come back as lists.

    :param value: plain JSON values
    :raises ValueError: a tag is unknown
    """
    if isinstance(value, dict) and TAG in value:
        if value[TAG] not in _DECODERS:
            raise ValueError(f"Unknown type {value[TAG]!r}, expected one of {sorted(_DECODERS)}; is the file newer?")
        return _DECODERS[value[TAG]](value["value"])
    if isinstance(value, dict):
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


def read_data(
    path: str | pathlib.Path | io.BufferedIOBase, trusted: bool, replaced: Iterable[str] = ()
) -> dict[str, Any]:
    """
    The attributes stored in a model file.

    :param path: the zip, with or without its suffix, or an open file
    :param trusted: allow pickled attributes, which can run any code
    :param replaced: attributes that are not needed
    :raises ValueError: the file is not a model of this package, or holds pickled attributes and is not trusted
    """
    raw = _read_json(path)
    if "adapter" not in raw or "task_names" not in raw:
        raise ValueError(f"{path} is not a VarShareSAC model: it has no adapter and no task names.")
    for name in replaced:
        raw.pop(name, None)
    pickled = sorted(name for name, value in raw.items() if isinstance(value, dict) and PICKLED in value)
    if pickled and not trusted:
        raise ValueError(
            f"The file holds pickled attributes {pickled}, and unpickling can run any code; "
            "if you know where it comes from, load it with trusted=True."
        )
    data: dict[str, Any] = decode(json_to_data(json.dumps(raw)) if pickled else raw)
    return data


def _read_json(path: str | pathlib.Path | io.BufferedIOBase) -> dict[str, Any]:
    if isinstance(path, str | pathlib.Path):
        path = resolve_path(path)
        if not path.exists():
            raise FileNotFoundError(f"There is no model file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            data: dict[str, Any] = json.loads(archive.read("data"))
            damaged = archive.testzip()
            if damaged:
                raise ValueError(f"wrong checksum of {damaged}")
            return dict(data)
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a readable model file ({error}); is it damaged or cut short?") from error
    finally:
        if not isinstance(path, pathlib.Path):
            path.seek(0)


def restore(
    model: Any,
    path: str | pathlib.Path | io.BufferedIOBase,
    device: th.device | str,
    print_system_info: bool,
    replaced: Iterable[str],
) -> None:
    """
    Put the tensors of a model file into an agent that was built with the file's attributes.

    :param model: the agent
    :param path: the zip as :func:`resolve_path` gives it, or an open file
    :param device: where the tensors shall live
    :param print_system_info: print the system that the file was saved on
    :param replaced: attributes that differ from the file's; an entropy coefficient among them starts anew
    :raises ValueError: the tensors do not fit the agent
    """
    _, params, variables = load_from_zip_file(path, device=device, load_data=False, print_system_info=print_system_info)
    if {"ent_coef", "share_ent_coef"} & set(replaced):
        params.pop(ENT_COEF_OPTIMIZER, None)
        params.update({name: state for name, state in model.get_parameters().items() if name == ENT_COEF_OPTIMIZER})
        variables = None
    optimizers = [model.actor.optimizer, model.critic.optimizer, *filter(None, [model.ent_coef_optimizer])]
    settings = [[_settings(group) for group in optimizer.param_groups] for optimizer in optimizers]
    try:
        model.set_parameters(params, exact_match=True, device=device)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            "The tensors in the file do not fit the agent. Arguments that shape its networks cannot be changed; "
            f"if none was, is the file damaged? {error}"
        ) from error
    # The state of an optimizer is the file's, its settings are the agent's.
    for optimizer, groups in zip(optimizers, settings, strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group.update(own)
    for name, value in (variables or {}).items():
        recursive_setattr(model, f"{name}.data", value.data)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    # The rate of actor and critics is set from its schedule before each step; that of the coefficient is fixed.
    return {
        name: value
        for name, value in group.items()
        if name != "params" and not (name == "lr" and "lr_multiplier" in group)
    }


def resolve_path(path: str | pathlib.Path) -> pathlib.Path:
    """
    The path as SB3 reads it: ``.zip`` is added where the file has no such suffix.

    :param path: as the user gave it
    """
    path = pathlib.Path(path)
    return path if path.suffix == ".zip" or path.is_file() else path.with_name(path.name + ".zip")


def write_atomically(path: pathlib.Path, write: Callable[[io.BufferedIOBase], object]) -> None:
    """
    Write a file so that a crash in between leaves the previous one untouched.

    :param path: where the file shall stand
    :param write: writes it into the open file it is given
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by tempfile, whose files nobody else may read.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
