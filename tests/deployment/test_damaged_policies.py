"""Files that are damaged, foreign or forged: one kind of error, which says what is wrong with which file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployment_agents import make_agent
from policy_fuzz import fuzz
from safetensors import deserialize
from safetensors.numpy import save

from sb3_varshare import PolicyFileError, export_policy, load_policy
from sb3_varshare.deployment.files import TYPES, Arrays, Record, digest, write_json, write_tensors
from sb3_varshare.deployment.folder import BASE, POLICY, TASK

POLICY_FILE, BASE_FILE, TASK_FILE = "policy.json", "base.safetensors", os.path.join("tasks", "four.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Policies of some kinds; copied before anything is done to them."""
    where = tmp_path_factory.mktemp("whole")
    return {kind: export_policy(make_agent(kind), where / kind) for kind in ("fixed", "low_rank", "independent")}


@pytest.fixture
def folder(whole: dict[str, Path], tmp_path: Path) -> Path:
    """A policy of dense residuals with normalised observations."""
    return Path(shutil.copytree(whole["fixed"], tmp_path / "policy"))


def opened(path: Path) -> tuple[Record, Arrays]:
    """Record and tensors of a file, unchecked."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    arrays = {name: np.frombuffer(t["data"], TYPES[t["dtype"]]).reshape(t["shape"]) for name, t in deserialize(data)}
    return json.loads(header["__metadata__"]["record"]), arrays


def forge_task(folder: Path, change: Callable[[Record, Arrays], None]) -> None:
    """Change what a task's file holds, and sign it anew."""
    record, arrays = opened(folder / TASK_FILE)
    change(record, arrays)
    write_tensors(folder / TASK_FILE, TASK, record, arrays)


def forge_policy(folder: Path, change: Callable[[Record], None]) -> None:
    """Change what the policy's JSON says, and sign it, its base and its task anew."""
    record = json.loads((folder / POLICY_FILE).read_text())
    change(record)
    kept = {name: value for name, value in record.items() if name not in ("format", "version", "sha256")}
    base = opened(folder / BASE_FILE)[1]
    sha256 = digest(record["network"], base) if isinstance(record.get("network"), dict) else ""
    write_tensors(folder / BASE_FILE, BASE, record.get("network"), base)  # type: ignore[arg-type]
    write_json(folder / POLICY_FILE, POLICY, {**kept, "base_sha256": sha256})
    forge_task(folder, lambda task, arrays: task.update(base_sha256=sha256))


def check_refused(folder: Path, file: str, message: str) -> None:
    """The error names the file and what is wrong with it, and pickles."""
    with pytest.raises(PolicyFileError, match=message) as caught:
        load_policy(folder)
    assert caught.value.path == folder / file
    assert isinstance(caught.value, ValueError) and str(folder / file) in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("file", [POLICY_FILE, BASE_FILE, TASK_FILE])
def test_every_byte_counts(folder: Path, file: str) -> None:
    data = (folder / file).read_bytes()
    rng = np.random.default_rng(0)
    for cut in (0, 1, 7, 8, 100, len(data) // 2, len(data) - 2):
        (folder / file).write_bytes(data[:cut])
        with pytest.raises(PolicyFileError):
            load_policy(folder)
    for position in rng.integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        (folder / file).write_bytes(damaged)
        try:
            load_policy(folder)
        except PolicyFileError:
            continue
        # White space between the entries of the JSON, and another spelling of the same.
        assert file == POLICY_FILE and json.loads(damaged) == json.loads(data)


@pytest.mark.parametrize("file", [POLICY_FILE, BASE_FILE])
def test_missing_files(folder: Path, file: str) -> None:
    (folder / file).unlink()
    check_refused(folder, file, "there is no such file")
    (folder / file).mkdir()
    check_refused(folder, file, "not a plain file")


def test_no_folder_at_all(tmp_path: Path) -> None:
    check_refused(tmp_path / "nowhere", POLICY_FILE, "there is no such file")
    (tmp_path / "file").write_text("")
    check_refused(tmp_path / "file", POLICY_FILE, "there is no such file")


def test_what_stands_in_the_place_of_tasks(folder: Path) -> None:
    shutil.rmtree(folder / "tasks")
    (folder / "tasks").write_text("")
    check_refused(folder, "tasks", "cannot be read as a folder")
    (folder / "tasks").unlink()
    (folder / "tasks" / "x.safetensors").mkdir(parents=True)
    check_refused(folder, os.path.join("tasks", "x.safetensors"), "not a plain file")
    (folder / "tasks" / "x.safetensors").rmdir()
    os.mkfifo(folder / "tasks" / "x.safetensors")
    check_refused(folder, os.path.join("tasks", "x.safetensors"), "not a plain file")


def test_a_task_of_another_base(folder: Path, whole: dict[str, Path]) -> None:
    shutil.copy(export_policy(make_agent("fixed", seed=1), folder.parent / "other") / TASK_FILE, folder / TASK_FILE)
    check_refused(folder, TASK_FILE, "belongs to another base")
    for kind in ("low_rank", "independent"):
        shutil.copy(whole[kind] / TASK_FILE, folder / TASK_FILE)
        check_refused(folder, TASK_FILE, "belongs to another base")


def test_files_in_each_others_place(folder: Path, whole: dict[str, Path]) -> None:
    shutil.copy(whole["independent"] / BASE_FILE, folder / BASE_FILE)
    check_refused(folder, BASE_FILE, "not the base that policy.json beside it names")
    shutil.copy(folder / TASK_FILE, folder / BASE_FILE)
    check_refused(folder, BASE_FILE, "expected a file of the kind 'sb3_varshare base', got 'sb3_varshare task'")
    shutil.copy(folder / TASK_FILE, folder / POLICY_FILE)
    check_refused(folder, POLICY_FILE, "not readable as JSON")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "expected a file of the kind 'sb3_varshare policy', got 'None'"),
        ("[1]", "expected an object of JSON, got list"),
        ('{"format": "sb3_varshare policy", "version": 2}', "its format has version 2, this package reads 1"),
        ('{"format": "sb3_varshare policy", "version": true}', "its format has version True"),
        ('{"format": "sb3_varshare policy", "version": 1, "sha256": "0"}', "checksum does not fit"),
        ('{"format": NaN}', "NaN is not a number of JSON"),
        ('{"format": 1e999}', "not readable as JSON"),
        ("[" * 200_000, "not readable as JSON"),
        ('{"a": ' + "1" * 5_000 + "}", "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
        (b" " * (2**24 + 1), "expected at most 16,777,216 bytes"),
    ],
)
def test_json_of_another_kind(folder: Path, text: str | bytes, message: str) -> None:
    (folder / POLICY_FILE).write_bytes(text.encode() if isinstance(text, str) else text)
    check_refused(folder, POLICY_FILE, message)


def test_tensors_of_another_kind(folder: Path) -> None:
    metadata = {"format": TASK, "version": "1", "record": "{}"}
    for data, message in (
        (save({"x": np.zeros(2)}), "expected a file of the kind 'sb3_varshare task', got 'None'"),
        (save({"x": np.zeros(2)}, {**metadata, "version": "2"}), "its format has version 2, this package reads 1"),
        (save({"x": np.zeros(2)}, metadata), r"expected tensors of the types .* got also \['F64'\]"),
        (save({"x": np.zeros(2, np.float32)}, metadata), "checksum does not fit"),
        (save({"x": np.zeros(2, np.float32)}, {**metadata, "record": "["}), "not readable as JSON"),
        (pickle.dumps({"x": 1}), "not a safetensors file"),
        (bytes(3 * 2**20), "expected at most 1,049,"),
    ):
        (folder / TASK_FILE).write_bytes(data)
        check_refused(folder, TASK_FILE, message)


def nan(array: np.ndarray) -> np.ndarray:
    """With one number that is none."""
    array = array.copy()
    array.flat[-1] = np.nan
    return array


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mean.residual", nan, "mean.residual holds a number that is not finite"),
        ("mean.residual", lambda array: array.T, r"expected mean.residual to be of shape \(8, 3\) and type float32"),
        ("mean.residual", lambda array: array.view(np.uint32), "type float32, got .* and uint32"),
        ("mean.residual", lambda array: None, "it lacks mean.residual"),
        ("observation_mean", nan, "observation_mean holds a number that is not finite"),
        ("observation_mean", lambda array: array[:-1], r"observation_mean to be of shape \(4,\)"),
        ("observation_variance", lambda array: -array, "observation_variance is negative"),
        ("trunk.norm_in.weight", lambda array: np.zeros(8, np.float32), "more than belongs there: trunk.norm_in"),
    ],
)
def test_forged_tensors_of_a_task(
    folder: Path, name: str, change: Callable[[Any], np.ndarray | None], message: str
) -> None:
    def forge(record: Record, arrays: Arrays) -> None:
        array = change(arrays.pop(name, None))
        arrays.update({} if array is None else {name: array})

    forge_task(folder, forge)
    check_refused(folder, TASK_FILE, message)


@pytest.mark.parametrize(
    ("rows", "columns", "values", "message"),
    [
        ([0] * 8, [], [], "do not have the shape of a matrix"),
        ([0] * 9, [1], [1.0], "do not follow each other from 0 to 1"),
        ([1] * 9, [1], [1.0], "do not follow each other"),
        ([0, 2, 1, 1, 1, 1, 1, 1, 1], [1], [1.0], "do not follow each other"),
        ([0] * 8 + [1], [3], [1.0], "do not ascend below 3"),
        ([0] * 8 + [2], [1, 1], [1.0, 2.0], "do not ascend below 3"),
        ([0] * 8 + [2], [2, 1], [1.0, 2.0], "do not ascend below 3"),
        ([0] * 8 + [2], [1], [1.0, 2.0], "do not have the shape of a matrix"),
        ([0] * 8 + [1], [1], [np.inf], "not finite"),
        ([[0] * 8 + [1]], [1], [1.0], "do not have the shape of a matrix"),
        (np.array([0.0] * 8 + [1.0], np.float32), [1], [1.0], "do not have the shape of a matrix"),
        (None, [1], [1.0], "it lacks mean.residual"),
    ],
)
def test_forged_positions(folder: Path, rows: Any, columns: list[int], values: list[float], message: str) -> None:
    def forge(record: Record, arrays: Arrays) -> None:
        del arrays["mean.residual"]
        if rows is not None:
            arrays["mean.residual.rows"] = rows if isinstance(rows, np.ndarray) else np.array(rows, np.uint8)
        arrays["mean.residual.columns"] = np.array(columns, np.uint8)
        arrays["mean.residual.values"] = np.array(values, np.float32)

    forge_task(folder, forge)
    check_refused(folder, TASK_FILE, message)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("name", 3, "expected name to be a string, got 3"),
        ("full_name", None, "expected full_name to be a string"),
        ("observation_size", 5, "observation_size to be a whole number from 1 to 4, got 5"),
        ("observation_size", 4.0, "a whole number"),
        ("action_size", 0, "action_size to be a whole number from 1 to 3"),
        ("action_size", True, "a whole number"),
        ("position", -1, "position to be a whole number"),
        ("action_low", [-1.0, -1.0], "action_low to be 3 numbers"),
        ("action_low", [-1.0, -1.0, "x"], "action_low to be 3 numbers"),
        ("action_low", [-1.0, None, -1.0], "action_low to be 3 numbers"),
        ("action_low", [0.0, 10**400, 0.0], "numbers of at most 1e\\+38"),
        ("action_high", [1.0, -1.0, 1.0], "action_low to be nowhere above action_high"),
        ("action_high", None, "action_high to be 3 numbers"),
    ],
)
def test_forged_entries_of_a_task(folder: Path, entry: str, value: Any, message: str) -> None:
    forge_task(folder, lambda record, arrays: record.update({entry: value}))
    check_refused(folder, TASK_FILE, message)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("adapter", 1, "adapter to be a string"),
        ("network", [], "network to be an object"),
        ("protocol", "x", "protocol to be an object"),
        ("network.difference", "all", "difference to be one of"),
        ("network.rank", 2, "rank to be positive for factors and 0 otherwise"),
        ("network.normalized", 1, "normalized to be one of"),
        ("network.width", 2**40, "width to be a whole number"),
        ("network.depth", 2**40, "depth to be a whole number"),
        ("observation_space.dtype", "object", "dtype to be one of"),
        ("observation_space.low", [0.0], "low to be 4 numbers"),
        ("observation_space.low", "x", "low to be 4 numbers"),
        ("action_space.high", -2.0, "low to be nowhere above high"),
    ],
)
def test_forged_entries_of_the_policy(folder: Path, place: str, value: Any, message: str) -> None:
    def forge(record: Record) -> None:
        *outer, key = place.split(".")
        (record[outer[0]] if outer else record)[key] = value

    forge_policy(folder, forge)
    check_refused(folder, POLICY_FILE, message)


@pytest.mark.parametrize(
    ("entry", "value", "file", "message"),
    [
        ("width", 9, BASE_FILE, r"trunk.linear_in.weight to be of shape \(4, 9\)"),
        ("depth", 0, BASE_FILE, "more than belongs there: trunk.blocks"),
        ("depth", 2, BASE_FILE, "it lacks trunk.blocks.1.linear_in.weight"),
        ("difference", "none", TASK_FILE, "more than belongs there: log_std.residual"),
        ("difference", "network", BASE_FILE, "more than belongs there"),
        ("normalized", False, TASK_FILE, "more than belongs there: observation_mean"),
        ("task_input_size", 1, BASE_FILE, r"shape \(5, 8\)"),
    ],
)
def test_forged_sizes(folder: Path, entry: str, value: Any, file: str, message: str) -> None:
    for path in (folder / "tasks").iterdir():
        if path != folder / TASK_FILE:
            path.unlink()
    forge_policy(folder, lambda record: record["network"].update({entry: value}))
    check_refused(folder, file, message)


def test_a_file_is_not_read_beyond_what_it_may_hold(folder: Path) -> None:
    with (folder / TASK_FILE).open("r+b") as file:
        # Sparse: takes no room on the disk, and would take 8 GiB of memory.
        file.truncate(2**33)
    check_refused(folder, TASK_FILE, "expected at most .* bytes, got more")


@pytest.mark.slow
def test_whatever_happens_to_the_files() -> None:
    counts, _ = fuzz(cases=300, seed=0)
    outcomes = {result for _, result in counts}
    assert outcomes <= {"refused", "the same", "another", "cannot be signed"}, counts
    assert counts.total() == 300 and sum(n for (_, result), n in counts.items() if result == "refused") > 200
