"""What the tests of the zoo's commands have in common."""

from collections.abc import Callable

# Episodes of ten steps, and networks that take milliseconds.
SHORT = ("--env", "Contextual-v0", "--env-kwargs", "horizon:10", "--device", "cpu")
TINY = ("width:8", "rows_per_task:4", "learning_starts:20")
TINY_SAC = ("policy_kwargs:dict(net_arch=[8])", "batch_size:8", "learning_starts:20")
TASKS = ["swing-up", "swing-up-twin", "forward", "reversed", "light"]

Zoo = Callable[..., str]
