"""
Play a task with one exported file, without sb3_varshare: what a robot needs of a trained agent.

Reads a ``.onnx`` with onnxruntime or a ``.pt2`` with torch, and plays episodes of ``Pendulum-v1`` under some gravity.
Write such files with ``examples/deploy.py``. Copy this script anywhere: it imports nothing of the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro


@dataclass(frozen=True)
class Args:
    """
    What to play.

    :param file: ``.onnx`` or ``.pt2``
    :param gravity: of the pendulum, m/s^2
    :param episodes: with seeds 0, 1, 2, ...
    """

    file: tyro.conf.Positional[Path]
    gravity: float = 9.81
    episodes: int = 3


def load(path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """
    :param path: of the file
    :return: from observations (B, D) to actions (B, A), and what the file says of its task
    """
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        facts = session.get_modelmeta().custom_metadata_map
        return lambda rows: session.run(["action"], {"observation": rows})[0], facts
    import torch

    texts = {"task.json": ""}
    module = torch.export.load(path, extra_files=texts).module()
    return lambda rows: module(torch.from_numpy(rows)).numpy(), json.loads(texts["task.json"])


def main(args: Args) -> list[float]:
    """Play, print, and return the return of each episode."""
    act, facts = load(args.file)
    env = gymnasium.make("Pendulum-v1", g=args.gravity)
    returns = []
    for seed in range(args.episodes):
        observation, _ = env.reset(seed=seed)
        total, is_over = 0.0, False
        while not is_over:
            observation, reward, terminated, truncated, _ = env.step(act(observation[None])[0])
            total, is_over = total + float(reward), terminated or truncated
        returns.append(total)
    env.close()
    print(json.dumps({"task": facts["task"], "returns": returns}))
    return returns


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
