"""A grid whose runs take a second each, and what the tests of its engines have in common."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

TASKS = ["swing-up", "swing-up-twin", "forward", "reversed", "light"]
# Episodes of ten steps, and networks that take milliseconds.
TINY: dict[str, Any] = {
    "name": "tiny",
    "steps_per_task": 20,
    "evaluations": 2,
    "eval_episodes": 1,
    "seeds": [0, 1],
    "suites": {
        "short": {
            "id": "Contextual-v0",
            "env_kwargs": {"horizon": 10},
            "params": {"n_envs": 5, "learning_starts": 20},
        }
    },
    "arms": {
        "varshare": {"params": {"width": 8, "rows_per_task": 4, "callback": ["faults.Fault"]}},
        "sac": {
            "algo": "sac",
            "params": {
                "buffer_size": 500,
                "batch_size": 8,
                "policy_kwargs": "dict(net_arch=[8])",
                "callback": ["faults.Fault"],
            },
        },
    },
}
UNITS = ["short/varshare_seed0", "short/sac_seed0", "short/varshare_seed1", "short/sac_seed1"]


def declare(folder: Path, **changes: Any) -> Path:
    """Writes the grid with changes, and gives the file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False), encoding="utf-8")
    return path


def outcomes(folder: Path) -> Mapping[str, Any]:
    """All results in a folder, without what may differ between two runs of a unit."""
    found = {}
    for path in sorted(folder.glob("*/*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        assert set(result) == {"name", "identity", "settings", "versions", "protocol", "evaluations"}, path
        for evaluation in result["evaluations"]:
            assert evaluation.pop("seconds") > 0
        found[path.relative_to(folder).as_posix()] = result
    return found
