"""What holds for all tests of growing agents."""

import pytest
import torch as th


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Two workers share two cores."""
    th.set_num_threads(1)
