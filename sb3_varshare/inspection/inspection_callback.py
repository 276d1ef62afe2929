"""Looking inside while the agent trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, TensorBoardOutputFormat

from sb3_varshare.inspection.report import DRAWN_COLUMNS, Report, inspect_agent, save_report
from sb3_varshare.inspection.residuals import networks_with_residuals


class InspectionCallback(BaseCallback):
    """
    Writes what :func:`~sb3_varshare.inspection.inspect_agent` shows, regularly and at the end of training.

    To TensorBoard go the figures, as ``inspection/<figure>``, and of each network, layer and task the numbers
    ``inspection_<column>/<network>/<layer>/<task>``, beside the run's own logs; to files all tables and figures, in a
    folder per step. The tasks' actions are compared on observations of the replay. Training is not changed by it.

    :param log_freq: transitions of all tasks together between two looks; each takes some seconds
    :param folder: of the files, ``step_<transitions>`` for each look; ``None`` writes none
    :param tensorboard: write to TensorBoard; with a folder only where the agent logs there
    :param verbose: 1 says what was written
    :raises ValueError: ``log_freq`` is not positive, or there would be nothing to write to
    """

    def __init__(
        self, log_freq: int, folder: str | Path | None = None, tensorboard: bool = True, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        if log_freq < 1:
            raise ValueError(f"log_freq must be at least 1 transition, got {log_freq}.")
        if folder is None and not tensorboard:
            raise ValueError("Expected a folder, tensorboard=True, or both: otherwise nothing would be written.")
        self.log_freq, self.tensorboard = log_freq, tensorboard
        self.folder = None if folder is None else Path(folder)
        self._next_look = 0
        self._last_look: int | None = None

    def _init_callback(self) -> None:
        model: Any = self.model
        networks_with_residuals(model)
        if self.folder is None and not self._outputs():
            raise ValueError(
                "The agent does not log to TensorBoard: make it with tensorboard_log=, or give the callback a folder."
            )

    def _outputs(self) -> list[TensorBoardOutputFormat]:
        found = [output for output in self.logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
        return found if self.tensorboard else []

    def _on_training_start(self) -> None:
        self._next_look, self._last_look = self.num_timesteps + self.log_freq, None

    def _on_rollout_start(self) -> None:
        # Between updates, not within a step: the model is whole, and the transition is stored.
        if self.num_timesteps >= self._next_look:
            self._next_look = self.num_timesteps + self.log_freq
            self._look()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self._last_look != self.num_timesteps:
            self._look()

    def _look(self) -> None:
        self._last_look = self.num_timesteps
        self._write()

    def _write(self) -> None:
        model: Any = self.model
        report = inspect_agent(model)
        if self.folder is not None:
            folder = self.folder / f"step_{self.num_timesteps:09d}"
            files = save_report(report, folder)
            if self.verbose:
                print(f"{self.num_timesteps:>9} inspection: {len(files)} files in {folder}")
        values = _values(report)
        for output in self._outputs():
            # Not by the agent's logger, whose other values are not due yet.
            output.write(values, dict.fromkeys(values, ()), self.num_timesteps)


def _values(report: Report) -> dict[str, Any]:
    """What TensorBoard is given: name -> number or figure."""
    table = report.tables["residuals"]
    values: dict[str, Any] = {}
    for column in DRAWN_COLUMNS:
        known = table[table[column].notna()]
        for network, layer, task, value in known[["network", "layer", "task", column]].itertuples(index=False):
            values[f"inspection_{column}/{network}/{layer}/{task}"] = float(value)
    figures = {f"inspection/{name}": Figure(figure, close=True) for name, figure in report.figures.items()}
    return {**values, **figures}
