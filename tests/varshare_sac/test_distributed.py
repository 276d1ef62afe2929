"""Two processes that train one agent stay bit-equal, and do what one process with all batches does."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_ranks as ranks
import pytest
import torch as th

from sb3_varshare import VarShareSAC
from sb3_varshare.distributed import distribute, process_group, rank_seed
from sb3_varshare.types import TaskBatch

ROOT = Path(__file__).resolve().parents[2]


def free_ports(n: int) -> list[str]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [str(found.getsockname()[1]) for found in sockets]
    for found in sockets:
        found.close()
    return ports


def group_of(n_processes: int, rank: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {"RANK": str(rank), "WORLD_SIZE": str(n_processes), "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes have left; the second one's last scene is its end."""
    folder, ports = tmp_path_factory.mktemp("ranks"), free_ports(3)
    processes = [
        subprocess.Popen(
            [sys.executable, ranks.__file__, str(folder), *ports],
            env={**os.environ, **group_of(2, rank), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 9], "\n".join(outputs)
    # Only the first process logs.
    assert "n_updates" in outputs[0] and "n_updates" not in outputs[1]
    return [th.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def test_all_parameters_stay_bit_equal(both: list[dict[str, Any]]) -> None:
    one, other = (results["long_run"] for results in both)
    for part in ("start", "end"):
        assert one[part].keys() == other[part].keys()
        unequal = [name for name in one[part] if not th.equal(one[part][name], other[part][name])]
        assert unequal == []
    unchanged = [name for name in one["start"] if th.equal(one["start"][name], one["end"][name])]
    assert all("support" in name or "mask" in name or "norm" in name or "bias" in name for name in unchanged)
    assert {name.split(".")[0] for name in one["end"]} >= {"actor", "critic", "critic_target", "optimizer", "scale"}


def test_each_process_collects_its_own(both: list[dict[str, Any]]) -> None:
    one, other = (results["long_run"]["replay"] for results in both)
    assert one.shape == other.shape
    actions = slice(2 * ranks.SIZE, 2 * ranks.SIZE + 1)
    assert not (one[..., actions] == other[..., actions]).any()


def test_in_mean_mode_a_step_is_that_of_one_process_with_both_batches(
    both: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks.squashed_gaussian, "th", ranks.ConstantNoise())
    model = ranks.make_agent(**{**ranks.MEAN_MODE, "batch_size": 2 * ranks.N_TASKS * ranks.ROWS, "seed": 5})
    before = ranks.state_of_networks(model)
    pairs = zip(ranks.batches(0, 3), ranks.batches(1, 3), strict=True)
    together = [TaskBatch(*(th.cat(tensors, 1) for tensors in zip(*pair, strict=True))) for pair in pairs]
    expected = ranks.mean_steps(model, [0, 1], together)
    # Task 0 has 8 + 2 * 5 and 8 + 2 * 12 transitions, task 1 has 8 and 8, for which the 32 rows of a batch count.
    weights = th.tensor([1 / (2 * 50), 1 / (2 * 32)]).expand_as(expected["kl_weights"])
    th.testing.assert_close(expected["kl_weights"], weights, rtol=1e-6, atol=0)
    for results in both:
        found = results["mean_mode"]
        assert found.keys() == expected.keys()
        for name in ("kl_weights", "scale.return_max", "scale.return_min", "observation_norm.count"):
            assert th.equal(found[name], expected[name]), name
        for name, value in expected.items():
            th.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    moved = max(float((expected[name] - value).abs().max()) for name, value in before.items() if "net" in name)
    assert moved > 1e-2


def test_alone_it_is_the_training_without_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(distributed: bool) -> dict[str, Any]:
        model = ranks.make_agent(seed=4, normalize_observations=True, **ranks.LONG_RUN)
        return ranks.state_of((distribute(model) if distributed else model).learn(60))

    expected = train(False)
    with pytest.raises(RuntimeError, match="inside of `with process_group"):
        train(True)
    for name, value in {**group_of(1, 0), "MASTER_PORT": free_ports(1)[0]}.items():
        monkeypatch.setenv(name, value)
    with process_group():
        assert rank_seed(4) == 4
        found = train(True)
    assert [name for name, value in expected.items() if not th.equal(found[name], value)] == []


def test_a_process_that_torchrun_did_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="torchrun --nproc-per-node 2"), process_group():
        pass


@pytest.mark.timeout(300)
def test_the_example_runs_under_torchrun(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--steps", "1100", "--episodes", "1", "--save-path", str(path)]
    result = subprocess.run(
        [*command, str(ROOT / "examples" / "torchrun_train.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.returncode == 0, result.stderr
    # One of the two has said it.
    assert result.stdout.count("2 processes took") == 1 and result.stdout.count("swing-up-twin") == 1
    assert VarShareSAC.load(path).num_timesteps == 1_100


def test_a_process_that_does_not_answer_is_an_error_in_time(both: list[dict[str, Any]]) -> None:
    for scene, most in (("hangs", 20.0), ("ends", 20.0)):
        result = both[0][scene]
        assert result["error"].startswith("RuntimeError: Process 0 of 2 cannot go on: another one ended")
        assert result["seconds"] < most


def test_agents_that_cannot_be_one_are_refused(both: list[dict[str, Any]]) -> None:
    for results in both:
        refused = results["refused"]
        assert "environments of every process must have a seed of their own" in refused["seeds"]
        assert "beta must be the same in all processes, got 0.1 in process 0 and 1.1 in" in refused["settings"]
        assert "train_freq must be a number of steps" in refused["episodes"]
