"""Files: what is saved comes back to the last bit, nothing in them runs, and damage is named."""

import base64
import io
import json
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule

from sb3_varshare import VarShareSAC

TinyAgent = Callable[..., VarShareSAC]
TargetEnvs = Callable[..., Any]

ADAPTERS: list[dict[str, Any]] = [
    {"adapter": "varshare"},
    {"adapter": "varshare", "sigma_structure": "tied", "estimator": "flipout"},
    {"adapter": "varshare", "sigma_structure": "fixed", "normalize_observations": True},
    {"adapter": "low_rank", "rank": 2},
    {"adapter": "deterministic", "share_ent_coef": True},
    {"adapter": "embedding"},
    {"adapter": "none", "task_input": "one_hot", "ent_coef": [0.1, 0.2]},
    {"adapter": "independent", "n_steps": 3},
]
OBSERVATIONS = np.concatenate([np.linspace(0, 1, 12).reshape(6, 2), np.eye(2)[[0, 1, 1, 0, 1, 0]]], 1).astype(
    np.float32
)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a nested state, by its path."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)  # type: ignore[assignment]
    else:
        return {prefix: value}
    return {path: leaf for key, item in items for path, leaf in flat(item, f"{prefix}/{key}").items()}


def assert_same(first: VarShareSAC, second: VarShareSAC) -> None:
    """Parameters, optimizer states, reward scale and entropy coefficient, to the last bit."""
    ours, theirs = flat(first.get_parameters()), flat(second.get_parameters())
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        same = th.equal(value, theirs[path]) if isinstance(value, th.Tensor) else value == theirs[path]
        assert same, path
    assert th.equal(first._ent_coef(), second._ent_coef())
    for deterministic_of in (first, second):
        assert deterministic_of.predict(OBSERVATIONS, deterministic=True)[0].shape == (6, 1)
    np.testing.assert_array_equal(
        first.predict(OBSERVATIONS, deterministic=True)[0], second.predict(OBSERVATIONS, deterministic=True)[0]
    )


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


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Callable[[], VarShareSAC], str], tuple[VarShareSAC, Path]]:
    """Trains a model once per name and saves it."""
    kept: dict[str, tuple[VarShareSAC, Path]] = {}

    def get(make: Callable[[], VarShareSAC], name: str = "default") -> tuple[VarShareSAC, Path]:
        if name not in kept:
            model = make().learn(40)
            path = tmp_path_factory.mktemp(name) / "model.zip"
            model.save(path)
            kept[name] = model, path
        return kept[name]

    return get


@pytest.fixture
def model_file(trained: Any, tiny_agent: TinyAgent, tmp_path: Path) -> Path:
    """A file of its own for every test."""
    _, path = trained(tiny_agent)
    copy = tmp_path / "model.zip"
    copy.write_bytes(path.read_bytes())
    return copy


# Round trips


@pytest.mark.parametrize("kwargs", ADAPTERS, ids=lambda kwargs: "-".join(map(str, kwargs.values())))
def test_round_trip_to_the_last_bit(
    tiny_agent: TinyAgent, target_env: TargetEnvs, tmp_path: Path, kwargs: dict[str, Any]
) -> None:
    model = tiny_agent(**kwargs).learn(40)
    assert model._n_updates > 0
    model.save(tmp_path / "model")
    for env in (None, target_env()):
        loaded = VarShareSAC.load(tmp_path / "model", env=env, device="cpu")
        assert_same(model, loaded)
        for name in ("num_timesteps", "_n_updates", "task_names", "action_sizes", "protocol", "batch_size", "seed"):
            assert getattr(loaded, name) == getattr(model, name), name
    before = flat(model.get_parameters())
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 60 and loaded._n_updates > model._n_updates
    after = flat(loaded.get_parameters())
    assert all(
        value.isfinite().all() for path, value in after.items() if isinstance(value, th.Tensor) and "critic" in path
    )
    assert any(not th.equal(value, after[path]) for path, value in before.items() if isinstance(value, th.Tensor))


def test_learning_goes_on_as_if_it_had_not_been_saved(
    tiny_agent: TinyAgent, target_env: TargetEnvs, tmp_path: Path
) -> None:
    """With the replay, at an episode's end and with equal random numbers: the same agent to the last bit."""
    model = tiny_agent().learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = VarShareSAC.load(tmp_path / "model", env=target_env(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay")
    for agent in (model, loaded):
        th.manual_seed(5)
        agent._last_obs = None
        agent.learn(16, reset_num_timesteps=False)
    assert_same(model, loaded)


def test_a_file_may_be_an_open_stream(trained: Any, tiny_agent: TinyAgent) -> None:
    model, _ = trained(tiny_agent)
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    assert_same(model, VarShareSAC.load(stream, device="cpu"))


@pytest.mark.parametrize("name", ["model", "model.zip", "a.b.zip", "version.1"])
def test_names_with_and_without_suffix(trained: Any, tiny_agent: TinyAgent, tmp_path: Path, name: str) -> None:
    model, _ = trained(tiny_agent)
    model.save(tmp_path / "new" / name)
    assert_same(model, VarShareSAC.load(str(tmp_path / "new" / name), device="cpu"))
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_loaded_agent_without_env_gets_one_later(model_file: Path, target_env: TargetEnvs) -> None:
    loaded = VarShareSAC.load(model_file, device="cpu")
    loaded.set_env(target_env())
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 60


@pytest.mark.parametrize("n_envs", [1, 2, 4])
def test_the_number_of_environments_may_change(model_file: Path, target_env: TargetEnvs, n_envs: int) -> None:
    loaded = VarShareSAC.load(model_file, env=target_env(n_envs=n_envs), device="cpu")
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.n_envs == n_envs and loaded.replay_buffer.size() == 40


def test_noise_is_made_for_another_number_of_environments(
    tiny_agent: TinyAgent, target_env: TargetEnvs, tmp_path: Path
) -> None:
    model = tiny_agent(action_noise=NormalActionNoise(np.zeros(1), np.ones(1))).learn(20)
    model.save(tmp_path / "model")
    for n_envs, shape in ((1, (1,)), (2, (2, 1)), (4, (4, 1))):
        loaded = VarShareSAC.load(tmp_path / "model", env=target_env(n_envs=n_envs), device="cpu", trusted=True)
        loaded.learn(20, reset_num_timesteps=False)
        assert loaded.action_noise().shape == shape  # type: ignore[misc]


def test_learning_can_go_on_in_the_middle_of_an_episode(model_file: Path, target_env: TargetEnvs) -> None:
    env = target_env()
    env.reset()
    loaded = VarShareSAC.load(model_file, env=env, device="cpu", force_reset=False)
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 60


def test_loading_allocates_no_replay(model_file: Path) -> None:
    loaded = VarShareSAC.load(model_file, device="cpu", buffer_size=10**9)
    loaded.predict(OBSERVATIONS)
    assert loaded.replay_buffer._rows is None


def test_schedules_come_back(tiny_agent: TinyAgent, tmp_path: Path) -> None:
    model = tiny_agent(learning_rate=LinearSchedule(1e-3, 1e-4, 0.5), beta=LinearSchedule(1.0, 0.1, 0.25)).learn(40)
    model.save(tmp_path / "model")
    loaded = VarShareSAC.load(tmp_path / "model", device="cpu")
    for progress in (1.0, 0.8, 0.3):
        assert loaded.lr_schedule(progress) == model.lr_schedule(progress)
        loaded._current_progress_remaining = model._current_progress_remaining = progress
        assert th.equal(loaded._kl_weights(8).mean, model._kl_weights(8).mean) or loaded.replay_buffer.size() == 0
        assert loaded.beta(progress) == model.beta(progress)  # type: ignore[operator]


# Arguments


def test_arguments_can_be_changed(model_file: Path) -> None:
    loaded = VarShareSAC.load(
        model_file,
        device="cpu",
        learning_rate=0.125,
        beta=7.0,
        batch_size=64,
        target_entropy=-3.0,
        mu_lr_multiplier=2.0,
        rho_lr_multiplier=0.5,
        weight_decay=0.25,
        ent_coef_learning_rate=0.5,
    )
    assert (loaded.beta, loaded.batch_size, loaded.target_entropy_tensor.tolist()) == (7.0, 64, [-3.0, -3.0])
    for optimizer in (loaded.policy.actor.optimizer, loaded.policy.critic.optimizer):
        assert [(g["lr_multiplier"], g["weight_decay"]) for g in optimizer.param_groups] == [
            (1.0, 0.25),
            (2.0, 0.0),
            (0.5, 0.0),
        ]
    assert loaded.ent_coef_optimizer is not None
    assert loaded.ent_coef_optimizer.param_groups[0]["lr"] == 0.5


def test_a_learned_coefficient_can_be_fixed_and_a_fixed_one_changed(
    model_file: Path, tiny_agent: TinyAgent, tmp_path: Path
) -> None:
    loaded = VarShareSAC.load(model_file, device="cpu", ent_coef=0.25)
    assert loaded._ent_coef().tolist() == [0.25, 0.25]
    loaded.save(tmp_path / "fixed")
    assert VarShareSAC.load(tmp_path / "fixed", device="cpu")._ent_coef().tolist() == [0.25, 0.25]
    changed = VarShareSAC.load(tmp_path / "fixed", device="cpu", ent_coef=[0.5, 1.0])
    assert changed._ent_coef().tolist() == [0.5, 1.0]
    learned = VarShareSAC.load(tmp_path / "fixed", device="cpu", ent_coef="auto_0.75")
    assert learned._ent_coef().tolist() == [0.75, 0.75] and learned.ent_coef_optimizer is not None


def test_a_coefficient_of_another_shape_starts_anew(model_file: Path, target_env: TargetEnvs) -> None:
    loaded = VarShareSAC.load(model_file, target_env(), device="cpu", share_ent_coef=True)
    assert loaded.log_ent_coef is not None and loaded.log_ent_coef.shape == (1,)
    assert loaded._ent_coef().tolist() == pytest.approx([0.1, 0.1])
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded._n_updates > 20


@pytest.mark.parametrize("change", [{"critic_width": 16}, {"adapter": "none"}, {"n_critics": 3}])
def test_the_networks_cannot_be_changed(model_file: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Arguments that shape its networks cannot be changed"):
        VarShareSAC.load(model_file, device="cpu", **change)


def test_unknown_arguments_are_refused(model_file: Path) -> None:
    with pytest.raises(TypeError, match=r"VarShareSAC has no arguments \['lerning_rate'\]"):
        VarShareSAC.load(model_file, device="cpu", lerning_rate=1.0)


def test_the_device_can_be_chosen(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[Any] = []
    original = th.load

    def load(*args: Any, **kwargs: Any) -> Any:
        devices.append(kwargs["map_location"])
        assert kwargs["weights_only"] is True
        return original(*args, **kwargs)

    monkeypatch.setattr(th, "load", load)
    loaded = VarShareSAC.load(model_file, device="cpu")
    assert devices and set(devices) == {th.device("cpu")}
    assert loaded.device == th.device("cpu") == loaded.replay_buffer.device


# Safety


def test_everything_but_tensors_is_plain_json(trained: Any, tiny_agent: TinyAgent) -> None:
    def make() -> VarShareSAC:
        return tiny_agent(learning_rate=LinearSchedule(1e-3, 0.0, 1.0), beta=LinearSchedule(1.0, 0.0, 1.0))

    for _, path in (trained(tiny_agent), trained(make, "schedules")):
        with zipfile.ZipFile(path) as archive:
            text = archive.read("data").decode()
        assert ":serialized:" not in text
        data = json.loads(text)
        assert data["adapter"] == "varshare" and data["task_names"] == ["plus", "minus"]
        assert data["observation_space"][":type_tag:"] == "box"


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("key", ["extra", "policy_class", "learning_rate", "observation_space"])
def test_code_in_a_file_does_not_run(model_file: Path, tmp_path: Path, key: str) -> None:
    pickled = base64.b64encode(pickle.dumps(Payload(tmp_path / "ran"))).decode()
    rewrite(model_file, lambda data: data.update({key: {":type:": "x", ":serialized:": pickled}}))
    with pytest.raises(ValueError, match=rf"pickled attributes \['{key}'\].*trusted=True"):
        VarShareSAC.load(model_file, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_code_deeper_in_a_file_does_not_run(model_file: Path, tmp_path: Path) -> None:
    pickled = base64.b64encode(pickle.dumps(Payload(tmp_path / "ran"))).decode()
    rewrite(model_file, lambda data: data["protocol"].update(extra={":type:": "x", ":serialized:": pickled}))
    loaded = VarShareSAC.load(model_file, device="cpu")
    assert not (tmp_path / "ran").exists() and isinstance(loaded.protocol["extra"], dict)


def test_code_among_the_tensors_does_not_run(model_file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(model_file, "a") as archive, archive.open("extra.pth", "w") as file:
        th.save(Payload(tmp_path / "ran"), file)
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        VarShareSAC.load(model_file, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_a_schedule_of_ones_own_needs_trust(tiny_agent: TinyAgent, tmp_path: Path) -> None:
    tiny_agent(learning_rate=lambda progress: 0.5 * progress).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"pickled attributes \['learning_rate'\]"):
        VarShareSAC.load(tmp_path / "model", device="cpu")
    assert VarShareSAC.load(tmp_path / "model", device="cpu", trusted=True).lr_schedule(0.5) == 0.25


def test_what_is_replaced_need_not_be_trusted(model_file: Path, tmp_path: Path) -> None:
    pickled = base64.b64encode(cloudpickle.dumps(Payload(tmp_path / "ran"))).decode()
    rewrite(model_file, lambda data: data.update(learning_rate={":type:": "x", ":serialized:": pickled}))
    loaded = VarShareSAC.load(model_file, device="cpu", custom_objects={"learning_rate": 0.125})
    assert loaded.lr_schedule(1.0) == 0.125
    assert VarShareSAC.load(model_file, device="cpu", learning_rate=0.25).lr_schedule(1.0) == 0.25
    assert not (tmp_path / "ran").exists()


# Damage


def test_a_file_that_is_cut_short(model_file: Path) -> None:
    content = model_file.read_bytes()
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        model_file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match="not a readable model file"):
            VarShareSAC.load(model_file, device="cpu")


def test_flipped_bits_are_found(model_file: Path) -> None:
    """Wherever a bit flips, the file loads unchanged or a ValueError says that it is damaged."""
    content = model_file.read_bytes()
    intact = VarShareSAC.load(model_file, device="cpu")
    rng = np.random.default_rng(0)
    found = 0
    with zipfile.ZipFile(model_file) as archive:
        directory = archive.start_dir
    spots = [*rng.integers(0, directory, 25), *rng.integers(directory, len(content), 15)]
    for spot in spots:
        damaged = bytearray(content)
        damaged[spot] ^= 1 << int(rng.integers(0, 8))
        model_file.write_bytes(damaged)
        try:
            loaded = VarShareSAC.load(model_file, device="cpu")
        except ValueError as error:
            found += 1
            assert "damaged" in str(error), error
        else:
            assert_same(intact, loaded)
    assert found >= 25


def test_a_model_of_sb3_is_not_one_of_ours(tmp_path: Path) -> None:
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, device="cpu", policy_kwargs={"net_arch": [4]}).save(
        tmp_path / "sac"
    )
    with pytest.raises(ValueError, match="not a VarShareSAC model"):
        VarShareSAC.load(tmp_path / "sac", device="cpu")


def test_another_zip_is_not_a_model(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="not a readable model file"):
        VarShareSAC.load(tmp_path / "other.zip", device="cpu")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model file .*nothing\.zip"):
        VarShareSAC.load(tmp_path / "nothing", device="cpu")


def test_a_tag_of_a_newer_version_is_named(model_file: Path) -> None:
    rewrite(model_file, lambda data: data.update(beta={":type_tag:": "cosine", "value": 1}))
    with pytest.raises(ValueError, match="Unknown type 'cosine'"):
        VarShareSAC.load(model_file, device="cpu")


@pytest.mark.parametrize("moment", ["in the middle", "before the end"])
def test_an_interrupted_save_leaves_the_old_file_whole(
    trained: Any, tiny_agent: TinyAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    model, _ = trained(tiny_agent)
    path = tmp_path / "best.zip"
    model.save(path)
    before = path.read_bytes()

    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(th, "save", fail) if moment == "in the middle" else patch.setattr(os, "fsync", fail)
        with pytest.raises(KeyboardInterrupt):
            model.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["best.zip"]
    assert_same(model, VarShareSAC.load(path, device="cpu"))


def test_a_file_is_as_readable_as_any_other(trained: Any, tiny_agent: TinyAgent, tmp_path: Path) -> None:
    model, _ = trained(tiny_agent)
    model.save(tmp_path / "model")
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("model.zip", "other")]
    assert modes[0] == modes[1]


# The replay


def test_the_replay_is_saved_by_sb3s_functions(
    trained: Any, tiny_agent: TinyAgent, model_file: Path, target_env: TargetEnvs, tmp_path: Path
) -> None:
    model, _ = trained(tiny_agent)
    model.save_replay_buffer(tmp_path / "replay")
    loaded = VarShareSAC.load(model_file, env=target_env(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay")
    assert loaded.replay_buffer.check_valid() == (True, "")
    assert loaded.replay_buffer.sizes.tolist() == model.replay_buffer.sizes.tolist()
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.replay_buffer.size() == 60


def test_a_loaded_replay_goes_where_the_agent_wants_it(trained: Any, tiny_agent: TinyAgent, tmp_path: Path) -> None:
    model, _ = trained(tiny_agent)
    model.save_replay_buffer(tmp_path / "replay")
    elsewhere = tiny_agent(replay_device="meta")
    elsewhere.load_replay_buffer(tmp_path / "replay")
    assert elsewhere.replay_buffer.device == th.device("meta")


def test_episodes_that_a_file_left_open_do_not_go_on_in_other_environments(
    tiny_agent: TinyAgent, tmp_path: Path
) -> None:
    tiny_agent(n_steps=3, learning_starts=100).learn(12).save_replay_buffer(tmp_path / "replay")
    model = tiny_agent(n_steps=3, learning_starts=100).learn(10)
    assert model.replay_buffer._open.tolist() == [1, 1]
    model.load_replay_buffer(tmp_path / "replay")
    model.learn(2, reset_num_timesteps=False)
    # The one step since then; with the two of the file it would be three, and a row of both.
    assert model.replay_buffer._open.tolist() == [1, 1]


def test_what_is_no_replay_is_refused(tiny_agent: TinyAgent, tmp_path: Path) -> None:
    model = tiny_agent()
    replay = model.replay_buffer
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"no": "replay"}))
    with pytest.raises(ValueError, match=r"other\.pkl holds no replay buffer"):
        model.load_replay_buffer(tmp_path / "other.pkl")
    assert model.replay_buffer is replay


def test_a_replay_of_other_tasks_is_refused(tiny_agent: TinyAgent, target_env: TargetEnvs, tmp_path: Path) -> None:
    model = tiny_agent(target_env({"a": 0.0, "b": 0.1, "c": 0.2}), batch_size=30, learning_starts=100).learn(30)
    model.save_replay_buffer(tmp_path / "replay")
    with pytest.raises(ValueError, match="n_tasks 3, the agent has 2"):
        tiny_agent().load_replay_buffer(tmp_path / "replay")
