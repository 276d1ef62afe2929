"""Every (seed, purpose, task, rank) has a stream of its own."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from sb3_varshare.tasks.seeding import Purpose, root_seed, shared_key, task_stream


def first_words(stream: np.random.SeedSequence) -> tuple[int, ...]:
    return tuple(stream.generate_state(4).tolist())


def test_streams_are_reproducible_and_all_different() -> None:
    purposes: tuple[Purpose, ...] = ("train", "evaluation")
    keys = list(product([0, 1, 2**40], purposes, ["a/b", "a/c"], [0, 1, 2]))
    states = {first_words(task_stream(*key)) for key in keys}
    assert len(states) == len(keys)
    assert states == {first_words(task_stream(*key)) for key in keys}


def test_what_is_shared_depends_on_all_but_the_rank() -> None:
    assert shared_key(task_stream(0, "train", "a/b", 0)) == shared_key(task_stream(0, "train", "a/b", 1))
    assert shared_key(task_stream(0, "train", "a/b", 0)) != shared_key(task_stream(0, "train", "a/c", 0))
    assert shared_key(task_stream(0, "train", "a/b", 0)) != shared_key(task_stream(0, "evaluation", "a/b", 0))


def test_evaluation_can_share_with_training() -> None:
    train, evaluation = (task_stream(0, purpose, "a/b", 0) for purpose in ("train", "evaluation"))
    assert shared_key(train, held_out=False) == shared_key(train) == shared_key(evaluation, held_out=False)


def test_a_root_is_given_or_drawn() -> None:
    assert [root_seed(seed) for seed in (0, 2**70, np.int64(3))] == [0, 2**70, 3]  # type: ignore[arg-type]
    assert len({root_seed(None) for _ in range(4)}) == 4


@pytest.mark.parametrize("seed", [-1, 1.5, "1"])
def test_what_is_no_root_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match=f"at least 0, or None, got {seed!r}"):
        root_seed(seed)


def test_unknown_purpose() -> None:
    with pytest.raises(ValueError, match="got 'test'"):
        task_stream(0, "test", "a/b", 0)
