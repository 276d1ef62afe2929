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
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.save_util import json_to_data
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

TAG = ":type_tag:"
PICKLED = ":serialized:"


def _encode_box(box: spaces.Box) -> dict[str, Any]:
    return {"low": encode(box.low), "high": encode(box.high)}


def _decode_box(value: dict[str, Any]) -> spaces.Box:
    low = decode(value["low"])
    return spaces.Box(low, decode(value["high"]), dtype=low.dtype)


# Type -> (tag, to plain JSON values, back)
_CODECS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    np.ndarray: (
        "array",
        lambda array: {"dtype": str(array.dtype), "shape": list(array.shape), "values": array.ravel().tolist()},
        lambda value: np.array(value["values"], dtype=value["dtype"]).reshape(value["shape"]),
    ),
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


def read_data(path: str | pathlib.Path | io.BufferedIOBase, trusted: bool) -> dict[str, Any]:
    """
    The attributes stored in a model file.

    :param path: the zip, with or without its suffix, or an open file
    :param trusted: allow pickled attributes, which can run any code
    :raises ValueError: the file is not a model of this package, or holds pickled attributes and is not trusted
    """
    text = _read_json(path)
    raw = json.loads(text)
    pickled = sorted(name for name, value in raw.items() if isinstance(value, dict) and PICKLED in value)
    if pickled and not trusted:
        raise ValueError(
            f"The file holds pickled attributes {pickled}, and unpickling can run any code; "
            "if you know where it comes from, load it with trusted=True."
        )
    data: dict[str, Any] = decode(json_to_data(text) if pickled else raw)
    if "adapter" not in data or "task_names" not in data:
        raise ValueError("The file is not a VarShareSAC model: it has no adapter and no task names.")
    return data


def _read_json(path: str | pathlib.Path | io.BufferedIOBase) -> str:
    if isinstance(path, str | pathlib.Path):
        path = resolve_path(path)
        if not path.exists():
            raise FileNotFoundError(f"There is no model file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read("data").decode()
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable model file ({error}); is it damaged or cut short?") from error
    finally:
        if not isinstance(path, pathlib.Path):
            path.seek(0)


def resolve_path(path: str | pathlib.Path) -> pathlib.Path:
    """
    The path as SB3 reads it: ``.zip`` is added where the file has no such suffix.

    :param path: as the user gave it
    """
    path = pathlib.Path(path)
    return path if path.suffix == ".zip" or path.is_file() else path.with_name(path.name + ".zip")


def write_atomically(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """
    Write a file so that a crash in between leaves the previous one untouched.

    :param path: where the file shall stand
    :param write: writes it at the path it is given
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".zip")
    os.close(handle)
    temporary = pathlib.Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
