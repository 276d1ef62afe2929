"""Positions of rows among the rows of their task, by hand."""

import torch as th

from sb3_varshare.grouping import count_within_task, rank_within_task


def test_rank_within_task_by_hand() -> None:
    assert rank_within_task(th.tensor([2, 0, 2, 2, 0, 1]), 3).tolist() == [0, 0, 1, 2, 1, 0]


def test_rows_that_do_not_count_take_no_place() -> None:
    counted = th.tensor([True, False, False, True, True, True])
    rank, counts = count_within_task(th.tensor([2, 0, 2, 2, 0, 2]), 4, counted)
    assert rank[counted].tolist() == [0, 1, 0, 2]
    assert counts.tolist() == [1, 0, 3, 0]
