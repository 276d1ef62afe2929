"""A callback for the zoo's files by which a worker stands still in the middle of a trial, until it is killed."""

import os
import time
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback


class Pause(BaseCallback):
    """Stands still where STALL_AT names a file, which it makes first."""

    def _on_step(self) -> bool:
        marker = os.environ.get("STALL_AT")
        if marker is not None and self.num_timesteps >= 30:
            Path(marker).touch()
            time.sleep(600)
        return True
