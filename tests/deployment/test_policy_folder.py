"""The folder of a policy: acts as the agent, and its tasks come and go as files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from deployment_agents import AGENTS, SIZES, TINY, Still, assert_close, make_agent, rows_of, scramble

from sb3_varshare import PolicyFileError, VarShareSAC, compose_task, export_policy, load_policy, make_multitask_env
from sb3_varshare.deployment import export, files
from sb3_varshare.deployment.folder import task_file_name
from sb3_varshare.deployment.residuals import check_packed, pack, unpack


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path within."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@th.no_grad()
def change_residual(model: VarShareSAC, task: int) -> VarShareSAC:
    """Change one task of an agent and nothing else."""
    model.policy.actor.mean.adapter.residual.mu[task] += 0.5
    return model


@pytest.mark.parametrize("kind", AGENTS)
def test_acts_as_the_agent_does(kind: str, tmp_path: Path) -> None:
    model = make_agent(kind)
    policy = load_policy(export_policy(model, tmp_path / "policy"))
    assert policy.task_names == list(SIZES) and policy.adapter == model.adapter
    assert policy.has_base == model.policy.has_base and policy.protocol == model.protocol
    for task, (size, _) in SIZES.items():
        rows = rows_of(size)
        expected = model.predict_task(rows, task)[0]
        actions, state = policy.predict(rows, task)
        assert state is None
        assert_close(actions, expected, model, task)
        # To the last bit what the live agent composes to, but for factors, which are multiplied in another order.
        composed = compose_task(model, task)(th.from_numpy(rows)).numpy()
        assert kind == "low_rank" or np.array_equal(actions, composed)
        np.testing.assert_array_equal(policy.predict(rows[0], task)[0], policy.predict(rows[:1], task)[0][0])
        padded = np.concatenate([rows, np.zeros((50, 4 - size), dtype=np.float32)], 1)
        np.testing.assert_array_equal(policy.predict(padded, task)[0], actions)
        if policy.has_base:
            with model.policy.base_only():
                expected = model.predict_task(rows, task)[0]
            assert_close(policy.predict(rows, task, base=True)[0], expected, model, task)


def test_draws_from_the_agents_distribution(tmp_path: Path) -> None:
    model = make_agent("fixed")
    policy = load_policy(export_policy(model, tmp_path / "policy"))
    rows = np.repeat(rows_of(4)[20:21], 20_000, 0)
    th.manual_seed(0)
    theirs = model.predict_task(rows, "four", deterministic=False)[0]
    th.manual_seed(1)
    ours = policy.predict(rows, "four", deterministic=False)[0]
    low, high = (np.array(bound) for bound in model.action_bounds[1])  # type: ignore[index]
    assert ((ours >= low) & (ours <= high)).all()
    for quantile in (0.1, 0.5, 0.9):
        # Four standard errors of a quantile, sqrt(p (1 - p) / n) in probability.
        shares = (ours < np.quantile(theirs, quantile, axis=0)).mean(0)
        np.testing.assert_allclose(shares, quantile, atol=4 * np.sqrt(2 * quantile * (1 - quantile) / 20_000))


def test_a_task_comes_and_goes_as_a_file(tmp_path: Path) -> None:
    model = make_agent("fixed")
    sent = export_policy(model, tmp_path / "sender") / "tasks" / "three.safetensors"
    policy = load_policy(export_policy(model, tmp_path / "robot", tasks=["four", 0]))
    assert policy.task_names == ["two", "four"]
    # Under any name: the task's own stands within.
    shutil.copy(sent, tmp_path / "robot" / "tasks" / "received (1).safetensors")
    policy = load_policy(tmp_path / "robot")
    assert policy.task_names == ["two", "four", "three"]
    rows = rows_of(3)
    assert_close(policy.predict(rows, "three")[0], model.predict_task(rows, "three")[0], model, "three")
    (tmp_path / "robot" / "tasks" / "two.safetensors").unlink()
    policy = load_policy(tmp_path / "robot")
    assert policy.task_names == ["four", "three"]
    with pytest.raises(ValueError, match="Unknown task 'two'; known are four, three"):
        policy.predict(rows, "two")
    shutil.rmtree(tmp_path / "robot" / "tasks")
    assert load_policy(tmp_path / "robot").task_names == []
    with pytest.raises(ValueError, match="no files of tasks"):
        load_policy(tmp_path / "robot").predict(rows, "four")


def test_one_file_twice_is_refused(tmp_path: Path) -> None:
    tasks = export_policy(make_agent(), tmp_path / "policy") / "tasks"
    shutil.copy(tasks / "two.safetensors", tasks / "copy.safetensors")
    with pytest.raises(PolicyFileError, match=r"two.safetensors: its task 'two' is also that of .*copy.safetensors"):
        load_policy(tmp_path / "policy")


def test_other_files_in_the_folder_are_nobodys_business(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    export_policy(make_agent(), folder)
    (folder / "tasks" / "README.md").write_text("mine too")
    assert load_policy(folder).task_names == list(SIZES)
    export_policy(make_agent("full"), folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["base.safetensors", "notes.txt", "policy.json", "tasks"]


def test_tasks_are_added_to_their_base(tmp_path: Path) -> None:
    model, folder = make_agent("full"), tmp_path / "policy"
    export_policy(model, folder, tasks=["two"])
    before = contents(folder)
    export_policy(model, folder)
    after = contents(folder)
    assert load_policy(folder).task_names == list(SIZES)
    # What was there already is not even written again.
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("tasks", ["two", 0])
def test_a_name_is_no_list_of_names(tasks: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"tasks must be a list .* write tasks=\[{tasks!r}\]"):
        export_policy(make_agent(), tmp_path / "policy", tasks=tasks)
    assert not (tmp_path / "policy").exists()


def test_changed_tasks_are_replaced_only_when_asked(tmp_path: Path) -> None:
    model, folder = make_agent("full"), export_policy(make_agent("full"), tmp_path / "policy")
    # Renamed by hand: the new one shall not stand beside it.
    os.replace(folder / "tasks" / "two.safetensors", folder / "tasks" / "renamed.safetensors")
    change_residual(model, 0)
    before = contents(folder)
    with pytest.raises(ValueError, match=r"holds other weights of \['two'\]; replace them with overwrite=True"):
        export_policy(model, folder)
    assert contents(folder) == before
    export_policy(model, folder, overwrite=True)
    after = contents(folder)
    assert [name for name in before if before[name] != after[name]] == [os.path.join("tasks", "renamed.safetensors")]
    assert after.keys() == before.keys()
    rows = rows_of(2)
    assert_close(load_policy(folder).predict(rows, "two")[0], model.predict_task(rows, "two")[0], model, "two")


def test_another_policy_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = export_policy(make_agent("full"), tmp_path / "policy")
    before, other = contents(folder), make_agent("independent")
    with pytest.raises(ValueError, match="holds another policy, or this one with another base: tasks"):
        export_policy(other, folder)
    assert contents(folder) == before
    export_policy(other, folder, overwrite=True, tasks=["three"])
    assert load_policy(folder).task_names == ["three"] and load_policy(folder).adapter == "independent"


def test_what_is_no_whole_policy_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = export_policy(make_agent("full"), tmp_path / "policy")
    (folder / "base.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"holds no whole policy .*base.safetensors"):
        export_policy(make_agent("full"), folder)
    assert (folder / "base.safetensors").read_bytes() == b"damaged"
    export_policy(make_agent("full"), folder, overwrite=True)
    assert load_policy(folder).task_names == list(SIZES)
    with pytest.raises(ValueError, match=r"policy.json is a file; a policy is a folder"):
        export_policy(make_agent("full"), folder / "policy.json")


@pytest.mark.parametrize("old", [None, "full", "independent"])
def test_nothing_is_lost_when_writing_fails(old: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, new = tmp_path / "policy", change_residual(make_agent("full"), 1)
    if old is not None:
        export_policy(make_agent(old), folder)
    before = contents(folder)
    replace, calls = os.replace, 0

    def fail_at(number: int) -> Callable[..., None]:
        def fail(source: Any, target: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == number:
                raise OSError(28, "No space left on device")
            replace(source, target)

        return fail

    for number in range(1, 20):
        calls = 0
        monkeypatch.setattr(os, "replace", fail_at(number))
        try:
            export_policy(new, folder, overwrite=True)
        except OSError:
            assert contents(folder) == before and folder.exists() == (old is not None)
            if old is not None:
                assert load_policy(folder).task_names == list(SIZES)
        else:
            break
    # Five files are written, then moved: one changed task, or three entries after the old three were put aside.
    assert number - 1 == 5 + {None: 3, "full": 1, "independent": 6}[str(old) if old else None]  # type: ignore[index]
    rows = rows_of(4)
    assert_close(load_policy(folder).predict(rows, "four")[0], new.predict_task(rows, "four")[0], new, "four")


def test_what_is_not_the_agent_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    differences = export.model_differences

    def wrong(*args: Any) -> Any:
        for arrays in differences(*args):
            yield {name: array + np.float32(0.01) for name, array in arrays.items()}

    monkeypatch.setattr(export, "model_differences", wrong)
    with pytest.raises(RuntimeError, match="is not the agent's"):
        export_policy(make_agent("full"), tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    "name",
    ["reach-v3", "HalfCheetah", "dm_control/walker-walk", "..", ".", "", "Übung 1 \N{ROBOT FACE}", "con", "a" * 300],
)
def test_every_name_of_a_task_has_a_file(name: str, tmp_path: Path) -> None:
    env = make_multitask_env({name: lambda: Still(2, [-1.0], [1.0]), "other": lambda: Still(2, [-1.0], [1.0])})
    model = scramble(VarShareSAC("MultiTaskPolicy", env, **{**TINY, "batch_size": 32}))
    folder = export_policy(model, tmp_path / "a" / "policy")
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {folder, folder / "tasks"}
    policy, rows = load_policy(folder), rows_of(2)
    assert policy.task_names == [name, "other"]
    assert_close(policy.predict(rows, name)[0], model.predict_task(rows, name)[0], model, name)


def test_file_names_by_hand() -> None:
    assert task_file_name("reach-v3") == "reach-v3.safetensors"
    assert task_file_name("dm_control/walker-walk").startswith("dm_control-walker-walk~")
    names = [
        "a",
        "A",
        "a/",
        "/a",
        "..",
        ".",
        "",
        "con",
        "CON",
        "aux.txt",
        "a b",
        "a-b",
        "é",
        "\ud800",
        "a" * 300,
        "a" * 301,
    ]
    found = [task_file_name(name) for name in names]
    # Different also where upper and lower case are one.
    assert len({name.lower() for name in found}) == len(names)
    for name in found:
        assert name.isascii() and len(name) < 120 and not set(name) & set('/\\:*?"<>| \0')
        assert not name.startswith((".", "-")) and name.split(".")[0].lower() not in ("con", "aux")


def test_zeros_are_not_stored(tmp_path: Path) -> None:
    model = make_agent("full", actor_width=300)
    sizes = {}
    for share in (1.0, 0.05, 0.0):
        with th.no_grad():
            for layer in model.policy.actor.linears():
                mu = layer.adapter.residual.mu  # type: ignore[union-attr]
                mu.mul_(th.rand(mu.shape, generator=th.Generator().manual_seed(0)) < share)
        folder = export_policy(model, tmp_path / str(share))
        sizes[share] = (folder / "tasks" / "four.safetensors").stat().st_size
        rows = rows_of(4)
        composed = compose_task(model, "four")(th.from_numpy(rows)).numpy()
        np.testing.assert_array_equal(load_policy(folder).predict(rows, "four")[0], composed)
    weights = 4 * 300 + 2 * 300 * 300 + 2 * 300 * 3
    assert 4 * weights < sizes[1.0] < 4 * weights + 2_500
    # A value, and a column in two bytes; in the heads in one.
    assert 6 * 0.05 * weights < sizes[0.05] < 6 * 0.05 * weights + 6_000
    # Where each row begins, in one byte each: it begins nowhere.
    assert sizes[0.0] < (4 + 4 * 300) + 5 + 3_500


def test_packing_by_hand() -> None:
    matrix = np.zeros((3, 4), dtype=np.float32)
    matrix[0, 3], matrix[2, 0], matrix[2, 1] = 0.5, -1.0, -0.0
    packed = pack("x", matrix)
    assert {name: array.tolist() for name, array in packed.items()} == {
        "x.rows": [0, 1, 1, 2],
        "x.columns": [3, 0],
        "x.values": [0.5, -1.0],
    }
    assert {array.dtype for array in packed.values()} == {np.dtype(np.uint8), np.dtype(np.float32)}
    assert check_packed(Path(), "x", packed, (3, 4)) == set(packed)
    np.testing.assert_array_equal(unpack("x", packed, (3, 4)), matrix)
    # 4 + 9 * 5 bytes are more than 4 * 12.
    matrix.ravel()[:9] = 1.0
    assert list(pack("x", matrix)) == ["x"]


@pytest.mark.parametrize(("columns", "expected"), [(256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_the_smallest_integers_that_fit(columns: int, expected: type) -> None:
    matrix = np.zeros((2, columns), dtype=np.float32)
    matrix[1, -1] = 2.0
    packed = pack("x", matrix)
    assert packed["x.columns"].dtype == expected and packed["x.columns"].tolist() == [columns - 1]
    check_packed(Path(), "x", packed, (2, columns))
    np.testing.assert_array_equal(unpack("x", packed, (2, columns)), matrix)


def test_what_the_json_says(tmp_path: Path) -> None:
    folder = export_policy(make_agent("low_rank"), tmp_path / "policy")
    record = json.loads((folder / "policy.json").read_text())
    assert record["format"] == "sb3_varshare policy" and record["version"] == 1 and record["adapter"] == "low_rank"
    assert record["network"] == {
        "observation_size": 4,
        "task_input_size": 0,
        "action_size": 3,
        "width": 8,
        "depth": 1,
        "difference": "factors",
        "rank": 2,
        "normalized": False,
    }
    policy = load_policy(folder)
    assert policy.observation_space.shape == (4,) and policy.observation_space.low.tolist() == [-np.inf] * 4
    assert policy.action_space.low.tolist() == [-1.0] * 3 and policy.action_space.dtype == np.float32


def test_spaces_of_a_single_environment(tmp_path: Path) -> None:
    env = Still(3, [-2.0, 0.1], [2.0, 0.9], np.float64)
    env.observation_space.low[1] = -3.4e38
    model = scramble(VarShareSAC("MultiTaskPolicy", env, **{**TINY, "batch_size": 32}))
    policy = load_policy(export_policy(model, tmp_path / "policy"))
    assert policy.observation_space == env.observation_space and policy.action_space == env.action_space
    rows = rows_of(3)
    np.testing.assert_allclose(policy.predict(rows, "task")[0], model.predict_task(rows, "task")[0], atol=1e-5)


def test_observations_that_do_not_fit(tmp_path: Path) -> None:
    policy = load_policy(export_policy(make_agent(), tmp_path / "policy"))
    with pytest.raises(ValueError, match=r"of 2 numbers, or 4 with zeros at the end, without a one-hot; got \(1, 3\)"):
        policy.predict(np.zeros(3), "two")
    with pytest.raises(ValueError, match=r"of 4 numbers, without a one-hot; got \(5, 7\)"):
        policy.predict(np.zeros((5, 7)), "four")
    with pytest.raises(ValueError, match="behind them only zeros"):
        policy.predict(np.ones(4), "two")
    with pytest.raises(ValueError, match="did you mean 'two'"):
        policy.predict(np.ones(2), "twoo")


def test_a_diverged_agent_is_not_written(tmp_path: Path) -> None:
    model = make_agent("full")
    model.policy.actor.mean.adapter.residual.mu.data[1, 0, 0] = th.inf
    with pytest.raises(ValueError, match="of the agent holds a number that is not finite"):
        export_policy(model, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_loading_runs_no_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export_policy(make_agent(), tmp_path / "policy")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    for module, name in (("pickle", "loads"), ("pickle", "load"), ("pickle", "Unpickler"), ("torch", "load")):
        monkeypatch.setattr(f"{module}.{name}", refuse)
    assert load_policy(folder).task_names == list(SIZES)


def test_checksums_are_of_the_content(tmp_path: Path) -> None:
    record, arrays = {"a": 1, "b": [2]}, {"x": np.arange(3, dtype=np.float32), "y": np.zeros((2, 0), dtype=np.uint8)}
    path = tmp_path / "file.safetensors"
    files.write_tensors(path, "kind", record, arrays)
    found_record, found = files.read_tensors(path, "kind", 12)
    assert found_record == record and found["x"].tolist() == [0.0, 1.0, 2.0] and found["y"].shape == (2, 0)
    expected = files.digest({"b": [2], "a": 1}, dict(reversed(arrays.items())))
    assert expected == files.digest(record, arrays)
    for other in ({"x": arrays["x"]}, {**arrays, "y": arrays["y"].T}, {**arrays, "x": arrays["x"].view(np.uint32)}):
        assert files.digest(record, other) != expected
    assert files.digest({**record, "a": 2}, arrays) != expected
