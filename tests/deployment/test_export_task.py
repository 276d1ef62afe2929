"""One file per task runs where the package cannot be imported, for any number of observations."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from deployment_agents import SIZES, assert_close, make_agent, rows_of

from sb3_varshare import VarShareSAC, export_policy, export_task, load_policy
from sb3_varshare.deployment import single_file
from sb3_varshare.deployment.plain_actor import PlainActor

# Importing the package, or what it is built on, is an error in the process that runs the files.
ELSEWHERE = """
import json, sys
for name in ("sb3_varshare", "stable_baselines3", "gymnasium"):
    sys.modules[name] = None
import numpy as np
import onnxruntime, torch
sizes = [int(size) for size in sys.argv[1].split()]
for folder in sys.argv[2:]:
    rows = np.load(f"{folder}/rows.npy")
    session = onnxruntime.InferenceSession(f"{folder}/task.onnx", providers=["CPUExecutionProvider"])
    extra = {"task.json": ""}
    module = torch.export.load(f"{folder}/task.pt2", extra_files=extra).module()
    run = {
        "onnx": lambda rows: session.run(["action"], {"observation": rows})[0],
        "pt2": lambda rows: module(torch.from_numpy(rows)).numpy(),
    }
    np.savez(f"{folder}/actions.npz", **{f"{kind}{size}": run[kind](rows[:size]) for kind in run for size in sizes})
    facts = {"onnx": session.get_modelmeta().custom_metadata_map, "pt2": json.loads(extra["task.json"])}
    with open(f"{folder}/metadata.json", "w") as file:
        json.dump(facts, file)
try:
    import sb3_varshare
except ImportError:
    print("nowhere to be found")
"""
BATCHES = (0, 1, 2, 50)


@pytest.mark.slow
def test_both_files_act_elsewhere_as_the_agent_does(tmp_path: Path) -> None:
    models = {task: make_agent(kind) for kind, task in (("fixed", "three"), ("embedding", "four"), ("low_rank", "two"))}
    for task, model in models.items():
        for suffix in (".pt2", ".onnx"):
            path = tmp_path / task / f"task{suffix}"
            assert export_task(model, task, path) == path
        np.save(tmp_path / task / "rows.npy", rows_of(SIZES[task][0]))
    folders = [str(tmp_path / task) for task in models]
    command = [sys.executable, "-W", "error", "-c", ELSEWHERE, " ".join(map(str, BATCHES)), *folders]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150)
    assert (done.returncode, done.stdout) == (0, "nowhere to be found\n"), done.stderr
    for task, model in models.items():
        check_elsewhere(model, task, tmp_path / task)


def check_elsewhere(model: VarShareSAC, task: str, folder: Path) -> None:
    """What the other process has left: the agent's actions, and what the files say of themselves."""
    rows, found = np.load(folder / "rows.npy"), np.load(folder / "actions.npz")
    for size in BATCHES:
        expected = model.predict_task(rows[:size], task)[0] if size else np.zeros((0, SIZES[task][1]))
        for file in ("onnx", "pt2"):
            assert_close(found[f"{file}{size}"], expected.astype(found[f"{file}{size}"].dtype), model, task)
    low, high = model.action_bounds[model.task_id(task)]  # type: ignore[index]
    facts = {
        "task": task,
        "full_name": f"custom/{task}",
        "weights": "task",
        "observation_size": SIZES[task][0],
        "action_size": SIZES[task][1],
        "action_low": list(low),
        "action_high": list(high),
    }
    said = json.loads((folder / "metadata.json").read_text())
    assert said["pt2"] == facts
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    assert said["onnx"] == {**texts, "opset": "18"}


def test_types_follow_the_bounds(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    double, single = onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT
    for task, expected in (("three", double), ("two", single)):
        model = onnx.load(export_task(make_agent(), task, tmp_path / f"{task}.onnx"))
        (given,), (got,) = model.graph.input, model.graph.output
        assert (given.name, got.name) == ("observation", "action")
        assert (given.type.tensor_type.elem_type, got.type.tensor_type.elem_type) == (single, expected)
        assert got.type.tensor_type.shape.dim[0].dim_param == "batch"
        assert model.opset_import[0].version == 18


def test_an_exported_policy_can_be_exported_on(tmp_path: Path) -> None:
    model = make_agent("fixed")
    policy = load_policy(export_policy(model, tmp_path / "policy"))
    for base in (False, True):
        first = th.export.load(export_task(model, "four", tmp_path / "a.pt2", base=base)).module()
        second = th.export.load(export_task(policy, "four", tmp_path / "b.pt2", base=base)).module()
        rows = th.from_numpy(rows_of(4))
        assert th.equal(first(rows), second(rows))


def test_the_base_alone_says_that_it_is(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for task, name in ((None, ""), ("two", "two")):
        properties = onnx.load(export_task(make_agent(), task, tmp_path / "base.onnx", base=True)).metadata_props
        texts = {entry.key: entry.value for entry in properties}
        assert (texts["task"], texts["weights"]) == (name, "base")


def test_nothing_in_the_files_tells_where_they_were_made(tmp_path: Path) -> None:
    here = str(Path(th.__file__).parent.parent).encode()
    model = make_agent("fixed")
    assert here not in export_task(model, "two", tmp_path / "two.onnx").read_bytes()
    with zipfile.ZipFile(export_task(model, "two", tmp_path / "two.pt2")) as archive:
        assert not any(here in archive.read(name) for name in archive.namelist())


def test_exporting_leaves_random_numbers_and_loggers_as_they_were(tmp_path: Path) -> None:
    model, state, level = make_agent(), th.random.get_rng_state(), logging.getLogger("torch.onnx").level
    np.random.seed(3)
    expected = np.random.RandomState(3).random_sample()
    for suffix in (".pt2", ".onnx"):
        export_task(model, "two", tmp_path / f"two{suffix}")
    assert th.equal(state, th.random.get_rng_state())
    assert np.random.random_sample() == expected
    assert logging.getLogger("torch.onnx").level == level


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_what_acts_differently_is_not_written(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"two{suffix}"
    path.write_text("the old one")
    make = single_file.WRITERS[suffix]

    def off_by_a_little(actor: PlainActor, description: dict[str, Any]) -> Any:
        data, run = make(actor, description)
        return data, lambda rows: run(rows) + np.float32(0.01)

    monkeypatch.setitem(single_file.WRITERS, suffix, off_by_a_little)
    with pytest.raises(RuntimeError, match="would not act as the agent does with 1 observations"):
        export_task(make_agent(), "two", path)
    assert path.read_text() == "the old one" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_exported_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model: VarShareSAC = make_agent()
    with pytest.raises(ValueError, match=r"end in one of \['.onnx', '.pt2'\], got '.*two.pth'"):
        export_task(model, "two", tmp_path / "two.pth")
    with pytest.raises(ValueError, match="Unknown task 'five'"):
        export_task(model, "five", tmp_path / "five.pt2")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime: pip install 'sb3_varshare\[onnx\]'"):
        export_task(model, "two", tmp_path / "two.onnx")
    assert not list(tmp_path.iterdir())
