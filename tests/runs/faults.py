"""A callback for the grids of these tests by which runs go wrong in the middle."""

import os
import signal
import time
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback


class Fault(BaseCallback):
    """Of the runs that see the variable FAULT the first has it; a file of this name in the folder FAULT_AT notes it."""

    def _on_step(self) -> bool:
        fault = os.environ.get("FAULT")
        if fault is None or self.num_timesteps < 30:
            return True
        try:
            (Path(os.environ["FAULT_AT"]) / fault).touch(exist_ok=False)
        except FileExistsError:
            return True
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "stall":
            time.sleep(600)
        raise RuntimeError("broken on purpose")
