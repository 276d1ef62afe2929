"""
RL Zoo for the suites and agents of this package: ``python -m sb3_varshare.zoo train|enjoy``, see ``docs/zoo.md``.

Names are imported at their first use: worker processes that meet :class:`AssignTasks` need no rl_zoo3.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_varshare.zoo.assign_tasks import AssignTasks
    from sb3_varshare.zoo.manager import MultiTaskExperimentManager
    from sb3_varshare.zoo.registration import register

__all__ = ["AssignTasks", "MultiTaskExperimentManager", "register"]

_HOMES = {
    "AssignTasks": ".assign_tasks",
    "MultiTaskExperimentManager": ".manager",
    "register": ".registration",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
