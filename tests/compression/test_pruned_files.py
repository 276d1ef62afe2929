"""Files of pruned agents: they come back to the last bit, hold no dense residual, and damaged numbers are named."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_varshare import VarShareSAC, evaluate_tasks, export_policy, load_policy, prune
from sb3_varshare.adapters.sparse import Sparse

Agents = Callable[..., VarShareSAC]
TargetEnvs = Callable[..., Any]

OBSERVATIONS = np.concatenate(
    [np.linspace(0, 1, 12).reshape(6, 2), np.eye(3)[[0, 1, 2, 0, 2, 1]]], axis=1, dtype=np.float32
)


def assert_same(first: VarShareSAC, second: VarShareSAC) -> None:
    """Tensors, optimizer states and predictions, to the last bit."""
    ours, theirs = first.policy.state_dict(), second.policy.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(th.equal(value, theirs[name]) and value.dtype == theirs[name].dtype for name, value in ours.items())
    for name in ("actor", "critic"):
        states = [getattr(model.policy, name).optimizer.state_dict()["state"] for model in (first, second)]
        assert states[0].keys() == states[1].keys()
        for index, state in states[0].items():
            assert all(th.equal(value, states[1][index][key]) for key, value in state.items())
    np.testing.assert_array_equal(*(model.predict(OBSERVATIONS, deterministic=True)[0] for model in (first, second)))


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the JSON of a model file and leave its tensors as they are."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    change(data)
    members["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("adapter", ["varshare", "deterministic"])
@pytest.mark.parametrize("networks", ["both", "actor", "critic"])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_round_trip_to_the_last_bit(
    agent: Agents, target_env: TargetEnvs, tmp_path: Path, adapter: str, networks: str, share: float
) -> None:
    model = agent(adapter=adapter)
    prune(model, keep_fraction=share, networks=networks)
    model.learn(20, reset_num_timesteps=False)
    model.save(tmp_path / "agent")
    loaded = VarShareSAC.load(tmp_path / "agent", target_env(), device="cpu")
    assert_same(model, loaded)
    assert loaded.kept_weights == model.kept_weights
    results = [
        evaluate_tasks(m, target_env(), 1, base=base).returns() for m in (model, loaded) for base in (True, False)
    ]
    assert results[:2] == results[2:]
    before = [parameter.detach().clone() for parameter in loaded.policy.actor.parameters()]
    loaded.learn(40, reset_num_timesteps=False)
    assert any(not th.equal(*pair) for pair in zip(before, loaded.policy.actor.parameters(), strict=True))


def test_a_loaded_agent_can_be_pruned_further(agent: Agents, tmp_path: Path) -> None:
    model = agent()
    prune(model, keep_fraction=0.2)
    model.save(tmp_path / "agent")
    loaded = VarShareSAC.load(tmp_path / "agent", device="cpu")
    reports = [prune(each, keep_fraction=0.05) for each in (model, loaded)]
    assert reports[0].layers == reports[1].layers
    assert_same(model, loaded)


def test_nothing_dense_is_built_on_the_way(agent: Agents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(actor_width=64, critic_width=64)
    prune(model, keep_fraction=0.01)
    model.save(tmp_path / "agent")
    assert not any(layer.adapter.per_task_base for layer in model.policy.actor.linears())

    def refuse(*args: Any) -> None:
        raise AssertionError("a dense residual was built")

    monkeypatch.setattr("sb3_varshare.adapters.gaussian.GaussianWeight.__init__", refuse)
    loaded = VarShareSAC.load(tmp_path / "agent", device="cpu")
    for network in (loaded.policy.actor, loaded.policy.critic.net):
        for layer in network.linears():
            assert isinstance(layer.adapter, Sparse)
            # Values and positions besides the base that all tasks share.
            assert sum(t.numel() for t in layer.state_dict().values()) == (
                layer.theta.numel() + layer.bias.numel() + 2 * len(layer.adapter.values)
            )
    # Counted by what is trained: the base and the kept values.
    trained = sum(p.numel() for m in (loaded.policy.actor, loaded.policy.critic) for p in m.parameters())
    assert loaded.memory_need.parameters == trained
    # What a gradient step composes is as large as ever.
    weights = [
        layer.theta.numel() * 3 for net in (loaded.policy.actor, loaded.policy.critic.net) for layer in net.linears()
    ]
    assert loaded.memory_need.working > 4 * sum(weights)


def test_the_file_says_how_many_weights_are_left(agent: Agents, tmp_path: Path) -> None:
    model = agent()
    report = prune(model, keep_fraction=0.1)
    model.save(tmp_path / "agent")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        data = json.loads(archive.read("data"))
    counts = {name: [sum(x.kept) for x in report.layers if x.network == name] for name in ("actor", "critic")}
    assert data["kept_weights"] == counts
    unpruned = agent()
    unpruned.save(tmp_path / "unpruned")
    with zipfile.ZipFile(tmp_path / "unpruned.zip") as archive:
        assert "kept_weights" not in json.loads(archive.read("data"))


LAYERS = r"a whole number for each of the 5 linear layers of the actor, from 0 to \[48, 192, 192, 24, 24\], got "


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda kept: kept | {"actor": kept["actor"][:-1]}, LAYERS),
        (lambda kept: kept | {"actor": [-1, *kept["actor"][1:]]}, LAYERS),
        (lambda kept: kept | {"actor": [10**12, *kept["actor"][1:]]}, LAYERS),
        (lambda kept: kept | {"actor": ["4", *kept["actor"][1:]]}, LAYERS),
        (lambda kept: kept | {"actor": [1.5, *kept["actor"][1:]]}, LAYERS),
        (lambda kept: kept | {"actor": [True, *kept["actor"][1:]]}, LAYERS),
        (lambda kept: kept | {"actor": 7}, LAYERS),
        (lambda kept: kept | {"actor": None}, LAYERS),
        (lambda kept: kept | {"actor": [kept["actor"][0] + 1, *kept["actor"][1:]]}, "tensors in the file do not fit"),
        (lambda kept: {"actor": kept["actor"]}, "tensors in the file do not fit"),
        (lambda kept: None, "tensors in the file do not fit"),
        (lambda kept: kept | {"target": [1]}, r"none or some of \['actor', 'critic'\]"),
        (lambda kept: [kept], r"none or some of \['actor', 'critic'\]"),
        (lambda kept: 5, r"none or some of \['actor', 'critic'\]"),
    ],
)
def test_damaged_numbers_are_named(
    pruned_file: Path, tmp_path: Path, damage: Callable[[Any], Any], message: str
) -> None:
    path = tmp_path / "agent.zip"
    path.write_bytes(pruned_file.read_bytes())
    rewrite(path, lambda data: data.update(kept_weights=damage(data["kept_weights"])))
    with pytest.raises(ValueError, match=rf"(?s){message}.*damaged"):
        VarShareSAC.load(path, device="cpu")


@pytest.mark.parametrize("change", [{"adapter": "low_rank"}, {"actor_residuals": False}])
def test_what_shapes_the_networks_cannot_be_changed(pruned_file: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="kept_weights must hold numbers of weights for none or some of"):
        VarShareSAC.load(pruned_file, device="cpu", **change)


def test_a_pruned_actor_has_no_posterior_to_explore_by(pruned_file: Path) -> None:
    with pytest.raises(ValueError, match="pruning left the actor none"):
        VarShareSAC.load(pruned_file, device="cpu", exploration="posterior")


def test_an_exported_policy_holds_what_was_kept(agent: Agents, tmp_path: Path) -> None:
    model = agent(actor_width=64)
    sizes = []
    for name in ("full", "pruned"):
        export_policy(model, tmp_path / name)
        files = sorted((tmp_path / name / "tasks").iterdir())
        assert len(files) == 3
        sizes.append(sum(file.stat().st_size for file in files))
        exported = load_policy(tmp_path / name)
        for task in model.task_names:
            actions = exported.predict(OBSERVATIONS[:, :2], task)[0]
            np.testing.assert_allclose(actions, model.predict_task(OBSERVATIONS[:, :2], task)[0], atol=1e-5)
        prune(model, keep_fraction=0.02, networks="actor")
    assert sizes[1] < 0.2 * sizes[0]
