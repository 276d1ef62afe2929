"""
Files of tensors with a checksum, and JSON with one: read whole and checked, or refused with what is wrong.

safetensors has no checksum of its own; a flipped bit among its numbers is another number. The checksum here is over the
record and the tensors, as read, so that it holds for the content and not for how it is laid out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from sb3_varshare.varshare_sac.saving import write_atomically

VERSION = 1
Arrays = dict[str, npt.NDArray[Any]]
Record = dict[str, Any]

# The types that such files hold, by safetensors' names.
TYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
}
# What a file may have besides the bytes of its tensors: names, shapes, the record.
HEADER_BYTES = 2**20
JSON_BYTES = 2**24


class PolicyFileError(ValueError):
    """
    A file of an exported policy is missing, damaged, of another kind, or does not belong where it is.

    :param path: of the file
    :param problem: what is wrong
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def digest(record: Record, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """
    :param record: JSON types only
    :param arrays: by name
    :return: SHA-256 over both, hexadecimal
    """
    shapes = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    total = hashlib.sha256(canonical([record, shapes]).encode())
    for name in sorted(arrays):
        total.update(arrays[name].tobytes())
    return total.hexdigest()


def canonical(value: Any) -> str:
    """
    :param value: JSON types only, no infinities
    :return: the same text for the same value
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_tensors(path: Path, kind: str, record: Record, arrays: Arrays) -> None:
    """
    :param path: of the file, which is replaced as a whole where it exists
    :param kind: of the file
    :param record: JSON types only
    :param arrays: by name, of the types in :data:`TYPES`
    """
    # safetensors writes memory as it lies there.
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {"format": kind, "version": str(VERSION), "record": canonical(record)}
    data = save(arrays, {**metadata, "sha256": digest(record, arrays)})
    write_atomically(path, lambda file: file.write(data))


def read_tensors(path: Path, kind: str, tensor_bytes: int) -> tuple[Record, Arrays]:
    """
    :param path: of the file
    :param kind: what it must be
    :param tensor_bytes: the most that its tensors may take
    :return: the record and the tensors, whose checksum fits; what they hold is not looked at
    :raises PolicyFileError: it is not that
    """
    data = read_bytes(path, tensor_bytes + HEADER_BYTES)
    try:
        tensors: list[tuple[str, Any]] = deserialize(data)
    except SafetensorError as error:
        raise PolicyFileError(path, f"not a safetensors file, cut short or damaged ({error})") from error
    header = parse_json(path, data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = header.get("__metadata__") or {}
    check_kind(path, metadata.get("format"), metadata.get("version"), kind, str(VERSION))
    unknown = sorted({tensor["dtype"] for _, tensor in tensors} - set(TYPES))
    if unknown:
        raise PolicyFileError(path, f"expected tensors of the types {sorted(TYPES)}, got also {unknown}")
    # What safetensors gives has been checked: as many bytes as type and shape say.
    arrays = {
        name: np.frombuffer(tensor["data"], TYPES[tensor["dtype"]]).reshape(tensor["shape"]) for name, tensor in tensors
    }
    record = parse_json(path, metadata.get("record", "").encode())
    if metadata.get("sha256") != digest(record, arrays):
        raise PolicyFileError(path, "its checksum does not fit its content: it is damaged or was changed")
    return record, arrays


def write_json(path: Path, kind: str, record: Record) -> None:
    """
    :param path: of the file, which is replaced as a whole where it exists
    :param kind: of the file
    :param record: JSON types only
    """
    document = {"format": kind, "version": VERSION, **record, "sha256": digest(record, {})}
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path, kind: str) -> Record:
    """
    :param path: of the file
    :param kind: what it must be
    :return: the record, whose checksum fits; what it holds is not looked at
    :raises PolicyFileError: it is not that
    """
    record = parse_json(path, read_bytes(path, JSON_BYTES))
    check_kind(path, record.pop("format", None), record.pop("version", None), kind, VERSION)
    if record.pop("sha256", None) != digest(record, {}):
        raise PolicyFileError(path, "its checksum does not fit its content: it is damaged or was changed")
    return record


def check_kind(path: Path, found: Any, version: Any, kind: str, expected: Any) -> None:
    """
    :param path: of the file
    :param found: what it says it is
    :param version: of its format
    :param kind: what it must be
    :param expected: the version that is read here
    :raises PolicyFileError: it is something else
    """
    if found != kind:
        raise PolicyFileError(path, f"expected a file of the kind {kind!r}, got {str(found)[:100]!r}")
    if version != expected or isinstance(version, bool):
        raise PolicyFileError(path, f"its format has version {str(version)[:100]}, this package reads {expected}")


def read_bytes(path: Path, limit: int) -> bytes:
    """
    :param path: of the file
    :param limit: the most that it may hold
    :raises PolicyFileError: it is missing, no plain file, or larger
    """
    try:
        if not path.is_file():
            raise PolicyFileError(path, "there is no such file" if not path.exists() else "this is not a plain file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise PolicyFileError(path, f"cannot be read ({error})") from error
    if len(data) > limit:
        raise PolicyFileError(path, f"expected at most {limit:,} bytes, got more: it is none of this policy's")
    return data


def parse_json(path: Path, data: bytes) -> Record:
    """
    :param path: of the file that the text is from
    :param data: UTF-8
    :raises PolicyFileError: it is not JSON, not an object, or holds a number that is not finite
    """

    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is not a number of JSON")

    try:
        value = json.loads(data.decode("utf-8"), parse_constant=refuse)
        # What cannot be written again, such as 1e999 or a thousand brackets, has no checksum.
        canonical(value)
    except (ValueError, RecursionError) as error:
        raise PolicyFileError(path, f"not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise PolicyFileError(path, f"expected an object of JSON, got {type(value).__name__}")
    return value
