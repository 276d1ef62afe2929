"""The replay: what is stored, what is drawn, and that it keeps its own rules."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_varshare.replay import TaskReplayBuffer
from sb3_varshare.replay.task_replay_buffer import to_tensors
from sb3_varshare.types import TaskBatch, Transitions

OBSERVATION_SIZE, ACTION_SIZE = 2, 3


def make_buffer(buffer_size: int = 60, n_tasks: int = 3, n_envs: int = 3, **kwargs: Any) -> TaskReplayBuffer:
    one_hot_size = kwargs.pop("one_hot_size", n_tasks)
    observation_space = spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE + one_hot_size,), dtype=np.float32)
    action_space = spaces.Box(-1, 1, (ACTION_SIZE,), dtype=np.float32)
    return TaskReplayBuffer(
        buffer_size,
        observation_space,
        action_space,
        "cpu",
        n_envs,
        n_tasks=n_tasks,
        one_hot_size=one_hot_size,
        **kwargs,
    )


def observe(values: np.ndarray, tasks: np.ndarray, n_tasks: int) -> np.ndarray:
    """Observation (value, task) and the one-hot."""
    return np.concatenate([values[:, None], tasks[:, None], np.eye(n_tasks)[tasks]], axis=1).astype(np.float32)


class Feeder:
    """Steps of N envs, numbered through; the number is in observation, action and reward."""

    def __init__(self, buffer: TaskReplayBuffer) -> None:
        self.buffer, self.number = buffer, 0

    def step(self, tasks: list[int], ends: list[str | None] | None = None) -> None:
        """
        :param tasks: of each env
        :param ends: of each env: None, terminated or truncated
        """
        task_ids = np.array(tasks)
        n = len(tasks)
        numbers = np.arange(self.number, self.number + n, dtype=float)
        self.number += n
        flags = ends or [None] * n
        infos = [{"TimeLimit.truncated": end == "truncated"} for end in flags]
        actions = np.repeat(numbers[:, None] / 1000, ACTION_SIZE, 1)
        self.buffer.add(
            observe(numbers, task_ids, self.buffer.n_tasks),
            observe(numbers + 0.5, task_ids, self.buffer.n_tasks),
            actions,
            numbers * 10,
            np.array([end is not None for end in flags]),
            infos,
        )
        assert self.buffer.check_valid() == (True, "")


def stored(buffer: TaskReplayBuffer, task: int) -> list[list[float]]:
    """The rows of a task, in the order of the ring."""
    assert buffer._rows is not None
    rows: list[list[float]] = buffer._rows[task, : buffer.sizes[task]].tolist()
    return rows


@pytest.mark.parametrize(
    "layout", [[0, 1, 2], [2, 0, 1], [0, 0, 0, 1, 2, 2, 2, 2], [1, 2, 0, 0]], ids=["one each", "permuted", "8", "4"]
)
def test_every_batch_has_the_same_number_of_rows_of_every_task(layout: list[int]) -> None:
    buffer = make_buffer(n_envs=len(layout))
    feeder = Feeder(buffer)
    for _ in range(11):
        feeder.step(layout)
    batch = buffer.sample(12)
    assert isinstance(batch, TaskBatch)
    assert [tuple(tensor.shape) for tensor in batch] == [(3, 4, 2), (3, 4, 3), (3, 4, 2), (3, 4), (3, 4)]
    # The second entry of the observation is the task; the one-hot is gone.
    for observations in (batch.observations, batch.next_observations):
        assert th.equal(observations[..., 1], th.arange(3.0)[:, None].expand(3, 4))
    assert buffer.sizes.tolist() == [min(20, 11 * layout.count(task)) for task in range(3)]


def test_an_env_may_play_the_tasks_in_turn() -> None:
    buffer = make_buffer(n_envs=1)
    feeder = Feeder(buffer)
    for episode in range(6):
        feeder.step([episode % 3])
        feeder.step([episode % 3], ["truncated"])
    assert buffer.sizes.tolist() == [4, 4, 4]
    assert th.equal(buffer.sample(300).observations[..., 1], th.arange(3.0)[:, None].expand(3, 100))


def test_rows_hold_what_was_given() -> None:
    buffer = make_buffer()
    feeder = Feeder(buffer)
    feeder.step([2, 0, 1])
    feeder.step([2, 0, 1], ["terminated", "truncated", None])
    # [observation | next observation | action | reward | discount]
    expected = {
        2: [[0, 2, 0.5, 2, 0, 0, 0, 0, 0.99], [3, 2, 3.5, 2, 0.003, 0.003, 0.003, 30, 0.0]],
        0: [[1, 0, 1.5, 0, 0.001, 0.001, 0.001, 10, 0.99], [4, 0, 4.5, 0, 0.004, 0.004, 0.004, 40, 0.99]],
        1: [[2, 1, 2.5, 1, 0.002, 0.002, 0.002, 20, 0.99], [5, 1, 5.5, 1, 0.005, 0.005, 0.005, 50, 0.99]],
    }
    for task, rows in expected.items():
        np.testing.assert_allclose(stored(buffer, task), rows, rtol=1e-6)


def test_termination_stops_bootstrapping_and_truncation_does_not() -> None:
    buffer = make_buffer(gamma=0.9)
    Feeder(buffer).step([0, 1, 2], ["terminated", "truncated", None])
    assert buffer.sample(30).discounts[:, 0].tolist() == pytest.approx([0.0, 0.9, 0.9])


def test_rings_wrap() -> None:
    buffer = make_buffer(buffer_size=12)  # four of each task
    feeder = Feeder(buffer)
    for step in range(7):
        feeder.step([0, 1, 2])
        assert buffer.sizes.tolist() == [min(step + 1, 4)] * 3
        assert buffer.size() == 3 * min(step + 1, 4)
    # Task 0 saw 0, 3, ..., 18: slots 0, 1, 2 were written again.
    assert [row[0] for row in stored(buffer, 0)] == [12, 15, 18, 9]
    assert buffer.transition_counts().tolist() == [4.0, 4.0, 4.0]


def test_rings_wrap_in_the_middle_of_a_step() -> None:
    buffer = make_buffer(buffer_size=15, n_envs=4)  # five of each task
    feeder = Feeder(buffer)
    for _ in range(3):
        feeder.step([1, 1, 0, 1])
    assert buffer.sizes.tolist() == [3, 5, 0]
    # Task 1 saw 0, 1, 3, 4, 5, 7, 8, 9, 11 with five slots.
    assert [row[0] for row in stored(buffer, 1)] == [7, 8, 9, 11, 5]


def test_rings_of_one_size_are_taken_over_as_they_stand() -> None:
    source, buffer = make_buffer(buffer_size=12), make_buffer(buffer_size=8, n_tasks=2)
    feeder = Feeder(source)
    for _ in range(7):
        feeder.step([0, 1, 2])
    buffer.take_rows(source, {0: 2, 1: 0})
    assert buffer.written.tolist() == [7, 7]
    assert stored(buffer, 0) == stored(source, 2) and stored(buffer, 1) == stored(source, 0)
    assert buffer.empty_tasks() == []


@pytest.mark.parametrize(("slots", "expected"), [(3, [12, 15, 18]), (6, [9, 12, 15, 18])])
def test_of_rings_of_another_size_the_newest_rows_are_taken_in_order(slots: int, expected: list[int]) -> None:
    source, buffer = make_buffer(buffer_size=12), make_buffer(buffer_size=slots, n_tasks=1)
    feeder = Feeder(source)
    for _ in range(7):
        feeder.step([0, 1, 2])
    buffer.take_rows(source, {0: 0})
    assert [row[0] for row in stored(buffer, 0)] == expected and buffer.written.tolist() == [len(expected)]
    # The next row replaces the oldest.
    Feeder(buffer).step([0])
    assert len(stored(buffer, 0)) == min(slots, len(expected) + 1) and stored(buffer, 0)[-1 if slots > 4 else 0][0] == 0


def test_rows_that_mean_something_else_are_not_taken() -> None:
    source, buffer = make_buffer(gamma=0.9), make_buffer()
    buffer.take_rows(source, {0: 0})
    assert buffer._rows is None
    Feeder(source).step([0, 1, 2])
    with pytest.raises(ValueError, match=r"gamma 0\.99, got 0\.9"):
        buffer.take_rows(source, {0: 0})


def test_rows_are_allocated_at_the_first_add() -> None:
    buffer = make_buffer(buffer_size=3 * 10**12)  # more than any machine has
    assert buffer._rows is None and buffer.size() == 0 and buffer.check_valid() == (True, "")
    assert copy.deepcopy(buffer)._rows is None and pickle.loads(pickle.dumps(buffer))._rows is None


def test_row_size_is_what_is_allocated() -> None:
    buffer = make_buffer(buffer_size=9)
    Feeder(buffer).step([0, 1, 2])
    assert buffer._rows is not None and buffer._rows.shape == (3, 3, buffer.row_size)


def test_a_task_without_rows_is_named() -> None:
    buffer = make_buffer()
    with pytest.raises(RuntimeError, match=r"tasks \[0, 1, 2\] have no transition"):
        buffer.sample(3)
    Feeder(buffer).step([0, 2, 0])
    with pytest.raises(RuntimeError, match=r"tasks \[1\] have no transition"):
        buffer.sample(3)


def test_sampling_is_uniform_over_what_each_task_has() -> None:
    buffer = make_buffer(buffer_size=60, n_envs=4)
    feeder = Feeder(buffer)
    for _ in range(7):
        feeder.step([0, 1, 2, 2])
    th.manual_seed(0)
    batch = buffer.sample(3 * 14_000)
    for task, size in enumerate((7, 7, 14)):
        _, counts = batch.observations[task, :, 0].unique(return_counts=True)
        assert len(counts) == size
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_a_draw_that_rounds_up_is_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = make_buffer()
    feeder = Feeder(buffer)
    for _ in range(2):
        feeder.step([0, 1, 2])
    monkeypatch.setattr(th, "rand", lambda *size, device: th.ones(size))
    assert buffer.sample(3).observations[..., 0].flatten().tolist() == [3, 4, 5]


def test_without_a_one_hot_there_is_one_task() -> None:
    buffer = make_buffer(n_tasks=1, n_envs=2, one_hot_size=0)
    observations = np.arange(4, dtype=np.float32).reshape(2, 2)
    buffer.add(observations, observations + 1, np.zeros((2, 3)), np.ones(2), np.zeros(2, dtype=bool), [{}, {}])
    assert buffer.observation_size == 2 and buffer.sizes.tolist() == [2]
    assert buffer.sample(5).observations.shape == (1, 5, 2)


def test_wider_numbers_become_float32() -> None:
    buffer = make_buffer(n_tasks=1, n_envs=1, one_hot_size=0)
    buffer.add(np.full((1, 2), 1 / 3), np.zeros((1, 2)), np.zeros((1, 3)), np.array([2]), np.array([False]), [{}])
    batch = buffer.sample(1)
    assert all(tensor.dtype == th.float32 for tensor in batch)
    assert batch.observations[0, 0, 0].item() == np.float32(1 / 3)


# n-step sums


def test_n_step_sums_by_hand() -> None:
    """One env, gamma 1/2, three steps: rewards 0, 10, 20, 30, 40, the last a termination."""
    buffer = make_buffer(n_tasks=1, n_envs=1, one_hot_size=1, gamma=0.5, n_steps=3)
    feeder = Feeder(buffer)
    for end in (None, None, None, None, "terminated"):
        feeder.step([0], [end])
    rows = np.array(stored(buffer, 0))
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert rows[:, 2].tolist() == [2.5, 3.5, 4.5, 4.5, 4.5]
    # 0 + 5 + 5, 10 + 10 + 7.5, 20 + 15 + 10, 30 + 20, 40
    assert rows[:, -2].tolist() == [10.0, 27.5, 45.0, 50.0, 40.0]
    assert rows[:, -1].tolist() == [0.125, 0.125, 0.0, 0.0, 0.0]


def test_n_step_sums_of_a_truncated_episode_bootstrap_over_what_is_left() -> None:
    buffer = make_buffer(n_tasks=1, n_envs=1, one_hot_size=1, gamma=0.5, n_steps=3)
    feeder = Feeder(buffer)
    for end in (None, None, None, "truncated"):
        feeder.step([0], [end])
    rows = np.array(stored(buffer, 0))
    assert rows[:, -2].tolist() == [10.0, 27.5, 35.0, 30.0]
    assert rows[:, -1].tolist() == [0.125, 0.125, 0.25, 0.5]
    assert rows[:, 2].tolist() == [2.5, 3.5, 3.5, 3.5]


def test_n_step_sums_of_a_short_episode() -> None:
    buffer = make_buffer(n_tasks=1, n_envs=1, one_hot_size=1, gamma=0.5, n_steps=5)
    feeder = Feeder(buffer)
    feeder.step([0])
    assert buffer.size() == 0
    feeder.step([0], ["truncated"])
    rows = np.array(stored(buffer, 0))
    assert rows[:, -2].tolist() == [5.0, 10.0] and rows[:, -1].tolist() == [0.25, 0.5]


def test_n_step_sums_of_several_envs_do_not_mix() -> None:
    """Envs 0 and 2 play task 0, env 1 plays task 1 and ends first, then changes to task 0."""
    buffer = make_buffer(n_tasks=2, n_envs=3, gamma=0.5, n_steps=2)
    feeder = Feeder(buffer)
    feeder.step([0, 1, 0])
    feeder.step([0, 1, 0], [None, "terminated", None])
    feeder.step([0, 0, 0], ["truncated", "terminated", None])
    by_number = {row[0]: (row[2], row[-2], row[-1]) for task in (0, 1) for row in stored(buffer, task)}
    assert by_number == {
        0: (3.5, 0 + 15, 0.25),
        1: (4.5, 10 + 20, 0.0),
        2: (5.5, 20 + 25, 0.25),
        3: (6.5, 30 + 30, 0.25),
        4: (4.5, 40, 0.0),
        5: (8.5, 50 + 40, 0.25),
        6: (6.5, 60, 0.5),
        7: (7.5, 70, 0.0),
    }
    assert buffer.sizes.tolist() == [6, 2]


def test_open_n_step_sums_can_be_forgotten() -> None:
    buffer = make_buffer(n_tasks=1, n_envs=1, one_hot_size=1, gamma=0.5, n_steps=2)
    feeder = Feeder(buffer)
    feeder.step([0])
    buffer.forget_open_episodes()
    feeder.step([0])
    assert buffer.size() == 0
    feeder.step([0], ["terminated"])
    assert [row[-2] for row in stored(buffer, 0)] == [10 + 10, 20]


def test_reset_forgets_everything() -> None:
    buffer = make_buffer(n_steps=2)
    feeder = Feeder(buffer)
    for _ in range(3):
        feeder.step([0, 1, 2])
    buffer.reset()
    assert buffer.size() == 0
    feeder.step([0, 1, 2])
    assert buffer.size() == 0 and buffer.check_valid() == (True, "")


@pytest.mark.parametrize("n_steps", [1, 3])
def test_one_task_equals_sb3(n_steps: int) -> None:
    """The same stream of two envs through SB3's buffer: equal sums, discounts and last observations."""
    gamma, n_envs, n = 0.9, 2, 60
    ours = make_buffer(1000, 1, n_envs, one_hot_size=0, gamma=gamma, n_steps=n_steps)
    space = spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), dtype=np.float32)
    actions_space = spaces.Box(-1, 1, (ACTION_SIZE,), dtype=np.float32)
    theirs = NStepReplayBuffer(1000, space, actions_space, "cpu", n_envs=n_envs, n_steps=n_steps, gamma=gamma)
    rng = np.random.default_rng(0)
    for step in range(n):
        # Distinct numbers identify a transition; the last step of all ends both episodes, so that nothing is open.
        observation = np.stack([np.full(2, step), rng.normal(size=2)], 1).astype(np.float32)
        next_observation = rng.normal(size=(n_envs, 2)).astype(np.float32)
        actions = rng.uniform(-1, 1, (n_envs, ACTION_SIZE)).astype(np.float32)
        rewards = rng.normal(size=n_envs).astype(np.float32)
        dones = np.ones(n_envs, dtype=bool) if step == n - 1 else rng.random(n_envs) < 0.15
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(d and rng.random() < 0.5)} for d in dones]
        ours.add(observation, next_observation, actions, rewards, dones, infos)
        theirs.add(observation, next_observation, actions, rewards, dones, infos)
    mine = {row[1]: row for row in stored(ours, 0)}
    assert len(mine) == n * n_envs
    # SB3 draws the env of each row at random: several draws see both.
    for _ in range(8):
        samples = theirs._get_samples(np.arange(n))
        for step in range(n):
            row = mine[samples.observations[step, 1].item()]
            # Where the episode terminates within the window SB3 masks by `dones`.
            assert samples.discounts is not None
            bootstrap = samples.discounts[step, 0] * (1 - samples.dones[step, 0])
            np.testing.assert_allclose(row[4:7], samples.actions[step], rtol=1e-6)
            np.testing.assert_allclose(row[2:4], samples.next_observations[step], rtol=1e-6)
            np.testing.assert_allclose(row[-2], samples.rewards[step, 0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(row[-1], bootstrap, rtol=1e-5)


# Files and devices


@pytest.mark.parametrize("n_added", [2, 9])
def test_pickle_round_trip(n_added: int) -> None:
    buffer = make_buffer(buffer_size=15, n_steps=2)
    feeder = Feeder(buffer)
    for _ in range(n_added):
        feeder.step([0, 1, 2])
    restored = pickle.loads(pickle.dumps(buffer))
    assert restored.check_valid() == (True, "")
    assert restored.sizes.tolist() == buffer.sizes.tolist()
    for task in range(3):
        assert stored(restored, task) == stored(buffer, task)
    # The copy goes on exactly as the original does, its open sums included.
    other = Feeder(restored)
    other.number = feeder.number
    for each in (feeder, other):
        for _ in range(3):
            each.step([0, 1, 2])
    for task in range(3):
        assert stored(restored, task) == stored(buffer, task)
    th.manual_seed(0)
    first = restored.sample(6)
    th.manual_seed(0)
    assert all(th.equal(*pair) for pair in zip(first, buffer.sample(6), strict=True))


def test_a_pickle_holds_only_what_was_written() -> None:
    buffer = make_buffer(buffer_size=3 * 10**5)
    Feeder(buffer).step([0, 1, 2])
    assert len(pickle.dumps(buffer)) < 10_000


def test_pickling_leaves_the_original_alone() -> None:
    buffer = make_buffer(buffer_size=30)
    Feeder(buffer).step([0, 1, 2])
    pickle.dumps(buffer)
    assert buffer._rows is not None and buffer._rows.shape[1] == 10


def test_assigning_the_device_moves_the_rows() -> None:
    buffer = make_buffer(buffer_size=12)
    buffer.device = "meta"
    assert buffer.device == th.device("meta") and buffer._rows is None
    buffer.device = th.device("cpu")
    Feeder(buffer).step([0, 1, 2])
    buffer.device = "meta"
    assert buffer._rows is not None and buffer._rows.device.type == "meta"


def test_check_valid_finds_broken_rules() -> None:
    buffer = make_buffer()
    Feeder(buffer).step([0, 1, 2])
    assert buffer._rows is not None
    buffer._rows[1, 0, 0] = th.nan
    assert buffer.check_valid() == (False, "a stored row is not finite")
    buffer._rows[1, 0, 0] = 0
    buffer._rows[2, 0, -1] = 1.5
    assert buffer.check_valid() == (False, "a stored discount is outside [0, 1]")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"buffer_size": 2}, r"buffer_size must be at least n_tasks \(3\), got 2"),
        ({"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage is not supported"),
    ],
)
def test_impossible_arguments_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_buffer(**kwargs)


# Tensors


def random_steps(n_envs: int, n_tasks: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Observations, next observations, actions, rewards, terminated, truncated; tasks change only between episodes."""
    rng = np.random.default_rng(3)
    tasks = rng.integers(n_tasks, size=n_envs)
    for _ in range(40):
        ends = rng.random((2, n_envs)) < 0.15
        yield (
            observe(rng.normal(size=n_envs), tasks, n_tasks),
            observe(rng.normal(size=n_envs), tasks, n_tasks),
            rng.uniform(-1, 1, (n_envs, ACTION_SIZE)),
            rng.normal(size=n_envs),
            ends[0],
            ends[1] & ~ends[0],
        )
        tasks = np.where(ends.any(0), rng.integers(n_tasks, size=n_envs), tasks)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_tensors_and_arrays_are_stored_alike(n_steps: int) -> None:
    arrays, tensors = (make_buffer(1_000, n_envs=7, n_steps=n_steps) for _ in range(2))
    for step in random_steps(7, 3):
        observations, next_observations, actions, rewards, terminated, truncated = step
        infos = [{"TimeLimit.truncated": bool(flag)} for flag in truncated]
        arrays.add(observations, next_observations, actions, rewards, terminated | truncated, infos)
        tensors.add_tensors(to_tensors(tensors.device, *step))
    assert arrays.size() > 150 and arrays.sizes.tolist() == tensors.sizes.tolist()
    for task in range(3):
        assert stored(arrays, task) == stored(tensors, task)


def test_of_more_rows_than_a_ring_holds_the_last_stay() -> None:
    buffer = make_buffer(buffer_size=9, n_envs=8)  # three of each task
    Feeder(buffer).step([0, 0, 1, 0, 0, 0, 2, 0])
    assert sorted(row[0] for row in stored(buffer, 0)) == [4, 5, 7]
    assert buffer.sizes.tolist() == [3, 1, 1]


@pytest.mark.parametrize("n_steps", [1, 2])
@pytest.mark.parametrize("field", ["observations", "next_observations", "actions", "rewards"])
def test_a_row_that_is_not_finite_is_not_stored(n_steps: int, field: str) -> None:
    buffer = make_buffer(n_envs=3, n_steps=n_steps)
    ends = th.ones(3, dtype=th.bool)
    observations = th.from_numpy(observe(np.arange(3.0), np.array([0, 1, 2]), 3))
    step = Transitions(observations, th.zeros(3, ACTION_SIZE), th.zeros(3), observations + 0, ends, ~ends)
    getattr(step, field)[1].view(-1)[0] = th.nan
    buffer.add_tensors(step)
    assert buffer.sizes.tolist() == [1, 0, 1] and buffer.check_valid() == (True, "")
    assert buffer.empty_tasks() == [1]


def test_empty_tasks_are_known_again_after_a_reset() -> None:
    buffer = make_buffer()
    Feeder(buffer).step([0, 1, 2])
    assert buffer.empty_tasks() == []
    buffer.reset()
    assert buffer.empty_tasks() == [0, 1, 2]
